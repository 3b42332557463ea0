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

ONNX = "an ONNX model"

# Tags of fields: the number of a field, and in the lowest three bits its type.
_VERSION, _STRINGS, _MODEL_VERSION, _GRAPH = 0x08, (0x12, 0x1A, 0x22, 0x32), 0x28, 0x3A

TREES = frozenset((NPZ, PYTORCH, _FLAX, _EQUINOX, HDF5, TENSORFLOW))
"""What holds the arrays of a tree. A plot may be a pickle, and a log a single array."""

UNPACK = "unpack it"

_PACKED = frozenset(
    (
        "a gzip file",
        "a zstd file",
        "a bzip2 file",
        "an xz file",
        "an lz4 file",
        "a tar archive",
        ZIP,
    )
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
    path = quote_text(place.url)
    if what == HDF5:
        return what, f"restore from a tx.Recipe of a function that reads {path} with h5py"
    if not isinstance(place, Local):
        return what, None
    if what == PICKLE and _ends_pickle(place.url):
        load = f"pickle.loads(pathlib.Path({path}).read_bytes())"
        return what, f"if you trust the file, restore from tx.Recipe(lambda: {load})"
    if what == ONNX:
        weights = f"onnx.load({path}).graph.initializer"
        load = f"{{t.name: onnx.numpy_helper.to_array(t) for t in {weights}}}"
        return what, f"restore from tx.Recipe(lambda: {load})"
    return what, None


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
    return recognise(head, size) or (ONNX if _is_onnx(head, size) else None)


def _is_onnx(head: bytes, size: int) -> bool:
    """Whether a file is a message of the fields that ONNX has before its graph, and a graph.

    They are, in the order of their numbers: the version, strings about the producer and the model,
    a number, and a string (onnx.proto, ModelProto).
    """
    at, field = 0, 0
    while at < len(head):
        tag, at = _read_varint(head, at)
        if tag >> 3 <= field or (field == 0 and tag != _VERSION):
            return False
        field = tag >> 3
        value, at = _read_varint(head, at)
        if tag == _GRAPH:
            return 0 < value <= size - at
        if tag in _STRINGS:
            at += value
        elif tag not in (_VERSION, _MODEL_VERSION):
            return False
    return False


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of protobuf, and where it ends: seven bits in each byte, the lowest first."""
    value = 0
    for i, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, at + i + 1
    return value, len(data)
