"""Deletes of steps in object stores by a process whose lease another one has taken."""

from __future__ import annotations

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
