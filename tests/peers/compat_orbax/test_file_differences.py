"""Paths, directories and damaged files, where Orbax and templax differ or agree.

Each test asserts what both libraries do; `docs/reference/orbax-differences.md` names it.
"""

import json
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as orbax
import pytest

import templax as tx
import templax.compat.orbax as compat
from side_by_side import assert_same, quiet, small_template, small_tree, weights

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
S = jax.ShapeDtypeStruct


def test_differs_relative_path(at, monkeypatch):
    """Orbax requires absolute paths; templax accepts any."""
    monkeypatch.chdir(at.root)
    with quiet(), pytest.raises(ValueError, match="should be absolute"):
        orbax.PyTreeCheckpointer().restore("small-pytree", item=small_template())
    ours = compat.PyTreeCheckpointer().restore("small-pytree", item=small_template())
    assert_same(ours, small_tree())


def test_differs_uncommitted(at, tmp_path):
    """Both refuse an unfinished save; templax can be told to read it."""
    path = shutil.copytree(at.small_standard, tmp_path / "small.orbax-checkpoint-tmp")
    with quiet(), pytest.raises(ValueError, match="Found incomplete checkpoint"):
        orbax.StandardCheckpointer().restore(path, small_template())
    with pytest.raises(tx.TemplaxError, match="not a committed checkpoint"):
        compat.StandardCheckpointer().restore(path, small_template())
    opened = tx.open(path, uncommitted="allow")
    assert_same(tx.restore(opened, small_template()), small_tree())


def test_differs_step_directory(at):
    """Of a step with one item, Orbax requires the directory of the item; templax finds it."""
    template = {"a": S((4,), jnp.float32)}
    with quiet(), pytest.raises(FileNotFoundError):
        orbax.StandardCheckpointer().restore(at.manager / "3", template)
    ours = compat.StandardCheckpointer().restore(at.manager / "3", template)
    assert ours["a"].tolist() == [3.0] * 4


def test_differs_v1_checkpoint_by_the_older_api(at):
    """The older API of Orbax requires the directory of the item; templax finds it."""
    with quiet(), pytest.raises(FileNotFoundError):
        orbax.PyTreeCheckpointer().restore(at.small_v1, item=small_template())
    ours = compat.PyTreeCheckpointer().restore(at.small_v1, item=small_template())
    assert_same(ours, small_tree())


def test_differs_step_names(at):
    """With the right prefix, Orbax lists steps only if the number of digits is right, too."""
    for ocp, digits in ((orbax, []), (compat, [3])):
        with quiet():
            assert list(ocp.CheckpointManager(at.prefixed).all_steps()) == []
            options = ocp.CheckpointManagerOptions(step_prefix="ckpt")
            manager = ocp.CheckpointManager(at.prefixed, options=options)
            assert list(manager.all_steps()) == digits


def test_differs_manager_makes_no_directory(tmp_path):
    """Orbax creates the directory that it should read; templax only reads."""
    with quiet():
        assert orbax.CheckpointManager(tmp_path / "theirs").latest_step() is None
    assert (tmp_path / "theirs").exists()
    assert compat.CheckpointManager(tmp_path / "ours").latest_step() is None
    assert not (tmp_path / "ours").exists()


def test_same_unknown_item(at):
    """Both raise a `KeyError` that lists the items."""
    for ocp in (orbax, compat):
        manager = ocp.CheckpointManager(at.items)
        with quiet(), pytest.raises(KeyError, match=r"meta.*state"):
            manager.restore(7, args=ocp.args.Composite(nope=ocp.args.StandardRestore()))


def test_same_missing_step(at):
    """Both raise `FileNotFoundError`."""
    for ocp in (orbax, compat):
        manager = ocp.CheckpointManager(at.manager)
        manager.restore(3)  # Orbax learns from it that there is one item
        with quiet(), pytest.raises(FileNotFoundError):
            manager.restore(4, args=ocp.args.StandardRestore())


def test_differs_missing_chunk(at, tmp_path):
    """Orbax raises if `_METADATA` promises every chunk, and returns zeros otherwise.

    templax raises in both cases, as the array has no fill value, and names leaf and file.
    """
    path = shutil.copytree(at.files, tmp_path / "files")
    (path / "a" / "0").unlink()
    with quiet(), pytest.raises(Exception, match="error while reading array index"):
        orbax.PyTreeCheckpointer().restore(path)
    with pytest.raises(tx.Corrupted) as promised:
        compat.PyTreeCheckpointer().restore(path)
    metadata = path / "_METADATA"
    text = json.loads(metadata.read_text()) | {"store_array_data_equal_to_fill_value": False}
    metadata.write_text(json.dumps(text))
    with quiet():
        assert orbax.PyTreeCheckpointer().restore(path)["a"].tolist() == [0.0] * 8
    with pytest.raises(tx.Corrupted) as unpromised:
        compat.PyTreeCheckpointer().restore(path)
    for caught in (promised, unpromised):
        assert (caught.value.leaf, caught.value.file) == ("a", "a/0")


@pytest.mark.slow
def test_same_flipped_bit_in_the_weights(tmp_path):
    """Neither notices it, as Orbax writes no checksums of array bytes."""
    path = tmp_path / "big"
    with quiet():
        orbax.PyTreeCheckpointer().save(path, weights())
    (file,) = (p for p in path.glob("ocdbt.process_0/d/*") if p.stat().st_size > 4000)
    sound = file.read_bytes()
    random.seed(0)
    altered = bytearray(sound)
    altered[random.randrange(1000, len(sound) - 1000)] ^= 1
    file.write_bytes(altered)
    with quiet():
        theirs = orbax.PyTreeCheckpointer().restore(path)
    ours = compat.PyTreeCheckpointer().restore(path)
    assert np.asarray(theirs["w"]).tobytes() != np.asarray(weights()["w"]).tobytes()
    assert_same(ours, theirs)
