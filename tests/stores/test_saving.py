"""Saves to object stores: whole or absent whatever fails, and one writer at a time."""

from __future__ import annotations

import json
import multiprocessing
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import templax as tx
from helpers import is_thorough, mark_slow
from templax._runs.run_storage import open_run
from templax.storage import lease as leases
from templax.storage import object_file, open_staging
from templax.storage.marks import LEASE
from templax.storage.object_sink import ObjectSink
from templax.storage.requests import Requests

from .choice import WRITABLE, run_on
from .connect import find_storage
from .faults import Answer, Corrupt, LoseAnswer, Refuse
from .proxy import FaultProxy
from .server import Bucket

writable = run_on(*WRITABLE)

DATA = "d/" + "0" * 32


def make_tree(seed: int, size: int = 100_000) -> dict[str, Any]:
    values = np.random.default_rng(seed).normal(size=size).astype("f4")
    return {"w": values, "b": [np.full(3, seed, "i4"), np.zeros((0, 2))], "step": seed}


def assert_saved(bucket: Bucket, tree: dict[str, Any], path: str = "run/100") -> None:
    """The checkpoint holds the tree and nothing else lies below its path."""
    url, store = f"{bucket.url}/{path}", find_storage(bucket)
    found = tx.restore(url, tree, storage=store)
    np.testing.assert_array_equal(found["w"], tree["w"])
    assert found["step"] == tree["step"]
    catalog = tx.open(url, storage=store)
    assert tx.verify(catalog).ok
    names = [name.removeprefix(f"{path}/") for name in bucket.list() if name.startswith(path)]
    assert LEASE not in names
    assert sum(name.startswith("d/") for name in names) == 1
    assert "commit_success.txt" in names


@pytest.fixture(autouse=True)
def _short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_file, "PART_BYTES", 5 * 1024 * 1024)


@writable
@pytest.mark.parametrize("compression", ["zstd", *mark_slow(None)])
def test_a_tree_comes_back(bucket: Bucket, compression: str | None) -> None:
    tree = make_tree(1, 6_000_000)
    url, store = f"{bucket.url}/run/100", find_storage(bucket)
    saved = tx.save(url, tree, compression=compression, storage=store)
    assert saved.path == url
    assert saved.nbytes >= sum(bucket.list().values()) - 200
    assert_saved(bucket, tree)
    assert tx.fingerprint(tx.open(url, storage=store)) == saved.fingerprint
    with pytest.raises(tx.AlreadyExists, match="Expected nothing, found objects such as"):
        tx.save(url, make_tree(2), storage=store)
    assert_saved(bucket, tree)


@pytest.mark.slow
@run_on("moto")
def test_parts_are_small_where_memory_is_short(
    bucket: Bucket, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_file, "PART_BYTES", 16 * 1024 * 1024)
    tree, store = make_tree(1, 6_000_000), find_storage(bucket.at(proxy.url))

    def measure_parts(path: str, memory: int | None) -> list[int]:
        proxy.clear()
        tx.save(f"{bucket.url}/{path}", tree, memory=memory, storage=store)
        assert_saved(bucket, tree, path)
        sent = [each.sent_bytes for each in proxy.select("PUT") if "partNumber" in each.target]
        return sorted(sent, reverse=True)

    assert measure_parts("run/1", 32 * 1024 * 1024)[:4] == [5 * 1024 * 1024] * 4
    assert measure_parts("run/2", None)[0] == 16 * 1024 * 1024


@pytest.mark.slow
@writable
def test_a_checkpoint_is_replaced(bucket: Bucket) -> None:
    url, store = f"{bucket.url}/run/100", find_storage(bucket)
    old, new = make_tree(1, 3_000_000), make_tree(2, 3_000_000)
    tx.save(url, old, storage=store)
    before = tx.open(url, storage=store)
    tx.save(url, new, overwrite=True, storage=store)
    assert_saved(bucket, new)
    with pytest.raises((tx.SourceError, tx.Corrupted)):  # what it read of is gone
        tx.restore(before, old)


@run_on("moto", "fake-gcs")
def test_a_save_in_the_background(bucket: Bucket) -> None:
    url, store = f"{bucket.url}/run/100", find_storage(bucket)
    tree = make_tree(1)
    saved = tx.save(url, tree, wait=False, storage=store)
    expected = {**tree, "w": tree["w"].copy()}
    tree["w"][:] = 0
    saved.wait()
    assert_saved(bucket, expected)


@pytest.mark.slow
@run_on("moto", "azurite")
@pytest.mark.parametrize("fault", [LoseAnswer(), *mark_slow(Answer(503), Refuse())], ids=repr)
def test_each_request_may_fail_once(bucket: Bucket, proxy: FaultProxy, fault: Any) -> None:
    """The answer to a conditional write may be lost, so that it seems to be another writer's."""
    url, store = f"{bucket.url}/run/100", find_storage(bucket.at(proxy.url))
    proxy.fail_each_once(fault)
    tree = make_tree(1, 3_000_000)
    tx.save(url, tree, storage=store)
    tx.save(url, make_tree(2, 3_000_000), overwrite=True, storage=store)
    assert_saved(bucket, make_tree(2, 3_000_000))


@pytest.mark.slow
@run_on("moto")
@pytest.mark.parametrize(("overwrite", "lose"), [(False, False), (True, True)])
def test_a_save_killed_at_any_request_leaves_all_or_nothing(
    bucket: Bucket,
    proxy: FaultProxy,
    overwrite: bool,
    lose: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A proxy that stops answering is to the store what the death of the process is.

    After every second request, or after each if the tests are thorough.
    """
    monkeypatch.setattr(leases, "LEASE_S", 0.4)
    old, new = make_tree(1, 2_000_000), make_tree(2, 2_000_000)
    direct, proxied = find_storage(bucket), find_storage(bucket.at(proxy.url), timeout=0.15)
    outcomes, done, after = set[str](), False, 0
    while not done:
        after += 1 if is_thorough() else 2
        url = f"{bucket.url}/run/{after}"
        if overwrite:
            tx.save(url, old, storage=direct)
        proxy.clear()
        proxy.kill_after(after, lose_last_answer=lose)
        try:
            tx.save(url, new, overwrite=overwrite, storage=proxied)
            done = True
        except (tx.SaveError, tx.SourceError):
            pass
        time.sleep(0.3)  # the store may still be at work on the last request
        proxy.revive()
        outcomes.add(_find_outcome(url, direct, old, new))
        tx.save(url, new, overwrite=True, storage=direct)
        assert_saved(bucket, new, f"run/{after}")
    assert after > 10
    assert outcomes == {"old" if overwrite else "absent", "absent", "new"} | (
        {"old"} if overwrite else set()
    )


@pytest.fixture
def dead_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes every lease for that of a process that died long ago."""
    monkeypatch.setattr(leases, "_LONG_AGO", 0)


def _name_lease(path: str, *names: str) -> tuple[str, bytes]:
    """The lease of a dead process to which these names belong."""
    return f"{path}/{LEASE}", json.dumps({"token": "dead", "names": names}).encode()


@pytest.mark.slow
@pytest.mark.usefixtures("dead_leases")
@run_on("moto")
@pytest.mark.parametrize("items", [False, True], ids=["tree", "items"])
def test_any_part_of_a_killed_save_can_be_replaced(bucket: Bucket, items: bool) -> None:
    """The small files are written at the same time, so that any of them may be there alone."""
    store, tree = find_storage(bucket), make_tree(1, 1000)

    def save(path: str, **options: Any) -> None:
        if items:
            with tx.Manager(f"{bucket.url}/{path.rpartition('/')[0]}", storage=store) as runs:
                runs.save(int(path.rpartition("/")[2]), tree, metrics={"loss": 0.5}, **options)
        else:
            tx.save(f"{bucket.url}/{path}", tree, storage=store, **options)

    save("whole/1")
    objects = {name.removeprefix("whole/1/"): bucket.read(name) for name in bucket.list()}
    del objects["commit_success.txt"]
    whole = objects.keys() | {"commit_success.txt"}
    small = sorted(name for name in objects if "d/" not in name)
    assert {"_CHECKPOINT_METADATA", "default/_METADATA" if items else "_METADATA"} <= set(small)
    data = objects.keys() - {*small}
    parts = [[name] for name in small] + [sorted(objects.keys() - {name}) for name in small]
    parts += [[name, *data] for name in small]
    names = {name.partition("/")[0] for name in whole}
    for number, part in enumerate([[], [*data], *parts]):
        path = f"run{number}/7"
        for name in part:
            bucket.write(f"{path}/{name}", objects[name])
        bucket.write(*_name_lease(path, *(names if set(part) - data else ())))
        save(path, overwrite=number % 2 == 0)
        left = {n.removeprefix(f"{path}/") for n in bucket.list() if n.startswith(f"{path}/")}
        assert {n for n in left if "d/" not in n} == {n for n in whole if "d/" not in n}
        assert sum("d/" in n for n in left) == sum("d/" in n for n in whole)


@pytest.mark.usefixtures("dead_leases")
@run_on("moto")
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("other", ["metrics", "notes/data.json", "d/a.jpg", "a/_METADATA"])
def test_what_others_put_beside_a_killed_save_is_not_deleted(
    bucket: Bucket, overwrite: bool, other: str, caplog: pytest.LogCaptureFixture
) -> None:
    lease, content = _name_lease("run/100", "templax.index", "_METADATA")
    objects = {
        "run/100/d/" + "0" * 32: b"values",
        "run/100/templax.index": b"index",
        lease: content,
        f"run/100/{other}": b"of others",
    }
    for name, data in objects.items():
        bucket.write(name, data)
    found = other.partition("/")[0]
    url, store = f"{bucket.url}/run/100", find_storage(bucket)
    with pytest.raises(tx.SaveError, match=f"found `{found}`, which does not belong to it"):
        tx.save(url, make_tree(2), overwrite=overwrite, storage=store)
    assert bucket.list().keys() == objects.keys()
    with pytest.raises(tx.SaveError, match=f"found `{found}`, which does not belong to it"):
        open_run(f"{bucket.url}/run", store).remove_leftover("100")
    with tx.Manager(f"{bucket.url}/run", storage=store) as runs:
        runs.save(101, make_tree(2))
    assert f"found `{found}`, which does not belong to it" in caplog.text
    assert objects.keys() <= bucket.list().keys()


@run_on("moto")
@pytest.mark.parametrize("late", ["notes.txt", "a", "both"])
def test_what_others_put_there_before_the_lease_is_taken_is_not_deleted(
    bucket: Bucket, late: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, store = f"{bucket.url}/zoo", find_storage(bucket)
    acquire = leases.Lease._acquire
    if late == "notes.txt":
        tx.save(url, make_tree(1), storage=store)

    def put_first(self: leases.Lease, *given: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(leases.Lease, "_acquire", acquire)
            if late == "notes.txt":
                bucket.write("zoo/notes.txt", b"late")
            else:
                for name in ["a", "b"][: 1 + (late == "both")]:
                    tx.save(f"{url}/{name}", make_tree(1), storage=store)
        acquire(self, *given)

    monkeypatch.setattr(leases.Lease, "_acquire", put_first)
    found = "a" if late == "both" else late.replace(".", r"\.")
    with pytest.raises(tx.SaveError, match=f"replaces one checkpoint, found `{found}` in it"):
        tx.save(url, make_tree(2), overwrite=True, storage=store)
    monkeypatch.setattr(leases.Lease, "_acquire", acquire)
    if late == "notes.txt":
        assert bucket.read("zoo/notes.txt") == b"late"
    else:
        url = f"{url}/a"
    assert tx.restore(url, make_tree(1), storage=store)["step"] == 1


class _KilledError(BaseException):
    """The death of the process: nothing of templax catches it."""


@pytest.mark.slow
@pytest.mark.usefixtures("dead_leases")
@run_on("moto")
@pytest.mark.parametrize("kind", ["step", "convert", "tree"])
def test_a_replacement_that_is_killed_at_any_request_can_be_repeated(
    bucket: Bucket, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is replaced is a step with an item of other code; nothing of it stays in the end."""
    store, tree = find_storage(bucket), make_tree(2, 1000)
    tx.save(tmp_path / "ckpt", tree)
    left, killed = 0, True

    def count_down(call: Any) -> Any:
        async def send(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise _KilledError
            return await call(*arguments, **options)

        return send

    def replace(path: str) -> None:
        url = f"{bucket.url}/{path}/7"
        if kind == "tree":
            tx.save(url, tree, overwrite=True, storage=store)
        elif kind == "convert":
            tx.convert(tmp_path / "ckpt", url, to="orbax", overwrite=True, storage=store)
        else:
            with tx.Manager(f"{bucket.url}/{path}", storage=store) as runs:
                runs.save(7, tree, overwrite=True, wait=True)

    at = 0
    while killed:
        path, at = f"run{at}", at + 1
        with tx.Manager(f"{bucket.url}/{path}", storage=store) as runs:
            runs.save(7, make_tree(1, 1000), metrics={"loss": 1.0}, wait=True)
        about = json.loads(bucket.read(f"{path}/7/_CHECKPOINT_METADATA"))
        about["item_handlers"]["iterator"] = "of.other.Code"
        bucket.write(f"{path}/7/_CHECKPOINT_METADATA", json.dumps(about).encode())
        bucket.write(f"{path}/7/iterator/state.bin", b"state")
        left = at
        with monkeypatch.context() as patch:
            patch.setattr(Requests, "put", count_down(Requests.put))
            patch.setattr(Requests, "delete", count_down(Requests.delete))
            patch.setattr(ObjectSink, "discard", lambda self: self._lease.abandon())
            try:
                replace(path)
                killed = False
            except _KilledError:
                pass
        replace(path)
        names = [n.removeprefix(f"{path}/7/") for n in bucket.list() if n.startswith(f"{path}/7/")]
        assert not [name for name in names if "iterator" in name or "metrics" in name], at
        assert LEASE not in names
        assert sum("d/" in name for name in names) == 1
        assert tx.restore(f"{bucket.url}/{path}/7", tree, storage=store)["step"] == 2
    assert at > 10


@pytest.mark.usefixtures("dead_leases")
@run_on("moto")
def test_a_step_that_is_saved_meanwhile_is_not_removed_as_a_leftover(bucket: Bucket) -> None:
    run = open_run(f"{bucket.url}/run", find_storage(bucket))
    tx.save(f"{bucket.url}/run/100", make_tree(1), storage=run.storage)
    with pytest.raises(tx.SaveError, match="A checkpoint was saved here meanwhile"):
        run.remove_leftover("100")
    assert_saved(bucket, make_tree(1))


@run_on("moto")
def test_a_directory_of_files_named_d_is_not_taken_for_what_a_save_left(bucket: Bucket) -> None:
    bucket.write("photos/d/cat.jpg", b"cat")
    with pytest.raises(tx.AlreadyExists, match=r"found objects such as `photos/d/cat\.jpg`"):
        tx.save(f"{bucket.url}/photos", make_tree(1), storage=find_storage(bucket))
    assert bucket.list().keys() == {"photos/d/cat.jpg"}


@pytest.mark.usefixtures("dead_leases")
@run_on("moto")
def test_the_compat_layer_keeps_what_others_put_beside_a_checkpoint(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from templax.compat import orbax as ocp

    caplog.set_level("INFO", logger="templax")
    for variable, value in bucket.server.environment.items():
        monkeypatch.setenv(variable, value)
    url, checkpointer = f"{bucket.url}/run/100", ocp.PyTreeCheckpointer()
    kept = {"run/100/config.json": b"{}", "run/100/assets/deep/norm.json": b"[1]"}
    bucket.write("run/100/config.json", b"{}")
    checkpointer.save(url, {"n": 1}, force=True)
    for name, data in kept.items():
        bucket.write(name, data)
    checkpointer.save(url, {"n": 2}, force=True)
    assert checkpointer.restore(url) == {"n": 2}
    assert {name: bucket.read(name) for name in kept} == kept
    said = [each.message for each in caplog.records if "is replaced" in each.message]
    assert said == [
        f"{url} is replaced, and keeps what it did not write: config.json",
        f"{url} is replaced, and keeps what it did not write: assets, config.json",
    ]
    composite = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    with pytest.raises(tx.SaveError, match="another name than `assets`, which others use"):
        composite.save(url, ocp.args.Composite(assets=ocp.args.JsonSave([])), force=True)
    assert checkpointer.restore(url) == {"n": 2}
    assert {name: bucket.read(name) for name in kept} == kept
    own = {name.split("/")[2] for name in bucket.list()} - {"config.json", "assets"}
    bucket.write(*_name_lease("run/100", *own))  # as after a save that was killed
    for name in ("_METADATA", "manifest.ocdbt", "commit_success.txt"):
        assert bucket.request("DELETE", f"/run/100/{name}")[0] == 204
    checkpointer.save(url, {"n": 3}, force=True)
    assert checkpointer.restore(url) == {"n": 3}
    assert {name: bucket.read(name) for name in kept} == kept
    names = [name.removeprefix("run/100/") for name in bucket.list()]
    assert LEASE not in names
    assert sum(name.startswith("d/") for name in names) == 1


def _find_outcome(url: str, store: Any, old: Any, new: Any) -> str:
    try:
        found = tx.restore(url, new, storage=store)
    except (tx.NotFound, tx.Uncommitted, tx.UnknownFormat):
        return "absent"
    for name, tree in (("old", old), ("new", new)):
        if found["step"] == tree["step"]:
            np.testing.assert_array_equal(found["w"], tree["w"])
            return name
    raise AssertionError(found)


@pytest.mark.slow
@run_on("moto", "fake-gcs")
@pytest.mark.parametrize("rounds", [3, *mark_slow(17)])
def test_of_writers_at_the_same_time_one_wins(
    bucket: Bucket, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LEASE_S", 2.0)
    for number in range(rounds):
        url, store = f"{bucket.url}/run/{number}", find_storage(bucket)
        sinks: list[Any] = [None] * 3

        def write(i: int, url: str = url, sinks: list[Any] = sinks, store: Any = store) -> None:
            try:
                with open_staging(url, overwrite=False, storage=store) as sink:
                    sink.put("a", b"%d" % i)
                    sink.create(DATA).write(b"%d" % i)
                    sink.put("commit_success.txt", b"")
                    sink.commit()
                    sinks[i] = sink
            except tx.SaveError as error:
                sinks[i] = error

        threads = [threading.Thread(target=write, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        won = [i for i, each in enumerate(sinks) if not isinstance(each, Exception)]
        assert len(won) == 1, sinks
        assert all(isinstance(e, (tx.AlreadyExists,)) for i, e in enumerate(sinks) if i not in won)
        assert (
            bucket.read(f"run/{number}/a") == bucket.read(f"run/{number}/{DATA}") == b"%d" % won[0]
        )
        names = {name for name in bucket.list() if name.startswith(f"run/{number}/")}
        assert names == {f"run/{number}/{name}" for name in ("a", DATA, "commit_success.txt")}


def _save_and_die(url: str, store: Any) -> None:
    import os

    with open_staging(url, overwrite=False, storage=store) as sink:
        sink.create(DATA).write(b"x" * 100)
        os._exit(1)


@pytest.mark.slow
@run_on("moto")
def test_a_killed_process_gives_its_lease_up(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url, store = f"{bucket.url}/run/100", find_storage(bucket)
    process = multiprocessing.get_context("spawn").Process(target=_save_and_die, args=(url, store))
    process.start()
    process.join()
    assert list(bucket.list()) == [f"run/100/{LEASE}"]
    with pytest.raises(tx.Uncommitted, match="its save or deletion is not finished"):
        tx.restore(url, make_tree(1), storage=store)
    monkeypatch.setattr(leases, "LEASE_S", 1.0)
    tx.save(url, make_tree(1), storage=store)
    assert_saved(bucket, make_tree(1))


@pytest.mark.slow
@run_on("moto", "seaweedfs")
def test_each_part_is_sent_with_its_checksum(bucket: Bucket, proxy: FaultProxy) -> None:
    store = find_storage(bucket.at(proxy.url))
    tx.save(f"{bucket.url}/run/100", make_tree(1, 4_000_000), storage=store)
    puts = proxy.select("PUT")
    assert len([e for e in puts if "partNumber" in e.query]) > 2
    assert all(e.head.find("x-amz-checksum-sha256") for e in puts)


@run_on("moto", "fake-gcs")
@pytest.mark.parametrize("to", ["orbax", "npz"])
def test_checkpoints_are_converted_from_and_to_stores(
    bucket: Bucket, tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, store = make_tree(1), find_storage(bucket)
    source = tx.save(tmp_path / "source", tree)
    url = f"{bucket.url}/copies/1"
    if to == "npz":
        with pytest.raises(tx.UsageError, match="writes npz to local disks only"):
            tx.convert(tmp_path / "source", url, to="npz", storage=store)
        assert not bucket.list()
        return
    done = tx.convert(tmp_path / "source", url, to="orbax", storage=store)
    assert done.verified
    assert done.path == url
    assert_saved(bucket, tree, "copies/1")
    catalog = tx.open(url, storage=store)
    assert tx.fingerprint(catalog) == source.fingerprint
    with pytest.raises(tx.SaveError, match="got the source itself"):
        tx.convert(catalog, url, to="orbax", overwrite=True, storage=store)
    back = tx.convert(catalog, tmp_path / "back.safetensors", skip=["b.1"])
    assert back.verified


@run_on("moto")
def test_a_conversion_reads_back_what_the_store_has(
    bucket: Bucket, tmp_path: Path, proxy: FaultProxy
) -> None:
    tree = make_tree(1, 1_000_000)
    tx.save(tmp_path / "source", tree)
    store = find_storage(bucket.at(proxy.url))
    proxy.inject(Corrupt(at=2_000_000), method="GET", path="*/d/*", times=None)
    with pytest.raises(tx.SaveError, match="read back"):
        tx.convert(tmp_path / "source", f"{bucket.url}/x", to="orbax", storage=store)
    assert not bucket.list()
