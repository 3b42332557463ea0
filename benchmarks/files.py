"""The files that are restored, each written by the library that owns the format."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .workloads import PyTree, Workload, named


def _templax(path: Path, tree: PyTree) -> None:
    """All defaults: raw, aligned chunks with a checksum each, synced."""
    import templax as tx

    tx.save(path, tree)


def _templax_zstd(path: Path, tree: PyTree) -> None:
    import templax as tx

    tx.save(path, tree, compression="zstd")


def _orbax(path: Path, tree: PyTree) -> None:
    """All defaults: OCDBT, zarr2, zstd, one chunk per shard."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)


def _orbax_raw(path: Path, tree: PyTree) -> None:
    """As above without a compressor: an option of Orbax's PyTree handler alone."""
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer(use_compression=False) as checkpointer:
        checkpointer.save(path, tree)


def _safetensors(path: Path, tree: PyTree) -> None:
    from safetensors.flax import save_file

    save_file(named(tree), path)


def _msgpack(path: Path, tree: PyTree) -> None:
    import jax
    import numpy as np
    from flax.serialization import msgpack_serialize

    path.write_bytes(msgpack_serialize(jax.tree.map(np.asarray, tree)))


def _equinox(path: Path, tree: PyTree) -> None:
    import equinox as eqx

    with path.open("wb") as file:
        eqx.tree_serialise_leaves(file, tree)


def _npz(path: Path, tree: PyTree) -> None:
    import numpy as np

    arrays: dict[str, Any] = {name: np.asarray(leaf) for name, leaf in named(tree).items()}
    with path.open("wb") as file:
        np.savez(file, **arrays)


WRITERS: dict[str, Callable[[Path, PyTree], None]] = {
    "templax": _templax,
    "templax-zstd": _templax_zstd,
    "orbax": _orbax,
    "orbax-raw": _orbax_raw,
    "safetensors": _safetensors,
    "msgpack": _msgpack,
    "equinox": _equinox,
    "npz": _npz,
}
"""Kind of file, which is also the end of its name → how a tree is written to it."""


def file_of(directory: Path, workload: Workload, kind: str) -> Path:
    return directory / f"{workload.name}.{kind}"


def files_under(path: Path) -> list[Path]:
    """The files of a checkpoint, which may itself be one."""
    return [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())


def removed(path: Path) -> None:
    """Takes a checkpoint away; there may be none."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
