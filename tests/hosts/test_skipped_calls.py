"""A process leaves a call out, fails in it before it meets the others, or makes another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from attempts import SETUP, check_failed, check_run, check_values, read_attempts

SKIP = (
    SETUP
    + """
wait = args[1] == "wait"

def save_steps(how, who):
    run = f"{args[0]}/{how}-{who}-2"  # as if it were the step that is skipped
    manager = tx.Manager(run) if how != "compat" else ocp.CheckpointManager(
        run, options=ocp.CheckpointManagerOptions(enable_async_checkpointing=not wait)
    )
    metrics = None
    for step in range(1, 5):
        if step == 2 and index == who:
            if how in ("skip", "tx", "compat"):
                continue
            if how == "interrupt":
                real = tx.Manager._find_earlier_failure
                def interrupted(*args):
                    raise KeyboardInterrupt
                tx.Manager._find_earlier_failure = interrupted
            if how == "argument":
                metrics = {"loss": "bad"}
        def save():
            if how == "tx":
                return tx.save(f"{run}/{step}", tree(step), wait=wait)
            if how == "compat":
                return manager.save(step, args=ocp.args.StandardSave(tree(step)))
            return manager.save(step, tree(step), metrics=metrics, wait=wait)
        attempt(f"{how} {who} {step}", save)
        if how == "interrupt" and step == 2 and index == who:
            tx.Manager._find_earlier_failure = real
        metrics = None
    if how != "tx":
        attempt(f"{how} {who} close", manager.close)
        attempt(f"{how} {who} steps", manager.steps if how != "compat" else manager.all_steps)
    else:
        attempt(f"{how} {who} close", tx.save(f"{run}/5", tree(5)).wait)

for how in ("skip", "argument", "interrupt", "tx", "compat"):
    for who in sorted({0, last}):
        save_steps(how, who)
"""
)


@pytest.mark.parametrize(
    ("count", "wait"),
    [
        (2, "wait"),
        pytest.param(2, "background", marks=pytest.mark.slow),
        pytest.param(3, "wait", marks=pytest.mark.slow),
        pytest.param(4, "background", marks=pytest.mark.slow),
    ],
)
def test_the_others_hear_at_once_of_a_save_left_out_and_the_next_is_whole(
    run: Any, tmp_path: Path, count: int, wait: str
) -> None:
    told = read_attempts(run(count, SKIP, str(tmp_path), wait))
    for how in ("skip", "argument", "interrupt", "tx", "compat"):
        for who in (0, count - 1):
            for index, said in enumerate(told):
                name = f"{how} {who}"
                where = (name, index, said)
                assert said[f"{name} 1"].kind == "ok", where
                assert said[f"{name} 3"].kind == "ok", where
                assert said[f"{name} 4"].kind == "ok", where
                assert said[f"{name} close"].kind == "ok", where
                second = said.get(f"{name} 2")
                if index != who:
                    assert second
                    texts = {
                        "argument": [
                            f"Process {who} of {count} failed",
                            "Expected a number in metrics=",
                        ],
                        "interrupt": [f"Process {who} of {count} failed", "KeyboardInterrupt"],
                    }.get(how, [f"rocess {who} of {count} is ahead", "saving"])
                    kind = "UsageError" if how == "argument" else "SaveError"
                    check_failed(second, *texts, within_s=5, kind=kind)
                elif how == "argument":
                    assert second
                    check_failed(second, "metrics", within_s=1, kind="UsageError")
                elif how == "interrupt":
                    assert second
                    check_failed(second, within_s=1, kind="KeyboardInterrupt")
                else:
                    assert second is None
                if how != "tx":
                    assert said[f"{name} steps"].result == [1, 3, 4], where
            if how == "tx":
                names = sorted(p.name for p in (tmp_path / f"tx-{who}-2").iterdir())
                assert names == ["1", "3", "4", "5"]
                for step in (1, 3, 4, 5):
                    check_values(tmp_path / f"tx-{who}-2" / str(step), step)
            else:
                check_run(tmp_path / f"{how}-{who}-2", [1, 3, 4])


OTHER = (
    SETUP
    + """
path = args[0]
with tx.Manager(path + "/run") as manager:
    if index < last:
        attempt("step", lambda: manager.save(1, tree(1), wait=True))
    attempt("step 2", lambda: manager.save(2, tree(2), wait=True))
attempt("path", lambda: tx.save(path + ("/x" if index == last else "/y"), tree(1)))
attempt("overwrite", lambda: tx.save(path + "/z", tree(1), overwrite=index == last))
metrics = {"loss": 1.0} if index == last else None
with tx.Manager(path + "/metrics") as manager:
    attempt("metrics", lambda: manager.save(1, tree(1), metrics=metrics, wait=True))
    attempt("metrics next", lambda: manager.save(2, tree(2), metrics={"loss": 1}, wait=True))
attempt("next", lambda: tx.save(path + "/next", tree(5)))
"""
)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3, 4])
def test_calls_that_differ_are_refused_on_all_and_the_difference_is_named(
    run: Any, tmp_path: Path, count: int
) -> None:
    told = read_attempts(run(count, OTHER, str(tmp_path)))
    last = count - 1
    for index, said in enumerate(told):
        if index < last:
            ahead = f"Process {last} of {count} is ahead: it is saving step 2 of `"
            check_failed(said["step"], ahead, "not saving step 1", within_s=5)
        assert said["step 2"].kind == "ok", (index, said)
        check_failed(
            said["path"], "every process to be saving `", f"process {last} saving `", within_s=5
        )
        check_failed(said["overwrite"], "False on process 0 and True on", within_s=5)
        check_failed(
            said["metrics"], f"no metrics on process 0 and metrics on process {last}", within_s=5
        )
        assert said["metrics next"].kind == "ok", said
        assert said["next"].kind == "ok", (index, said)
    check_run(tmp_path / "run", [2])
    check_run(tmp_path / "metrics", [2])
    check_values(tmp_path / "next", 5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics", "next", "run"]


RETRY = (
    SETUP
    + """
path = f"{args[0]}/ckpt"
if index == 0:
    attempt("invalid", lambda: tx.save(path, tree(1), on_progress=3))
meet("tried")
time.sleep(index)  # process 1 waits for process 2, and does not hear of the first try
attempt("save", lambda: tx.save(path, tree(1)))
"""
)


@pytest.mark.slow
def test_process_0_may_correct_a_call_before_the_others_come(run: Any, tmp_path: Path) -> None:
    told = read_attempts(run(3, RETRY, str(tmp_path)))
    assert told[0]["invalid"].kind == "UsageError"
    assert [said["save"].kind for said in told] == ["ok"] * 3
