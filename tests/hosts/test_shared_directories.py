"""A directory that one process does not see, sees an older copy of, or spells in another way."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import templax as tx
from attempts import SETUP, check_failed, check_values, read_attempts


def _can_mount() -> bool:
    if not shutil.which("unshare") or os.geteuid() != 0:
        return False
    return subprocess.run(["unshare", "-m", "true"], check=False).returncode == 0


needs_mounts = pytest.mark.skipif(not _can_mount(), reason="needs root and mount namespaces")


def _mount(command: str) -> list[str]:
    return ["unshare", "-m", "bash", "-c", f'{command} && exec "$@"', "x"]


SAVE = (
    SETUP
    + """
from templax._save import destination
destination.SEE_S = 1.0
shared, elsewhere = args
attempt("save", lambda: tx.save(shared + "/a", tree(1)))
attempt("background", lambda: tx.save(shared + "/b", tree(1), wait=False).wait() and None)
attempt("manager", lambda: tx.Manager(shared + "/run").save(1, tree(1), wait=True))
attempt("next", lambda: tx.save(elsewhere + "/next", tree(2)))
"""
)


@needs_mounts
@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_save_to_a_directory_that_is_not_shared_fails_on_all(
    run: Any, tmp_path: Path, count: int
) -> None:
    shared, elsewhere = tmp_path / "shared", tmp_path / "elsewhere"
    shared.mkdir()
    mount = _mount(f"mount -t tmpfs x {shared}")
    outputs = run(count, SAVE, str(shared), str(elsewhere), prefixes={count - 1: mount})
    for said in read_attempts(outputs):
        for name in ("save", "background", "manager"):
            text = f"rocess {count - 1} does not see `"
            check_failed(said[name], text, "not on a file system that they share", within_s=5)
        assert said["next"].kind == "ok", said
    check_values(elsewhere / "next", 2)
    assert [p.name for p in shared.iterdir() if p.name != "run"] == []
    assert tx.Manager(shared / "run").steps() == []


RESTORE = (
    SETUP
    + """
from templax._restore import together
together.SEE_S = 1.0
shared, elsewhere = args
manager = tx.Manager(shared)
attempt("steps", lambda: [manager.steps(), manager.latest()])
attempt("latest", lambda: read(manager.restore(want)))
attempt("step", lambda: read(manager.restore(want, 2)))
init = tx.Recipe(lambda: {"w": jnp.zeros((24, 4)), "step": 0})
attempt("begin", lambda: read(manager.restore(want, missing=init)))
attempt("path", lambda: read(tx.restore(f"{shared}/2/default", want)))
attempt("next", lambda: read(tx.restore(f"{elsewhere}/there", want)))
"""
)


@needs_mounts
@pytest.mark.slow
@pytest.mark.parametrize("sees", ["nothing", "an older copy"])
def test_a_restore_from_a_directory_that_is_not_shared_fails_on_all(
    run: Any, tmp_path: Path, sees: str
) -> None:
    """And none of them begins anew."""
    shared, old, elsewhere = (tmp_path / name for name in ("shared", "old", "elsewhere"))
    with tx.Manager(shared) as manager:
        for step in (1, 2):
            tree = {"w": np.full((24, 4), step, np.float32), "step": step}
            manager.save(step, tree, wait=True)
            if step == 1:
                shutil.copytree(shared, old)
    tx.save(elsewhere / "there", {"w": np.full((24, 4), 5, np.float32), "step": 5})
    how = "-t tmpfs x" if sees == "nothing" else f"--bind {old}"
    mount = _mount(f"mount {how} {shared}")
    told = read_attempts(run(2, RESTORE, str(shared), str(elsewhere), prefixes={1: mount}))
    for said in told:
        assert said["steps"].result == [[1, 2], 2], said
        for name in ("latest", "step", "begin", "path"):
            kinds = ("NotFound", "SourceError")
            assert said[name].kind in kinds, (name, said[name])
            assert "not on a file system that they share" in said[name].result, said[name]
            assert "process 1" in said[name].result
            assert said[name].seconds < 5
        assert said["next"].result == [5.0], said


SPELLED = (
    SETUP
    + """
from pathlib import Path
real, other = args[0] + "/real", index == last
attempt("link", lambda: tx.save(args[0] + "/link/a" if other else real + "/a", tree(1)))
attempt("slash", lambda: tx.save(real + "/b/" if other else real + "/b", tree(1)))
attempt("Path", lambda: tx.save(Path(real, "c") if other else real + "/c", tree(1)))
attempt("twice", lambda: tx.save(args[0] + "//real/d" if other else real + "/d", tree(1)))
os.chdir(real if other else args[0])
attempt("relative", lambda: tx.save("rel/e", tree(1)))
attempt("next", lambda: tx.save(real + "/f", tree(1)))
"""
)


@pytest.mark.slow
def test_a_path_may_be_spelled_in_other_ways_but_must_be_one(run: Any, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for said in read_attempts(run(2, SPELLED, str(tmp_path))):
        for name in ("link", "slash", "Path", "twice", "next"):
            assert said[name].kind == "ok", (name, said[name])
        check_failed(said["relative"], "rel/e", "/real/rel/e", "process 1", within_s=5)
    assert sorted(p.name for p in (tmp_path / "real").iterdir()) == ["a", "b", "c", "d", "f"]
