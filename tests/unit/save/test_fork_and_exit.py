"""Background saves at the end of the process, and in children that it forked."""

from __future__ import annotations

from pathlib import Path

import pytest

import templax as tx
from helpers import mark_slow, run_python

FAIL = """
import atexit, sys, numpy as np, templax as tx
from templax._save import job as job_module
def full(job, files): raise tx.SaveError('No space is left')
job_module.Job._write_small_files = full
left_open = open(sys.argv[1] + '.txt', 'w')
left_open.write('flushed')
atexit.register(lambda: print('atexit ran', flush=True))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "save",
    [
        "tx.save(sys.argv[1], {'w': np.ones(3)}, wait=False)",
        *mark_slow(
            "tx.Manager(sys.argv[1]).save(1, {'w': np.ones(3)})",
            "manager = tx.Manager(sys.argv[1]); manager.save(1, {'w': np.ones(3)})",
            "ocp.StandardCheckpointer().save(sys.argv[1], {'w': np.ones(3)})",
        ),
    ],
)
def test_a_background_save_that_fails_at_exit_fails_the_process(save: str, tmp_path: Path) -> None:
    script = f"{FAIL}\nfrom templax.compat import orbax as ocp\n{save}\n"
    done = run_python("-c", script, tmp_path / "ckpt")
    assert done.returncode == 1, done.stderr
    assert "was NOT saved: No space is left" in done.stderr
    assert done.stdout == "atexit ran\n"
    assert (tmp_path / "ckpt.txt").read_text() == "flushed"


@pytest.mark.slow
def test_a_failure_that_was_handled_leaves_the_exit_status_alone(tmp_path: Path) -> None:
    script = f"""{FAIL}
try:
    tx.save(sys.argv[1], {{'w': np.ones(3)}}, wait=False).wait()
except tx.SaveError:
    sys.exit(7)
"""
    done = run_python("-c", script, tmp_path / "ckpt")
    assert (done.returncode, done.stderr) == (7, "")


FORK = """
import os, sys, threading, time, numpy as np, templax as tx
from templax._save import job as job_module
real = job_module.Job._write_small_files
begun = threading.Event()
def slow(job, files):
    begun.set()
    time.sleep(1)
    return real(job, files)
job_module.Job._write_small_files = slow
run = sys.argv[1] + '/run'
manager = tx.Manager(run)
tree = {'w': np.ones(3)}
saved = manager.save(1, tree)
begun.wait()
child = os.fork()
if child == 0:
    for call in (lambda: manager.save(2, tree), manager.wait, manager.latest, saved.wait,
                 lambda: manager.restore(tree), lambda: tx.Manager(run).save(2, tree)):
        try:
            print('did', call(), flush=True)
        except (tx.UsageError, tx.SaveError) as error:
            print(str(error), flush=True)
    manager.close()
    job_module.Job._write_small_files = real
    tx.save(sys.argv[1] + '/own', tree, wait=False).wait()
    os._exit(0)  # as multiprocessing does: JAX may crash when it is shut down in a child
_, status = os.waitpid(child, 0)
try:
    tx.Manager(run).save(3, tree)
except tx.SaveError as error:
    print('still locked')
print(os.waitstatus_to_exitcode(status), manager.latest())
manager.save(2, tree)
manager.close()
print(manager.steps())
"""


@pytest.mark.slow
def test_a_forked_child_is_told_at_once_that_it_cannot_use_the_save(tmp_path: Path) -> None:
    done = run_python("-W", "ignore", "-c", FORK, tmp_path, timeout_s=60)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[0].startswith("Expected a manager of this process, got one of process ")
    for line in lines[1:5]:
        assert "/run/1 is being saved by process " in line
        assert line.endswith("this is a child that it forked")
    assert "Expected to be the only one that saves to" in lines[5]
    assert lines[6:] == ["still locked", "0 1", "[1, 2]"]
    assert tx.open(tmp_path / "own").leaves.keys() == {"w"}
