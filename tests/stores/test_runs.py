"""Runs in real object stores: several programs save, restore and delete steps."""

from __future__ import annotations

import json
import multiprocessing
import os
from typing import Any

import numpy as np
import pytest

import templax as tx
from helpers import choose_some, mark_slow, run_cli
from templax._runs.run_storage import open_run
from templax._runs.steps import read_run
from templax.storage import lease as leases
from templax.storage.requests import Requests

from .choice import WRITABLE, run_on
from .connect import find_storage, open_bucket
from .faults import Answer, LoseAnswer
from .proxy import FaultProxy
from .server import Bucket

TEMPLATE = {"w": np.zeros(4, np.float32), "step": 0}


def make_tree(step: int) -> dict[str, Any]:
    return {"w": np.full(4, step, np.float32), "step": step}


@run_on(*WRITABLE, quick=("moto", "fake-gcs"))
def test_a_run_is_saved_restored_and_pruned(bucket: Bucket) -> None:
    url, store = f"{bucket.url}/some/run", find_storage(bucket)
    keep = tx.Keep(last=2, best=1, metric="loss")
    with tx.Manager(url, keep=keep, storage=store) as manager:
        for step in (1, 2, 3, 4):
            manager.save(step, make_tree(step), metrics={"loss": [3, 1, 4, 5][step - 1]})
        with pytest.raises(tx.AlreadyExists):
            manager.save(4, make_tree(5), wait=True)
        manager.save(4, make_tree(5), metrics={"loss": 6.0}, overwrite=True)
    other = tx.Manager(url, storage=store)
    assert (other.steps(), other.best("loss"), other.metrics(4)) == ([2, 3, 4], 2, {"loss": 6.0})
    assert other.restore(TEMPLATE)["step"] == 5
    assert other.restore(TEMPLATE, fallback=True)["w"].tolist() == [5.0] * 4
    assert {name.split("/")[2] for name in bucket.list()} == {"2", "3", "4"}
    with tx.Manager(url, keep=1, storage=store) as manager:
        manager.save(5, make_tree(6))
    assert {name.split("/")[2] for name in bucket.list()} == {"5"}


@pytest.mark.slow
@run_on("moto", "fake-gcs")
@pytest.mark.parametrize("fault", [Answer(503), *mark_slow(LoseAnswer())], ids=repr)
def test_each_request_may_fail_once(bucket: Bucket, proxy: FaultProxy, fault: Any) -> None:
    url, store = f"{bucket.url}/run", find_storage(bucket.at(proxy.url))
    proxy.fail_each_once(fault)
    with tx.Manager(url, keep=2, storage=store) as manager:
        for step in (1, 2, 3):
            manager.save(step, make_tree(step), metrics={"loss": 1 / step})
        assert (manager.steps(), manager.best("loss")) == ([2, 3], 3)
        assert manager.restore(TEMPLATE)["step"] == 3
    assert {name.split("/")[1] for name in bucket.list()} == {"2", "3"}


@pytest.mark.slow
@run_on("moto", "fake-gcs")
def test_the_command_line_finds_the_store_by_the_environment(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in bucket.server.environment.items():
        monkeypatch.setenv(name, value)
    url = f"{bucket.url}/run"
    with tx.Manager(url) as manager:
        for step in (1, 2):
            manager.save(step, make_tree(step), metrics={"loss": 1 / step})
    shown = json.loads(run_cli("steps", url, "--json").stdout)
    assert [(each["step"], each["metrics"]) for each in shown["steps"]] == [
        (1, {"loss": 1.0}),
        (2, {"loss": 0.5}),
    ]
    assert run_cli("verify", f"{url}/2").exit_code == 0
    assert "default" in run_cli("ls", url).stdout
    assert run_cli("prune", url, "--keep", "1", "--yes").exit_code == 0
    assert {name.split("/")[1] for name in bucket.list()} == {"2"}


def _save_and_die(url: str, store: Any, at: int) -> None:
    """Saves a step, and dies at a request that changes something."""
    repeat, count = Requests.repeat, 0

    async def die(self: Requests, attempt: Any, path: str, action: str = "read") -> Any:
        nonlocal count
        count += action != "read"
        if count == at:
            os._exit(9)
        return await repeat(self, attempt, path, action)

    Requests.repeat = die  # pyright: ignore[reportAttributeAccessIssue]
    with tx.Manager(url, keep=1, storage=store) as manager:
        manager.save(2, make_tree(2), wait=True)


@pytest.mark.slow
@run_on("moto")
@pytest.mark.parametrize("at", choose_some([2, 4, 6, 9, 11, 13, 15, 18, 20], 2))
def test_a_killed_program_leaves_whole_steps(
    bucket: Bucket, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LEASE_S", 0.5)
    url, store = f"{bucket.url}/run", find_storage(bucket)
    with tx.Manager(url, storage=store) as manager:
        manager.save(1, make_tree(1))
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=_save_and_die, args=(url, store, at))
    process.start()
    process.join()
    assert process.exitcode == 9
    with tx.Manager(url, storage=store) as manager:
        steps = manager.steps()
        assert steps in ([1], [1, 2], [2])
        for step in steps:
            assert manager.restore(TEMPLATE, step)["step"] == step
        run = read_run(open_bucket(bucket, "run"))
        assert run is not None
        left = [found.key for found in run.leftovers]
        assert len(left) <= 1
        assert open_run(url, store).find_abandoned(left) == set(left)
        manager.save(2, make_tree(3), overwrite=2 in steps, wait=True)
        assert manager.restore(TEMPLATE)["step"] == 3
