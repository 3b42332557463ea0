"""Leases: one writer at a time, and nobody waits for a dead one."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

import pytest

import templax as tx
from templax.storage import lease
from templax.storage.event_loop import run_request
from templax.storage.lease import Lease, watch_leases
from templax.storage.requests import Requests
from templax.storage.stores import ProcessMemory

LEASE_S = 0.4
PATH = "run/1/templax.lease"


@pytest.fixture
def requests() -> Requests:
    store = ProcessMemory()
    return store.connect(store.locate(f"memory://{uuid.uuid4().hex}/run"))


def describe(requests: Requests) -> Any:
    return run_request(requests.describe(PATH))


@pytest.mark.slow
def test_a_lease_that_is_renewed_is_refused_to_others(requests: Requests) -> None:
    held = Lease(requests, PATH, LEASE_S)
    for _ in range(2):
        begin = time.monotonic()
        with pytest.raises(tx.AlreadyExists, match="it keeps renewing `memory://"):
            Lease(requests, PATH, LEASE_S)
        assert time.monotonic() - begin < LEASE_S
    held.check()
    assert held.is_held()
    held.release()
    assert describe(requests) is None
    again = Lease(requests, PATH, LEASE_S)
    assert not again.took_over
    again.release()


def read_names(requests: Requests) -> set[str]:
    return set(run_request(lease.read_belongings(requests, PATH))[1].names)


def test_what_belongs_to_a_lease_is_handed_on_to_those_who_take_it_over(requests: Requests) -> None:
    first = Lease(requests, PATH, LEASE_S)
    first.record(names=["a", "b"])
    assert read_names(requests) == {"a", "b"}
    first.abandon()
    second = Lease(requests, PATH, LEASE_S)
    assert second.own.names == read_names(requests) == {"a", "b"}
    with pytest.raises(tx.SaveError, match="Another process has taken this save over"):
        first.record(names=["c"])
    second.record(names=["d"])
    assert read_names(requests) == {"a", "b", "d"}
    second.release()
    third = Lease(requests, PATH, LEASE_S)
    assert third.own.names == set()
    third.release()


def test_what_belongs_to_a_lease_is_written_though_an_earlier_answer_was_lost(
    requests: Requests,
) -> None:
    held = Lease(requests, PATH, 60.0)
    run_request(requests.put(PATH, json.dumps({"token": held.token}).encode(), held._mode))
    held.record(names=["a"])
    assert read_names(requests) == {"a"}
    held.release()
    assert describe(requests) is None


def test_a_lease_that_is_not_renewed_is_taken_over(requests: Requests) -> None:
    dead = Lease(requests, PATH, LEASE_S)
    dead.abandon()
    begin = time.monotonic()
    held = Lease(requests, PATH, LEASE_S)
    assert LEASE_S <= time.monotonic() - begin < 5 * LEASE_S
    assert held.took_over
    assert not dead.is_held()
    with pytest.raises(tx.SaveError, match="Another process has taken this save over"):
        dead.check()
    dead.release()
    held.check()
    held.release()


def test_the_leases_of_living_processes_are_told_from_those_of_dead_ones(
    requests: Requests,
) -> None:
    living = Lease(requests, PATH, LEASE_S)
    dead = Lease(requests, "run/2/templax.lease", LEASE_S)
    dead.abandon()
    leases = {path: run_request(requests.describe(path)) for path in (PATH, "run/2/templax.lease")}
    assert watch_leases(requests, leases, LEASE_S) == {"run/2/templax.lease"}
    living.release()


def test_a_lease_that_was_watched_is_taken_at_once_unless_it_was_renewed(
    requests: Requests,
) -> None:
    dying = Lease(requests, PATH, LEASE_S)
    watched = describe(requests)
    dying.check()
    renewed = describe(requests)
    dying.abandon()
    begin = time.monotonic()
    held = Lease(requests, PATH, 60.0, dead=renewed)
    assert time.monotonic() - begin < 30
    assert held.took_over
    held.abandon()
    begin = time.monotonic()
    held = Lease(requests, PATH, LEASE_S, dead=watched)
    assert time.monotonic() - begin >= LEASE_S
    held.release()


def test_of_two_that_watched_a_lease_one_takes_it(requests: Requests) -> None:
    Lease(requests, PATH, LEASE_S).abandon()
    watched = describe(requests)
    first = Lease(requests, PATH, LEASE_S, dead=watched)
    with pytest.raises(tx.AlreadyExists, match="keeps renewing"):
        Lease(requests, PATH, LEASE_S, dead=watched)
    first.release()
