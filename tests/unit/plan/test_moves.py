"""Moves of sharded arrays, carried out with numpy: every device ends with what it should hold."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from templax._core.boxes import box_slices
from templax._plan.moves import DeviceMesh, Layout, Move, find_moves, list_sizes, make_layout

MESHES = [{"x": 4}, {"x": 2, "y": 2}, {"x": 2, "y": 3}, {"x": 2, "y": 2, "z": 2}]


def list_places(mesh: DeviceMesh) -> list[dict[str, int]]:
    ranges = [range(n) for n in mesh.sizes.values()]
    return [dict(zip(mesh.sizes, at, strict=True)) for at in itertools.product(*ranges)]


def find_slices(layout: Layout, shape: tuple[int, ...], mesh: DeviceMesh) -> list[Any]:
    """The index of each device's shard, by `find_boxes` of a mesh with one process a device."""
    alone = DeviceMesh(mesh.sizes, tuple(range(len(mesh.processes))))
    boxes = alone.find_boxes(layout, shape)
    return [box_slices(boxes[device][0]) for device in range(len(mesh.processes))]


def carry_out(move: Move, shards: list[np.ndarray], mesh: DeviceMesh) -> list[np.ndarray]:
    """What `all_gather` and `all_to_all` of JAX make of the shards, with `tiled=True`."""
    places, made = list_places(mesh), list[np.ndarray]()
    for place in places:
        rest = {axis: i for axis, i in place.items() if axis not in move.axes}
        ranges = [range(mesh.sizes[axis]) for axis in move.axes]
        group = [
            places.index(rest | dict(zip(move.axes, at, strict=True)))
            for at in itertools.product(*ranges)
        ]
        pieces = [shards[device] for device in group]
        if move.target is not None:
            mine = 0
            for axis in move.axes:
                mine = mine * mesh.sizes[axis] + place[axis]
            pieces = [np.split(piece, len(group), move.target)[mine] for piece in pieces]
        made.append(np.concatenate(pieces, move.source))
    return made


@st.composite
def layouts(draw: st.DrawFn, sizes: dict[str, int], ndim: int) -> Layout:
    dims: list[list[str]] = [[] for _ in range(ndim)]
    for axis in draw(st.permutations(list(sizes))):
        where = draw(st.integers(0, ndim))
        if where < ndim:
            dims[where].append(axis)
    return tuple(map(tuple, dims))


@given(st.data())
def test_moves_bring_each_device_what_the_final_layout_gives_it(data: st.DataObject) -> None:
    sizes = data.draw(st.sampled_from(MESHES))
    count = math.prod(sizes.values())
    mesh = DeviceMesh(sizes, tuple(range(count)))
    ndim = data.draw(st.integers(1, 3))
    shape = tuple(count * data.draw(st.integers(1, 2)) for _ in range(ndim))
    start, final = data.draw(layouts(sizes, ndim)), data.draw(layouts(sizes, ndim))
    moves = find_moves(start, final, shape, mesh)
    if not moves:
        return
    values = np.arange(math.prod(shape)).reshape(shape)
    shards = [values[index] for index in find_slices(start, shape, mesh)]
    for move in moves:
        shards = carry_out(move, shards, mesh)
    for index, shard in zip(find_slices(final, shape, mesh), shards, strict=True):
        np.testing.assert_array_equal(shard, values[index])
    held = list_sizes(moves, start, shape, mesh)
    assert max(held) == held[-1] == shards[0].size


def test_parts_of_replicas_and_of_crossing_shards_can_be_moved() -> None:
    """What shared reading asks for: rows to columns, and parts to replicas, along any axes."""
    for sizes in MESHES:
        axes = tuple(sizes)
        mesh = DeviceMesh(sizes, tuple(range(math.prod(sizes.values()))))
        shape = (24, 24)
        assert find_moves((axes, ()), ((), axes), shape, mesh) == (Move(axes, 0, 1),)
        assert find_moves((axes, ()), ((), ()), shape, mesh) == (Move(axes, 0),)
        if len(axes) > 1:
            last = axes[-1:]
            assert find_moves((axes, ()), ((), last), shape, mesh) == (
                Move(last, 0, 1),
                Move(axes[:-1], 0),
            )
    assert find_moves(((), ()), (("x",), ()), (4, 4), DeviceMesh({"x": 4}, (0, 1, 2, 3))) == ()


def test_axes_of_one_device_do_not_cut() -> None:
    assert make_layout(("x", ("y", "z")), 3, {"x": 1, "y": 2, "z": 1}) == ((), ("y",), ())
