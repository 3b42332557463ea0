"""What the v1 API loads from where: checkpoints of both APIs, safetensors, and what is neither."""

import json
import shutil

import jax
import numpy as np
import orbax.checkpoint as orbax
import pytest
from safetensors.numpy import save_file

import templax as tx
import templax.compat.orbax as compat
from helpers import abstract
from side_by_side import assert_same, first_device, small_tree

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("collect_garbage"),
]
LIBRARIES = pytest.mark.parametrize("ocp", [orbax.v1, compat.v1], ids=["orbax", "templax"])


def make_places(tmp_path, at):
    """Name → a path that holds a checkpoint, a part of one, or something else."""
    shutil.copytree(at.small_v1, tmp_path / "v1")
    shutil.copytree(at.small_pytree, tmp_path / "tree")
    shutil.copytree(at.items / "7", tmp_path / "items")
    shutil.copytree(at.small_v1, tmp_path / "unmarked")
    (tmp_path / "unmarked/orbax.checkpoint").unlink()
    shutil.copytree(at.small_v1, tmp_path / "undescribed")
    (tmp_path / "undescribed/_CHECKPOINT_METADATA").unlink()
    shutil.copytree(at.small_v1, tmp_path / "ckpt.orbax-checkpoint-tmp-1")
    (tmp_path / "file").write_text("text")
    (tmp_path / "empty").mkdir()
    shutil.copytree(at.manager, tmp_path / "run")
    return {
        "v1": tmp_path / "v1",
        "item of v1": tmp_path / "v1/state",
        "tree": tmp_path / "tree",
        "items": tmp_path / "items",
        "item": tmp_path / "items/state",
        "unmarked": tmp_path / "unmarked",
        "undescribed": tmp_path / "undescribed",
        "temporary": tmp_path / "ckpt.orbax-checkpoint-tmp-1",
        "file": tmp_path / "file",
        "empty": tmp_path / "empty",
        "run": tmp_path / "run",
        "nothing": tmp_path / "nothing",
    }


def describe(call, *args, **kwargs):
    """What a call returns, or the kind of its error."""
    try:
        return call(*args, **kwargs)
    except ValueError as error:
        return type(error).__name__


@pytest.mark.slow
def test_the_same_paths_are_checkpoints(tmp_path, at):
    """And each tree is loaded by the same names, or refused by the same exception."""
    places, target = make_places(tmp_path, at), abstract(small_tree(), first_device())
    for name, path in places.items():
        ours, theirs = (ocp.v1.is_orbax_checkpoint(path) for ocp in (compat, orbax))
        assert ours is theirs, name
        for checkpointable in ("AUTO", "state", "default", "meta", None):
            options = {"checkpointable_name": checkpointable}
            got, want = (describe(ocp.v1.load, path, target, **options) for ocp in (compat, orbax))
            if isinstance(want, str):
                assert got == want, (name, checkpointable)
            else:
                assert_same(got, want)


def test_the_same_checkpointables_of_older_checkpoints(tmp_path, at):
    """A step of the older API has its items; a tree without a name has none."""
    places = make_places(tmp_path, at)
    for name in ("items", "tree", "unmarked", "run", "nothing"):
        target = {"state": abstract(small_tree(), first_device())}
        calls = [ocp.v1.load_checkpointables for ocp in (compat, orbax)]
        got, want = (describe(call, places[name], target) for call in calls)
        assert (got == want) if isinstance(want, str) else assert_same(got, want) is None, name
    assert compat.v1.load_checkpointables(places["items"], {"meta": None}) == {
        "meta": {"note": "x", "n": [1, 2]}
    }


def test_errors_name_what_is_there(tmp_path, at):
    """And what to write instead."""
    places, load = make_places(tmp_path, at), compat.v1.load
    invalid = compat.v1.errors.InvalidLayoutError
    assert issubclass(invalid, tx.CheckpointError)
    with pytest.raises(invalid, match=r"There is no tree `other`, found `state`"):
        load(places["v1"], checkpointable_name="other")
    with pytest.raises(invalid, match=r"found one without a name \(checkpointable_name=None\)"):
        load(places["tree"], checkpointable_name="state")
    with pytest.raises(invalid, match=r"it holds checkpoints; load one of 1, 12, 3; hint: "):
        load(places["run"])
    with pytest.raises(invalid, match=r"it is a part of the checkpoint .*v1; load that one"):
        load(places["item of v1"])
    (places["v1"] / "state/_METADATA").unlink()
    with pytest.raises(KeyError, match=r"its `_METADATA`, found none .*templax.restore reads"):
        compat.v1.load_checkpointables(places["v1"])


@LIBRARIES
def test_auto_prefers_the_state(ocp, tmp_path):
    """Then the first tree by name; what is no tree is passed over."""
    trees = {"analytics": {"a": 1}, "state": {"b": 2}}
    ocp.save_checkpointables(tmp_path / "both", trees)
    assert ocp.load(tmp_path / "both") == {"b": 2}
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="about")
    context = ocp.Context()
    context.checkpointables.registry = registry
    with context:
        ocp.save_checkpointables(tmp_path / "other", {"about": {"a": 1}, "zoo": {"c": 3}})
        assert ocp.load(tmp_path / "other") == {"c": 3}


@LIBRARIES
@pytest.mark.parametrize("place", ["model.safetensors", "."])
def test_safetensors(ocp, place, tmp_path):
    """A file or a directory of them: numpy arrays under their flat names, or as the template asks;
    in the background, too.
    """
    tensors = {
        "layer.w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "n": np.arange(3, dtype=np.int32),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    context, path = ocp.Context(), tmp_path / place
    context.checkpoint_layout = "safetensors"
    with context:
        assert_same(ocp.load(path), tensors)
        target = {
            "layer.w": jax.ShapeDtypeStruct((2, 3), np.float32, sharding=first_device()),
            "n": jax.ShapeDtypeStruct((3,), np.int32, sharding=first_device()),
        }
        assert isinstance(ocp.load_async(path, target).result()["layer.w"], jax.Array)
        with pytest.raises(NotImplementedError):
            ocp.save(tmp_path / "new", {"w": 1})
        with pytest.raises(NotImplementedError):
            ocp.load_checkpointables(path)
    with pytest.raises(ocp.errors.InvalidLayoutError, match=r"valid Orbax checkpoint"):
        ocp.load(tmp_path / "model.safetensors")


@LIBRARIES
def test_the_layout_that_is_there(ocp, tmp_path):
    """`auto` takes either."""
    save_file({"w": np.ones(2)}, tmp_path / "model.safetensors")
    ocp.save(tmp_path / "ckpt", {"w": np.ones(2)})
    context = ocp.Context()
    context.checkpoint_layout = ocp.options.CheckpointLayout.AUTO
    with context:
        for name in ("model.safetensors", "ckpt"):
            assert_same(ocp.load(tmp_path / name), {"w": np.ones(2)})


def saved(ocp, path):
    ocp.save_checkpointables(path, {"params": {"w": np.ones(3)}, "opt": {"n": 1}})


@pytest.mark.slow
def test_deleting_is_the_same(tmp_path):
    """A checkpoint, or a part of it, which the metadata then no longer names."""
    found = []
    for name, ocp in (("theirs", orbax.v1), ("ours", compat.v1)):
        path = tmp_path / name
        saved(ocp, path)
        assert ocp.delete(path, checkpointable_name="opt")
        about = json.loads((path / "_CHECKPOINT_METADATA").read_text())
        found.append(about["item_handlers"])
        for reader in (orbax.v1, compat.v1):
            assert list(reader.load_checkpointables(path)) == ["params"]
        assert ocp.delete(path, checkpointable_name="opt", missing_ok=True) is False
        for arguments, error in (
            ({"checkpointable_name": "opt"}, FileNotFoundError),
            ({"checkpointable_name": "params"}, ValueError),
            ({"checkpointable_name": "../ours"}, ValueError),
            ({"checkpointable_name": "metrics"}, ValueError),
        ):
            with pytest.raises(error):
                ocp.delete(path, **arguments)
        assert ocp.delete_async(path).result() is True
        assert not path.exists()
        assert ocp.delete(path, missing_ok=True) is False
        with pytest.raises(FileNotFoundError):
            ocp.delete(path)
    assert found[0] == found[1]
    assert not list(tmp_path.iterdir())


@LIBRARIES
def test_only_checkpoints_are_deleted(ocp, tmp_path, at):
    """Neither a run, nor a part of a checkpoint, nor anything else."""
    places = make_places(tmp_path, at)
    (places["empty"] / "thesis.tex").write_text("five years")
    for name in ("run", "item of v1", "empty", "file"):
        with pytest.raises((ValueError, OSError)):
            ocp.delete(places[name])
        assert places[name].exists()
    assert ocp.delete(places["items"])
    assert ocp.delete(places["tree"])


def test_a_checkpoint_that_is_being_restored_stays(tmp_path):
    """`delete` raises, and says so."""
    from templax._runs.locks import hold_for_reading

    saved(compat.v1, tmp_path / "ckpt")
    with (
        hold_for_reading(str(tmp_path / "ckpt")),
        pytest.raises(tx.SaveError, match="Another process restores"),
    ):
        compat.v1.delete(tmp_path / "ckpt")
    assert compat.v1.load(tmp_path / "ckpt", checkpointable_name="opt") == {"n": 1}
