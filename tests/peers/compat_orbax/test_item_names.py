"""Names of items, which are names of directories, and what Orbax reads of them."""

import unicodedata

import numpy as np
import orbax.checkpoint as orbax
import pytest

import templax as tx
import templax.compat.orbax as compat

TREE = {"w": np.arange(3, dtype=np.float32)}

BAD = {
    ("a", ""): "Expected a name for each of several items, got one without",
    ("a/b",): "'a/b', which is not the name of one directory",
    ("..",): "'..', which is not the name of one directory",
    ("a\\b",): "'a\\\\b', which is not the name of one directory",
    ("\udc80",): "'\\udc80', which is not valid Unicode",
    ("n" * 256,): f"'{'n' * 256}', which has 256 bytes, more than 255",
    ("_CHECKPOINT_METADATA",): "'_CHECKPOINT_METADATA', which is that of a part of a checkpoint",
    ("ocdbt.process_0",): "'ocdbt.process_0', which is that of a part of a checkpoint",
    (
        "x.orbax-checkpoint-tmp-1",
    ): "'x.orbax-checkpoint-tmp-1', which is that of an unfinished save",
    ("a", "A"): "'A', which is one with 'a' where case is ignored",
    ("é", unicodedata.normalize("NFD", "é")): (
        f"{unicodedata.normalize('NFD', 'é')!r}, which is one with 'é' where case is ignored"
    ),
}


def composite(names):
    return compat.args.Composite(**{name: compat.args.StandardSave(TREE) for name in names})


@pytest.mark.parametrize(("names", "why"), BAD.items())
def test_items_are_not_saved_under_names_that_cannot_be_read_again(tmp_path, names, why):
    checkpointer = compat.Checkpointer(compat.CompositeCheckpointHandler())
    with pytest.raises(tx.UsageError) as caught:
        checkpointer.save(tmp_path / "ckpt", args=composite(names))
    assert str(caught.value).endswith(why)
    manager = compat.CheckpointManager(tmp_path / "run", item_names=names)
    with pytest.raises(tx.UsageError) as caught:
        manager.save(1, args=composite(names))
    assert str(caught.value).endswith(why)
    if len(names) == 1:
        with pytest.raises(tx.UsageError) as caught:
            compat.v1.save(tmp_path / "ckpt", TREE, checkpointable_name=names[0])
        assert str(caught.value).endswith(why)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", [".hidden", "d", "templax.index", "metrics", "a b\n", "漢", "model.safetensors", "3"]
)
def test_orbax_reads_items_of_odd_names(tmp_path, name):
    checkpointer = compat.Checkpointer(compat.CompositeCheckpointHandler())
    checkpointer.save(tmp_path / "ckpt", args=composite([name, "other"]))
    assert tx.restore(tmp_path / "ckpt" / name, TREE)["w"].tolist() == [0, 1, 2]
    handler = orbax.CompositeCheckpointHandler()
    args = orbax.args.Composite(**{name: orbax.args.StandardRestore()})
    found = orbax.Checkpointer(handler).restore(tmp_path / "ckpt", args=args)
    assert found[name]["w"].tolist() == [0, 1, 2]


def test_an_item_does_not_take_the_place_of_the_metrics(tmp_path):
    options = compat.CheckpointManagerOptions(best_fn=lambda metrics: metrics["loss"])
    with compat.CheckpointManager(tmp_path, options=options, item_names=("metrics",)) as manager:
        with pytest.raises(tx.UsageError, match="Expected items of other names than `metrics`"):
            manager.save(1, args=composite(["metrics"]), metrics={"loss": 1})
        assert manager.all_steps() == []
