"""Nodes without children, of classes that only JAX knows: each library restores the other's."""

import dataclasses
from pathlib import Path
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
        "tuple": (),
        "pair": (np.zeros(1), ((), Empty())),
        "list": [[], {}, None],
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


def restore(ocp: Any, path: Path) -> Any:
    return ocp.PyTreeCheckpointer().restore(path)


def restore_standard(ocp: Any, path: Path) -> Any:
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path)


def read_metadata(ocp: Any, path: Path) -> Any:
    return ocp.PyTreeCheckpointer().metadata(path).item_metadata.tree


def load(ocp: Any, path: Path) -> Any:
    return ocp.v1.load(path, checkpointable_name=None)


def read_metadata_of_v1(ocp: Any, path: Path) -> Any:
    return ocp.v1.metadata(path, checkpointable_name=None).metadata


@pytest.mark.parametrize(
    "read",
    [restore, restore_standard, read_metadata, load, read_metadata_of_v1],
    ids=lambda read: read.__name__,
)
def test_both_find_the_same_empty_nodes_in_both(read, tmp_path):
    """Without a template. Only the leaves may differ, by which a `jax.Array` can't be compared."""
    with quiet():
        for name, ocp in (("theirs", orbax), ("ours", compat)):
            ocp.PyTreeCheckpointer().save(tmp_path / name, make_tree())
        found = [
            read(ocp, tmp_path / name) for ocp in (orbax, compat) for name in ("theirs", "ours")
        ]
    found = [jax.tree.map(lambda _: "leaf", tree) for tree in found]
    assert found[0]["tuple"] == ()
    assert found[0]["optax"] is None
    assert found == found[:1] * 4


def test_v1_saves_empty_nodes_as_orbax_does(tmp_path):
    tree = {"w": np.zeros(3), "tuple": (), "optax": optax.EmptyState(), "dict": {}, "list": []}
    with quiet():
        for name, ocp in (("theirs", orbax), ("ours", compat)):
            ocp.v1.save(tmp_path / name, tree)
        found = [
            ocp.v1.load(tmp_path / name) for ocp in (orbax, compat) for name in ("theirs", "ours")
        ]
    for each in found:
        del each["w"]
        assert each == {"tuple": (), "optax": None, "dict": {}, "list": []}


def test_differs_empty_tuple_that_templax_saved(tmp_path):
    """`templax.save` lists it as a list, so that Orbax 0.6 restores the tree."""
    tx.save(tmp_path / "ckpt", {"w": np.zeros(3), "t": ()})
    with quiet():
        assert orbax.PyTreeCheckpointer().restore(tmp_path / "ckpt")["t"] == []
    assert compat.PyTreeCheckpointer().restore(tmp_path / "ckpt")["t"] == ()


def test_templax_tells_apart_what_orbax_does_not(tmp_path):
    """Whoever has saved it."""
    tree = {"w": np.zeros(3), "t": (), "state": optax.EmptyState(), "none": None}
    compat.PyTreeCheckpointer().save(tmp_path / "compat", tree)
    tx.save(tmp_path / "templax", tree)
    for name in ("compat", "templax"):
        kinds = {path[0]: what for path, what in tx.open(tmp_path / name).empties.items()}
        assert kinds == {"t": "Tuple", "state": "NamedTuple", "none": "None"}
        own = tx.open(tmp_path / name).template()
        assert (own["t"], own["state"], own["none"]) == ((), {}, None)


def test_an_empty_node_is_no_leaf_of_the_template(tmp_path):
    tx.save(tmp_path / "ckpt", {"w": np.zeros(3), "x": Nothing()})
    with pytest.raises(tx.TemplateError, match="Expected a leaf, found"):
        tx.restore(tmp_path / "ckpt", {"w": np.zeros(3), "x": np.zeros(3)})
    tree = tx.restore(tmp_path / "ckpt", {"w": np.zeros(3), "x": Nothing()})
    assert tree["x"] == Nothing()
