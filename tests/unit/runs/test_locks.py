"""Who may save to a run, and what is not deleted while it is read: in one process and between."""

import gc
import json
import os
import socket
import subprocess
import sys
import threading

import pytest

import templax as tx
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


class NoLocks(Disk):
    """A file system that has none."""

    def lock(self, fd, shared=False):
        raise OSError(38, "Function not implemented")

    def unlock(self, fd):
        raise OSError(38, "Function not implemented")


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


def test_one_process_at_a_time_may_save_and_the_other_is_named(tmp_path, holder):
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


def test_a_process_that_is_killed_gives_the_lock_up(tmp_path, holder):
    process = holder("write", tmp_path)
    process.kill()
    process.wait()
    lock = WriterLock(str(tmp_path))
    lock.acquire()
    lock.release()


def test_one_of_a_process_at_a_time_may_save(tmp_path):
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
def test_a_holder_that_left_no_name_is_refused_all_the_same(tmp_path, text):
    first = WriterLock(str(tmp_path))
    first.acquire()
    (tmp_path / LOCK).write_text(text)
    with pytest.raises(tx.SaveError, match="found another process - file"):
        WriterLock(str(tmp_path)).acquire()
    first.release()


def test_a_directory_where_nothing_can_be_written_is_a_save_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(tx.SaveError, match="can't save: Not a directory"):
        WriterLock(str(tmp_path / "file" / "run")).acquire()


def test_the_directory_of_a_run_is_made_to_stay(tmp_path):
    disk = FaultyDisk()
    lock = WriterLock(str(tmp_path / "a" / "run"), disk)
    lock.acquire()
    made = [o.path for o in disk.trace if o.name == "mkdir"]
    assert made == [str(tmp_path / "a"), str(tmp_path / "a" / "run")]
    synced = [o.path for o in disk.trace if o.name == "fsync"]
    assert synced == [str(tmp_path), str(tmp_path / "a")]
    lock.release()


def test_a_child_that_was_forked_does_not_keep_the_lock(tmp_path):
    """A worker that loads data may outlive the training that started it."""
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


def test_without_locks_everybody_is_taken_to_be_alone(tmp_path):
    (tmp_path / "1").mkdir()
    first, second = WriterLock(str(tmp_path), NoLocks()), WriterLock(str(tmp_path), NoLocks())
    first.acquire()
    second.acquire()
    first.release()
    second.release()


def test_what_is_read_is_not_deleted_and_what_was_deleted_is_not_read(tmp_path, holder):
    step = tmp_path / "1"
    step.mkdir()
    (step / "data").touch()
    process = holder("read", step)
    assert delete_checkpoint(step) is False
    with hold_for_reading(str(step)) as there:  # any number may
        assert there
    assert (step / "data").exists()
    process.communicate()
    assert delete_checkpoint(step) is True
    with hold_for_reading(str(step)) as there:
        assert not there
    assert list(tmp_path.iterdir()) == []


def test_a_reader_waits_for_who_deletes_and_is_told(tmp_path):
    """The step is renamed while the lock is held: what the reader had opened is another's."""
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
