"""Restores that the processes of a job make together: all succeed, or all raise one error.

Otherwise a process that failed would leave the others waiting in the next computation that all make
together, until JAX aborts the job.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec

from .._core.arguments import PyTree
from .._core.progress import Progress
from .._hosts.agreement import Hosts, open_call
from .._hosts.messages import RemoteError
from .._match.result import Match, TemplateError
from .._plan.plan import Plan
from .._plan.sharing import Machine
from .._template.template import Template
from ..errors import NotFound, SourceError, TemplaxError, UsageError
from ..storage.local import Local
from ..storage.open import is_remote, open_source
from ..storage.source import Source
from .planning import describe_machine

if TYPE_CHECKING:
    from ..storage.stores import Store

SEE_S = 5.0
"""How long a checkpoint may take to appear on the other hosts of a network file system."""

_IDENTIFYING = ("_CHECKPOINT_METADATA", "templax.index", "manifest.ocdbt", "_METADATA")
"""Small files of which one at least is different in any two checkpoints."""

_MAX_IDENTIFYING_BYTES = 1 << 20

MakePlan = Callable[[], Plan]


class RunPlan(Protocol):
    """`run_plan`, or a function like it."""

    def __call__(
        self, plan: Plan, on_progress: Progress | None, /, *, agree: Callable[[], None]
    ) -> PyTree: ...


Result = TypeVar("Result")

_together: ContextVar[bool] = ContextVar("together", default=False)
"""Whether the caller is in `do_together`."""

Explain = Callable[[TemplaxError], TemplaxError]


def _as_it_is(error: TemplaxError) -> TemplaxError:
    return error


def _explain(error: TemplaxError, explain: Explain) -> TemplaxError:
    explained = explain(error)
    if explained is not error:
        explained.__cause__ = error
    return explained


def open_restore(
    path: str, *, step: int | None = None, timeout: float | None = None, alone: bool = False
) -> Hosts:
    """Begins a call in which all processes of the job restore the same.

    Args:
        path: The checkpoint, or the run.
        step: The step of the run that was asked for, or None.
        timeout, alone: See `restore`.
    """
    return open_call(
        "restoring",
        path,
        step=step,
        timeout=timeout,
        alone=alone,
        strict=False,
        make_error=_make_error,
    )


def _make_error(error: RemoteError) -> TemplaxError:
    if error.kind == TemplateError.__name__:
        # What it compares, this process does not know, unless `plan_together` does.
        return TemplateError(Match(str(error.places.get("file")), Template(())), error.what)
    return error.to_exception(SourceError)


def restore_together(
    path: str,
    make_plan: Callable[[Machine | None], Plan],
    run_plan: RunPlan,
    on_progress: Progress | None,
    timeout: float | None,
    facts: Mapping[str, str],
    storage: Store | None = None,
) -> PyTree:
    """Restores a checkpoint on every process.

    Args:
        path: What is restored: a local path, or words for what has none.
        make_plan, run_plan: How this process does it; the first is told what process 0
            runs on, or None if processes do not take part.
        on_progress, timeout: See `restore`.
        facts: What must be equal on all processes: name → value, in words.
        storage: How to reach the object store of a URL.

    Raises:
        TemplaxError: On every process, the same: it failed on one of them.
    """
    if _together.get():
        return run_plan(make_plan(None), on_progress, agree=_agree_with_nobody)
    with open_restore(path, timeout=timeout) as call:
        told = call.join(facts, make_reply=lambda: _introduce(path, storage))
        machine, identity = msgspec.msgpack.decode(told, type=tuple[Machine, bytes])

        def make_seen_plan() -> Plan:
            await_checkpoint(call, path, identity, storage)
            return make_plan(machine if call.count > 1 else None)

        plan = plan_together(call, make_seen_plan)
        return run_together(call, plan, run_plan, on_progress)


def _introduce(path: str, storage: Store | None) -> bytes:
    """What process 0 tells all: what it runs on, and how to know the checkpoint that it sees."""
    return msgspec.msgpack.encode((describe_machine(), identify_checkpoint(path, storage)))


def _agree_with_nobody() -> None:
    raise AssertionError("a restore within another call of all processes shares no reads")


def run_shared_plan(plan: Plan, run_plan: RunPlan, on_progress: Progress | None) -> PyTree:
    """Runs a plan that shares reads, which every process has made.

    Raises:
        UsageError: `jax.distributed` no longer connects the processes.
        TemplaxError: On every process, the same: they have other plans, or it failed on one.
    """
    with open_restore(plan.match.url) as call:
        if call.count == 1:
            raise UsageError(
                "Expected the job for which this plan was made, as its processes read together, got"
                ' one process; hint: plan with share_reads="never"'
            )
        call.join()
        call.agree("matching", choice=plan.sharing.digest)
        return run_together(call, plan, run_plan, on_progress)


def do_together(call: Hosts, doing: str, work: Callable[[], Result]) -> Result:
    """Does something on every process, and raises on all what failed on one.

    Restores in it don't wait for each other.

    Args:
        call: The call, which all processes have joined.
        doing: What they do, as errors say it.
        work: What this process does.
    """
    result: list[Result] = []
    error = None
    token = _together.set(True)
    try:
        result.append(work())
    except TemplaxError as failed:
        if call.failed:
            raise
        error = failed
    finally:
        _together.reset(token)
    call.agree(doing, error)
    return result[0]


def read_together(path: str, work: Callable[[], Result]) -> Result:
    """Reads from a checkpoint on every process, each after it sees what process 0 sees.

    Args:
        path: The checkpoint.
        work: What this process does.

    Raises:
        TemplaxError: On every process, the same: it failed on one of them.
    """
    if _together.get():
        return work()
    with open_restore(path) as call:
        told = call.join(make_reply=lambda: identify_checkpoint(path) if call.count > 1 else b"")

        def work_when_seen() -> Result:
            await_checkpoint(call, path, told)
            return work()

        return do_together(call, "restoring", work_when_seen)


def plan_together(call: Hosts, make_plan: MakePlan, explain: Explain = _as_it_is) -> Plan:
    """Plans a restore on every process, and raises on all what failed on one.

    Args:
        call: The call that restores.
        make_plan: Plans it on this process.
        explain: Makes the error to raise of one of this process.
    """
    plan = error = None
    try:
        plan = make_plan()
    except TemplaxError as failed:
        if call.failed:  # it is the error of another process, which this one has heard of
            raise
        error = _explain(failed, explain)
    try:
        call.agree("matching", error, choice="" if plan is None else plan.sharing.digest)
    except TemplateError as other:
        if plan is not None:
            raise TemplateError(plan.match, str(other)) from None
        raise error if isinstance(error, TemplateError) else other from None
    assert plan is not None
    return plan


def run_together(
    call: Hosts,
    plan: Plan,
    run_plan: RunPlan,
    on_progress: Progress | None,
    explain: Explain = _as_it_is,
) -> PyTree:
    """Runs a plan on every process, and raises on all what failed on one.

    Args:
        call, explain: See `plan_together`.
        plan, run_plan: The plan, and what runs it.
        on_progress: See `restore`.
    """
    tree = error = None
    doing = "reading"

    def agree() -> None:
        nonlocal doing
        call.agree(doing)
        doing = "moving"

    def report(done: int, total: int) -> None:
        call.check()
        if on_progress is not None:
            on_progress(done, total)

    try:
        tree = run_plan(plan, on_progress if call.count == 1 else report, agree=agree)
    except TemplaxError as failed:
        if call.failed:  # it is the error of another process, which this one has heard of
            raise
        error = _explain(failed, explain)
    call.agree(doing, error)
    return tree


def identify_checkpoint(checkpoint: str | Source, storage: Store | None = None) -> bytes:
    """A digest by which processes tell whether they see the same checkpoint; empty without one.

    Args:
        checkpoint: A local path, a URL, or the source there.
        storage: How to reach the object store of a URL.
    """
    if isinstance(checkpoint, Local):
        checkpoint = checkpoint.url
    if isinstance(checkpoint, str) and not is_remote(checkpoint):
        return _identify_local(checkpoint)
    try:
        source = open_source(checkpoint, storage)
        info = source.stat("")
        found = [(each.key, repr(each.version)) for each in source.children()]
    except TemplaxError:  # opening it tells why
        return b""
    if info is None:
        return b""
    return hashlib.sha256(repr((info.is_dir or repr(info.version), found)).encode()).digest()


def _identify_local(path: str) -> bytes:
    """`identify_checkpoint` of a path: by sizes, and by what small files hold."""
    digest = hashlib.sha256()
    try:
        if not os.path.isdir(path):
            digest.update(b"%d" % os.stat(path).st_size)
            return digest.digest()
        with os.scandir(path) as found:
            entries = sorted((e.name, 0 if e.is_dir() else e.stat().st_size) for e in found)
        digest.update(repr(entries).encode())
        for name, size in entries:
            if name in _IDENTIFYING and size <= _MAX_IDENTIFYING_BYTES:
                digest.update(Path(path, name).read_bytes())
    except OSError:
        return b""
    return digest.digest()


def await_checkpoint(call: Hosts, path: str, identity: bytes, storage: Store | None = None) -> None:
    """Waits until this process sees the checkpoint that process 0 sees.

    Args:
        call: The call that restores it.
        path: The checkpoint.
        identity: Its digest on process 0; if that is empty, opening it tells why.
        storage: See `identify_checkpoint`.

    Raises:
        NotFound: It does not within `SEE_S`.
    """
    if call.count == 1 or not identity:
        return
    deadline = time.monotonic() + SEE_S
    while identify_checkpoint(path, storage) != identity:
        if time.monotonic() > deadline:
            found = "another one" if identify_checkpoint(path, storage) else "nothing"
            raise NotFound(
                f"Expected the checkpoint that process 0 sees, found {found} on process"
                f" {call.index}: it is not on a file system that they share",
                file=path,
                hint="put it where every process sees it, or a copy at this path on every host",
            )
        call.check()
        time.sleep(SEE_S / 100)
