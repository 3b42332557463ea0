"""The plan of a restore, for this process or for all hosts of a job."""

from __future__ import annotations

import functools
import time
from dataclasses import replace

from msgspec import structs

from .._catalog.chunk_columns import locate_columns
from .._core.arguments import PyTree
from .._core.gc_pause import pause_gc
from .._core.text import list_names
from .._core.workers import choose_threads
from .._jax.coordination import count_local_processes, is_connected
from .._match.result import TemplateError
from .._plan.build import build_plan
from .._plan.job import JobPlan
from .._plan.plan import Plan
from .._plan.plan_hosts import plan_job
from .._plan.sharing import Machine
from .._plan.topology import Topology
from .._template.make import make_template
from .._template.sharding import NO_DEVICES, find_sharding_problem
from .._template.template import Target, Template
from ..errors import Mismatch, Unverified, UsageError
from ..formats.registry import Checkpoint
from ..storage.source import find_cost
from .options import PlanOptions
from .prepare import locate_chunks, match_checkpoint


def make_plan(
    checkpoint: Checkpoint,
    template: PyTree | Template,
    options: PlanOptions,
    *,
    template_s: float = 0.0,
    joint: bool = True,
    machine: Machine | None = None,
) -> Plan:
    """`plan` with validated options: opens, matches, locates the chunks, and plans their reads.

    Args:
        checkpoint, template: See `plan`.
        options: How to plan.
        template_s: Seconds that were spent on the template before.
        joint: Whether all processes of the job make this plan, and can share reads.
        machine: What process 0 runs on, by which all choose what to share; by default this one.
    """
    begin = time.perf_counter()
    with pause_gc():
        wanted = make_template(template, options.shardings)
    took = {"template": template_s + time.perf_counter() - begin}
    catalogs, found = match_checkpoint(checkpoint, wanted, options, took)
    if not found.ok:
        raise TemplateError(found)
    begin = time.perf_counter()
    chunks = locate_chunks(catalogs, found)
    took["locate"] = time.perf_counter() - begin
    begin = time.perf_counter()
    sources = [catalog.source for catalog in catalogs]
    costs = [find_cost(source) for source in sources]
    build = functools.partial(
        build_plan,
        chunks=chunks,
        threads=options.count_workers(remote=any(costs)),
        memory=options.memory_bytes,
        verify=options.verify,
        mapped=[source.maps for source in sources] if options.mapped else (),
        sources=sources,
        gaps=[cost.gap_bytes if cost else 0 for cost in costs],
    )
    with pause_gc():
        made = build(found)
        if joint and options.share_reads != "never" and wanted.spans_processes and is_connected():
            from .reshard import share_reads  # imports JAX

            shared, sharing = share_reads(
                found,
                chunks,
                options.share_reads,
                [cost is not None for cost in costs],
                options.verify,
                describe_machine() if machine is None else machine,
            )
            unshared = made.requests, made.read_bytes, made.decoded_chunks
            if shared is not found:
                made = build(shared, shared=sharing.leaves)
            made = replace(made, sharing=replace(sharing, unshared=unshared))
    if options.verify == "required" and made.unverified:
        names = made.unverified
        raise Unverified(
            f"{len(names)} of {len(found.pairs)} leaves of {found.url} have bytes that no"
            f" checksum covers: {list_names(names)}",
            hint='verify="available" checks those that have one',
        )
    took["plan"] = time.perf_counter() - begin
    return replace(made, prepared=took, cost="; ".join([str(cost) for cost in costs if cost]))


def describe_machine() -> Machine:
    """What the processes of the job run on, as far as this one knows."""
    return Machine(choose_threads(None), count_local_processes())


def make_job_plan(
    checkpoint: Checkpoint, template: PyTree | Template, options: PlanOptions, topology: Topology
) -> JobPlan:
    """The plan of each host of a topology. Devices of this machine are not used.

    Raises:
        TemplateError: As `make_plan`; or a sharding is over another mesh than the topology's.
        UsageError: `mapped=True`, which depends on what each host has mapped.
    """
    if options.mapped:
        raise UsageError("Expected mapped=False with a topology, got True")
    wanted = make_template(template, options.shardings)
    targets = [_fit_topology(target, topology) for target in wanted.targets]
    wanted = replace(wanted, targets=tuple(targets))
    catalogs, found = match_checkpoint(checkpoint, wanted, options)
    if not found.ok:
        raise TemplateError(found)
    costs = [find_cost(catalog.source) for catalog in catalogs]
    chunks = locate_chunks(catalogs, found, locate_columns)
    with pause_gc():
        return plan_job(
            found,
            chunks,
            topology,
            threads=options.count_workers(remote=any(costs)),
            memory=options.memory_bytes,
            verify=options.verify,
            gaps=[cost.gap_bytes if cost else 0 for cost in costs],
        )


def _fit_topology(target: Target, topology: Topology) -> Target:
    """A target whose problems are those on the mesh of a topology, which may have no devices."""
    sharding = target.sharding
    if sharding is None:
        return target
    problems = [p for p in target.problems if p.expected != NO_DEVICES]
    if list(sharding.mesh.items()) != list(topology.mesh.items()):
        what = f"a sharding over the mesh {dict(topology.mesh)} of the topology"
        got = f"one over {sharding.mesh}"
        problems.append(Mismatch("sharding", target.name, what, got))
    else:
        shape = target.shape[:-1] if target.kind == "key" else target.shape
        uneven = find_sharding_problem(target.name, shape, sharding)
        if uneven is not None and uneven not in problems:
            problems.append(uneven)
    return structs.replace(target, problems=tuple(problems))
