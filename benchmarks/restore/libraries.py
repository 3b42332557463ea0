"""Who restores. A library is opened for a job, untimed, and gives the call that is timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..jobs import Job, Restore
from ..limits import restore as limits
from ..workloads import PyTree, Workload, named


@dataclass(frozen=True)
class Library:
    """How a peer, or a limit, restores.

    Attributes:
        open: Imports what it needs, reads nothing of the job's file, gives the timed call.
        reads: Kinds of files, its own first. Empty: any kind, as limits do.
        uncast: Asks for the stored dtypes (see `Job`).
        limit: Returns no tree to compare.
    """

    open: Callable[[Job], Restore]
    reads: tuple[str, ...] = ("orbax", "orbax-raw")
    uncast: bool = False
    limit: bool = False

    def kind(self, workload: Workload) -> str:
        """Which file of a workload it reads: the workload's if it can, else its own."""
        if not self.reads or workload.kind in self.reads:
            return workload.kind
        return self.reads[0]


def _templax(job: Job) -> Restore:
    import templax as tx

    extra = "ignore" if job.workload.partial else "error"
    return lambda: tx.restore(job.path, job.template, extra=extra)


def _templax_mapped(job: Job) -> Restore:
    import templax as tx

    options: dict[str, Any] = {"mapped": True}
    if job.workload.partial:
        options["extra"] = "ignore"
    return lambda: tx.restore(job.path, job.template, **options)


def _templax_touched(job: Job) -> Restore:
    """Mapped, and one byte of each page looked at: what mapping puts off, some step pays for."""
    import numpy as np

    mapped = _templax_mapped(job)

    def restore() -> PyTree:
        tree = mapped()
        for leaf in named(tree).values():
            for shard in leaf.addressable_shards:
                np.asarray(shard.data).reshape(-1).view(np.uint8)[::4096].max(initial=0)
        return tree

    return restore


def _orbax_pytree(job: Job) -> Restore:
    import orbax.checkpoint as ocp

    checkpointer = ocp.PyTreeCheckpointer()
    options = {"partial_restore": True} if job.workload.partial else {}

    def restore() -> PyTree:
        args = ocp.checkpoint_utils.construct_restore_args(job.template)
        return checkpointer.restore(job.path, item=job.template, restore_args=args, **options)

    return restore


def _orbax_standard(job: Job) -> Restore:
    import orbax.checkpoint as ocp

    checkpointer, template = ocp.StandardCheckpointer(), _with_placeholders(job)
    return lambda: checkpointer.restore(job.path, template)


def _orbax_v1(job: Job) -> Restore:
    from orbax.checkpoint.experimental import v1

    template = _with_placeholders(job)
    return lambda: v1.load(str(job.path), template, checkpointable_name=None)


def _with_placeholders(job: Job) -> PyTree:
    """Orbax's other way to leave leaves out: `...` (its `PLACEHOLDER`) in a whole template."""
    import jax

    if not job.workload.partial:
        return job.template
    wanted = named(job.template)
    leaves = [wanted.get(name, ...) for name in named(job.stored)]
    return jax.tree.unflatten(jax.tree.structure(job.stored), leaves)


def _safetensors(job: Job) -> Restore:
    from safetensors import safe_open
    from safetensors.flax import load_file

    if job.plain:
        return lambda: load_file(job.path)

    def restore() -> PyTree:
        if not job.workload.partial:
            return _placed(job, load_file(job.path))
        with safe_open(job.path, "flax") as file:
            return _placed(job, {name: file.get_tensor(name) for name in named(job.template)})

    return restore


def _msgpack(job: Job) -> Restore:
    import jax
    from flax.serialization import msgpack_restore

    _whole_trees_only(job)

    def restore() -> PyTree:
        tree = msgpack_restore(job.path.read_bytes())
        return jax.device_put(tree) if job.plain else _placed(job, named(tree))

    return restore


def _equinox(job: Job) -> Restore:
    import equinox as eqx

    _whole_trees_only(job)

    def restore() -> PyTree:
        with job.path.open("rb") as file:
            tree = eqx.tree_deserialise_leaves(file, job.stored)
        return tree if job.plain else _placed(job, named(tree))

    return restore


def _npz(job: Job) -> Restore:
    import numpy as np

    stored = named(job.stored)

    def restore() -> PyTree:
        with np.load(job.path) as file:
            # numpy writes bfloat16 as two bytes without a meaning.
            arrays = {n: file[n].view(stored[n].dtype) for n in named(job.template)}
        return _placed(job, arrays)

    return restore


def _whole_trees_only(job: Job) -> None:
    if job.workload.partial:
        raise NotImplementedError("restores whole trees only")


def _placed(job: Job, arrays: Mapping[str, Any]) -> PyTree:
    """Casts and shardings, on the host, for a library that has neither; one call places all."""
    import jax
    import numpy as np

    templates = named(job.template)
    leaves = [
        arrays[name] if arrays[name].dtype == t.dtype else np.asarray(arrays[name]).astype(t.dtype)
        for name, t in templates.items()
    ]
    leaves = jax.device_put(leaves, [t.sharding for t in templates.values()])
    return jax.tree.unflatten(jax.tree.structure(job.template), leaves)


_SAVED_BY_TEMPLAX = ("templax", "templax-zstd")
_READ_BY_TEMPLAX = ("orbax", "orbax-raw", *_SAVED_BY_TEMPLAX, "safetensors", "msgpack", "npz")

LIBRARIES: dict[str, Library] = {
    "templax": Library(_templax, reads=_READ_BY_TEMPLAX),
    "templax-mapped": Library(_templax_mapped, reads=_READ_BY_TEMPLAX),
    "templax-touched": Library(_templax_touched, reads=_READ_BY_TEMPLAX),
    "templax-nocast": Library(_templax, uncast=True),
    "orbax-pytree": Library(_orbax_pytree),
    "orbax-standard": Library(_orbax_standard),
    "orbax-standard-ours": Library(_orbax_standard, reads=_SAVED_BY_TEMPLAX),
    "orbax-v1": Library(_orbax_v1),
    "safetensors": Library(_safetensors, reads=("safetensors",)),
    "msgpack": Library(_msgpack, reads=("msgpack",)),
    "equinox": Library(_equinox, reads=("equinox",)),
    "npz": Library(_npz, reads=("npz",)),
    "limit-pread": Library(limits.pread, reads=(), limit=True),
    "limit-decode": Library(limits.decode, reads=(), limit=True),
    "limit-put": Library(limits.put, reads=(), limit=True),
    "floor": Library(limits.floor, reads=(), limit=True),
}
