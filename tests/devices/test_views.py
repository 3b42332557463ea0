"""Views onto eight devices: every shard holds what it holds of the whole array."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import templax as tx

LAYERS, HEADS, SIZE, WIDTH = 4, 8, 4, 16
SPECS = [
    (),
    ("x",),
    (None, "x"),
    (None, None, "x"),
    ("x", "y"),
    (None, ("x", "y")),
    (None, "y", "x"),
]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Layers as PyTorch has them: a matrix (heads × size, width) each; raw and compressed."""
    rng = np.random.default_rng(0)
    tree = {
        f"h.{i}.weight": rng.standard_normal((HEADS * SIZE, WIDTH)).astype(np.float32)
        for i in range(LAYERS)
    }
    paths = {}
    for compression in (None, "zstd"):
        paths[compression] = tmp_path_factory.mktemp("stored") / "ckpt"
        tx.save(paths[compression], tree, compression=compression)
    values = np.stack(list(tree.values())).reshape(LAYERS, HEADS, SIZE, WIDTH)
    return paths, values.transpose(0, 3, 1, 2)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("spec", SPECS)
def test_shards_of_a_view_are_those_of_the_whole_array(spec, compression, dtype, stored):
    paths, values = stored
    mapping = tx.Mapping({"w": tx.From("h.{i}.weight", "(h k) d -> i d h k")})
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("x", "y"))
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    template = {"w": jax.ShapeDtypeStruct(values.shape, dtype, sharding=sharding)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tx.CastWarning)
        made = tx.restore(tx.view(paths[compression], mapping), template)["w"]
    assert made.sharding == sharding
    expected = jax.device_put(jnp.asarray(values).astype(dtype), sharding)
    for mine, theirs in zip(made.addressable_shards, expected.addressable_shards, strict=True):
        assert mine.device == theirs.device
        np.testing.assert_array_equal(mine.data, theirs.data)


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("spec", SPECS[2:])
def test_shards_of_a_view_of_a_view_are_those_of_the_whole_array(spec, compression, stored):
    paths, values = stored
    layers = tx.Mapping({"l.{i}.w": tx.From("h.{i}.weight", "(h k) d -> d (k h)", k=SIZE)})
    scanned = tx.Mapping({"w": tx.From("l.{i}.w", "d (k h) -> i d h k", k=SIZE)})
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("x", "y"))
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    template = {"w": jax.ShapeDtypeStruct(values.shape, jnp.float32, sharding=sharding)}
    made = tx.restore(tx.view(tx.view(paths[compression], layers), scanned), template)["w"]
    expected = jax.device_put(values, sharding)
    for mine, theirs in zip(made.addressable_shards, expected.addressable_shards, strict=True):
        assert mine.device == theirs.device
        np.testing.assert_array_equal(mine.data, theirs.data)


def test_a_shard_reads_only_the_layers_that_it_holds(stored):
    paths, values = stored
    mapping = tx.Mapping({"w": tx.From("h.{i}.weight", "(h k) d -> i d h k")})
    template = {"w": jax.ShapeDtypeStruct(values.shape[1:], jnp.float32)}
    one = tx.Mapping(
        {"w": tx.From("h.{i}.weight", "(h k) d -> i d h k")}
        | {"v": tx.From("h.2.weight", "(h k) d -> d h k")}
    )
    plan = tx.plan(tx.view(paths[None], one), {"v": template["w"]}, extra="ignore")
    assert plan.read_bytes == values[2].nbytes
    whole = tx.plan(
        tx.view(paths[None], mapping), {"w": jax.ShapeDtypeStruct(values.shape, jnp.float32)}
    )
    assert whole.read_bytes == values.nbytes


def test_a_transposed_leaf_is_not_mapped_and_one_in_another_shape_is(stored):
    paths, values = stored
    rules = {
        "w": tx.From("h.1.weight", "a d -> d a"),
        "v": tx.From("h.2.weight", "(h k) d -> h k d", k=SIZE),
    }
    view = tx.view(paths[None], tx.Mapping(rules, drop=["h.0.*", "h.3.*"]))
    template = {
        "w": jax.ShapeDtypeStruct((WIDTH, HEADS * SIZE), jnp.float32),
        "v": jax.ShapeDtypeStruct((HEADS, SIZE, WIDTH), jnp.float32),
    }
    plan = tx.plan(view, template, mapped=True)
    assert plan.unmapped == {"laid otherwise than in memory": 1}
    made = tx.run(plan)
    np.testing.assert_array_equal(made["w"], values[1].reshape(WIDTH, -1))
    np.testing.assert_array_equal(made["v"], values[2].transpose(1, 2, 0))


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_what_several_boxes_need_is_read_once_however_little_memory_there_is(compression, stored):
    paths, values = stored
    mapping = tx.Mapping({"w": tx.From("h.{i}.weight", "(h k) d -> i d h k")})
    mesh = Mesh(np.array(jax.devices()), ("x",))
    sharding = NamedSharding(mesh, PartitionSpec(None, "x"))
    template = {"w": jax.ShapeDtypeStruct(values.shape, jnp.float16, sharding=sharding)}
    plan = tx.plan(tx.view(paths[compression], mapping), template, memory=1)
    assert any(buffer.transient for batch in plan.batches for buffer in batch.buffers)
    if compression is None:
        assert plan.read_bytes == values.nbytes
    else:
        assert plan.decoded_chunks == LAYERS
