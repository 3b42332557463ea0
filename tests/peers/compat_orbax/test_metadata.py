"""What the metadata of checkpoints says, without an array being read; and that it is a template."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as orbax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import templax as tx
import templax.compat.orbax as compat
from side_by_side import assert_same, make_mesh, quiet, rich_tree, sharded_tree

BOTH = pytest.mark.parametrize("ocp", [orbax, compat], ids=["orbax", "templax"])


def read(ocp, path):
    return ocp.PyTreeCheckpointer().metadata(path).item_metadata


def test_leaves_are_like_arrays(at):
    """Shapes, dtypes and kinds of leaves are those that Orbax says."""
    ours, theirs = read(compat, at.rich_pytree), read(orbax, at.rich_pytree)
    assert list(ours) == list(theirs)
    assert ours.keys() == theirs.keys()
    assert "bf16" in ours
    assert ours.get("absent") is None
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    for one, other in pairs:
        assert type(one).__name__ == type(other).__name__
        assert (one.name, one.directory) == (other.name, at.rich_pytree)
        assert (tuple(one.shape), one.dtype) == (tuple(other.shape), other.dtype)
        if one.storage is not None and other.storage is not None:
            assert one.storage.chunk_shape == tuple(other.storage.chunk_shape)
            assert one.storage.write_shape == other.storage.write_shape
    assert isinstance(ours["int"], compat.metadata.ScalarMetadata)
    assert (ours["int"].dtype, ours["int"].shape) == (np.int64, ())
    assert ours["empty"] == {}
    assert ours["none"] is None
    shapes = jax.tree.map(lambda leaf: leaf.shape, ours)
    assert isinstance(shapes, compat.metadata.tree.TreeMetadata)
    assert shapes["bf16"] == (4,)


def test_shardings_are_those_of_the_save(at, tmp_path):
    """In either library's files. They equal Orbax's objects, and are serialised alike."""
    compat.PyTreeCheckpointer().save(tmp_path / "ours", sharded_tree())
    theirs = read(orbax, at.sharded_pytree)["w"].sharding
    for path in (at.sharded_pytree, tmp_path / "ours"):
        ours = read(compat, path)["w"].sharding
        assert isinstance(ours, compat.metadata.NamedShardingMetadata)
        assert (ours == theirs, theirs == ours) == (True, True)
        assert ours.to_serialized_string() == theirs.to_serialized_string()
        assert ours.to_jax_sharding() == sharded_tree()["w"].sharding
        other = NamedSharding(make_mesh(), PartitionSpec("model"))
        assert ours != compat.metadata.ShardingMetadata.from_jax_sharding(other)
    single = compat.metadata.ShardingMetadata.from_jax_sharding(jnp.ones(1).sharding)
    assert isinstance(single, compat.metadata.SingleDeviceShardingMetadata)
    assert single.to_jax_sharding() == jnp.ones(1).sharding


def test_metadata_is_a_template(at, tmp_path):
    """Of all that it describes: the leaves come back as they were saved, sharded as saved."""
    tree = {**rich_tree(), **sharded_tree(), "text": "x"}
    tree = {name: tree[name] for name in ("bf16", "int", "float", "w", "key", "text", "empty")}
    compat.PyTreeCheckpointer().save(tmp_path / "ckpt", tree)
    metadata = read(compat, tmp_path / "ckpt")
    for item in (metadata, metadata.tree):
        assert_same(compat.PyTreeCheckpointer().restore(tmp_path / "ckpt", item=item), tree)
    assert_same(compat.StandardCheckpointer().restore(tmp_path / "ckpt", metadata.tree), tree)
    abstract = jax.tree.map(compat.utils.to_shape_dtype_struct, {"w": metadata["w"]})
    args = compat.args.PyTreeRestore(abstract, partial_restore=True)
    got = compat.PyTreeCheckpointer().restore(tmp_path / "ckpt", args=args)
    assert_same(got, {"w": tree["w"]})


def test_differs_metadata_of_other_devices(at, caplog):
    """Orbax takes no metadata as a template; templax restores on the default device and warns."""
    metadata = read(compat, at.sharded_pytree)
    for leaf in (metadata["w"], metadata["key"]):
        leaf.sharding = compat.metadata.SingleDeviceShardingMetadata("TPU_99")
    with pytest.raises(tx.UsageError, match="no TPU_99"):
        metadata["w"].sharding.to_jax_sharding()
    theirs = read(orbax, at.sharded_standard)
    with quiet(), pytest.raises(ValueError, match="Unsupported type"):
        orbax.StandardCheckpointer().restore(at.sharded_standard, theirs.tree)
    got = compat.PyTreeCheckpointer().restore(at.sharded_pytree, item=metadata)
    assert got["w"].sharding.device_set == {jax.devices()[0]}
    assert "restored on the default device: `key`, `w`" in caplog.text


@BOTH
def test_metadata_of_steps(ocp, tmp_path):
    """What a save noted of itself; and the store that reads and writes such files."""
    with quiet(), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "ckpt", {"a": jnp.ones(2)}, custom_metadata={"lr": 0.5})
        checkpointer.wait_until_finished()
        found = checkpointer.metadata(tmp_path / "ckpt")
    noted = ocp.metadata.get_step_metadata(tmp_path / "ckpt")
    assert found.custom_metadata == noted.custom_metadata == {"lr": 0.5}
    assert found.commit_timestamp_nsecs > found.init_timestamp_nsecs > 1e18
    assert noted.commit_timestamp_nsecs == found.commit_timestamp_nsecs
    assert "StandardCheckpointHandler" in found.item_handlers
    with pytest.raises(ValueError, match="_CHECKPOINT_METADATA"):
        ocp.metadata.get_step_metadata(tmp_path)
    store = ocp.metadata.metadata_store(enable_write=True, blocking_write=True)
    store.write(tmp_path / "notes", {"a": 1})
    store.update(tmp_path / "notes", b=2)
    assert store.read(tmp_path / "notes") == {"a": 1, "b": 2}
    assert store.read(tmp_path / "absent") is None
    assert store.is_blocking_writer()
    ocp.metadata.metadata_store(enable_write=False).write(tmp_path / "other", {"a": 1})
    assert not (tmp_path / "other").exists()
    root = ocp.metadata.RootMetadata()
    assert (root.internal_metadata, root.custom_metadata) == ({}, {})


def test_equality_of_leaves_is_that_of_values():
    """Names and directories are not compared."""
    array = compat.metadata.ArrayMetadata("a", None, (2,), None, np.dtype(np.int8))
    same = compat.metadata.ArrayMetadata("b", None, (2,), None, np.dtype(np.int8))
    assert (array, array.ndim, array.size) == (same, 1, 2)
    scalar = compat.metadata.value.ScalarMetadata("a", None, dtype=np.dtype(np.int8))
    assert scalar not in (array, compat.metadata.value.StringMetadata("a", None))
    assert "shape=(2,)" in repr(array)


def test_differs_typed_keys_in_metadata(at):
    """Orbax describes the data of a key; templax the key, which is a template for it."""
    theirs, ours = read(orbax, at.sharded_pytree)["key"], read(compat, at.sharded_pytree)["key"]
    assert (theirs.shape, theirs.dtype) == ((2,), np.uint32)
    assert (ours.shape, ours.dtype) == ((), jax.random.key(0).dtype)


def test_differs_storage_in_metadata(tmp_path):
    """The chunks are those in the files: Orbax's are shards, templax's are not."""
    chunks = {}
    for ocp in (orbax, compat):
        path = tmp_path / ocp.__name__
        with quiet():
            ocp.PyTreeCheckpointer().save(path, sharded_tree())
            chunks[ocp.__name__] = [read(each, path)["w"].storage for each in (orbax, compat)]
    (theirs, seen), (by_orbax, ours) = chunks["orbax.checkpoint"], chunks["templax.compat.orbax"]
    assert (theirs.chunk_shape, theirs.write_shape) == ((2, 2), (2, 2))
    assert (seen.chunk_shape, seen.write_shape) == ((2, 2), (2, 2))
    assert by_orbax.chunk_shape == ours.chunk_shape == (8, 4)
    assert ours.write_shape is None


def test_differs_metadata_where_no_checkpoint_is(tmp_path):
    """Orbax returns metadata in which all is empty."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("five years")
    for name, error in (("absent", FileNotFoundError), ("other", ValueError)):
        for checkpointer in ("PyTreeCheckpointer", "StandardCheckpointer"):
            with quiet(), getattr(orbax, checkpointer)() as theirs:
                assert theirs.metadata(tmp_path / name) == orbax.metadata.StepMetadata()
            with getattr(compat, checkpointer)() as ours, pytest.raises(error):
                ours.metadata(tmp_path / name)
