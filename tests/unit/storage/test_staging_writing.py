"""Writing to a staging directory: files, threads, modes, keys."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import templax as tx
from helpers import list_names, read_files
from templax.storage import Staging, staged_file
from templax.storage.disk import Disk
from templax.testing import FaultyDisk


def test_commit_makes_all_files_appear_at_once(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "7"
    staging = Staging(path, overwrite=False)
    assert staging.path == str(path)
    assert staging.directory.startswith(f"{path}.orbax-checkpoint-tmp-templax-")
    staging.put("d/e/f", b"1")
    staging.put("d/g", b"2")
    assert not path.exists()
    assert read_files(Path(staging.directory)) == {"d/e/f": b"1", "d/g": b"2"}
    staging.commit()
    assert read_files(path) == {"d/e/f": b"1", "d/g": b"2"}
    assert list_names(path.parent) == ["7"]
    assert staging.not_removed == ()


def test_threads_write_to_one_file_at_different_offsets(tmp_path: Path) -> None:
    data = memoryview(os.urandom(1 << 20))
    with Staging(tmp_path / "a", overwrite=False) as staging:
        file = staging.create("data")
        with ThreadPoolExecutor(8) as pool:
            for _ in pool.map(lambda i: file.write(data[i : i + 4096], i), range(0, 1 << 20, 4096)):
                pass
        assert file.size == 1 << 20
        staging.commit()
    assert (tmp_path / "a" / "data").read_bytes() == data


def test_threads_create_files_in_one_directory(tmp_path: Path) -> None:
    with Staging(tmp_path / "a", overwrite=False) as staging:
        with ThreadPoolExecutor(8) as pool:
            for _ in pool.map(lambda i: staging.put(f"x/{i % 3}/{i}", b"%d" % i), range(64)):
                pass
        staging.commit()
    assert read_files(tmp_path / "a") == {f"x/{i % 3}/{i}": b"%d" % i for i in range(64)}


def test_a_write_without_an_offset_appends(tmp_path: Path) -> None:
    with Staging(tmp_path / "a", overwrite=False) as staging:
        file = staging.create("data")
        assert file.size == 0
        file.write(b"123", 5)
        file.write(b"4")
        file.write(b"")
        assert file.size == 9
        file.close()
        file.close()
        assert file.size == 9
        staging.commit()
    assert (tmp_path / "a" / "data").read_bytes() == b"\0\0\0\0\x001234"


@pytest.mark.parametrize(
    "data",
    [
        np.arange(12, dtype=np.int32).reshape(3, 4),
        np.zeros((0, 5), np.float64),
        np.array(7, np.int16),
        memoryview(np.arange(4, dtype=np.complex64)),
        bytearray(b"123"),
    ],
)
def test_any_contiguous_buffer_can_be_written(data: object, tmp_path: Path) -> None:
    with Staging(tmp_path / "a", overwrite=False) as staging:
        staging.create("data").write(data)  # type: ignore[arg-type]
        staging.commit()
    assert (tmp_path / "a" / "data").read_bytes() == memoryview(data).tobytes()  # type: ignore[arg-type]


def test_a_write_does_not_copy_the_data(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    class Watching(Disk):
        def write(self, fd: int, data: memoryview, offset: int) -> int:
            seen.append((np.frombuffer(data, np.uint8).ctypes.data, len(data)))
            return super().write(fd, data, offset)

    array = np.ones(9 << 20, np.uint8)
    with Staging(tmp_path / "a", overwrite=False, disk=Watching()) as staging:
        staging.create("data").write(memoryview(array)[64:], 0)
    assert seen == [(array.ctypes.data + 64, array.nbytes - 64)]


def test_large_writes_are_split_into_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert staged_file.MAX_WRITE_BYTES <= 2**31 - 4096
    monkeypatch.setattr(staged_file, "MAX_WRITE_BYTES", 4)
    disk = FaultyDisk()
    with Staging(tmp_path / "a", overwrite=False, disk=disk) as staging:
        staging.create("data").write(b"0123456789", 2)
        staging.commit()
    assert (tmp_path / "a" / "data").read_bytes() == b"\0\x000123456789"
    assert [o.name for o in disk.trace].count("write") == 3


def test_a_short_write_is_continued(tmp_path: Path) -> None:
    class Short(Disk):
        def write(self, fd: int, data: memoryview, offset: int) -> int:
            return super().write(fd, data[:3], offset)

    with Staging(tmp_path / "a", overwrite=False, disk=Short()) as staging:
        staging.put("data", b"0123456789")
        staging.commit()
    assert (tmp_path / "a" / "data").read_bytes() == b"0123456789"


def test_a_write_that_makes_no_progress_is_an_error(tmp_path: Path) -> None:
    class Stuck(Disk):
        def write(self, fd: int, data: memoryview, offset: int) -> int:
            return 0

    with (
        Staging(tmp_path / "a", overwrite=False, disk=Stuck()) as staging,
        pytest.raises(tx.SaveError, match="can't write: Input/output error"),
    ):
        staging.put("data", b"0123456789")


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_file_modes_follow_the_umask(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        with Staging(tmp_path / "p" / "a", overwrite=False) as staging:
            staging.put("d/x", b"1")
            staging.commit()
    finally:
        os.umask(before)
    modes = {
        p: stat.S_IMODE((tmp_path / "p" / p).stat().st_mode) for p in ("", "a", "a/d", "a/d/x")
    }
    assert modes == {p: (0o666 if p == "a/d/x" else 0o777) & ~mask for p in modes}


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/../b", ".", "a\0b"])
def test_a_key_that_leaves_the_checkpoint_is_refused(key: str, tmp_path: Path) -> None:
    with Staging(tmp_path / "a", overwrite=False) as staging:
        with pytest.raises(tx.UsageError, match="Expected a path below the checkpoint, got "):
            staging.create(key)
        staging.put("still", b"works")
        staging.commit()
    assert list_names(tmp_path) == ["a"]


def test_creating_a_key_twice_is_an_error(tmp_path: Path) -> None:
    with Staging(tmp_path / "a", overwrite=False) as staging:
        staging.put("x", b"1")
        with pytest.raises(tx.SaveError, match="can't create: File exists"):
            staging.put("x", b"2")
    assert list_names(tmp_path) == []


def test_writing_after_close_or_commit_is_an_error(tmp_path: Path) -> None:
    with Staging(tmp_path / "a", overwrite=False) as staging:
        file = staging.create("x")
        file.close()
        with pytest.raises(tx.UsageError, match="Expected an open file, got one that was closed"):
            file.write(b"1")
        staging.commit()
    with pytest.raises(tx.SaveError, match="The save was already committed or discarded"):
        file.write(b"1")
    with pytest.raises(tx.SaveError, match="The save was already committed or discarded"):
        staging.put("y", b"1")
    with pytest.raises(tx.SaveError, match="The save was already committed or discarded"):
        staging.commit()
    assert read_files(tmp_path / "a") == {"x": b""}


def test_processes_that_join_a_save_may_create_the_same_directories(tmp_path: Path) -> None:
    with Staging(tmp_path / "new", overwrite=False) as begun:
        joined = Staging.join(begun.path, begun.directory)
        joined.put("item/d/theirs", b"1")
        begun.put("item/d/ours", b"2")
        begun.put("other/ours", b"3")
        joined.put("other/theirs", b"4")
        joined.commit()
        begun.commit()
    found = {str(f.relative_to(tmp_path / "new")) for f in tmp_path.rglob("new/*/**/*")}
    assert {"item/d/theirs", "item/d/ours", "other/ours", "other/theirs"} <= found
