"""Matching by name: ambiguous names, and leaves kept, skipped, ignored or supplied."""

from __future__ import annotations

import pickle
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

import templax as tx
from helpers import checkpoint_of

A = jax.ShapeDtypeStruct
W = A((4,), jnp.float32)


def list_problems(match: tx.Match) -> list[tuple[str, str]]:
    return [(m.problem, m.name) for m in match.mismatches]


ONE = {"a": {"b": jnp.arange(4.0)}}


@pytest.mark.parametrize(
    "template",
    [
        {"a": {"b": W}, "a.b": W},
        {"a": {"b": ...}, "a.b": W},
        {"a": {"b": W}, "a.b": ...},
        {"a": {"b": print}, "a.b": W},
    ],
    ids=["two arrays", "skip first", "skip last", "static first"],
)
def test_two_template_leaves_of_one_name_are_ambiguous(template: Any) -> None:
    """In either order, and whatever the other leaf is."""
    for extra in ("error", "ignore"):
        match = tx.check(checkpoint_of(ONE), template, extra=extra)
        assert list_problems(match) == [("ambiguous", "a.b")]
        with pytest.raises(tx.TemplateError, match="Expected one leaf of this name"):
            tx.restore(checkpoint_of(ONE), template, extra=extra)


class Twins:
    """Two children under one key."""

    def __init__(self, left: Any, right: Any):
        self.children = left, right


jtu.register_pytree_with_keys(
    Twins,
    lambda t: ([(jtu.GetAttrKey("x"), c) for c in t.children], None),
    lambda _, children: Twins(*children),
)


def test_equal_keys_of_one_node_are_one_mismatch() -> None:
    assert list_problems(tx.check(checkpoint_of({"x": jnp.ones(4)}), Twins(W, W))) == [
        ("ambiguous", "x")
    ]
    assert list_problems(tx.check(checkpoint_of(Twins(jnp.ones(4), jnp.ones(4))), {"x": W})) == [
        ("ambiguous", "x")
    ]


def test_two_checkpoint_leaves_of_one_name_are_ambiguous() -> None:
    both = {"a.b": jnp.ones(4), "a": {"b": jnp.zeros(4)}, "c": jnp.ones(4)}
    assert list_problems(tx.check(checkpoint_of(both), {"a": {"b": W}, "c": W})) == [
        ("ambiguous", "a.b")
    ]
    assert list_problems(tx.check(checkpoint_of(both), {"c": W})) == [("ambiguous", "a.b")]
    assert tx.check(checkpoint_of(both), {"c": W}, extra="ignore").ok


def test_a_rename_to_an_existing_name_is_ambiguous() -> None:
    two = {"x": jnp.ones(4), "y": jnp.zeros(4)}
    assert list_problems(tx.check(checkpoint_of(two), {"y": W}, rename={"x": "y"})) == [
        ("ambiguous", "y")
    ]


def test_a_skipped_subtree_is_neither_read_nor_extra() -> None:
    state = {"params": {"w": jnp.ones(4)}, "opt": {"mu": jnp.ones(4), "nu": [jnp.ones(4)]}}
    match = tx.check(checkpoint_of(state), {"params": {"w": W}, "opt": ...})
    assert match.ok
    assert match.skipped == ("opt",)
    assert set(match.ignored) == {"opt.mu", "opt.nu.0"}


def test_a_function_in_the_template_does_not_match_a_leaf() -> None:
    assert list_problems(tx.check(checkpoint_of({"f": jnp.ones(4)}), {"f": print})) == [
        ("extra", "f")
    ]


@pytest.mark.parametrize("missing", ["keep", "recipe"])
def test_a_restore_that_takes_nothing_from_the_checkpoint_is_refused(missing: str) -> None:
    """`missing=` and `extra="ignore"` together would otherwise hide any wrong `at`."""
    template = {"params": {"w": jnp.zeros(4)}}
    other: Any = "keep" if missing == "keep" else checkpoint_of(template)
    options: dict[str, Any] = {"missing": other, "extra": "ignore"}
    match = tx.check(checkpoint_of({"w": jnp.ones(4)}), template, **options)
    assert list_problems(match) == [("missing", "params.w")]
    assert match.mismatches[0].hint == 'rename={"": "params"}'
    match = tx.check(checkpoint_of({"params": {"w": jnp.ones(4)}}), template, at="parms", **options)
    assert not match.ok


def test_one_leaf_found_is_enough_to_keep_the_others() -> None:
    template = {"w": jnp.zeros(4), "new": jnp.full(2, 7.0)}
    kept = tx.restore(checkpoint_of({"w": jnp.ones(4)}), template, missing="keep")
    assert kept["new"] is template["new"]
    assert kept["w"].tolist() == [1, 1, 1, 1]


def test_leaves_that_cannot_be_kept_are_missing() -> None:
    """Abstract leaves, types, and arrays that were donated hold no value."""
    gone = jnp.ones(4)
    gone.delete()
    template = {"w": W, "a": W, "t": int, "gone": gone}
    match = tx.check(checkpoint_of({"w": jnp.ones(4)}), template, missing="keep")
    assert list_problems(match) == [("missing", "a"), ("missing", "gone"), ("missing", "t")]
    assert {m.note for m in match.mismatches} == {
        "the template has no value to keep here, only a shape and dtype"
    }


def test_a_kept_numpy_array_is_copied_to_its_device() -> None:
    """The result must not change when the template does."""
    mine = np.zeros((256, 256), np.float32)
    template = {"w": W, "mine": mine}
    device = jax.devices()[0]
    got = tx.restore(checkpoint_of({"w": jnp.ones(4)}), template, missing="keep", shardings=device)
    mine[:] = 9
    assert float(got["mine"].sum()) == 0


def test_mismatches_with_the_second_checkpoint_say_so() -> None:
    template = {"w": W, "new": A((2,), jnp.float32)}
    got = tx.restore(
        checkpoint_of({"w": jnp.ones(4)}), template, missing=checkpoint_of({"new": jnp.ones(2)})
    )
    assert got["new"].tolist() == [1, 1]
    match = tx.check(
        checkpoint_of({"w": jnp.ones(4)}), template, missing=checkpoint_of({"new": jnp.ones(3)})
    )
    assert str(match.mismatches[0]) == (
        "Expected shape `(2,)`, got `(3,)` - at `new`; in"
        " Recipe(checkpoint_of.<locals>.<lambda>), given as `missing=`"
    )


def test_a_template_error_with_shardings_can_be_pickled() -> None:
    """Worker pools pickle exceptions, but devices can't be pickled."""
    sharded = A((4,), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[3]))
    with pytest.raises(tx.TemplateError) as caught:
        tx.restore(checkpoint_of({"w": jnp.ones(4), "s": 5}), {"w": sharded, "x": W, "s": int})
    error = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - pickled here
    assert str(error) == str(caught.value)
    assert error.mismatches == caught.value.mismatches


def test_a_bare_leaf_is_called_the_leaf_itself() -> None:
    assert str(tx.check(checkpoint_of(jnp.ones(3)), W)) == (
        "1 of 1 leaf does not match Recipe(checkpoint_of.<locals>.<lambda>)\n"
        "  Expected shape `(4,)`, got `(3,)` - at the leaf itself"
    )


def test_64_bit_template_leaves_are_reported_with_the_stored_dtype() -> None:
    """And not as a difference from it, if it is the same."""
    match = tx.check(checkpoint_of({"n": np.arange(4)}), {"n": A((4,), np.dtype("int64"))})
    assert str(match.mismatches[0]) == (
        "Expected a dtype that a jax.Array holds, got `int64` - at `n`; a jax.Array holds no 64-bit"
        ' numbers while jax_enable_x64 is off; hint: jax.config.update("jax_enable_x64", True), or'
        " a numpy array as template leaf"
    )
    absent = tx.check(checkpoint_of({}), {"n": A((4,), np.dtype("int64"))})
    assert list_problems(absent) == [("missing", "n")]


def test_a_match_is_true_if_it_is_ok() -> None:
    """So that `assert tx.check(...)` works in CI."""
    assert tx.check(checkpoint_of({"w": jnp.ones(4)}), {"w": W})
    assert not tx.check(checkpoint_of({"w": jnp.ones(3)}), {"w": W})
