"""Calls that one process makes without the others: by mistake, with `alone=True`, or too late."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import templax as tx
from attempts import SETUP, check_failed, check_run, check_values, read_attempts

ALONE = (
    SETUP
    + """
agreement.LONE_S = 1.0
local = {"w": np.full((24, 4), 3, np.float32), "step": 3}
only = args[0] + "/only"
if index == 0:  # as the first call of all, before any that all made
    attempt("only 0", lambda: tx.save(only, local))
meet("only 0")
jax.jit(lambda w: w.sum())(array(1)).block_until_ready()
if index == 0:
    attempt("alone", lambda: tx.save(only, local, alone=True))
attempt("next", lambda: tx.save(args[0] + "/next", tree(2)))

# Each process does something of its own, at the same time.
own = f"{args[0]}/own-{index}"
with tx.Manager(own, alone=True) as manager:
    for step in range(1, 4):
        attempt(f"own {step}", lambda: manager.save(step, {**local, "step": step}, wait=index == 0))
    like = {"w": np.zeros((24, 4), np.float32), "step": 0}
    attempt("own restore", lambda: manager.restore(like)["step"])
    attempt("own steps", manager.steps)
    attempt("own keyword", lambda: tx.restore(args[0] + "/next", like, alone=True)["step"])
attempt("global", lambda: tx.save(f"{own}-global", tree(1), alone=True))
attempt("together", lambda: tx.save(args[0] + "/together", tree(2)))

# All have made calls together, so a process that does not come is waited for.
if index == 0:
    attempt("timeout", lambda: tx.save(args[0] + "/x", local, timeout=1.0))
meet("timeout")
for name, named in (("0", {"timeout": 0}), ("text", {"timeout": "1"}), ("yes", {"alone": "yes"})):
    attempt(f"bad {name}", lambda: tx.save(args[0] + "/x", tree(1), **named))
with tx.Manager(args[0] + "/late", timeout=1.0) as manager:
    attempt("late 1", lambda: manager.save(1, tree(1), wait=True))
    if index == last:
        time.sleep(2.0)
    attempt("late 2", lambda: manager.save(2, tree(2), wait=True))
    meet("late")
    attempt("late 3", lambda: manager.save(3, tree(3), wait=True))
"""
)


@pytest.mark.parametrize("count", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 4))])
def test_a_call_of_one_process_is_refused_soon_unless_it_says_that_it_is_alone(
    run: Any, tmp_path: Path, count: int
) -> None:
    told = read_attempts(run(count, ALONE, str(tmp_path)))
    first, last = told[0], told[-1]
    texts = f"Expected all {count} processes of this job", "absent for 1 s", "pass alone=True"
    check_failed(first["only 0"], *texts, within_s=3)
    assert first["alone"].kind == "ok"
    assert first["alone"].seconds < 2
    check_values(tmp_path / "only", 3)
    check_failed(first["timeout"], "did not come within 1 s", within_s=4)
    for index, said in enumerate(told):
        assert said["next"].kind == said["together"].kind == "ok", said
        assert [said[f"own {step}"].kind for step in (1, 2, 3)] == ["ok"] * 3, said
        assert said["own restore"].result == 3
        assert said["own steps"].result == [1, 2, 3]
        assert said["own keyword"].result == 2
        check_failed(said["global"], "values that this process has all of", "`w`", within_s=2)
        for name in ("0", "text", "yes"):
            check_failed(said[f"bad {name}"], "xpected", kind="UsageError", within_s=3)
        assert said["late 1"].kind == said["late 3"].kind == "ok", said
        check_failed(said["late 2"], "did not come within 1 s", within_s=4)
        assert f"rocess {count - 1} of {count} did not come" in said["late 2"].result
        assert tx.Manager(tmp_path / f"own-{index}").steps() == [1, 2, 3]
    assert last["late 2"].seconds < 2  # it hears at once that the others gave up
    check_run(tmp_path / "late", [1, 3])
    assert not list(tmp_path.glob("*-global*"))
    assert not (tmp_path / "x").exists()
