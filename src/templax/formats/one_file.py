"""Opens directories that hold a checkpoint in one file, as `templax.save` writes them.

The file alone is a checkpoint, too. A directory of several files may be anything: it is not opened.
"""

from __future__ import annotations

from contextlib import suppress

from .._catalog.catalog import Catalog
from ..errors import CheckpointError, SourceError
from ..storage.source import Source
from .flax.file import FlaxMsgpack
from .numpy_files import NumpyArchive
from .protocol import Format

ARCHIVE, MSGPACK = "arrays.npz", "checkpoint.msgpack"

_FORMATS: dict[str, Format] = {ARCHIVE: NumpyArchive(), MSGPACK: FlaxMsgpack()}


class OneFile:
    """A directory with one file, `arrays.npz` or `checkpoint.msgpack`, and nothing else."""

    name = "one file"

    def detect(self, source: Source) -> str | None:
        found = find_only_file(source)
        return None if found is None else f"`{found}`"

    def open(self, source: Source) -> Catalog:
        """Opens the file; see its format."""
        name = find_only_file(source)
        assert name is not None, "`detect` has found it"
        source.stat(name)  # refuses a link that leads out of the directory
        try:
            return _FORMATS[name].open(source.at(name))
        except CheckpointError as error:
            raise error.locate(file=name) from error


def find_only_file(source: Source) -> str | None:
    """The name of the only entry of a directory, if it is such a file; else None."""
    info = source.stat("")
    if info is None or not info.is_dir:
        return None
    names = [child.key for child, _ in zip(source.children(), range(2), strict=False)]
    if len(names) != 1 or names[0] not in _FORMATS:
        return None
    with suppress(CheckpointError, SourceError):
        if _FORMATS[names[0]].detect(source.at(names[0])) is not None:
            return names[0]
    return None
