"""`verify`: all damage is listed, nothing sound is, and what nobody could check is counted."""

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
from helpers import CORPUS
from helpers import flip_bit as flipped
from stored_leaves import Restore as Asked
from stored_leaves import block_checksums as sums
from stored_leaves import restores as _asked
from stored_leaves import small_sizes as _small
from templax._catalog.catalog import Catalog
from templax._catalog.entry import Chunk, Extent, LeafEntry
from templax._codecs.crc32c import crc32c
from templax._core.boxes import box_around, full_box, span_of
from templax.storage import Local, Memory
from templax.testing import Watched, strategies


def catalog_over(source: Any, **leaves: tuple[np.ndarray, tuple[Chunk, ...]]) -> Catalog:
    """A checkpoint of these leaves, whose chunks are in a source."""
    entries = tuple(LeafEntry(n, (n,), v.shape, v.dtype) for n, (v, _) in leaves.items())
    return Catalog(
        "here",
        "made",
        "a test",
        entries,
        source,
        lambda es, _=None: {e.name: leaves[e.name][1] for e in es},
    )


def raw(values: np.ndarray, block: int = 0, start: int = 0, file: str = "f") -> tuple[Chunk, ...]:
    """All of an array, with a checksum of each block; of block 0 without any."""
    stored = values.tobytes()
    extent = Extent(file, start, start + len(stored))
    if not block:
        return (Chunk(extent, full_box(values.shape)),)
    return (Chunk(extent, full_box(values.shape), (), "C", True, sums(stored, block), block),)


# --- the corpus


SOUND = [
    path
    for case in sorted(CORPUS.glob("orbax-*"))
    if "manager" not in case.name and "crash" not in case.name
    for path in [case / "ckpt"]
] + sorted(CORPUS.glob("safetensors-*/*.safetensors"))


@pytest.mark.parametrize("path", SOUND, ids=lambda path: path.parent.name)
def test_a_sound_checkpoint_has_no_damage_and_the_plan_agrees_on_what_is_unverified(
    path: Path,
) -> None:
    catalog = tx.open(path)
    verified = tx.verify(catalog)
    assert (verified.ok, verified.damages) == (True, ())
    assert set(verified.unchecked) == set(tx.plan(catalog, catalog.template()).unverified)
    assert (verified.unchecked_bytes > 0) == bool(verified.unchecked)
    assert verified.leaves == sum(entry.kind != "string" for entry in catalog.entries)


BIG = "at `state.params.big`"
DAMAGED = {
    "chunk_missing": (
        f"Expected a chunk, found none - {BIG}, file `state.params.big/0.0`",
        (0, 1690),
    ),
    "data_missing": (
        f"Expected a data file, found none - {BIG}, elements [0:128, 0:64],"
        " file `ocdbt.process_0/d/bb45c012f53cd0cc35e2d6909e253f96`",
        (1690, 0),
    ),
    "data_truncated": (
        f"Expected at least 32768 bytes, the file has 16384 - {BIG}, elements [64:128, 0:64],"
        " file `ocdbt.process_0/d/a5ca20b7bcd0904cfb5d8a7ea5f1bbe5`, bytes 16384-32768",
        (1636, 16384),
    ),
    "huge_shape": (
        "Expected a chunk of 281474976710656 bytes, got 30305 that can't decode to as many"
        f" - {BIG}, file `state.params.big/0.0`, bytes 0-30305",
        (0, 1690),
    ),
    "process_dir_missing": (
        f"Expected a data file, found none - {BIG},"
        " file `ocdbt.process_1/d/9d1bdb63464c32204bd5f05930a70945`",
        (2041, 15319),
    ),
    "zstd_bitflip": (
        "Expected a zstd frame, got bytes that do not decode"
        f" (zstd decompress error: Data corruption detected) - {BIG}, elements [0:128, 0:64],"
        " file `state.params.big/0.0`, bytes 0-30305",
        (0, 31995),
    ),
    "zstd_bomb": (
        f"Expected 32768 decoded bytes, got more - {BIG}, elements [0:128, 0:64],"
        " file `state.params.big/0.0`, bytes 0-32786",
        (0, 34476),
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_of_the_corpus_is_listed_and_the_other_leaves_are_read(case: str) -> None:
    verified = tx.verify(CORPUS / f"damaged-{case}" / "ckpt")
    said, counted = DAMAGED[case]
    assert [str(damage) for damage in verified.damages] == [said]
    assert (verified.checked_bytes, verified.unchecked_bytes) == counted
    assert not verified.ok


def test_what_no_checksum_covers_can_be_altered_and_is_counted() -> None:
    verified = tx.verify(CORPUS / "damaged-raw_bitflip" / "ckpt")
    assert verified.ok
    assert verified.unchecked == ("state.params.big",)
    assert verified.unchecked_bytes == 32768


@pytest.mark.parametrize(
    "case",
    ["manifest_bitflip", "metadata_json", "node_bitflip", "path_escape", "leaf_without_array"],
)
def test_what_can_not_be_opened_is_the_error_of_open(case: str) -> None:
    path = CORPUS / f"damaged-{case}" / "ckpt"
    with pytest.raises(tx.Corrupted) as opened:
        tx.open(path)
    with pytest.raises(tx.Corrupted) as verified:
        tx.verify(path)
    assert str(verified.value) == str(opened.value)


def test_of_a_directory_of_steps_one_is_to_be_named() -> None:
    with pytest.raises(
        tx.UnknownFormat, match=r'the latest committed step is 20; hint: open ".*20'
    ):
        tx.verify(CORPUS / "orbax-0.12.8-manager" / "ckpt")


def test_an_unfinished_save_is_verified_only_if_it_is_opened_on_purpose() -> None:
    path = CORPUS / "damaged-uncommitted" / "ckpt"
    with pytest.raises(tx.Uncommitted):
        tx.verify(path)
    assert tx.verify(tx.open(path, uncommitted="allow")).ok


# --- any leaf, any damage


@given(_asked(), st.data())
def test_exactly_the_blocks_with_a_flipped_byte_are_listed(asked: Asked, data: Any) -> None:
    """Wherever they are, however many; and every byte counts as one of two kinds."""
    objects, expected = dict(asked.objects), []
    checked = unchecked = 0
    for leaf in asked.leaves:
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
                objects[extent.key] = flipped(objects[extent.key], at)
                place = extent.key, extent.start + first, extent.start + last
                expected.append((leaf.pair.entry.name, *place))
    leaves = {leaf.pair.entry.name: (leaf.values, leaf.chunks) for leaf in asked.leaves}
    source = Watched(Memory(objects))
    with _small(asked.sizes), pytest.MonkeyPatch.context() as patch:
        for name in ("CHECKED_BYTES", "SPLIT_BYTES", "GAP_BYTES"):
            patch.setattr(f"templax._audit.verify.{name}", asked.sizes[name])
        verified = tx.verify(catalog_over(source, **leaves), threads=asked.options["threads"])
    found = [(d.leaf, d.file, d.start, d.stop) for d in verified.damages]
    assert sorted(found) == sorted(expected)
    assert [name for name, *_ in found] == sorted(name for name, *_ in found)
    assert (verified.checked_bytes, verified.unchecked_bytes) == (checked, unchecked)
    assert set(verified.unchecked) == {
        leaf.pair.entry.name for leaf in asked.leaves if any(not c.sums for c in leaf.chunks)
    }
    stored = [c.extent for leaf in asked.leaves for c in leaf.chunks if c.extent.inline is None]
    seen = {key: np.zeros(len(value), int) for key, value in objects.items()}
    for key, start, stop in source.reads:
        seen[key][start:stop] += 1
    assert all((seen[e.key][e.start : e.stop] == 1).all() for e in stored)
    assert all((count <= 1).all() for count in seen.values())


@given(strategies.shapes(6, 3).filter(lambda shape: 0 not in shape), st.data())
def test_a_box_around_elements_is_the_smallest_that_has_them(shape: Any, data: Any) -> None:
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


def test_a_damage_says_which_elements_it_is_about() -> None:
    values = np.arange(20 * 8, dtype=np.float32).reshape(20, 8)
    source = Memory({"f": flipped(values.tobytes(), 9 * 32)})
    verified = tx.verify(catalog_over(source, w=(values, raw(values, 4 * 32))))
    (damage,) = verified.damages
    assert damage.box == ((8, 12), (0, 8))
    want, got = crc32c(values[8:12].tobytes()), crc32c(bytes(source.read("f", 256, 384)))
    assert str(damage) == (
        f"Expected crc32c `{want:08x}`, got `{got:08x}`"
        " - at `w`, elements [8:12, 0:8], file `f`, bytes 256-384"
    )


def test_elements_are_those_of_the_leaf_whatever_the_chunk() -> None:
    """Of a chunk that begins in the middle, and reaches past the edge."""
    values = np.arange(70, dtype=np.uint8).reshape(7, 10)
    padded = np.zeros((8, 10), np.uint8)
    padded[:7] = values
    chunks = tuple(
        structs.replace(raw(padded[i : i + 4], 20, 10 * i)[0], box=((i, i + 4), (0, 10)))
        for i in (0, 4)
    )
    data = padded.tobytes()
    for at, box in ((5, ((0, 2), (0, 10))), (45, ((4, 6), (0, 10))), (65, ((6, 7), (0, 10)))):
        source = Memory({"f": flipped(data, at)})
        (damage,) = tx.verify(catalog_over(source, w=(values, chunks))).damages
        assert damage.box == box
    stored = flipped(zstandard.compress(values.tobytes()), 0)
    packed = Chunk(Extent("f", 0, len(stored)), ((0, 8), (0, 10)), ("zstd",))
    (damage,) = tx.verify(catalog_over(Memory({"f": stored}), w=(values, (packed,)))).damages
    assert damage.box == ((0, 7), (0, 10))


# --- each kind of checksum


@pytest.mark.parametrize("n", [10, 2_000_000])
def test_a_checksum_that_follows_a_chunk_is_compared(n: int) -> None:
    values = np.arange(n, dtype=np.int32)
    stored = values.tobytes() + crc32c(values.tobytes()).to_bytes(4, "little")
    extent = Extent("f", 0, len(stored))
    leaf = values, (Chunk(extent, full_box(values.shape), ("crc32c",), "C", True),)
    verified = tx.verify(catalog_over(Memory({"f": stored}), w=leaf))
    assert (verified.ok, verified.checked_bytes, verified.unchecked) == (True, len(stored), ())
    for at in (0, len(stored) // 2, len(stored) - 1):
        (damage,) = tx.verify(catalog_over(Memory({"f": flipped(stored, at)}), w=leaf)).damages
        assert damage.what.startswith("Expected crc32c `")
        assert (damage.start, damage.stop, damage.box) == (0, len(stored), ((0, n),))


@pytest.mark.parametrize("codecs", [("zstd",), ("crc32c", "zstd"), ("zstd", "crc32c")])
def test_compressed_chunks_are_decoded_to_see_that_they_decode(codecs: Any) -> None:
    values = np.random.default_rng(0).standard_normal(300_000).astype(np.float32)
    stored = values.tobytes()
    for codec in reversed(codecs):
        if codec == "zstd":
            stored = zstandard.compress(stored)
        else:
            stored += crc32c(stored).to_bytes(4, "little")
    covered = "crc32c" in codecs
    chunk = Chunk(Extent("f", 3, 3 + len(stored)), full_box(values.shape), codecs, "C", covered)
    catalog = catalog_over(Memory({"f": b"???" + stored}), w=(values, (chunk,)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("templax._audit.verify.SPLIT_BYTES", 1000)  # they are decoded in one go
        verified = tx.verify(catalog)
    assert verified.ok
    counted = (len(stored), 0) if covered else (0, len(stored))
    assert (verified.checked_bytes, verified.unchecked_bytes) == counted
    broken = b"???" + flipped(stored, 0)
    (damage,) = tx.verify(catalog_over(Memory({"f": broken}), w=(values, (chunk,)))).damages
    assert (damage.leaf, damage.start, damage.stop) == ("w", 3, 3 + len(stored))
    other = structs.replace(chunk, box=((0, 300_001),))
    assert not tx.verify(catalog_over(Memory({"f": b"???" + stored}), w=(values, (other,)))).ok


# --- files


def test_of_a_cut_file_each_leaf_that_lost_bytes_is_listed_and_the_rest_is_checked() -> None:
    a, b, c = (np.arange(100, dtype=np.uint8) + i for i in range(3))
    data = a.tobytes() + b.tobytes() + c.tobytes()
    leaves = {
        "a": (a, raw(a, 10)),
        "b": (b, raw(b, 10, 100)),
        "c": (c, raw(c, 0, 200)),
        "d": (c, raw(c, 0, 0, "gone")),
        "e": (b, raw(b, 10, 0, "gone")),
    }
    source = Memory({"f": flipped(data, 105)[:125]})
    verified = tx.verify(catalog_over(source, **leaves))
    want, got = crc32c(data[100:110]), crc32c(flipped(data, 105)[100:110])
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


def test_a_compressed_chunk_that_is_cut_is_one_damage() -> None:
    values = np.arange(1000, dtype=np.int32)
    stored = zstandard.compress(values.tobytes())
    for known in (False, True):
        chunk = Chunk(Extent("f", 0, len(stored)), full_box(values.shape), ("zstd",))
        if known:
            chunk = structs.replace(chunk, sums=(crc32c(stored),), block=len(stored))
        source = Memory({"f": stored[:-1]})
        verified = tx.verify(catalog_over(source, w=(values, (chunk,))))
        (damage,) = verified.damages
        assert (
            damage.what == f"Expected at least {len(stored)} bytes, the file has {len(stored) - 1}"
        )
        assert verified.checked_bytes == verified.unchecked_bytes == 0


def test_bytes_that_the_disk_no_longer_gives_are_damage_and_the_rest_is_read() -> None:
    values = np.arange(400, dtype=np.uint8)
    leaves = {"a": (values, raw(values, 100)), "b": (values, raw(values, 100, 400))}
    data = flipped(values.tobytes() * 2, 399)

    def fault(key: str, start: int, stop: int) -> None:
        if start < 120 and stop > 110:
            raise tx.SourceError("can't read `f`: Input/output error") from OSError(errno.EIO, "")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("templax._audit.verify.CHECKED_BYTES", 50)
        verified = tx.verify(catalog_over(Watched(Memory({"f": data}), fault), **leaves))
    assert [(d.what[:15], d.leaf, d.start, d.stop) for d in verified.damages] == [
        ("can't read `f`:", "a", 100, 150),
        ("Expected crc32c", "a", 300, 400),
    ]


def test_of_small_leaves_read_together_only_those_that_can_not_be_read_are_damaged() -> None:
    values = np.arange(10, dtype=np.uint8)
    leaves = {f"l{i}": (values, raw(values, 10, 10 * i)) for i in range(5)}

    def fault(key: str, start: int, stop: int) -> None:
        if start <= 25 < stop:
            raise tx.SourceError("can't read `f`: Input/output error") from OSError(errno.EIO, "")

    source = Watched(Memory({"f": values.tobytes() * 5}), fault)
    verified = tx.verify(catalog_over(source, **leaves))
    assert [(d.leaf, d.start, d.stop) for d in verified.damages] == [("l2", 20, 30)]


def test_a_store_that_fails_or_changes_is_an_error(tmp_path: Path) -> None:
    values = np.arange(400, dtype=np.uint8)

    def fault(key: str, start: int, stop: int) -> None:
        raise tx.SourceError("can't read `f`: gone") from OSError(errno.ECONNRESET, "")

    source = Watched(Memory({"f": values.tobytes()}), fault)
    with pytest.raises(tx.SourceError, match="gone"):
        tx.verify(catalog_over(source, w=(values, raw(values, 100))))
    (tmp_path / "f").write_bytes(values.tobytes())
    catalog = catalog_over(Local(tmp_path), w=(values, raw(values, 100)))
    assert tx.verify(catalog).ok
    os.utime(tmp_path / "f", ns=(0, 0))
    with pytest.raises(tx.SourceError, match="changed since"):
        tx.verify(catalog)


def test_no_more_than_a_few_mebibytes_are_held_of_a_file() -> None:
    values = np.zeros(9_000_000, np.uint8)
    for leaf in (raw(values, 9_000_000), raw(values)):
        source = Watched(Memory({"f": values.tobytes()}))
        assert tx.verify(catalog_over(source, w=(values, leaf)), threads=1).ok
        assert max(stop - start for _, start, stop in source.reads) <= 2 << 20


def test_what_lies_between_leaves_far_apart_is_not_read() -> None:
    values = np.arange(10, dtype=np.uint8)
    source = Watched(Memory({"f": values.tobytes() + bytes(100_000) + values.tobytes()}))
    leaves = {"a": (values, raw(values)), "b": (values, raw(values, 0, 100_010))}
    assert tx.verify(catalog_over(source, **leaves), threads=1).ok
    assert source.reads == [("f", 0, 10), ("f", 100_010, 100_020)]


def test_what_has_not_begun_when_the_store_fails_is_not_read() -> None:
    values = np.arange(10, dtype=np.uint8)
    leaves = {f"l{i}": (values, raw(values, 0, 0, f"f{i:02}")) for i in range(50)}

    def fault(key: str, start: int, stop: int) -> None:
        if key == "f00":
            raise tx.SourceError("can't read `f00`: gone")
        threading.Event().wait(0.05)  # time for the error to be seen

    source = Watched(Memory({f"f{i:02}": values.tobytes() for i in range(50)}), fault)
    with pytest.raises(tx.SourceError, match="f00"):
        tx.verify(catalog_over(source, **leaves), threads=2)
    assert len(source.reads) < 50


# --- what is called, and what it says


def test_leaves_of_one_name_are_all_verified() -> None:
    values = np.arange(10, dtype=np.uint8)
    entries = tuple(LeafEntry("w", ("w",), (10,), values.dtype, handle=i) for i in range(2))
    data = values.tobytes() + flipped(values.tobytes(), 3)
    catalog = Catalog(
        "here", "made", "a test", entries, Memory({"f": data}),
        lambda es, _=None: {e.name: raw(values, 10, 10 * e.handle) for e in es},
    )  # fmt: skip
    verified = tx.verify(catalog)
    assert [(d.leaf, d.start) for d in verified.damages] == [("w", 10)]
    assert (verified.leaves, verified.checked_bytes) == (2, 20)


def test_progress_ends_with_all_bytes() -> None:
    values = np.zeros(5_000_000, np.uint8)
    seen: list[tuple[int, int]] = []
    catalog = catalog_over(Memory({"f": values.tobytes()}), w=(values, raw(values)))
    tx.verify(catalog, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (5_000_000, 5_000_000)


def test_options_that_mean_nothing_are_refused() -> None:
    with pytest.raises(tx.UsageError, match="Expected threads= an int of at least 1, got 0"):
        tx.verify(CORPUS / "orbax-0.12.8-default" / "ckpt", threads=0)
    with pytest.raises(tx.UsageError, match="as checkpoint, got int"):
        tx.verify(3)  # type: ignore[arg-type]


def test_a_recipe_and_an_empty_checkpoint_are_sound() -> None:
    assert tx.verify(tx.Recipe(lambda: {"w": np.ones(3)})).ok
    verified = tx.verify(catalog_over(Memory({})))
    assert (verified.ok, verified.leaves, verified.checked_bytes) == (True, 0, 0)


def test_what_a_format_finds_beside_its_leaves_comes_first() -> None:
    values = np.arange(10, dtype=np.uint8)
    catalog = catalog_over(Memory({"f": bytes(10)}), w=(values, raw(values, 10)))
    found = tx.Corrupted("Expected a file, found none", file="notes")
    catalog = Catalog(
        catalog.url, catalog.format, catalog.evidence, catalog.entries, catalog.source,
        catalog.locator, audit=lambda: [found],
    )  # fmt: skip
    assert [d.file for d in tx.verify(catalog).damages] == ["notes", "f"]


def _without_time(verified: tx.Verified) -> str:
    took = f" ({verified.seconds:.2f} s)"
    assert took in str(verified)
    return str(verified).replace(took, "")


def test_the_report_is_a_verdict_what_is_damaged_and_what_nobody_checked() -> None:
    values = np.arange(100, dtype=np.uint8)
    data = values.tobytes()
    sound = tx.verify(catalog_over(Memory({"f": data}), w=(values, raw(values, 4))))
    assert (
        _without_time(sound) == "here is sound: all 100 bytes of 1 leaf agree with their checksum"
    )
    leaves = {"v": (values, raw(values)), "w": (values, raw(values, 4))}
    partly = tx.verify(catalog_over(Memory({"f": data}), **leaves))
    assert _without_time(partly) == (
        "here shows no damage: 100 bytes agree with their checksum\n"
        "  100 bytes of 1 leaf have none: `v`"
    )
    bare = tx.verify(catalog_over(Memory({"f": data}), w=(values, raw(values))))
    assert _without_time(bare) == "here shows no damage, but none of its 100 bytes has a checksum"
    damaged = tx.verify(catalog_over(Memory({"f": bytes(100)}), **leaves))
    lines = _without_time(damaged).splitlines()
    assert lines[0] == "here is damaged: 25 damages in 1 of 2 leaves"
    assert lines[1] == f"  {damaged.damages[0]}"
    assert lines[20:] == [
        f"  {damaged.damages[19]}",
        "  and 5 more (`verified.damages` has them all)",
        "  100 bytes were compared with their checksum",
        "  100 bytes of 1 leaf have none: `v`",
    ]


# --- what `save` wrote


@pytest.fixture(params=[None, "zstd"])
def saved(request: Any, tmp_path: Path) -> Path:
    tree = {
        "w": np.random.default_rng(0).random((300, 400), np.float32),
        "b": np.arange(7, dtype=np.int16),
        "name": "text",
        "none": None,
    }
    tx.save(tmp_path / "ckpt", tree, compression=request.param)
    return tmp_path / "ckpt"


def test_what_was_saved_is_sound_to_the_last_byte(saved: Path) -> None:
    verified = tx.verify(saved)
    assert (verified.ok, verified.unchecked_bytes, verified.unchecked) == (True, 0, ())
    assert str(verified).startswith(f"{saved} is sound: all ")


def test_a_byte_that_changes_in_any_file_is_found(saved: Path) -> None:
    """But for the padding between leaves, and what says only that the save was finished."""
    catalog = tx.open(saved)
    extents = {n: c[0].extent for n, c in catalog.locate(catalog.leaves.values()).items() if c}
    for file in sorted(path for path in saved.rglob("*") if path.is_file()):
        name, data = file.relative_to(saved).as_posix(), file.read_bytes()
        if name == "commit_success.txt":
            continue
        places = {0: None, len(data) - 1: None}
        if name.startswith("d/"):
            places = {e.start + e.nbytes // 2: n for n, e in extents.items() if e.key == name}
            places[len(data) - 1] = None  # of the index node
        for at, leaf in places.items():
            file.write_bytes(flipped(data, at))
            try:
                found = [(d.leaf, d.file) for d in tx.verify(saved).damages]
            except tx.Corrupted as error:  # nothing can be opened without the index
                found = [(error.leaf, error.file)]
            assert found == [(leaf, name)], (name, at)
        file.write_bytes(data)
    assert tx.verify(saved).ok


def test_files_that_were_lost_or_grew_are_listed(saved: Path) -> None:
    (data,) = (saved / "d").iterdir()
    key, content = f"d/{data.name}", data.read_bytes()
    data.write_bytes(content + b"more")
    (saved / "_METADATA").unlink()
    assert [str(damage) for damage in tx.verify(saved).damages] == [
        "Expected a file, found none - file `_METADATA`",
        f"Expected a file of {len(content)} bytes, got {len(content) + 4} - file `{key}`",
    ]
    data.unlink()
    damages = tx.verify(saved).damages
    assert {(d.leaf, d.file) for d in damages} >= {("b", key), ("w", key), (None, "_METADATA")}
    assert all(d.what.endswith("found none") for d in damages)
    data.write_bytes(content[: len(content) // 3])
    damages = tx.verify(saved).damages
    lost = [d for d in damages if d.leaf == "w" and d.what.startswith("Expected at least")]
    assert [(d.file, d.start) for d in lost] == [(key, len(content) // 3)]


def test_what_an_index_says_of_a_chunk_that_can_not_be_is_listed(tmp_path: Path) -> None:
    from templax.formats.orbax import checksum_index

    tree = {"w": np.zeros(1000, np.float32), "v": np.ones(1000, np.float32)}
    tx.save(tmp_path / "ckpt", tree, compression="zstd")
    file = tmp_path / "ckpt" / checksum_index.INDEX_FILE
    index = checksum_index.decode_index(memoryview(file.read_bytes()))
    column = np.frombuffer(index.nbytes, "<u8").copy()
    column[index.paths.index(("w",))] = 1 << 20
    size = tmp_path / "ckpt" / index.files[0][0]
    with size.open("r+b") as data:
        data.truncate(1 << 21)
    files = [(index.files[0][0], 1 << 21)]
    file.write_bytes(
        checksum_index.encode_index(structs.replace(index, nbytes=column.tobytes(), files=files))
    )
    damages = tx.verify(tmp_path / "ckpt").damages
    assert [(d.leaf, d.what) for d in damages] == [
        ("w", "Expected 4000 bytes compressed, got 1048576")
    ]
