"""How few requests a look at a run in an object store takes, and the command line there."""

import json
import uuid

import jax.numpy as jnp
import pytest

import templax as tx
from helpers import mark_slow, run_cli
from templax._runs import steps as steps_module
from templax._runs.run_storage import open_run
from templax.storage import lease, open_source, stores
from templax.storage.requests import Requests

TEMPLATE = {"w": jnp.zeros(2)}


@pytest.fixture
def url():
    return f"memory://{uuid.uuid4().hex}/run"


@pytest.fixture
def requests(monkeypatch):
    """The requests of all connections, each by what it does and to which path."""
    made = []
    repeat, open_range = Requests.repeat, Requests._open

    async def count(self, attempt, path, action="read"):
        made.append((action, path))
        return await repeat(self, attempt, path, action)

    async def count_range(self, path, *args):
        made.append(("range", path))
        return await open_range(self, path, *args)

    monkeypatch.setattr(Requests, "repeat", count)
    monkeypatch.setattr(Requests, "_open", count_range)
    return made


def copy_steps(url, first, numbers, extra=0):
    """Copies a step under other numbers, with more objects in each."""
    bucket, _, path = url.removeprefix("memory://").partition("/")
    store = stores._memory[bucket]
    listed = [meta["path"] for page in store.list(f"{path}/{first}") for meta in page]
    files = {name: bytes(store.get(name).bytes()) for name in listed}
    for number in numbers:
        for name, data in files.items():
            store.put(name.replace(f"{path}/{first}/", f"{path}/{number}/"), data)
        for i in range(extra):
            store.put(f"{path}/{number}/default/more/{i}", b"")
    return len(files) + extra


def make_run(url, steps, **options):
    with tx.Manager(url) as manager:
        manager.save(0, {"w": jnp.ones(2)}, wait=True, **options)
    return copy_steps(url, 0, range(1, steps))


@pytest.mark.slow
def test_a_look_at_1000_steps_is_one_request_for_1000_objects(url, requests):
    objects = make_run(url, 1000)
    pages = -(-1000 * objects // 1000)
    requests.clear()
    manager = tx.Manager(url)
    assert requests == []
    assert len(manager.steps()) == 1000
    assert len(requests) <= pages + 1
    requests.clear()
    assert manager.latest() == 999
    assert len(requests) <= pages + 1
    requests.clear()
    assert manager.restore(TEMPLATE)["w"].tolist() == [1.0, 1.0]
    assert len(requests) <= pages + 1 + objects
    requests.clear()
    run = steps_module.read_run(open_source(url))
    assert len(run.committed) == 1000
    assert run.committed[7].nbytes > 0
    assert all(step.saved is not None for step in run.steps)
    assert len(requests) <= pages + 1
    requests.clear()
    shown = run_cli("steps", url)
    assert "1,000 steps" in shown.stdout
    assert len(requests) <= pages + 1
    requests.clear()
    assert "1,000 steps" in run_cli("ls", url).stdout
    assert len(requests) <= pages + 5 + 2 * objects  # it looks into the latest step, too
    requests.clear()
    with pytest.raises(tx.UnknownFormat, match="step"):
        tx.open(url)
    assert len(requests) <= pages + 5 + 2 * objects


@pytest.mark.slow
def test_metrics_of_many_steps_are_one_request_each_side_by_side(url, requests, monkeypatch):
    objects = make_run(url, 300, metrics={"loss": 0.5})
    pages = -(-300 * objects // 1000)
    requests.clear()
    assert tx.Manager(url).best("loss") == 299
    ranges = [path for action, path in requests if action == "range"]
    assert sorted(ranges) == sorted(f"run/{step}/metrics/metrics" for step in range(300))
    assert len(requests) - len(ranges) <= 2 * (pages + 1)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [20, *mark_slow(100)])
def test_steps_of_many_objects_are_listed_one_by_one(url, requests, steps):
    """More objects in a step than one request lists: only the names in each step are asked for."""
    with tx.Manager(url) as manager:
        manager.save(0, {"w": jnp.ones(2)}, wait=True)
    copy_steps(url, 0, range(steps), extra=1500)
    requests.clear()
    assert tx.Manager(url).steps() == list(range(steps))
    assert len(requests) <= 8 + 1 + steps
    assert tx.Manager(url).restore(TEMPLATE)["w"].tolist() == [1.0, 1.0]


@pytest.mark.slow
def test_a_save_takes_few_requests_besides_the_looks_at_the_run(url, requests):
    make_run(url, 1000)
    with tx.Manager(url) as manager:
        requests.clear()
        manager.save(1000, {"w": jnp.ones(2)}, wait=True)
    reads = [path for action, path in requests if action != "write"]
    writes = [path for action, path in requests if action == "write"]
    assert len(writes) <= 9 + 4, writes  # its objects, and the lease
    assert len(reads) <= 10 + 20, reads


def test_the_command_line_lists_verifies_and_prunes(url, monkeypatch):
    monkeypatch.setattr(lease, "LEASE_S", 0.2)
    with tx.Manager(url) as manager:
        for step in (1, 2, 3):
            manager.save(step, {"w": jnp.full(2, step)}, metrics={"loss": 1 / step}, wait=True)
    run = open_run(url)
    dead = lease.Lease(run._requests, "run/4/templax.lease")
    dead.abandon()
    bucket = stores._memory[url.split("/")[2]]
    bucket.put("run/4/default/d/" + "ab" * 16, b"12345")
    shown = run_cli("steps", url).stdout
    assert "loss=0.5" in shown
    line = next(line for line in shown.splitlines() if line.strip().startswith("4 "))
    assert "UNCOMMITTED" in line
    assert "`templax.lease` in it says that its save or deletion is not finished" in line
    fields = json.loads(run_cli("steps", url, "--json").stdout)
    assert (fields["url"], fields["latest"]) == (url, 3)
    assert [each["committed"] for each in fields["steps"]] == [True, True, True, False]
    assert fields["steps"][2]["items"] == {"default": "pytree", "metrics": "json"}
    assert fields["steps"][1]["metrics"] == {"loss": 0.5}
    assert "default" in run_cli("ls", url).stdout
    assert run_cli("ls", f"{url}/3").exit_code == 0
    assert run_cli("verify", f"{url}/3").exit_code == 0

    plan = json.loads(run_cli("prune", url, "--keep", "2", "--json").stdout)
    assert [each["stays"] for each in plan["steps"]] == [
        None,
        "last 2",
        "the latest, last 2",
        "left by a dead save; --leftovers deletes it",
    ]
    assert manager.steps() == [1, 2, 3]
    done = run_cli("prune", url, "--keep", "2", "--leftovers", "--yes")
    assert done.exit_code == 0
    assert "2 directories" in done.stdout
    assert "deleted" in done.stdout
    names = {meta["path"].split("/")[1] for page in bucket.list() for meta in page}
    assert names == {"2", "3"}


def test_prune_leaves_a_save_in_progress_alone(url, monkeypatch):
    monkeypatch.setattr(lease, "LEASE_S", 0.4)
    with tx.Manager(url) as manager:
        manager.save(1, {"w": jnp.ones(2)}, wait=True)
    held = lease.Lease(open_run(url)._requests, "run/2/templax.lease")
    try:
        shown = run_cli("prune", url, "--leftovers", "--yes").stdout
    finally:
        held.release()
    assert "of a save that is in progress" in shown
    assert "nothing deleted" in shown


def test_what_is_no_run_is_told_apart(url):
    tx.save(f"{url}/only", {"w": jnp.ones(2)})
    shown = run_cli("steps", f"{url}/only")
    assert shown.exit_code == 2
    assert "Expected a directory of steps, got the checkpoint" in shown.stderr
    assert run_cli("steps", f"{url}-none").exit_code == 2


def test_the_exact_time_of_commits_decides_in_a_copy(url):
    """A copy has the times of the copying; steps then say themselves when they were committed."""
    with tx.Manager(url) as manager:
        for step in (1, 2, 3):
            manager.save(step, {"w": jnp.ones(2)}, wait=True)
    bucket = stores._memory[url.split("/")[2]]
    for step in (3, 2, 1):
        name = f"run/{step}/commit_success.txt"
        bucket.put(name, bytes(bucket.get(name).bytes()))
    assert tx.Manager(url).restore(TEMPLATE)["w"].tolist() == [1.0, 1.0]
    assert tx.last_restore().skipped_steps == ()
    with tx.Manager(url) as manager:
        manager.save(1, {"w": jnp.ones(2)}, overwrite=True, wait=True)
    tx.Manager(url).restore(TEMPLATE)
    assert tx.last_restore().skipped_steps == ("`1` (saved after `3`, though its number is lower)",)
