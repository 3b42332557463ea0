"""What processes read together: their parts tile each leaf, and cost what plans say they cost."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from templax._catalog.entry import Chunk, Extent, LeafEntry
from templax._core.boxes import Box, box_slices
from templax._match.result import Match, Pair
from templax._plan.build import build_plan
from templax._plan.compare_layouts import choose_sharing
from templax._plan.moves import DeviceMesh, make_layout
from templax._plan.sharing import Machine, MoveRates, ReadCost, Sharing
from templax._template.sharding import Sharding
from templax._template.template import Target, Template

F4 = np.dtype(np.float32)
FREE = MoveRates(1e12, 1e12, 0.0)
"""Moves that cost nothing: what can be shared is."""

ONE_CORE = Machine(1)


def make_pair(name: str, shape: tuple[int, ...], sharding: Sharding) -> Pair:
    entry = LeafEntry(name, (name,), shape, F4)
    return Pair(Target(name, (name,), shape, F4, sharding=sharding), entry)


def cut_into_chunks(
    shape: tuple[int, ...], steps: tuple[int, ...], codecs: tuple[str, ...] = ("zstd",)
) -> tuple[Chunk, ...]:
    """Chunks of a grid, one after another in a file, each as long as it is when decoded."""
    found: list[Chunk] = []
    at = 0
    for index in np.ndindex(*[-(-n // step) for n, step in zip(shape, steps, strict=True)]):
        box: Box = tuple(
            (i * step, min((i + 1) * step, n))
            for i, step, n in zip(index, steps, shape, strict=True)
        )
        nbytes = math.prod(b - a for a, b in box) * 4
        found.append(Chunk(Extent("data", at, at + nbytes), box, codecs))
        at += nbytes
    return tuple(found)


def choose(
    pairs: list[Pair], mesh: DeviceMesh, chunks: dict[str, Any], process: int, **options: Any
) -> Sharing:
    given = {"share": "always", "rates": FREE, "machine": ONE_CORE, "remote": [False]} | options
    return choose_sharing(pairs, [mesh] * len(pairs), [chunks], process=process, **given)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Pair, DeviceMesh, tuple[Chunk, ...]]:
    sizes = draw(st.sampled_from([{"x": 4}, {"x": 2, "y": 2}, {"x": 2, "y": 4}]))
    devices = math.prod(sizes.values())
    count = draw(st.sampled_from([2, devices]))
    mesh = DeviceMesh(sizes, tuple(i * count // devices for i in range(devices)))
    ndim = draw(st.integers(1, 3))
    shape = tuple(devices * draw(st.integers(1, 3)) for _ in range(ndim))
    dims: list[list[str]] = [[] for _ in range(ndim)]
    for axis in sizes:
        where = draw(st.integers(0, ndim))
        if where < ndim:
            dims[where].append(axis)
    sharding = Sharding(sizes, tuple(tuple(axes) or None for axes in dims))
    steps = tuple(draw(st.integers(1, n)) for n in shape)
    codecs = draw(st.sampled_from([(), ("zstd",)]))
    return make_pair("w", shape, sharding), mesh, cut_into_chunks(shape, steps, codecs)


@given(cases())
def test_parts_tile_the_leaf_and_read_less_and_all_processes_choose_the_same(
    case: tuple[Pair, DeviceMesh, tuple[Chunk, ...]],
) -> None:
    pair, mesh, chunks = case
    found = {p: choose([pair], mesh, {"w": chunks}, p) for p in dict.fromkeys(mesh.processes)}
    assert len({sharing.digest for sharing in found.values()}) == 1
    if not found[0].leaves:
        return
    leaf = found[0].leaves["w"]
    assert all(sharing.leaves["w"].layout == leaf.layout for sharing in found.values())
    times = np.zeros(pair.target.shape, int)
    boxes = mesh.find_boxes(leaf.layout, pair.target.shape)
    for box in {box for mine in boxes.values() for box in mine}:
        times[box_slices(box)] += 1
    np.testing.assert_array_equal(times, 1)
    assert pair.target.sharding is not None
    final = make_layout(pair.target.sharding.spec, len(pair.target.shape), mesh.sizes)
    apart = mesh.find_boxes(final, pair.target.shape)

    def read(boxes: tuple[Box, ...]) -> int:
        target = structs.replace(pair.target, boxes=boxes)
        match = Match("", Template((target,)), pairs=(structs.replace(pair, target=target),))
        plan = build_plan(match, [{"w": chunks}])
        parts = [part for batch in plan.batches for op in batch.reads for part in op.parts]
        return sum(part.stop - part.start for part in parts)  # without the gaps between them

    most = max(map(read, boxes.values())), max(map(read, apart.values()))
    assert most[0] < most[1]


MESH = DeviceMesh({"x": 4}, (0, 1, 2, 3))
MIB = 1 << 20


def test_columns_of_rows_are_read_as_rows_and_replicas_in_parts() -> None:
    shape = (1024, 1024)
    pairs = [
        make_pair("columns", shape, Sharding({"x": 4}, (None, "x"))),
        make_pair("rows", shape, Sharding({"x": 4}, ("x",))),
        make_pair("replicas", shape, Sharding({"x": 4}, ())),
    ]
    chunks = cut_into_chunks(shape, (128, 1024))
    found = choose(pairs, MESH, {pair.target.name: chunks for pair in pairs}, 1)
    assert list(found.leaves) == ["columns", "replicas"]
    assert found.leaves["columns"].layout == found.leaves["replicas"].layout == (("x",), ())
    # Of each of four shards it has a quarter; of a replica it lacks three quarters.
    assert found.leaves["columns"].received_bytes == 3 * MIB // 4
    assert found.leaves["replicas"].received_bytes == 3 * MIB
    assert found.leaves["replicas"].held_bytes == MIB
    assert found.leaves["replicas"].placed_bytes == 4 * MIB
    assert found.received_bytes == 3 * MIB + 3 * MIB // 4
    assert not found.declined


def test_what_cannot_be_cut_evenly_is_read_by_each_process_and_named() -> None:
    pair = make_pair("odd", (333, 333), Sharding({"x": 4}, ()))
    found = choose([pair], MESH, {"odd": cut_into_chunks((333, 333), (333, 333))}, 0)
    assert not found.leaves
    assert found.declined[0].names == ("odd",)
    assert "no even parts" in found.declined[0].why


@pytest.mark.parametrize(
    ("remote", "cores", "shared"), [(True, 2, True), (False, 2, False), (False, 64, False)]
)
def test_auto_shares_what_takes_less_time(remote: bool, cores: int, shared: bool) -> None:
    shape = (16384, 1024)
    pair = make_pair("w", shape, Sharding({"x": 4}, (None, "x")))
    chunks = {"w": cut_into_chunks(shape, (1024, 1024), ())}
    options: Any = {
        "remote": [remote],
        "machine": Machine(cores),
        "rates": MoveRates(3e8, 3e8, 0.2),
    }
    found = choose([pair], MESH, chunks, 0, share="auto", **options)
    assert bool(found.leaves) == shared
    if not shared:
        assert found.declined[0].shared.read_bytes == 16 * MIB
        assert found.declined[0].apart.read_bytes == 64 * MIB - 16 * 3 * 256 * 4
        assert "takes less time" in found.declined[0].why
    assert choose([pair], MESH, chunks, 0, share="never", **options) == Sharing()


def test_the_time_to_compile_is_shared_by_leaves_that_are_alike() -> None:
    shape = (1024, 1024)
    pairs = [make_pair(f"w{i}", shape, Sharding({"x": 4}, (None, "x"))) for i in range(100)]
    chunks = {pair.target.name: cut_into_chunks(shape, (128, 1024)) for pair in pairs}
    options: Any = {"share": "auto", "rates": MoveRates(1e9, 1e9, 0.1)}
    assert not choose(pairs[:1], MESH, chunks, 0, **options).leaves
    assert len(choose(pairs, MESH, chunks, 0, **options).leaves) == 100


def test_small_leaves_are_not_shared_by_auto() -> None:
    pair = make_pair("w", (64, 64), Sharding({"x": 4}, ()))
    chunks = {"w": cut_into_chunks((64, 64), (16, 64))}
    assert choose([pair], MESH, chunks, 0, share="auto") == Sharing()
    assert choose([pair], MESH, chunks, 0, share="always").leaves


def test_groups_are_bounded_and_the_peak_is_that_of_one_group() -> None:
    shape = (1024, 4096)
    pairs = [make_pair(f"w{i}", shape, Sharding({"x": 4}, (None, "x"))) for i in range(40)]
    chunks = {pair.target.name: cut_into_chunks(shape, (128, 4096)) for pair in pairs}
    found = choose(pairs, MESH, chunks, 0)
    groups = found.group_leaves()
    assert [name for group in groups for name in group] == list(found.leaves)
    assert [len(group) for group in groups] == [4] * 10  # 4 MiB, 4 MiB and 8 MiB of each
    # All parts wait, and one group has results and scratch beside them.
    assert found.peak_bytes == 64 * MIB - 16 * MIB


def test_costs_add_up() -> None:
    assert ReadCost(1, 2, 3, 4) + ReadCost(1, 1, 1, 1) * 2 == ReadCost(3, 4, 5, 6)
