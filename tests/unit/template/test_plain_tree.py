"""Trees without anything of JAX: flattened, and made templates of, as JAX does it."""

from __future__ import annotations

import pickle
from collections import OrderedDict, defaultdict, namedtuple
from typing import Any, NamedTuple

import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

import templax as tx
from helpers import count_examples
from templax._jax.paths import path_element
from templax._template import make
from templax._template.from_pytree import as_template
from templax._template.plain_tree import flatten_plain


class Pair(NamedTuple):
    """Fields that are not in the order of the alphabet."""

    weights: Any
    bias: Any


Nothing = namedtuple("Nothing", [])


class Pairs(Pair):
    """Of another type than the named tuple that it is."""


class OwnDict(dict[str, Any]):
    """A leaf: JAX looks for the very type."""


class OwnTuple(tuple[Any, ...]):
    """A leaf, too."""


def leaves() -> st.SearchStrategy[Any]:
    return st.one_of(
        st.integers(-3, 3),
        st.floats(allow_nan=False),
        st.booleans(),
        st.complex_numbers(allow_nan=False),
        st.text(max_size=3),
        st.sampled_from([str, int, float, bool, complex, np.float32, np.int64, print, b"", ...]),
        st.builds(np.zeros, st.sampled_from([(), (2,), (0, 3)]), st.sampled_from(["f2", ">i4"])),
        st.builds(lambda: np.broadcast_to(np.zeros((), jnp.bfloat16), (4, 2))),
        st.builds(np.float64, st.floats(allow_nan=False)),
        st.builds(OwnDict, a=st.integers()),
        st.builds(OwnTuple, st.just((1, 2))),
        st.builds(np.zeros, st.just(2), st.sampled_from(["O", "S3", "M8[s]"])),
    )


def trees() -> st.SearchStrategy[Any]:
    keys = st.sampled_from("abcz.") | st.text(max_size=2)

    def hold(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        dicts = st.dictionaries(keys, children, max_size=4)
        return st.one_of(
            dicts,
            st.dictionaries(st.integers(0, 12), children, max_size=3),
            dicts.map(OrderedDict),
            dicts.map(lambda d: defaultdict(list, d)),
            st.lists(children, max_size=3),
            st.lists(children, max_size=3).map(tuple),
            st.builds(Pair, children, children),
            st.builds(Pairs, children, children),
            st.just(Nothing()),
        )

    return st.recursive(st.none() | leaves(), hold, max_leaves=12)


def assert_same_type(a: Any, b: Any) -> None:
    """The same types and objects, and the same order of the keys."""
    assert type(a) is type(b)
    if isinstance(a, dict) and not isinstance(a, OwnDict):
        assert list(a) == list(b)
        assert getattr(a, "default_factory", None) is getattr(b, "default_factory", None)
        for key in a:
            assert_same_type(a[key], b[key])
    elif isinstance(a, (list, tuple)) and not isinstance(a, OwnTuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same_type(x, y)
    else:
        assert a is b


@pytest.mark.slow
@count_examples(300)
@given(trees())
def test_a_tree_is_flattened_and_rebuilt_as_jax_does(tree: Any) -> None:
    keyed, treedef = jtu.tree_flatten_with_path(tree)
    found, structure = flatten_plain(tree)
    assert [path for path, _ in found] == [tuple(map(path_element, keys)) for keys, _ in keyed]
    assert all(a is b for (_, a), (_, b) in zip(found, keyed, strict=True))
    values = [object() for _ in found]
    assert_same_type(structure.unflatten(values), treedef.unflatten(values))
    assert pickle.loads(pickle.dumps(structure)) == structure  # noqa: S301


@count_examples(100)
@given(trees(), st.sampled_from([dict, list, tuple]))
def test_what_else_is_a_leaf_is_asked_as_jax_asks(tree: Any, kind: type) -> None:
    def is_leaf(x: Any) -> bool:
        return x is None or (isinstance(x, kind) and not x)

    found, structure = flatten_plain(tree, is_leaf)
    leaves, treedef = jtu.tree_flatten(tree, is_leaf)
    assert all(a is b for (_, a), b in zip(found, leaves, strict=True))
    assert_same_type(structure.unflatten([value for _, value in found]), treedef.unflatten(leaves))


@count_examples(200)
@given(trees())
def test_a_template_is_what_it_is_with_jax(tree: Any) -> None:
    """But for the structure, which is tested above, and the placement, which holds the leaf."""
    with_jax = as_template(tree).targets
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make, "is_jax_loaded", lambda: False)
        without = make.make_template(tree).targets
    for a, b in zip(without, with_jax, strict=True):
        assert a.placement.leaf is b.placement.leaf
        assert structs.replace(a, placement=None) == structs.replace(b, placement=None)


@pytest.mark.parametrize("wrong", [{0: 1, "0": 2}, defaultdict(int, {0: 1, "0": 2})])
def test_keys_that_cannot_be_sorted_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"keys of a dict can't be sorted at `a\.0`: '<'"):
        flatten_plain({"a": [wrong]})
    with pytest.raises(tx.UsageError, match="Expected a pytree as template"):
        as_template(wrong)
    with pytest.raises(tx.UsageError, match="Expected a pytree to save"):
        tx.fingerprint(wrong)


def test_a_tree_that_is_too_deep_is_refused() -> None:
    tree: Any = []
    for _ in range(100_000):
        tree = [tree]
    with pytest.raises(ValueError, match="too deep, or contains itself"):
        flatten_plain(tree)
