"""Runs in object stores: what a manager does there as on a disk."""

import logging
import re
import uuid

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import templax as tx
from templax._runs.steps import read_run
from templax.storage import lease, open_source, stores

TEMPLATE = {"w": jnp.zeros(3)}


@pytest.fixture
def url():
    return f"memory://{uuid.uuid4().hex}/some/run"


def tree(value):
    return {"w": jnp.full(3, float(value))}


def objects(url):
    """The store of a URL, and the paths in it below the URL."""
    bucket, _, path = url.removeprefix("memory://").partition("/")
    store = stores._memory[bucket]
    names = [meta["path"] for page in store.list(path) for meta in page]
    return store, sorted(name.removeprefix(f"{path}/") for name in names)


def put(url, key, data=b"x"):
    bucket, _, path = url.removeprefix("memory://").partition("/")
    stores.ProcessMemory().connect(stores.ProcessMemory().locate(url))
    stores._memory[bucket].put(f"{path}/{key}", data)


@pytest.mark.slow
def test_steps_are_saved_kept_compared_and_restored(url):
    with tx.Manager(url, keep=tx.Keep(last=2, every=10, best=1, metric="loss")) as manager:
        for step in range(8, 14):
            saved = manager.save(
                step, tree(step), metrics={"loss": 1 / step if step != 9 else 0.01}
            )
            assert saved.path == f"{url}/{step}"
    assert manager.url == url
    other = tx.Manager(url)
    assert other.steps() == [9, 10, 12, 13]
    assert (other.latest(), other.best("loss")) == (13, 9)
    assert other.metrics(9) == {"loss": 0.01}
    assert other.restore(TEMPLATE)["w"].tolist() == [13.0] * 3
    assert tx.last_restore().step == 13
    assert other.restore(TEMPLATE, 10)["w"].tolist() == [10.0] * 3
    assert other.path(14) == f"{url}/14"
    with pytest.raises(tx.NotFound, match="holds no committed step 11"):
        other.metrics(11)
    left = {name.partition("/")[0] for name in objects(url)[1]}
    assert left == {"9", "10", "12", "13"}


def test_the_first_start_and_every_later_one_are_the_same_call(url):
    init = tx.Recipe(lambda: tree(0))
    with tx.Manager(url) as manager:
        assert manager.steps() == []
        assert manager.restore(TEMPLATE, missing=init)["w"].tolist() == [0.0] * 3
        assert tx.last_restore().began_anew
        manager.save(1, tree(1), metadata={"by": "me"})
        assert manager.metadata(1) == {"by": "me"}
    assert tx.Manager(url).restore(TEMPLATE, missing=init)["w"].tolist() == [1.0] * 3
    with pytest.raises(tx.NotFound, match="holds no committed step"):
        tx.Manager(f"{url}-new").restore(TEMPLATE)


def test_a_run_does_not_begin_beside_what_looks_like_a_step(url):
    put(url, "epoch/model.safetensors", tx_safetensors())
    with pytest.raises(tx.UnknownFormat, match=r"found `epoch` .*safetensors"):
        tx.Manager(url).restore(TEMPLATE, missing=tx.Recipe(lambda: tree(0)))
    with pytest.raises(tx.UsageError, match="Expected a directory of steps, got the file"):
        tx.Manager(f"{url}/epoch/model.safetensors").steps()


def tx_safetensors():
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    return len(header).to_bytes(8, "little") + header + bytes(4)


def test_a_step_is_refused_if_it_exists_or_is_below_the_latest(url):
    with tx.Manager(url) as manager:
        manager.save(10, tree(10), wait=True)
        with pytest.raises(tx.AlreadyExists):
            manager.save(10, tree(11), wait=True)
        message = f"Expected a step after 10, the latest in {url}, got step 5"
        with pytest.raises(tx.SaveError, match=re.escape(message)):
            manager.save(5, tree(5), wait=True)
        manager.save(5, tree(5), overwrite=True, wait=True)
        manager.save(10, tree(11), overwrite=True, wait=True)
        assert manager.steps() == [5, 10]
        assert manager.restore(TEMPLATE)["w"].tolist() == [11.0] * 3


def test_the_names_of_steps_and_items_are_those_of_the_run(url):
    tx.save(f"{url}/ckpt_0007", tree(7))
    with tx.Manager(url, item="state") as manager:
        manager.save(8, tree(8), wait=True)
    with tx.Manager(url) as other:
        other.save(9, tree(9), wait=True)
        assert other.steps() == [7, 8, 9]
        assert other.restore(TEMPLATE)["w"].tolist() == [9.0] * 3
        assert other.restore(TEMPLATE, 7)["w"].tolist() == [7.0] * 3
    assert {name.split("/")[0] for name in objects(url)[1]} == {
        "ckpt_0007",
        "ckpt_0008",
        "ckpt_0009",
    }
    assert {"ckpt_0007/_METADATA", "ckpt_0009/state/_METADATA"} <= set(objects(url)[1])
    with pytest.raises(tx.NotFound, match="Expected the item `ema`, found `state`"):
        tx.Manager(url, item="ema").restore(TEMPLATE, 8)


def test_a_damaged_step_is_named_and_fallback_skips_it(url, caplog):
    with tx.Manager(url) as manager:
        for step in (1, 2):
            manager.save(step, tree(step), wait=True)
    store, names = objects(url)
    (data,) = [name for name in names if name.startswith("2/default/d/")]
    store.delete(f"some/run/{data}")
    with pytest.raises(tx.Corrupted, match="Step 2 is damaged") as error:
        tx.Manager(url).restore(TEMPLATE)
    assert f"{url}/2/default" in str(error.value)
    assert "the previous step is 1: `restore(template, 1)`" in str(error.value)
    with tx.Manager(url) as other, caplog.at_level(logging.WARNING, "templax"):
        assert other.restore(TEMPLATE, fallback=True)["w"].tolist() == [1.0] * 3
        assert f"step 2 of {url} is skipped" in caplog.text
        other.save(2, tree(3), wait=True)
        assert other.restore(TEMPLATE)["w"].tolist() == [3.0] * 3


def delete_when_listed(monkeypatch, manager, steps):
    """Lets another program delete steps once the manager has listed the run."""
    run = manager._run
    look = type(run).look
    pending = list(steps)

    def look_then_delete(self):
        found = look(self)
        found.list_ahead()
        if pending and self is run:
            tx.Manager(run.url)._run.delete(pending.pop(0))
        return found

    monkeypatch.setattr(type(run), "look", look_then_delete)


@pytest.mark.parametrize("fallback", [False, True])
def test_a_step_that_is_deleted_while_it_is_restored_is_not_damaged(url, monkeypatch, fallback):
    with tx.Manager(url) as manager:
        for step in (1, 2, 3):
            manager.save(step, tree(step), wait=True)
    other = tx.Manager(url)
    delete_when_listed(monkeypatch, other, ["3"])
    assert other.restore(TEMPLATE, fallback=fallback)["w"].tolist() == [2.0] * 3
    delete_when_listed(monkeypatch, other, ["2"])
    with pytest.raises(tx.NotFound, match="The step was deleted while it was being restored"):
        other.restore(TEMPLATE, 2)


def test_another_run_saved_from_elsewhere_is_seen_at_once(url):
    first, second = tx.Manager(url), tx.Manager(url)
    first.save(1, tree(1), wait=True)
    assert second.steps() == [1]
    second.save(2, tree(2), wait=True)
    assert first.steps() == [1, 2]
    assert first.restore(TEMPLATE)["w"].tolist() == [2.0] * 3


def test_a_failure_in_the_background_is_raised_once(url, monkeypatch):
    manager = tx.Manager(url)
    manager.save(1, tree(1), wait=True)

    put = stores.Requests.put

    async def refuse(self, path, *args, **options):
        if path.endswith("templax.lease"):
            return await put(self, path, *args, **options)
        raise tx.SourceError("no space in the cloud")

    with monkeypatch.context() as patched:
        patched.setattr(stores.Requests, "put", refuse)
        patched.setattr(stores.Requests, "upload", refuse)
        manager.save(2, tree(2))
        with pytest.raises(tx.SaveError, match="no space in the cloud"):
            manager.wait()
    manager.close()
    assert manager.steps() == [1]
    manager.save(2, tree(2))
    manager.close()
    assert manager.steps() == [1, 2]


def test_a_step_copied_from_a_disk_has_no_marker_and_is_whole(url, tmp_path):
    with tx.Manager(tmp_path / "run") as manager:
        manager.save(3, tree(3), metrics={"loss": 0.5}, wait=True)
    for file in (tmp_path / "run").rglob("*"):
        if file.is_file() and file.name not in ("commit_success.txt", ".templax.lock"):
            put(url, file.relative_to(tmp_path / "run").as_posix(), file.read_bytes())
    remote = tx.Manager(url)
    assert (remote.steps(), remote.best("loss")) == ([3], 3)
    assert remote.restore(TEMPLATE)["w"].tolist() == [3.0] * 3


@pytest.mark.parametrize("marks", ["neither", "uncommitted"])
def test_steps_of_stock_orbax_are_those_with_the_marker(url, marks):
    """Orbax writes to the final name in a store, and the marker last."""
    with tx.Manager(url) as manager:
        manager.save(3, tree(3), wait=True)
    store, names = objects(url)
    for name in names:
        data = bytes(store.get(f"some/run/{name}").bytes())
        if name == "3/_CHECKPOINT_METADATA":
            data = b'{"init_timestamp_nsecs": 1, "commit_timestamp_nsecs": null}'
            if marks == "neither":
                continue
        if not name.endswith("commit_success.txt"):
            put(url, name.replace("3/", "4/", 1), data)
    assert tx.Manager(url).steps() == [3]
    (left,) = read_run(open_source(url)).leftovers
    reasons = {
        "neither": "there is no `commit_success.txt`, which other steps beside it have",
        "uncommitted": "`_CHECKPOINT_METADATA` has no commit time and there is no",
    }
    assert left.problem.startswith(reasons[marks])


def test_a_lease_without_the_marker_means_that_the_step_is_not_finished(url):
    with tx.Manager(url) as manager:
        manager.save(3, tree(3), wait=True)
    store, _ = objects(url)
    put(url, "3/templax.lease", b"{}")
    assert tx.Manager(url).steps() == [3]  # its save was killed after the commit
    store.delete("some/run/3/commit_success.txt")
    assert tx.Manager(url).steps() == []
    reason = "`templax.lease` in it says that its save or deletion is not finished"
    with pytest.raises(tx.Uncommitted, match=re.escape(reason)):
        tx.restore(f"{url}/3", TEMPLATE)
    with pytest.raises(tx.Uncommitted, match=re.escape(reason)):
        tx.restore(f"{url}/3/default", TEMPLATE)


def test_replacing_a_step_without_a_marker_keeps_it_until_the_new_one_is_written(url, monkeypatch):
    with tx.Manager(url) as manager:
        manager.save(3, tree(3), wait=True)
        store, _ = objects(url)
        store.delete("some/run/3/commit_success.txt")
        seen = []
        manager.save(
            3,
            tree(4),
            overwrite=True,
            wait=True,
            on_progress=lambda done, total: seen.append(
                tx.Manager(url).restore(TEMPLATE)["w"].tolist()
            ),
        )
        assert seen
        assert seen[-1] == [3.0] * 3
    assert tx.Manager(url).restore(TEMPLATE)["w"].tolist() == [4.0] * 3


def test_a_step_that_is_being_saved_is_neither_listed_nor_deleted(url, monkeypatch):
    monkeypatch.setattr(lease, "LEASE_S", 0.4)
    with tx.Manager(url) as manager:
        manager.save(1, tree(1), wait=True)
        held = lease.Lease(manager._run._requests, "some/run/2/templax.lease")
        try:
            assert tx.Manager(url).steps() == [1]
            assert manager._run.find_abandoned(["2"]) == set()
            with pytest.raises(tx.SaveError, match="Another process is saving this checkpoint"):
                manager._run.remove_leftover("2")
            with pytest.raises(tx.AlreadyExists, match="Another process is saving"):
                manager.save(2, tree(2), wait=True)
        finally:
            held.abandon()
        assert manager._run.find_abandoned(["2"], watch=False) == set()
        assert manager._run.find_abandoned(["2"]) == {"2"}
        manager.save(2, tree(2), wait=True)
        assert manager.restore(TEMPLATE)["w"].tolist() == [2.0] * 3


def test_old_leftovers_of_any_step_go_with_the_next_save(url, monkeypatch):
    monkeypatch.setattr(lease, "_LONG_AGO", -1)
    with tx.Manager(url) as manager:
        manager.save(1, tree(1), wait=True)
        put(url, "7/templax.lease", b"{}")
        put(url, "7/default/d/" + "0" * 32)
        put(url, "8/_CHECKPOINT_METADATA", b'{"commit_timestamp_nsecs": null}')
        manager.save(2, tree(2), wait=True)
    assert {name.split("/")[0] for name in objects(url)[1]} == {"1", "2", "8"}


def test_sources_and_web_servers_are_refused(tmp_path):
    with pytest.raises(tx.UsageError, match="Expected a path, got Memory"):
        tx.Manager(tx.storage.Memory({}))
    manager = tx.Manager("https://localhost:1/run")
    with pytest.raises(tx.SaveError, match="does not write to them"):
        manager.save(1, tree(1), wait=True)
    with pytest.raises(tx.UsageError, match="Expected a URL with storage="):
        tx.Manager(tmp_path, storage=tx.storage.S3())


def test_large_leaves_with_shardings_come_back(url):
    mesh = jax.make_mesh((8,), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    values = np.arange(1 << 16, dtype=np.float32).reshape(64, -1)
    with tx.Manager(url) as manager:
        manager.save(1, {"w": jax.device_put(values, sharding)})
        want = {"w": jax.ShapeDtypeStruct(values.shape, jnp.float32, sharding=sharding)}
        got = manager.restore(want)["w"]
    assert got.sharding == sharding
    np.testing.assert_array_equal(got, values)
