"""Saves to an object store that lose their lease, and saves after one that was killed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Mapping
from typing import Any
from uuid import uuid4

import obstore
import pytest

import templax as tx
from templax.storage import ObjectSource, lease
from templax.storage.event_loop import run_request
from templax.storage.lease import Lease
from templax.storage.marks import COMMITTED
from templax.storage.object_sink import ObjectSink
from templax.storage.request_errors import ObjectChanged
from templax.storage.requests import Requests
from templax.storage.stores import ProcessMemory

STORE = ProcessMemory()


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> str:
    """A `memory://` URL that nothing is at; leases there end after half a second."""
    monkeypatch.setattr(lease, "LEASE_S", 0.5)
    return f"memory://{uuid4().hex}/run/100"


def put(url: str, objects: Mapping[str, bytes]) -> None:
    location = STORE.locate(url)
    for key, data in objects.items():
        obstore.put(STORE.make(location), f"{location.path}/{key}", data)


def read_all(url: str) -> dict[str, bytes]:
    """Key → bytes of all objects, but the lease."""
    source = ObjectSource(STORE, url)
    infos = [info for info in source.walk() if "lease" not in info.key]
    return {info.key: bytes(source.read(info.key)) for info in infos}


def name_data(text: bytes) -> str:
    """Where `begin_save` puts its values."""
    return f"d/{text.hex():0>32}"


def begin_save(url: str, text: bytes, *, overwrite: bool = False) -> ObjectSink:
    sink = ObjectSink(STORE, url, overwrite=overwrite)
    sink.create(name_data(text)).write(text)
    sink.put("index", text)
    sink.put(COMMITTED, text)
    return sink


def stop_renewing(sink: ObjectSink) -> None:
    """Does to a save what stopping its process for longer than a lease lasts does."""
    assert sink._lease is not None
    sink._lease._done.set()
    sink._lease._thread.join()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("end", ["commit", "discard"])
def test_a_save_that_was_taken_over_leaves_the_other_one_alone(
    url: str, overwrite: bool, end: str
) -> None:
    if overwrite:
        put(url, {name_data(b"old"): b"old", "index": b"old", COMMITTED: b"old"})
    late = begin_save(url, b"late", overwrite=overwrite)
    stop_renewing(late)
    with begin_save(url, b"next", overwrite=overwrite) as other:
        other.commit()
    saved = read_all(url)
    assert saved["index"] == b"next"
    assert COMMITTED in saved
    if end == "commit":
        with pytest.raises(tx.SaveError, match="taken this save over, or removed its lease"):
            late.commit()
    else:
        late.discard()
    assert read_all(url) == saved


def test_a_save_that_wakes_up_while_it_writes_its_small_files_does_not_mix_them_in(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = begin_save(url, b"late")
    put_new = ObjectSink._put_new

    async def sleep_first(self: ObjectSink, path: str, data: bytes) -> None:
        if self is late:
            await asyncio.to_thread(take_over)
        await put_new(self, path, data)

    def take_over() -> None:
        stop_renewing(late)
        with begin_save(url, b"next") as other:
            other.commit()

    async def sleep_too(self: Lease, request: Coroutine[Any, Any, Any]) -> Any:
        return await request  # asleep, the process does not notice that its lease is over

    monkeypatch.setattr(ObjectSink, "_put_new", sleep_first)
    monkeypatch.setattr(Lease, "hold_during", sleep_too)
    with pytest.raises(tx.AlreadyExists, match="Another process saved a checkpoint here"):
        late.commit()
    found = read_all(url)
    assert found.keys() == {name_data(b"next"), "index", COMMITTED}
    assert found["index"] == b"next"


def test_a_save_that_was_late_to_renew_still_puts_the_old_checkpoint_back(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = {name_data(b"old"): b"old", "index": b"old", COMMITTED: b"old"}
    put(url, old)
    sink = begin_save(url, b"new", overwrite=True)
    put_new = ObjectSink._put_new

    async def lose(self: ObjectSink, path: str, data: bytes) -> None:
        await put_new(self, path, data)
        assert self._lease is not None
        self._lease._lost = "The lease of this save could not be renewed"

    monkeypatch.setattr(ObjectSink, "_put_new", lose)
    with pytest.raises(tx.SaveError, match="could not be renewed"):
        sink.commit()
    assert read_all(url) == old


def test_a_save_writes_nothing_after_its_lease_may_have_been_taken(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store refuses a small file for longer than the lease lasts, and then would take it."""
    late = begin_save(url, b"late")
    write, begin = Requests.put, time.monotonic()

    async def refuse_for_a_while(
        self: Requests, path: str, data: bytes, mode: object = "overwrite"
    ) -> object:
        if path.endswith("index"):
            await asyncio.to_thread(stop_renewing, late)
            await asyncio.sleep(2.5)
        return await write(self, path, data, mode)

    monkeypatch.setattr(Requests, "put", refuse_for_a_while)
    with pytest.raises(tx.SaveError, match="could not be renewed in time"):
        late.commit()
    assert time.monotonic() - begin < 2.5
    time.sleep(2.5)
    assert read_all(url) == {}


@pytest.mark.slow
def test_the_objects_of_an_old_checkpoint_are_told_from_all_pages_of_its_listing(
    url: str,
) -> None:
    """Its metadata is listed after a thousand data files; without it, the lease would hide it."""
    put(url, {f"a/d/{i:032}": b"" for i in range(1500)} | {"z": b"old"})
    with ObjectSink(STORE, url, overwrite=True):
        assert COMMITTED in read_all(url)


def test_a_failed_save_over_leftovers_leaves_them_known_as_such(url: str) -> None:
    killed = begin_save(url, b"killed")
    assert killed._lease is not None
    killed._lease.record(names=["index"])  # as `commit` does before it writes anything
    put(url, {"index": b"killed"})
    stop_renewing(killed)
    begin_save(url, b"failed").discard()
    with begin_save(url, b"third") as sink:
        sink.commit()
    assert read_all(url)["index"] == b"third"


def test_an_empty_path_is_not_examined(url: str) -> None:
    """That would cost requests in each save of a new checkpoint."""
    examined = list[object]()
    with ObjectSink(
        STORE, url, overwrite=True, others=lambda source: examined.append(source) or []
    ):
        assert not examined
    put(url, {"index": b"old", COMMITTED: b""})
    with ObjectSink(
        STORE, url, overwrite=True, others=lambda source: examined.append(source) or []
    ):
        assert len(examined) == 1


def test_what_a_killed_replacement_left_is_told_from_what_others_put_there(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what the old checkpoint had that no save of templax writes."""
    of_others = {"config.json": b"{}", "deep/in/it": b""}
    put(url, {"w/.zarray": b"", "w/0.0": b"", "iterator/state": b"", COMMITTED: b""} | of_others)

    def begin() -> ObjectSink:
        others = ["config.json", "deep", "metrics"]
        sink = ObjectSink(STORE, url, overwrite=True, others=lambda _: others, keeps=True)
        sink.put("index", b"new")
        sink.put(COMMITTED, b"new")
        return sink

    class Killed(BaseException):
        pass

    async def die(self: ObjectSink, path: str, data: bytes) -> None:
        raise Killed

    for _ in range(2):  # what the second one takes over it leaves to the third
        killed = begin()
        with monkeypatch.context() as patch:
            patch.setattr(ObjectSink, "_put_new", die)
            with pytest.raises(Killed):
                killed.commit()
        stop_renewing(killed)
    assert COMMITTED not in read_all(url)
    put(url, {"metrics": b"{}"})
    with pytest.raises(tx.SaveError, match=r"found `config\.json`, which does not belong to it"):
        ObjectSink(STORE, url, overwrite=True)
    with begin() as sink:
        sink.commit()
    assert read_all(url).keys() == {*of_others, "metrics", "index", COMMITTED}


def test_what_a_deletion_has_not_come_to_is_kept(url: str) -> None:
    """Its lease lists all that it is about to delete, also what others put there."""
    put(url, {"index": b"old", COMMITTED: b"", "config.json": b"{}"})
    deleting = Lease(STORE.connect(STORE.locate(url)), "run/100/templax.lease")
    deleting.record(doomed=["index", COMMITTED, "config.json"])
    deleting.abandon()
    with ObjectSink(
        STORE, url, overwrite=True, others=lambda _: ["config.json"], keeps=True
    ) as sink:
        sink.put("index", b"new")
        sink.put(COMMITTED, b"new")
        sink.commit()
    assert read_all(url)["index"] == b"new"
    assert read_all(url).keys() == {"index", COMMITTED, "config.json"}


def test_a_failed_save_keeps_the_marker_that_it_put_to_an_old_checkpoint(url: str) -> None:
    put(url, {"index": b"old", "config.json": b"{}"})
    with ObjectSink(STORE, url, overwrite=True, others=lambda _: ["config.json"], keeps=True):
        pass
    assert read_all(url).keys() == {"index", "config.json", COMMITTED}


def test_a_failed_save_takes_back_the_marker_that_it_put_beside_files_of_others(
    url: str,
) -> None:
    put(url, {"config.json": b"{}"})
    with ObjectSink(STORE, url, overwrite=True, others=lambda _: ["config.json"], keeps=True):
        assert COMMITTED in read_all(url)
    assert read_all(url).keys() == {"config.json"}


def test_no_small_file_is_written_after_another_one_failed(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = ObjectSink(STORE, url, overwrite=False)
    for name in ("slow", "failing", COMMITTED):
        sink.put(name, name.encode())
    write = Requests.put

    async def fail_one(
        self: Requests, path: str, data: bytes, mode: object = "overwrite"
    ) -> object:
        if data == b"failing":
            raise tx.SourceError("status 403")
        if data == b"slow":
            await asyncio.sleep(0.2)
        return await write(self, path, data, mode)

    monkeypatch.setattr(Requests, "put", fail_one)
    with pytest.raises(tx.SaveError, match="status 403"):
        sink.commit()
    time.sleep(0.4)
    assert read_all(url) == {}


def test_objects_stay_the_version_that_a_listing_told_of_first(url: str) -> None:
    put(url, {"a/x": b"first" * 20_000, "b": b""})
    source = ObjectSource(STORE, url)
    list(source.children("a/"))
    put(url, {"a/x": b"later" * 20_000})
    list(source.walk())
    with pytest.raises(ObjectChanged, match="changed since the checkpoint was opened"):
        source.read("a/x")


def test_an_empty_object_that_stands_for_a_directory_is_one_each_time(url: str) -> None:
    put(url, {"x": b"1"})
    location = STORE.locate(url)
    obstore.put(STORE.make(location), location.path, b"")
    source = ObjectSource(STORE, url)
    for _ in range(2):
        found = source.stat("")
        assert found is not None
        assert found.is_dir


def test_waiting_for_other_requests_does_not_count_as_a_failure() -> None:
    requests = Requests(lambda: None, "memory://x", timeout_s=0.3, concurrency=1)
    failed: list[bool] = []

    async def take_long() -> None:
        await asyncio.sleep(0.5)

    async def fail_once() -> str:
        if not failed:
            failed.append(True)
            raise ConnectionError("reset")
        return "done"

    async def run() -> str:
        first = asyncio.ensure_future(requests.repeat(take_long, "a"))
        await asyncio.sleep(0)
        found = await requests.repeat(fail_once, "b")
        await first
        return found

    assert run_request(run()) == "done"
