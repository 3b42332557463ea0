"""Names a file that no format opens, and the call that loads it for a `Recipe`."""

from __future__ import annotations

import json
import os
import re
import tokenize
import zlib
from io import BytesIO

import numpy as np

from .._core.text import quote_text
from ..errors import CheckpointError
from ..storage.local import Local
from ..storage.signatures import (
    HDF5,
    NPY,
    NPZ,
    PICKLE,
    PYTORCH,
    TENSORFLOW,
    read_head,
    recognise,
)
from ..storage.source import Source
from .flax.msgpack import holds_flax_arrays

_MAX_MSGPACK = 1 << 26
"""Most bytes of a msgpack file that are decoded. Of a larger one, only the head is looked at."""

_FLAX_ARRAY = re.compile(rb"(?:\xc7.|\xc8..|\xc9....)\x01\x93|__msgpack_chunked_array__", re.DOTALL)
"""The beginning of an array of Flax: an extension of type 1 with a list of three values."""

_MAX_MEMBERS = 1000
"""Most members of a numpy archive of which the headers are read."""

_MAX_LINE = 1 << 16
"""Most bytes of a JSON line, and of the header of a numpy array, that are read."""

_MAGIC = b"\x93NUMPY"

_FLAX = "a Flax msgpack file"

_EQUINOX = "an Equinox file"

_EQUINOX_JSON = "an Equinox file after a line of JSON"

_LOADERS = {
    NPY: "np.load({path})",
    NPZ: "dict(np.load({path}))",
    PICKLE: "pickle.loads(pathlib.Path({path}).read_bytes())",
    _FLAX: "flax.serialization.msgpack_restore(pathlib.Path({path}).read_bytes())",
    _EQUINOX: "eqx.tree_deserialise_leaves({path}, model)",
    _EQUINOX_JSON: (
        "eqx.tree_deserialise_leaves("
        'io.BytesIO(pathlib.Path({path}).read_bytes().split(b"\\n", 1)[1]), model)'
    ),
}
"""What a file is → an expression that gives its tree."""

TREES = frozenset(_LOADERS) - {NPY, PICKLE} | {HDF5, PYTORCH, TENSORFLOW}
"""What holds the arrays of a tree. A plot may be a pickle, and a log a single array."""

_NOTES = {
    PICKLE: "if you trust the file, ",
    _EQUINOX: "with a `model` of the same structure, ",
    _EQUINOX_JSON: "with a `model` of the same structure, ",
}

UNPACK = "unpack it"

_UNREADABLE = (
    OSError, EOFError, ValueError, TypeError, KeyError, SyntaxError, RuntimeError, MemoryError,
    OverflowError, tokenize.TokenError, zlib.error,
)  # fmt: skip
"""What Python and numpy raise for a damaged array header, archive or member."""

_PACKED = frozenset(
    ("a gzip file", "a zstd file", "a bzip2 file", "an xz file", "a tar archive", "a zip archive")
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
    if what in _PACKED:
        return what, UNPACK
    place = source.at(key) if key else source
    if what not in _LOADERS or not isinstance(place, Local) or not _is_loadable(what, place.url):
        return what, None
    load = _LOADERS[what].replace("{path}", quote_text(place.url))
    recipe = f"tx.Recipe(lambda: {load})"
    if what in (_EQUINOX, _EQUINOX_JSON):  # does not load what is traced, as a Recipe traces it
        recipe = f"tx.Recipe(lambda tree: tree, {load})"
    return what, f"{_NOTES.get(what, '')}restore from {recipe}"


def _is_loadable(what: str, path: str) -> bool:
    """Whether the loader of this kind of file can be expected to succeed. Loads no array."""
    import zipfile  # takes some ms, which reading should not cost

    try:
        if what == NPY:
            np.load(path, mmap_mode="r")
        elif what == NPZ:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                if len(names) > _MAX_MEMBERS:
                    return False
                for name in names:
                    with archive.open(name) as file:
                        if _read_array_header(BytesIO(file.read(_MAX_LINE)))[1].hasobject:
                            return False
        elif what == PICKLE:
            with open(path, "rb") as file:
                file.seek(-1, os.SEEK_END)
                return file.read() == b"."  # the last instruction of a pickle
    except (*_UNREADABLE, zipfile.BadZipFile):
        return False
    return True


def _recognise_file(source: Source, key: str, size: int) -> str | None:
    head = read_head(source, key, size)
    if not head:
        return None
    if _is_flax_msgpack(source, key, size, head):
        return _FLAX
    if head.startswith((_MAGIC, b"{", b"[")):
        text = read_head(source, key, size, _MAX_LINE)
        line, _, rest = text.partition(b"\n")
        if rest.startswith(_MAGIC) and _is_json(line):
            return _EQUINOX_JSON
        if head.startswith(_MAGIC) and _holds_several_arrays(source, key, size, text):
            return _EQUINOX
    return recognise(head, size)


def _is_flax_msgpack(source: Source, key: str, size: int, head: bytes) -> bool:
    is_map = 0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF)
    if not is_map:
        return False
    if size > _MAX_MSGPACK:
        return _FLAX_ARRAY.search(read_head(source, key, size, _MAX_LINE)) is not None
    try:
        data = source.view(key, 0, size) if source.maps else None
        return holds_flax_arrays(source.read(key) if data is None else data)
    except CheckpointError:
        return False


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _holds_several_arrays(source: Source, key: str, size: int, head: bytes) -> bool:
    """Whether another array follows the first one, as `equinox.tree_serialise_leaves` writes."""
    file = BytesIO(head)
    try:
        shape, dtype = _read_array_header(file)
    except _UNREADABLE:
        return False
    if dtype.hasobject or any(n < 0 for n in shape):
        return False
    stop = file.tell() + dtype.itemsize * int(np.prod(shape, dtype=object))
    return stop + len(_MAGIC) <= size and source.read(key, stop, stop + len(_MAGIC)) == _MAGIC


def _read_array_header(file: BytesIO) -> tuple[tuple[int, ...], np.dtype]:
    """The shape and dtype in the header of an array in numpy's own format."""
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[np.lib.format.read_magic(file)]
    shape, _, dtype = read(file)
    return shape, dtype
