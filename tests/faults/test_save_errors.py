"""`save` refused by the disk or by a limit of the system: one error, and nothing is left."""

from __future__ import annotations

import errno
import itertools
import os
import runpy
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import templax as tx
from helpers import choose_some, is_thorough, run_python
from templax._core import chunk_grid
from templax._save import snapshot
from templax.storage.leftovers import find_abandoned_in
from templax.testing import FaultyDisk

points = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("save_kill_points.py"))))

FULL = (errno.ENOSPC, errno.EDQUOT)
DENIED = (errno.EACCES, errno.EROFS)
ERRORS = {
    "mkdir": (*FULL, *DENIED, errno.EIO, errno.ENAMETOOLONG),
    "create": (*FULL, *DENIED, errno.EIO, errno.EMFILE),
    "open_directory": (errno.EACCES, errno.EIO, errno.EMFILE),
    "lock": (errno.EIO,),
    "unlock": (errno.EIO,),
    "write": (*FULL, errno.EIO),
    "fsync": (*FULL, errno.EIO),
    "close": (*FULL, errno.EIO),
    "rename": (*FULL, *DENIED, errno.EIO),
    "exchange": (*FULL, *DENIED, errno.EIO),
    "unlink": (*DENIED, errno.EIO),
    "rmdir": (*DENIED, errno.EIO),
}
"""The errors that each operation of a file system may give."""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes a small tree take many small writes."""
    for (module, name), size in points.SMALL.items():
        monkeypatch.setattr(module, name, size)
    chunk_grid.chunk_shape.cache_clear()
    yield
    chunk_grid.chunk_shape.cache_clear()


class Refusals:
    """Refuses operations of saves of one scenario, and checks that the old state stays."""

    def __init__(self, scenario: str, root: Path):
        self.scenario, self._root = scenario, root
        self.path = self._prepare()
        disk = FaultyDisk(disk=points.Unsynced())
        with points.use_disk(disk):
            points.save(scenario, self.path, 2)
        self.names = [operation.name for operation in disk.trace]
        target = {"step": self.path / "7", "run": self.path / "8"}.get(scenario, self.path)
        moved = max(i for i, o in enumerate(disk.trace) if o.to == str(target))
        trace = disk.trace[moved:]
        self.committed = moved + [(o.name, o.path) for o in trace].index(
            ("fsync", str(target.parent))
        )
        """The last operation whose failure fails the save."""
        self.path = self._prepare()
        self.before = points.find_state(scenario, self.path), self.files

    def _prepare(self) -> Path:
        return points.prepare(self.scenario, self._root)

    @property
    def files(self) -> set[Path]:
        """All files and directories, except the lock of a run, which its `Manager` leaves."""
        at = self._root / "at"
        return {path for path in at.rglob("*") if not path.name.startswith(".")}

    def save(self, disk: FaultyDisk) -> str | None:
        """Saves and checks that no thread and no open file is left; returns the error, if any."""
        threads, opened = threading.active_count(), os.listdir("/proc/self/fd")
        text = None
        with points.use_disk(disk):
            try:
                points.save(self.scenario, self.path, 2)
            except tx.SaveError as error:
                text = str(error)
        for thread in threading.enumerate():
            if thread.name == "templax-save":
                thread.join(60)  # which may be about to end
        assert threading.active_count() == threads
        assert os.listdir("/proc/self/fd") == opened
        return text

    def refuse(self, at: int, code: int) -> None:
        """Lets one operation fail once, and checks the outcome."""
        text = self.save(FaultyDisk(at=at, fault=code, disk=points.Unsynced()))
        if text is None:  # this operation is optional, or comes after the commit
            assert self.names[at] in ("unlock", "close") or at > self.committed, (
                at,
                self.names[at],
            )
            assert points.find_state(self.scenario, self.path) == "new"
            self.path = self._prepare()
            return
        assert at <= self.committed, text
        assert text.count(os.strerror(code)) == 1, text
        assert f"file `{self._root}/at" in text, text
        assert "could not be removed" not in text
        state = points.find_state(self.scenario, self.path)
        assert state == self.before[0], (at, self.names[at])
        assert self.files == self.before[1], (at, self.names[at])

    def refuse_for_good(self, at: int, code: int) -> None:
        """Lets one operation and all after it fail, even those that clean up."""
        text = self.save(FaultyDisk(at=at, fault=code, lasting=True, disk=points.Unsynced()))
        if text is not None:
            assert os.strerror(code) in text
        state = points.find_state(self.scenario, self.path)
        assert state == self.before[0] or (state == "new" and at >= self.committed), (at, text)
        left = find_abandoned_in(
            self.path if self.scenario in ("step", "run") else self.path.parent
        )
        extra = {str(path) for path in self.files - self.before[1] if "tmp-templax" in path.name}
        assert set(left) >= extra
        if state == self.before[0]:
            assert all(directory in (text or "") for directory in left)
        self.path = self._prepare()


SCENARIOS = ["fresh", "overwrite", "background", "step", "run"]


@pytest.mark.slow
@pytest.mark.parametrize("lasting", [False, True])
def test_a_refused_operation_is_one_clear_error(
    lasting: bool, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """The old state stays, and no file, thread or descriptor is left that nothing names.

    Each operation of each scenario gives one of the errors that it may give, or all of them if the
    tests are thorough. If it fails for good, so does what cleans up.
    """
    number, tried = 0, set[tuple[str, int]]()
    for scenario in SCENARIOS:
        refusals = Refusals(scenario, tmp_path / scenario)
        for at, name in enumerate(refusals.names):
            codes = ERRORS[name]
            for code in choose_some(codes, len(codes), first=at + len(scenario)):
                (refusals.refuse_for_good if lasting else refusals.refuse)(at, code)
                tried.add((name, code))
                number += 1
    every = {(name, code) for name, codes in ERRORS.items() for code in codes}
    assert tried == every if is_thorough() else len(tried) > 0.8 * len(every)
    ever = "ever after" if lasting else "once"
    record_property("summary", f"saves refused {number:,} times, {ever}: all old, or all new")


@pytest.mark.slow
def test_a_file_that_grows_too_large_is_one_clear_error(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys, numpy as np, templax as tx\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "small, large = ({'w': np.ones(n)} for n in (100, 1 << 20))\n"
        "tx.save(sys.argv[1], small)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "for wait in (True, False):\n"
        "    try:\n"
        "        tx.save(sys.argv[1], large, wait=wait, overwrite=True).wait()\n"
        "    except tx.SaveError as error:\n"
        "        print(error)\n"
    )
    done = run_python("-c", code, tmp_path / "ckpt")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("can't write: File too large; nothing was saved and nothing is left")
        assert f"file `{tmp_path}/ckpt" in line
        assert line.endswith(
            "hint: save to a file system, or under a limit (`ulimit -f`), that takes larger files"
        )
    assert os.listdir(tmp_path) == ["ckpt"]
    assert tx.open(tmp_path / "ckpt").nbytes == 800


@pytest.mark.slow
def test_too_many_open_files_are_one_clear_error(tmp_path: Path) -> None:
    """However many are left: a save gets one more each time, until it has enough."""
    code = (
        "import os, resource, sys, numpy as np, templax as tx\n"
        "tree, path = {'w': np.ones(100)}, sys.argv[1]\n"
        "tx.save(path, tree)\n"
        "tx.restore(path, tree)\n"
        "was = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "fds = os.listdir('/proc/self/fd')\n"
        "for free in range(30):\n"
        "    taken = []\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (64, was[1]))\n"
        "    while len(taken) < 100:\n"
        "        try: taken.append(os.dup(0))\n"
        "        except OSError: break\n"
        "    for fd in taken[len(taken) - free:] if free else []: os.close(fd)\n"
        "    taken = taken[:len(taken) - free]\n"
        "    try:\n"
        "        tx.save(path, tree, overwrite=True, wait=free % 2 == 0).wait()\n"
        "        print('saved')\n"
        "        break\n"
        "    except tx.SaveError as error:\n"
        "        print(error)\n"
        "    finally:\n"
        "        for fd in taken: os.close(fd)\n"
        "        resource.setrlimit(resource.RLIMIT_NOFILE, was)\n"
        "    assert os.listdir(os.path.dirname(path)) == ['ckpt']\n"
        "    tx.restore(path, tree)\n"
        "assert sorted(os.listdir('/proc/self/fd')) == sorted(fds)\n"
    )
    done = run_python("-c", code, tmp_path / "ckpt")
    assert done.returncode == 0, done.stderr
    *errors, last = done.stdout.splitlines()
    assert last == "saved"
    assert len(errors) > 2
    assert all("Too many open files" in error for error in errors)


FULL_DISK = """
import os, sys, numpy as np, templax as tx
path = sys.argv[1] + "/run/ckpt"
old, new = ({"w": np.full(n, v)} for n, v in ((50_000, 1.0), (200_000, 2.0)))
tx.save(path, old)
for wait in (True, False):
    try:
        tx.save(path, new, overwrite=True, wait=wait).wait()
    except tx.SaveError as error:
        print(error)
    assert os.listdir(sys.argv[1] + "/run") == ["ckpt"]
    assert tx.restore(path, old)["w"].max() == 1
tx.save(path, old, overwrite=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("unshare") is None, reason="no namespaces")
def test_a_disk_that_is_really_full_is_one_clear_error(tmp_path: Path) -> None:
    """A file system of 1 MiB in memory, mounted in a namespace, which needs no privileges."""
    mount = 'mount -t tmpfs -o size=1m none "$1"'
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run(
        [*inside, mount, "sh", str(tmp_path)], capture_output=True, check=False
    ).returncode:
        pytest.skip("no namespaces for users")
    done = subprocess.run(
        [
            *inside,
            f'{mount} && exec "$2" -c "$3" "$1"',
            "sh",
            str(tmp_path),
            sys.executable,
            FULL_DISK,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith(
            "can't write: No space left on device; nothing was saved and nothing"
        )
        assert "hint: make room (" in line


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("file/ckpt", "Not a directory"),
        ("a" * 300, "File name too long"),
        (("n" * 200 + "/") * 21 + "ckpt", "File name too long"),
        ("loop/ckpt", "Too many levels of symbolic links"),
        ("file", "found a file"),
        ("loop", "found a symbolic link|levels of symbolic links"),
    ],
)
def test_a_path_where_nothing_can_be_saved_is_named(
    path: str, what: str, overwrite: bool, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(tx.SaveError, match=what) as caught:
        tx.save(tmp_path / path, {"w": np.ones(3)}, overwrite=overwrite)
    assert f"file `{tmp_path}" in str(caught.value)
    manager = tx.Manager(tmp_path / path)
    with pytest.raises(tx.SaveError):
        manager.save(1, {"w": np.ones(3)}, wait=True)
    assert sorted(os.listdir(tmp_path)) == ["file", "loop"]
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_that_must_not_be_written_to_is_named(overwrite: bool, tmp_path: Path) -> None:
    tx.save(tmp_path / "old", {"w": np.ones(3)})
    tmp_path.chmod(0o500)
    for name in ("new", "old") if overwrite else ("new",):
        with pytest.raises(tx.SaveError, match="Permission denied"):
            tx.save(tmp_path / name, {"w": np.zeros(3)}, overwrite=overwrite)
    assert os.listdir(tmp_path) == ["old"]
    assert tx.restore(tmp_path / "old", {"w": np.zeros(3)})["w"].all()


@pytest.mark.parametrize("wait", [True, False])
def test_an_error_of_on_progress_ends_the_save(wait: bool, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise ZeroDivisionError

    path, threads = points.prepare("overwrite", tmp_path), threading.active_count()
    for _ in range(2):  # it is raised once
        with pytest.raises(ZeroDivisionError):
            tx.save(path, points.tree(2), overwrite=True, wait=wait, on_progress=stop).wait()
    assert points.find_state("overwrite", path) == "old"
    assert os.listdir(path.parent) == [path.name]
    assert threading.active_count() == threads


@pytest.mark.parametrize("wait", [True, False])
def test_a_system_without_threads_to_spare_leaves_nothing(
    wait: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, path = threading.Thread.start, points.prepare("overwrite", tmp_path)
    before = threading.active_count()
    for more in range(20):
        counter = itertools.count()

        def some(self: Any, counter: Any = counter, more: int = more) -> None:
            if next(counter) >= more:
                raise RuntimeError("can't start new thread")
            start(self)

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", some)
            try:
                tx.save(path, points.tree(2), overwrite=True, wait=wait, threads=3).wait()
                break
            except RuntimeError as error:
                assert str(error) == "can't start new thread"  # noqa: PT017
        assert threading.active_count() == before
        assert os.listdir(path.parent) == [path.name]
        assert points.find_state("overwrite", path) == "old"
    assert more > 2
    assert points.find_state("overwrite", path) == "new"


@pytest.mark.parametrize("fails", [True, False])
def test_a_handle_holds_no_copy_of_the_tree(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does the error, so both can be kept without their memory."""
    copies: list[weakref.ref[np.ndarray]] = []
    allocate = snapshot.allocate_aligned

    def remember(nbytes: int) -> Any:
        memory = allocate(nbytes)
        copies.append(weakref.ref(memory))
        return memory

    monkeypatch.setattr(snapshot, "allocate_aligned", remember)
    at = 20 if fails else None
    with points.use_disk(FaultyDisk(at=at, fault=errno.ENOSPC, disk=points.Unsynced())):
        saved = tx.save(tmp_path / "ckpt", points.tree(2), wait=False, threads=2)
        caught = None
        try:
            saved.wait()
        except tx.SaveError as error:
            caught = error
    assert (caught is not None) == fails
    assert copies
    assert [copy for copy in copies if copy() is not None] == []


@pytest.mark.slow
def test_the_reason_is_given_though_other_threads_fail_after_it(tmp_path: Path) -> None:
    code = (
        "import resource, signal\n"
        "import numpy as np, templax as tx\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "tree = {f'a{i}': np.ones(1 << 20, np.float32) for i in range(8)}\n"
        "for _ in range(20):\n"
        "    try:\n"
        "        tx.save('x.safetensors', tree, threads=4)\n"
        "    except tx.SaveError as error:\n"
        "        assert 'nothing was saved and nothing is left behind' in str(error), error\n"
        "    else:\n"
        "        raise AssertionError\n"
    )
    result = run_python("-c", f"import os; os.chdir({str(tmp_path)!r})\n{code}")
    assert result.returncode == 0, result.stderr
    assert not list(tmp_path.iterdir())
