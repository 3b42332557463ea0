"""Leaves stored in chunks, as a format's reader describes them, and plans that read them.

`restores` draws whole restores for hypothesis: leaves in chunks of every kind with checksums of
blocks, the objects that store them, and the options of the restore.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import zstandard
from hypothesis import strategies as st
from msgspec import structs
from safetensors.numpy import save_file

from templax._catalog.entry import Chunk, Extent, LeafEntry
from templax._codecs.crc32c import crc32c
from templax._codecs.decode import decode
from templax._core.boxes import Box, box_slices, full_box, intersect, relative_box, shape_of
from templax._match.result import Match, Pair
from templax._plan import limits, parts, requests
from templax._plan.build import build_plan
from templax._plan.plan import Plan
from templax._restore import fill
from templax._restore.execute import execute_plan
from templax._template.template import Target, Template
from templax.storage import Source
from templax.testing import strategies


class StoredLeaf(NamedTuple):
    """The values of a leaf, what a restore wants of it, and its chunks."""

    values: np.ndarray
    pair: Pair
    chunks: tuple[Chunk, ...]


def block_checksums(stored: bytes, block: int) -> tuple[int, ...]:
    """A crc32c per `block` bytes."""
    return tuple(crc32c(stored[i : i + block]) for i in range(0, len(stored), block))


def make_pair(
    name: str,
    values: np.ndarray,
    boxes: Sequence[Box] | None = None,
    dtype: Any = None,
    **target: Any,
) -> Pair:
    """A stored array and a target for these boxes of it, or for all of it."""
    boxes = (full_box(values.shape),) if boxes is None else tuple(boxes)
    wanted = values.dtype if dtype is None else np.dtype(dtype)
    return Pair(
        Target(name, (name,), values.shape, wanted, boxes=boxes, **target),
        LeafEntry(name, (name,), values.shape, values.dtype),
    )


def save_leaves(
    directory: Path, n: int = 12, shape: tuple[int, int] = (64, 256)
) -> tuple[Path, dict[str, np.ndarray]]:
    """A safetensors file of `n` leaves, and their values."""
    tree = {f"l{i}": np.random.default_rng(i).random(shape, np.float32) for i in range(n)}
    save_file(tree, directory / "m.safetensors")
    return directory / "m.safetensors", tree


def make_plan(*pairs: Pair, threads: int = 2, **chunks: tuple[Chunk, ...]) -> Plan:
    """A plan for pairs whose chunks are given by the name of the leaf."""
    match = Match("memory", Template(tuple(pair.target for pair in pairs)), pairs)
    return build_plan(match, [chunks], threads=threads)


def plan_pair(pair: Pair, chunk: Chunk, **options: Any) -> Plan:
    """A plan for a leaf of one chunk under options of `plan`."""
    match = Match("memory", Template((pair.target,)), (pair,))
    return build_plan(match, [{pair.entry.name: (chunk,)}], **options)


def plan_leaves(leaves: Sequence[StoredLeaf], **options: Any) -> Plan:
    """A plan for these leaves under options of `plan`."""
    pairs = tuple(leaf.pair for leaf in leaves)
    match = Match("memory", Template(tuple(pair.target for pair in pairs)), pairs)
    return build_plan(match, [{leaf.pair.entry.name: leaf.chunks for leaf in leaves}], **options)


def read_arrays(plan: Plan, source: Source) -> list[np.ndarray]:
    """The arrays that the plan fills, in its order."""
    return [array for finished in execute_plan(plan, [source]) for array in finished.arrays]


def reads_values(plan: Plan, source: Source, leaves: Sequence[StoredLeaf]) -> bool:
    """Whether executing the plan gives the values of these leaves."""
    by_name = {leaf.pair.target.name: leaf.values for leaf in leaves}
    return all(
        np.array_equal(array, by_name[buffer.pair.target.name][box_slices(buffer.box)])
        for finished in execute_plan(plan, [source])
        for buffer, array in zip(finished.batch.buffers, finished.arrays, strict=True)
    )


def join_chunks(
    chunks: Sequence[Chunk], shape: tuple[int, ...], dtype: Any, source: Source
) -> np.ndarray:
    """The values of a leaf, decoded without the engine; asserts that its chunks tile it."""
    dtype = np.dtype(dtype)
    array = np.empty(shape, dtype)
    covered = 0
    for chunk in chunks:
        extent, chunk_shape = chunk.extent, shape_of(chunk.box)
        data = extent.inline
        if data is None:
            data = source.read(extent.key, extent.start, extent.stop)
        decoded = decode(chunk.codecs, data, math.prod(chunk_shape) * dtype.itemsize)
        values = np.frombuffer(decoded, np.uint8).view(dtype)
        values = values.reshape(chunk_shape, order=chunk.order)
        inside = intersect(chunk.box, full_box(shape))
        assert inside is not None
        array[box_slices(inside)] = values[box_slices(relative_box(inside, chunk.box))]
        covered += math.prod(shape_of(inside))
    assert covered == array.size
    return array


class Restore(NamedTuple):
    """What is stored, and how it is restored.

    Attributes:
        leaves: The leaves to restore.
        objects: The objects of the store, by key.
        options: The options of `plan`.
        sizes: The sizes at which reads are cut and joined; see `small_sizes`.
    """

    leaves: list[StoredLeaf]
    objects: dict[str, bytes]
    options: dict[str, Any]
    sizes: dict[str, int]


@contextmanager
def small_sizes(sizes: dict[str, int]) -> Iterator[None]:
    """Cuts and joins reads at sizes as small as the leaves of these tests.

    Import other modules that use the sizes first: they would keep the small ones.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, size in sizes.items():
            for module in (parts, limits, requests, fill):
                patch.setattr(module, name, size, raising=False)
        yield


@st.composite
def restores(draw: Any) -> Restore:
    """Restores of one to three leaves."""
    mapped = draw(st.booleans())
    objects: dict[str, bytearray] = {}
    leaves = [draw(_leaves(i, objects, mapped)) for i in range(draw(st.integers(1, 3)))]
    options = {
        "verify": draw(st.sampled_from(["available", "available", "required", "off"])),
        "threads": draw(st.integers(1, 3)),
        "memory": draw(st.sampled_from([1, 1 << 31])),
        "mapped": (True,) if mapped else (),
    }
    sizes = {
        "SCATTER_BYTES": draw(st.sampled_from([4, 12, 40, 1 << 20])),
        "SPLIT_BYTES": draw(st.sampled_from([4, 20, 64, 1 << 20])),
        "IN_PLACE_BYTES": draw(st.sampled_from([8, 1 << 20])),
        "CHECKED_BYTES": draw(st.sampled_from([3, 16, 1 << 20])),
        "REQUEST_BYTES": draw(st.sampled_from([10, 1 << 20])),
        "GAP_BYTES": draw(st.sampled_from([1, 1 << 16])),
    }
    return Restore(leaves, {k: bytes(v) + b"??" for k, v in objects.items()}, options, sizes)


@st.composite
def _leaves(draw: Any, number: int, objects: dict[str, bytearray], mapped: bool) -> StoredLeaf:
    shape = tuple(draw(st.lists(st.integers(1, 9), max_size=3)))
    dtype = np.dtype(draw(st.sampled_from(["u1", "<i2", "<f4"])))
    wanted = np.dtype("i4") if dtype == "i2" and draw(st.booleans()) else dtype
    values = np.random.default_rng(number).integers(0, 100, shape).astype(dtype)
    size = shape
    if draw(st.booleans()):
        size = tuple(draw(st.integers(1, n)) for n in shape)
    if shape and draw(st.booleans()):
        size = (size[0], *shape[1:])  # back to back in memory
    kind = draw(st.sampled_from(["raw"] * 5 + ["zstd", "F", "inline"]))
    file = objects.setdefault(draw(st.sampled_from(["f", "g"])), bytearray(b"?" * 5))
    key = next(k for k, v in objects.items() if v is file)
    file += b"?" * (-len(file) % 64 if draw(st.booleans()) else draw(st.integers(0, 70)))
    tight, valid_only = draw(st.booleans()), draw(st.booleans())
    summed = draw(st.sampled_from(["all", "all", "some"]))
    chunks: list[Chunk] = []
    for box in strategies.grid(shape, size):
        inside = intersect(box, full_box(shape))
        assert inside is not None
        if valid_only:
            box = inside
        piece = np.zeros(shape_of(box), dtype)
        piece[box_slices(relative_box(inside, box))] = values[box_slices(inside)]
        stored = piece.tobytes(order="F" if kind == "F" else "C")
        if kind == "zstd":
            stored = zstandard.compress(stored)
        if not tight:
            file += b"?" * draw(st.integers(0, 3))
        extent = Extent(key, len(file), len(file) + len(stored))
        if kind == "inline":
            extent = Extent("index", 0, len(stored), stored)
        else:
            file += stored
        block, covered = len(stored), summed == "all" or draw(st.booleans())
        if kind == "raw" and draw(st.booleans()):
            block = draw(_block_sizes(shape_of(box), dtype.itemsize))
        made = Chunk(extent, box, ("zstd",) if kind == "zstd" else (), "F" if kind == "F" else "C")
        if covered:
            sums = block_checksums(stored, block)
            made = structs.replace(made, checked=True, sums=sums, block=block)
        chunks.append(made)
    boxes: list[Box] = [full_box(shape)]
    if draw(st.booleans()) and not (mapped and draw(st.booleans())):
        boxes = draw(st.lists(strategies.boxes(shape), min_size=1, max_size=8))
    transient = not mapped and draw(st.booleans())
    pair = make_pair(f"l{number}", values, tuple(dict.fromkeys(boxes)), wanted, transient=transient)
    return StoredLeaf(values, pair, tuple(chunks))


@st.composite
def _block_sizes(draw: Any, shape: tuple[int, ...], itemsize: int) -> int:
    """Bytes of a block: rows of some dimension as a rule, else any number."""
    nbytes = math.prod(shape) * itemsize
    axis = draw(st.integers(0, len(shape)))
    if axis == len(shape):
        return draw(st.one_of(st.just(nbytes), st.integers(1, nbytes)))
    row = math.prod(shape[axis + 1 :]) * itemsize
    return row * draw(st.integers(1, shape[axis]))
