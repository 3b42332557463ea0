"""What a person reads, whole: the report of a match, the error that carries it, the warning."""

from __future__ import annotations

import copy
import json
import pickle
import re
import traceback
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import templax as tx
from templax._match.result import SHOWN
from templax._template import json_file

A = jax.ShapeDtypeStruct


def f32(*shape: int) -> jax.ShapeDtypeStruct:
    return A(shape, jnp.float32)


def recipe(tree: Any) -> tx.Recipe:
    def ckpt() -> Any:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype) if isinstance(x, A) else x, tree)

    return tx.Recipe(ckpt)


URL = "Recipe(recipe.<locals>.ckpt)"


def report(checkpoint: Any, template: Any, **options: Any) -> list[str]:
    """The lines, the checkpoint called CKPT."""
    match = tx.check(recipe(checkpoint), template, **options)
    return str(match).replace(URL, "CKPT").split("\n")


# --- what fits


def test_one_leaf_that_fits() -> None:
    assert report({"w": f32(2)}, {"w": f32(2)}) == ["the leaf matches CKPT"]
    assert report(f32(2), f32(2)) == ["the leaf matches CKPT"]


def test_several_leaves_that_fit() -> None:
    tree = {"w": f32(2), "b": f32(3)}
    assert report(tree, tree) == ["all 2 leaves match CKPT"]


def test_an_empty_template_of_an_empty_checkpoint_fits() -> None:
    assert report({}, {}) == ["all 0 leaves match CKPT"]


def test_casts_are_summed_by_pair_of_dtypes() -> None:
    checkpoint = {"a": f32(2), "b": f32(500), "c": A((3,), jnp.int8)}
    template = {"a": A((2,), jnp.bfloat16), "b": A((500,), jnp.bfloat16), "c": A((3,), jnp.int32)}
    assert report(checkpoint, template) == [
        "all 3 leaves match CKPT",
        "  2 cast from float32 to bfloat16 (2,008 bytes)",
        "  1 cast from int8 to int32 (3 bytes)",
    ]


def test_kept_leaves_are_named() -> None:
    template = {"w": f32(2), "head": jnp.ones(3), "n": 4}
    assert report({"w": f32(2)}, template, missing="keep") == [
        "1 of 3 leaves match CKPT, the others keep the template's values",
        "  2 kept from the template: `head`, `n`",
    ]


def test_skipped_leaves_are_named_and_do_not_count() -> None:
    assert report({"w": f32(2), "x": f32(1)}, {"w": f32(2), "x": ..., "f": print}) == [
        "the leaf matches CKPT",
        "  2 without data, left as in the template: `f`, `x`",
        "  1 of the checkpoint ignored: `x`",
    ]


def test_ignored_leaves_are_named_the_first_three() -> None:
    checkpoint = {"w": f32(2), "opt": [f32(1)] * 5}
    assert report(checkpoint, {"w": f32(2)}, extra="ignore") == [
        "the leaf matches CKPT",
        "  5 of the checkpoint ignored: `opt.0`, `opt.1`, `opt.2`, and 2 more",
    ]
    checkpoint = {"w": f32(2), "opt": [f32(1)] * 3}
    assert report(checkpoint, {"w": f32(2)}, extra="ignore")[1] == (
        "  3 of the checkpoint ignored: `opt.0`, `opt.1`, `opt.2`"
    )


def test_leaves_that_another_checkpoint_supplies_are_counted() -> None:
    template = {"w": f32(2), "new": f32(3), "newer": f32(3)}
    other = tx.Recipe(lambda: {"new": jnp.ones(3), "newer": jnp.ones(3)})
    assert report({"w": f32(2)}, template, missing=other) == [
        "all 3 leaves match CKPT",
        "  2 supplied by the checkpoint given as `missing=`",
    ]


# --- what does not


def test_one_leaf_of_one() -> None:
    assert report({"w": f32(2)}, {"w": f32(3)}) == [
        "1 of 1 leaf does not match CKPT",
        "  Expected shape `(3,)`, got `(2,)` - at `w`",
    ]


def test_one_leaf_of_several() -> None:
    assert report({"w": f32(2), "b": f32(2)}, {"w": f32(3), "b": f32(2)}) == [
        "1 of 2 leaves does not match CKPT",
        "  Expected shape `(3,)`, got `(2,)` - at `w`",
    ]


def test_several_leaves_of_several() -> None:
    checkpoint = {"a": f32(2), "b": f32(2), "c": f32(2)}
    template = {"a": f32(3), "b": A((2,), jnp.int8), "c": f32(2)}
    assert report(checkpoint, template) == [
        "2 of 3 leaves do not match CKPT",
        "  Expected shape `(3,)`, got `(2,)` - at `a`",
        "  Expected dtype `int8`, got `float32` - at `b`",
    ]


def test_a_leaf_wrong_in_shape_and_dtype_is_one_leaf_with_two_lines() -> None:
    assert report({"a": f32(2)}, {"a": A((3,), jnp.int8)}) == [
        "1 of 1 leaf does not match CKPT",
        "  Expected shape `(3,)`, got `(2,)` - at `a`",
        "  Expected dtype `int8`, got `float32` - at `a`",
    ]


def test_one_leaf_too_many() -> None:
    assert report({"w": f32(2), "x": f32(3, 4)}, {"w": f32(2)}) == [
        "1 leaf of CKPT is not in the template, at `x`",
        '  Expected no leaf, found `float32(3, 4)` - at `x`; hint: extra="ignore"',
    ]


def test_several_leaves_too_many_in_one_subtree() -> None:
    checkpoint = {"w": f32(2), "opt": {"mu": {"w": f32(2)}, "nu": {"w": f32(2)}}}
    assert report(checkpoint, {"w": f32(2)}) == [
        "2 leaves of CKPT are not in the template, all under `opt`",
        "  Expected no leaf, found `float32(2,)` - at `opt.mu.w`",
        "  Expected no leaf, found `float32(2,)` - at `opt.nu.w`",
        '  hint: extra="ignore"',
    ]


def test_leaves_too_many_under_the_deepest_subtree_that_holds_them_all() -> None:
    checkpoint = {"w": f32(2), "state": {"opt": {"mu": f32(2), "nu": f32(2)}}}
    assert report(checkpoint, {"w": f32(2)})[0] == (
        "2 leaves of CKPT are not in the template, all under `state.opt`"
    )


def test_leaves_too_many_with_no_subtree_in_common_are_only_counted() -> None:
    assert report({"w": f32(2), "x": f32(3), "y": f32(4)}, {"w": f32(2)})[0] == (
        "2 leaves of CKPT are not in the template"
    )


def test_leaves_too_many_in_many_subtrees_are_counted_by_the_three_largest() -> None:
    sizes = {"a": 2, "b": 5, "c": 1, "d": 4, "e": 3}
    checkpoint = {"w": f32(2), **{k: [f32(1)] * n for k, n in sizes.items()}}
    assert report(checkpoint, {"w": f32(2)})[0] == (
        "15 leaves of CKPT are not in the template, under `b` (5), `d` (4), `e` (3) and 2 others"
    )


def test_missing_and_extra_leaves_are_counted_apart() -> None:
    checkpoint = {"w": f32(2), "v": f32(2), "x": f32(7)}
    assert report(checkpoint, {"w": f32(2), "v": f32(2), "other": f32(8)}) == [
        "1 of 3 leaves does not match CKPT, and 1 of its leaves is not in the template",
        "  Expected a leaf, found none - at `other`",
        "  Expected no leaf, found `float32(7,)` - at `x`",
    ]


def test_extras_come_last_and_the_template_order_is_kept() -> None:
    checkpoint = {"extra": f32(9), "z": f32(2), "m": f32(2)}
    template = [("z", f32(3)), ("gone", f32(4)), ("m", f32(3))]
    match = tx.check(recipe(checkpoint), dict(template))
    assert [(m.name, m.problem) for m in match.mismatches] == [
        ("gone", "missing"),
        ("m", "shape"),
        ("z", "shape"),
        ("extra", "extra"),
    ]


def test_a_shared_hint_is_printed_once_and_a_single_one_at_its_leaf() -> None:
    checkpoint = {"a": f32(2, 3), "b": f32(2, 3), "c": f32(4, 5)}
    template = {"a": f32(3, 2), "b": f32(3, 2), "c": f32(5, 4)}
    transpose = "the checkpoint holds the transpose: ask for shape `{}` and swap the last two axes"
    assert report(checkpoint, template) == [
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
    lines = report(checkpoint, template)
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
def test_each_kind_of_difference_in_its_own_words(
    checkpoint: Any, template: Any, line: str
) -> None:
    match = tx.check(recipe({"x": checkpoint, "w": f32(1)}), {"x": template, "w": f32(1)})
    assert match.mismatches[0].fact == line


def test_keys_are_reported_in_the_shape_that_a_user_sees() -> None:
    key = jax.random.key(0)
    match = tx.check(recipe({"k": jax.random.split(key, 4)}), {"k": key})
    assert [str(m) for m in match.mismatches] == ["Expected shape `()`, got `(4,)` - at `k`"]
    match = tx.check(recipe({"k": jax.random.key(0, impl="rbg")}), {"k": key})
    assert [str(m) for m in match.mismatches] == [
        "Expected dtype `key<threefry2x32>`, got `key<rbg>` - at `k`"
    ]


# --- many


def _many(n: int) -> tuple[dict[str, Any], dict[str, Any]]:
    names = [f"w{i:02}" for i in range(n)]
    return dict.fromkeys(names, f32(2)), dict.fromkeys(names, f32(3))


def test_twenty_are_all_shown() -> None:
    lines = report(*_many(SHOWN))
    assert len(lines) == 1 + SHOWN
    assert lines[0] == "20 of 20 leaves do not match CKPT"
    assert lines[-1] == "  Expected shape `(3,)`, got `(2,)` - at `w19`"


def test_the_twenty_first_is_counted_at_its_name() -> None:
    lines = report(*_many(SHOWN + 1))
    assert len(lines) == 2 + SHOWN
    assert lines[-2:] == [
        "  Expected shape `(3,)`, got `(2,)` - at `w19`",
        "  and 1 more: 1 shape at `w20` (`error.mismatches` has them all)",
    ]


def test_the_rest_is_counted_by_kind_and_subtree() -> None:
    shown = {f"a{i:02}": f32(2) for i in range(SHOWN)}
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
    lines = report(checkpoint, template)
    assert lines[0] == (
        "27 of 27 leaves do not match CKPT, and 2 of its leaves are not in the template"
    )
    assert len(lines) == 2 + SHOWN
    assert lines[-1] == (
        "  and 9 more: 5 shape under `enc` (3), `dec` (2); 1 dtype at `enc.d`;"
        " 1 missing at `enc.gone`; 2 extra all under `opt.mu`"
        " (`error.mismatches` has them all)"
    )


def test_a_rest_all_at_top_level_is_counted_by_kind_only() -> None:
    assert report(*_many(SHOWN + 5))[-1] == (
        "  and 5 more: 5 shape (`error.mismatches` has them all)"
    )


def test_a_hint_shared_by_shown_and_counted_ones_is_the_last_line() -> None:
    names = [f"w{i:02}" for i in range(SHOWN + 5)]
    lines = report(dict.fromkeys(names, f32(2, 3)), dict.fromkeys(names, f32(3, 2)))
    assert lines[-2].startswith("  and 5 more: 5 shape")
    assert lines[-1].startswith("  hint: the checkpoint holds the transpose")
    assert sum("hint" in line for line in lines) == 1


def test_a_hint_on_a_counted_leaf_alone_is_on_the_mismatch() -> None:
    """The text shows twenty; the error has the rest, hints included."""
    checkpoint, template = _many(SHOWN)
    checkpoint["zz"], template["zz"] = f32(2, 3), f32(3, 2)
    match = tx.check(recipe(checkpoint), template)
    assert match.mismatches[-1].hint is not None
    assert str(match).count("hint") == 0


# --- the error


def test_the_error_carries_the_match_and_every_mismatch() -> None:
    checkpoint, template = _many(SHOWN + 5)
    with pytest.raises(tx.TemplateError) as caught:
        tx.restore(recipe(checkpoint), template)
    error = caught.value
    assert isinstance(error, tx.TemplaxError)
    assert isinstance(error, ValueError)
    assert error.mismatches == error.match.mismatches
    assert len(error.mismatches) == SHOWN + 5
    assert not error.match.ok
    assert str(error) == str(error.match) == str(tx.check(recipe(checkpoint), template))
    assert str(error) in "".join(traceback.format_exception(error))


def test_a_mismatch_has_the_documented_attributes() -> None:
    with pytest.raises(tx.TemplateError) as caught:
        tx.restore(recipe({"w": f32(2, 3)}), {"w": f32(3, 2)})
    (m,) = caught.value.mismatches
    assert (m.problem, m.name, m.expected, m.found) == ("shape", "w", "(3, 2)", "(2, 3)")
    assert m.hint is not None
    assert str(m) == f"{m.fact}; hint: {m.hint}"


def _errors() -> list[Any]:
    wrong: list[tuple[Any, Any, dict[str, Any]]] = [
        ({"w": f32(2)}, {"w": f32(3)}, {}),
        ({"params": {"w": f32(2)}}, {"w": f32(2)}, {}),
        ({"Dense": f32(2)}, {"dense": f32(2)}, {}),
        ({"w": f32(2), "o": f32(2)}, {"w": f32(2)}, {}),
        ({"w": f32(2), "k": 3}, {"w": f32(3), "k": jax.random.key(0), "f": print, "s": ...}, {}),
        (*_many(SHOWN + 9), {}),
        ({"w": f32(2)}, {"w": f32(3)}, {"shardings": jax.devices()[1]}),
        ({"w": f32(2)}, {"w": f32(3)}, {"missing": "keep"}),
    ]
    return [pytest.param(*case, id=str(i)) for i, case in enumerate(wrong)]


@pytest.mark.parametrize(("checkpoint", "template", "options"), _errors())
def test_the_error_survives_pickle_and_copy(checkpoint: Any, template: Any, options: Any) -> None:
    with pytest.raises(tx.TemplateError) as caught:
        tx.restore(recipe(checkpoint), template, **options)
    error = caught.value
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(error, protocol))  # noqa: S301 - our own bytes
        assert type(again) is tx.TemplateError
        assert str(again) == str(error) == str(again.match)
        assert again.mismatches == error.mismatches == again.match.mismatches
        assert again.match.rename == error.match.rename
    assert str(copy.copy(error)) == str(error)
    assert str(copy.deepcopy(error)) == str(error)


@pytest.mark.parametrize(
    "error",
    [
        tx.NotFound("nothing", file="a"),
        tx.UnknownFormat("what", file="a", hint="open"),
        tx.Corrupted("Expected 4 bytes, got 3", leaf="w", file="d/0", start=3, stop=9),
        tx.Uncommitted("never finished"),
        tx.Unsupported("codec", leaf="w"),
        tx.SourceError("the store failed"),
        tx.UsageError("Expected"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_every_other_error_survives_pickle(error: tx.TemplaxError) -> None:
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_errors_of_a_checkpoint_say_fact_place_and_hint() -> None:
    error = tx.Corrupted(
        "Expected 4 bytes, got 3", leaf="w", file="d/0", start=3, stop=9, hint="save again"
    )
    assert str(error) == (
        "Expected 4 bytes, got 3 - at `w`, file `d/0`, bytes 3-9; hint: save again"
    )
    assert (error.leaf, error.file, error.start, error.stop) == ("w", "d/0", 3, 9)
    assert str(tx.NotFound("nothing is there", file="a")) == "nothing is there - file `a`"
    assert str(tx.Corrupted("cut").locate(leaf="w", file="d")) == "cut - at `w`, file `d`"
    assert str(error.locate(leaf="x", file="y")) == str(error)


# --- the warning


def _restored(checkpoint: Any, template: Any, **options: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tx.restore(recipe(checkpoint), template, **options)
    assert all(w.category is tx.CastWarning for w in caught)
    assert all(w.filename == __file__ for w in caught)
    return [re.sub(r"\d+\.\d{3} s", "T s", str(w.message).replace(URL, "CKPT")) for w in caught]


def test_one_warning_sums_up_the_casts_of_a_restore() -> None:
    checkpoint = {"a": f32(1000), "b": f32(500), "c": A((3,), jnp.int8), "same": f32(7)}
    template = {
        "a": A((1000,), jnp.bfloat16),
        "b": A((500,), jnp.bfloat16),
        "c": A((3,), jnp.int32),
        "same": f32(7),
    }
    assert _restored(checkpoint, template) == [
        "3 of 4 leaves of CKPT were cast: float32 to bfloat16 (2), int8 to int32 (1);"
        ' 6,003 bytes, T s; cast="exact" refuses this'
    ]


def test_each_call_warns_anew_and_once() -> None:
    for _ in range(2):
        said = _restored({"a": f32(2)}, {"a": A((2,), jnp.float16)})
        assert len(said) == 1
        assert said[0].endswith(
            'cast: float32 to float16 (1); 8 bytes, T s; cast="exact" refuses this'
        )


@pytest.mark.parametrize(
    ("checkpoint", "template", "options"),
    [
        ({"a": f32(2)}, {"a": f32(2)}, {}),
        ({"n": 3}, {"n": int}, {}),
        ({"n": 3}, {"n": A((), jnp.int32)}, {}),
        ({"x": 0.5}, {"x": float}, {}),
        ({"a": f32(2), "skip": f32(2)}, {"a": f32(2), "skip": ...}, {}),
        ({"a": f32(2), "b": f32(2)}, {"a": f32(2)}, {"extra": "ignore"}),
        ({"a": f32(2)}, {"a": f32(2), "kept": np.ones(2, np.float16)}, {"missing": "keep"}),
        ({"k": jax.random.key(1)}, {"k": jax.random.key(0)}, {}),
    ],
)
def test_no_warning_without_a_cast(checkpoint: Any, template: Any, options: Any) -> None:
    assert _restored(checkpoint, template, **options) == []


def test_no_warning_if_the_restore_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(tx.TemplateError):
            tx.restore(recipe({"a": f32(2), "b": f32(2)}), {"a": A((2,), jnp.float16), "b": f32(3)})
        tx.check(recipe({"a": f32(2)}), {"a": A((2,), jnp.float16)})


def test_the_casts_of_check_are_those_that_restore_warns_of() -> None:
    match = tx.check(recipe({"a": f32(2), "b": f32(2)}), {"a": A((2,), jnp.float16), "b": f32(2)})
    assert [(c.name, c.stored, c.wanted, c.nbytes) for c in match.casts] == [
        ("a", "float32", "float16", 8)
    ]


def test_the_warning_of_a_single_leaf_is_in_the_singular() -> None:
    """As the report of one leaf is; the dtypes are those of the Python float and of the array."""
    assert [s.split(";")[0] for s in _restored({"x": 0.5}, {"x": A((), ml_dtypes.bfloat16)})] == [
        "1 of 1 leaf of CKPT was cast: float64 to bfloat16 (1)"
    ]


# --- a template of JSON


def test_a_json_template_gives_the_same_report(tmp_path: Path) -> None:
    """`templax check` in CI says what `restore` will say."""
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
        assert report(checkpoint, loaded) == report(checkpoint, template)
