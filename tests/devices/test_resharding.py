"""Any sharding to any sharding, on eight devices; random trees, and random wrong templates."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import templax as tx
from templax.testing import strategies

ARRAYS = strategies.arrays().filter(lambda a: a.size > 0)  # Orbax refuses to save empty ones
TREES = strategies.trees(ARRAYS)


def _saved(tree: Any, directory: str) -> Path:
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(f"{directory}/ckpt", tree)
    return Path(directory) / "ckpt"


def _placed(data: st.DataObject, tree: Any) -> Any:
    """The tree on devices, each leaf under a sharding of its own."""

    def place(array: np.ndarray) -> jax.Array:
        sharding = data.draw(strategies.shardings(array.shape))
        return jnp.asarray(array) if sharding is None else jax.device_put(array, sharding)

    return jax.tree.map(place, tree)


def _template(data: st.DataObject, tree: Any) -> Any:
    """An abstract tree, each leaf with another sharding."""

    def leaf(array: np.ndarray) -> jax.ShapeDtypeStruct:
        sharding = data.draw(strategies.shardings(array.shape))
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

    return jax.tree.map(leaf, tree)


@settings(max_examples=40)
@given(TREES, st.data())
def test_what_orbax_saved_under_any_sharding_comes_back_under_any_other(
    tree: Any, data: st.DataObject
) -> None:
    """Random trees, dtypes, bits, meshes, device orders and shardings on both sides."""
    value, template = _placed(data, tree), _template(data, tree)
    with tempfile.TemporaryDirectory() as directory:
        restored = tx.restore(_saved(value, directory), template)
    assert jax.tree.structure(restored) == jax.tree.structure(template)
    for got, want, leaf in zip(*map(jax.tree.leaves, (restored, tree, template)), strict=True):
        assert np.asarray(got).tobytes() == want.tobytes()
        assert (got.shape, got.dtype) == (leaf.shape, leaf.dtype)
        assert got.committed == (leaf.sharding is not None)
        if leaf.sharding is not None:
            assert got.sharding == leaf.sharding


@settings(max_examples=40)
@given(TREES, st.data())
def test_one_wrong_place_in_a_template_is_reported_and_nothing_else(
    tree: Any, data: st.DataObject
) -> None:
    """Shape, dtype, kind, a name, a leaf too many or too few: by name and problem."""
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    wrong = data.draw(strategies.perturbations(template))
    with tempfile.TemporaryDirectory() as directory:
        path = _saved(tree, directory)
        match = tx.check(path, wrong.template)
        assert {(m.problem, m.name) for m in match.mismatches} == wrong.expected
        assert len(match.mismatches) == len(wrong.expected)
        with pytest.raises(tx.TemplateError) as caught:
            tx.restore(path, wrong.template)
    assert caught.value.mismatches == match.mismatches


@given(TREES)
def test_a_checkpoint_fits_its_own_template(tree: Any) -> None:
    match = tx.check(tx.Recipe(lambda: tree), tx.template_of(tree))
    assert match.ok
    assert not match.casts


@given(strategies.trees(strategies.arrays()), st.data())
def test_every_hint_works_when_it_is_followed(tree: Any, data: st.DataObject) -> None:
    """Whatever is wrong: a hint that is Python for an argument removes what it stands at."""
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    wrong = data.draw(strategies.perturbations(template)).template
    prefix = data.draw(st.sampled_from(["", "params", "a.b"]))
    checkpoint = tx.Recipe(lambda: {prefix: tree} if prefix else tree)
    match = tx.check(checkpoint, wrong)
    for hint in {m.hint for m in match.mismatches if m.hint}:
        if not hint.startswith(("at=", "rename=", "extra=", "cast=")) or " or " in hint:
            continue
        name, value = hint.split("=", 1)
        argument = match.rename if name == "rename" and match.rename else eval(value)  # noqa: S307
        after = tx.check(checkpoint, wrong, **{name: argument})
        left = {(m.problem, m.name) for m in after.mismatches}
        removed = {(m.problem, m.name) for m in match.mismatches if m.hint == hint}
        assert not removed & left, hint


@pytest.mark.parametrize(
    "key", ["/", "//", "/a", "//a", "a/", "a//", "a//b", "", " ", ".", "./a", "a/.", "a/../b"]
)
def test_keys_that_tensorstore_takes_for_paths(tmp_path: Path, key: str) -> None:
    """TensorStore normalises some names of arrays as paths; Orbax restores each of these."""
    for value in ({key: jnp.arange(3.0)}, {"x": {key: jnp.arange(3.0)}}):
        path = _saved(value, str(tmp_path / str("x" in value)))
        restored = tx.restore(path, tx.template_of(value))
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), restored, value))
