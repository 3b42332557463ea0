"""The checkpoint files, each written by the library that owns the format."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .mapped import split_layers
from .workloads import PyTree, Workload, name_leaves


def _write_templax(path: Path, tree: PyTree) -> None:
    """All defaults: raw, aligned chunks with a checksum each, synced."""
    import templax as tx

    tx.save(path, tree)


def _write_templax_zstd(path: Path, tree: PyTree) -> None:
    import templax as tx

    tx.save(path, tree, compression="zstd")


def _write_orbax(path: Path, tree: PyTree) -> None:
    """All defaults: OCDBT, zarr2, zstd, one chunk per shard."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)


def _write_orbax_raw(path: Path, tree: PyTree) -> None:
    """The same without a compressor, which is an option of Orbax's PyTree handler only."""
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer(use_compression=False) as checkpointer:
        checkpointer.save(path, tree)


def _write_safetensors(path: Path, tree: PyTree) -> None:
    from safetensors.flax import save_file

    save_file(name_leaves(tree), path)


def _write_layers(path: Path, tree: PyTree) -> None:
    """A matrix for each layer, transposed, as models of PyTorch are published."""
    from safetensors.numpy import save_file

    save_file(split_layers(name_leaves(tree)), path)


def _write_safetensors_set(path: Path, tree: PyTree) -> None:
    import templax as tx

    tx.save(path, tree, format="safetensors")


def _write_msgpack(path: Path, tree: PyTree) -> None:
    import jax
    import numpy as np
    from flax.serialization import msgpack_serialize

    path.write_bytes(msgpack_serialize(jax.tree.map(np.asarray, tree)))


def _write_equinox(path: Path, tree: PyTree) -> None:
    import equinox as eqx

    with path.open("wb") as file:
        eqx.tree_serialise_leaves(file, tree)


def _write_npz(path: Path, tree: PyTree) -> None:
    import numpy as np

    arrays: dict[str, Any] = {name: np.asarray(leaf) for name, leaf in name_leaves(tree).items()}
    with path.open("wb") as file:
        np.savez(file, **arrays)


def _write_torch(path: Path, tree: PyTree) -> None:
    """A state dict, as models are published: a zip file."""
    import numpy as np
    import torch

    def to_tensor(leaf: Any) -> torch.Tensor:
        array = np.array(leaf)  # a copy, because tensors are writable
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    torch.save({name: to_tensor(leaf) for name, leaf in name_leaves(tree).items()}, path)


WRITERS: dict[str, Callable[[Path, PyTree], None]] = {
    "templax": _write_templax,
    "templax-zstd": _write_templax_zstd,
    "orbax": _write_orbax,
    "orbax-raw": _write_orbax_raw,
    "safetensors": _write_safetensors,
    "safetensors-set": _write_safetensors_set,
    "layers.safetensors": _write_layers,
    "msgpack": _write_msgpack,
    "equinox": _write_equinox,
    "npz": _write_npz,
    "torch": _write_torch,
}
"""Kind of file, which is also its extension → the function that writes a tree to it."""


def locate_checkpoint(directory: Path, workload: Workload, kind: str) -> Path:
    """The path of a workload's checkpoint of one kind."""
    return directory / f"{workload.name}.{kind}"


def list_files(path: Path) -> list[Path]:
    """The files of a checkpoint, which may itself be a single file."""
    return [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())


def remove_checkpoint(path: Path) -> None:
    """Removes a checkpoint, file or directory, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
