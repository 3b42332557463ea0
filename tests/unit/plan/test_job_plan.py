"""`plan(topology=)`: what each host of a job would read, without the hosts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

import templax as tx
from helpers import CORPUS
from templax._catalog.entry import Chunk, Extent
from templax._core.boxes import box_from_index, intersect
from templax._plan.chunk_lookup import ChunkLookup
from templax._template.sharding import NO_DEVICES

MESH = {"data": 4, "model": 2}


def abstract_mesh(mesh: dict[str, int] = MESH) -> AbstractMesh:
    return AbstractMesh(tuple(mesh.values()), tuple(mesh))


@st.composite
def specs(draw: st.DrawFn) -> P:
    axes = draw(st.permutations(["data", "model", None, None]))
    if draw(st.booleans()):
        return P(*axes[: draw(st.integers(0, 3))])
    return P(("data", "model") if draw(st.booleans()) else ("model", "data"))


@pytest.mark.slow
@given(specs(), st.sampled_from([(8, 1), (4, 2), (2, 4), (1, 8)]))
@settings(max_examples=60, deadline=None)
def test_hosts_hold_the_boxes_that_jax_gives_them(spec: P, hosts: tuple[int, int]) -> None:
    shape = (16, 8, 8)
    sharding = NamedSharding(jax.make_mesh((4, 2), ("data", "model")), spec)
    devices = list(sharding.mesh.devices.flat)
    indices = sharding.devices_indices_map(shape)
    topology = tx.Topology(hosts=hosts[0], devices_per_host=hosts[1], mesh=MESH)
    for host in range(hosts[0]):
        mine = devices[host * hosts[1] : (host + 1) * hosts[1]]
        expected = dict.fromkeys(box_from_index(indices[device], shape) for device in mine)
        assert topology.find_boxes(tuple(spec), shape, host) == tuple(expected)


@st.composite
def tilings(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Chunk]]:
    """A shape and chunks that tile it: a grid, or one of which two were joined."""
    shape = tuple(draw(st.lists(st.integers(1, 12), min_size=1, max_size=3)))
    steps = [draw(st.integers(1, n)) for n in shape]
    chunks = [
        Chunk(
            Extent("f", i, i + 1),
            tuple(
                (at * s, min(n, (at + 1) * s)) for at, s, n in zip(index, steps, shape, strict=True)
            ),
        )
        for i, index in enumerate(
            np.ndindex(*(-(-n // s) for n, s in zip(shape, steps, strict=True)))
        )
    ]
    if len(chunks) > 2 and chunks[0].box[:-1] == chunks[1].box[:-1] and draw(st.booleans()):
        (first, _), (_, last) = chunks[0].box[-1], chunks[1].box[-1]
        joined = Chunk(Extent("f", 0, 2), (*chunks[0].box[:-1], (first, last)))
        chunks = [joined, *chunks[2:]]
    return shape, chunks


@given(tilings(), st.data())
def test_chunks_are_found_as_if_all_were_compared(
    tiling: tuple[tuple[int, ...], list[Chunk]], data: st.DataObject
) -> None:
    shape, chunks = tiling
    boxes = []
    for _ in range(data.draw(st.integers(1, 3))):
        edges = [sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in shape]
        boxes.append(tuple((a, b) for a, b in edges))
    found = [chunks[i] for i in ChunkLookup(chunks).find(boxes)]
    expected = [c for c in chunks if any(intersect(c.box, box) is not None for box in boxes)]
    assert found == (expected if len(chunks) > 1 else chunks)


def test_chunks_that_overlap_are_all_found() -> None:
    """As those of a view that interleaves two leaves: each box is around every other element."""
    chunks = [Chunk(Extent("f", 0, 8), ((0, 3),)), Chunk(Extent("f", 8, 16), ((1, 4),))]
    assert list(ChunkLookup(chunks).find([((2, 4),)])) == [0, 1]


@pytest.mark.parametrize(
    "case", ["orbax-0.12.8-sharded8", "orbax-0.12.8-sharded8_chunks", "orbax-0.12.8-noocdbt"]
)
def test_one_host_is_planned_as_this_process_is(case: str) -> None:
    """Figure for figure: with 8 devices in this process, and on a topology of one such host."""
    found = tx.open(CORPUS / case / "ckpt")
    template = {}
    for name, entry in found.leaves.items():
        if entry.kind == "array":
            axes = [a for a, n in zip(("data", "model"), entry.shape, strict=False) if n % 4 == 0]
            template[name] = P(*axes) if len(axes) == len(entry.shape) else P()
    mesh = jax.make_mesh((4, 2), ("data", "model"))

    def describe(name: str, mesh: Any) -> Any:
        entry = found.leaves[name]
        return jax.ShapeDtypeStruct(
            entry.shape, entry.dtype, sharding=NamedSharding(mesh, template[name])
        )

    def rename(name: str) -> str:
        return name.replace(".", "/")

    here = tx.plan(
        found, {rename(n): describe(n, mesh) for n in template}, rename=rename, extra="ignore"
    )
    topology = tx.Topology(hosts=1, devices_per_host=8, mesh=MESH, platform="cpu")
    wanted = {rename(n): describe(n, abstract_mesh()) for n in template}
    job = tx.plan(found, wanted, topology=topology, rename=rename, extra="ignore")
    host = job.find_host(0)
    for figure in (
        "requests",
        "read_bytes",
        "useful_bytes",
        "decoded_chunks",
        "placed_bytes",
        "peak_bytes",
    ):
        assert getattr(host, figure) == getattr(here, figure), figure
    assert here.placed_bytes > 0


def save_matrix(path: Path) -> dict[str, Any]:
    tree = {
        "w": jnp.arange(1 << 20, dtype=jnp.float32).reshape(1024, 1024),
        "step": jnp.zeros((), jnp.int32),
    }
    tx.save(path / "ckpt", tree)
    return tree


def test_what_is_read_more_than_once_is_counted(tmp_path: Path) -> None:
    """Columns of a matrix that was saved in rows: every host reads all of it."""
    tree = save_matrix(tmp_path)
    hosts = tx.Topology(hosts=4, devices_per_host=2, mesh={"data": 8})
    mesh = abstract_mesh({"data": 8})
    columns = tx.template_of(tree, mesh=mesh, specs=[("w", P(None, "data")), ("*", P())])
    plan = tx.plan(tmp_path / "ckpt", columns, topology=hosts)
    assert [group.hosts for group in plan.groups] == [(0,), (1,), (2,), (3,)]
    whole, needed = 1024 * 1024 * 4, 1024 * 256 * 4
    assert {group.read_bytes for group in plan.groups} == {whole + 4}
    assert plan.repeated_bytes == plan.read_bytes - plan.distinct_bytes > 2.9 * whole
    assert plan.distinct_bytes == whole + 4
    assert {group.ideal_bytes for group in plan.groups} == {needed + 4}
    assert "if every byte was read once, each host would read 1.0 MiB" in str(plan)
    rows = tx.template_of(tree, mesh=mesh, specs=[("w", P("data")), ("*", P())])
    plan = tx.plan(tmp_path / "ckpt", rows, topology=hosts)
    assert {group.read_bytes for group in plan.groups} == {needed + 4}
    assert plan.repeated_bytes == 3 * 4  # `step`


def test_hosts_that_hold_the_same_are_planned_once(tmp_path: Path) -> None:
    tree = save_matrix(tmp_path)
    mesh = {"data": 256, "model": 8}
    template = tx.template_of(tree, mesh=abstract_mesh(mesh), specs=[("w", P("model")), ("*", P())])
    topology = tx.Topology(hosts=512, devices_per_host=4, mesh=mesh)
    plan = tx.plan(tmp_path / "ckpt", template, topology=topology)
    assert [len(group.hosts) for group in plan.groups] == [256, 256]
    assert plan.find_host(511) is plan.groups[1]
    half = 1024 * 512 * 4 + 4
    assert plan.read_bytes == 512 * half
    assert plan.estimate_seconds(bandwidth=half) == 1
    assert plan.estimate_seconds(bandwidth=half, latency=0.5) == 1 + 0.5 * -(
        -plan.worst.requests // plan.threads
    )
    with pytest.raises(tx.UsageError, match="from 0 to 511, got 512"):
        plan.find_host(512)


def test_a_leaf_without_a_sharding_is_read_whole_by_every_host(tmp_path: Path) -> None:
    tree = save_matrix(tmp_path)
    topology = tx.Topology(hosts=2, devices_per_host=1, mesh={"data": 2})
    plan = tx.plan(tmp_path / "ckpt", jax.eval_shape(lambda: tree), topology=topology)
    assert plan.whole == ("step", "w")
    assert "without a sharding, read whole by every host: `step`, `w`" in str(plan)
    assert [len(group.hosts) for group in plan.groups] == [2]


def test_shardings_that_do_not_fit_the_topology_are_listed_by_leaf(tmp_path: Path) -> None:
    tree = save_matrix(tmp_path) | {"x": jnp.zeros((6, 2))}
    tx.save(tmp_path / "other", tree)
    template = tx.template_of(tree, mesh=abstract_mesh(), specs=[("?", P("data")), ("*", P())])
    topology = tx.Topology(hosts=4, devices_per_host=2, mesh=MESH)
    with pytest.raises(tx.TemplateError) as caught:
        tx.plan(tmp_path / "other", template, topology=topology)
    (problem,) = caught.value.match.mismatches
    assert (problem.name, problem.expected) == (
        "x",
        "dimension 0 divisible by 4 (mesh axis `data`)",
    )
    other = tx.Topology(hosts=4, devices_per_host=2, mesh={"model": 2, "data": 4})
    with pytest.raises(tx.TemplateError, match="Expected a sharding over the mesh") as caught:
        tx.plan(tmp_path / "other", template, topology=other)
    assert [m.name for m in caught.value.match.mismatches if m.expected != NO_DEVICES] == [
        "step", "w", "x", "x",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hosts": 0}, "Expected hosts to be a number of at least 1, got 0"),
        ({"mesh": {"data": 4}}, "Expected a mesh of 8 devices, 4 hosts × 2, got {'data': 4}"),
        ({"mesh": {"data": 2.0}}, "Expected data to be a number of at least 1, got 2.0"),
        ({"platform": "rocm"}, 'Expected platform="cpu", "gpu" or "tpu", got \'rocm\''),
    ],
)
def test_an_impossible_topology_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(tx.UsageError) as caught:
        tx.Topology(**{"hosts": 4, "devices_per_host": 2, "mesh": {"data": 8}} | arguments)
    assert str(caught.value) == message


def test_mapping_is_not_planned_for_other_hosts(tmp_path: Path) -> None:
    tree = save_matrix(tmp_path)
    topology = tx.Topology(hosts=1, devices_per_host=1, mesh={"data": 1})
    with pytest.raises(tx.UsageError, match="mapped=False with a topology"):
        tx.plan(tmp_path / "ckpt", tree, topology=topology, mapped=True)
