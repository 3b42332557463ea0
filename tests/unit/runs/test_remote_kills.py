"""Programs that are killed while they save to, or delete from, a run in an object store."""

import contextlib
import uuid

import jax.numpy as jnp
import pytest

import templax as tx
from dying_requests import LEASE_S, Dead, Dying
from helpers import mark_slow
from templax._runs.run_storage import open_run
from templax._runs.steps import read_run
from templax.storage import lease, open_source
from templax.storage.requests import Requests

TEMPLATE = {"w": jnp.zeros(4), "step": 0}


def tree(value):
    return {"w": jnp.full(4, float(value)), "step": int(value)}


def save_step(url):
    with tx.Manager(url) as manager:
        manager.save(20, tree(20), metrics={"loss": 0.5}, wait=True)


def replace_step(url):
    with tx.Manager(url) as manager:
        manager.save(10, tree(11), overwrite=True, wait=True)


def save_and_delete(url):
    with tx.Manager(url, keep=1) as manager:
        manager.save(20, tree(20), wait=True)


def make_run(url):
    with tx.Manager(url) as manager:
        manager.save(5, tree(5), metrics={"loss": 2.0}, wait=True)
        manager.save(10, tree(10), wait=True)


def read_values(url):
    """The value of each step that is listed, each restored whole."""
    manager = tx.Manager(url)
    values = {}
    for step in manager.steps():
        found = manager.restore(TEMPLATE, step)
        assert (found["w"] == found["step"]).all()
        values[step] = found["step"]
        assert tx.verify(manager.path(step)).ok
    return values


def count_requests(monkeypatch, act):
    url = f"memory://{uuid.uuid4().hex}/run"
    make_run(url)
    with monkeypatch.context() as patched:
        living = Dying(patched)
        act(url)
    return living.count


SAVED = ({5: 5, 10: 10}, {5: 5, 10: 10, 20: 20})
REPLACED = ({5: 5, 10: 10}, {5: 5, 10: 11})
DELETED = ({5: 5, 10: 10}, {20: 20})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "states", "applied", "every"),
    [
        (save_step, SAVED, False, 5),
        (save_and_delete, DELETED, True, 9),
        *mark_slow(
            (save_step, SAVED, False, 1),
            (save_step, SAVED, True, 1),
            (replace_step, REPLACED, False, 1),
            (replace_step, REPLACED, True, 1),
            (save_and_delete, DELETED, False, 1),
            (save_and_delete, DELETED, True, 1),
        ),
    ],
)
def test_a_killed_program_leaves_whole_steps_and_named_leftovers(
    monkeypatch, act, states, applied, every
):
    """Killed at each request that changes something, whether the store still does it or not."""
    before, after = states
    total = count_requests(monkeypatch, act)
    assert total > 8
    for at in range(1, total + 1, every):
        url = f"memory://{uuid.uuid4().hex}/run"
        make_run(url)
        with monkeypatch.context() as patched:
            dying = Dying(patched, at, applied=applied)
            with contextlib.suppress(tx.SaveError, Dead):
                act(url)
            if not dying.dead:  # leases are renewed by the clock, so that the number differs
                assert at > total * 2 // 3
                break
            found = read_values(url)
            assert found.items() <= before.items() | after.items(), at
            # Only the step that was being replaced or deleted may be lacking.
            run = read_run(open_source(url))
            missing = (before.keys() & after.keys()) - found.keys()
            assert missing <= ({10} if act is replace_step else set()), at
            unfinished = {directory.step: directory.problem for directory in run.leftovers}
            assert not unfinished.keys() & found.keys()
            assert missing <= unfinished.keys()
            for problem in unfinished.values():
                assert problem.startswith(("`templax.lease` in it says", "it holds nothing but"))
            # The next program saves, and what is left can be deleted.
            storage = open_run(url)
            keys = [directory.key for directory in run.leftovers]
            assert storage.find_abandoned(keys) >= {
                d.key for d in run.leftovers if "lease" in d.problem
            }
            with tx.Manager(url) as manager:
                manager.save(30, tree(30), wait=True)
                if 20 in unfinished:
                    manager.save(20, tree(21), overwrite=True, wait=True)
                    assert manager.restore(TEMPLATE, 20)["step"] == 21
            for directory in read_run(open_source(url)).leftovers:
                storage.remove_leftover(directory.key)
            assert read_run(open_source(url)).leftovers == ()


def test_a_save_that_could_not_clean_up_is_no_step(monkeypatch):
    """The lease stays as long as any file does: the files alone would look like a step."""
    url = f"memory://{uuid.uuid4().hex}/run"
    make_run(url)
    put, failing = Requests.put, []

    async def fail_at_the_marker(self, path, *args):
        if path.endswith("/20/commit_success.txt"):
            failing.append(path)
            raise tx.SourceError("the store is down")
        return await put(self, path, *args)

    async def fail_mostly(self, paths):
        if not failing:
            return await delete(self, paths)
        if len(paths) == 1:  # the lease: the store is up again
            return await delete(self, paths)
        raise tx.SourceError("the store is down")

    delete = Requests.delete
    monkeypatch.setattr(lease, "LEASE_S", LEASE_S)
    with monkeypatch.context() as patched:
        patched.setattr(Requests, "put", fail_at_the_marker)
        patched.setattr(Requests, "delete", fail_mostly)
        with pytest.raises(tx.SaveError, match="could not be removed"):
            save_step(url)
    run = read_run(open_source(url))
    assert list(run.committed) == [5, 10]
    (left,) = run.leftovers
    assert left.problem.startswith("`templax.lease` in it says")
    with tx.Manager(url) as manager:
        manager.save(20, tree(20), wait=True)
    assert read_values(url) == {5: 5, 10: 10, 20: 20}
