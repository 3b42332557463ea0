"""Names a file that no format opens, and the call that loads it for a `Recipe`."""

from __future__ import annotations

import os

from .._core.text import quote_text
from ..storage.local import Local
from ..storage.signatures import (
    HDF5,
    NPZ,
    PICKLE,
    PYTORCH,
    TENSORFLOW,
    ZIP,
    read_head,
    recognise,
)
from ..storage.source import Source
from .equinox import Equinox
from .flax.scan import holds_flax_arrays
from .torch.zip_file import SAVE_AGAIN
from .zip_members import list_names

_FLAX = "a Flax msgpack file"

_EQUINOX = "an Equinox file"

TREES = frozenset((NPZ, PYTORCH, _FLAX, _EQUINOX, HDF5, TENSORFLOW))
"""What holds the arrays of a tree. A plot may be a pickle, and a log a single array."""

UNPACK = "unpack it"

_PACKED = frozenset(
    ("a gzip file", "a zstd file", "a bzip2 file", "an xz file", "a tar archive", ZIP)
)


def describe_file(source: Source, key: str, size: int) -> tuple[str, str | None] | None:
    """Tells what kind of file this is.

    Args:
        source: Where it is.
        key: The file; "" if it is the root of the source.
        size: Its size in bytes.

    Returns:
        What it is, such as "a Flax msgpack file", and what to do about it, or None. None if it is
        not recognised.
    """
    what = _recognise_file(source, key, size)
    if what is None:
        return None
    place = source.at(key) if key else source
    if what == ZIP and any(name.endswith("/archive_format") for name in list_names(place)):
        return "a program of torch.export", SAVE_AGAIN.format("torch.export.load(path).state_dict")
    if what in _PACKED:
        return what, UNPACK
    if what != PICKLE or not isinstance(place, Local) or not _ends_pickle(place.url):
        return what, None
    load = f"pickle.loads(pathlib.Path({quote_text(place.url)}).read_bytes())"
    return what, f"if you trust the file, restore from tx.Recipe(lambda: {load})"


def _ends_pickle(path: str) -> bool:
    """Whether a file ends with the last instruction of a pickle."""
    try:
        with open(path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() == b"."
    except OSError:
        return False


def _recognise_file(source: Source, key: str, size: int) -> str | None:
    head = read_head(source, key, size)
    if not head:
        return None
    if holds_flax_arrays(source, key, size):
        return _FLAX
    if Equinox().detect(source.at(key) if key else source) is not None:
        return _EQUINOX
    return recognise(head, size)
