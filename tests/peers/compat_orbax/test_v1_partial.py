"""Checkpoints of the v1 API that are saved in parts, and the small modules of names."""

import asyncio
import json

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as orbax
import pytest

import templax as tx
import templax.compat.orbax as compat
from side_by_side import assert_same, make_mesh

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("collect_garbage"),
]
LIBRARIES = pytest.mark.parametrize("ocp", [orbax.v1, compat.v1], ids=["orbax", "templax"])
P = jax.sharding.PartitionSpec


def first_part():
    sharding = jax.sharding.NamedSharding(make_mesh(), P("data", "model"))
    return {"w": jax.device_put(jnp.arange(32.0).reshape(8, 4), sharding), "step": 7}


def second_part():
    return {"opt": {"mu": np.arange(3), "name": "adam"}, "half": jnp.ones(3, jnp.bfloat16)}


def save_parts(ocp, path):
    ocp.partial.save(path, first_part(), custom_metadata={"a": 1, "b": 1})
    response = ocp.partial.save_async(path, second_part(), custom_metadata={"b": 2})
    assert not path.exists()
    response.result()
    ocp.partial.finalize(path)
    return json.loads((path / "_CHECKPOINT_METADATA").read_text())["custom_metadata"]


@pytest.mark.slow
def test_parts_become_one_checkpoint(tmp_path):
    """Either library puts its parts together to what both load: the values, their kinds and their
    shardings, and the metadata of all.
    """
    for name, ocp in (("theirs", orbax.v1), ("ours", compat.v1)):
        assert save_parts(ocp, tmp_path / name) == {"a": 1, "b": 2}
    want = orbax.v1.load(tmp_path / "theirs")
    assert_same(want, first_part() | second_part())
    for name in ("theirs", "ours"):
        for reader in (orbax.v1, compat.v1):
            assert_same(reader.load(tmp_path / name), want)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["ours", "theirs"]


@LIBRARIES
@pytest.mark.parametrize("again", [{"a": 1}, {"a": {"b": 1}}, {"c": 1}], ids=str)
def test_nothing_is_replaced(ocp, again, tmp_path):
    """Neither a leaf, nor a subtree by a leaf, nor a leaf by a subtree. The first part stays."""
    path = tmp_path / "ckpt"
    response = ocp.partial.save_async(path, {"a": 1, "c": {"d": 2}})
    if ocp is orbax.v1:  # which does not wait for the first part
        response.result()
    with pytest.raises(Exception, match="does not support REPLACEMENT"):
        ocp.partial.save_async(path, again).result()
    response.result()
    ocp.partial.finalize(path)
    assert ocp.load(path) == {"a": 1, "c": {"d": 2}}


@LIBRARIES
def test_what_partial_saves_refuse(ocp, tmp_path):
    path = tmp_path / "ckpt"
    with pytest.raises(FileNotFoundError):
        ocp.partial.finalize(path)
    with pytest.raises(ValueError, match="Found empty item"):
        ocp.partial.save(path, {})
    ocp.partial.save(path, {"a": 1})
    ocp.partial.save(path, {"b": 1})
    parts = sorted((tmp_path / "ckpt.partial_save").iterdir())
    for part in parts:
        (part / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"File collision on notes.txt"):
        ocp.partial.finalize(path)


def test_files_of_others_are_not_dropped(tmp_path):
    """What somebody put into a part has no place in the checkpoint: the parts stay."""
    path = tmp_path / "ckpt"
    compat.v1.partial.save(path, {"a": 1})
    (part,) = (tmp_path / "ckpt.partial_save").iterdir()
    (part / "notes.txt").write_text("mine")
    with pytest.raises(tx.SaveError, match=r"found notes.txt .*hint: move it elsewhere first"):
        compat.v1.partial.finalize(path)
    (part / "notes.txt").unlink()
    compat.v1.partial.finalize(tmp_path / "ckpt.partial_save")
    assert compat.v1.load(path) == {"a": 1}
    with pytest.raises(FileExistsError):
        compat.v1.partial.save(path, {"b": 1})
    with pytest.raises(NotImplementedError, match="save the parts to a local directory"):
        compat.v1.partial.save("s3://bucket/ckpt", {"b": 1})


@LIBRARIES
def test_a_session_without_parts_becomes_an_empty_directory(ocp, tmp_path):
    (tmp_path / "ckpt.partial_save").mkdir()
    ocp.partial.finalize(tmp_path / "ckpt")
    assert [each.name for each in tmp_path.iterdir()] == ["ckpt"]


@LIBRARIES
def test_trees_are_merged(ocp):
    """Dicts by key and sequences by position; only on request does a later leaf replace one."""
    merge = ocp.tree.merge
    assert merge() == {}
    assert merge({"a": {"b": 1}}, {"a": {"c": 2}}, {"d": [3]}) == {"a": {"b": 1, "c": 2}, "d": [3]}
    assert merge({"a": [{"b": 1}]}, {"a": [{"b": 2, "c": 3}]}, overwrite=True) == {
        "a": [{"b": 2, "c": 3}]
    }
    with pytest.raises(ValueError, match=r"."):
        merge({"a": 1}, {"a": 2})


@LIBRARIES
def test_arrays_are_described(ocp):
    """An array, what describes one, and a number."""
    describe = ocp.arrays.to_shape_dtype_struct
    sharding = jax.sharding.NamedSharding(make_mesh(), P("data"))
    array = jax.device_put(jnp.arange(8.0), sharding)
    found = describe(array, dtype=jnp.bfloat16)
    assert (found.shape, found.dtype, found.sharding) == ((8,), jnp.bfloat16, sharding)
    assert describe(np.ones((2, 3))).shape == (2, 3)
    assert describe(2, scalar_dtype=float) == 2.0
    asked = orbax.ArrayRestoreArgs(global_shape=(4,), dtype=np.float32, sharding=sharding)
    assert describe(asked).shape == (4,)


@LIBRARIES
def test_one_process_is_alone(ocp):
    """It is the first of one, and waits for nobody."""
    assert (ocp.multihost.process_count(), ocp.multihost.process_index()) == (1, 0)
    assert ocp.multihost.is_primary_host(0)
    assert ocp.multihost.is_primary_host(None)
    assert not ocp.multihost.is_primary_host(1)
    assert not ocp.multihost.is_pathways_backend()
    asyncio.run(ocp.multihost.sync_global_processes("here", operation_id="1"))


@LIBRARIES
def test_steps_are_named(ocp, tmp_path):
    """By a prefix and a number of digits; and what is found is named as it is."""
    step = ocp.path.step
    named = step.standard_name_format(step_prefix="ckpt", step_format_fixed_length=4)
    plain = step.standard_name_format()
    assert (named.build_name(7), plain.build_name(7)) == ("ckpt_0007", "7")
    ocp.save(tmp_path / "ckpt_0007", {"a": 1})
    ocp.save(tmp_path / "9", {"a": 1})
    both = step.composite_name_format(named, [named, plain])
    assert both.build_name(8) == "ckpt_0008"
    assert sorted(found.step for found in both.find_all(tmp_path)) == [7, 9]
    assert both.find_step(tmp_path, 9).path.name == "9"
    with pytest.raises(ValueError, match="8"):
        both.find_step(tmp_path, 8)


def test_names_of_types_are_there():
    """For annotations and for `isinstance`; a directory that a handler gets is one of them."""
    from templax.compat.orbax.experimental.v1.foreign import StagedDirectory

    ocp = compat.v1
    assert isinstance(StagedDirectory(ocp.path.Path("/tmp")), ocp.path.PathAwaitingCreation)
    assert isinstance("/tmp", ocp.path.PathLike)
    assert isinstance(np.ones(2), ocp.tree.Leaf)
    assert str(ocp.tree.Leaf) == str(orbax.v1.tree.Leaf)
    assert ocp.tree.PyTreeOf[int]
    with pytest.raises(AttributeError, match=r"has no `experimental.v1.path.made_up`; hint: "):
        ocp.path.made_up  # noqa: B018
