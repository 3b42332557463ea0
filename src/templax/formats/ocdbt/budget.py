"""Limits for reading one OCDBT database, in proportion to the bytes that store it.

Nodes are compressed, names omit the prefix that they share with the previous one, and several
references may lead to one node. Without limits, a few kilobytes could declare gigabytes.
"""

from __future__ import annotations

from ...errors import Corrupted, Unsupported
from ...storage.source import Source

# Each limit is a fixed allowance, and this much more per stored byte. The first covers the most
# regular trees: 65,000 arrays of zeros, with two keys each, take a few kilobytes. The second is
# several times what a node can reach that stores positions in data files.

_DECODED = 48 << 20, 48
"""Bytes of decoded nodes."""

NAMES = 32 << 20, 64
"""Bytes of keys, with the prefixes that they inherit, and of paths of data files."""

_ENTRIES = 1 << 17, 0.5
"""Keys and references to nodes."""

_MAX_NODES = 1 << 14

MAX_ENTRIES = 1 << 22

_MAX_BYTES = 1 << 30


class Budget:
    """Counts what the nodes of a database take, before anything is allocated for them.

    Args:
        source: Source of the files.
        manifest: Path of the manifest, for errors.
    """

    def __init__(self, source: Source, manifest: str):
        self._source, self._manifest = source, manifest
        self._stored = self._decoded = self._names = self._entries = self._nodes = 0
        self._sizes: dict[str, int] = {}
        self._unread: dict[str, int] = {}

    def add_node(self, file: str, start: int, stop: int) -> None:
        """Counts the stored bytes of a node before they are read.

        Raises:
            Corrupted: The nodes in a file are longer than the file together, so some overlap.
            Unsupported: There are too many nodes.
        """
        self._nodes += 1
        if self._nodes > _MAX_NODES:
            raise self._make_error(f"{_MAX_NODES} nodes")
        self._stored += stop - start
        if file not in self._sizes:
            info = self._source.stat(file)
            self._sizes[file] = self._unread[file] = 0 if info is None else info.size
        if stop > self._sizes[file]:
            return  # reading the node reports what is wrong
        self._unread[file] -= stop - start
        if self._unread[file] < 0:
            raise Corrupted(
                "Expected index nodes apart from each other, got some that share bytes",
                file=file,
                start=start,
                stop=stop,
            )

    @property
    def decodable(self) -> int:
        """How many bytes the node that was added last may decode to."""
        return max(self._limit(_DECODED, _MAX_BYTES) - self._decoded, 0)

    def add_decoded(self, nbytes: int) -> None:
        """Counts the bytes that a node decoded to."""
        self._decoded += nbytes

    def add_names(self, nbytes: int) -> None:
        """Counts bytes of names.

        Raises:
            Unsupported: There are too many.
        """
        self._names += nbytes
        self._check(self._names, self._limit(NAMES, _MAX_BYTES), "bytes of names")

    def add_entries(self, n: int) -> None:
        """Counts keys, or references to nodes.

        Raises:
            Unsupported: There are too many.
        """
        self._entries += n
        self._check(self._entries, self._limit(_ENTRIES, MAX_ENTRIES), "keys")

    def _limit(self, rule: tuple[int, float], maximum: int) -> int:
        least, per_byte = rule
        return min(least + int(per_byte * self._stored), maximum)

    def _check(self, n: int, maximum: int, unit: str) -> None:
        if n > maximum:
            raise self._make_error(f"{maximum} {unit} in {self._stored} stored bytes")

    def _make_error(self, limit: str) -> Unsupported:
        return Unsupported(
            f"templax reads indexes of up to {limit}; this one has more", file=self._manifest
        )
