"""Every hint works when it is followed, and no hint is given where none would."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import templax as tx
from helpers import checkpoint_like, count_examples, f32
from mismatches import DENSE, MLP, fail_match, follow_hints, has_no_hint

A = jax.ShapeDtypeStruct


@pytest.mark.parametrize(
    ("checkpoint", "template"),
    [
        pytest.param(dict.fromkeys("abcd", MLP), MLP, id="four places fit equally well"),
        pytest.param(
            {f"x{i}": f32(3) for i in range(20)}, f32(3), id="a bare leaf fits twenty places"
        ),
        pytest.param({"scale": f32(3)}, {"bias": f32(3)}, id="the same shape, unlike names"),
        pytest.param({"Dense": f32(3)}, {"dense": f32(4)}, id="a near name of another shape"),
        pytest.param(
            {"Dense_0": f32(3), "DENSE_0": f32(3)}, {"dense_0": f32(3)}, id="two near names"
        ),
        pytest.param({"x": {"q": f32(2)}}, {"y": {"r": f32(5)}}, id="unrelated trees"),
        pytest.param({"w": f32(3, 3)}, {"w": f32(3, 4)}, id="a shape that is not a transpose"),
        pytest.param({"w": f32(2)}, {"w": A((2,), jnp.int8)}, id="a cast that no policy allows"),
        pytest.param(
            {"layers": f32(3, 2)},
            {f"layers_{i}": f32(2) for i in range(4)},
            id="a stack of another height",
        ),
        pytest.param(
            {"encoder": {"w": f32(2)}, "decoder": {"w": f32(2)}},
            {"coder": {"w": f32(2)}},
            id="two subtrees that look the same",
        ),
    ],
)
def test_no_hint_is_given_where_none_works(checkpoint: Any, template: Any) -> None:
    assert has_no_hint(fail_match(checkpoint, template))


def test_following_a_hint_removes_the_mismatches_it_is_attached_to() -> None:
    checkpoint = {"params": {"Dense_0": DENSE, "extra": f32(1)}, "opt": f32(9)}
    template = {"dense_0": DENSE}
    match = fail_match(checkpoint, template)
    for m in match.mismatches:
        if m.hint and re.match(r"(at|rename|extra|cast)=", m.hint):
            after = follow_hints(match, checkpoint, template)
            assert (m.problem, m.name) not in [(a.problem, a.name) for a in after.mismatches]


def test_names_with_different_numbers_are_not_similar() -> None:
    """`layers_3` for `layers_4` would load another layer."""
    checkpoint = {f"layers_{i}": f32(3) for i in (0, 1, 2, 3)}
    template = {f"layers_{i}": f32(3) for i in (0, 1, 2, 4)}
    assert has_no_hint(fail_match(checkpoint, template))


@pytest.mark.parametrize(
    ("checkpoint", "template", "options"),
    [
        pytest.param(
            {"w": f32(2), "x": f32(3)}, {"w": f32(4)}, {}, id="ignoring extras is not enough"
        ),
        pytest.param(
            {"Dense": A((3,), jnp.int32)}, {"dense": f32(3)}, {}, id="a near name of integers"
        ),
        pytest.param({}, {"w": f32(2)}, {}, id="an empty checkpoint"),
        pytest.param(
            {"a": f32(2)}, {"b": f32(2)}, {"at": "nowhere"}, id="unlike names and a wrong at"
        ),
        pytest.param({"w": "text"}, {"w": f32(5)}, {}, id="a string in place of an array"),
        pytest.param(
            {"w": A((2,), jnp.complex64)}, {"w": f32(2)}, {"cast": "exact"}, id="complex to real"
        ),
        pytest.param(
            {"w": f32(2)}, {"w": A((2,), jnp.int32)}, {"cast": "exact"}, id="float to int"
        ),
        pytest.param(
            {"w": A((2,), jnp.bool)}, {"w": f32(2)}, {"cast": "widen"}, id="bool to number"
        ),
        pytest.param(
            {"w": f32(3, 3)}, {"w": A((3, 3), jnp.int8)}, {}, id="a square matrix as integers"
        ),
        pytest.param(
            {"layers_0": f32(2), "layers_2": f32(2)},
            {"layers": f32(2, 2)},
            {},
            id="layers with a gap",
        ),
        pytest.param(
            {"layers_0": f32(2), "layers_1": f32(3)},
            {"layers": f32(2, 2)},
            {},
            id="layers of two shapes",
        ),
        pytest.param(
            {"layers_0": f32(2)}, {"layers": f32(1, 2)}, {}, id="one layer is not a stack"
        ),
        pytest.param(
            {"a": {"value": f32(2)}, "b": f32(3)},
            {"x": f32(2), "y": f32(3)},
            {},
            id="a value level under other names",
        ),
        pytest.param(
            {"batch_stats": {"mean": f32(4)}},
            {"params": {"scale": f32(4)}},
            {},
            id="another collection",
        ),
    ],
)
def test_no_hint_is_given_if_an_option_or_another_mismatch_rules_it_out(
    checkpoint: Any, template: Any, options: dict[str, Any]
) -> None:
    assert has_no_hint(fail_match(checkpoint, template, **options))


def _wrap(draw: Any, tree: Any) -> Any:
    return {draw(st.sampled_from(["params", "state", "model.x"])): tree}


def _add_siblings(draw: Any, tree: Any) -> Any:
    return {**tree, **{f"opt{i}": f32(9) for i in range(draw(st.integers(1, 3)))}}


def _duplicate(draw: Any, tree: Any) -> Any:
    return {"params": tree, draw(st.sampled_from(["ema", "mu"])): tree}


def _change_keys(draw: Any, tree: Any) -> Any:
    change = draw(st.sampled_from([str.lower, str.upper, lambda k: f"{k}s"]))
    return {change(k): v for k, v in tree.items()}


def _box(draw: Any, tree: Any) -> Any:
    return jax.tree.map(lambda x: {"value": x}, tree)


def _transpose(draw: Any, tree: Any) -> Any:
    return jax.tree.map(lambda x: A(x.shape[::-1], x.dtype), tree)


def _change_dtype(draw: Any, tree: Any) -> Any:
    dtype = draw(st.sampled_from([jnp.bfloat16, jnp.int32, jnp.float64]))
    return jax.tree.map(lambda x: A(x.shape, dtype), tree) if draw(st.booleans()) else tree


def _change_one_shape(draw: Any, tree: Any) -> Any:
    leaves, treedef = jax.tree.flatten(tree)
    i = draw(st.integers(0, len(leaves) - 1))
    leaves[i] = f32(*leaves[i].shape, 2)
    return jax.tree.unflatten(treedef, leaves)


def _drop_key(draw: Any, tree: Any) -> Any:
    gone = draw(st.sampled_from(sorted(tree)))
    return {k: v for k, v in tree.items() if k != gone} or tree


_CHANGES = [
    _wrap,
    _add_siblings,
    _duplicate,
    _change_keys,
    _box,
    _transpose,
    _change_dtype,
    _change_one_shape,
    _drop_key,
]


@st.composite
def _mismatched_trees(draw: Any) -> tuple[Any, Any, dict[str, Any]]:
    names = draw(st.sampled_from([["Dense_0", "Dense_1"], ["enc", "Dec", "head"], ["w"]]))
    base = {name: {"kernel": f32(3, i + 4), "bias": f32(i + 4)} for i, name in enumerate(names)}
    sides = []
    for _ in range(2):
        tree: Any = base
        for change in draw(st.lists(st.sampled_from(_CHANGES), max_size=2)):
            tree = change(draw, tree)
        sides.append(tree)
    stored, wanted = sides
    stored = jax.tree.map(
        lambda x: A(x.shape, jnp.float32 if x.dtype == jnp.float64 else x.dtype), stored
    )
    options: dict[str, Any] = {"cast": draw(st.sampled_from(["float", "widen", "exact"]))}
    if draw(st.booleans()):
        options["at"] = draw(st.sampled_from(["params", "state", "opt0", "parms"]))
    if draw(st.booleans()):
        options["rename"] = draw(st.sampled_from([str, str.swapcase]))
    return stored, wanted, options


def _parse_alternatives(match: tx.Match, hint: str) -> list[dict[str, Any]]:
    """The keyword arguments of each alternative that a hint offers; none for a hint in prose."""
    if not re.match(r"(at|rename|extra|cast)=", hint):
        return []
    if "error.match.rename" in hint:
        return [{"rename": match.rename}]
    return [eval(f"dict({one})") for one in hint.split(" or ")]  # noqa: S307 - hints are Python


@pytest.mark.slow
@count_examples(150)
@given(_mismatched_trees())
def test_following_any_hint_removes_its_mismatches_and_adds_none(
    case: tuple[Any, Any, dict[str, Any]],
) -> None:
    checkpoint, template, options = case
    catalog = tx.open(checkpoint_like(checkpoint))
    match = tx.check(catalog, template, **options)
    assume(not match.ok)
    for hint in {m.hint for m in match.mismatches if m.hint}:
        assert hint in str(match) or len(match.mismatches) > 20
        on = {(m.problem, m.name) for m in match.mismatches if m.hint == hint}
        for changed in _parse_alternatives(match, hint):
            after = tx.check(catalog, template, **{**options, **changed})
            left = {(m.problem, m.name) for m in after.mismatches}
            assert not on & left, (hint, match, after)
            assert len(after.mismatches) < len(match.mismatches), (hint, str(match), str(after))


@count_examples(50)
@given(_mismatched_trees())
def test_hints_do_not_change_the_mismatches(case: tuple[Any, Any, dict[str, Any]]) -> None:
    """With and without hints, the mismatches are the same, in the same order."""
    from templax._match.checkpoint_view import CheckpointView
    from templax._match.match import match_leaves
    from templax._match.options import MatchOptions
    from templax._template.from_pytree import as_template

    checkpoint, template, options = case
    catalog = tx.open(checkpoint_like(checkpoint))
    bare = match_leaves(
        CheckpointView(catalog.entries, url=catalog.url),
        as_template(template),
        MatchOptions(**options),
    )
    full = tx.check(catalog, template, **options)
    facts = [(m.problem, m.name, m.expected, m.found) for m in bare.mismatches]
    assert [(m.problem, m.name, m.expected, m.found) for m in full.mismatches] == facts
    assert all(m.hint is None for m in bare.mismatches)
