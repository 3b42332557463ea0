"""`save` killed, interrupted, or refused by the disk, anywhere: the old state or the new one."""

from __future__ import annotations

import errno
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import templax as tx
from templax import _layout, _write
from templax.sources._disk import Disk
from templax.sources._staging import stale
from templax.testing import FaultyDisk, assert_durable

PROGRAM = Path(__file__).with_name("save_points.py")
points = SimpleNamespace(**runpy.run_path(str(PROGRAM)))


def _killed(what: str, root: Path, every: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(root / "points"), what, str(every)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1"},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _check(what: str, kills: list[dict[str, Any]]) -> Counter[str]:
    before = "none" if what == "fresh" else "old"
    for kill in kills:
        assert kill["there"] in (before, "new"), kill
        assert kill["there"] == "new" or kill["killed"], kill
        assert kill["hidden"], kill
        assert kill["reported"], kill
        assert kill["again"] == "next", kill
        assert kill["cleared"], kill
    # Threads may sync once more or less than when they were counted: a few may not be reached.
    assert sum(kill["killed"] for kill in kills) > 0.95 * len(kills)
    return Counter(kill["there"] for kill in kills)


@pytest.mark.parametrize("what", points.WHATS)
def test_killed_here_and_there_it_is_the_old_state_or_the_new(what: str, tmp_path: Path) -> None:
    found = _check(what, _killed(what, tmp_path, 12)["kills"])
    assert sum(found.values()) > 15


@pytest.mark.slow
def test_killed_anywhere_it_is_the_old_state_or_the_new(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before each operation, in the middle of each write; then listed, restored, saved again."""
    total = Counter[str]()
    for what in points.WHATS:
        found = _killed(what, tmp_path, 1)
        names = Counter(found["operations"])
        assert len(found["kills"]) == names.total() + names["write"]
        assert {"mkdir", "create", "write", "fsync", "close", "rename"} <= set(names)
        total += _check(what, found["kills"])
    assert total.total() > 1000
    assert min(total["old"], total["none"], total["new"]) > 0
    with capsys.disabled():
        print(f"\nkilled at {total.total():,} points: all old or all new ({dict(total)})")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many writes of few bytes."""
    monkeypatch.setattr(_layout, "CHUNK_BYTES", 256)
    monkeypatch.setattr(_write, "SMALL_BYTES", 64)
    monkeypatch.setattr(_write, "PACK_BYTES", 256)
    monkeypatch.setattr(_write, "RUN_BYTES", 512)
    monkeypatch.setattr(_write, "SYNC_BYTES", 4096)
    _layout.chunk_shape.cache_clear()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("what", points.WHATS)
def test_a_save_survives_a_loss_of_power(what: str, tmp_path: Path) -> None:
    """Every file and directory is synced before the move, and the move before it returns."""
    path, disk = points.prepare(tmp_path / "root", what), FaultyDisk()
    points.save(path, points.NEW, disk, what)
    assert_durable(disk.trace, path)
    assert points.there(path) == "new"


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def _refused(path: Path, disk: FaultyDisk, what: str) -> str | None:
    """The text of the error that a save ends with, if it does."""
    try:
        points.save(path, points.NEW, disk, what)
    except tx.SaveError as error:
        return str(error)
    return None


CODES = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES, errno.EROFS, errno.EMFILE]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("code", CODES, ids=[errno.errorcode[code] for code in CODES])
@pytest.mark.parametrize("what", ["fresh", "overwrite", "background"])
def test_whatever_the_disk_refuses_is_one_clear_error(what: str, code: int, tmp_path: Path) -> None:
    """At each operation: the old state stays, nothing is left, no thread and no descriptor."""
    dry = FaultyDisk()
    path = points.prepare(tmp_path / "root", what)
    points.save(path, points.NEW, dry, what)
    move = next(i for i, o in enumerate(dry.trace) if o.to == str(path))
    threads, open_before = threading.active_count(), _descriptors()
    path = points.prepare(tmp_path / "root", what)
    state = points.there(path)
    for at in range(0, move + 1, 3):
        error = _refused(path, FaultyDisk(at=at, fault=code), what)
        if error is None:  # of what can be done without, such as a lock
            assert points.there(path) == "new"
            path = points.prepare(tmp_path / "root", what)
            continue
        assert os.strerror(code) in error
        assert str(path.parent) in error
        assert points.there(path) == state, at
        assert os.listdir(path.parent) == ([] if state == "none" else [path.name]), at
    assert threading.active_count() == threads
    assert _descriptors() == open_before


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("what", ["fresh", "overwrite", "background"])
def test_a_disk_that_fails_for_good_leaves_what_was_there(what: str, tmp_path: Path) -> None:
    """What can't even be removed is named by `stale`, and goes with the next save."""
    dry = FaultyDisk()
    path = points.prepare(tmp_path / "root", what)
    points.save(path, points.NEW, dry, what)
    move = next(i for i, o in enumerate(dry.trace) if o.to == str(path))
    for at in range(4, move + 1, 10):  # without what a lock takes
        path = points.prepare(tmp_path / "root", what)
        state = points.there(path)
        with pytest.raises(tx.SaveError):
            points.save(path, points.NEW, FaultyDisk(at=at, fault=errno.EROFS, lasting=True), what)
        assert points.there(path) == state
        siblings = [str(p) for p in path.parent.iterdir() if p != path]
        assert stale(path) == siblings
        points.save(path, points.NEXT, Disk(), "overwrite")
        assert points.there(path) == "next"
        assert os.listdir(path.parent) == [path.name]


def _python(code: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        **options,
    )


def test_a_real_limit_of_the_system_is_one_clear_error(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys, numpy as np, templax as tx\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "for wait in (True, False):\n"
        "    try:\n"
        "        tx.save(sys.argv[1], {'w': np.ones(1 << 20)}, wait=wait).wait()\n"
        "    except tx.SaveError as error:\n"
        "        print(error)\n"
    )
    done = _python(code, str(tmp_path / "ckpt"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(os.strerror(errno.EFBIG)) == 2
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("path", "what"),
    [("file/ckpt", "file"), ("a" * 300, "name too long"), ("file", "found a file")],
)
def test_a_place_where_nothing_can_be_saved_is_named(path: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(tx.SaveError, match=f"(?i){what}"):
        tx.save(tmp_path / path, {"w": np.ones(3)})
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_must_not_be_written_to_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(tx.SaveError, match="Permission denied"):
        tx.save(tmp_path / "ckpt", {"w": np.ones(3)})


@pytest.mark.parametrize("wait", [True, False])
def test_interrupted_at_any_moment_it_is_there_or_not(wait: bool, tmp_path: Path) -> None:
    """Ctrl-C, from the first to the last moment of a save."""
    code = (
        "import os, signal, sys, threading, time, numpy as np, templax as tx\n"
        "wait, tree = sys.argv[2] == 'True', {'w': np.ones(2_000_000, np.float32)}\n"
        "tx.save(sys.argv[1] + '/warm', tree)\n"
        "for i in range(30):\n"
        "    path = f'{sys.argv[1]}/{i}'\n"
        "    try:\n"
        "        signal.setitimer(signal.ITIMER_REAL, (i + 1) / 1000)\n"
        "        tx.save(path, tree, wait=wait).wait()\n"
        "        time.sleep(30)\n"
        "    except KeyboardInterrupt:\n"
        "        pass\n"
        "    tx.save(sys.argv[1] + '/warm', tree, overwrite=True)\n"
        "    if os.path.exists(path): tx.restore(path, tree, verify='required')\n"
        "for _ in range(100):\n"
        "    if threading.active_count() == 1: break\n"
        "    time.sleep(0.1)\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
        "print([n for n in os.listdir(sys.argv[1]) if 'tmp' in n])\n"
    )
    interrupt = "import signal\nsignal.signal(signal.SIGALRM, signal.default_int_handler)\n"
    done = _python(interrupt + code, str(tmp_path), str(wait))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_killed_in_the_background_while_the_program_goes_on(tmp_path: Path) -> None:
    """From outside, at moments that nobody chose."""
    tx.save(tmp_path / "ckpt", {"w": np.zeros(3_000_000, np.float32)})
    code = (
        "import sys, numpy as np, templax as tx\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    tree = {'w': np.ones(3_000_000, np.float32)}\n"
        "    tx.save(sys.argv[1], tree, overwrite=True, wait=False)\n"
    )
    for i in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "ckpt")], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.05 + 0.04 * i)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        found = tx.restore(tmp_path / "ckpt", {"w": np.zeros(3_000_000, np.float32)})["w"]
        assert found.min() == found.max()
        assert {str(p) for p in tmp_path.iterdir() if p.name != "ckpt"} == set(
            stale(tmp_path / "ckpt")
        )
    tx.save(tmp_path / "ckpt", {"w": np.ones(3)}, overwrite=True)
    assert os.listdir(tmp_path) == ["ckpt"]
