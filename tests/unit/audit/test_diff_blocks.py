"""Blocks of leaves: they tile a leaf, avoid chunks that are decoded whole, and bound the memory."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

import templax as tx
from helpers import mark_slow
from limits import run_limited
from stored_leaves import Restore, restores, small_sizes
from templax._audit import diff_blocks
from templax._audit.diff_blocks import cut_box
from templax._catalog.catalog import Catalog
from templax._catalog.entry import Chunk, Extent, LeafEntry
from templax._core.boxes import (
    Box,
    box_slices,
    full_box,
    intersect,
    relative_box,
    shape_of,
)
from templax.storage import Memory
from templax.testing import strategies


def make_catalog(objects: dict[str, bytes], leaves: dict[str, tuple[np.ndarray, Any]]) -> Catalog:
    entries = tuple(LeafEntry(n, (n,), v.shape, v.dtype) for n, (v, _) in leaves.items())
    return Catalog(
        "here",
        "made",
        "a test",
        entries,
        Memory(objects),
        lambda es, _=None: {e.name: tuple(leaves[e.name][1]) for e in es},
    )


def store(values: np.ndarray, grid: Sequence[Box], packed: bool) -> tuple[bytes, list[Chunk]]:
    """A file of the chunks of a leaf."""
    file, chunks = b"", list[Chunk]()
    for box in grid:
        inside = intersect(box, full_box(values.shape))
        assert inside is not None
        piece = np.zeros(shape_of(box), values.dtype)
        piece[box_slices(relative_box(inside, box))] = values[box_slices(inside)]
        stored = zstandard.compress(piece.tobytes()) if packed else piece.tobytes()
        extent = Extent("x", len(file), len(file) + len(stored))
        chunks.append(Chunk(extent, box, ("zstd",) if packed else ()))
        file += stored
    return file, chunks


@given(restores(), st.data())
def test_any_two_layouts_are_compared_element_by_element(restore: Restore, data: Any) -> None:
    named = {leaf.pair.entry.name: leaf for leaf in restore.leaves}
    a = make_catalog(restore.objects, {n: (x.values, x.chunks) for n, x in named.items()})
    name = data.draw(st.sampled_from(sorted(named)))
    values = named[name].values.copy()
    changed = data.draw(st.sets(st.integers(0, values.size - 1)))
    for i in changed:
        values.reshape(-1)[i] += 1
    grid = data.draw(strategies.grids(values.shape))
    file, chunks = store(values, grid, data.draw(st.booleans()))
    b = make_catalog({"x": file}, {name: (values, chunks)})
    with pytest.MonkeyPatch.context() as patch, small_sizes(restore.sizes):
        for size in ("BLOCK_BYTES", "PINNED_BYTES", "SUMMED_BYTES", "PLANNED_BYTES"):
            patch.setattr(diff_blocks, size, data.draw(st.sampled_from([1, 8, 30, 1 << 30])))
        found = tx.diff(a, b, threads=data.draw(st.integers(1, 3)))
    (leaf,) = (leaf for leaf in found.leaves if leaf.name == name)
    assert leaf.basis == "read"
    assert leaf.values is not None
    assert leaf.values.differing == len(changed)
    assert leaf.values.max_abs == bool(changed)
    assert {one.differences for one in found.leaves if one is not leaf} <= {("only_a",)}


@given(st.data())
def test_blocks_tile_a_leaf_and_have_the_chunks_they_need(data: Any) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 9), max_size=3)))
    sides: list[list[Chunk]] = []
    for _ in range(2):
        codecs = data.draw(st.sampled_from([(), ("zstd",)]))
        grid = data.draw(strategies.grids(shape))
        sides.append([Chunk(Extent("x", 0, 1), box, codecs) for box in grid])
    with pytest.MonkeyPatch.context() as patch:
        for size in ("BLOCK_BYTES", "PINNED_BYTES"):
            patch.setattr(diff_blocks, size, data.draw(st.integers(1, 60)))
        blocks = list(cut_box(full_box(shape), 1, (sides[0], sides[1])))
    seen = np.zeros(shape, int)
    for box, here in blocks:
        seen[box_slices(box)] += 1
        for mine, chunks in zip(here, sides, strict=True):
            assert {c.box for c in mine} == {c.box for c in chunks if intersect(c.box, box)} or (
                box == () == chunks[0].box
            )
    assert (seen == 1).all()


def test_cuts_avoid_chunks_that_are_decoded_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of both sides where it can be, else the longer ones."""
    monkeypatch.setattr(diff_blocks, "BLOCK_BYTES", 10)

    def cut(*lengths: int) -> list[tuple[int, int]]:
        sides = [
            [Chunk(Extent("x", 0, 1), box, ("zstd",)) for box in strategies.grid((60,), (n,))]
            for n in lengths
        ]
        return [box[0] for box, _ in cut_box(full_box((60,)), 1, (sides[0], sides[1]))]

    assert cut(5, 10) == [(i, i + 10) for i in range(0, 60, 10)]
    assert cut(20, 3) == [(0, 20), (20, 40), (40, 60)]
    assert cut(4, 4)[:2] == [(0, 8), (8, 16)]
    assert cut(60, 1) == [(0, 60)]


def test_a_leaf_that_only_claims_to_be_huge_is_refused() -> None:
    shape = (1 << 58,)
    entry = LeafEntry("w", ("w",), shape, np.dtype("u1"))
    fill = Chunk(Extent("x", 0, 1, b"\0"), full_box(shape), ("fill",))
    made = Catalog(
        "here", "made", "a test", (entry,), Memory({}), lambda es, _=None: {"w": (fill,)}
    )
    with pytest.raises(tx.Unsupported, match=r"fits into memory, got 256\.0 PiB in A, here - at"):
        tx.diff(made, made)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured on Linux only")
@pytest.mark.parametrize("second", ["npz", *mark_slow("orbax")])
def test_large_leaves_take_little_memory(tmp_path: Any, second: str) -> None:
    """Two trees of 256 MiB: raw files, and files of chunks that are decoded whole."""
    prepare = f"""
from safetensors.numpy import save_file
path = {str(tmp_path)!r}
tree = {{f"w{{i}}": np.full((1 << 15, 1 << 10), i, np.float32) for i in range(2)}}
save_file(tree, path + "/a.safetensors")
tree["w1"][-1, -1] = 0
tx.save(path + "/b", tree) if {second!r} == "orbax" else np.savez(path + "/b", **tree)
del tree
import templax._audit.diff, templax._restore.execute
"""
    code = """
import glob
found = tx.diff(path + "/a.safetensors", glob.glob(path + "/b*")[0], threads=2)
print([leaf.name for leaf in found.differing], found.leaves[0].values.differing)
"""
    outcome = run_limited(code, prepare=prepare, seconds=60, megabytes=220)
    assert outcome.stdout == "['w1'] 1\n"
