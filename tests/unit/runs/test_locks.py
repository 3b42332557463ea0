"""The locks of a run: one process saves, and steps being read are not deleted."""

import errno
import gc
import json
import os
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

import templax as tx
from disks import RefusingDisk
from templax._runs.locks import LOCK, WriterLock, hold_for_reading
from templax.storage.disk import Disk
from templax.storage.leftovers import delete_checkpoint
from templax.testing import FaultyDisk

HOLD = """
import sys
from templax._runs.locks import WriterLock, hold_for_reading as reading
def wait():
    print("held", flush=True)
    sys.stdin.read()
if sys.argv[1] == "write":
    lock = WriterLock(sys.argv[2])
    lock.acquire()
    wait()
else:
    with reading(sys.argv[2]) as there:
        assert there
        wait()
"""


NO_LOCKS = RefusingDisk(lock=errno.ENOSYS, unlock=errno.ENOSYS)


@pytest.fixture
def holder():
    """Starts a process that holds a lock until its input ends."""
    started = []

    def start(what, path):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, what, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_a_second_process_is_refused_with_the_name_of_the_first(tmp_path, holder):
    process = holder("write", tmp_path)
    lock = WriterLock(str(tmp_path))
    with pytest.raises(tx.SaveError) as caught:
        lock.acquire()
    since = json.loads((tmp_path / LOCK).read_text())["since"]
    assert str(caught.value) == (
        f"Expected to be the only one that saves to {tmp_path}, found process {process.pid} on"
        f" {socket.gethostname()}, since {since} - file `{tmp_path}/{LOCK}`; hint: close that"
        " templax.Manager, or wait until its process ends"
    )
    process.communicate()
    lock.acquire()
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    lock.release()


@pytest.mark.slow
def test_a_killed_process_releases_the_lock(tmp_path, holder):
    process = holder("write", tmp_path)
    process.kill()
    process.wait()
    lock = WriterLock(str(tmp_path))
    lock.acquire()
    lock.release()


def test_a_second_lock_of_the_same_process_is_refused(tmp_path):
    first, second = WriterLock(str(tmp_path)), WriterLock(str(tmp_path))
    first.acquire()
    first.acquire()
    with pytest.raises(tx.SaveError, match=r"found another templax.Manager of this process, since"):
        second.acquire()
    first.release()
    first.release()
    second.acquire()
    del second
    gc.collect()
    first.acquire()
    first.release()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"pid": 1}'])
def test_a_lock_whose_file_names_no_process_is_still_held(tmp_path, text):
    first = WriterLock(str(tmp_path))
    first.acquire()
    (tmp_path / LOCK).write_text(text)
    with pytest.raises(tx.SaveError, match="found another process - file"):
        WriterLock(str(tmp_path)).acquire()
    first.release()


def test_an_unwritable_directory_is_a_save_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(tx.SaveError, match="can't save: Not a directory"):
        WriterLock(str(tmp_path / "file" / "run")).acquire()


def test_the_directory_of_a_new_run_is_synced(tmp_path):
    disk = FaultyDisk()
    lock = WriterLock(str(tmp_path / "a" / "run"), disk)
    lock.acquire()
    made = [o.path for o in disk.trace if o.name == "mkdir"]
    assert made == [str(tmp_path / "a"), str(tmp_path / "a" / "run")]
    synced = [o.path for o in disk.trace if o.name == "fsync"]
    assert synced == [str(tmp_path), str(tmp_path / "a")]
    lock.release()


def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    """A data loader's worker may outlive the training process that forked it."""
    lock = WriterLock(str(tmp_path))
    lock.acquire()
    read, write = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-c", "import os, sys; os.read(int(sys.argv[1]), 1)", str(read)],
        pass_fds=[read, lock._held.peek()[2][0]],
    )
    try:
        lock.release()
        other = WriterLock(str(tmp_path))
        other.acquire()
        other.release()
    finally:
        os.close(write)
        os.close(read)
        child.kill()
        child.wait()


def test_a_file_system_without_locks_lets_everyone_save(tmp_path):
    (tmp_path / "1").mkdir()
    first, second = WriterLock(str(tmp_path), NO_LOCKS), WriterLock(str(tmp_path), NO_LOCKS)
    first.acquire()
    second.acquire()
    first.release()
    second.release()


@pytest.mark.slow
def test_a_step_being_read_is_not_deleted(tmp_path, holder):
    step = tmp_path / "1"
    step.mkdir()
    (step / "data").touch()
    process = holder("read", step)
    assert delete_checkpoint(step) is False
    with hold_for_reading(str(step)) as there:  # shared with the other process
        assert there
    assert (step / "data").exists()
    process.communicate()
    assert delete_checkpoint(step) is True
    with hold_for_reading(str(step)) as there:
        assert not there
    assert list(tmp_path.iterdir()) == []


def test_a_reader_waits_for_a_deletion_and_gets_nothing(tmp_path):
    """The step is renamed while the lock is held, so the reader would see a deleted directory."""
    step = tmp_path / "1"
    step.mkdir()
    told = []

    def read():
        with hold_for_reading(str(step)) as there:
            told.append(there)

    class Watched(Disk):
        def rename(self, old, new):
            thread.start()
            while not thread.is_alive():
                pass
            super().rename(old, new)

    thread = threading.Thread(target=read)
    assert delete_checkpoint(step, Watched())
    thread.join()
    assert told == [False]


@pytest.mark.parametrize("kind", ["a link", "a link to nothing", "another name", "a pipe"])
def test_a_lock_file_that_is_something_else_is_refused_and_not_written_to(tmp_path, kind):
    run, precious = tmp_path / "run", tmp_path / "precious"
    run.mkdir()
    precious.write_text("p" * 99)
    if kind == "another name":
        os.link(precious, run / LOCK)
    elif kind == "a pipe":
        os.mkfifo(run / LOCK)
    else:
        (run / LOCK).symlink_to("../precious" if kind == "a link" else "../created")
    with pytest.raises(tx.SaveError) as caught:
        tx.Manager(run).save(1, {"a": np.ones(2, np.float32)})
    found = {"another name": "a file that has another name, too", "a pipe": "something else"}
    assert str(caught.value) == (
        f"Expected the lock file of this run, found {found.get(kind, 'a link')} - file"
        f" `{run / LOCK}`; hint: remove it, unless a process saves there"
    )
    assert precious.read_text() == "p" * 99
    assert sorted(path.name for path in tmp_path.iterdir()) == ["precious", "run"]
    (run / LOCK).unlink()  # as the hint says
    with tx.Manager(run) as manager:
        manager.save(1, {"a": np.ones(2, np.float32)})


def test_a_lock_file_that_is_replaced_while_it_is_locked_is_not_held(tmp_path):
    class Replacing(Disk):
        def lock(self, fd, shared=False, wait=False):
            super().lock(fd, shared, wait)
            (tmp_path / LOCK).unlink()
            (tmp_path / LOCK).touch()

    with pytest.raises(tx.SaveError, match="Another program replaced the lock file"):
        WriterLock(str(tmp_path), Replacing()).acquire()


def test_a_copy_of_a_run_by_hard_links_does_not_keep_it_from_saving(tmp_path):
    run, copy = tmp_path / "run", tmp_path / "copy"
    with tx.Manager(run) as manager:
        manager.save(1, {"a": np.ones(2, np.float32)})
    copy.mkdir()
    os.link(run / LOCK, copy / LOCK)
    with tx.Manager(run) as manager:
        manager.save(2, {"a": np.ones(2, np.float32)})
        assert list(manager.steps()) == [1, 2]
