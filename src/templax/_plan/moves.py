"""Moves of a sharded array between devices: from one layout over a mesh to another. Pure.

A layout says which mesh axes cut each dimension. Each move is one collective of XLA: an exchange
(all-to-all) takes axes from one dimension to another, a gather (all-gather) takes axes away. No
move makes a shard larger than those of the final layout. XLA on its own would gather the whole
array on every device for some pairs of layouts.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from .._core.boxes import Box, Shape

Layout = tuple[tuple[str, ...], ...]
"""For each dimension, the mesh axes that cut it, the one with the largest steps first. Axes of size
1 are left out."""

_MAX_STATES = 2048
"""Most layouts that a search for moves looks at."""


class Move(msgspec.Struct, frozen=True):
    """One collective.

    Attributes:
        axes: The mesh axes of each group of devices that communicate, which are the last ones of
            dimension `source`.
        source: The dimension whose pieces are joined.
        target: The dimension that is cut instead; None if none is, in a gather.
    """

    axes: tuple[str, ...]
    source: int
    target: int | None = None

    def apply(self, layout: Layout) -> Layout:
        """The layout after the move."""
        dims = list(layout)
        dims[self.source] = dims[self.source][: len(dims[self.source]) - len(self.axes)]
        if self.target is not None:
            dims[self.target] = dims[self.target] + self.axes
        return tuple(dims)


class DeviceMesh(msgspec.Struct, frozen=True):
    """The devices of a mesh.

    Attributes:
        sizes: Size of each axis by its name, in mesh order.
        processes: The process of each device, in row-major order.
    """

    sizes: dict[str, int]
    processes: tuple[int, ...]

    def find_boxes(self, layout: Layout, shape: Shape) -> dict[int, tuple[Box, ...]]:
        """The distinct boxes that each process holds of a leaf that the layout divides evenly."""
        found: dict[int, dict[Box, None]] = {}
        steps = [n // self.count_parts(axes) for n, axes in zip(shape, layout, strict=True)]
        coordinates = itertools.product(*map(range, self.sizes.values()))
        for process, at in zip(self.processes, coordinates, strict=True):
            place = dict(zip(self.sizes, at, strict=True))
            box = list[tuple[int, int]]()
            for axes, step in zip(layout, steps, strict=True):
                index = 0
                for axis in axes:
                    index = index * self.sizes[axis] + place[axis]
                box.append((index * step, (index + 1) * step))
            found.setdefault(process, {})[tuple(box)] = None
        return {process: tuple(boxes) for process, boxes in found.items()}

    def count_parts(self, axes: Sequence[str]) -> int:
        """Into how many parts these axes cut a dimension."""
        return math.prod([self.sizes[axis] for axis in axes])

    def divides(self, layout: Layout, shape: Shape) -> bool:
        """Whether the layout divides a shape evenly."""
        return all(n % self.count_parts(a) == 0 for n, a in zip(shape, layout, strict=True))

    def count_devices(self, process: int) -> int:
        return self.processes.count(process)


def make_layout(
    spec: Sequence[str | tuple[str, ...] | None], ndim: int, sizes: Mapping[str, int]
) -> Layout:
    """The layout of a `PartitionSpec`, as `Sharding.spec` has it.

    >>> make_layout(("x", None, ("y", "z")), 4, {"x": 2, "y": 1, "z": 2})
    (('x',), (), ('z',), ())
    """
    dims = [(axes,) if isinstance(axes, str) else tuple(axes or ()) for axes in spec]
    dims += [()] * (ndim - len(dims))
    return tuple(tuple(axis for axis in axes if sizes[axis] > 1) for axes in dims)


def find_moves(start: Layout, final: Layout, shape: Shape, mesh: DeviceMesh) -> tuple[Move, ...]:
    """The moves from one layout to another over which the fewest elements travel.

    Args:
        start, final: The layouts; both divide `shape` evenly.
        shape: Of the whole array, in elements.
        mesh: The devices.

    Returns:
        The moves; none if there are none that keep shards as small as those of `final`.

    >>> mesh = DeviceMesh({"a": 2, "b": 2}, (0, 0, 1, 1))
    >>> find_moves((("a", "b"), ()), ((), ("b",)), (8, 8), mesh)
    (Move(axes=('b',), source=0, target=1), Move(axes=('a',), source=0, target=None))
    """
    kept = {axis for axes in final for axis in axes}
    queue: list[tuple[int, int, Layout, tuple[Move, ...]]] = [(0, 0, start, ())]
    done, number = set[Layout](), itertools.count(1)
    while queue and len(done) < _MAX_STATES:
        cost, _, layout, moves = heapq.heappop(queue)
        if layout == final:
            return moves
        if layout in done:
            continue
        done.add(layout)
        for move in _list_moves(layout, kept):
            following = move.apply(layout)
            if following not in done and mesh.divides(following, shape):
                received = count_received(move, layout, shape, mesh)
                heapq.heappush(queue, (cost + received, next(number), following, (*moves, move)))
    return ()


def _list_moves(layout: Layout, kept: set[str]) -> Iterator[Move]:
    """The moves from a layout: gathers only of axes that the final one does not cut with."""
    for source, axes in enumerate(layout):
        for n in range(1, len(axes) + 1):
            last = axes[-n:]
            if kept.isdisjoint(last):
                yield Move(last, source)
            for target in range(len(layout)):
                if target != source:
                    yield Move(last, source, target)


def count_received(move: Move, layout: Layout, shape: Shape, mesh: DeviceMesh) -> int:
    """Elements that each device receives from others in a move from `layout`."""
    local = math.prod(shape) // math.prod(map(mesh.count_parts, layout))
    parts = mesh.count_parts(move.axes)
    return local * (parts - 1) if move.target is None else local - local // parts


def list_sizes(moves: Sequence[Move], layout: Layout, shape: Shape, mesh: DeviceMesh) -> list[int]:
    """Elements of a shard before the first move and after each."""
    sizes = [math.prod(shape) // math.prod(map(mesh.count_parts, layout))]
    for move in moves:
        layout = move.apply(layout)
        sizes.append(math.prod(shape) // math.prod(map(mesh.count_parts, layout)))
    return sizes
