"""Saves that Orbax and templax treat differently.

Each test asserts what both libraries do; `docs/reference/orbax-differences.md` names it.
"""

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as orbax
import pytest

import templax as tx
import templax.compat.orbax as compat
from side_by_side import assert_same, save_steps, small_tree, step_state, weights

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("collect_garbage"),
]
S = jax.ShapeDtypeStruct


def test_differs_existing_directory(tmp_path):
    """Both refuse, with a `ValueError`, and leave it alone; templax's is a `FileExistsError`."""
    for n, ocp in enumerate([orbax, compat]):
        path = tmp_path / str(n)
        ocp.PyTreeCheckpointer().save(path, {"old": 1})
        for save in (
            ocp.PyTreeCheckpointer().save,
            ocp.StandardCheckpointer().save,
            ocp.v1.save,
        ):
            with pytest.raises(ValueError, match=r"already exists|not empty") as caught:
                save(path, small_tree())
            assert isinstance(caught.value, tx.AlreadyExists) == (ocp is compat)
        assert ocp.PyTreeCheckpointer().restore(path) == {"old": 1}
    assert issubclass(tx.AlreadyExists, FileExistsError)


def test_differs_empty_directory(tmp_path):
    """Orbax refuses even an empty directory; templax saves into it."""
    for name in ("theirs", "ours"):
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="already exists"):
        orbax.PyTreeCheckpointer().save(tmp_path / "theirs", small_tree())
    compat.PyTreeCheckpointer().save(tmp_path / "ours", small_tree())
    assert_same(compat.PyTreeCheckpointer().restore(tmp_path / "ours"), small_tree())


def test_differs_force_that_fails(tmp_path):
    """If the new tree can't be saved, Orbax has deleted the old one already.

    templax exchanges them once the new one is complete.
    """
    for name, ocp in (("theirs", orbax), ("ours", compat)):
        ocp.PyTreeCheckpointer().save(tmp_path / name, {"old": 1})
        with pytest.raises((ValueError, tx.SaveError)):
            ocp.PyTreeCheckpointer().save(tmp_path / name, {"new": object()}, force=True)
    assert not (tmp_path / "theirs").exists()
    assert compat.PyTreeCheckpointer().restore(tmp_path / "ours") == {"old": 1}


def test_differs_force_on_something_else(tmp_path):
    """`force=True` on a run, or on directories of something else: Orbax deletes it, and templax
    refuses.
    """
    for name, ocp in (("theirs", orbax), ("ours", compat)):
        save_steps(compat, tmp_path / name, (1, 2))
        home = tmp_path / name / "home"
        (home / "thesis").mkdir(parents=True)
        (home / "thesis" / "thesis.tex").write_text("five years")
        if ocp is orbax:
            for path in (tmp_path / name / "run", home):
                ocp.PyTreeCheckpointer().save(path, small_tree(), force=True)
            assert not (home / "thesis").exists()
            assert not (tmp_path / name / "run/1").exists()
            continue
        for path, found in (
            (tmp_path / name / "run", "2 steps"),
            (home, "a directory `thesis` and no checkpoint"),
        ):
            with pytest.raises(tx.SaveError, match=f"replaces one checkpoint, found {found}"):
                ocp.PyTreeCheckpointer().save(path, small_tree(), force=True)
        assert (home / "thesis" / "thesis.tex").exists()
        assert (tmp_path / name / "run/1").exists()


def test_differs_force_beside_other_files(tmp_path, caplog):
    """Orbax deletes what others put beside a checkpoint; templax keeps it, and says so."""
    caplog.set_level("INFO", logger="templax")
    for name, ocp in (("theirs", orbax), ("ours", compat)):
        path = tmp_path / name
        path.mkdir()
        (path / "config.json").write_text("{}")
        checkpointer = ocp.PyTreeCheckpointer()
        checkpointer.save(path, {"n": 1}, force=True)
        (path / "assets" / "deep").mkdir(parents=True)
        (path / "assets" / "deep" / "norm.json").write_text("[1]")
        checkpointer.save(path, {"n": 2}, force=True)
        assert checkpointer.restore(path) == {"n": 2}
        if ocp is orbax:
            assert not (path / "config.json").exists()
            assert not (path / "assets").exists()
            continue
        assert (path / "config.json").read_text() == "{}"
        assert (path / "assets" / "deep" / "norm.json").read_text() == "[1]"
        said = [each.message for each in caplog.records if "is replaced" in each.message]
        assert said == [
            f"{path} is replaced, and keeps what it did not write: config.json",
            f"{path} is replaced, and keeps what it did not write: assets, config.json",
        ]
        args = ocp.args.Composite(assets=ocp.args.JsonSave([]))
        composite = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
        with pytest.raises(tx.SaveError, match="another name than `assets`, which others use"):
            composite.save(path, args, force=True)
        assert checkpointer.restore(path) == {"n": 2}
    assert sorted(os.listdir(tmp_path)) == ["ours", "theirs"]


def test_differs_what_a_failed_save_leaves(tmp_path):
    """Orbax leaves its temporary directory; templax leaves nothing."""
    for name, ocp in (("theirs", orbax), ("ours", compat)):
        (tmp_path / name).mkdir()
        with pytest.raises((ValueError, tx.SaveError)):
            ocp.PyTreeCheckpointer().save(tmp_path / name / "ckpt", {"x": object()})
    assert os.listdir(tmp_path / "theirs") == ["ckpt.orbax-checkpoint-tmp"]
    assert os.listdir(tmp_path / "ours") == []


@pytest.mark.slow
def test_differs_flipped_bit_in_what_it_saved(tmp_path):
    """templax saves checksums and notices it, naming leaf and file; Orbax ignores them."""
    path = tmp_path / "ckpt"
    compat.PyTreeCheckpointer().save(path, weights())
    (file,) = (path / "d").iterdir()
    altered = bytearray(file.read_bytes())
    altered[5000] ^= 1
    file.write_bytes(altered)
    theirs = orbax.PyTreeCheckpointer().restore(path)
    assert np.asarray(theirs["w"]).tobytes() != np.asarray(weights()["w"]).tobytes()
    with pytest.raises(tx.Corrupted) as caught:
        compat.PyTreeCheckpointer().restore(path)
    assert (caught.value.leaf, caught.value.file) == ("w", f"d/{file.name}")


def test_differs_compression(tmp_path):
    """Orbax compresses by default; templax writes raw bytes, which can be mapped."""
    tree = {"w": jnp.zeros((512, 512))}
    for name, ocp in (("theirs", orbax), ("ours", compat)):
        ocp.PyTreeCheckpointer(use_compression=True).save(tmp_path / name, tree)

    def nbytes(name: str) -> int:
        return sum(f.stat().st_size for f in (tmp_path / name).rglob("*") if f.is_file())

    assert nbytes("theirs") < 50_000
    assert 1024 * 1024 < nbytes("ours") < 1024 * 1024 + 50_000
    tx.save(tmp_path / "small", tree, compression="zstd")
    assert nbytes("small") < 50_000


def test_differs_leaves_that_cannot_be_saved(tmp_path):
    """Orbax names one of them, templax all."""
    tree = {"a": object(), "b": {"c": S((2,), jnp.float32)}, "d": jnp.ones(2)}
    with pytest.raises(ValueError, match="TypeHandler lookup failed") as theirs:
        orbax.PyTreeCheckpointer().save(tmp_path / "theirs", tree)
    assert "key='a'" in str(theirs.value)
    assert "key='c'" not in str(theirs.value)
    with pytest.raises(tx.SaveError) as ours:
        compat.PyTreeCheckpointer().save(tmp_path / "ours", tree)
    assert str(ours.value) == (
        "This tree can't be saved: `a` is a builtins.object, which holds no array; "
        "`b.c` is abstract: it has a shape and a dtype, but no values"
    )


def test_differs_arrays_without_elements(tmp_path):
    """Orbax refuses to save one; templax saves it, and both restore it."""
    tree = {"x": np.zeros((0, 3), np.float32), "y": jnp.ones(2)}
    with pytest.raises(ValueError, match="Cannot save arrays with zero size"):
        orbax.PyTreeCheckpointer().save(tmp_path / "theirs", tree)
    compat.PyTreeCheckpointer().save(tmp_path / "ours", tree)
    assert_same(compat.StandardCheckpointer().restore(tmp_path / "ours", tree), tree)
    assert_same(orbax.StandardCheckpointer().restore(tmp_path / "ours", tree), tree)


def test_differs_functions_in_a_tree(tmp_path):
    """As in an old `TrainState` of Flax: Orbax refuses; templax takes them from the template."""
    tree = {"apply": len, "w": jnp.ones(2)}
    with pytest.raises(ValueError, match="TypeHandler lookup failed"):
        orbax.PyTreeCheckpointer().save(tmp_path / "theirs", tree)
    compat.PyTreeCheckpointer().save(tmp_path / "ours", tree)
    restored = compat.PyTreeCheckpointer().restore(tmp_path / "ours", tree)
    assert restored["apply"] is len
    assert_same(orbax.PyTreeCheckpointer().restore(tmp_path / "ours"), {"w": jnp.ones(2)})


def test_differs_standard_and_bare_arrays(tmp_path):
    """Orbax refuses `StandardSave` of a single array; templax saves it."""
    with pytest.raises(ValueError, match="does not support single arrays"):
        orbax.StandardCheckpointer().save(tmp_path / "theirs", jnp.ones(3))
    with compat.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "ours", jnp.ones(3))
    for ocp in (orbax, compat):
        assert_same(ocp.PyTreeCheckpointer().restore(tmp_path / "ours"), jnp.ones(3))


def test_differs_complex_numbers(tmp_path):
    """Orbax refuses a Python complex number; templax saves it."""
    with pytest.raises(ValueError, match="Unsupported type"):
        orbax.StandardCheckpointer().save(tmp_path / "theirs", {"z": 1 + 2j})
    with compat.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "ours", {"z": 1 + 2j})
    assert compat.StandardCheckpointer().restore(tmp_path / "ours", {"z": 0j}) == {"z": 1 + 2j}
    assert orbax.StandardCheckpointer().restore(tmp_path / "ours")["z"] == 1 + 2j


def test_differs_saving_dotted_keys(tmp_path):
    """Of `{"a.b": x, "a": {"b": y}}` Orbax saves one leaf; templax refuses."""
    tree = {"a.b": jnp.ones(2), "a": {"b": jnp.zeros(2)}}
    orbax.PyTreeCheckpointer().save(tmp_path / "theirs", tree)
    restored = orbax.PyTreeCheckpointer().restore(tmp_path / "theirs")
    assert restored["a.b"].tolist() == restored["a"]["b"].tolist()
    with pytest.raises(tx.SaveError, match=r"two leaves are named `a\.b`"):
        compat.PyTreeCheckpointer().save(tmp_path / "ours", tree)


def test_differs_cast_of_a_key(tmp_path):
    """With `SaveArgs(dtype=...)` Orbax saves a key that can't be restored; templax casts none."""
    tree = {"key": jax.random.key(7)}
    for name, ocp in (("theirs", orbax), ("ours", compat)):
        args = {"key": ocp.SaveArgs(dtype=np.dtype(np.float32))}
        ocp.PyTreeCheckpointer().save(tmp_path / name, tree, save_args=args)
    with pytest.raises(TypeError, match="invalid PRNG key data"):
        orbax.PyTreeCheckpointer().restore(tmp_path / "theirs")
    for ocp in (orbax, compat):
        assert_same(ocp.PyTreeCheckpointer().restore(tmp_path / "ours"), tree)


def test_differs_dtype_of_save_args(tmp_path):
    """Orbax requires `np.dtype` objects; templax accepts whatever names a dtype."""

    def run(ocp: Any, name: str) -> None:
        args = {"w": ocp.SaveArgs(dtype=jnp.bfloat16)}
        ocp.PyTreeCheckpointer().save(tmp_path / name, weights(), save_args=args)

    with pytest.raises(AttributeError, match="itemsize"):
        run(orbax, "theirs")
    run(compat, "ours")
    assert orbax.PyTreeCheckpointer().restore(tmp_path / "ours")["w"].dtype == jnp.bfloat16


def test_differs_aggregate(tmp_path):
    """In `StandardSave`, Orbax refuses `SaveArgs(aggregate=True)`; templax ignores it."""
    args = {"w": orbax.SaveArgs(aggregate=True)}
    with pytest.raises(ValueError, match="Unsupported option `aggregate`"):
        orbax.StandardCheckpointer().save(tmp_path / "theirs", weights(), save_args=args)
    args = {"w": compat.SaveArgs(aggregate=True)}
    with compat.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "ours", weights(), save_args=args)
    assert_same(orbax.StandardCheckpointer().restore(tmp_path / "ours"), weights())


def test_differs_value_that_json_cannot_hold(tmp_path):
    """In the background Orbax raises when it is waited for.

    templax raises at the call, and saves nothing of the step.
    """

    def save(ocp: Any, path: Path) -> Any:
        manager = ocp.CheckpointManager(path, item_names=("state", "meta"))
        items = {
            "state": ocp.args.StandardSave(step_state(1)),
            "meta": ocp.args.JsonSave({"x": {1}}),
        }
        manager.save(1, args=ocp.args.Composite(**items))
        return manager

    theirs = save(orbax, tmp_path / "theirs")
    with pytest.raises(TypeError, match="not JSON serializable"):
        theirs.wait_until_finished()
    with pytest.raises(tx.SaveError, match="as item `meta`: Object of type set is not JSON"):
        save(compat, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_differs_saving_to_a_relative_path(tmp_path, monkeypatch):
    """Orbax requires absolute paths; templax resolves a relative one at once."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="should be absolute"):
        orbax.PyTreeCheckpointer().save("theirs", small_tree())
    compat.PyTreeCheckpointer().save("ours", small_tree())
    manager = compat.CheckpointManager("run")
    monkeypatch.chdir("/")
    manager.save(1, args=compat.args.StandardSave(small_tree()))
    manager.close()
    assert {"ours", "run"} <= set(os.listdir(tmp_path))
