"""The libraries that restore.

A library is opened for a job, untimed, and returns the call that is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import locate_checkpoint
from ..jobs import Job, Restore
from ..limits import restore as limits
from ..mapped import make_mapping, stack_layers
from ..workloads import PyTree, Workload, name_leaves


@dataclass(frozen=True)
class Library:
    """How a peer, or a limit, restores.

    Attributes:
        open: Imports what it needs and returns the timed call; reads nothing of the job's file.
        reads: Kinds of files, its own first. Empty for limits, which take any kind.
        keep_dtypes: Asks for the dtypes and shardings with which the tree was saved (see `Job`).
        limit: Returns no tree to compare.
    """

    open: Callable[[Job], Restore]
    reads: tuple[str, ...] = ("orbax", "orbax-raw")
    keep_dtypes: bool = False
    limit: bool = False

    def choose_kind(self, workload: Workload) -> str:
        """The kind of file it restores: the workload's if it can read that, or else its own."""
        if not self.reads or workload.kind in self.reads:
            return workload.kind
        return self.reads[0]

    def make_job(self, directory: Path, workload: Workload, scale: float) -> Job:
        """The job of restoring a workload that was saved below `directory`."""
        path = locate_checkpoint(directory, workload, self.choose_kind(workload))
        return Job(path, workload, scale, self.keep_dtypes)


def open_templax(job: Job, **options: Any) -> Restore:
    import templax as tx

    if job.workload.partial:
        options["extra"] = "ignore"
    return lambda: tx.restore(job.path, job.template, **options)


def open_templax_mapped(job: Job) -> Restore:
    return open_templax(job, mapped=True)


def open_templax_touched(job: Job) -> Restore:
    """Maps the file, then reads one byte of each page: the work that mapping only postpones."""
    import numpy as np

    restore_mapped = open_templax_mapped(job)

    def restore() -> PyTree:
        tree = restore_mapped()
        for leaf in name_leaves(tree).values():
            for shard in leaf.addressable_shards:
                np.asarray(shard.data).reshape(-1).view(np.uint8)[::4096].max(initial=0)
        return tree

    return restore


def open_templax_view(job: Job) -> Restore:
    import templax as tx

    view = tx.view(job.path, make_mapping(name_leaves(job.stored)))
    return lambda: tx.restore(view, job.template)


def open_script(job: Job) -> Restore:
    """What people write: loads all, transposes, stacks, puts it on the device."""
    from safetensors.numpy import load_file

    shapes = {name: leaf.shape for name, leaf in name_leaves(job.stored).items()}
    return lambda: _place(job, stack_layers(load_file(job.path), shapes))


def open_orbax_pytree(job: Job) -> Restore:
    import orbax.checkpoint as ocp

    checkpointer = ocp.PyTreeCheckpointer()
    options = {"partial_restore": True} if job.workload.partial else {}

    def restore() -> PyTree:
        args = ocp.checkpoint_utils.construct_restore_args(job.template)
        return checkpointer.restore(job.path, item=job.template, restore_args=args, **options)

    return restore


def open_orbax_standard(job: Job) -> Restore:
    import orbax.checkpoint as ocp

    checkpointer, template = ocp.StandardCheckpointer(), _make_placeholders(job)
    return lambda: checkpointer.restore(job.path, template)


def open_orbax_v1(job: Job) -> Restore:
    from orbax.checkpoint.experimental import v1

    template = _make_placeholders(job)
    return lambda: v1.load(str(job.path), template, checkpointable_name=None)


def _make_placeholders(job: Job) -> PyTree:
    """A whole template with `...`, Orbax's `PLACEHOLDER`, for each leaf to skip."""
    import jax

    if not job.workload.partial:
        return job.template
    wanted = name_leaves(job.template)
    leaves = [wanted.get(name, ...) for name in name_leaves(job.stored)]
    return jax.tree.unflatten(jax.tree.structure(job.stored), leaves)


def open_safetensors(job: Job) -> Restore:
    from safetensors import safe_open
    from safetensors.flax import load_file

    if job.is_plain:
        return lambda: load_file(job.path)

    def restore() -> PyTree:
        if not job.workload.partial:
            return _place(job, load_file(job.path))
        with safe_open(job.path, "flax") as file:
            return _place(job, {name: file.get_tensor(name) for name in name_leaves(job.template)})

    return restore


def open_safetensors_pread(job: Job) -> Restore:
    from safetensors.flax import load_file

    _refuse_partial(job)

    def restore() -> PyTree:
        arrays = load_file(job.path, backend="pread")
        return arrays if job.is_plain else _place(job, arrays)

    return restore


def open_msgpack(job: Job) -> Restore:
    import jax
    from flax.serialization import msgpack_restore

    _refuse_partial(job)

    def restore() -> PyTree:
        tree = msgpack_restore(job.path.read_bytes())
        return jax.device_put(tree) if job.is_plain else _place(job, name_leaves(tree))

    return restore


def open_equinox(job: Job) -> Restore:
    import equinox as eqx

    _refuse_partial(job)

    def restore() -> PyTree:
        with job.path.open("rb") as file:
            tree = eqx.tree_deserialise_leaves(file, job.stored)
        return tree if job.is_plain else _place(job, name_leaves(tree))

    return restore


def open_npz(job: Job) -> Restore:
    import numpy as np

    stored = name_leaves(job.stored)

    def restore() -> PyTree:
        with np.load(job.path) as file:
            # numpy stores bfloat16 as plain two-byte elements.
            arrays = {n: file[n].view(stored[n].dtype) for n in name_leaves(job.template)}
        return _place(job, arrays)

    return restore


def open_torch(job: Job) -> Restore:
    """Maps the file and copies each tensor from there, which is as few copies as torch can make."""
    import numpy as np
    import torch

    stored = name_leaves(job.stored)

    def restore() -> PyTree:
        tensors = torch.load(job.path, mmap=True, weights_only=True)
        arrays = {
            name: np.array(tensors[name].view(torch.uint8).numpy()).view(stored[name].dtype)
            for name in name_leaves(job.template)
        }
        return _place(job, arrays)

    return restore


def _refuse_partial(job: Job) -> None:
    if job.workload.partial:
        raise NotImplementedError("restores whole trees only")


def _place(job: Job, arrays: Mapping[str, Any]) -> PyTree:
    """Casts on the host and places all leaves in one call, for a library that does neither."""
    import jax
    import numpy as np

    templates = name_leaves(job.template)
    leaves = [
        arrays[name] if arrays[name].dtype == t.dtype else np.asarray(arrays[name]).astype(t.dtype)
        for name, t in templates.items()
    ]
    leaves = jax.device_put(leaves, [t.sharding for t in templates.values()])
    return jax.tree.unflatten(jax.tree.structure(job.template), leaves)


_SAVED_BY_TEMPLAX = ("templax", "templax-zstd")
_READ_BY_TEMPLAX = (
    *("orbax", "orbax-raw", *_SAVED_BY_TEMPLAX),
    *("safetensors", "msgpack", "npz", "equinox", "torch"),
)

LIBRARIES: dict[str, Library] = {
    "templax": Library(open_templax, reads=_READ_BY_TEMPLAX),
    "templax-mapped": Library(open_templax_mapped, reads=_READ_BY_TEMPLAX),
    "templax-touched": Library(open_templax_touched, reads=_READ_BY_TEMPLAX),
    "templax-same": Library(open_templax, keep_dtypes=True),
    "templax-nocast": Library(open_templax, keep_dtypes=True),
    "templax-view": Library(open_templax_view, reads=("layers.safetensors",)),
    "templax-plain": Library(open_templax, reads=("safetensors",)),
    "script": Library(open_script, reads=("layers.safetensors",)),
    "orbax-pytree": Library(open_orbax_pytree),
    "orbax-standard": Library(open_orbax_standard),
    "orbax-standard-ours": Library(open_orbax_standard, reads=_SAVED_BY_TEMPLAX),
    "orbax-v1": Library(open_orbax_v1),
    "safetensors": Library(open_safetensors, reads=("safetensors",)),
    "safetensors-pread": Library(open_safetensors_pread, reads=("safetensors",)),
    "msgpack": Library(open_msgpack, reads=("msgpack",)),
    "equinox": Library(open_equinox, reads=("equinox",)),
    "npz": Library(open_npz, reads=("npz",)),
    "torch": Library(open_torch, reads=("torch",)),
    "limit-pread": Library(limits.open_pread, reads=(), limit=True),
    "limit-pread-fresh": Library(limits.open_pread_fresh, reads=(), limit=True),
    "limit-decode": Library(limits.open_decode, reads=(), limit=True),
    "limit-decode-fresh": Library(limits.open_decode_fresh, reads=(), limit=True),
    "limit-put": Library(limits.open_put, reads=(), limit=True),
    "floor": Library(limits.open_floor, reads=(), limit=True),
}
