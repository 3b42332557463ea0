"""`verify` of the corpus and of saved checkpoints."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from msgspec import structs

import templax as tx
from helpers import CORPUS, flip_bit, mark_slow
from limits import run_limited
from templax._codecs.crc32c import crc32c

SOUND = [
    path
    for case in sorted(CORPUS.glob("orbax-*"))
    if "manager" not in case.name and "crash" not in case.name
    for path in [case / "ckpt"]
] + sorted(CORPUS.glob("safetensors-*/*.safetensors"))


@pytest.mark.parametrize("path", SOUND, ids=lambda path: path.parent.name)
def test_a_sound_checkpoint_has_no_damage(
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
def test_damage_in_the_corpus_is_listed_and_other_leaves_are_read(case: str) -> None:
    verified = tx.verify(CORPUS / f"damaged-{case}" / "ckpt")
    said, counted = DAMAGED[case]
    assert [str(damage) for damage in verified.damages] == [said]
    assert (verified.checked_bytes, verified.unchecked_bytes) == counted
    assert not verified.ok


def test_bytes_without_a_checksum_are_counted_as_unverifiable() -> None:
    verified = tx.verify(CORPUS / "damaged-raw_bitflip" / "ckpt")
    assert verified.ok
    assert verified.unchecked == ("state.params.big",)
    assert verified.unchecked_bytes == 32768


@pytest.mark.parametrize(
    "case",
    ["manifest_bitflip", "metadata_json", "node_bitflip", "path_escape", "leaf_without_array"],
)
def test_a_checkpoint_that_cannot_be_opened_raises_the_error_of_open(case: str) -> None:
    path = CORPUS / f"damaged-{case}" / "ckpt"
    with pytest.raises(tx.Corrupted) as opened:
        tx.open(path)
    with pytest.raises(tx.Corrupted) as verified:
        tx.verify(path)
    assert str(verified.value) == str(opened.value)


def test_a_directory_of_steps_is_refused() -> None:
    with pytest.raises(
        tx.UnknownFormat, match=r'the latest committed step is 20; hint: open ".*20'
    ):
        tx.verify(CORPUS / "orbax-0.12.8-manager" / "ckpt")


def test_an_uncommitted_checkpoint_is_verified_only_if_asked() -> None:
    path = CORPUS / "damaged-uncommitted" / "ckpt"
    with pytest.raises(tx.Uncommitted):
        tx.verify(path)
    assert tx.verify(tx.open(path, uncommitted="allow")).ok


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


def test_every_byte_of_a_saved_checkpoint_is_verified(saved: Path) -> None:
    verified = tx.verify(saved)
    assert (verified.ok, verified.unchecked_bytes, verified.unchecked) == (True, 0, ())
    assert str(verified).startswith(f"{saved} is sound: all ")


def test_a_changed_byte_in_any_file_is_found(saved: Path) -> None:
    """Except in the padding between leaves and in the commit marker."""
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
            file.write_bytes(flip_bit(data, at))
            try:
                found = [(d.leaf, d.file) for d in tx.verify(saved).damages]
            except tx.Corrupted as error:  # the index is needed to open the checkpoint
                found = [(error.leaf, error.file)]
            assert found == [(leaf, name)], (name, at)
        file.write_bytes(data)
    assert tx.verify(saved).ok


def test_missing_and_longer_files_are_listed(saved: Path) -> None:
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


def test_an_impossible_chunk_size_in_the_index_is_listed(tmp_path: Path) -> None:
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


def write_zarr3(path: Path, codecs: list[dict[str, Any]], nbytes: int, data: bytes) -> None:
    """A checkpoint of one array of bytes, in one chunk."""
    grid = {"name": "regular", "configuration": {"chunk_shape": [nbytes]}}
    meta = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [nbytes],
        "data_type": "uint8",
        "chunk_grid": grid,
        "chunk_key_encoding": {"name": "default"},
        "codecs": [{"name": "bytes"}, *codecs],
        "fill_value": 0,
    }
    path.joinpath("a", "c").mkdir(parents=True)
    path.joinpath("a", "zarr.json").write_text(json.dumps(meta))
    path.joinpath("a", "c", "0").write_bytes(data)


ZSTD = {"name": "zstd", "configuration": {"level": 1, "checksum": False}}
GZIP = {"name": "gzip", "configuration": {"level": 1}}
CRC = {"name": "crc32c"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "codecs", [[ZSTD], [GZIP, CRC], *mark_slow([ZSTD, CRC], [GZIP], [GZIP, CRC, CRC])]
)
def test_a_chunk_larger_than_memory_is_decoded_a_block_at_a_time(
    tmp_path: Path, codecs: list[dict[str, Any]]
) -> None:
    nbytes = 600 << 20
    pieces = zlib.compressobj(1, wbits=31) if GZIP in codecs else zstandard.ZstdCompressor()
    packer = pieces if GZIP in codecs else pieces.compressobj(size=nbytes)  # pyright: ignore
    data = b"".join(packer.compress(bytes(1 << 20)) for _ in range(600)) + packer.flush()
    for _ in range(codecs.count(CRC)):
        data += crc32c(data).to_bytes(4, "little")
    write_zarr3(tmp_path, codecs, nbytes, data)

    found = run_limited("print(tx.verify('.').ok)", seconds=8, megabytes=100, cwd=tmp_path)

    assert found.stdout == "True\n"


def test_many_tiny_gzip_members_take_little_time(tmp_path: Path) -> None:
    data = gzip.compress(b"") * 45_000
    assert len(data) < 10**6
    write_zarr3(tmp_path, [GZIP], 10**6, data + gzip.compress(bytes(10**6)))

    found = run_limited("print(tx.verify('.').ok)", cwd=tmp_path)

    assert found.stdout == "True\n"


@pytest.mark.slow
@pytest.mark.parametrize("packer", [ZSTD, GZIP], ids=["zstd", "gzip"])
@pytest.mark.parametrize("count", [1, *mark_slow(2)])
def test_checksums_inside_compressed_bytes_are_compared_piece_by_piece(
    tmp_path: Path, packer: dict[str, Any], count: int
) -> None:
    nbytes = 1 << 26
    content = bytearray(nbytes)
    for _ in range(count):
        content += crc32c(content).to_bytes(4, "little")
    pack = zstandard.compress if packer is ZSTD else gzip.compress
    write_zarr3(tmp_path, [*[CRC] * count, packer], nbytes, pack(bytes(content)))

    found = run_limited("print(tx.verify('.').ok)", seconds=8, megabytes=40, cwd=tmp_path)

    assert found.stdout == "True\n"
    content[-1] ^= 1
    tmp_path.joinpath("a", "c", "0").write_bytes(pack(bytes(content)))
    (damage,) = tx.verify(tmp_path).damages
    assert "Expected crc32c" in str(damage)
