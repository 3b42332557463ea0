"""Opens files that `equinox.tree_serialise_leaves` wrote.

The arrays of a tree in numpy's own format, one after the other, in the order of its leaves and
without their names. A line of JSON before them, with what builds the model, is a convention of
Equinox's documentation.
"""

from __future__ import annotations

import functools
from typing import Any

from .._catalog.catalog import Catalog
from .._catalog.entry import LeafEntry
from .._catalog.regions import Region
from .._codecs.npy_members import NPY_MAGIC
from .._core.gc_pause import pause_gc
from .._core.json_text import decode_json
from ..errors import CheckpointError, Corrupted
from ..storage.signatures import read_head, read_root
from ..storage.source import Source, open_ranges, root_size
from .numpy_files import locate_arrays, read_header

_MAX_LINE = 1 << 20
"""Most bytes of the line before the arrays."""


class Equinox:
    """Several `.npy` files in one, or any number after a line of JSON."""

    name = "equinox"

    def detect(self, source: Source) -> str | None:
        size = root_size(source)
        head = read_root(source)
        if head.startswith((b"{", b"[")):
            found = _find_line(source, size) is not None
            return "arrays after a line of JSON" if found else None
        if not head.startswith(NPY_MAGIC):
            return None
        try:
            stop = read_header(open_ranges(source, "", size), 0, size).stop
        except CheckpointError:
            return None
        follows = stop + len(NPY_MAGIC) <= size and _begins_at(source, stop)
        return "arrays one after the other" if follows else None

    @pause_gc()
    def open(self, source: Source) -> Catalog:
        """Opens a file. Leaves are in its order, and named by their positions.

        Raises:
            Corrupted: A header is unreadable, an array is incomplete, or other bytes follow one.
            Unsupported: An array is not of numbers, or of a dtype that templax does not read.
        """
        size = root_size(source)
        line = None if _begins_at(source, 0) else _find_line(source, size)
        evidence, metadata, at = "arrays one after the other", {}, 0
        if line is not None:
            evidence, at = "arrays after a line of JSON", len(line) + 1
            metadata = {"hyperparameters": _read_line(line)}
        read = open_ranges(source, "", size)
        entries: list[LeafEntry] = []
        while at < size:
            name = str(len(entries))
            try:
                header = read_header(read, at, size)
                if at + header.stop > size:
                    raise Corrupted(
                        f"Expected {header.nbytes} bytes for {header.dtype.name}{header.shape},"
                        f" got {size - at - header.start}"
                    )
            except CheckpointError as error:
                raise error.locate(leaf=name, start=at, stop=size) from error
            handle = (at + header.start, at + header.stop, header.order, header.codecs, 0, ())
            path = (len(entries),)
            entries.append(LeafEntry(name, path, header.shape, header.dtype, handle=handle))
            at += header.stop
        return Catalog(
            url=source.url,
            format=self.name,
            evidence=evidence,
            entries=tuple(entries),
            source=source,
            locator=locate_arrays,
            metadata=metadata,
            positional=True,
            regions=functools.partial(iter, (Region("", 0, None, "index", "headers of arrays"),)),
        )


def _begins_at(source: Source, at: int) -> bool:
    return bytes(source.read("", at, at + len(NPY_MAGIC))) == NPY_MAGIC


def _find_line(source: Source, size: int) -> bytes | None:
    """Returns the line before the arrays, without its newline, or None."""
    for nbytes in (1 << 12, _MAX_LINE):
        head = read_head(source, "", size, nbytes)
        line, newline, rest = head.partition(b"\n")
        if newline and len(rest) >= len(NPY_MAGIC):
            return line if rest.startswith(NPY_MAGIC) else None
    return None


def _read_line(line: bytes) -> Any:
    try:
        return decode_json(line)
    except (ValueError, RecursionError) as error:
        what = f"The line before the arrays is not JSON: {error}"
        raise Corrupted(what, start=0, stop=len(line)) from error
