"""Calls of the v1 API that Orbax and templax treat differently.

Each test asserts what both libraries do; `docs/reference/orbax-differences.md` names it.
"""

import jax
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


def test_differs_v1_numpy_shape(tmp_path):
    """A numpy array of another shape in the template: Orbax ignores it, templax raises."""
    orbax.v1.save(tmp_path / "ckpt", {"n": np.arange(3)})
    target = {"n": np.zeros(5, np.int64)}
    assert_same(orbax.v1.load(tmp_path / "ckpt", target), {"n": np.arange(3)})
    with pytest.raises(tx.TemplateError, match="shape"):
        compat.v1.load(tmp_path / "ckpt", target)


def test_differs_v1_checkpointable_that_does_not_fit(tmp_path):
    """Orbax raises a `KeyError` about an incompatible handler; templax lists the leaves."""
    orbax.v1.save_checkpointables(tmp_path / "ckpt", {"a": {"x": np.ones(3)}})
    asked = {"a": {"y": np.ones(3)}}
    with pytest.raises(KeyError, match=r"incompatible handler"):
        orbax.v1.load_checkpointables(tmp_path / "ckpt", asked)
    with pytest.raises(tx.TemplateError, match="`y`"):
        compat.v1.load_checkpointables(tmp_path / "ckpt", asked)


def test_differs_v1_files_in_parts(tmp_path):
    """A file that somebody put into a part: Orbax takes it into the checkpoint; templax refuses
    until it is moved.
    """
    for name, ocp in (("theirs", orbax.v1), ("ours", compat.v1)):
        ocp.partial.save(tmp_path / name, {"a": 1})
        (part,) = (tmp_path / f"{name}.partial_save").iterdir()
        (part / "notes.txt").write_text("mine")
    orbax.v1.partial.finalize(tmp_path / "theirs")
    assert (tmp_path / "theirs/notes.txt").exists()
    with pytest.raises(tx.SaveError, match=r"found notes.txt"):
        compat.v1.partial.finalize(tmp_path / "ours")


def test_differs_v1_unknown_option(tmp_path):
    """A name that no option has: Orbax sets it without a word, templax raises."""
    orbax.v1.Context().pytree.partial_load = True
    with pytest.raises(NotImplementedError, match=r"partial_load`; hint: leave it out"):
        compat.v1.Context().pytree.partial_load = True


@pytest.mark.slow
def test_differs_v1_load_and_broadcast(tmp_path):
    """Without a template, Orbax refuses to load with `use_load_and_broadcast`; templax reads what
    each process needs, with the option or without.
    """
    sharding = jax.sharding.NamedSharding(make_mesh(), jax.sharding.PartitionSpec("data"))
    tree = {"w": jax.device_put(np.arange(8.0, dtype=np.float32), sharding)}
    orbax.v1.save(tmp_path / "ckpt", tree)
    for ocp in (orbax.v1, compat.v1):
        context = ocp.Context()
        context.array.loading.use_load_and_broadcast = True
        with context:
            if ocp is compat.v1:
                assert_same(ocp.load(tmp_path / "ckpt"), tree)
                continue
            with pytest.raises(ValueError, match=r"Must provide `sharding`"):
                ocp.load(tmp_path / "ckpt")


@pytest.mark.slow
def test_same_v1_own_tree(tmp_path):
    """Without a template: numpy where numpy was saved, and the saved shardings."""
    sharding = jax.sharding.NamedSharding(make_mesh(), jax.sharding.PartitionSpec("data"))
    tree = {"w": jax.device_put(np.arange(8.0, dtype=np.float32), sharding), "n": np.arange(3)}
    for name, ocp in (("theirs", orbax.v1), ("ours", compat.v1)):
        ocp.save(tmp_path / name, tree)
        for reader in (orbax.v1, compat.v1):
            assert_same(reader.load(tmp_path / name), tree)
