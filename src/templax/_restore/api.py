"""The public calls of a restore. Each runs the stages in order, and no stage calls the next one."""

from __future__ import annotations

import functools
import inspect
import logging
import os
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Literal, Unpack, overload

from .._catalog.catalog import Catalog
from .._core.arguments import PyTree
from .._core.dtypes import Cast
from .._core.gc_pause import pause_gc
from .._core.names import Rename
from .._core.progress import Progress, check_progress
from .._match.result import Match
from .._plan.job import JobPlan
from .._plan.plan import Plan
from .._plan.sharing import Machine, ShareReads
from .._plan.topology import Topology
from .._template.make import make_template
from .._template.template import Template
from .._views.view import View
from ..errors import CastWarning, UsageError
from ..formats.registry import Checkpoint, open_checkpoint, with_storage
from ..storage.open import name_source
from .execute import execute_plan
from .meter import ReadMeter
from .options import (
    CompareKeywords,
    CompareOptions,
    Extra,
    Missing,
    PlanKeywords,
    PlanOptions,
    RestoreOptions,
    Verify,
)
from .planning import make_job_plan, make_plan
from .prepare import match_checkpoint
from .stats import Stats, StepChoice, describe_casts

if TYPE_CHECKING:
    from ..storage.stores import Store

_log = logging.getLogger("templax")

_PACKAGE = __name__.partition(".")[0]

_last: Stats | None = None


def restore(
    checkpoint: Checkpoint,
    template: PyTree,
    *,
    at: str = "",
    rename: Rename | None = None,
    shardings: PyTree = None,
    missing: Missing = "error",
    extra: Extra = "error",
    cast: Cast = "float",
    verify: Verify = "available",
    memory: int | None = None,
    threads: int | None = None,
    mapped: bool = False,
    share_reads: ShareReads = "auto",
    on_progress: Progress | None = None,
    timeout: float | None = None,
    alone: bool = False,
    storage: Store | None = None,
) -> PyTree:
    """Loads a checkpoint into the structure, shapes, dtypes and shardings of a template.

    The template alone decides what is returned: the result has its treedef, and each leaf has the
    type that the template's leaf asks for. How the checkpoint was sharded when it was saved does
    not matter.

    - A `jax.ShapeDtypeStruct` or `jax.Array` gives a `jax.Array` of that shape, dtype, weak type
      and sharding (without a sharding: on JAX's default device).
    - An `np.ndarray` gives an `np.ndarray`.
    - A Python number, a `str`, or one of these types gives such a value.
    - A typed PRNG key gives a typed key.
    - `...` skips a leaf or a subtree and stays `...`.
    - What a module of Flax NNX holds under several names, such as tied weights, is restored once,
      by the first of them, and stays one object.
    - Functions and other leaves without data are returned as they are.

    Args:
        checkpoint: A path or URL, a `Source`, a `Catalog` from `open`, a `view`, or a `Recipe`.
        template: Any pytree.
        at: The subtree of the checkpoint to restore from, by name, such as `"params"`.
        rename: `{checkpoint prefix: template prefix}`, where the longest matching prefix wins; or a
            function from the checkpoint's leaf names (after `at`) to the template's.
        shardings: A prefix of `template` with shardings or devices, which override its own.
        missing: What to do about a leaf that the checkpoint lacks: `"error"`; `"keep"` the
            template's own value; or take it from another checkpoint, often a `Recipe`, to which
            `at` applies too. Only the missing leaves of that checkpoint are read or computed.
            A mapping `{pattern: one of these}` decides by the name of the leaf in the template, as
            `fnmatch` does (`*` stands for dots, too): the first pattern that matches decides, and a
            leaf that none matches is an error, as is a pattern that matches no leaf.
        extra: What to do about a leaf of the checkpoint that the template lacks: `"error"`, or
            `"ignore"` it. One that templax can't read counts, too. A mapping
            `{pattern: one of these}` decides as for `missing`, by the name of the leaf in the
            checkpoint after `at` and `rename`.
        cast: Which casts are allowed. `"float"`: from any float to any float, from any complex to
            any complex, and every cast that loses nothing. `"widen"`: only casts that lose nothing.
            `"exact"`: none. One `CastWarning` announces all casts.
        verify: `"available"` compares the bytes with every checksum that the checkpoint has, while
            they are in cache. Where only part of what a checksum covers is needed (a shard of a
            chunk), the rest is not read unless it is little, and `Plan.unverified` names the leaf.
            `"required"` reads everything that such a checksum covers, and refuses leaves that have
            none. `"off"` checks only the checksums of indexes.
        memory: Host bytes in flight beyond the arrays returned; default 2 GiB. A larger leaf is
            loaded box by box.
        threads: Workers that read and decode. Default: the cores of this process, at most 8.
        mapped: Turns leaves into arrays over a private mapping of their file, without copying a
            byte. This applies to uncompressed leaves in a local file that lie there as they will in
            memory: in C order, in the template's dtype, at a multiple of 64 bytes, for one CPU
            device. Their bytes are read when they are first used, and before that only to compare
            checksums, which `verify="off"` leaves out. While such arrays live, the file must not be
            overwritten (the values would change) or truncated (the process would be killed);
            deleting or replacing it is safe.
        share_reads: Whether the processes of a job read together what several of them need, each
            an even part of it, and move the values between their devices (all-to-all and
            all-gather of XLA). `"auto"`: where that is estimated to take less time, from the bytes
            and requests of the plan: mostly where they come from an object store. `"always"`:
            wherever it reads less. `"never"`: each process reads what it needs. The values are the
            same. `print(templax.plan(...))` shows what is shared, and what the other way costs. A
            restore that one process makes alone, or that tries several steps, shares nothing, nor
            do leaves of another memory kind or layout, typed keys, and dtypes of less than a byte.
        on_progress: Called as `on_progress(done, total)` with the bytes read so far and the bytes
            to read in all (`Plan.read_bytes`, and those of mapped files that are compared with
            checksums), at most ten times a second while bytes are read. Once every leaf is in
            place, it is called a last time, and only then `done` equals `total`; both are 0 if
            nothing had to be read. The calls are made by the thread that called `restore`, so that
            a long placement or cast delays them. An exception in it ends the restore and is raised
            as it is. In a job of several processes each one reports what it reads itself. Try
            `templax.show_progress`.
        timeout: In a job of several processes, the seconds to wait for one that is alive and has
            not come to this call. Default: 240, less than the time after which JAX aborts the job.
        alone: Whether this process restores on its own, whatever the others of its job do. By
            default, if shardings of the template span several processes, all of them make this
            call: either all return, or all raise the same error, which names the process that
            failed.
        storage: See `open`.

    Returns:
        The template's pytree, filled. Arrays on CPU own their memory, except with `mapped=True`;
        those of up to 1 MiB share blocks of up to 8 MiB, but a subtree with 2 MiB of them, such as
        `params`, shares none with the rest of the tree. The files may be deleted.

    Raises:
        TemplateError: The checkpoint does not fit the template. The error lists every mismatch; no
            array byte was read.
        CheckpointError: NotFound, UnknownFormat, Unsupported, Uncommitted, Unverified or Corrupted.
        SourceError: The storage failed, or changed while it was read.
        UsageError: An argument is invalid, or a transfer guard forbids explicit transfers.
        MissingPackage: The template asks for a `jax.Array`, and JAX is not installed.

    Example:
        >>> import os, tempfile
        >>> import jax, jax.numpy as jnp, templax as tx
        >>> path = os.path.join(tempfile.mkdtemp(), "ckpt")
        >>> saved = tx.save(path, {"params": {"w": jnp.arange(3.0)}, "step": 7})
        >>> template = {"w": jax.ShapeDtypeStruct((3,), jnp.float32)}
        >>> tx.restore(path, template, at="params", extra="ignore")
        {'w': Array([0., 1., 2.], dtype=float32)}
    """
    make_options = functools.partial(
        RestoreOptions,
        at=at,
        rename=rename,
        shardings=shardings,
        missing=missing,
        extra=extra,
        cast=cast,
        verify=verify,
        memory=memory,
        threads=threads,
        mapped=mapped,
        share_reads=share_reads,
        on_progress=on_progress,
        timeout=timeout,
        alone=alone,
    )
    checkpoint = with_storage(checkpoint, storage)
    begin = time.perf_counter()
    with pause_gc():
        wanted = make_template(template, shardings)
    took = time.perf_counter() - begin

    def make(machine: Machine | None) -> Plan:  # arguments included: others may wait for this one
        joint, options = machine is not None, make_options()
        return make_plan(checkpoint, wanted, options, template_s=took, joint=joint, machine=machine)

    if alone or not wanted.spans_processes:
        return run_plan(make(None), on_progress)
    from .together import restore_together

    mapping = checkpoint.digest if isinstance(checkpoint, View) else "none"
    facts = {"mapping": mapping, "share_reads=": repr(share_reads)}
    path = _describe_source(checkpoint)
    return restore_together(path, make, run_plan, on_progress, timeout, facts, storage)


def _describe_source(checkpoint: Checkpoint) -> str:
    """The path of a checkpoint, or words for one that has none."""
    if isinstance(checkpoint, View):
        checkpoint = checkpoint.checkpoint
    if isinstance(checkpoint, (str, os.PathLike)):
        return name_source(checkpoint)
    return getattr(checkpoint, "url", type(checkpoint).__name__)


@overload
def plan(
    checkpoint: Checkpoint, template: PyTree | Template, **options: Unpack[PlanKeywords]
) -> Plan: ...
@overload
def plan(
    checkpoint: Checkpoint,
    template: PyTree | Template,
    *,
    topology: Topology,
    **options: Unpack[PlanKeywords],
) -> JobPlan: ...
def plan(
    checkpoint: Checkpoint,
    template: PyTree | Template,
    *,
    topology: Topology | None = None,
    **options: Unpack[PlanKeywords],
) -> Plan | JobPlan:
    """Plans a restore: every read, decode and copy, and what they cost. Reads no array.

    Args:
        checkpoint: See `restore`.
        template: See `restore`. With `topology`, its shardings are over the mesh of that, which
            may be a `jax.sharding.AbstractMesh`; a leaf without one is read whole by every host.
        topology: The hosts of a job, which need not exist: plans what each of them would read.
        **options: The keyword arguments of `restore`: `at`, `rename`, `shardings`, `missing`,
            `extra`, `cast`, `verify`, `memory`, `threads`, `mapped` and `share_reads`; `run` takes
            `on_progress`.

    Returns:
        A plan: `print` it, or `run` it. With `topology`, a `JobPlan`, which can't be run.

    Raises:
        TemplateError, CheckpointError, SourceError, UsageError: See `restore`. A checkpoint that
            does not fit the template has no plan, nor does a sharding over another mesh.

    Example:
        >>> import os, tempfile
        >>> import jax, jax.numpy as jnp, templax as tx
        >>> path = os.path.join(tempfile.mkdtemp(), "ckpt")
        >>> saved = tx.save(path, {"w": jnp.zeros((128, 64))})
        >>> plan = tx.plan(path, {"w": jax.ShapeDtypeStruct((128, 64), jnp.float32)})
        >>> plan.requests, plan.placed_bytes
        (1, 32768)
        >>> tx.run(plan)["w"].shape
        (128, 64)
        >>> from jax.sharding import AbstractMesh, PartitionSpec as P
        >>> mesh = AbstractMesh((8,), ("data",))
        >>> template = tx.template_of({"w": jnp.zeros((128, 64))}, mesh=mesh, specs=P("data"))
        >>> hosts = tx.Topology(hosts=4, devices_per_host=2, mesh={"data": 8})
        >>> tx.plan(path, template, topology=hosts).find_host(3).placed_bytes
        8192
    """
    made = PlanOptions(**options)
    if topology is not None:
        return make_job_plan(checkpoint, template, made, topology)
    return make_plan(checkpoint, template, made)


def run(plan: Plan, *, on_progress: Progress | None = None) -> PyTree:
    """Carries out a plan.

    Args:
        plan: A plan from `templax.plan`. It can be run more than once; each run reads the bytes
            again.
        on_progress: See `restore`.

    Returns:
        The template's pytree, filled; see `restore`.

    Raises:
        Corrupted, SourceError: See `restore`. It is also checked that the files are still those
            that were planned for.
        UsageError: It is for a template from a file, or `jax_enable_x64` was turned off since.
    """
    check_progress(on_progress)
    if isinstance(plan, Plan) and plan.sharing.digest:
        from .together import run_shared_plan

        return run_shared_plan(plan, run_plan, on_progress)
    return run_plan(plan, on_progress)


def run_plan(
    plan: Plan,
    on_progress: Progress | None = None,
    *,
    choice: StepChoice | None = None,
    agree: Callable[[], None] | None = None,
) -> PyTree:
    """`run`, for the public calls: a `CastWarning` points at the code that called templax.

    Args:
        plan: See `run`.
        on_progress: See `restore`.
        choice: The step that the plan restores, for `last_restore`.
        agree: Called when everything is read, before leaves move between processes; returns once
            all others are as far. Needed if the plan shares any.
    """
    from .place import place_batches

    global _last
    if not isinstance(plan, Plan):
        raise UsageError(f"Expected a Plan from templax.plan, got {type(plan).__name__}")
    if plan.match.template.treedef is None:
        raise UsageError("Expected a plan for a pytree, got one for a template from a file")
    if any(not pair.target.host for pair in plan.match.pairs):
        from .devices import check_jax_settings

        check_jax_settings(plan.match.pairs)
    begin = time.perf_counter()
    meter = None if on_progress is None else ReadMeter(on_progress, plan)
    move = None
    if plan.sharing.digest:
        from .reshard import make_mover

        assert agree is not None, "only calls that all processes make together share reads"
        move = make_mover(plan.sharing, agree)
    with closing(execute_plan(plan, plan.sources, meter)) as finished:
        tree, busy = place_batches(plan.match, finished, move)
    _last = stats = Stats.of(plan, busy, time.perf_counter() - begin, choice)
    _log.info("%s", stats)
    if meter is not None:
        meter.finish()
    if plan.match.casts:
        text = describe_casts(plan.match, busy.cast_s)
        warnings.warn(CastWarning(text), stacklevel=_count_own_frames() + 1)
    return tree


def _count_own_frames() -> int:
    """How many functions of templax, the caller included, stand between it and other code."""
    frame = inspect.currentframe()
    count, frame = 0, frame and frame.f_back
    while frame is not None and str(frame.f_globals.get("__name__")).split(".")[0] == _PACKAGE:
        count, frame = count + 1, frame.f_back
    return count


def last_restore() -> Stats | None:
    """The figures of the most recently finished restore of this process; None before the first.

    They name, too, what was cast, what did not come from the checkpoint, and what was left there:
    `cast_leaves`, `supplied`, `kept` and `ignored`.

    Example:
        >>> import os, tempfile
        >>> import jax.numpy as jnp, templax as tx
        >>> path = os.path.join(tempfile.mkdtemp(), "ckpt")
        >>> saved = tx.save(path, {"w": jnp.zeros((128, 64)), "step": 7})
        >>> tree = tx.restore(path, {"w": jnp.ones((128, 64)), "step": 0})
        >>> stats = tx.last_restore()
        >>> stats.leaves, stats.requests, stats.casts
        (2, 1, 0)
    """
    return _last


def check(
    checkpoint: Checkpoint, template: PyTree | Template, **options: Unpack[CompareKeywords]
) -> Match:
    """Compares a checkpoint with a template as `restore` would, without reading an array.

    Args:
        checkpoint: See `restore`.
        template: See `restore`.
        **options: The keyword arguments of `restore` that concern the comparison: `at`, `rename`,
            `shardings`, `missing`, `extra` and `cast`.

    Returns:
        The match: `.ok`, `.mismatches`, `.casts`, and what is `.supplied`, `.kept`, `.skipped` and
        `.ignored`; `str(match)` is the report.

    Raises:
        CheckpointError, SourceError, UsageError: See `restore`. A mismatch does not raise.

    Example:
        >>> import os, tempfile
        >>> import jax, jax.numpy as jnp, templax as tx
        >>> path = os.path.join(tempfile.mkdtemp(), "ckpt")
        >>> saved = tx.save(path, {"scale": jnp.ones(())})
        >>> match = tx.check(path, {"scale": jax.ShapeDtypeStruct((3,), jnp.float32)})
        >>> match.ok, match.mismatches[0].problem
        (False, 'shape')
    """
    asked = CompareOptions(**options)
    return match_checkpoint(checkpoint, make_template(template, asked.shardings), asked)[1]


def open(
    checkpoint: Checkpoint,
    *,
    uncommitted: Literal["error", "allow"] = "error",
    storage: Store | None = None,
) -> Catalog:
    """Opens a checkpoint: its leaves and metadata, without reading an array or importing JAX.

    Args:
        checkpoint: A path or URL, a `Source`, or a `Recipe`.
        uncommitted: `"allow"` opens a save that never finished. The `Catalog` can be restored from;
            there is no other way to read such a directory.
        storage: How to reach the object store of a URL, such as `templax.storage.S3(endpoint=…)`;
            by default as the environment says.

    Raises:
        NotFound, UnknownFormat, Unsupported, Uncommitted, Corrupted, SourceError

    Example:
        >>> import os, tempfile
        >>> import jax.numpy as jnp, templax as tx
        >>> path = os.path.join(tempfile.mkdtemp(), "ckpt")
        >>> saved = tx.save(path, {"params": {"w": jnp.zeros((128, 64))}})
        >>> tx.open(path).leaves["params.w"].shape
        (128, 64)
    """
    return open_checkpoint(with_storage(checkpoint, storage), uncommitted)
