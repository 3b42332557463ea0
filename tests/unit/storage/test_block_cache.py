"""A cache of blocks: what is read is what was stored, whatever happens to its files."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from templax import UsageError
from templax.storage.block_cache import BlockCache, open_cache

SIZE = 1000
STORED = SIZE + 20  # with what is behind each block


def name(number: int) -> str:
    return f"{number:02x}{number:038x}"


def block(number: int, size: int = SIZE) -> memoryview:
    return memoryview(bytes([number]) * size)


def read(cache: BlockCache, number: int, start: int = 0, stop: int = SIZE) -> bytes | None:
    out = memoryview(bytearray(stop - start))
    return bytes(out) if cache.read(name(number), SIZE, start, out) else None


def list_blocks(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("??/*") if path.is_file())


def test_a_block_is_read_as_it_was_stored(tmp_path: Path) -> None:
    cache = BlockCache(str(tmp_path / "new" / "cache"), 10**6)
    data = memoryview(os.urandom(SIZE))
    assert not cache.has(name(1))
    assert read(cache, 1) is None
    cache.store(name(1), data)
    assert cache.has(name(1))
    assert read(cache, 1) == data
    assert read(cache, 1, 10, 20) == data[10:20]
    assert read(BlockCache(cache.directory, 10**6), 1) == data
    assert read(cache, 2) is None


@pytest.mark.parametrize("damage", ["flip", "flip in part", "cut", "cut to 0", "longer", "moved"])
def test_damage_is_noticed_said_and_mended(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = BlockCache(str(tmp_path), 10**6)
    cache.store(name(1), block(1))
    cache.store(name(2), block(2))
    path, other = list_blocks(tmp_path)
    stored = bytearray(path.read_bytes())
    match damage:
        case "flip" | "flip in part":
            stored[500] ^= 1
        case "cut":
            del stored[-30:]
        case "cut to 0":
            stored.clear()
        case "longer":
            stored += b"x"
        case _:
            stored[:] = other.read_bytes()
    path.write_bytes(stored)
    with caplog.at_level(logging.WARNING, "templax"):
        assert (read(cache, 1, 0, 10) if damage == "flip in part" else read(cache, 1)) is None
    assert [record.getMessage() for record in caplog.records] == [
        f"cache file `{path}` is damaged; it is removed, its bytes are fetched"
    ]
    assert list_blocks(tmp_path) == [other]
    cache.store(name(1), block(1))
    assert read(cache, 1) == block(1)


def test_the_blocks_read_last_are_kept(tmp_path: Path) -> None:
    cache = BlockCache(str(tmp_path), 10 * STORED)
    for number in range(10):
        cache.store(name(number), block(number))
        os.utime(list_blocks(tmp_path)[-1], (number, number))
    assert len(list_blocks(tmp_path)) == 10
    assert read(cache, 0) == block(0)
    cache.store(name(10), block(10))
    kept = [number for number in range(11) if cache.has(name(number))]
    assert kept == [0, 3, 4, 5, 6, 7, 8, 9, 10]


def test_the_bound_holds_for_several_objects_and_a_new_bound(tmp_path: Path) -> None:
    caches = [BlockCache(str(tmp_path), 5 * STORED) for _ in range(3)]
    for number in range(60):
        caches[number % 3].store(name(number), block(number))
        assert sum(path.stat().st_size for path in list_blocks(tmp_path)) <= 5 * STORED
    assert len(list_blocks(tmp_path)) >= 4
    smaller = BlockCache(str(tmp_path), 2 * STORED)
    smaller.store(name(70), block(70))
    assert len(list_blocks(tmp_path)) <= 2
    assert read(smaller, 70) == block(70)
    smaller.store(name(71), block(71, 10 * SIZE))  # larger than the bound
    assert not smaller.has(name(71))


def test_what_was_deleted_by_hand_is_stored_again(tmp_path: Path) -> None:
    cache = BlockCache(str(tmp_path / "cache"), 3 * STORED)
    for round_ in range(3):
        for number in range(3):
            cache.store(name(number), block(number))
        assert [read(cache, number) for number in range(3)][2] == block(2), round_
        for path in list_blocks(tmp_path / "cache"):
            path.unlink()
            path.parent.rmdir()


def test_files_of_killed_processes_are_removed_once_they_are_old(tmp_path: Path) -> None:
    cache = BlockCache(str(tmp_path), STORED)
    cache.store(name(1), block(1))
    (path,) = list_blocks(tmp_path)
    old, new = path.with_name("a.1-1.part"), path.with_name("b.1-1.part")
    for left in (old, new):
        left.write_bytes(b"half")
    os.utime(old, (1, 1))
    cache.store(name(2), block(2))
    assert new.exists()
    assert not old.exists()


def test_blocks_are_right_while_others_are_evicted(tmp_path: Path) -> None:
    cache = BlockCache(str(tmp_path), 8 * STORED)

    def use(seed: int) -> int:
        mine, found = BlockCache(str(tmp_path), 8 * STORED) if seed % 2 else cache, 0
        for step in range(300):
            number = (seed * 7 + step * 5) % 24
            data = read(mine, number)
            assert data in (None, block(number))
            if data is None:
                mine.store(name(number), block(number))
            found += data is not None
        return found

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(use, range(4))) > 0
    assert sum(path.stat().st_size for path in list_blocks(tmp_path)) <= 8 * STORED


def test_a_directory_that_cant_be_made_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = BlockCache(str(tmp_path / "file" / "cache"), 10**6)
    for number in range(3):
        cache.store(name(number), block(number))
        assert read(cache, number) is None
    assert not cache.stores
    assert caplog.messages == [
        f"can't write to the cache `{tmp_path}/file/cache` (Not a directory); what it does not hold"
        " is fetched without it"
    ]


def test_a_full_disk_is_said_once_and_leaves_no_halves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    resource = pytest.importorskip("resource", reason="limits the size of files")
    cache = BlockCache(str(tmp_path), 10**9)
    cache.store(name(0), block(0))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, limits[1]))
    try:
        for number in (1, 2):
            cache.store(name(number), block(number, 10**6))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(caplog.records) == 1
    assert "(File too large)" in caplog.text
    assert [path.name for path in list_blocks(tmp_path)] == [name(0)]
    assert read(cache, 0) == block(0)


def test_files_that_cant_be_read_are_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = BlockCache(str(tmp_path), 10**6)
    for number in range(3):
        (tmp_path / name(number)[:2] / name(number)).mkdir(parents=True)
        assert read(cache, number) is None
    assert caplog.messages == [
        f"can't read cache file `{tmp_path}/00/{name(0)}` (Is a directory); bytes are fetched"
        " instead"
    ]


def test_a_read_only_cache_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    BlockCache(str(tmp_path), 10**6).store(name(0), block(0))
    (tmp_path / ".locks").unlink()
    (tmp_path / ".locks").mkdir()  # root may write to anything but this
    cache = BlockCache(str(tmp_path), 10**6)
    cache.store(name(1), block(1))
    assert read(cache, 0) == block(0)
    assert not cache.has(name(1))
    assert caplog.text.count("can't write to the cache") == 1


HOLD = """
import sys, time
from templax.storage.block_cache import BlockCache
print(BlockCache(sys.argv[1], 10**6).try_lock(sys.argv[2]), flush=True)
time.sleep(60)
"""


def hold(directory: Path, number: int) -> subprocess.Popen[str]:
    """Starts a process that takes the lock of a block and keeps it."""
    command = [sys.executable, "-c", HOLD, str(directory), name(number)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "True\n"
    return holder


@pytest.mark.slow
def test_a_block_is_locked_for_all_others_until_its_holder_lets_go_or_dies(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    cache = BlockCache(str(tmp_path), 10**6)
    assert cache.try_lock(name(1))
    assert not cache.try_lock(name(1))
    assert cache.try_lock(name(2))
    cache.unlock(name(1))
    assert cache.try_lock(name(1))
    with hold(tmp_path, 3) as holder:
        assert not cache.try_lock(name(3))
        assert cache.try_lock(name(4))
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        begin = time.monotonic()
        while not cache.try_lock(name(3)):
            assert time.monotonic() - begin < 5


def test_one_object_serves_a_directory_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    cache = open_cache("~/cache", 5)
    assert open_cache(tmp_path / "cache", 7) is cache
    assert cache.max_bytes == 7
    assert open_cache(tmp_path / "other", 7) is not cache


@pytest.mark.parametrize(
    ("directory", "max_bytes", "message"),
    [
        ("", 1, "Expected cache= a directory, got ''"),
        (3, 1, "Expected cache= a directory, got 3"),
        ("cache", 0, "Expected cache_bytes= an int of at least 1, got 0"),
        ("cache", True, "Expected cache_bytes= an int of at least 1, got True"),
        ("cache", "1GB", "Expected cache_bytes= an int of at least 1, got '1GB'"),
    ],
)
def test_arguments_are_checked(directory: str, max_bytes: int, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_cache(directory, max_bytes)
    assert str(caught.value) == message


@pytest.mark.slow
def test_threads_that_store_at_the_same_time_keep_to_the_bound(tmp_path: Path) -> None:
    """A block that changes its name while another thread counts them must not be overlooked."""
    for round in range(30):
        directory = tmp_path / str(round)
        cache = BlockCache(str(directory), 2_000)  # room for one block of 1,000 bytes

        def store(thread: int, cache: BlockCache = cache) -> None:
            for i in range(8):
                cache.store(f"{thread:x}{i:x}" + "0" * 20, memoryview(bytes(1_000)))

        threads = [threading.Thread(target=store, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(path.stat().st_size for path in directory.glob("??/*")) <= 2_000
