"""Fingerprints of trees that span processes: together where no process has all, else alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

import templax as tx

SETUP = """
import json
import ml_dtypes
import jax.numpy as jnp
import numpy as np
import templax as tx
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P, SingleDeviceSharding

devices = np.array(jax.devices())
grid = Mesh(devices.reshape(count, 2), ("x", "y"))
back = Mesh(devices[::-1].reshape(count, 2), ("x", "y"))
last = Mesh(devices[-2:].reshape(1, 2), ("x", "y"))
first = Mesh(devices[:2].reshape(1, 2), ("x", "y"))
others = Mesh(devices[2:].reshape(count - 1, 2), ("x", "y"))

def array(values, spec, mesh=grid):
    values = np.asarray(values)
    return jax.make_array_from_callback(
        values.shape, NamedSharding(mesh, P(*spec)), lambda box: values[box], dtype=values.dtype
    )

def keys(shape, spec, mesh=grid):
    made = jax.random.split(jax.random.key(3), shape) if shape else jax.random.key(3)
    sharding = NamedSharding(mesh, P(*spec))
    data = np.asarray(jax.random.key_data(made))
    pieces = [
        jax.random.wrap_key_data(jax.device_put(data[index], device))
        for device, index in sharding.addressable_devices_indices_map(shape).items()
    ]
    return jax.make_array_from_single_device_arrays(shape, sharding, pieces, dtype=made.dtype)

def held():
    "Leaves of which every process has all."
    big = np.random.default_rng(0).standard_normal((96, 96)).astype(np.float32)
    return {
        "everywhere": array(big, ()), "partly": array(big, (None, "y")),
        "scalar": array(np.float32(1.5), ()), "key": keys((), ()), "numpy": np.arange(5),
        "n": 3, "text": "hi", "nothing": None,
        "local": jnp.full(5, 100),
    }

def tree():
    rng = np.random.default_rng(0)
    big = rng.standard_normal((96, 96)).astype(np.float32)
    return held() | {
        "rows": array(big, ("x",)),
        "columns": array(big, (None, "x")),
        "both": array(big.astype(ml_dtypes.bfloat16), ("y", "x"), back),
        "cube": array(big.reshape(8, 12, 96), (None, "x", "y")),
        "wide": array(np.arange(3_000_000, dtype=np.float32).reshape(16, -1), (None, "x")),
        "first": array(big[:2], ("y",), first),
        "last": array(big[:4], ("y",), last),
        "others": array(big[:4], ("y",), others),
        "one": jax.make_array_from_single_device_arrays(
            (), SingleDeviceSharding(devices[-1]),
            [jax.device_put(np.float32(7), devices[-1])] * (index == count - 1), dtype=np.float32,
        ),
        "int4": array((np.arange(8 * count) % 8).astype(ml_dtypes.int4), ("x",)),
        "keys": keys((8 * count,), ("x",)),
        "empty": array(np.zeros((0, 4), np.float32), (None, "x") if count in (2, 4) else ()),
        "own": jnp.full(5, 200 + index),
    }
"""


def _expect_tree(count: int) -> dict[str, Any]:
    """The tree as process 0 has it, in one process."""
    big = np.random.default_rng(0).standard_normal((96, 96)).astype(np.float32)
    return {
        "everywhere": big,
        "partly": big,
        "scalar": np.float32(1.5),
        "key": jax.random.key(3),
        "numpy": np.arange(5),
        "n": 3,
        "text": "hi",
        "nothing": None,
        "local": np.full(5, 100, np.int32),
        "rows": big,
        "columns": big,
        "both": big.astype(ml_dtypes.bfloat16),
        "cube": big.reshape(8, 12, 96),
        "wide": np.arange(3_000_000, dtype=np.float32).reshape(16, -1),
        "first": big[:2],
        "last": big[:4],
        "others": big[:4],
        "one": np.float32(7),
        "int4": (np.arange(8 * count) % 8).astype(ml_dtypes.int4),
        "keys": jax.random.split(jax.random.key(3), 8 * count),
        "empty": np.zeros((0, 4), np.float32),
        "own": np.full(5, 200, np.int32),
    }


def _parse_output(outputs: list[Any]) -> list[Any]:
    for output in outputs:
        assert output.code == 0, output.err
    return [json.loads(output.out.splitlines()[-1]) for output in outputs]


TOGETHER = """
found = tx.fingerprint(tree())
saved = tx.save(args[0], tree(), wait=False)
try:
    pending = str(saved.fingerprint)
except tx.UsageError as error:
    pending = str(error)
again = tx.fingerprint(tree())  # during the save, or after it
saved.wait()
assert saved.fingerprint == found == again == tx.fingerprint(tx.open(args[0]))
print(json.dumps([str(found), dict(found.leaves), pending]))
"""


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_all_processes_get_the_fingerprint_of_the_same_tree_in_one(
    run: Any, tmp_path: Path, count: int
) -> None:
    said = _parse_output(run(count, SETUP + TOGETHER, str(tmp_path / "ckpt")))
    want = tx.fingerprint(_expect_tree(count))
    for tree, leaves, pending in said:
        assert {k: v for k, v in leaves.items() if want.leaves[k] != v} == {}
        assert tree == str(want)
        assert pending in (str(want), "Expected a save that has ended: call wait() first")


ALONE = """
mine = [str(tx.fingerprint(held())) for _ in range(index + 1)]  # not as often as the others
mine.append(str(tx.fingerprint({"own": jnp.full(5, 200 + index)})))
print(json.dumps(mine))
"""


def test_a_process_that_has_every_leaf_asks_nobody(run: Any) -> None:
    said = _parse_output(run(2, SETUP + ALONE))
    expected = _expect_tree(2)
    held = [*expected][:9]
    want = str(tx.fingerprint({name: expected[name] for name in held}))
    for index, (*whole, own) in enumerate(said):
        assert whole == [want] * (index + 1)
        assert own == str(tx.fingerprint({"own": np.full(5, 200 + index, np.int32)}))


DIFFERENT = """
found = []
def attempt(mine):
    try:
        found.append(str(tx.fingerprint(mine)))
    except tx.TemplaxError as error:
        found.append(f"{type(error).__name__}: {error}")

for what in ("leaf", "dtype", "shape"):
    mine = tree()
    if index == 1:
        mine["new" if what == "leaf" else "numpy"] = np.zeros(
            5, np.float32 if what == "dtype" else np.int64
        )[: 3 if what == "shape" else 5]
    attempt(mine)
mine = tree()
if index == 1:
    mine["n"] = {1, 2}
attempt(mine)
attempt(tree())
print(json.dumps(found))
"""


def test_another_tree_on_one_process_is_an_error_on_all(run: Any) -> None:
    said = _parse_output(run(2, SETUP + DIFFERENT))
    for *different, bad, good in said:
        assert (
            different
            == [
                "SaveError: Expected the tree of process 0, got other leaves, dtypes or shapes on"
                " process 1; hint: call fingerprint with the same tree on every process"
            ]
            * 3
        )
        assert "`n` is a builtins.set" in bad
        assert good == str(tx.fingerprint(_expect_tree(2)))
    assert said[0][-2].startswith("SaveError: Process 1 of 2 failed")
