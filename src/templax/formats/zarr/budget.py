"""How many chunks one call may list: limits in proportion to the bytes and keys that exist.

The metadata of an array may declare any grid of chunks, and a shard any number of inner chunks. An
absent one takes no bytes, and several keys may lead to the same bytes.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Mapping

from ..._catalog.entry import Extent
from ...errors import Unsupported

_MAX_ABSENT = 1 << 17
"""One call lists at most this many absent chunks of all arrays, and one more per existing key."""

_MAX_ABSENT_HERE = 1 << 16
"""Maximum number of absent chunks of one array that are listed."""

_MAX_LOST = 1 << 14
"""Maximum number of absent chunks that are reported one by one, where each of them is damage."""

_MAX_INNER = 1 << 17
"""One call lists at most this many inner chunks of all shards, and one more per `_INNER_BYTES`."""

_INNER_BYTES = 64
"""Inner chunks are smaller than this on average only in small arrays."""

_MAX_INNER_HERE = 1 << 20
"""Maximum number of inner chunks of one shard, whose index has 16 bytes for each."""

_SHARD_COST = 8
"""The index of a shard takes about as long to read as this many inner chunks to list."""


WHOLE_BYTES = 1 << 26
"""Maximum size of a chunk that numcodecs decodes, which it does whole, besides `WHOLE_RATIO` times
the stored bytes. blosc with zstd makes 18,000 of one in a chunk of equal values."""

_FILE_BYTES = 1 << 30
"""The same for all such chunks in one file."""

WHOLE_RATIO = 255
"""The most bytes that a byte of an lz4 block decodes to, but for the first few."""


class ChunkBudget:
    """Counts the chunks that one call of a locator lists, before it lists them.

    Args:
        objects: Every key of the container.
    """

    def __init__(self, objects: Mapping[str, Extent]):
        self._objects = objects
        self._absent = self._lost = self._inner = self._nbytes = 0
        self._reach: dict[str, int] = {}  # where the counted part of each file ends
        self._whole: dict[str, int] = {}

    @functools.cached_property
    def _keys(self) -> list[str]:
        return sorted(self._objects)

    def count_keys(self, prefix: str) -> int:
        """The number of keys that begin with `prefix`."""
        if not prefix:
            return len(self._keys)
        after = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        return bisect.bisect_left(self._keys, after) - bisect.bisect_left(self._keys, prefix)

    def may_list_absent(self, n: int, *, lost: bool) -> bool:
        """Whether `n` more absent chunks of one array may be listed. Counts them if so.

        Args:
            n: A lower bound on how many are absent.
            lost: Whether each of them is damage.
        """
        if lost:
            fits = self._lost + n <= _MAX_LOST
            self._lost += n if fits else 0
        else:
            fits = self._absent + n <= _MAX_ABSENT + len(self._objects)
            self._absent += n if fits else 0
        return fits and n <= _MAX_ABSENT_HERE

    def add_whole(self, extent: Extent, nbytes: int) -> None:
        """Counts a chunk that numcodecs decodes to `nbytes`.

        Raises:
            Unsupported: Few stored bytes decode to many.
        """
        more = nbytes - WHOLE_RATIO * extent.nbytes
        if more > WHOLE_BYTES:
            raise Unsupported(
                f"templax reads chunks of blosc and lz4 of up to {WHOLE_BYTES} bytes, or"
                f" {WHOLE_RATIO} times the stored ones, got {nbytes} of {extent.nbytes}"
            )
        total = self._whole[extent.key] = self._whole.get(extent.key, 0) + max(more, 0)
        if total > _FILE_BYTES:
            raise Unsupported(
                f"templax reads up to {_FILE_BYTES} bytes of blosc and lz4 in one file, or"
                f" {WHOLE_RATIO} times the stored ones, got more"
            )

    def add_shard(self, extent: Extent, n: int) -> None:
        """Counts the inner chunks of a shard.

        Raises:
            Unsupported: There are too many.
        """
        if extent.inline is not None:
            self._nbytes += extent.nbytes
        elif extent.stop > (reach := self._reach.get(extent.key, 0)):
            self._reach[extent.key] = extent.stop
            self._nbytes += extent.stop - reach
        if n > _MAX_INNER_HERE:
            raise Unsupported(f"templax reads shards of {_MAX_INNER_HERE} inner chunks, got {n}")
        self._inner += n + _SHARD_COST
        maximum = _MAX_INNER + self._nbytes // _INNER_BYTES
        if self._inner > maximum:
            raise Unsupported(
                f"templax reads {maximum} inner chunks of shards in {self._nbytes} bytes, got more"
            )
