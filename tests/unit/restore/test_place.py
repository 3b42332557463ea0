"""Placing arrays on devices."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

import templax as tx
from helpers import CKPT, CORPUS, assert_same_tree, checkpoint_of, make_keys, shard_over
from templax._jax import put
from templax._restore import devices

RAW = CORPUS / "orbax-0.12.8-uncompressed" / "ckpt"


@pytest.mark.parametrize("private", [True, False])
def test_placing_with_private_and_public_calls_of_jax_agrees(
    monkeypatch: pytest.MonkeyPatch, private: bool
) -> None:
    if not private:
        monkeypatch.setattr(devices, "batched_put", lambda: None)
    else:
        assert put.batched_put() is not None, "this JAX has another private call: see _jax/put.py"
    names = [
        "bool",
        "int8",
        "uint8",
        "int4",
        "int32",
        "float16",
        "bfloat16",
        "float32",
        "float8_e4m3fn",
        "complex64",
    ]
    tree = {name: np.arange(64).reshape(8, 8).astype(name) for name in names} | {"0": np.int32(3)}
    catalog = tx.Recipe(lambda: {k: jnp.asarray(v) for k, v in tree.items()})
    n = len(jax.devices())
    for where in (
        None,
        SingleDeviceSharding(jax.devices()[-1]),
        shard_over(n),
        shard_over(n, "x"),
    ):
        spec = {
            k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=where)
            for k, v in tree.items()
            if v.ndim or where is None or len(where.device_set) == 1
        }
        restored = tx.restore(catalog, spec, extra="ignore")
        for name, array in restored.items():
            want = jax.device_put(tree[name], where)
            assert (array.dtype, array.shape) == (want.dtype, want.shape)
            assert (array.sharding, array.committed) == (want.sharding, want.committed)
            assert array.weak_type is False
            assert_same_tree(array, tree[name], kinds=False)


def test_uncommitted_leaves_go_to_the_default_device() -> None:
    template = {"scale": jax.ShapeDtypeStruct((), jnp.float32)}
    with jax.default_device(jax.devices()[-1]):
        restored = tx.restore(CKPT, template, at="state.params", extra="ignore")
    assert restored["scale"].devices() == {jax.devices()[-1]}
    assert not restored["scale"].committed


@pytest.mark.parametrize("guard", ["allow", "disallow", "disallow_explicit"])
@pytest.mark.parametrize("where", [None, "one", "all"])
def test_a_transfer_guard_applies_as_to_device_put(guard: str, where: str | None) -> None:
    """A restore is an explicit transfer, like `jax.device_put`."""
    to = {None: None, "one": SingleDeviceSharding(jax.devices()[0]), "all": shard_over(2)}[where]
    template = {"big": jax.ShapeDtypeStruct((128, 64), jnp.float32, sharding=to)}

    def restored() -> Any:
        return tx.restore(RAW, template, at="state.params", extra="ignore")

    with jax.transfer_guard(guard):
        if guard == "disallow_explicit":
            with pytest.raises(Exception, match=r"[Dd]isallow"):
                restored()
        else:
            restored()
    restored()


def test_memory_kinds_agree_with_device_put() -> None:
    device = jax.devices()[0]
    for memory in device.addressable_memories():
        where = SingleDeviceSharding(device, memory_kind=memory.kind)
        template = {"big": jax.ShapeDtypeStruct((128, 64), jnp.float32, sharding=where)}
        array = tx.restore(RAW, template, at="state.params", extra="ignore")["big"]
        want = jax.device_put(np.zeros((128, 64), np.float32), where)
        assert array.sharding.memory_kind == memory.kind
        assert jax.typeof(array) == jax.typeof(want)


KEYS = {
    "key": make_keys(),
    "keys": make_keys(8),
    "table": make_keys(8, 8, impl="rbg"),
}


def _list_places() -> dict[str, Any]:
    n = len(jax.devices())
    grid = Mesh(np.array(jax.devices()).reshape(2, -1), ("a", "b"))
    last = jax.devices()[-1]
    kinds = {memory.kind for memory in last.addressable_memories()}
    host = "pinned_host" if "pinned_host" in kinds else last.default_memory().kind
    return {
        "one": SingleDeviceSharding(last),
        "host memory of one": SingleDeviceSharding(last, memory_kind=host),
        "replicated": shard_over(n),
        "split": shard_over(n, "x"),
        "columns": NamedSharding(grid, PartitionSpec(None, "b")),
        "boxes": NamedSharding(grid, PartitionSpec("a", "b")),
        "replicas": NamedSharding(grid, PartitionSpec("a")),
        "host memory": NamedSharding(grid, PartitionSpec("a"), memory_kind=host),
    }


@pytest.mark.parametrize("where", _list_places())
def test_typed_keys_are_placed_as_device_put_places_them(where: str) -> None:
    sharding = _list_places()[where]
    for name, keys in KEYS.items():
        if len(getattr(sharding, "spec", ())) > keys.ndim:
            continue
        template = {name: jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=sharding)}
        got = tx.restore(checkpoint_of(KEYS), template, extra="ignore")[name]
        want = jax.device_put(keys, sharding)
        assert (got.sharding, got.committed) == (want.sharding, True)
        assert jax.typeof(got) == jax.typeof(want)
        assert_same_tree(got, keys)
        for mine, theirs in zip(got.addressable_shards, want.addressable_shards, strict=True):
            assert mine.device == theirs.device
            assert_same_tree(mine.data, theirs.data)


@pytest.mark.slow
def test_each_key_is_read_once_for_all_its_devices() -> None:
    keys = jax.random.split(jax.random.key(0), 64)
    devices = np.array(jax.devices()).reshape(2, -1)
    sharding = NamedSharding(Mesh(devices, ("a", "b")), PartitionSpec("a"))
    template = {"keys": jax.ShapeDtypeStruct((64,), keys.dtype, sharding=sharding)}
    plan = tx.plan(checkpoint_of({"keys": keys}), template, memory=1)
    assert plan.placed_bytes == 64 * 8
    assert_same_tree(tx.run(plan)["keys"], keys)


def test_a_value_is_kept_in_a_sharding_that_leaves_a_dimension_open() -> None:
    sharding = shard_over(2, PartitionSpec.UNCONSTRAINED)
    for new in (np.arange(8.0, dtype=np.float32), jnp.arange(8.0), KEYS["keys"]):
        got = tx.restore(
            checkpoint_of({"step": 1}),
            {"step": 0, "new": new},
            shardings={"step": None, "new": sharding},
            missing="keep",
        )
        assert got["new"].sharding == sharding
        assert_same_tree(got["new"], new, kinds=False)
