"""A save in the background fails; only some processes look, or look at other moments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from attempts import SETUP, check_failed, check_run, check_values, read_attempts

FULL = (
    SETUP
    + """
def go(how, who):
    run = f"{args[0]}/{how}-{who}"
    if how == "manager":
        manager = tx.Manager(run)
    if how == "compat":
        manager = ocp.CheckpointManager(run)
    for step in range(1, 6):
        mend = fail_writing(last if step == 2 else -1)
        if how == "manager":
            attempt(f"{how} {who} {step}", lambda: manager.save(step, tree(step)))
            look = manager.wait
        elif how == "compat":
            save = ocp.args.StandardSave(tree(step))
            attempt(f"{how} {who} {step}", lambda: manager.save(step, args=save) or None)
            look = manager.check_for_errors
            time.sleep(0.3 * (step != 2 or index == last))  # they look at other moments
        else:
            handle = []
            save = lambda: handle.append(tx.save(f"{run}/{step}", tree(step), wait=False))
            attempt(f"{how} {who} {step}", save)
            look = handle[0].wait if handle else lambda: None
        if index == who or who == -1:
            attempt(f"{how} {who} look {step}", lambda: look() and None)
        time.sleep(0.15)
        mend()
    close = tx.save(f"{run}/6", tree(6)).wait if how == "tx" else manager.close
    attempt(f"{how} {who} close", lambda: close() and None)

for how, who in (("manager", 0), ("manager", last), ("tx", 0), ("tx", last), ("compat", -1)):
    go(how, who)
"""
)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_failure_that_one_process_has_seen_fails_the_next_save_of_all_or_of_none(
    run: Any, tmp_path: Path, count: int
) -> None:
    told = read_attempts(run(count, FULL, str(tmp_path)))
    for how, who in [("manager", 0), ("manager", count - 1), ("tx", 0), ("tx", count - 1)]:
        name = f"{how} {who}"
        for index, said in enumerate(told):
            assert said[f"{name} 1"].kind == said[f"{name} 2"].kind == "ok", said
            if index == who:
                check_failed(said[f"{name} look 2"], "No space is left", within_s=5)
            # The others had not looked, so all are refused the next save, which says why.
            check_failed(said[f"{name} 3"], "No space is left", within_s=5)
            if index != who:
                assert "revious step was not saved" in said[f"{name} 3"].result or (
                    "An earlier save failed" in said[f"{name} 3"].result
                )
            assert said[f"{name} 4"].kind == said[f"{name} 5"].kind == "ok", (index, said)
            assert said[f"{name} close"].kind == "ok", (index, said)
        if how == "manager":
            check_run(tmp_path / f"manager-{who}", [1, 4, 5])
        else:
            names = sorted(p.name for p in (tmp_path / f"tx-{who}").iterdir())
            assert names == ["1", "4", "5", "6"]
            for step in (1, 4, 5, 6):
                check_values(tmp_path / f"tx-{who}" / str(step), step)
    # The compatible manager: all look, each at its own moment, and all hear of it once.
    steps = None
    for said in told:
        kinds = [said[f"compat -1 {step}"].kind for step in range(1, 6)]
        assert kinds[0] == kinds[3] == kinds[4] == "ok", said
        looks = [said[f"compat -1 look {step}"] for step in range(1, 6)]
        failed = [a for a in [*looks, said["compat -1 3"]] if a.kind != "ok"]
        assert failed, said
        assert all("No space is left" in a.result for a in failed), said
        assert said["compat -1 close"].kind == "ok", said
        saved = [step for step in range(1, 6) if step != 2 and kinds[step - 1] == "ok"]
        assert steps in (None, saved)
        steps = saved
    assert steps
    check_run(tmp_path / "compat--1", steps)
