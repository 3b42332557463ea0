"""Nodes without children, of classes that only JAX knows: each library restores the other's."""

import dataclasses
from typing import Any

import flax.core
import flax.struct
import jax
import numpy as np
import optax
import orbax.checkpoint as orbax
import pytest

import templax as tx
import templax.compat.orbax as compat
from side_by_side import quiet


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Nothing:
    pass


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Around:
    inner: Nothing


@flax.struct.dataclass
class Empty:
    pass


def make_tree() -> dict[str, Any]:
    return {
        "w": np.arange(3.0),
        "nothing": Nothing(),
        "around": Around(Nothing()),
        "struct": Empty(),
        "frozen": flax.core.FrozenDict({}),
        "optax": optax.EmptyState(),
        "none": None,
    }


@pytest.mark.parametrize("restorer", [orbax, compat], ids=["by theirs", "by ours"])
@pytest.mark.parametrize("saver", [orbax, compat], ids=["of theirs", "of ours"])
def test_a_tree_with_empty_nodes_is_restored_by_itself(saver, restorer, tmp_path):
    """Orbax refuses an item that has an empty node which the checkpoint does not record."""
    with quiet():
        saver.PyTreeCheckpointer().save(tmp_path / "ckpt", make_tree())
        found = restorer.PyTreeCheckpointer().restore(tmp_path / "ckpt", item=make_tree())
    assert jax.tree.structure(found) == jax.tree.structure(make_tree())
    assert found["w"].tolist() == [0.0, 1.0, 2.0]


def test_orbax_finds_the_same_empty_nodes_in_both(tmp_path):
    with quiet():
        for name, ocp in (("theirs", orbax), ("ours", compat)):
            ocp.PyTreeCheckpointer().save(tmp_path / name, make_tree())
        restore = orbax.PyTreeCheckpointer().restore
        theirs, ours = restore(tmp_path / "theirs"), restore(tmp_path / "ours")
    del theirs["w"], ours["w"]
    assert theirs == ours


def test_an_empty_node_is_no_leaf_of_the_template(tmp_path):
    tx.save(tmp_path / "ckpt", {"w": np.zeros(3), "x": Nothing()})
    with pytest.raises(tx.TemplateError, match="Expected a leaf, found"):
        tx.restore(tmp_path / "ckpt", {"w": np.zeros(3), "x": np.zeros(3)})
    tree = tx.restore(tmp_path / "ckpt", {"w": np.zeros(3), "x": Nothing()})
    assert tree["x"] == Nothing()
