"""A target for whole checkpoints: some files are changed, then every stage reads what is there."""

from __future__ import annotations

import functools
import random
import shutil
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import templax as tx
from templax._catalog.catalog import Catalog
from templax.formats.registry import open_catalog
from templax.storage import Memory

from . import seeds
from .documents import _directory
from .encodings import MANIFEST, NODE, seal, seal_index
from .inspection import check_line, inspect
from .mutators import mutate_bytes, mutate_json, mutate_msgpack
from .targets import Wrong, add_target
from .writes import only_writing_to

Files = dict[str, bytes]

_MAX_RESTORED = 16 << 20
"""Checkpoints of more bytes are not restored: a file may declare arrays of any size."""

_JSON = (".zarray", "zarr.json", "_METADATA", "_sharding", "_strings.json", "_CHECKPOINT_METADATA")

_TREE_FILES = ("_METADATA", "checkpoint", "_strings.json", "array_metadatas")

_OPS = ("bytes", "bytes", "seal", "seal", "json", "json", "delete", "copy", "swap", "cut", "new")


class _Seed(NamedTuple):
    """A sound checkpoint.

    Attributes:
        files: Its files.
        values: The bytes of each array.
        indexed: Whether `templax.index` covers all of it.
    """

    files: Files
    values: dict[str, bytes]
    indexed: bool


@functools.cache
def _sound() -> tuple[_Seed, ...]:
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for files in [*_saved(), *_split_items()]:
            with suppress(tx.TemplaxError):
                catalog = open_catalog(Memory(files))
                if catalog.nbytes < 1 << 20:
                    found.append(_Seed(files, _restore(catalog), "templax.index" in files))
    return tuple(found)


def _saved() -> list[Files]:
    """What templax saves: raw and compressed, one chunk and several, a string and a key."""
    import jax

    tree = {
        "w": np.arange(60, dtype=np.float32).reshape(6, 10),
        "empty": np.zeros((0, 3)),
        "n": 3,
        "text": "words",
        "layers": [{"b": np.arange(4, dtype=np.int8)}, {"b": np.ones(4, np.int8)}],
    }
    found = []
    for options in ({}, {"compression": "zstd"}):
        directory = tempfile.mkdtemp()
        key = {"key": jax.random.key(0)} if not options else {}
        tx.save(f"{directory}/c", tree | key, **options)
        root = Path(directory, "c")
        files = [path for path in sorted(root.rglob("*")) if path.is_file()]
        found.append({path.relative_to(root).as_posix(): path.read_bytes() for path in files})
        shutil.rmtree(directory)
    without = dict(found[0])
    del without["templax.index"]
    return [*found, without]


def _split_items() -> list[Files]:
    """The checkpoints of the corpus: of a run, one of its items, and the run itself."""
    found = []
    for files in seeds.checkpoints().values():
        if sum(map(len, files.values())) > 1 << 18:
            continue
        top = {
            key.partition("/")[2]: data for key, data in files.items() if key.startswith("ckpt/")
        }
        if top:
            found.append(top)
        elif len(files) == 1:
            found.append({"": next(iter(files.values()))})
        else:
            found.append(files)
    return found


def _restore(catalog: Catalog) -> dict[str, bytes]:
    """The bytes of every array."""
    arrays = {e.name: e for e in catalog.entries if e.kind in ("array", "scalar")}
    template: dict[str, Any] = dict.fromkeys((e.name for e in catalog.entries), ...)
    template |= {n: np.broadcast_to(np.zeros((), e.dtype), e.shape) for n, e in arrays.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        restored = tx.restore(catalog, template, threads=1)
    return {name: restored[name].tobytes() for name in arrays}


def _plans() -> list[bytes]:
    """Inputs: the checkpoint, the storage, and four bytes for each change."""
    return [
        bytes([i, storage, op, 0, i, op])
        for i in range(len(_sound()))
        for storage in (0, 1)
        for op in range(len(_OPS))
    ]


@add_target("checkpoint", seeds=_plans, max_bytes=34)
def read_checkpoint(data: bytes) -> None:
    """A byte for the checkpoint, one for the storage, four for each change; then every stage."""
    if len(data) < 6:
        return
    seed = _sound()[data[0] % len(_sound())]
    files, covered = dict(seed.files), True
    for at in range(2, min(len(data) - 3, 34), 4):
        rng = random.Random(data[at : at + 4])
        op = _OPS[data[at] % len(_OPS)]
        key = sorted(files)[data[at + 1] % len(files)] if files else ""
        _change(files, key, op, rng)
        covered = covered and op in ("bytes", "cut") and not key.endswith(_TREE_FILES)
    if seed.indexed and covered and "templax.index" in files:
        wanted = seed.values
    else:
        wanted = {}
    if data[1] % 4:
        _read(Memory(files), wanted)
        return
    root = _directory() / "checkpoint"
    shutil.rmtree(root, ignore_errors=True)
    if not _write(root, files):
        return
    with only_writing_to(None):
        _read(root, wanted)


def _change(files: Files, key: str, op: str, rng: random.Random) -> None:
    data = files.get(key, b"")
    if op == "bytes":
        files[key] = mutate_bytes(data, rng)
    elif op == "seal":
        files[key] = _reseal(key, data, rng)
    elif op == "json":
        named = [k for k in files if k.rpartition("/")[2] in _JSON]
        key = rng.choice(named) if named and not key.endswith(_JSON) else key
        if key == "" and len(data) > 8:  # safetensors
            length = int.from_bytes(data[:8], "little")
            header = mutate_json(data[8 : 8 + length], rng)
            files[key] = len(header).to_bytes(8, "little") + header + data[8 + length :]
        else:
            files[key] = mutate_json(files.get(key, b"{}"), rng)
    elif op == "delete":
        files.pop(key, None)
    elif op == "copy" and files:
        files[rng.choice(sorted(files)) if rng.random() < 0.5 else f"{key}x"] = data
    elif op == "swap" and files:
        other = rng.choice(sorted(files))
        files[key], files[other] = files[other], data
    elif op == "cut":
        files[key] = data[: rng.randrange(len(data) + 1)]
    elif op == "new":
        files[f"{key.rpartition('/')[0]}/{rng.choice(_JSON)}".lstrip("/")] = b"{}"


def _reseal(key: str, data: bytes, rng: random.Random) -> bytes:
    """Changes what a checksum covers, and the checksum with it."""
    if key.endswith("templax.index"):
        return seal_index(mutate_msgpack(data[24:-4], rng))
    if key.endswith("checkpoint"):
        return mutate_msgpack(data, rng)
    for magic in (MANIFEST, NODE):
        at = data.find(magic.to_bytes(4, "big"))
        if at < 0:
            continue
        length = int.from_bytes(data[at + 4 : at + 12], "little")
        body = next(seeds._find_bodies(data[at : at + length], magic), None)
        if body is not None:
            sealed = seal(magic, mutate_bytes(body, rng))
            return data[:at] + sealed + data[at + max(length, len(sealed)) :]
    return mutate_bytes(data, rng)


def _write(root: Path, files: Files) -> bool:
    """Writes the files; False if a file system can't hold them."""
    try:
        for key, data in files.items():
            path = root / key if key else root
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    except (OSError, ValueError):
        return False
    return True


def _read(checkpoint: Any, wanted: dict[str, bytes]) -> None:
    catalog = tx.open(checkpoint, uncommitted="allow")
    inspect(catalog)
    if catalog.nbytes > _MAX_RESTORED:
        return
    verified = tx.verify(catalog, threads=1)
    check_line(str(verified).replace("\n", ""))
    with suppress(tx.TemplaxError):
        tx.plan(catalog, catalog.template())
    for name, data in _restore(catalog).items():
        if wanted.get(name, data) != data:
            raise Wrong(f"wrong values of {name!r}, although a checksum covers them")
