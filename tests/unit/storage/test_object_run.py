"""Deletes of steps in object stores by a process whose lease another one has taken."""

from __future__ import annotations

import time
from uuid import uuid4

import numpy as np
import pytest

import templax as tx
from templax.storage import ObjectSource, lease
from templax.storage.event_loop import run_request
from templax.storage.lease import Lease
from templax.storage.object_run import ObjectRun
from templax.storage.stores import ProcessMemory

STORE = ProcessMemory()
TREE = {"w": np.arange(10_000, dtype=np.float32)}


def list_names(url: str) -> set[str]:
    return {info.key for info in ObjectSource(STORE, url).walk()}


def test_a_delete_that_lost_its_lease_removes_nothing_of_the_save_that_took_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The process sleeps after it has deleted the marker; meanwhile, another one saves."""
    monkeypatch.setattr(lease, "LEASE_S", 0.4)
    url = f"memory://{uuid4().hex}/run"
    tx.save(f"{url}/10", TREE)
    run = ObjectRun(STORE, url)
    check = Lease.check
    slept: list[set[str]] = []

    def sleep_first(self: Lease) -> None:
        if not slept:
            slept.append(list_names(f"{url}/10"))
            self._done.set()  # it renews no more
            self._thread.join()
            tx.save(f"{url}/10", {"w": TREE["w"] + 1}, overwrite=True)
        check(self)

    monkeypatch.setattr(Lease, "check", sleep_first)
    with pytest.raises(tx.SaveError, match="Another process has taken this save over"):
        run.delete("10")
    assert "commit_success.txt" not in slept[0]
    assert len(slept[0]) > 3
    assert (tx.restore(f"{url}/10", TREE)["w"] == TREE["w"] + 1).all()
    assert tx.verify(f"{url}/10").ok


def test_a_delete_goes_on_where_nobody_took_its_lease() -> None:
    url = f"memory://{uuid4().hex}/run"
    tx.save(f"{url}/10", TREE)
    assert ObjectRun(STORE, url).delete("10")
    assert list_names(f"{url}/10") == set()
    location = STORE.locate(url)
    assert run_request(STORE.connect(location).describe("run/10/templax.lease")) is None


def leave_unfinished(url: str, names: list[str]) -> None:
    """Puts what killed saves leave under the names."""
    requests = STORE.connect(STORE.locate(url))
    for name in names:
        Lease(requests, f"run/{name}/templax.lease").abandon()
        run_request(requests.put(f"run/{name}/default/d/{'0' * 32}", b"x"))


def test_the_leases_of_leftovers_are_watched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    url, names = f"memory://{uuid4().hex}/run", ["1", "2", "3"]
    leave_unfinished(url, names)
    run = ObjectRun(STORE, url)
    with monkeypatch.context() as patched:
        patched.setattr(lease, "LEASE_S", 0.4)
        assert run.find_abandoned(names) == set(names)
    begin = time.monotonic()
    for name in names:
        run.remove_leftover(name)
    assert time.monotonic() - begin < lease.LEASE_S / 2
    assert list_names(url) == set()


def test_a_leftover_that_a_save_takes_over_after_it_was_watched_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lease, "LEASE_S", 0.4)
    url = f"memory://{uuid4().hex}/run"
    leave_unfinished(url, ["1"])
    run = ObjectRun(STORE, url)
    assert run.find_abandoned(["1"]) == {"1"}
    saving = Lease(STORE.connect(STORE.locate(url)), "run/1/templax.lease")
    with pytest.raises(tx.SaveError, match="Another process is saving"):
        run.remove_leftover("1")
    saving.release()
    tx.save(f"{url}/1", TREE)
    with pytest.raises(tx.SaveError, match="saved here meanwhile"):
        run.remove_leftover("1")
    assert tx.verify(f"{url}/1").ok
