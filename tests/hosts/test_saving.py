"""Trees that span processes: each writes its share, one commits, all fail if one dies."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import templax as tx
from templax.formats.orbax import checksum_index
from templax.storage.leftovers import find_abandoned

TREE = """
import json
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import templax as tx
from templax._hosts import agreement, presence
from templax._save import job
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P, SingleDeviceSharding

devices = np.array(jax.devices()).reshape(count, 2)
mesh = Mesh(devices, ("x", "y"))

def array(values, spec, mesh=mesh):
    values = np.asarray(values)
    return jax.make_array_from_callback(
        values.shape, NamedSharding(mesh, P(*spec)), lambda box: values[box], dtype=values.dtype
    )

def tree(seed=0):
    rng = np.random.default_rng(seed)
    big = rng.standard_normal((64, 96)).astype(np.float32)
    first = Mesh(devices[:1], ("x", "y"))
    last = Mesh(devices[-1:], ("x", "y"))
    return {
        "rows": array(big, ("x",)),
        "columns": array(big, (None, "x")),
        "both": array(big.astype(ml_dtypes.bfloat16), ("y", "x")),
        "flat": array(np.arange(16 * count, dtype=np.int32), (("x", "y"),)),
        "everywhere": array(big[:3], ()),
        "partly": array(big, ("y",)),
        "cube": array(big.reshape(8, 8, 96), (None, "x", "y")),
        "first": array(big[:2], ("y",), first),
        "last": array(big[:4], ("y",), last),
        "one": array(big[0], (), Mesh(devices[-1:, :1], ("x", "y"))),
        "local": jnp.full(5, 100),
        "numpy": np.full((2, 2), 200, np.int16),
        "int4": array(np.arange(8 * count).astype(ml_dtypes.int4), ("x",)),
        "key": jax.random.key(seed),
        "small": [array(big[i], ("y",)) for i in range(7)],
        "nothing": array(np.zeros((0, 4), np.float32), ()),
        "scalar": array(np.float32(seed), ()),
        "n": seed, "text": "hi", "none": None,
        # A number of rows that equal chunks do not divide, so the last chunk of a file is padded.
        "z_numpy": np.ones((50021, 30), np.float32),
        "z_last": array(np.ones((50021, 30), np.float32), (), last),
    }
"""
"""The beginning of all scripts, which defines `tree(seed)`."""

SAVE = """
options = json.loads(args[1])
saved = tx.save(args[0], tree(), **options).wait()
print(json.dumps([str(saved.fingerprint), saved.nbytes, saved.leaves]))
"""


def _expect_tree(count: int, seed: int = 0) -> dict[str, Any]:
    """The same tree, in one process."""
    import ml_dtypes

    big = np.random.default_rng(seed).standard_normal((64, 96)).astype(np.float32)
    return {
        "rows": big,
        "columns": big,
        "both": big.astype(ml_dtypes.bfloat16),
        "flat": np.arange(16 * count).astype(np.int32),
        "everywhere": big[:3],
        "partly": big,
        "cube": big.reshape(8, 8, 96),
        "first": big[:2],
        "last": big[:4],
        "one": big[0],
        "local": np.full(5, 100, np.int32),
        "numpy": np.full((2, 2), 200, np.int16),
        "int4": np.arange(8 * count).astype(ml_dtypes.int4),
        "key": jax.random.key(seed),
        "small": [big[i] for i in range(7)],
        "nothing": np.zeros((0, 4), np.float32),
        "scalar": np.array(seed, np.float32),
        "n": seed,
        "text": "hi",
        "none": None,
        "z_numpy": np.ones((50021, 30), np.float32),
        "z_last": np.ones((50021, 30), np.float32),
    }


def _parse_output(outputs: list[Any]) -> list[Any]:
    for output in outputs:
        assert output.code == 0, output.err
    return [json.loads(output.out.splitlines()[-1]) for output in outputs]


@pytest.mark.parametrize(
    ("count", "options"),
    [
        (2, {}),
        pytest.param(2, {"compression": "zstd", "wait": False}, marks=pytest.mark.slow),
        pytest.param(4, {"wait": False}, marks=pytest.mark.slow),
        pytest.param(4, {"compression": "zstd"}, marks=pytest.mark.slow),
    ],
)
def test_each_process_writes_its_share_once_and_one_commits(
    run: Any, tmp_path: Path, count: int, options: dict[str, Any]
) -> None:
    path = tmp_path / "ckpt"
    said = _parse_output(run(count, TREE + SAVE, str(path), json.dumps(options)))
    expected = _expect_tree(count)
    want = tx.fingerprint(expected)
    files = [f for f in path.rglob("*") if f.is_file()]
    total = sum(f.stat().st_size for f in files)
    assert said == [[str(want), total, 27]] * count
    assert sorted(p.name for p in path.iterdir() if p.name.startswith("ocdbt.")) == [
        f"ocdbt.process_{i}" for i in range(count)
    ]
    # Every process wrote, and each byte of a leaf once, however many devices hold it.
    catalog = tx.open(path)
    chunks = catalog.locate(catalog.entries)
    written = {chunk.extent.key for found in chunks.values() for chunk in found}
    assert len(written) == count
    for name, found in chunks.items():
        leaf = catalog.leaves[name]
        if leaf.kind != "string" and "compression" not in options:
            assert sum(chunk.extent.nbytes for chunk in found) == leaf.nbytes, name
    restored = tx.restore(path, expected, verify="required")
    assert tx.fingerprint(restored) == want
    (path / checksum_index.INDEX_FILE).unlink()
    assert tx.fingerprint(tx.restore(path, expected)) == want
    # Restored by Orbax in one process.
    template = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype)
        for name, x in expected.items()
        if isinstance(x, np.ndarray)
    }
    with ocp.PyTreeCheckpointer() as checkpointer:
        args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), template)
        theirs = checkpointer.restore(path, item=template, restore_args=args, partial_restore=True)
    for name in template:
        np.testing.assert_array_equal(theirs[name], expected[name], err_msg=name)


AGAIN = """
options = json.loads(args[1])
tx.save(args[0], tree(), **options).wait()
values = tree(1)
template = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    if isinstance(x, jax.Array) and not x.is_fully_addressable else x,
    tree(),
)
# To the same shardings, except that rows become columns and columns rows.
template["rows"], template["columns"] = template["columns"], template["rows"]
got = tx.restore(args[0], template, verify="required")
swapped = tree()
swapped["rows"], swapped["columns"] = swapped["columns"], swapped["rows"]
same = []
for path, a in jax.tree.leaves_with_path(got):
    b = dict(jax.tree.leaves_with_path(swapped))[path]
    if isinstance(b, jax.Array) and not b.is_fully_addressable:
        pairs = zip(a.addressable_shards, b.addressable_shards, strict=True)
        same.append(all(np.array_equal(s.data, t.data) for s, t in pairs))
tx.save(args[0], values, overwrite=True, **options)
print(json.dumps([all(same), len(same)]))
"""


@pytest.mark.slow
def test_processes_restore_and_overwrite_what_they_saved(run: Any, tmp_path: Path) -> None:
    said = _parse_output(run(2, TREE + AGAIN, str(tmp_path / "ckpt"), "{}"))
    assert all(same and n > 10 for same, n in said)
    expected = _expect_tree(2, 1)
    assert tx.fingerprint(tx.restore(tmp_path / "ckpt", expected)) == tx.fingerprint(expected)
    assert [p.name for p in tmp_path.iterdir()] == ["ckpt"]


FAIL = """
what = args[1]
values = tree()
if what == "bad leaf" and index == 1:
    values["n"] = {1, 2}
if what == "other tree" and index == 1:
    values["numpy"] = np.zeros(3)
if what == "disk" and index == 1:
    from templax._save import writer
    def full(self, data, offset, scratch):
        raise tx.SaveError("No space is left", file="x")
    real, writer.Writer._write = writer.Writer._write, full
try:
    path = args[0] + "-xy"[index] * (what == "paths")
    tx.save(path, values, wait=args[2] == "wait").wait()
    print(json.dumps("saved"))
except tx.SaveError as error:
    print(json.dumps([type(error).__name__, str(error)]))
if what == "disk" and index == 1:
    writer.Writer._write = real
tx.save(args[0], tree(), overwrite=True)
"""


@pytest.mark.parametrize(
    ("what", "texts"),
    [
        ("bad leaf", ["Process 1 of 2 failed", "`n` is a builtins.set"]),
        ("other tree", ["Expected the tree of process 0, got another on process 1", "numpy"]),
        ("disk", ["Process 1 of 2 failed", "No space is left"]),
        ("paths", ["Expected every process to be saving `", "ckpt-`, got process 1 saving `"]),
        ("exists", ["Expected nothing or an empty directory"]),
    ],
)
@pytest.mark.slow
@pytest.mark.parametrize("wait", ["wait", "background"])
def test_a_failure_of_one_process_fails_all_and_leaves_nothing(
    run: Any, tmp_path: Path, what: str, texts: list[str], wait: str
) -> None:
    if what == "exists":
        tx.save(tmp_path / "ckpt", {"w": np.ones(3)})
    kinds = _parse_output(run(2, TREE + FAIL, str(tmp_path / "ckpt"), what, wait))
    for kind, text in kinds:
        assert kind == ("AlreadyExists" if what == "exists" else "SaveError")
        if kinds.index([kind, text]) != 1 or what not in ("bad leaf", "disk"):
            assert all(part in text for part in texts), text
        else:  # the process that failed raises its own error
            assert texts[1] in text
    # The next save of the same processes succeeded.
    assert [p.name for p in tmp_path.iterdir()] == ["ckpt"]
    assert tx.fingerprint(tx.restore(tmp_path / "ckpt", _expect_tree(2))) == tx.fingerprint(
        _expect_tree(2)
    )


KILL = """
presence.SILENT_S, presence.HEARTBEAT_S = 3.0, 0.5
stage = args[1]
def dying(name, kind):
    real = getattr(kind, name)
    def call(self, *rest, **named):
        if index == count - 1 and (stage != "committing" or rest[0] == "committing"):
            die()
        return real(self, *rest, **named)
    setattr(kind, name, call)
from templax._save import writer
if stage == "snapshot":
    dying("_join_sink", job.Job)
elif stage == "begun":
    dying("_write_data_files", job.Job)
elif stage == "writing":
    dying("_write", writer.Writer)
elif stage == "written":
    dying("gather", agreement.Hosts)
else:
    dying("announce", agreement.Hosts)
import time
begin = time.monotonic()
try:
    tx.save(args[0], tree()).wait()
    print(json.dumps(["saved", 0]))
except tx.SaveError as error:
    print(json.dumps([str(error), time.monotonic() - begin]))
"""


@pytest.mark.parametrize(
    ("count", "stage", "wait"),
    [
        pytest.param(2, "writing", "wait", marks=pytest.mark.slow),
        pytest.param(2, "snapshot", "wait", marks=pytest.mark.slow),
        pytest.param(2, "begun", "wait", marks=pytest.mark.slow),
        pytest.param(2, "written", "wait", marks=pytest.mark.slow),
        pytest.param(2, "committing", "wait", marks=pytest.mark.slow),
        pytest.param(4, "writing", "background", marks=pytest.mark.slow),
        pytest.param(4, "committing", "background", marks=pytest.mark.slow),
        pytest.param(4, "writing", "wait", marks=pytest.mark.slow),
    ],
)
def test_a_dead_process_fails_all_others_soon_and_is_named(
    run: Any, tmp_path: Path, count: int, stage: str, wait: str
) -> None:
    """Unless it died after the commit."""
    begin = time.monotonic()
    *alive, dead = run(count, TREE + KILL, str(tmp_path / "ckpt"), stage, wait)
    assert dead.code == -9
    for output in alive:
        text, took = json.loads(output.out.splitlines()[-1])
        if stage == "committing":  # it was killed while it waited for the news of the commit
            assert text == "saved"
            continue
        assert f"rocess {count - 1} of {count} did not answer within" in text
        assert took < 20
    assert time.monotonic() - begin < 100
    if stage == "committing":
        expected = _expect_tree(count)
        assert tx.fingerprint(tx.restore(tmp_path / "ckpt", expected)) == tx.fingerprint(expected)
    else:
        assert not (tmp_path / "ckpt").exists()
    assert {str(p) for p in tmp_path.iterdir() if p.name != "ckpt"} == set(
        find_abandoned(tmp_path / "ckpt")
    )
    tx.save(tmp_path / "ckpt", {"w": np.ones(3)}, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["ckpt"]
