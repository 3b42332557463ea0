"""Checksums during a restore: sound data is restored, and damage is named to the block."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

import templax as tx
from helpers import flip_bit
from stored_leaves import (
    Restore,
    StoredLeaf,
    block_checksums,
    plan_leaves,
    reads_values,
    restores,
    small_sizes,
)
from templax._catalog.catalog import Catalog
from templax._catalog.entry import Chunk, Extent, LeafEntry
from templax._codecs.crc32c import crc32c
from templax._core.boxes import box_slices, full_box, intersect, relative_box, shape_of
from templax._plan.plan import Plan
from templax.storage import Local, Memory
from templax.testing import Watched


def find_wanted_bytes(leaf: StoredLeaf, chunk: Chunk) -> set[int]:
    """Positions of the stored bytes that some box needs; all, if parts can't be read."""
    shape, itemsize = shape_of(chunk.box), leaf.values.dtype.itemsize
    every = np.arange(math.prod(shape) * itemsize).reshape(*shape, itemsize)
    found: set[int] = set()
    for box in leaf.pair.target.boxes:
        overlap = intersect(chunk.box, box)
        if overlap is None:
            continue
        if chunk.codecs or chunk.order == "F" or chunk.extent.inline is not None:
            return set(range(chunk.extent.nbytes))
        found |= set(every[box_slices(relative_box(overlap, chunk.box))].ravel().tolist())
    return found


def find_jobs(made: Plan, chunk: Chunk) -> list[tuple[int, int]]:
    """The range of each job that reads or compares bytes of the chunk."""
    parts = [p for b in made.batches for op in b.reads for p in op.parts]
    checks = [c for b in made.batches for job in b.checks for c in job]
    extent = chunk.extent
    return [
        (x.start, x.stop)
        for x in (*parts, *checks)
        if x.chunk.extent.key == extent.key
        and (x.chunk.extent.inline is extent.inline)
        and x.start < extent.stop
        and extent.start < x.stop
    ]


@given(restores())
def test_sound_data_is_restored_under_any_options(restore: Restore) -> None:
    with small_sizes(restore.sizes):
        made = plan_leaves(restore.leaves, **restore.options)
        assert reads_values(made, Memory(restore.objects), restore.leaves)
    for batch in made.batches:
        counts = [np.full(b.shape, int(b.view is not None)) for b in batch.buffers]
        for copy in (c for op in batch.reads for part in op.parts for c in part.copies):
            assert shape_of(copy.src) == shape_of(copy.dst)
            counts[copy.buffer][box_slices(copy.dst)] += 1
        assert all((count == 1).all() for count in counts)
    assert 0 <= made.useful_bytes <= made.read_bytes


@given(restores(), st.data())
def test_a_flipped_bit_is_reported_if_its_block_was_read_completely(
    restore: Restore, data: Any
) -> None:
    """With `verify="required"`, that is every block that a box touches."""
    number = data.draw(st.integers(0, len(restore.leaves) - 1))
    leaf, verify = restore.leaves[number], restore.options["verify"]
    chunk = data.draw(st.sampled_from(leaf.chunks))
    if chunk.codecs and (not chunk.sums or verify == "off"):
        return  # only the decoder may find it
    extent, at = chunk.extent, data.draw(st.integers(0, chunk.extent.nbytes - 1))
    leaves, objects = list(restore.leaves), dict(restore.objects)
    if extent.inline is None:
        objects[extent.key] = flip_bit(objects[extent.key], extent.start + at)
    else:
        held = structs.replace(extent, inline=flip_bit(bytes(extent.inline), at))
        damaged = structs.replace(chunk, extent=held)
        others = tuple(damaged if c is chunk else c for c in leaf.chunks)
        leaves[number], chunk, extent = leaf._replace(chunks=others), damaged, held
    wanted, source = find_wanted_bytes(leaf, chunk), Watched(Memory(objects))
    error: tx.Corrupted | None = None
    with small_sizes(restore.sizes):
        made = plan_leaves(leaves, **restore.options)
        try:
            same = reads_values(made, source, leaves)
        except tx.Corrupted as damage:
            error, same = damage, False
    jobs = find_jobs(made, chunk)
    if not chunk.sums:
        assert error is None
        assert same or at in wanted
        assert at not in wanted or leaf.pair.target.name in made.unverified
        return
    first = extent.start + at // chunk.block * chunk.block
    last = min(first + chunk.block, extent.stop)
    checked = any(start <= first and last <= stop for start, stop in jobs)
    touched = any(first <= extent.start + byte < last for byte in wanted)
    reported = leaf.pair.target.name in made.unverified
    if verify == "required":
        assert checked or not touched
        assert not reported or any(not c.sums for c in leaf.chunks)
    elif touched:
        assert checked or reported
    if not checked or verify == "off":
        assert error is None
        assert same or at in wanted
        return
    assert error is not None
    assert (error.leaf, error.file) == (leaf.pair.entry.name, extent.key)
    assert (error.start, error.stop) == (first, last)
    assert error.what.startswith("Expected crc32c `")
    read = [(a, b) for key, a, b in source.reads if key == extent.key]
    assert (
        extent.inline is not None
        or any(a <= extent.start + at < b for a, b in read)
        or any(made.mapped_bytes for _ in jobs)
    )


ROWS = np.arange(1000 * 8, dtype=np.float32).reshape(1000, 8)
"""Rows of 32 bytes, in blocks of 100 rows."""


def make_catalog(root: Any, values: dict[str, np.ndarray], block: int) -> Catalog:
    """A checkpoint of one file, each leaf at a multiple of 64 bytes, with checksums of blocks."""
    data, chunks = bytearray(), {}
    for name, value in values.items():
        data += b"\0" * (-len(data) % 64)
        stored = value.tobytes()
        extent = Extent("data", len(data), len(data) + len(stored))
        data += stored
        size = min(block, len(stored))
        chunks[name] = (
            Chunk(
                extent, full_box(value.shape), (), "C", True, block_checksums(stored, size), size
            ),
        )
    (root / "data").write_bytes(data)
    entries = tuple(LeafEntry(n, (n,), v.shape, v.dtype) for n, v in values.items())
    return Catalog(
        str(root),
        "made",
        "made here",
        entries,
        Local(root),
        lambda wanted, damages=None: {entry.name: chunks[entry.name] for entry in wanted},
    )


@pytest.mark.parametrize("mapped", [False, True])
def test_a_restore_names_the_damaged_block(tmp_path: Any, mapped: bool) -> None:
    values = {"a": np.ones(100, np.float32), "b": ROWS, "c": np.ones((), np.int32)}
    catalog = make_catalog(tmp_path, values, 3200)
    template = {n: jax.ShapeDtypeStruct(v.shape, v.dtype) for n, v in values.items()}
    options: dict[str, Any] = {"verify": "required", "mapped": mapped}
    made = tx.plan(catalog, template, **options)
    assert (made.mapped_bytes > 0) == mapped
    restored = tx.run(made)
    assert all(np.array_equal(restored[n], v) for n, v in values.items())
    data = (tmp_path / "data").read_bytes()
    at = 448 + 5 * 3200 + 7
    (tmp_path / "data").write_bytes(flip_bit(data, at))
    fresh = reopen(catalog)
    with pytest.raises(tx.Corrupted) as caught:
        tx.restore(fresh, template, **options)
    want, got = crc32c(data[16448:19648]), crc32c(flip_bit(data, at)[16448:19648])
    assert str(caught.value) == (
        f"Expected crc32c `{want:08x}`, got `{got:08x}` - at `b`, file `data`, bytes 16448-19648"
    )
    options["verify"] = "off"
    changed = np.asarray(tx.restore(fresh, template, **options)["b"])
    assert (changed != ROWS).sum() == 1


def reopen(catalog: Catalog) -> Catalog:
    """The catalog over a new source, which has not opened a file yet."""
    return Catalog(
        catalog.url, catalog.format, catalog.evidence, catalog.entries,
        Local(catalog.url), catalog.locator,
    )  # fmt: skip


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_changed_byte_of_a_saved_checkpoint_is_found(tmp_path: Any, compression: Any) -> None:
    tree = {"w": np.random.default_rng(0).random((300, 400), np.float32), "b": np.ones(3)}
    tx.save(tmp_path / "ckpt", tree, compression=compression)
    catalog = tx.open(tmp_path / "ckpt")
    (chunk,) = catalog.locate([catalog.leaves["w"]])["w"]
    file, extent = tmp_path / "ckpt" / chunk.extent.key, chunk.extent
    data = file.read_bytes()
    made = tx.plan(tmp_path / "ckpt", tree, verify="required")
    assert np.array_equal(tx.run(made)["w"], tree["w"])
    for at in (extent.start, extent.start + extent.nbytes // 2, extent.stop - 1):
        file.write_bytes(flip_bit(data, at))
        with pytest.raises(tx.Corrupted) as caught:
            tx.restore(tmp_path / "ckpt", tree)
        error = caught.value
        assert error.what.startswith("Expected crc32c `")
        assert (error.leaf, error.file) == ("w", chunk.extent.key)
        assert (error.start, error.stop) == (extent.start, extent.stop)
