"""A process leaves a run, ends, or is ended, while the others go on to their next save."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from attempts import SETUP, check_failed, check_run, read_attempts

LEAVE = (
    SETUP
    + """
from templax._runs import agreed_steps
agreed_steps.CLOSED_S = 1.0
ERRORS = {
    "exception": lambda: RuntimeError("boom in training"),
    "exit": lambda: SystemExit(3),
    "interrupt": KeyboardInterrupt,
    "close": lambda: None,
}
for what, error in ERRORS.items():
    for who, victim in ((0, "first"), (last, "last")):
        name = f"{what} {victim}"
        run = f"{args[0]}/{what}-{victim}"
        try:
            with tx.Manager(run) as manager:
                for step in (1, 2, 3):
                    if step == 3 and index == who:
                        if what == "close":
                            break
                        raise error()
                    save = lambda: manager.save(step, tree(step), wait=args[1] == "wait")
                    attempt(f"{name} {step}", save)
        except BaseException as failed:
            print(json.dumps([f"{name} end", type(failed).__name__, str(failed), 0]))
        meet(name)
        with tx.Manager(run) as manager:
            attempt(f"{name} again", lambda: manager.save(4, tree(4), wait=True))
            attempt(f"{name} steps", manager.steps)
"""
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "wait"),
    [
        (2, "background"),
        (2, "wait"),
        (3, "background"),
        (4, "wait"),
    ],
)
def test_the_others_hear_who_left_the_run_and_why_and_all_may_come_back(
    run: Any, tmp_path: Path, count: int, wait: str
) -> None:
    """What was being saved in the background is saved all the same."""
    told = read_attempts(run(count, LEAVE, str(tmp_path), wait))
    texts = {
        "exception": "left the run by RuntimeError: boom in training",
        "exit": "left the run by SystemExit: 3",
        "interrupt": "left the run by KeyboardInterrupt",
        "close": "closed the run",
    }
    ends = {"exception": "RuntimeError", "exit": "SystemExit", "interrupt": "KeyboardInterrupt"}
    for what, text in texts.items():
        for who, victim in ((0, "first"), (count - 1, "last")):
            name = f"{what} {victim}"
            for index, said in enumerate(told):
                assert said[f"{name} 1"].kind == said[f"{name} 2"].kind == "ok", said
                if index == who:
                    assert what == "close" or said[f"{name} end"].kind == ends[what]
                else:
                    named = f"rocess {who} of {count} {text}"
                    check_failed(said[f"{name} 3"], named, within_s=6 if what == "close" else 4)
                assert said[f"{name} again"].kind == "ok", (name, index, said)
                assert said[f"{name} steps"].result == [1, 2, 4], (name, index, said)
            check_run(tmp_path / f"{what}-{victim}", [1, 2, 4])


END = (
    SETUP
    + """
presence.SILENT_S, presence.HEARTBEAT_S = 3.0, 0.5
who = 0 if args[2] == "first" else last
manager = tx.Manager(args[0])
for step in range(1, 5):
    if step == 3 and index == who:
        if args[1] == "sys.exit":
            sys.exit(3)
        if args[1] == "exception":
            raise RuntimeError("boom in training")
        if args[1] == "os._exit":
            os._exit(3)
        os.kill(os.getpid(), {"SIGTERM": signal.SIGTERM, "SIGKILL": signal.SIGKILL}[args[1]])
        time.sleep(1.0)  # if it goes on
        print(json.dumps(["alive", "ok", None, 0]))
    attempt(f"{step}", lambda: manager.save(step, tree(step), wait=args[3] == "wait"))
"""
)


@pytest.mark.parametrize(
    ("count", "what", "victim", "wait"),
    [
        pytest.param(2, "sys.exit", "last", "background", marks=pytest.mark.slow),
        pytest.param(2, "exception", "first", "wait", marks=pytest.mark.slow),
        pytest.param(3, "sys.exit", "first", "background", marks=pytest.mark.slow),
        pytest.param(3, "exception", "last", "wait", marks=pytest.mark.slow),
        pytest.param(4, "exception", "last", "background", marks=pytest.mark.slow),
    ],
)
def test_the_others_hear_of_a_program_that_ends(
    run: Any, tmp_path: Path, count: int, what: str, victim: str, wait: str
) -> None:
    """What was being saved in the background is saved all the same."""
    outputs = run(count, END, str(tmp_path), what, victim, wait, ends=True)
    told = read_attempts(outputs, alive=False)
    who = 0 if victim == "first" else count - 1
    why = " by RuntimeError: boom in training" if what == "exception" else ""
    for index, (output, said) in enumerate(zip(outputs, told, strict=True)):
        assert said["1"].kind == said["2"].kind == "ok", output.err[-2000:]
        if index == who:
            assert output.code == (3 if what == "sys.exit" else 1), output.err[-2000:]
        else:
            assert output.code == 0, output.err[-2000:]
            text = f"rocess {who} of {count} left: its program ended{why}"
            check_failed(said["3"], text, within_s=4)
            check_failed(said["4"], text, within_s=2)
    check_run(tmp_path, [1, 2])


OFTEN = (
    SETUP
    + """
presence.HEARTBEAT_S = 0.0
attempt("save", lambda: tx.Manager(args[0]).save(1, tree(1), wait=True))
"""
)


@pytest.mark.slow
def test_a_program_ends_well_while_it_sends_a_heartbeat(run: Any, tmp_path: Path) -> None:
    """A thread that comes back from C++ once Python has ended aborts the process."""
    for output in run(4, OFTEN, str(tmp_path), ends=True):
        assert output.code == 0, output.err[-2000:]


@pytest.mark.parametrize(
    ("count", "what", "text", "code"),
    [
        (2, "SIGTERM", "left: SIGTERM", -15),
        pytest.param(2, "SIGKILL", "did not answer within 3 s", -9, marks=pytest.mark.slow),
        pytest.param(2, "os._exit", "did not answer within 3 s", 3, marks=pytest.mark.slow),
        pytest.param(3, "SIGKILL", "did not answer within 3 s", -9, marks=pytest.mark.slow),
        pytest.param(4, "SIGTERM", "left: SIGTERM", -15, marks=pytest.mark.slow),
    ],
)
def test_a_process_that_is_ended_is_named_and_not_waited_for_again(
    run: Any, tmp_path: Path, count: int, what: str, text: str, code: int
) -> None:
    env = {"JAX_ENABLE_PREEMPTION_SERVICE": "0"}
    outputs = run(count, END, str(tmp_path), what, "last", "wait", env=env)
    told = read_attempts(outputs[:-1])
    assert outputs[-1].code == code
    named = f"rocess {count - 1} of {count} {text}"
    for said in told:
        check_failed(said["3"], named, within_s=3 if what == "SIGTERM" else 9)
        check_failed(said["4"], named, within_s=2)
    check_run(tmp_path, [1, 2])


@pytest.mark.slow
def test_a_process_goes_on_after_a_sigterm_that_jax_catches(run: Any, tmp_path: Path) -> None:
    """The job decides at which step to stop: see `reached_preemption_sync_point`."""
    env = {"JAX_ENABLE_PREEMPTION_SERVICE": "1"}
    told = read_attempts(run(2, END, str(tmp_path), "SIGTERM", "last", "wait", env=env))
    assert told[1]["alive"].kind == "ok"
    for said in told:
        assert [said[f"{step}"].kind for step in range(1, 5)] == ["ok"] * 4, said
    check_run(tmp_path, [1, 2, 3, 4])


STOP = (
    SETUP
    + """
import subprocess
presence.SILENT_S, presence.HEARTBEAT_S = 3.0, 0.5
manager = tx.Manager(args[0])
for step in range(1, 6):
    if step == 3 and index == last:
        subprocess.Popen(["bash", "-c", f"sleep 8; kill -CONT {os.getpid()}"])
        os.kill(os.getpid(), signal.SIGSTOP)
    if step == 5:
        meet("awake")
    attempt(f"{step}", lambda: manager.save(step, tree(step), wait=True))
attempt("steps", manager.steps)
"""
)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_a_process_that_stands_still_is_given_up_and_may_come_back(
    run: Any, tmp_path: Path, count: int
) -> None:
    *others, last = read_attempts(run(count, STOP, str(tmp_path)))
    for said in others:
        named = f"rocess {count - 1} of {count} did not answer within 3 s"
        check_failed(said["3"], named, within_s=8)
        check_failed(said["4"], named, within_s=2)
    for step in ("3", "4"):  # it hears at once that the others have given up
        check_failed(last[step], within_s=2)
    for said in (*others, last):
        assert said["5"].kind == "ok", said
        assert said["steps"].result == [1, 2, 5], said
    check_run(tmp_path, [1, 2, 5])
