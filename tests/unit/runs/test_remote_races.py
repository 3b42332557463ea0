"""Programs that save or delete the same step of a run in an object store at the same time."""

import threading
import uuid

import jax.numpy as jnp
import numpy as np
import pytest

import templax as tx
from helpers import is_thorough, mark_slow
from templax._hosts.agreement import open_call
from templax._runs.run_storage import open_run
from templax._save.destination import Destination
from templax._save.job import Job
from templax._save.options import make_options
from templax.storage import lease, stores

TEMPLATE = {"w": np.zeros(64, np.float32), "by": 0}


@pytest.fixture(autouse=True)
def _look_often(monkeypatch):
    """Lets who waits for a lease look at it ten times a second."""
    monkeypatch.setattr(lease, "LEASE_S", 2.0)


def start_together(*works):
    """Runs functions in threads that start at once; returns what each returned or raised."""
    gate, results = threading.Barrier(len(works)), [None] * len(works)

    def run(index):
        gate.wait()
        try:
            results[index] = works[index]()
        except Exception as error:  # noqa: BLE001, it is compared
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def save_as(url, step, who, *, overwrite=False):
    """A save as another program makes it: in one program they wait for each other."""

    def save():
        place = f"{url}/{step}"
        call = open_call("saving", place)
        job = Job(call, place, make_options(overwrite=overwrite, threads=1))
        tree = {"w": np.full(64, who, np.float32), "by": who}
        try:
            job.begin({"": tree}, lambda: Destination(place, "default"), background=False)
        except BaseException as error:
            job.abort(error)
            raise
        job.run()
        if job.outcome.error is not None:
            raise job.outcome.error
        return who

    return save


def list_names(url):
    store = stores._memory[url.split("/")[2]]
    return sorted(meta["path"] for page in store.list() for meta in page)


def check_whole(url, step):
    """Restores a step, whose files must all be of one save; returns whose."""
    found = tx.Manager(url).restore(TEMPLATE, step)
    assert (found["w"] == found["by"]).all()
    assert tx.verify(f"{url}/{step}").ok
    return found["by"]


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [20, *mark_slow(1000 if is_thorough() else 250)])
def test_one_of_two_programs_that_save_a_step_wins_and_the_other_says_so(rounds):
    url = f"memory://{uuid.uuid4().hex}/run"
    wins = {1: 0, 2: 0}
    for step in range(rounds):
        results = start_together(save_as(url, step, 1), save_as(url, step, 2))
        errors = [result for result in results if isinstance(result, Exception)]
        (winner,) = [result for result in results if result in (1, 2)]
        (error,) = errors
        assert isinstance(error, tx.AlreadyExists), error
        assert str(error).startswith(
            ("Another process is saving this checkpoint", "Expected nothing, found objects such as")
        )
        assert check_whole(url, step) == winner
        data = [name for name in list_names(url) if name.startswith(f"run/{step}/default/d/")]
        assert len(data) == 1
        assert f"run/{step}/templax.lease" not in list_names(url)
        open_run(url).delete(str(step))
        wins[winner] += 1
    assert list_names(url) == []
    if rounds > 100:
        assert all(wins.values())


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [10, *mark_slow(200 if is_thorough() else 80)])
def test_a_step_that_two_programs_replace_is_that_of_one(rounds):
    url = f"memory://{uuid.uuid4().hex}/run"
    for round in range(rounds):
        save_as(url, 0, 3, overwrite=round > 0)()
        results = start_together(
            save_as(url, 0, 1, overwrite=True), save_as(url, 0, 2, overwrite=True)
        )
        won = [result for result in results if result in (1, 2)]
        assert won  # one after the other, both may replace it
        for error in results:
            assert error in (1, 2) or isinstance(error, tx.AlreadyExists), error
        assert check_whole(url, 0) in won


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [10, *mark_slow(200 if is_thorough() else 80)])
def test_a_step_is_replaced_or_deleted_but_never_in_part(rounds):
    url = f"memory://{uuid.uuid4().hex}/run"
    for _ in range(rounds):
        if not tx.Manager(url).steps():
            save_as(url, 0, 3)()
        saved, deleted = start_together(
            save_as(url, 0, 1, overwrite=True), lambda: open_run(url).delete("0")
        )
        assert saved == 1 or isinstance(saved, tx.SaveError)
        assert deleted is True or isinstance(deleted, tx.SaveError)
        assert saved == 1 or deleted is True
        if tx.Manager(url).steps():
            assert check_whole(url, 0) in (1, 3)
        else:
            assert list_names(url) == []
        assert not any(name.endswith("templax.lease") for name in list_names(url))


@pytest.mark.slow
def test_programs_that_save_different_steps_do_not_hinder_each_other():
    url = f"memory://{uuid.uuid4().hex}/run"
    results = start_together(*(save_as(url, step, step) for step in range(8)))
    assert results == list(range(8))
    assert tx.Manager(url).steps() == list(range(8))
    assert [check_whole(url, step) for step in range(8)] == list(range(8))
    with tx.Manager(url, keep=1) as manager:
        manager.save(8, {"w": jnp.zeros(64), "by": 0}, wait=True)
        assert manager.steps() == [8]
