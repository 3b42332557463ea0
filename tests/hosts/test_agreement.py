"""Processes of one job that agree, disagree, fail, are late and die."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from helpers import mark_slow

PREAMBLE = """
import hashlib, json, threading, time
import templax as tx
from templax._hosts import agreement, presence
from templax._jax import coordination
from jax._src import distributed

client = distributed.global_state.client
last = count - 1

def meet(name):
    client.wait_at_barrier(name, 60_000)

def tell(name, call):
    try:
        result = call()
    except (tx.TemplaxError, ValueError, KeyboardInterrupt) as error:
        places = [getattr(error, key, None) for key in ("leaf", "file", "hint")]
        result = [type(error).__name__, getattr(error, "what", str(error)), *places]
    print(json.dumps([name, result]))

def case(call):
    tell(call.__name__, call)

presence.SILENT_S, presence.HEARTBEAT_S = 3.0, 0.5

def join_save(path="/ckpt/1", timeout=100.0):
    job = agreement.open_call("saving", path, timeout=timeout)
    with job.report_errors():
        job.join()
    return job

def digest(values):
    return [[len(value), hashlib.sha256(value).hexdigest()] for value in values]
"""

CASES = (
    PREAMBLE
    + """
@case
def all_receive_from_process_0():
    with join_save() as job:
        first = job.tell_all("naming", b"token" if index == 0 else None)
        second = job.tell_all("planning", b"\\0\\xff%d" % index)
        return [first.decode(), list(second)]

@case
def process_0_receives_from_all():
    with join_save() as job:
        values = job.gather("writing", b"of %d" % index)
        return [[value.decode() for value in values], job.index, job.count]

@case
def values_are_of_any_size():
    size = {0: 5, 1: coordination.CHUNK_BYTES * 2}.get(index, (20 << 20) + index)
    if count == 2 and index == 1:
        size = (20 << 20) + 3
    mine = os.urandom(64) * (size // 64) + bytes(size % 64)
    with join_save() as job:
        values = job.gather("writing", mine)
        empty = job.gather("syncing", b"")
        again = job.tell_all("committing", values[-1] if values else None)
        return [digest(values), digest([mine, again]), len(empty)]

@case
def none_has_a_problem():
    with join_save() as job:
        return job.agree("writing")

@case
def one_has_a_problem():
    with join_save() as job:
        disk = tx.SaveError("No space is left", leaf="a.b", file="/ckpt/1/d", hint="make room")
        job.agree("writing", disk if index == last else None)

@case
def all_have_problems():
    with join_save() as job:
        job.agree("writing", tx.SaveError(f"Disk {index} is full"))

@case
def a_problem_does_not_wait_for_the_slow():
    with join_save() as job:
        if index == last:
            meet("it was raised")
            return job.agree("writing")
        try:
            job.agree("writing", tx.SaveError("No") if index == 0 else None)
        finally:
            meet("it was raised")

@case
def the_target_exists():
    with join_save() as job:
        there = tx.AlreadyExists("`/ckpt/1` is there", file="/ckpt/1", hint="overwrite=True")
        job.agree("looking", there if index == 0 else None)

@case
def the_target_exists_and_a_disk_is_full():
    with join_save() as job:
        there = tx.AlreadyExists("`/ckpt/1` is there")
        job.agree("looking", there if index == 0 else tx.SaveError("Full") if index == 1 else None)

@case
def the_last_process_raises():
    with join_save() as job:
        job.tell_all("naming", b"x")
        if index == last:
            raise ValueError("boom")
        job.agree("writing")

@case
def process_0_raises():
    with join_save() as job:
        job.tell_all("naming", b"x")
        if index == 0:
            raise ValueError("boom")
        job.agree("writing")

@case
def a_failed_save_stays_failed():
    with join_save() as job:
        try:
            job.agree("writing", tx.SaveError("No") if index == 0 else None)
        except tx.SaveError:
            job.agree("committing")

@case
def they_save_to_different_paths():
    with join_save("/ckpt/b" if index == last else "/ckpt/a") as job:
        job.tell_all("naming", b"x")

@case
def they_are_at_different_steps():
    with join_save() as job:
        job.agree("committing" if index == last else "writing")

@case
def the_last_process_is_late():
    if index == last:
        meet("without it")
    try:
        with join_save(timeout=3.0) as job:
            job.agree("writing")
    finally:
        if index != last:
            meet("without it")

@case
def process_0_is_late():
    if index == 0:
        meet("without 0")
    try:
        with join_save(timeout=3.0) as job:
            job.agree("writing")
    finally:
        if index != 0:
            meet("without 0")

@case
def a_slow_process_is_awaited():
    with join_save(timeout=3.0) as job:
        job.tell_all("naming", b"x")
        if index == last:
            threading.Event().wait(4.0)
        job.agree("writing")
        if index == 0:
            threading.Event().wait(4.0)
        job.agree("committing")
        return "saved"

@case
def one_is_interrupted_in_a_step():
    with join_save(timeout=2.0) as job:
        if index == last:
            def interrupt(doing):
                raise KeyboardInterrupt
            job._session._await_verdict = interrupt
        job.tell_all("naming", b"x")
        job.agree("writing")

@case
def threads_agree_during_computations():
    from jax.sharding import NamedSharding, PartitionSpec
    mesh = jax.make_mesh((2 * count,), ("x",))
    x = jax.device_put(jax.numpy.ones(8), NamedSharding(mesh, PartitionSpec("x")))
    step = jax.jit(lambda x: x * 2 / x.sum() * x.size)
    done, rounds = threading.Event(), []
    def agree(job):
        with job:
            while not rounds or rounds[-1] != b"stop":
                value = b"stop" if done.is_set() else b"%d" % len(rounds)
                rounds.append(job.tell_all("counting", value))
    thread = threading.Thread(target=agree, args=(join_save(),))
    thread.start()
    for _ in range(20):
        x = step(x)
    x.block_until_ready()
    done.set()
    thread.join()
    return [len(rounds) > 1, float(step(x).sum())]

@case
def two_saves_at_once():
    jobs = [join_save("/ckpt/a"), join_save("/ckpt/b")]
    values = {}
    def work(n):
        with jobs[n] as job:
            values[n] = job.tell_all("naming", b"%d" % n).decode()
    threads = [threading.Thread(target=work, args=(n,)) for n in (0, 1)]
    for thread in threads if index == 0 else threads[::-1]:
        thread.start()
    for thread in threads:
        thread.join()
    return [values[0], values[1]]

with join_save() as job:  # process 0 deletes the sessions that all have left before
    pass
meet("done")
tell("what is left", lambda: sorted(
    {key.removeprefix("templax/").rpartition("/")[0]
     for key, _ in client.key_value_dir_get_bytes("templax")}
    - {"alive", ""}
))
meet("looked")
"""
)


@pytest.fixture(scope="module", params=mark_slow(2, 4))
def results(run: Any, request: pytest.FixtureRequest) -> dict[str, list[Any]]:
    """The result of each case on each process, for a job of two processes and one of four."""
    outputs = run(request.param, CASES)
    assert [(o.code, o.err.count("Traceback")) for o in outputs] == [(0, 0)] * request.param, (
        outputs[0].err
    )
    cases = [dict(json.loads(line) for line in output.out.splitlines()) for output in outputs]
    return {name: [case[name] for case in cases] for name in cases[0]}


Results = dict[str, list[Any]]


def _expect_error(what: str, kind: str = "SaveError", **places: str) -> list[str | None]:
    return [kind, what, places.get("leaf"), places.get("file", "/ckpt/1"), places.get("hint")]


def test_all_receive_from_process_0(results: Results) -> None:
    for got in results["all_receive_from_process_0"]:
        assert got == ["token", [0, 255, ord("0")]]


def test_process_0_receives_from_all_in_order(results: Results) -> None:
    first, *others = results["process_0_receives_from_all"]
    n = len(others) + 1
    assert first == [[f"of {i}" for i in range(n)], 0, n]
    assert others == [[[], i, n] for i in range(1, n)]


def test_values_may_be_larger_than_a_message(results: Results) -> None:
    got = results["values_are_of_any_size"]
    heard = got[0][0]
    assert heard == [mine for _, (mine, _), _ in got]
    assert all(again == heard[-1] for _, (_, again), _ in got)
    assert heard[-1][0] > 20 << 20
    assert [n for _, _, n in got] == [len(got)] + [0] * (len(got) - 1)


def test_without_a_problem_agreement_returns(results: Results) -> None:
    assert set(results["none_has_a_problem"]) == {None}


def test_a_problem_of_one_process_is_raised_on_all(results: Results) -> None:
    got = results["one_has_a_problem"]
    n = len(got)
    what = f"Process {n - 1} of {n} failed while writing: No space is left"
    expected = _expect_error(what, leaf="a.b", file="/ckpt/1/d", hint="make room")
    assert got == [expected] * n


def test_problems_of_several_processes_are_raised_on_all(results: Results) -> None:
    got = results["all_have_problems"]
    n = len(got)
    texts = [f"process {i} of {n} failed while writing: Disk {i} is full" for i in range(n)]
    what = "; ".join(texts)
    assert got == [_expect_error(f"P{what[1:]}")] * n


def test_a_problem_does_not_wait_for_slow_processes(results: Results) -> None:
    got = results["a_problem_does_not_wait_for_the_slow"]
    n = len(got)
    assert got == [_expect_error(f"Process 0 of {n} failed while writing: No")] * n


def test_an_existing_target_is_the_same_error_on_all(results: Results) -> None:
    got = results["the_target_exists"]
    expected = _expect_error("`/ckpt/1` is there", "AlreadyExists", hint="overwrite=True")
    assert got == [expected] * len(got)


def test_another_problem_takes_precedence_over_an_existing_target(results: Results) -> None:
    got = results["the_target_exists_and_a_disk_is_full"]
    n = len(got)
    what = f"Process 0 of {n} failed while looking: `/ckpt/1` is there; "
    what += f"process 1 of {n} failed while looking: Full"
    assert got == [_expect_error(what)] * n


def test_an_exception_of_one_process_is_raised_on_the_others(results: Results) -> None:
    *others, raised = results["the_last_process_raises"]
    n = len(others) + 1
    assert raised[:2] == ["ValueError", "boom"]
    what = f"Process {n - 1} of {n} failed while writing: ValueError: boom"
    assert others == [_expect_error(what)] * (n - 1)
    raised, *others = results["process_0_raises"]
    assert raised[:2] == ["ValueError", "boom"]
    assert others == [_expect_error(f"Process 0 of {n} failed: ValueError: boom")] * (n - 1)


def test_a_failed_save_stays_failed(results: Results) -> None:
    got = results["a_failed_save_stays_failed"]
    assert got == [_expect_error("This call has failed before")] * len(got)


def test_different_paths_and_steps_are_named(results: Results) -> None:
    got = results["they_save_to_different_paths"]
    n = len(got)
    what = f"Expected every process to be saving `/ckpt/a`, got process {n - 1} saving `/ckpt/b`"
    hint = "make the same calls in the same order on every process"
    assert got == [_expect_error(what, file="/ckpt/a", hint=hint)] * n
    what = f"Expected every process to be `writing`, got `committing` on process {n - 1}"
    hint = "run the same version of templax on every process"
    assert results["they_are_at_different_steps"] == [_expect_error(what, hint=hint)] * n


def test_a_late_process_is_named_on_all_and_on_itself(results: Results) -> None:
    got = results["the_last_process_is_late"]
    n = len(got)
    what = f"Process {n - 1} of {n} did not come within 3 s"
    what += " while process 0 is saving `/ckpt/1`"
    assert got == [_expect_error(what, hint="the logs of these processes say why")] * n
    first, *others = results["process_0_is_late"]
    for index, error in enumerate(others, 1):
        what = f"Process 0 of {n} did not come within 3 s"
        what += f" while process {index} is saving `/ckpt/1`"
        assert error == _expect_error(what, hint="the logs of these processes say why")
    assert first[0] == "SaveError"
    assert "did not come within 3 s" in first[1]


def test_a_slow_process_that_lives_is_awaited(results: Results) -> None:
    assert set(results["a_slow_process_is_awaited"]) == {"saved"}


def test_an_interrupted_process_is_reported_at_the_next_step(results: Results) -> None:
    *others, raised = results["one_is_interrupted_in_a_step"]
    n = len(others) + 1
    assert raised[0] == "KeyboardInterrupt"
    what = f"Process {n - 1} of {n} failed while writing: KeyboardInterrupt"
    assert others == [_expect_error(what)] * (n - 1)


def test_threads_agree_while_the_main_thread_computes(results: Results) -> None:
    got = results["threads_agree_during_computations"]
    assert got == [[True, 16.0]] * len(got)


def test_two_saves_at_once_are_kept_apart(results: Results) -> None:
    got = results["two_saves_at_once"]
    assert got == [["0", "1"]] * len(got)


def test_only_the_last_session_is_left_in_the_store(results: Results) -> None:
    """Not even failed ones are, once all processes have left them, nor offers and answers."""
    for left in results["what is left"]:
        assert len(left) == 1, left
        assert left[0].startswith("session/")
        assert left[0].endswith("/closed")


SAVE = (
    PREAMBLE
    + """
victim, at, calls = int(args[0]), int(args[1]), 0

def count_calls(name):
    inner = getattr(coordination.JobStore, name)
    def call(self, *arguments, **options):
        global calls
        if index == victim and threading.current_thread() is threading.main_thread():
            if calls == at:
                die()
            calls += 1
        return inner(self, *arguments, **options)
    return call

for name in ("set", "get", "by_process", "by_process_and_number", "peek", "put", "take"):
    setattr(coordination.JobStore, name, count_calls(name))

def save():
    with join_save(timeout=3.0) as job:
        job.tell_all("naming", b"x" * 10)
        job.gather("writing", b"y" * 10)
        job.agree("committing")
        return "saved"

# No kill before all processes have their devices: until then JAX ends the others differently.
jax.devices()
open(os.path.join(args[2], str(index)), "w").close()
while len(os.listdir(args[2])) < count:
    time.sleep(0.01)
tell("save", save)
print(json.dumps(["calls", calls]))
"""
)
COMING = "process 0 is saving `/ckpt/1`"

CALLS = 15
"""The least number of calls of the store that a process other than 0 makes in `SAVE`."""

OFFERED = 2
"""The index of the call before which the process has offered to take part."""

LAST_NEEDED_CALL = 11
"""The index of the call after which the save no longer needs the process."""


def _kill(run: Any, n: int, victim: int, at: int, directory: Path) -> list[Any]:
    """The result of the save on each survivor; None for one that JAX ended."""
    outputs = run(n, SAVE, str(victim), str(at), str(directory))
    print(*(output.err[-3000:] for output in outputs))
    assert outputs[victim].code == -signal.SIGKILL, outputs[victim]
    told = [dict(json.loads(line) for line in o.out.splitlines()) for o in outputs]
    return [case.get("save") for i, case in enumerate(told) if i != victim]


def _expect_death(n: int, victim: int, doing: str) -> list[str | None]:
    what = f"Process {victim} of {n} did not answer within 3 s while {doing}"
    return _expect_error(what, hint="the logs of these processes say why")


def _expect_late(n: int, victim: int) -> list[str | None]:
    """Of a process that died before it came: the others have waited for it no longer than that."""
    what = f"Process {victim} of {n} did not come within 3 s while {COMING}"
    return _expect_error(what, hint="the logs of these processes say why")


@pytest.mark.slow
def test_a_process_makes_as_many_calls_as_are_tried_below(run: Any, tmp_path: Path) -> None:
    outputs = run(2, SAVE, "1", "1000", str(tmp_path))
    assert [output.code for output in outputs] == [0, 0]
    told = dict(json.loads(line) for line in outputs[1].out.splitlines())
    assert told["save"] == "saved"
    assert told["calls"] >= CALLS


@pytest.mark.slow
@pytest.mark.parametrize(("at", "doing"), [(2, "naming"), (7, "writing"), (11, "committing")])
def test_a_killed_process_is_named_by_all_others(
    run: Any, tmp_path: Path, at: int, doing: str
) -> None:
    survivors = _kill(run, 4, 2, at, tmp_path)
    assert survivors == [_expect_death(4, 2, doing)] * 3


@pytest.mark.slow
@pytest.mark.parametrize("at", range(CALLS))
def test_all_survivors_of_a_kill_at_any_call_end_the_same(
    run: Any, tmp_path: Path, at: int
) -> None:
    """They name it, or it was no longer needed, and the save succeeds on all."""
    survivors = _kill(run, 3, 1, at, tmp_path)
    assert survivors[0] in [
        *([_expect_late(3, 1), _expect_death(3, 1, COMING)] if at < OFFERED else []),
        *(_expect_death(3, 1, doing) for doing in ("naming", "writing", "committing")),
        "saved",
    ]
    assert survivors == [survivors[0]] * 2
    assert survivors[0] != "saved" or at > LAST_NEEDED_CALL


@pytest.mark.slow
@pytest.mark.parametrize("at", [0, 2, 5])
def test_no_process_waits_for_a_killed_process_0(run: Any, tmp_path: Path, at: int) -> None:
    """JAX ends the others, unless they raise before."""
    outputs = run(2, SAVE, "0", str(at), str(tmp_path))
    assert outputs[0].code == -signal.SIGKILL
    assert outputs[1].code == -signal.SIGABRT or "SaveError" in outputs[1].out
