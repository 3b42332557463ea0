"""`verify`: all damage is listed, nothing sound is, and unverifiable bytes are counted."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

import templax as tx
from helpers import CKPT, flip_bit
from stored_leaves import Restore, block_checksums, restores, small_sizes
from templax._audit import verify
from templax._catalog.catalog import Catalog
from templax._catalog.entry import Chunk, Extent, LeafEntry
from templax._codecs.crc32c import crc32c
from templax._core.boxes import box_around, full_box, span_of
from templax.storage import Local, Memory
from templax.testing import Watched, strategies


def make_catalog(source: Any, **leaves: tuple[np.ndarray, tuple[Chunk, ...]]) -> Catalog:
    """A checkpoint of these leaves; their chunks are in `source`."""
    entries = tuple(LeafEntry(n, (n,), v.shape, v.dtype) for n, (v, _) in leaves.items())
    return Catalog(
        "here",
        "made",
        "a test",
        entries,
        source,
        lambda es, _=None: {e.name: leaves[e.name][1] for e in es},
    )


def make_raw_chunks(
    values: np.ndarray, block: int = 0, start: int = 0, file: str = "f"
) -> tuple[Chunk, ...]:
    """One chunk for the whole array, with a checksum per block unless `block` is 0."""
    stored = values.tobytes()
    extent = Extent(file, start, start + len(stored))
    if not block:
        return (Chunk(extent, full_box(values.shape)),)
    return (
        Chunk(extent, full_box(values.shape), (), "C", True, block_checksums(stored, block), block),
    )


@given(restores(), st.data())
def test_exactly_the_damaged_blocks_are_listed(restore: Restore, data: Any) -> None:
    """Each byte is read once, and counted as either checked or unchecked."""
    objects, expected = dict(restore.objects), []
    checked = unchecked = 0
    for leaf in restore.leaves:
        for chunk in leaf.chunks:
            extent = chunk.extent
            if chunk.sums:
                checked += extent.nbytes
            else:
                unchecked += extent.nbytes
            if extent.inline is not None or not chunk.sums:
                continue
            for first in range(0, extent.nbytes, chunk.block):
                last = min(first + chunk.block, extent.nbytes)
                if data.draw(st.integers(0, 3)):
                    continue
                at = extent.start + data.draw(st.integers(first, last - 1))
                objects[extent.key] = flip_bit(objects[extent.key], at)
                place = extent.key, extent.start + first, extent.start + last
                expected.append((leaf.pair.entry.name, *place))
    leaves = {leaf.pair.entry.name: (leaf.values, leaf.chunks) for leaf in restore.leaves}
    source = Watched(Memory(objects))
    with small_sizes(restore.sizes), pytest.MonkeyPatch.context() as patch:
        for name in ("CHECKED_BYTES", "SPLIT_BYTES", "GAP_BYTES"):
            patch.setattr(verify, name, restore.sizes[name])
        verified = tx.verify(make_catalog(source, **leaves), threads=restore.options["threads"])
    found = [(d.leaf, d.file, d.start, d.stop) for d in verified.damages]
    assert sorted(found) == sorted(expected)
    assert [name for name, *_ in found] == sorted(name for name, *_ in found)
    assert (verified.checked_bytes, verified.unchecked_bytes) == (checked, unchecked)
    assert set(verified.unchecked) == {
        leaf.pair.entry.name for leaf in restore.leaves if any(not c.sums for c in leaf.chunks)
    }
    stored = [c.extent for leaf in restore.leaves for c in leaf.chunks if c.extent.inline is None]
    seen = {key: np.zeros(len(value), int) for key, value in objects.items()}
    for key, start, stop in source.reads:
        seen[key][start:stop] += 1
    assert all((seen[e.key][e.start : e.stop] == 1).all() for e in stored)
    assert all((count <= 1).all() for count in seen.values())


@given(strategies.shapes(6, 3).filter(lambda shape: 0 not in shape), st.data())
def test_box_around_is_the_smallest_box_of_the_elements(shape: Any, data: Any) -> None:
    every = np.arange(int(np.prod(shape))).reshape(shape)
    start = data.draw(st.integers(0, every.size - 1))
    stop = data.draw(st.integers(start + 1, every.size))
    box = box_around(start, stop, shape)
    where = np.argwhere((every >= start) & (every < stop))
    if shape:
        lows, highs = where.min(0), where.max(0) + 1
        assert [
            (a <= low, high <= b) for (a, b), low, high in zip(box, lows, highs, strict=True)
        ] == [(True, True) for _ in shape]
    span = span_of(box, shape, 1)
    assert span[0] <= start < stop <= span[1]
    first = next((i for i, (a, b) in enumerate(box) if b - a > 1), len(shape))
    assert all(side == (0, n) for side, n in zip(box[first + 1 :], shape[first + 1 :], strict=True))


def test_a_damage_names_its_elements() -> None:
    values = np.arange(20 * 8, dtype=np.float32).reshape(20, 8)
    source = Memory({"f": flip_bit(values.tobytes(), 9 * 32)})
    verified = tx.verify(make_catalog(source, w=(values, make_raw_chunks(values, 4 * 32))))
    (damage,) = verified.damages
    assert damage.box == ((8, 12), (0, 8))
    want, got = crc32c(values[8:12].tobytes()), crc32c(bytes(source.read("f", 256, 384)))
    assert str(damage) == (
        f"Expected crc32c `{want:08x}`, got `{got:08x}`"
        " - at `w`, elements [8:12, 0:8], file `f`, bytes 256-384"
    )


def test_elements_are_counted_in_the_leaf_not_in_the_chunk() -> None:
    """A chunk that begins inside the leaf and reaches past its edge."""
    values = np.arange(70, dtype=np.uint8).reshape(7, 10)
    padded = np.zeros((8, 10), np.uint8)
    padded[:7] = values
    chunks = tuple(
        structs.replace(
            make_raw_chunks(padded[i : i + 4], 20, 10 * i)[0], box=((i, i + 4), (0, 10))
        )
        for i in (0, 4)
    )
    data = padded.tobytes()
    for at, box in ((5, ((0, 2), (0, 10))), (45, ((4, 6), (0, 10))), (65, ((6, 7), (0, 10)))):
        source = Memory({"f": flip_bit(data, at)})
        (damage,) = tx.verify(make_catalog(source, w=(values, chunks))).damages
        assert damage.box == box
    stored = flip_bit(zstandard.compress(values.tobytes()), 0)
    packed = Chunk(Extent("f", 0, len(stored)), ((0, 8), (0, 10)), ("zstd",))
    (damage,) = tx.verify(make_catalog(Memory({"f": stored}), w=(values, (packed,)))).damages
    assert damage.box == ((0, 7), (0, 10))


@pytest.mark.parametrize("n", [10, 2_000_000])
def test_a_trailing_checksum_is_compared(n: int) -> None:
    values = np.arange(n, dtype=np.int32)
    stored = values.tobytes() + crc32c(values.tobytes()).to_bytes(4, "little")
    extent = Extent("f", 0, len(stored))
    leaf = values, (Chunk(extent, full_box(values.shape), ("crc32c",), "C", True),)
    verified = tx.verify(make_catalog(Memory({"f": stored}), w=leaf))
    assert (verified.ok, verified.checked_bytes, verified.unchecked) == (True, len(stored), ())
    for at in (0, len(stored) // 2, len(stored) - 1):
        (damage,) = tx.verify(make_catalog(Memory({"f": flip_bit(stored, at)}), w=leaf)).damages
        assert damage.what.startswith("Expected crc32c `")
        assert (damage.start, damage.stop, damage.box) == (0, len(stored), ((0, n),))


@pytest.mark.parametrize("codecs", [("zstd",), ("crc32c", "zstd"), ("zstd", "crc32c")])
def test_compressed_chunks_are_decoded(codecs: Any) -> None:
    values = np.random.default_rng(0).standard_normal(300_000).astype(np.float32)
    stored = values.tobytes()
    for codec in reversed(codecs):
        if codec == "zstd":
            stored = zstandard.compress(stored)
        else:
            stored += crc32c(stored).to_bytes(4, "little")
    covered = "crc32c" in codecs
    chunk = Chunk(Extent("f", 3, 3 + len(stored)), full_box(values.shape), codecs, "C", covered)
    catalog = make_catalog(Memory({"f": b"???" + stored}), w=(values, (chunk,)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "SPLIT_BYTES", 1000)  # compressed chunks are not split
        verified = tx.verify(catalog)
    assert verified.ok
    counted = (len(stored), 0) if covered else (0, len(stored))
    assert (verified.checked_bytes, verified.unchecked_bytes) == counted
    broken = b"???" + flip_bit(stored, 0)
    (damage,) = tx.verify(make_catalog(Memory({"f": broken}), w=(values, (chunk,)))).damages
    assert (damage.leaf, damage.start, damage.stop) == ("w", 3, 3 + len(stored))
    other = structs.replace(chunk, box=((0, 300_001),))
    assert not tx.verify(make_catalog(Memory({"f": b"???" + stored}), w=(values, (other,)))).ok


def test_a_truncated_file_lists_each_leaf_that_lost_bytes() -> None:
    a, b, c = (np.arange(100, dtype=np.uint8) + i for i in range(3))
    data = a.tobytes() + b.tobytes() + c.tobytes()
    leaves = {
        "a": (a, make_raw_chunks(a, 10)),
        "b": (b, make_raw_chunks(b, 10, 100)),
        "c": (c, make_raw_chunks(c, 0, 200)),
        "d": (c, make_raw_chunks(c, 0, 0, "gone")),
        "e": (b, make_raw_chunks(b, 10, 0, "gone")),
    }
    source = Memory({"f": flip_bit(data, 105)[:125]})
    verified = tx.verify(make_catalog(source, **leaves))
    want, got = crc32c(data[100:110]), crc32c(flip_bit(data, 105)[100:110])
    assert [str(damage) for damage in verified.damages] == [
        f"Expected crc32c `{want:08x}`, got `{got:08x}`"
        " - at `b`, elements [0:10], file `f`, bytes 100-110",
        "Expected at least 200 bytes, the file has 125"
        " - at `b`, elements [25:100], file `f`, bytes 125-200",
        "Expected at least 300 bytes, the file has 125"
        " - at `c`, elements [0:100], file `f`, bytes 200-300",
        "Expected a data file, found none - at `d`, elements [0:100], file `gone`",
        "Expected a data file, found none - at `e`, elements [0:100], file `gone`",
    ]
    assert (verified.checked_bytes, verified.unchecked_bytes) == (120, 0)


def test_a_truncated_compressed_chunk_is_one_damage() -> None:
    values = np.arange(1000, dtype=np.int32)
    stored = zstandard.compress(values.tobytes())
    for known in (False, True):
        chunk = Chunk(Extent("f", 0, len(stored)), full_box(values.shape), ("zstd",))
        if known:
            chunk = structs.replace(chunk, sums=(crc32c(stored),), block=len(stored))
        source = Memory({"f": stored[:-1]})
        verified = tx.verify(make_catalog(source, w=(values, (chunk,))))
        (damage,) = verified.damages
        assert (
            damage.what == f"Expected at least {len(stored)} bytes, the file has {len(stored) - 1}"
        )
        assert verified.checked_bytes == verified.unchecked_bytes == 0


def test_unreadable_bytes_are_damage_and_the_rest_is_read() -> None:
    values = np.arange(400, dtype=np.uint8)
    leaves = {
        "a": (values, make_raw_chunks(values, 100)),
        "b": (values, make_raw_chunks(values, 100, 400)),
    }
    data = flip_bit(values.tobytes() * 2, 399)

    def fault(key: str, start: int, stop: int) -> None:
        if start < 120 and stop > 110:
            raise tx.SourceError("can't read `f`: Input/output error") from OSError(errno.EIO, "")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "CHECKED_BYTES", 50)
        verified = tx.verify(make_catalog(Watched(Memory({"f": data}), fault), **leaves))
    assert [(d.what[:15], d.leaf, d.start, d.stop) for d in verified.damages] == [
        ("can't read `f`:", "a", 100, 150),
        ("Expected crc32c", "a", 300, 400),
    ]


def test_of_leaves_read_together_only_the_unreadable_are_damaged() -> None:
    values = np.arange(10, dtype=np.uint8)
    leaves = {f"l{i}": (values, make_raw_chunks(values, 10, 10 * i)) for i in range(5)}

    def fault(key: str, start: int, stop: int) -> None:
        if start <= 25 < stop:
            raise tx.SourceError("can't read `f`: Input/output error") from OSError(errno.EIO, "")

    source = Watched(Memory({"f": values.tobytes() * 5}), fault)
    verified = tx.verify(make_catalog(source, **leaves))
    assert [(d.leaf, d.start, d.stop) for d in verified.damages] == [("l2", 20, 30)]


def test_a_store_that_fails_or_changes_is_an_error(tmp_path: Path) -> None:
    values = np.arange(400, dtype=np.uint8)

    def fault(key: str, start: int, stop: int) -> None:
        raise tx.SourceError("can't read `f`: gone") from OSError(errno.ECONNRESET, "")

    source = Watched(Memory({"f": values.tobytes()}), fault)
    with pytest.raises(tx.SourceError, match="gone"):
        tx.verify(make_catalog(source, w=(values, make_raw_chunks(values, 100))))
    (tmp_path / "f").write_bytes(values.tobytes())
    catalog = make_catalog(Local(tmp_path), w=(values, make_raw_chunks(values, 100)))
    assert tx.verify(catalog).ok
    os.utime(tmp_path / "f", ns=(0, 0))
    with pytest.raises(tx.SourceError, match="changed since"):
        tx.verify(catalog)


def test_a_large_file_is_read_in_small_requests() -> None:
    values = np.zeros(9_000_000, np.uint8)
    for leaf in (make_raw_chunks(values, 9_000_000), make_raw_chunks(values)):
        source = Watched(Memory({"f": values.tobytes()}))
        assert tx.verify(make_catalog(source, w=(values, leaf)), threads=1).ok
        assert max(stop - start for _, start, stop in source.reads) <= 2 << 20


def test_large_gaps_between_leaves_are_not_read() -> None:
    values = np.arange(10, dtype=np.uint8)
    source = Watched(Memory({"f": values.tobytes() + bytes(100_000) + values.tobytes()}))
    leaves = {
        "a": (values, make_raw_chunks(values)),
        "b": (values, make_raw_chunks(values, 0, 100_010)),
    }
    assert tx.verify(make_catalog(source, **leaves), threads=1).ok
    assert source.reads == [("f", 0, 10), ("f", 100_010, 100_020)]


def test_no_read_starts_after_the_store_failed() -> None:
    values = np.arange(10, dtype=np.uint8)
    leaves = {f"l{i}": (values, make_raw_chunks(values, 0, 0, f"f{i:02}")) for i in range(50)}

    def fault(key: str, start: int, stop: int) -> None:
        if key == "f00":
            raise tx.SourceError("can't read `f00`: gone")
        threading.Event().wait(0.05)  # gives the other thread time to notice the error

    source = Watched(Memory({f"f{i:02}": values.tobytes() for i in range(50)}), fault)
    with pytest.raises(tx.SourceError, match="f00"):
        tx.verify(make_catalog(source, **leaves), threads=2)
    assert len(source.reads) < 50


def test_leaves_with_the_same_name_are_all_verified() -> None:
    values = np.arange(10, dtype=np.uint8)
    entries = tuple(LeafEntry("w", ("w",), (10,), values.dtype, handle=i) for i in range(2))
    data = values.tobytes() + flip_bit(values.tobytes(), 3)
    catalog = Catalog(
        "here", "made", "a test", entries, Memory({"f": data}),
        lambda es, _=None: {e.name: make_raw_chunks(values, 10, 10 * e.handle) for e in es},
    )  # fmt: skip
    verified = tx.verify(catalog)
    assert [(d.leaf, d.start) for d in verified.damages] == [("w", 10)]
    assert (verified.leaves, verified.checked_bytes) == (2, 20)


def test_progress_ends_with_all_bytes() -> None:
    values = np.zeros(5_000_000, np.uint8)
    seen: list[tuple[int, int]] = []
    catalog = make_catalog(Memory({"f": values.tobytes()}), w=(values, make_raw_chunks(values)))
    tx.verify(catalog, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (5_000_000, 5_000_000)


def test_invalid_arguments_are_refused() -> None:
    with pytest.raises(tx.UsageError, match="Expected threads= an int of at least 1, got 0"):
        tx.verify(CKPT, threads=0)
    with pytest.raises(tx.UsageError, match="as checkpoint, got int"):
        tx.verify(3)  # type: ignore[arg-type]


def test_a_recipe_and_an_empty_checkpoint_are_sound() -> None:
    assert tx.verify(tx.Recipe(lambda: {"w": np.ones(3)})).ok
    verified = tx.verify(make_catalog(Memory({})))
    assert (verified.ok, verified.leaves, verified.checked_bytes) == (True, 0, 0)


def test_damage_found_by_the_format_comes_first() -> None:
    values = np.arange(10, dtype=np.uint8)
    catalog = make_catalog(Memory({"f": bytes(10)}), w=(values, make_raw_chunks(values, 10)))
    found = tx.Corrupted("Expected a file, found none", file="notes")
    catalog = Catalog(
        catalog.url, catalog.format, catalog.evidence, catalog.entries, catalog.source,
        catalog.locator, audit=lambda: [found],
    )  # fmt: skip
    assert [d.file for d in tx.verify(catalog).damages] == ["notes", "f"]


def drop_time(verified: tx.Verified) -> str:
    took = f" ({verified.seconds:.2f} s)"
    assert took in str(verified)
    return str(verified).replace(took, "")


def test_the_report_has_a_verdict_the_damage_and_the_unverifiable_bytes() -> None:
    values = np.arange(100, dtype=np.uint8)
    data = values.tobytes()
    sound = tx.verify(make_catalog(Memory({"f": data}), w=(values, make_raw_chunks(values, 4))))
    assert drop_time(sound) == "here is sound: all 100 bytes of 1 leaf agree with their checksum"
    leaves = {"v": (values, make_raw_chunks(values)), "w": (values, make_raw_chunks(values, 4))}
    partly = tx.verify(make_catalog(Memory({"f": data}), **leaves))
    assert drop_time(partly) == (
        "here shows no damage: 100 bytes agree with their checksum\n"
        "  100 bytes of 1 leaf have none: `v`"
    )
    bare = tx.verify(make_catalog(Memory({"f": data}), w=(values, make_raw_chunks(values))))
    assert drop_time(bare) == "here shows no damage, but none of its 100 bytes has a checksum"
    damaged = tx.verify(make_catalog(Memory({"f": bytes(100)}), **leaves))
    lines = drop_time(damaged).splitlines()
    assert lines[0] == "here is damaged: 25 damages in 1 of 2 leaves"
    assert lines[1] == f"  {damaged.damages[0]}"
    assert lines[20:] == [
        f"  {damaged.damages[19]}",
        "  and 5 more (`verified.damages` has them all)",
        "  100 bytes were compared with their checksum",
        "  100 bytes of 1 leaf have none: `v`",
    ]
