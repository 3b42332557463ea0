"""The report of a match, line by line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import templax as tx
from helpers import CHECKPOINT_LIKE_URL as URL
from helpers import checkpoint_like, checkpoint_of, f32
from mismatches import mismatched_trees
from templax._match.result import MAX_SHOWN
from templax._template import json_file

A = jax.ShapeDtypeStruct


def report_lines(checkpoint: Any, template: Any, **options: Any) -> list[str]:
    """The lines of the report, with CKPT for the name of the checkpoint."""
    match = tx.check(checkpoint_like(checkpoint), template, **options)
    return str(match).replace(URL, "CKPT").split("\n")


def test_one_matching_leaf() -> None:
    assert report_lines({"w": f32(2)}, {"w": f32(2)}) == ["the leaf matches CKPT"]
    assert report_lines(f32(2), f32(2)) == ["the leaf matches CKPT"]


def test_several_matching_leaves() -> None:
    tree = {"w": f32(2), "b": f32(3)}
    assert report_lines(tree, tree) == ["all 2 leaves match CKPT"]


def test_an_empty_template_matches_an_empty_checkpoint() -> None:
    assert report_lines({}, {}) == ["all 0 leaves match CKPT"]


def test_casts_are_counted_by_pair_of_dtypes() -> None:
    checkpoint = {"a": f32(2), "b": f32(500), "c": A((3,), jnp.int8)}
    template = {"a": A((2,), jnp.bfloat16), "b": A((500,), jnp.bfloat16), "c": A((3,), jnp.int32)}
    assert report_lines(checkpoint, template) == [
        "all 3 leaves match CKPT",
        "  2 cast from float32 to bfloat16 (2,008 bytes): `a`, `b`",
        "  1 cast from int8 to int32 (3 bytes): `c`",
    ]


def test_kept_leaves_are_named() -> None:
    template = {"w": f32(2), "head": jnp.ones(3), "n": 4}
    assert report_lines({"w": f32(2)}, template, missing="keep") == [
        "1 of 3 leaves match CKPT, the others keep the template's values",
        "  2 kept from the template: `head`, `n`",
    ]


def test_skipped_leaves_are_named_but_not_counted() -> None:
    assert report_lines({"w": f32(2), "x": f32(1)}, {"w": f32(2), "x": ..., "f": print}) == [
        "the leaf matches CKPT",
        "  2 without data, left as in the template: `f`, `x`",
        "  1 of the checkpoint ignored: `x`",
    ]


def test_the_first_three_ignored_leaves_are_named() -> None:
    checkpoint = {"w": f32(2), "opt": [f32(1)] * 5}
    assert report_lines(checkpoint, {"w": f32(2)}, extra="ignore") == [
        "the leaf matches CKPT",
        "  5 of the checkpoint ignored: `opt.0`, `opt.1`, `opt.2`, and 2 more",
    ]
    checkpoint = {"w": f32(2), "opt": [f32(1)] * 3}
    assert report_lines(checkpoint, {"w": f32(2)}, extra="ignore")[1] == (
        "  3 of the checkpoint ignored: `opt.0`, `opt.1`, `opt.2`"
    )


def test_leaves_supplied_by_another_checkpoint_are_named() -> None:
    template = {"w": f32(2), "new": f32(3), "newer": f32(3)}
    other = tx.Recipe(lambda: {"new": jnp.ones(3), "newer": jnp.ones(3)})
    assert report_lines({"w": f32(2)}, template, missing=other) == [
        "1 of 3 leaves match CKPT, the others are supplied",
        f"  2 supplied by {other.url}: `new`, `newer`",
    ]


def test_supplied_and_kept_leaves_are_named_by_who_gives_them() -> None:
    template = {"w": f32(2), "a": f32(3), "b": [f32(3)] * 4, "c": jnp.ones(1)}
    one = tx.Recipe(lambda: {"a": jnp.ones(3)})
    two = checkpoint_of({"b": [jnp.ones(3)] * 4})
    patterns = {"a": one, "b.*": two, "*": "keep"}
    assert report_lines({"w": f32(2)}, template, missing=patterns) == [
        "1 of 7 leaves match CKPT, the others are supplied or keep the template's values",
        f"  1 supplied by {one.url}: `a`",
        f"  4 supplied by {two.url}: `b.0`, `b.1`, `b.2`, and 1 more",
        "  1 kept from the template: `c`",
    ]


def test_a_pattern_of_extra_that_matches_no_leaf_is_named() -> None:
    checkpoint = {"w": f32(2), "opt": [f32(1)] * 2}
    extra: Any = {"opt_state.*": "ignore", "opt.1": "ignore"}
    line = '  no leaf of the checkpoint matches the pattern "opt_state.*" of extra='
    assert report_lines(checkpoint, {"w": f32(2)}, extra=extra)[-1] == line
    assert report_lines(checkpoint, {"w": f32(2)}, extra=extra | {"opt.*": "ignore"}) == [
        "the leaf matches CKPT",
        "  2 of the checkpoint ignored: `opt.0`, `opt.1`",
        line,
    ]


def test_one_mismatch_of_one_leaf() -> None:
    assert report_lines({"w": f32(2)}, {"w": f32(3)}) == [
        "1 of 1 leaf does not match CKPT",
        "  Expected shape `(3,)`, got `(2,)` - at `w`",
    ]


def test_one_mismatch_of_several_leaves() -> None:
    assert report_lines({"w": f32(2), "b": f32(2)}, {"w": f32(3), "b": f32(2)}) == [
        "1 of 2 leaves does not match CKPT",
        "  Expected shape `(3,)`, got `(2,)` - at `w`",
    ]


def test_several_mismatches() -> None:
    checkpoint = {"a": f32(2), "b": f32(2), "c": f32(2)}
    template = {"a": f32(3), "b": A((2,), jnp.int8), "c": f32(2)}
    assert report_lines(checkpoint, template) == [
        "2 of 3 leaves do not match CKPT",
        "  Expected shape `(3,)`, got `(2,)` - at `a`",
        "  Expected dtype `int8`, got `float32` - at `b`",
    ]


def test_a_wrong_shape_and_dtype_are_two_lines_of_one_leaf() -> None:
    assert report_lines({"a": f32(2)}, {"a": A((3,), jnp.int8)}) == [
        "1 of 1 leaf does not match CKPT",
        "  Expected shape `(3,)`, got `(2,)` - at `a`",
        "  Expected dtype `int8`, got `float32` - at `a`",
    ]


def test_one_extra_leaf() -> None:
    assert report_lines({"w": f32(2), "x": f32(3, 4)}, {"w": f32(2)}) == [
        "1 leaf of CKPT is not in the template, at `x`",
        '  Expected no leaf, found `float32(3, 4)` - at `x`; hint: extra="ignore"',
    ]


def test_extra_leaves_in_one_subtree() -> None:
    checkpoint = {"w": f32(2), "opt": {"mu": {"w": f32(2)}, "nu": {"w": f32(2)}}}
    assert report_lines(checkpoint, {"w": f32(2)}) == [
        "2 leaves of CKPT are not in the template, all under `opt`",
        "  Expected no leaf, found `float32(2,)` - at `opt.mu.w`",
        "  Expected no leaf, found `float32(2,)` - at `opt.nu.w`",
        '  hint: extra="ignore"',
    ]


def test_extra_leaves_are_located_by_their_deepest_common_subtree() -> None:
    checkpoint = {"w": f32(2), "state": {"opt": {"mu": f32(2), "nu": f32(2)}}}
    assert report_lines(checkpoint, {"w": f32(2)})[0] == (
        "2 leaves of CKPT are not in the template, all under `state.opt`"
    )


def test_extra_leaves_without_a_common_subtree_are_only_counted() -> None:
    assert report_lines({"w": f32(2), "x": f32(3), "y": f32(4)}, {"w": f32(2)})[0] == (
        "2 leaves of CKPT are not in the template"
    )


def test_extra_leaves_in_many_subtrees_are_counted_for_the_three_largest() -> None:
    sizes = {"a": 2, "b": 5, "c": 1, "d": 4, "e": 3}
    checkpoint = {"w": f32(2), **{k: [f32(1)] * n for k, n in sizes.items()}}
    assert report_lines(checkpoint, {"w": f32(2)})[0] == (
        "15 leaves of CKPT are not in the template, under `b` (5), `d` (4), `e` (3) and 2 others"
    )


def test_missing_and_extra_leaves_are_counted_separately() -> None:
    checkpoint = {"w": f32(2), "v": f32(2), "x": f32(7)}
    assert report_lines(checkpoint, {"w": f32(2), "v": f32(2), "other": f32(8)}) == [
        "1 of 3 leaves does not match CKPT, and 1 of its leaves is not in the template",
        "  Expected a leaf, found none - at `other`;"
        " hint: missing=tx.Recipe(init, ...), where init(...) makes such a tree",
        "  Expected no leaf, found `float32(7,)` - at `x`",
    ]


def test_mismatches_follow_the_template_and_extra_leaves_come_last() -> None:
    checkpoint = {"extra": f32(9), "z": f32(2), "m": f32(2)}
    template = [("z", f32(3)), ("gone", f32(4)), ("m", f32(3))]
    match = tx.check(checkpoint_like(checkpoint), dict(template))
    assert [(m.name, m.problem) for m in match.mismatches] == [
        ("gone", "missing"),
        ("m", "shape"),
        ("z", "shape"),
        ("extra", "extra"),
    ]


def test_a_shared_hint_is_printed_once() -> None:
    checkpoint = {"a": f32(2, 3), "b": f32(2, 3), "c": f32(4, 5)}
    template = {"a": f32(3, 2), "b": f32(3, 2), "c": f32(5, 4)}
    transpose = "the checkpoint holds the transpose: ask for shape `{}` and swap the last two axes"
    assert report_lines(checkpoint, template) == [
        "3 of 3 leaves do not match CKPT",
        "  Expected shape `(3, 2)`, got `(2, 3)` - at `a`",
        "  Expected shape `(3, 2)`, got `(2, 3)` - at `b`",
        "  Expected shape `(5, 4)`, got `(4, 5)` - at `c`; hint: "
        f"{transpose.format('(4, 5)')} of the result",
        f"  hint: {transpose.format('(2, 3)')} of the result",
    ]


def test_two_shared_hints_are_printed_once_each() -> None:
    checkpoint = {f"{k}{i}": f32(*s) for k, s in (("a", (2, 3)), ("b", (4, 5))) for i in range(3)}
    template = {f"{k}{i}": f32(*s) for k, s in (("a", (3, 2)), ("b", (5, 4))) for i in range(3)}
    lines = report_lines(checkpoint, template)
    assert len(lines) == 1 + 6 + 2
    assert [line[:6] for line in lines[-2:]] == ["  hint"] * 2
    assert not any("hint" in line for line in lines[:-2])


@pytest.mark.parametrize(
    ("checkpoint", "template", "line"),
    [
        (f32(2), A((2,), jnp.bool), "Expected dtype `bool`, got `float32` - at `x`"),
        (A((), jnp.int32), True, "Expected dtype `bool`, got `int32` - at `x`"),
        (f32(), int, "Expected dtype `int`, got `float32` - at `x`"),
        ("text", 1, "Expected a number, got a string (str) - at `x`"),
        ("text", f32(2), "Expected an array, got a string (str) - at `x`"),
        (f32(2), str, "Expected a string, got an array (float32(2,)) - at `x`"),
        (
            f32(2),
            jax.random.key(0),
            "Expected a typed PRNG key, got an array (float32(2,)) - at `x`",
        ),
        (
            {"y": f32(2), "z": f32(2)},
            f32(2),
            "Expected a leaf, found a subtree of 2 leaves - at `x`",
        ),
    ],
)
def test_each_kind_of_mismatch_has_its_own_message(
    checkpoint: Any, template: Any, line: str
) -> None:
    match = tx.check(checkpoint_like({"x": checkpoint, "w": f32(1)}), {"x": template, "w": f32(1)})
    assert match.mismatches[0].fact == line


def test_prng_keys_are_reported_with_the_shape_that_users_see() -> None:
    key = jax.random.key(0)
    match = tx.check(checkpoint_like({"k": jax.random.split(key, 4)}), {"k": key})
    assert [str(m) for m in match.mismatches] == ["Expected shape `()`, got `(4,)` - at `k`"]
    match = tx.check(checkpoint_like({"k": jax.random.key(0, impl="rbg")}), {"k": key})
    assert [str(m) for m in match.mismatches] == [
        "Expected dtype `key<threefry2x32>`, got `key<rbg>` - at `k`"
    ]


def test_twenty_mismatches_are_all_shown() -> None:
    lines = report_lines(*mismatched_trees(MAX_SHOWN))
    assert len(lines) == 1 + MAX_SHOWN
    assert lines[0] == "20 of 20 leaves do not match CKPT"
    assert lines[-1] == "  Expected shape `(3,)`, got `(2,)` - at `w19`"


def test_the_twenty_first_mismatch_is_counted_by_name() -> None:
    lines = report_lines(*mismatched_trees(MAX_SHOWN + 1))
    assert len(lines) == 2 + MAX_SHOWN
    assert lines[-2:] == [
        "  Expected shape `(3,)`, got `(2,)` - at `w19`",
        "  and 1 more: 1 shape at `w20` (`error.mismatches` has them all)",
    ]


def test_further_mismatches_are_counted_by_kind_and_subtree() -> None:
    shown = {f"a{i:02}": f32(2) for i in range(MAX_SHOWN)}
    checkpoint = {
        **shown,
        "dec": {"a": f32(2), "b": f32(2)},
        "enc": {"a": f32(2), "b": f32(2), "c": f32(2), "d": A((2,), jnp.int8)},
        "opt": {"mu": {"w": f32(9), "b": f32(9)}},
    }
    template = {
        **dict.fromkeys(shown, f32(3)),
        "dec": {"a": f32(3), "b": f32(3)},
        "enc": {"a": f32(3), "b": f32(3), "c": f32(3), "d": f32(2), "gone": f32(77)},
    }
    template["enc"]["d"] = A((2,), jnp.bool)
    lines = report_lines(checkpoint, template)
    assert lines[0] == (
        "27 of 27 leaves do not match CKPT, and 2 of its leaves are not in the template"
    )
    assert len(lines) == 2 + MAX_SHOWN
    assert lines[-1] == (
        "  and 9 more: 5 shape under `enc` (3), `dec` (2); 1 dtype at `enc.d`;"
        " 1 missing at `enc.gone`; 2 extra all under `opt.mu`"
        " (`error.mismatches` has them all)"
    )


def test_further_mismatches_at_the_top_level_are_counted_by_kind_only() -> None:
    assert report_lines(*mismatched_trees(MAX_SHOWN + 5))[-1] == (
        "  and 5 more: 5 shape (`error.mismatches` has them all)"
    )


def test_a_hint_shared_with_counted_mismatches_is_the_last_line() -> None:
    names = [f"w{i:02}" for i in range(MAX_SHOWN + 5)]
    lines = report_lines(dict.fromkeys(names, f32(2, 3)), dict.fromkeys(names, f32(3, 2)))
    assert lines[-2].startswith("  and 5 more: 5 shape")
    assert lines[-1].startswith("  hint: the checkpoint holds the transpose")
    assert sum("hint" in line for line in lines) == 1


def test_a_hint_for_a_counted_mismatch_is_only_on_the_mismatch() -> None:
    checkpoint, template = mismatched_trees(MAX_SHOWN)
    checkpoint["zz"], template["zz"] = f32(2, 3), f32(3, 2)
    match = tx.check(checkpoint_like(checkpoint), template)
    assert match.mismatches[-1].hint is not None
    assert str(match).count("hint") == 0


def test_a_json_template_gives_the_same_report(tmp_path: Path) -> None:
    """`templax check` in CI reports what `restore` will report."""
    checkpoint = {"params": {"Dense_0": {"kernel": f32(3, 8), "bias": f32(8)}}, "step": 3}
    templates: list[Any] = [
        {"Dense_0": {"kernel": f32(3, 8), "bias": f32(8)}},
        {"params": {"dense_0": {"kernel": f32(3, 8), "bias": f32(8)}}, "step": int},
        {"params": {"Dense_0": {"kernel": f32(8, 3), "bias": f32(8)}}, "step": str},
        {"params": {"Dense_0": {"kernel": A((3, 8), jnp.int8), "bias": f32(8)}}, "step": ...},
        {"params": {"Dense_0": {"kernel": f32(3, 8), "bias": f32(8)}}, "step": 1},
    ]
    for template in templates:
        tx.save_template(template, tmp_path / "t.json")
        assert json.loads((tmp_path / "t.json").read_bytes())["templax_template"] == 1
        loaded = json_file.load_template((tmp_path / "t.json").read_bytes())
        assert report_lines(checkpoint, loaded) == report_lines(checkpoint, template)


def test_the_report_lists_casts_kept_skipped_and_ignored_leaves() -> None:
    checkpoint_with = tx.Recipe(lambda: {"a": jnp.ones(4), "b": jnp.ones(3), "c": jnp.ones(2)})
    template = {"a": A((4,), jnp.bfloat16), "new": jnp.ones(1), "f": print, "b": ...}
    match = tx.check(checkpoint_with, template, missing="keep", extra="ignore")
    assert str(match) == "\n".join(
        [
            f"1 of 2 leaves match {match.url}, the others keep the template's values",
            "  1 cast from float32 to bfloat16 (16 bytes): `a`",
            "  1 kept from the template: `new`",
            "  2 without data, left as in the template: `b`, `f`",
            "  2 of the checkpoint ignored: `b`, `c`",
        ]
    )
    assert str(
        tx.check(
            checkpoint_with,
            {k: A((n,), jnp.float32) for k, n in zip("abc", (4, 3, 2), strict=True)},
        )
    ) == (f"all 3 leaves match {match.url}")


def test_a_long_report_shows_twenty_and_counts_the_rest() -> None:
    checkpoint_with = tx.Recipe(lambda: {"old": {f"w{i}": jnp.ones(2) for i in range(30)}})
    template = {
        "new": {f"w{i:02}": A((5,), jnp.float32) for i in range(15)},
        "old": {f"w{i}": A((3,), jnp.float32) for i in range(10)},
    }
    lines = str(tx.check(checkpoint_with, template)).split("\n")
    assert lines[0] == (
        "25 of 25 leaves do not match Recipe(test_a_long_report_shows_twenty_and_counts_the_rest."
        "<locals>.<lambda>), and 20 of its leaves are not in the template"
    )
    assert len(lines) == 22
    assert lines[-1] == (
        "  and 25 more: 5 shape all under `old`; 20 extra all under `old`"
        " (`error.mismatches` has them all)"
    )


def test_many_extra_leaves_are_counted_by_subtree() -> None:
    checkpoint_with = tx.Recipe(
        lambda: {
            "w": jnp.ones(2),
            "opt": {f"m{i}": jnp.ones(2) for i in range(25)},
            "ema": {f"m{i}": jnp.ones(2) for i in range(5)},
        }
    )
    lines = str(tx.check(checkpoint_with, {"w": A((2,), jnp.float32)})).split("\n")
    assert lines[0].endswith("are not in the template, under `opt` (25), `ema` (5)")
    assert lines[-1] == '  hint: extra="ignore"'
