"""Taken from Orbax's own tests: every layout, complete and altered."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as orbax
import pytest

import templax as tx
import templax.compat.orbax as compat
from helpers import assert_same_tree, restore_as_saved, save_with_orbax

S = jax.ShapeDtypeStruct
COMPOSITE = ["v0-composite", "v1-composite"]
LAYOUTS = ["v0-direct", *COMPOSITE]


def item_of(checkpoint: Path) -> Path:
    return checkpoint if checkpoint.name.startswith("v0-direct") else checkpoint / "state"


@pytest.mark.parametrize("metadata", ["present", "missing"])
@pytest.mark.parametrize("template", ["given", "own"])
def test_a_checkpoint_loads_from_the_step_and_from_the_item(
    checkpoint, metadata, template, golden, golden_template
):
    """With and without `_CHECKPOINT_METADATA`."""
    if metadata == "missing":
        (checkpoint / "_CHECKPOINT_METADATA").unlink()
    for path in {checkpoint, item_of(checkpoint)}:
        given = template == "given"
        restored = tx.restore(path, golden_template) if given else restore_as_saved(path)
        assert_same_tree(restored, golden)


KEYS = [
    "item_handlers",
    "metrics",
    "performance_metrics",
    "init_timestamp_nsecs",
    "commit_timestamp_nsecs",
    "custom_metadata",
]


@pytest.mark.parametrize("missing", [*KEYS, "array_metadatas", "_sharding"])
def test_a_checkpoint_loads_without_optional_metadata(checkpoint, missing, golden, golden_template):
    """With a template, and without one, which Orbax needs if `_sharding` is missing."""
    if missing in KEYS:
        file = checkpoint / "_CHECKPOINT_METADATA"
        text = json.loads(file.read_text())
        del text[missing]
        file.write_text(json.dumps(text))
    elif missing == "_sharding":
        (item_of(checkpoint) / missing).unlink()
    else:
        shutil.rmtree(item_of(checkpoint) / missing)
    for path in {checkpoint, item_of(checkpoint)}:
        assert_same_tree(tx.restore(path, golden_template), golden)
        assert_same_tree(restore_as_saved(path), golden)


def test_a_missing_manifest_is_named(checkpoint, golden_template):
    """The error says that the save was finished, and which file is missing."""
    (item_of(checkpoint) / "manifest.ocdbt").unlink()
    with pytest.raises(tx.Corrupted) as caught:
        tx.restore(checkpoint, golden_template)
    assert str(caught.value) == (
        "The save was committed, but `manifest.ocdbt`, the index of its arrays, is missing "
        "- file `manifest.ocdbt`"
    )


def test_a_missing_index_is_named(checkpoint, golden_template):
    """Without `d/`, the index node that the manifest refers to is named."""
    (node,) = (item_of(checkpoint) / "d").iterdir()
    size = node.stat().st_size
    shutil.rmtree(node.parent)
    with pytest.raises(tx.Corrupted) as caught:
        tx.restore(checkpoint, golden_template)
    assert caught.value.what == "Expected the file of an index node, found none"
    assert (caught.value.file, caught.value.start) == (f"d/{node.name}", 0)
    assert caught.value.stop == size


def test_missing_values_are_named(tmp_path):
    """Without the files of the process, leaf and file are named."""
    value = jnp.asarray(np.random.default_rng(0).random((64, 64)))
    path = save_with_orbax(tmp_path / "big", {"w": value})
    shutil.rmtree(path / "ocdbt.process_0")
    with pytest.raises(tx.TemplaxError) as caught:
        tx.restore(path, {"w": S((64, 64), jnp.float32)})
    assert "`w`" in str(caught.value)
    assert "ocdbt.process_0/d/" in str(caught.value)


def test_without_tree_metadata_names_come_from_the_index(checkpoint, golden, golden_template):
    """Without `_METADATA` a template still restores, and `open` lists the names."""
    (item_of(checkpoint) / "_METADATA").unlink()
    assert_same_tree(tx.restore(checkpoint, golden_template), golden)
    assert set(tx.open(checkpoint).leaves) == {"a", "b.c"}


def test_a_part_of_a_checkpoint_names_the_whole(saved):
    """A directory inside an item is not a checkpoint; the error names the one it belongs to."""
    with pytest.raises(tx.UnknownFormat) as caught:
        tx.open(saved.v0 / "d")
    assert str(caught.value) == (
        f'{saved.v0 / "d"} is a part of the checkpoint {saved.v0}; hint: open "{saved.v0}"'
    )


def test_a_directory_of_checkpoints_lists_them(saved):
    """Their names are not those of steps."""
    with pytest.raises(tx.UnknownFormat) as caught:
        tx.open(saved.root)
    for name in LAYOUTS:
        assert name in str(caught.value)


def test_a_directory_of_steps_names_the_latest(saved, golden):
    """And the path in the hint opens."""
    manager = saved.root / "manager"
    with pytest.raises(tx.UnknownFormat) as caught:
        tx.open(manager)
    assert str(caught.value) == (
        f'{manager} holds 2 steps; the latest committed step is 2; hint: open "{manager}/2"'
    )
    assert_same_tree(restore_as_saved(manager / "2"), golden)


@pytest.mark.parametrize("checkpoint", COMPOSITE, indirect=True)
def test_a_directory_that_is_not_an_item_is_ignored(checkpoint, golden, golden_template):
    """It does not make the step ambiguous."""
    (checkpoint / "dummy").mkdir()
    (checkpoint / "dummy" / "foo.txt").write_text("hi")
    assert_same_tree(tx.restore(checkpoint, golden_template), golden)


@pytest.mark.parametrize("checkpoint", COMPOSITE, indirect=True)
def test_a_deleted_item_is_named(checkpoint):
    """By its path, and through Orbax's API."""
    shutil.rmtree(checkpoint / "state")
    with pytest.raises(tx.NotFound, match="state"):
        tx.open(checkpoint / "state")
    checkpointer = compat.Checkpointer(compat.CompositeCheckpointHandler())
    with pytest.raises(KeyError, match="Expected item `state`"):
        checkpointer.restore(
            checkpoint, args=compat.args.Composite(state=compat.args.StandardRestore())
        )


def test_an_unknown_item_lists_the_existing_ones(saved, tmp_path):
    """In a `KeyError`, as in Orbax; a run of one unnamed item has no others, as in Orbax too."""
    with orbax.CheckpointManager(tmp_path) as manager:
        state = orbax.args.StandardSave({"w": np.ones(3, np.float32)})
        manager.save(1, args=orbax.args.Composite(state=state))
    for ocp in (orbax, compat):
        unknown = ocp.args.Composite(nope=ocp.args.StandardRestore())
        with ocp.CheckpointManager(tmp_path) as manager:
            with pytest.raises(KeyError, match="nope") as caught:
                manager.restore(1, args=unknown)
            assert "state" in str(caught.value)
        with (
            ocp.CheckpointManager(saved.root / "manager") as manager,
            pytest.raises(ValueError, match="when dealing with a single, unnamed"),
        ):
            manager.restore(1, args=unknown)


def test_leaves_are_listed_from_the_step_and_from_the_item(checkpoint):
    """With names, shapes, dtypes and saved shardings; `_sharding` may be missing."""
    for path in {checkpoint, item_of(checkpoint)}:
        leaves = tx.open(path).leaves
        assert {n: (e.shape, e.dtype.name) for n, e in leaves.items()} == {
            "a": ((8,), "int32"),
            "b.c": ((3,), "int32"),
        }
        assert leaves["a"].saved_sharding is not None
    (item_of(checkpoint) / "_sharding").unlink()
    assert tx.open(checkpoint).leaves["a"].saved_sharding is None
