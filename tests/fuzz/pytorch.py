"""Targets for files of PyTorch: pickles, archives, old files, distributed checkpoints."""

from __future__ import annotations

import functools
import io
import zipfile
from contextlib import suppress
from pathlib import Path

import templax as tx
from templax._core.gc_pause import pause_gc
from templax.formats.diagnose import diagnose_source
from templax.formats.registry import open_catalog
from templax.formats.torch.file_set import TorchSet
from templax.formats.torch.tree import Tree
from templax.formats.torch.unpickler import read_pickle
from templax.storage import Memory

from . import seeds
from .documents import OneFile
from .inspection import inspect
from .mutators import mutate_json
from .targets import Wrong, add_target

_TOKENS = (
    b"\x80\x02", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"Q", b"R",
    b"ccollections\nOrderedDict\n)R", b"\x85", b"(", b"t", b"q\x00", b"h\x00", b"\x94", b"}", b"u",
    b"cos\nsystem\n", b"\x93", b"\x81", b"b", b"X\x01\x00\x00\x00a", b"\x8a\x01\x7f", b"]", b"e",
    b"ctorch._utils\n_rebuild_parameter_with_state\n", b"cbuiltins\ncomplex\n", b"G" + bytes(8),
    b"X\x03\x00\x00\x00\xed\xb3\xa9", b"cpathlib\nPosixPath\n", b"N", b"s", b"\x86",
)  # fmt: skip

_WRITTEN = seeds.CORPUS / "torch-2.14.1"


@functools.cache
def _pickles() -> list[bytes]:
    found = [(_WRITTEN / "dcp-2" / ".metadata").read_bytes()]
    for path in sorted(_WRITTEN.glob("*.pt")):
        with suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            found.append(archive.read(f"{path.stem}/data.pkl"))
    return found


def _files(pattern: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted(_WRITTEN.glob(pattern))]


@add_target("torch-pickle", seeds=_pickles, tokens=_TOKENS)
@pause_gc()
def read_torch_pickle(data: bytes) -> None:
    """A pickle, and the tree that it stands for."""
    found = read_pickle(data)
    if not 0 < found.stop <= len(data):
        raise Wrong(f"a pickle that ends at {found.stop} of {len(data)}")
    tree = Tree(len(data), len(data))
    tree.add(found.value)
    tree.require_tensors()
    found.require_listed(tree.refused)


def _archives() -> list[bytes]:
    return [*(b"\1" + data for data in _pickles()), *(b"\0" + data for data in _files("*.pt"))]


@add_target("torch-zip", seeds=_archives, tokens=_TOKENS)
def read_torch_zip(data: bytes) -> None:
    """A byte that says what follows: an archive, or a pickle for one with twelve storages."""
    flags, body = data[:1], data[1:]
    if flags == b"\1":
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w") as archive:
            archive.writestr("a/data.pkl", body)
            for i in range(12):
                archive.writestr(f"a/data/{i}", bytes(8 * i))
        body = made.getvalue()
    _inspect_file(body)


@add_target("torch-legacy", seeds=lambda: _files("*-legacy.pt"), tokens=_TOKENS)
def read_torch_legacy(data: bytes) -> None:
    """A file of PyTorch before 1.6."""
    _inspect_file(data)


def _inspect_file(data: bytes) -> None:
    catalog = open_catalog(OneFile(Memory({"": data})))
    _check_extents(catalog, {"": len(data)})
    inspect(catalog)


def _check_extents(catalog: tx.Catalog, sizes: dict[str, int]) -> None:
    for entry in catalog.entries:
        if entry.kind == "string":
            continue
        with suppress(tx.CheckpointError):
            for chunk in catalog.locate([entry])[entry.name]:
                extent = chunk.extent
                inside = 0 <= extent.start <= extent.stop <= sizes[extent.key]
                if extent.inline is None and not inside:
                    raise Wrong(f"{extent.start}-{extent.stop} of {sizes[extent.key]} bytes")


@functools.cache
def _directory() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (_WRITTEN / "dcp-2").iterdir()}


def _metadata() -> list[bytes]:
    return [path.read_bytes() for path in sorted(Path(_WRITTEN).glob("dcp-*/.metadata"))]


@add_target("torch-dcp", seeds=_metadata, tokens=_TOKENS)
def read_torch_dcp(data: bytes) -> None:
    """The metadata of a distributed checkpoint, beside the files of two processes."""
    files = _directory() | {".metadata": data}
    catalog = open_catalog(Memory(files))
    _check_extents(catalog, {name: len(content) for name, content in files.items()} | {"": 0})
    inspect(catalog)


_SET = seeds.CORPUS / "torch-set"

_INDEX = "pytorch_model.bin.index.json"


@add_target(
    "torch-set",
    seeds=lambda: [(_SET / _INDEX).read_bytes(), b'{"weight_map": {"shared.weight": "a.bin"}}'],
    mutate=mutate_json,
    tokens=(b'"weight_map"', b'"metadata"', b'"pytorch_model-00001-of-00002.bin"', b'".."'),
)
def read_torch_set(data: bytes) -> None:
    """An index, beside the two files of a set and one that is not PyTorch's."""
    files = {path.name: path.read_bytes() for path in _SET.glob("*.bin")}
    source = Memory({**files, "a.bin": b"words", _INDEX: data})
    sizes = {name: len(content) for name, content in files.items()}
    for place in (source, source.at(_INDEX)):
        format = TorchSet()
        if format.detect(place) is not None:
            catalog = format.open(place)
            _check_extents(catalog, sizes)
            inspect(catalog)
    diagnose_source(source)
