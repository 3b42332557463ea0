"""A conversion that is killed at any moment leaves nothing visible, and the next one goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import conversion_kills
import templax as tx
from helpers import mark_slow
from templax._convert import journal, target
from templax.storage import staging
from templax.storage.leftovers import find_abandoned, find_unfinished, remove_directory

PROGRAM = Path(conversion_kills.__file__)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    tree = {
        "w": rng.standard_normal((40, 32)).astype(np.float32),
        "v": rng.standard_normal((8, 3, 16)).astype(np.float32),
        "b": [np.arange(5), np.float32(3)],
        "step": 7,
    }
    tx.save(tmp_path / "source", tree)
    return tmp_path / "source"


def kill(source: Path, path: Path, to: str, when: str, *more: str) -> None:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(source), str(path), to, when, *more],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert not path.exists()


def check(source: Path, path: Path) -> None:
    found = tx.diff(source, path, fingerprints=False)
    assert not [leaf for leaf in found.leaves if leaf.differences], str(found)
    assert not any(journal.NAME in names for _, _, names in os.walk(path))
    assert find_unfinished(path) == []
    assert tx.verify(path).ok


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("to", ["safetensors", *mark_slow("orbax", "msgpack", "npz")])
def test_a_killed_conversion_is_resumed(source: Path, tmp_path: Path, to: Any) -> None:
    """Killed while it writes, then while it goes on, then at each later stage."""
    path = tmp_path / "converted"
    for when in ("9", "8", "finish", "commit"):
        kill(source, path, to, when)
        assert len(find_abandoned(path)) == 1
    done = tx.convert(source, path, to=to, threads=1)
    total = sum(leaf.nbytes for leaf in tx.open(source).entries if leaf.nbytes > 8)
    assert done.resumed_bytes >= total - 16, "all was written before the second stage"
    assert done.restarted is None
    check(source, path)


@pytest.mark.usefixtures("small")
@pytest.mark.slow
@pytest.mark.parametrize("when", [str(i) for i in range(0, 36, 3)])
@pytest.mark.parametrize("to", ["orbax", "safetensors", "npz"])
def test_a_conversion_killed_after_any_write_is_resumed(
    source: Path, tmp_path: Path, to: Any, when: str
) -> None:
    path = tmp_path / "converted"
    kill(source, path, to, when)
    tx.convert(source, path, to=to, threads=1)
    check(source, path)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_compressed_chunks_are_kept(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "converted"
    kill(source, path, "orbax", "12", "zstd")
    kill(source, path, "orbax", "finish", "zstd")
    done = tx.convert(source, path, to="orbax", threads=1, compression="zstd")
    assert done.resumed_bytes == done.value_bytes
    check(source, path)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_numpy_finds_the_checksums_of_a_resumed_archive_right(source: Path, tmp_path: Path) -> None:
    """They cover what was written before a kill and after it."""
    path = tmp_path / "converted.npz"
    kill(source, path, "npz", "12")
    kill(source, path, "npz", "finish")
    done = tx.convert(source, path, to="npz")
    assert done.resumed_bytes > 0
    check(source, path)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_another_source_or_other_options_begin_anew(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "converted"
    kill(source, path, "safetensors", "12")
    done = tx.convert(source, path, to="safetensors", cast="bfloat16", overwrite=True)
    assert done.resumed_bytes == 0
    assert done.restarted == "an earlier conversion to this path had other options"
    assert "started over: an earlier conversion" in str(done)
    tx.convert(source, path, to="safetensors", overwrite=True)

    other = tmp_path / "other"
    kill(source, other, "safetensors", "12")
    os.utime(source / "_METADATA", ns=(1, 1))
    done = tx.convert(source, other, to="safetensors")
    assert done.restarted is not None
    assert "read another source, or one that changed" in done.restarted
    check(source, other)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_what_was_left_behind_is_not_trusted(source: Path, tmp_path: Path) -> None:
    """Bytes that were altered since are found when they are read back."""
    path = tmp_path / "converted"
    kill(source, path, "safetensors", "finish")
    (directory,) = find_abandoned(path)
    file = Path(directory, "model.safetensors")
    data = bytearray(file.read_bytes())
    data[-40] ^= 1
    file.write_bytes(data)
    with pytest.raises(tx.SaveError, match="read back"):
        tx.convert(source, path, to="safetensors")
    assert find_unfinished(path) == []
    assert not path.exists()
    tx.convert(source, path, to="safetensors")
    check(source, path)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("cut", [0, 3, 11, -1, -30])
def test_a_torn_journal_is_read_up_to_its_last_whole_record(
    source: Path, tmp_path: Path, cut: int
) -> None:
    path = tmp_path / "converted"
    kill(source, path, "orbax", "finish")
    (directory,) = find_abandoned(path)
    file = Path(directory, journal.NAME)
    file.write_bytes(file.read_bytes()[:cut])
    done = tx.convert(source, path, to="orbax")
    assert (done.resumed_bytes > 0) == (cut < 0)
    assert done.resumed_bytes < done.value_bytes
    check(source, path)


def test_a_second_conversion_to_the_same_path_is_refused(source: Path, tmp_path: Path) -> None:
    path, refused = tmp_path / "converted", list[tx.SaveError]()

    def convert_again(done: int, total: int) -> None:
        if not refused:
            with pytest.raises(tx.SaveError, match="Another process is converting") as caught:
                tx.convert(source, path, to="orbax")
            refused.append(caught.value)

    tx.convert(source, path, to="orbax", on_progress=convert_again)
    assert refused
    check(source, path)


@pytest.mark.usefixtures("small")
def test_an_error_or_interrupt_leaves_nothing_behind(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "converted"
    for error in (KeyboardInterrupt, ValueError):

        def fail(done: int, total: int, error: type[BaseException] = error) -> None:
            raise error

        with pytest.raises(error):
            tx.convert(source, path, to="orbax", on_progress=fail)
        assert os.listdir(tmp_path) == ["source"]


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_leftovers_are_removed_like_those_of_saves(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "converted"
    kill(source, path, "orbax", "9")
    (directory,) = find_abandoned(path)
    remove_directory(directory)
    kill(source, path, "orbax", "9")
    tx.save(path, {"x": 1})
    assert find_unfinished(path) == []


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_a_source_of_the_same_size_and_times_is_another(source: Path, tmp_path: Path) -> None:
    """Such as the next checkpoint out of an archive whose files all have the same time."""
    npz, path = tmp_path / "source.npz", tmp_path / "converted"
    np.savez(npz, w=np.zeros(1000, np.float32))
    os.utime(npz, ns=(0, 0))
    kill(npz, path, "safetensors", "finish")
    with npz.open("r+b") as file:
        np.savez(file, w=np.ones(1000, np.float32))
    os.utime(npz, ns=(0, 0))
    done = tx.convert(npz, path, to="safetensors", verify=False)
    assert done.restarted is not None
    check(npz, path)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("verify", [False, True])
def test_a_journal_without_its_file_is_not_believed(
    source: Path, tmp_path: Path, verify: bool
) -> None:
    path = tmp_path / "converted"
    kill(source, path, "safetensors", "finish")
    (directory,) = find_abandoned(path)
    Path(directory, "model.safetensors").unlink()
    done = tx.convert(source, path, to="safetensors", verify=verify)
    assert (done.resumed_bytes, done.restarted) == (
        0,
        "what an earlier conversion to this path had written is not whole",
    )
    check(source, path)


@pytest.mark.usefixtures("small")
def test_the_names_of_files_are_on_the_disk_before_the_journal(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[str]()
    sync, begin = staging.Staging.sync_names, journal.Journal.begin

    def note_sync(self: Any) -> None:
        sync(self)
        calls.append("names")

    def note_begin(self: Any, head: Any) -> None:
        calls.append("journal")
        begin(self, head)

    monkeypatch.setattr(staging.Staging, "sync_names", note_sync)
    monkeypatch.setattr(journal.Journal, "begin", note_begin)
    tx.convert(source, tmp_path / "converted", to="orbax")
    assert calls == ["names", "journal"]


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_what_was_killed_makes_room(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other options begin anew, for which the disk may have no room beside what was left behind."""
    path = tmp_path / "converted.npz"
    kill(source, path, "npz", "finish")

    def find_room(directory: str) -> int:
        return 0 if find_abandoned(path) else 1 << 40

    monkeypatch.setattr(target, "_find_room", find_room)
    tx.convert(source, path)
    check(source, path)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_what_was_written_has_its_room_even_if_no_journal_tells_of_it(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "converted"
    kill(source, path, "orbax", "finish")
    (directory,) = find_unfinished(str(path))
    notes = Path(directory, journal.NAME)
    data = notes.read_bytes()
    notes.write_bytes(data[: 8 + int.from_bytes(data[:8], "little") + 4])  # the head alone
    monkeypatch.setattr(target, "_find_room", lambda _: 0)
    done = tx.convert(source, path, to="orbax")
    assert (done.resumed_bytes, done.restarted) == (0, None)
    check(source, path)
