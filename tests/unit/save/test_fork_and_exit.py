"""Background saves at the end of the process, and in children that it forked."""

from __future__ import annotations

from pathlib import Path

import pytest

import templax as tx
from helpers import run_python

FAIL = """
import atexit, sys, numpy as np, templax as tx
from templax._save import job as job_module
def full(job, files): raise tx.SaveError('No space is left')
job_module.Job._write_small_files = full
left_open = open(sys.argv[1] + '.txt', 'w')
left_open.write('flushed')
atexit.register(lambda: print('atexit ran', flush=True))
"""


@pytest.mark.parametrize(
    "save",
    [
        "tx.save(sys.argv[1], {'w': np.ones(3)}, wait=False)",
        "tx.Manager(sys.argv[1]).save(1, {'w': np.ones(3)})",
        "manager = tx.Manager(sys.argv[1]); manager.save(1, {'w': np.ones(3)})",
        "ocp.StandardCheckpointer().save(sys.argv[1], {'w': np.ones(3)})",
    ],
)
def test_a_background_save_that_fails_at_exit_fails_the_process(save: str, tmp_path: Path) -> None:
    script = f"{FAIL}\nfrom templax.compat import orbax as ocp\n{save}\n"
    done = run_python("-c", script, tmp_path / "ckpt")
    assert done.returncode == 1, done.stderr
    assert "was NOT saved: No space is left" in done.stderr
    assert done.stdout == "atexit ran\n"
    assert (tmp_path / "ckpt.txt").read_text() == "flushed"


def test_a_failure_that_was_handled_leaves_the_exit_status_alone(tmp_path: Path) -> None:
    script = f"""{FAIL}
try:
    tx.save(sys.argv[1], {{'w': np.ones(3)}}, wait=False).wait()
except tx.SaveError:
    sys.exit(7)
"""
    done = run_python("-c", script, tmp_path / "ckpt")
    assert (done.returncode, done.stderr) == (7, "")
