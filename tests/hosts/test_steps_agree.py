"""`steps`, `latest` and `best` say the same on all processes at the same point of the program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from attempts import SETUP, read_attempts

AGREE = (
    SETUP
    + """
for lib in ("native", "compat"):
    for wait in (True, False):
        name, run = f"{lib} {wait}", f"{args[0]}/{lib}-{wait}"
        if lib == "native":
            manager = tx.Manager(run, keep=tx.Keep(last=2, best=1, metric="loss"))
            look = lambda: [manager.steps(), manager.latest(), manager.best("loss")]
        else:
            options = ocp.CheckpointManagerOptions(
                max_to_keep=2, best_fn=lambda q: q["loss"], best_mode="min",
                enable_async_checkpointing=not wait,
            )
            manager = ocp.CheckpointManager(run, options=options)
            look = lambda: [manager.all_steps(), manager.latest_step(), manager.best_step()]
        attempt(f"{name} 0", look)
        for step in range(1, 11):
            metrics = {"loss": ((step * 7919) % 100) / 10}
            if lib == "native":
                manager.save(step, tree(step), metrics=metrics, wait=wait)
            else:
                manager.save(step, args=ocp.args.StandardSave(tree(step)), metrics=metrics)
            attempt(f"{name} {step}", look)
        manager.close()
        attempt(f"{name} closed", look)
"""
)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3, 4])
def test_all_processes_see_the_same_steps(run: Any, tmp_path: Path, count: int) -> None:
    first, *others = read_attempts(run(count, AGREE, str(tmp_path)))
    assert len(first) == 4 * 12
    for said in others:
        for name, found in first.items():
            assert found.kind == said[name].kind == "ok", (name, found, said[name])
            assert found.result == said[name].result, (name, found, said[name])
    for step in range(1, 11):
        assert first[f"native True {step}"].result[1] == step
        assert first[f"native False {step}"].result[1] == step


POLL = (
    SETUP
    + """
manager = tx.Manager(f"{args[0]}/run")
attempt("with process 0", lambda: manager.latest())
if index == 0:
    tx.save(f"{args[0]}/run/7", {"w": np.ones(2, np.float32)}, alone=True)
meet("saved")
if index == 1:
    for n in range(3):
        attempt(f"alone {n}", lambda: manager.latest())
"""
)


@pytest.mark.slow
def test_a_process_that_polls_alone_is_told_no_old_answer(run: Any, tmp_path: Path) -> None:
    zero, one = read_attempts(run(2, POLL, str(tmp_path)))
    assert zero["with process 0"].result is one["with process 0"].result is None
    assert [one[f"alone {n}"].result for n in range(3)] == [7, 7, 7]
    assert one["alone 0"].seconds > 4  # it waits for process 0 once
    assert max(one[f"alone {n}"].seconds for n in (1, 2)) < 1
