"""Functions on trees, arrays, directories and msgpack that programs take from Orbax."""

import time
from typing import Any, NamedTuple

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as orbax
import pytest
from absl.testing import absltest
from flax import serialization

import templax as tx
import templax.compat.orbax as compat
from side_by_side import Pair, assert_same, make_mesh

BOTH = pytest.mark.parametrize("ocp", [orbax, compat], ids=["orbax", "templax"])


class Empty(NamedTuple):
    pass


def make_tree() -> dict[str, Any]:
    return {"a": [1, {"b": 2}], "p": Pair(3, (4, None)), "e": {}, "n": {5: 6}}


def test_flat_dicts_are_those_of_orbax():
    """Of nested, empty and unnamed nodes; and back."""
    for options in ({}, {"sep": "/"}, {"keep_empty_nodes": True}, {"is_leaf": lambda x: x == [4]}):
        theirs = orbax.tree.to_flat_dict(make_tree(), **options)
        assert compat.tree.to_flat_dict(make_tree(), **options) == theirs
    flat = compat.utils.to_flat_dict(make_tree())
    assert compat.utils.from_flat_dict(flat) == orbax.utils.from_flat_dict(flat)
    assert compat.utils.from_flat_dict(dict(flat), make_tree(), inplace=True) == make_tree()
    assert compat.tree.from_flat_dict({(): 1}) == 1
    assert compat.tree.from_flat_dict({"a/b": 1}, sep="/") == {"a": {"b": 1}}
    for wrong in ({("a",): 1, ("a", "b"): 2}, {(): 1, ("a",): 2}):
        with pytest.raises(tx.UsageError, match="Expected"):
            compat.tree.from_flat_dict(wrong)


def test_serialized_trees_are_those_of_orbax():
    """Tuples become lists, NamedTuples dicts; a target gives them back."""
    for keep in (False, True):
        theirs = orbax.tree.serialize_tree(make_tree(), keep_empty_nodes=keep)
        ours = compat.tree.serialize_tree(make_tree(), keep_empty_nodes=keep)
        assert ours == theirs
        back = compat.tree.deserialize_tree(ours, make_tree(), keep_empty_nodes=keep)
        assert back == make_tree()
    assert compat.tree.serialize_tree(7) == 7
    with pytest.raises(tx.UsageError, match="empty"):
        compat.tree.serialize_tree({})
    with pytest.raises(KeyError):
        compat.utils.deserialize_tree({"a": 1}, {"b": 0})
    assert compat.tree.get_param_names(make_tree()) == orbax.tree.get_param_names(make_tree())
    for value in (1, {}, None, [], {"a": 1}, Empty(), np.ones(2)):
        assert compat.utils.is_empty_node(value) == orbax.utils.is_empty_node(value)
        assert compat.utils.is_empty_or_leaf(value) == orbax.utils.is_empty_or_leaf(value)
        assert compat.tree.is_flat_dict(value) == orbax.tree.is_flat_dict(value)
        handlers = compat.type_handlers, orbax.type_handlers
        assert len({each.is_supported_empty_value(value) for each in handlers}) == 1


def test_abstract_arrays_are_those_of_orbax():
    """Of arrays, numbers and restore args; and shardings that spread them."""
    sharding = jax.sharding.NamedSharding(make_mesh(), jax.sharding.PartitionSpec("data"))
    leaves = [np.ones(3), jax.device_put(jnp.ones(8), sharding), 2, np.float32(3)]
    for leaf in leaves:
        theirs = orbax.utils.to_shape_dtype_struct(leaf)
        assert compat.utils.to_shape_dtype_struct(leaf) == theirs
    args = compat.ArrayRestoreArgs(dtype=np.int8, global_shape=(8,), sharding=sharding)
    made = compat.tree.to_shape_dtype_struct(args, dtype=np.int16)
    assert (made.shape, made.dtype, made.sharding) == ((8,), np.int16, sharding)
    assert compat.tree.to_shape_dtype_struct(2, scalar_dtype=float) == 2.0
    for shape in ((), (3,), (8,), (16, 3), (6, 4), (2, 100)):
        tree = {"x": jax.ShapeDtypeStruct(shape, np.float32)}
        theirs = orbax.arrays.construct_maximal_shardings(tree)["x"]
        ours = compat.arrays.construct_maximal_shardings(tree)["x"]
        assert ours.shard_shape(shape) == theirs.shard_shape(shape)


@pytest.mark.parametrize("value", ["text", None, [1], 1j, int, orbax.RestoreArgs()])
def test_what_has_no_shape_has_no_shape_dtype_struct(value):
    for ocp in (orbax, compat):
        with pytest.raises(ValueError, match=r"have a `shape`|Expected an array"):
            ocp.utils.to_shape_dtype_struct(value)


def test_msgpack_is_that_of_flax(monkeypatch):
    """Bytes that Flax restores, and the other way round; large arrays in several pieces."""
    tree = {"a": np.arange(6.0).reshape(2, 3), "b": (1, [2.5, None]), "c": 1 + 2j, "d": "x",
            "e": np.float16(3), "f": jnp.ones(2, jnp.bfloat16), "g": True}  # fmt: skip
    for limit in (2**30, 16):
        monkeypatch.setattr(compat.msgpack_utils, "MAX_CHUNK_SIZE", limit)
        data = compat.msgpack_utils.msgpack_serialize(tree)
        got = compat.msgpack_utils.msgpack_restore(data)
        theirs = orbax.msgpack_utils.msgpack_restore(data)
        assert_same(got, theirs)
        np.testing.assert_array_equal(got["a"], tree["a"])
        assert (got["b"], got["c"], type(got["e"])) == ((1, [2.5, None]), 1 + 2j, np.float16)
    flax = {"w": np.arange(3), "n": {"x": 1}}
    assert_same(compat.msgpack_utils.msgpack_restore(serialization.msgpack_serialize(flax)), flax)
    with pytest.raises(tx.UsageError, match="Expected arrays"):
        compat.msgpack_utils.msgpack_serialize({"a": object()})
    for wrong in (b"\xc1", data[:-1], b"\xd4\x63\x00"):
        with pytest.raises(tx.UsageError, match="Expected a tree"):
            compat.msgpack_utils.msgpack_restore(wrong)


@pytest.mark.filterwarnings("ignore:jax.experimental.pjit:DeprecationWarning")
@BOTH
def test_test_utils(ocp, tmp_path):
    """Directories, trees and assertions for the tests of programs."""
    tools = ocp.test_utils
    path = tools.erase_and_create_empty(tmp_path / "d")
    (path / "x").mkdir()
    (path / "y").write_text("")
    tools.print_directory(path)
    assert tools.empty_directory(path)
    assert not list(path.iterdir())
    assert not tools.empty_directory(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"[Dd]irectory"):
        tools.print_directory(tmp_path / "absent")
    tree, meshes, axes = tools.setup_sharded_pytree()
    case = absltest.TestCase()
    tools.assert_tree_same_structure(case, tools.setup_pytree(), tree)
    np.testing.assert_array_equal(tree["c"]["e"], tools.setup_pytree(add=1)["c"]["e"] - 1)
    copy = tools.create_sharded_array(tools.setup_pytree()["b"], meshes["b"], axes["b"])
    tools.assert_array_equal(case, tree["b"], copy)
    tools.assert_tree_equal(case, tree, jax.tree.map(lambda x: x, tree))
    for wrong in ({**tree, "b": tools.replicate_sharded_array(tree["b"])}, {"a": tree["a"]}):
        with pytest.raises(AssertionError):
            tools.assert_tree_equal(case, tree, wrong)
    doubled = tools.apply_function({"b": tree["b"]}, lambda x: x * 2)
    np.testing.assert_array_equal(doubled["b"], np.asarray(tree["b"]) * 2)
    keys = {"k": jax.random.key(1)}
    tools.assert_tree_equal(case, keys, {"k": jax.random.key(1)})
    with pytest.raises(AssertionError):
        tools.assert_tree_equal(case, keys, {"k": jax.random.key(2)})
    assert tools.filter_metadata_fields({"b": copy}, ["shape", "no"]) == {"b": {"shape": (16,)}}
    args = tools.create_single_replica_restore_args(copy, meshes["b"], axes["b"])
    assert (args.sharding, args.global_shape) == (copy.sharding, (16,))
    tools.sync_global_processes("test")


@pytest.mark.slow
@BOTH
def test_utils(ocp, at, tmp_path):
    """Names that programs use."""
    utils = ocp.utils
    assert utils.TMP_DIR_SUFFIX.startswith(".orbax-checkpoint-tmp")
    assert utils.name_from_leaf_placeholder(utils.leaf_placeholder("a.b")) == "a.b"
    assert not utils.leaf_is_placeholder("a.b")
    with pytest.raises(ValueError, match=r"prefix|begins"):
        utils.name_from_leaf_placeholder("a.b")
    assert [utils.is_scalar(x) for x in (1, 2.0, np.int8(3), "4")] == [True, True, True, False]
    heard = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: heard.append((event, seconds))
    )
    utils.record_saved_duration(time.time() + 60)
    ((event, seconds),) = [each for each in heard if "duration_since_last" in each[0]]
    assert 0 < seconds - 60 < 10_000, event
    local = jax.pmap(lambda x: x)(jnp.ones((len(jax.devices()), 3)))
    whole = utils.fully_replicated_host_local_array_to_global_array(local)
    assert (whole.shape, whole.sharding.is_fully_replicated) == ((3,), True)
    assert ocp.__version__ == orbax.__version__


@BOTH
def test_type_handlers(ocp, at):
    """Which leaves can be saved, and whether files are a database."""
    handlers = ocp.type_handlers
    assert handlers.is_ocdbt_checkpoint(at.small_pytree)
    assert not handlers.is_ocdbt_checkpoint(at.files)
    assert handlers.has_type_handler(float)
    assert not handlers.has_type_handler(set)
    assert {jax.Array, np.ndarray, int, float, str} <= set(handlers.supported_types())
    kinds = [handlers.get_type_handler(ty).typestr() for ty in (jax.Array, np.ndarray, int, str)]
    assert kinds == ["jax.Array", "np.ndarray", "scalar", "string"]
    assert handlers.is_supported_type(np.ones(2))
    assert not handlers.is_supported_type(object())
    handlers.register_type_handler(np.ndarray, handlers.NumpyHandler(), override=True)
    with pytest.raises(ValueError, match="set"):
        handlers.get_type_handler(set)


def test_type_handlers_of_ones_own_are_refused():
    """They would not be called."""

    class Mine(compat.type_handlers.NumpyHandler):
        pass

    with pytest.raises(NotImplementedError, match="CheckpointHandler of your own"):
        compat.type_handlers.register_type_handler(set, Mine())
