"""Any sharding to any sharding, on eight devices; random trees, and random wrong templates."""

from __future__ import annotations

import math
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
from jax.sharding import NamedSharding, PartitionSpec

import templax as tx

DTYPES = ["float32", "bfloat16", "int8", "uint32", "bool", "float8_e4m3fn", "int4", "complex64"]
MESHES = [((8,), ("x",)), ((4, 2), ("x", "y")), ((2, 2, 2), ("x", "y", "z")), ((1,), ("x",))]
KEYS = st.one_of(
    st.sampled_from(["kernel", "bias", "layers_0", "a b", "ü", "x-y", "0"]),
    st.text("abcxyz_ ", min_size=1, max_size=5),
)


def _mesh(draw: Any) -> jax.sharding.Mesh:
    shape, names = draw(st.sampled_from(MESHES))
    devices = draw(st.permutations(jax.devices()))[: math.prod(shape)]
    return jax.sharding.Mesh(np.array(devices).reshape(shape), names)


def _sharding(draw: Any, shape: tuple[int, ...]) -> jax.sharding.Sharding | None:
    """Any that divides `shape`: one device, several, some or no axes."""
    if draw(st.integers(0, 4)) == 0:
        return None
    if draw(st.integers(0, 4)) == 0:
        return jax.sharding.SingleDeviceSharding(draw(st.sampled_from(jax.devices())))
    mesh = _mesh(draw)
    free = list(draw(st.permutations(mesh.axis_names)))
    spec: list[Any] = []
    for n in shape:
        axes: list[str] = []
        while free and n % (mesh.shape[free[0]] * math.prod(mesh.shape[a] for a in axes)) == 0:
            if draw(st.booleans()):
                break
            axes.append(free.pop(0))
        spec.append(tuple(axes) if len(axes) > 1 else axes[0] if axes else None)
    return NamedSharding(mesh, PartitionSpec(*spec))


@st.composite
def leaves(draw: Any) -> tuple[jax.Array, jax.ShapeDtypeStruct]:
    """An array as saved, and a template leaf for it with another sharding."""
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4, 8, 12, 16]), max_size=3)))
    dtype = jnp.dtype(draw(st.sampled_from(DTYPES)))
    bits = np.random.default_rng(draw(st.integers(0, 9))).integers(0, 7, shape)
    value = jnp.asarray(bits.astype(dtype))
    saved = _sharding(draw, shape)
    if saved is not None:
        value = jax.device_put(value, saved)
    return value, jax.ShapeDtypeStruct(shape, dtype, sharding=_sharding(draw, shape))


def trees(leaf: Any) -> Any:
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.dictionaries(KEYS, inner, min_size=1, max_size=3),
            st.lists(inner, min_size=1, max_size=3),
        ),
        max_leaves=6,
    ).filter(lambda tree: isinstance(tree, dict))


def _is_pair(x: Any) -> bool:
    return isinstance(x, tuple)


def _saved(tree: Any, directory: str) -> Path:
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(f"{directory}/ckpt", tree)
    return Path(directory) / "ckpt"


def _bits(x: Any) -> bytes:
    return np.asarray(x).tobytes()


def _names_clash(tree: Any) -> bool:
    keyed = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_pair)[0]
    names = [".".join(str(getattr(k, "key", getattr(k, "idx", None))) for k in p) for p, _ in keyed]
    return len(set(names)) < len(names)


@settings(max_examples=40)
@given(trees(leaves()))
def test_what_orbax_saved_under_any_sharding_comes_back_under_any_other(tree: Any) -> None:
    """Random trees, dtypes, meshes, device orders and shardings on both sides."""
    if _names_clash(tree):
        return
    value = jax.tree.map(lambda pair: pair[0], tree, is_leaf=_is_pair)
    template = jax.tree.map(lambda pair: pair[1], tree, is_leaf=_is_pair)
    with tempfile.TemporaryDirectory() as directory:
        restored = tx.restore(_saved(value, directory), template)
    assert jax.tree.structure(restored) == jax.tree.structure(template)
    for got, want, leaf in zip(*map(jax.tree.leaves, (restored, value, template)), strict=True):
        assert _bits(got) == _bits(want)
        assert (got.shape, got.dtype) == (leaf.shape, leaf.dtype)
        if leaf.sharding is None:
            assert not got.committed
        else:
            assert got.sharding == leaf.sharding
            assert got.committed


@settings(max_examples=40)
@given(trees(leaves()), st.data())
def test_one_wrong_place_in_a_template_is_reported_and_nothing_else(tree: Any, data: Any) -> None:
    """Shape, dtype, kind, a name, a leaf too many or too few: by name and problem."""
    if _names_clash(tree):
        return
    value = jax.tree.map(lambda pair: pair[0], tree, is_leaf=_is_pair)
    template = jax.tree.map(lambda pair: pair[1], tree, is_leaf=_is_pair)
    keyed, treedef = jax.tree_util.tree_flatten_with_path(template)
    i = data.draw(st.integers(0, len(keyed) - 1))
    name = ".".join(str(getattr(k, "key", getattr(k, "idx", None))) for k in keyed[i][0])
    leaf = keyed[i][1]
    how = data.draw(st.sampled_from(["shape", "dtype", "kind", "missing", "extra"]))
    changed: Any = [x for _, x in keyed]
    if how == "shape":
        changed[i] = jax.ShapeDtypeStruct((*leaf.shape, 2), leaf.dtype)
    elif how == "dtype":
        changed[i] = jax.ShapeDtypeStruct(leaf.shape, bool if leaf.dtype != bool else "int8")
    elif how == "kind":
        changed[i] = jax.ShapeDtypeStruct(leaf.shape, jax.random.key(0).dtype)
    wrong = jax.tree.unflatten(treedef, changed)
    expected = [(how, name)]
    if how == "missing":
        wrong = {**wrong, "templax new": leaf}
        expected = [("missing", "templax new")]
    elif how == "extra":
        value = {**value, "templax new": jnp.zeros(3)}
        expected = [("extra", "templax new")]
    if how == "kind":  # a key of shape s has data of another shape: both are said of its kind only
        expected = [("kind", name)]
    with tempfile.TemporaryDirectory() as directory:
        path = _saved(value, directory)
        match = tx.check(path, wrong)
        assert [(m.problem, m.name) for m in match.mismatches] == expected
        with pytest.raises(tx.TemplateError) as caught:
            tx.restore(path, wrong)
    assert caught.value.mismatches == match.mismatches


@given(trees(leaves()))
def test_a_checkpoint_fits_its_own_template(tree: Any) -> None:
    if _names_clash(tree):
        return
    value = jax.tree.map(lambda pair: pair[0], tree, is_leaf=_is_pair)
    match = tx.check(tx.Recipe(lambda: value), tx.template_of(value))
    assert match.ok
    assert not match.casts
