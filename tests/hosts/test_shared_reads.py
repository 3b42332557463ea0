"""Restores in which the processes of a job read bytes once and move them between their devices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import templax as tx
from attempts import SETUP, check_failed, read_attempts
from helpers import mark_slow

TEMPLATE = (
    SETUP
    + """
from templax.storage.open import open_source
from templax.testing import Watched
grid = Mesh(np.array(jax.devices()).reshape(count, -1), ("p", "d"))
part = Mesh(np.array([d for d in jax.devices() if d.process_index < 2]), ("x",))
values = np.random.default_rng(0).integers(0, 1 << 20, (768, 1536)).astype(np.float32)
shardings = {
    "columns": NamedSharding(mesh, P(None, "x")),
    "replicas": everywhere,
    "rows": rows,
    "half": NamedSharding(grid, P(None, "d")),
    "cast": NamedSharding(grid, P(None, ("d", "p"))),
    "weak": NamedSharding(mesh, P(None, "x")),
    "some": NamedSharding(part, P(None, "x")),
    "pinned": NamedSharding(mesh, P(None, "x"), memory_kind="unpinned_host"),
    "narrow": NamedSharding(mesh, P(None, "x")),
    "keys": everywhere,
}
dtypes = {"cast": jnp.bfloat16, "narrow": jnp.int4}
template = {
    name: jax.ShapeDtypeStruct(values.shape, dtypes.get(name, np.float32), sharding=sharding,
                               weak_type=name == "weak")
    for name, sharding in shardings.items() if name != "keys"
}
keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 4))
template["keys"] = jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=everywhere)

def check(tree):
    for name, leaf in tree.items():
        if name == "keys":
            leaf = jax.random.key_data(leaf)
            want = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(0), 4)))
        else:
            want = values % 8 if name == "narrow" else values.astype(dtypes.get(name, np.float32))
            assert leaf.sharding == shardings[name], name
            assert leaf.weak_type == (name == "weak"), name
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(
                np.asarray(shard.data).astype(want.dtype), want[shard.index], name
            )
    return sorted(tx.last_restore().shared)
"""
)

READ = (
    TEMPLATE
    + """
for path in args:
    for share in ("never", "auto", "always"):
        source = Watched(open_source(path))
        plan = tx.plan(source, template, share_reads=share, verify="off")
        source.reads.clear()
        check(tx.run(plan))
        reads = [stop - start for key, start, stop in source.reads]
        print(json.dumps({
            "share": share, "planned": [plan.requests, plan.read_bytes, plan.placed_bytes],
            "read": [len(reads), sum(reads), tx.last_restore().placed_bytes], "plan": str(plan),
            "shared": check(tx.restore(path, template, share_reads=share)),
            "bytes": tx.last_restore().read_bytes, "received": tx.last_restore().received_bytes,
            "unverified": tx.plan(path, template, share_reads=share).unverified,
        }))
"""
)


def save(path: Path, **options: Any) -> None:
    values = np.random.default_rng(0).integers(0, 1 << 20, (768, 1536)).astype(np.float32)
    names = ("columns", "replicas", "rows", "half", "cast", "weak", "some", "pinned")
    tree: dict[str, Any] = dict.fromkeys(names, values)
    tree["narrow"] = (values % 8).astype(jnp.int4)
    tree["keys"] = jax.random.split(jax.random.key(0), 4)
    tx.save(path, tree, alone=True, **options)


SHARED = ["cast", "columns", "half", "replicas", "some", "weak"]
"""What cuts across the chunks of rows, or is needed by several processes, and can be moved."""

if jax.devices()[0].default_memory().kind == "unpinned_host":
    SHARED = sorted([*SHARED, "pinned"])  # in JAX 0.5, CPU has no other memory


@pytest.mark.parametrize(
    ("count", "options"),
    [
        (2, {}),
        *mark_slow((3, {}), (4, {}), (2, {"compression": "zstd"}), (4, {"compression": "zstd"})),
    ],
)
def test_each_byte_is_read_once_and_the_arrays_are_the_same(
    run: Any, tmp_path: Path, count: int, options: Any
) -> None:
    path = tmp_path / "ckpt"
    save(path, **options)
    outputs = run(count, READ, str(path))
    told: list[dict[str, Any]] = []
    for output in outputs:
        assert output.code == 0, output.err[-3000:]
        said = [json.loads(line) for line in output.out.splitlines() if line.startswith("{")]
        told.append({each["share"]: each for each in said})
    for index, said in enumerate(told):
        for each in said.values():
            assert each["planned"] == each["read"], (index, each)
        never, always = said["never"], said["always"]
        mine = [name for name in SHARED if name != "some" or index < 2]
        if count == 3:  # whose parts are not those of the chunks
            assert set(always["shared"]) <= set(mine)
        else:
            assert always["shared"] == mine
        assert never["shared"] == []
        assert never["received"] == 0
        assert (always["received"] > 0) == bool(always["shared"])
        assert always["planned"][2] == never["planned"][2]
        if always["shared"]:
            assert always["bytes"] < (1 if count == 3 else 0.8) * never["bytes"]
            assert "read together by several processes" in always["plan"]
            assert "without that it would read" in always["plan"]
        assert "read by each process" in said["auto"]["plan"]
        assert set(always["unverified"]) <= set(never["unverified"])
        assert not set(always["shared"]) & set(always["unverified"])


FAULTS = (
    TEMPLATE
    + """
path = args[0]
def always(**options):
    tree = tx.restore(path, template, **{"share_reads": "always", **options})
    return check(tree)

def lose(key, start, stop):
    raise tx.errors.SourceError("no answer for the reads of this process")

for name, who in (("first", 0), ("last", last)):
    source = Watched(open_source(path))
    plan = tx.plan(source, template, share_reads="always")
    source.fault = lose if index == who else None
    attempt(f"lost {name}", lambda: check(tx.run(plan)))
    mode = "never" if index == who else "always"
    attempt(f"option {name}", lambda: always(share_reads=mode))
    # What the option says is equal, but a leaf is wanted elsewhere.
    other = dict(template, columns=template["rows"]) if index == who else template
    attempt(f"template {name}", lambda: len(tx.restore(path, other, share_reads="always")))
    source = Watched(open_source(path))
    plan = tx.plan(source, other, share_reads="always")
    attempt(f"plan {name}", lambda: len(tx.run(plan)))
    def stop(done, total):
        raise KeyError("stopped")
    attempt(f"progress {name}", lambda: always(on_progress=stop if index == who else None))
    attempt(f"after {name}", always)
def set_mesh():
    with (jax.set_mesh if hasattr(jax, "set_mesh") else jax.sharding.use_mesh)(grid):
        return always()

def guard():
    with jax.transfer_guard("disallow"):
        tree = tx.restore(path, template, share_reads="always")
    return check(tree)

def pickled():
    import pickle
    plan = tx.plan(path, template, share_reads="always")
    return check(tx.run(pickle.loads(pickle.dumps(plan))))

attempt("pickled", pickled)
attempt("other mesh", set_mesh)
attempt("guarded", guard)
def restore_view(share):
    # A transposed matrix, and one that another checkpoint supplies.
    view = tx.view(path, tx.Mapping(
        {"turned": tx.From("columns", "a b -> b a")}, drop=sorted({*shardings} - {"columns"})))
    along = {"turned": P(("p", "d")), "rows": P(None, ("p", "d"))}
    wanted = {
        name: jax.ShapeDtypeStruct(values.T.shape if name == "turned" else values.shape,
                                   jnp.bfloat16, sharding=NamedSharding(grid, spec))
        for name, spec in along.items()
    }
    tree = tx.restore(view, wanted, share_reads=share, missing={"rows": path, "*": "error"})
    for name, want in (("turned", values.T), ("rows", values)):
        for shard in tree[name].addressable_shards:
            np.testing.assert_array_equal(
                np.asarray(shard.data), want.astype(jnp.bfloat16)[shard.index], name
            )
    return sorted(tx.last_restore().shared)

attempt("view never", lambda: restore_view("never"))
attempt("view always", lambda: restore_view("always"))
attempt("alone", lambda: always(alone=True))
attempt("alone auto", lambda: always(alone=True, share_reads="auto"))
if index == last:
    mine = NamedSharding(Mesh(np.array(jax.local_devices()), ("x",)), P(None, "x"))
    wanted = {"columns": jax.ShapeDtypeStruct(values.shape, np.float32, sharding=mine)}
    attempt("local", lambda: len(tx.restore(path, wanted, share_reads="always", extra="ignore")))
with tx.Manager(args[1]) as manager:
    state = {"w": jax.make_array_from_callback(values.shape, rows, lambda box: values[box])}
    manager.save(1, state)
    like = {"w": jax.ShapeDtypeStruct(values.shape, np.float32, sharding=everywhere)}
    for fallback, share in ((False, "always"), (True, "auto"), (True, "always")):
        def back():
            tree = manager.restore(like, fallback=fallback, share_reads=share)
            np.testing.assert_array_equal(np.asarray(tree["w"].addressable_shards[0].data), values)
            return list(tx.last_restore().shared)
        attempt(f"manager {fallback} {share}", back)
"""
)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_a_failure_of_one_process_is_that_of_all_and_nobody_waits_in_a_collective(
    run: Any, tmp_path: Path, count: int
) -> None:
    save(tmp_path / "ckpt")
    outputs = run(count, FAULTS, str(tmp_path / "ckpt"), str(tmp_path / "run"))
    told = read_attempts(outputs)
    for index, said in enumerate(told):
        for name, who in (("first", 0), ("last", count - 1)):
            texts = ["no answer for the reads of this process"]
            if index != who:
                texts.append(f"Process {who} of {count} failed while reading")
            check_failed(said[f"lost {name}"], *texts, kind="SourceError", within_s=5)
            check_failed(
                said[f"option {name}"],
                "Expected the same share_reads= on every process",
                kind="SourceError",
                within_s=5,
            )
            for what in ("template", "plan"):
                check_failed(
                    said[f"{what} {name}"],
                    "Expected every process to share the same reads, got another choice on",
                    kind="SourceError",
                    within_s=5,
                )
            stopped = said[f"progress {name}"]
            assert "stopped" in stopped.result, stopped
            assert stopped.kind == ("KeyError" if index == who else "SourceError"), stopped
            shared = [name for name in SHARED if name != "some" or index < 2]
            assert said[f"after {name}"].result == shared
        for name in ("other mesh", "guarded", "pickled"):
            assert said[name].result == said["after last"].result
        check_failed(said["alone"], "nobody to share with", kind="UsageError", within_s=5)
        assert said["alone auto"].result == []
        assert said["view never"].result == []
        assert said["view always"].result == ["rows", "turned"]
        assert said["manager False always"].result == ["w"]
        assert said["manager True auto"].result == []
        check_failed(
            said["manager True always"],
            "each process then reads by itself",
            kind="UsageError",
            within_s=5,
        )
    assert told[-1]["local"].result == 1


KILLED = (
    TEMPLATE
    + """
from templax._restore import reshard
if index == last:
    reshard.move_leaves = lambda *rest: die()
attempt("killed", lambda: check(tx.restore(args[0], template, share_reads="always")))
"""
)


@pytest.mark.slow
def test_a_process_that_dies_before_the_exchange_leaves_no_one_waiting(
    run: Any, tmp_path: Path
) -> None:
    save(tmp_path / "ckpt")
    alive, dead = run(2, KILLED, str(tmp_path / "ckpt"))
    assert dead.code == -9
    ((name, kind, text, seconds),) = [json.loads(x) for x in alive.out.splitlines() if x[0] == "["]
    assert (name, kind) == ("killed", jax.errors.JaxRuntimeError.__name__)
    assert "Gloo" in text
    assert seconds < 100
