"""`templax.index`: opening a checkpoint by it, and refusing one that does not fit the files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import templax as tx
from helpers import read_files
from limits import run_limited
from templax.formats.orbax import checksum_index
from templax.storage import Memory

TREE: dict[str, Any] = {
    "w": np.arange(24, dtype=np.float32).reshape(4, 6),
    "layers": [np.ones(3, np.int8), 7],
    "text": "hi",
    "none": None,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a checkpoint."""
    path = tmp_path_factory.mktemp("index") / "ckpt"
    tx.save(path, TREE)
    return read_files(path)


def replace_fields(stored: dict[str, bytes], /, **changes: Any) -> Memory:
    """The checkpoint with fields of the index replaced; the checksum of the index is right."""
    index = checksum_index.decode_index(memoryview(stored[checksum_index.INDEX_FILE]))
    changed = msgspec.structs.replace(index, **changes)
    return Memory({**stored, checksum_index.INDEX_FILE: checksum_index.encode_index(changed)})


def test_a_restore_reads_the_index_and_the_data_only(files: dict[str, bytes]) -> None:
    """Of the files of Orbax, only the manifest is read, to see that it belongs to the index."""
    data = next(name for name in files if name.startswith("d/"))
    kept = (checksum_index.INDEX_FILE, "manifest.ocdbt", data, "_METADATA")
    source = Memory({name: files[name] for name in kept})
    restored = tx.restore(source, TREE, verify="required")
    np.testing.assert_array_equal(restored["w"], TREE["w"])
    assert restored["layers"][1] == 7
    assert restored["text"] == "hi"
    bad = Memory({**{name: files[name] for name in kept}, "_METADATA": b"not read"})
    assert list(tx.open(bad).leaves) == ["layers.0", "layers.1", "text", "w"]


@pytest.mark.slow
def test_every_flipped_bit_of_the_index_is_noticed(files: dict[str, bytes]) -> None:
    data = files[checksum_index.INDEX_FILE]
    for i in range(len(data)):
        flipped = bytearray(data)
        flipped[i] ^= 1 << i % 8
        with pytest.raises(tx.CheckpointError) as caught:
            tx.open(Memory({**files, checksum_index.INDEX_FILE: bytes(flipped)}))
        assert caught.value.file == checksum_index.INDEX_FILE
        assert f"delete `{checksum_index.INDEX_FILE}`" in str(caught.value)


@pytest.mark.parametrize("n", [0, 7, 24, 27, 100, -1])
def test_a_truncated_index_is_damaged(files: dict[str, bytes], n: int) -> None:
    with pytest.raises(tx.Corrupted, match="Expected an index"):
        tx.open(Memory({**files, checksum_index.INDEX_FILE: files[checksum_index.INDEX_FILE][:n]}))


def test_deleting_the_index_as_hinted_works(files: dict[str, bytes]) -> None:
    """Without the index it is an Orbax checkpoint."""
    catalog = tx.open(
        Memory({name: f for name, f in files.items() if name != checksum_index.INDEX_FILE})
    )
    assert catalog.evidence == "`_METADATA` and `manifest.ocdbt`"
    np.testing.assert_array_equal(tx.restore(catalog, TREE)["w"], TREE["w"])


def test_a_later_version_of_the_index_is_refused(files: dict[str, bytes]) -> None:
    data = bytearray(files[checksum_index.INDEX_FILE])
    data[8] = 2
    data[-4:] = checksum_index.crc32c(bytes(data[:-4])).to_bytes(4, "little")
    with pytest.raises(tx.Unsupported, match="version 1 of its index, got 2"):
        tx.open(Memory({**files, checksum_index.INDEX_FILE: bytes(data)}))


def test_an_index_of_another_save_is_refused(files: dict[str, bytes], tmp_path: Path) -> None:
    """For example one copied over an older checkpoint."""
    tx.save(tmp_path / "ckpt", TREE)
    (tmp_path / "ckpt" / checksum_index.INDEX_FILE).write_bytes(files[checksum_index.INDEX_FILE])
    with pytest.raises(tx.Corrupted) as caught:
        tx.open(tmp_path / "ckpt")
    assert caught.value.file == checksum_index.INDEX_FILE
    assert "that of another" in str(caught.value)
    (tmp_path / "ckpt" / checksum_index.INDEX_FILE).unlink()  # as the hint says
    np.testing.assert_array_equal(tx.restore(tmp_path / "ckpt", TREE)["w"], TREE["w"])


@pytest.mark.parametrize("lost", [True, False])
def test_a_missing_or_damaged_manifest_does_not_prevent_a_restore(
    files: dict[str, bytes], lost: bool
) -> None:
    """The manifest is for other programs; `verify` reports it."""
    changed = {name: f for name, f in files.items() if name != "manifest.ocdbt"}
    if not lost:
        data = files["manifest.ocdbt"]
        changed["manifest.ocdbt"] = data[:-9] + b"x" + data[-8:]
    restored = tx.restore(Memory(changed), TREE, verify="required")
    np.testing.assert_array_equal(restored["w"], TREE["w"])
    (damage, *_) = tx.verify(Memory(changed)).damages
    assert damage.file == "manifest.ocdbt"


def test_a_missing_or_truncated_data_file_is_damage(files: dict[str, bytes]) -> None:
    data = next(name for name in files if name.startswith("d/"))
    template = {"w": TREE["w"]}
    for content, what in ((None, "found none"), (files[data][:-1], "got")):
        changed = {name: f for name, f in files.items() if name != data}
        if content is not None:
            changed[data] = content
        with pytest.raises(tx.Corrupted, match=what) as caught:
            tx.restore(Memory(changed), template, extra="ignore")
        assert (caught.value.file, caught.value.leaf) == (data, "w")


U32 = (4, "<u4")
COLUMNS = {
    "kinds": (1, "u1"),
    "dtype": (2, "<u2"),
    "shape": U32,
    "chunk": U32,
    "codecs": (1, "u1"),
    "counts": U32,
    "file": U32,
    "offset": (8, "<u8"),
    "nbytes": (8, "<u8"),
    "fingerprint": U32,
    "sharding": U32,
}


@given(
    st.sampled_from(sorted(COLUMNS)),
    st.integers(0, 10),
    st.sampled_from([0, 1, 2, 3, 255, 2**31, 2**32 - 1, 2**63, 2**64 - 1]) | st.integers(0, 200),
)
def test_invalid_numbers_raise_only_errors_of_templax(
    files: dict[str, bytes], column: str, at: int, value: int
) -> None:
    """Or the checkpoint is restored with the leaves of the template."""
    itemsize, dtype = COLUMNS[column]
    index = checksum_index.decode_index(memoryview(files[checksum_index.INDEX_FILE]))
    numbers = np.frombuffer(getattr(index, column), dtype).copy()
    numbers[at % len(numbers)] = value % 2 ** (8 * itemsize)
    try:
        catalog = tx.open(replace_fields(files, **{column: numbers.tobytes()}))
        restored = tx.restore(catalog, catalog.template(), verify="required")
    except tx.TemplaxError:
        return
    assert set(restored) <= {"w", "layers", "text", "none"}


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"counts": b""}, "a column of"),
        ({"crc32c": b"1"}, "a column of"),
        ({"dtypes": ["object", "str", "int8", "int64", "float32"]}, "does not read dtype"),
        ({"shapes": [(2**62, 2**62)] * 9}, "that memory can hold"),
        ({"shapes": [(-1,)] * 9}, "Expected a shape"),
        ({"files": []}, "within the data files"),
        ({"files": [("d/x", -1)]}, "Expected sizes of files"),
        ({"files": [("d/x", 2**63)]}, "Expected sizes of files"),
        ({"nbytes": bytes(24)}, "within the data files"),
        ({"files": [("d/x", 10)]}, "within the data files"),
        ({"texts": {}}, "Expected a string"),
        ({"kinds": bytes([3, 1, 2, 0])}, "typed key"),
    ],
)
def test_a_contradictory_index_is_damaged(
    files: dict[str, bytes], changes: dict[str, Any], what: str
) -> None:
    with pytest.raises(tx.CheckpointError, match=what) as caught:
        tx.open(replace_fields(files, **changes))
    assert caught.value.file == checksum_index.INDEX_FILE


def test_a_data_file_outside_the_checkpoint_is_refused(files: dict[str, bytes]) -> None:
    (data, size), *_ = checksum_index.decode_index(
        memoryview(files[checksum_index.INDEX_FILE])
    ).files
    for path in ("../secret", "/etc/passwd", "d/../../x", "a\0b", ""):
        with pytest.raises(tx.Corrupted, match="inside the checkpoint"):
            tx.open(replace_fields(files, files=[(path, size)]))
        with pytest.raises(tx.Corrupted, match="inside the checkpoint"):
            tx.open(replace_fields(files, others={path: (8, 4)}))
    assert tx.open(replace_fields(files, files=[(data, size)]))


def test_a_copied_checkpoint_can_be_restored(tmp_path: Path) -> None:
    tx.save(tmp_path / "a", TREE)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "a")
    np.testing.assert_array_equal(tx.restore(tmp_path / "b", TREE)["w"], TREE["w"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"empties": [((i,), "") for i in range(140_000)]},
            "templax reads 65600 empty nodes in trees of 4 leaves, got 140000",
        ),
        (
            {"empties": [((i, *[0] * 200), "None") for i in range(4500)]},
            "templax reads key paths of 596288 elements in 4500 leaves, got 904500",
        ),
        (
            {"others": {str(i): (1, 1) for i in range(100_000)}},
            "templax reads indexes of up to 16387 files in 3 chunks, got 100001",
        ),
        ({"shapes": [(1,) * 900_000] * 4}, "Expected a shape that memory can hold, got (1, 1, 1"),
    ],
)
def test_a_megabyte_of_index_takes_little_time_and_memory(
    files: dict[str, bytes], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    source = replace_fields(files, **changes)
    for name in ("templax.index", "manifest.ocdbt", "_METADATA"):
        tmp_path.joinpath(name).write_bytes(source.read(name))

    for command in ("str(tx.open('.'))", "tx.verify('.')"):
        found = run_limited(command, cwd=tmp_path)
        assert found.error is not None
        assert message in found.error
