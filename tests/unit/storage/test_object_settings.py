"""Object stores refuse settings and processes with which nothing could be read, and say so."""

from __future__ import annotations

import multiprocessing
import pickle
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest

import templax as tx
from templax import storage
from templax.storage.stores import Location, ProcessMemory

pytest.importorskip("obstore")


@pytest.mark.parametrize(
    "settings",
    [
        {"timeout": 0},
        {"timeout": -1.0},
        {"timeout": float("nan")},
        {"timeout": float("inf")},
        {"timeout": "60"},
        {"concurrency": 0},
        {"concurrency": 2.5},
        {"concurrency": True},
        {"cache_bytes": -1},
    ],
    ids=repr,
)
def test_a_number_that_no_request_could_meet_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(tx.UsageError, match=f"Expected {next(iter(settings))}= to be a positive"):
        storage.S3(**settings)


@pytest.mark.parametrize("given", ["s3", storage.S3, {"region": "x"}], ids=repr)
def test_what_is_no_store_is_refused(given: Any) -> None:
    for use in (
        lambda: tx.open("s3://bucket/x", storage=given),
        lambda: tx.save("s3://bucket/x", {"a": np.zeros(1)}, storage=given),
        lambda: tx.Manager("s3://bucket/x", storage=given),
    ):
        with pytest.raises(tx.UsageError, match="Expected storage= to say how to reach a store"):
            use()


@pytest.mark.parametrize("settings", [{"endpoint": 5}, {"client_options": 5}, {"options": 5}])
def test_settings_of_other_types_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(tx.UsageError, match="can't open `s3://bucket`"):
        tx.open("s3://bucket/x", storage=storage.S3(**settings))


@pytest.mark.parametrize("url", ["s3://a bucket/x", "s3://buc\tket/x", "http://[::1/x"])
def test_an_address_that_can_not_be_one_is_refused(url: str) -> None:
    with pytest.raises(tx.UsageError, match="Expected"):
        tx.open(url)


@pytest.mark.parametrize("settings", [{"endpoint": "nonsense"}, {"options": {"endpoint": "x"}}])
def test_a_panic_of_obstore_is_an_error_of_templax(settings: dict[str, Any]) -> None:
    store = storage.S3(access_key_id="k", secret_access_key="hidden", timeout=1, **settings)
    with pytest.raises(tx.SourceError, match="check the name of the bucket and the settings"):
        tx.open("s3://bucket/x", storage=store)


def test_a_pickled_catalog_notices_that_its_object_was_replaced() -> None:
    from safetensors.numpy import save

    bucket = ProcessMemory().make(Location("memory://pickled", "pickled", ""))
    old = {"a": np.zeros(50_000, np.float32), "b": np.ones(50_000, np.float32)}
    bucket.put("model.safetensors", save(old))
    pickled = pickle.dumps(tx.open("memory://pickled/model.safetensors"))
    restored = tx.restore(pickle.loads(pickled), old)  # noqa: S301
    assert (restored["b"] == 1).all()
    bucket.put("model.safetensors", save({"b": old["a"] + 7, "c": old["a"], "d": old["a"]}))
    with pytest.raises(tx.SourceError, match="changed since the checkpoint was opened"):
        tx.restore(pickle.loads(pickled), old)  # noqa: S301


def _open_in_child(answers: Any) -> None:
    try:
        tx.open("memory://forked/run")
    except tx.TemplaxError as error:
        answers.put(str(error))


@pytest.mark.filterwarnings("ignore:.*fork")
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs os.fork")
@pytest.mark.skipif(
    version("tensorstore") == "0.1.72", reason="it aborts a process that has used it and forks"
)
def test_a_forked_process_gets_an_error_rather_than_waiting_forever() -> None:
    tx.save("memory://forked/run", {"a": np.zeros(1)})
    context: Any = multiprocessing.get_context("fork")
    answers = context.Queue()
    process = context.Process(target=_open_in_child, args=(answers,))
    process.start()
    try:
        assert "forked from one that had used it" in answers.get(timeout=30)
    finally:
        process.kill()
        process.join()
