"""`missing=` and `extra=` by pattern, and the names of what was supplied, kept and ignored."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import templax as tx
from helpers import catch_mismatches, check_template, checkpoint_of, f32

BASE = checkpoint_of({"attn": {"q": jnp.ones((4, 4))}, "opt": {"mu": jnp.ones(2)}})
"""Lacks `mlp.w`, which is no adapter."""


def init() -> Any:
    attn = {"q": jnp.zeros((4, 4)), "q_lora": jnp.full((4, 2), 2.0)}
    return {"attn": attn, "mlp": {"w": jnp.full((4, 4), 3.0)}}


INIT = tx.Recipe(init)
TEMPLATE = tx.template_of(init)


def test_a_leaf_that_no_pattern_names_stays_an_error() -> None:
    options: Any = {"missing": {"*lora*": INIT}, "extra": "ignore"}
    assert check_template(BASE, TEMPLATE, **options) == [("missing", "mlp.w")]
    assert catch_mismatches(BASE, TEMPLATE, **options) == [("missing", "mlp.w")]
    with pytest.raises(tx.TemplateError, match=r"mlp\.w"):
        tx.plan(BASE, TEMPLATE, **options)


def test_the_first_pattern_that_matches_decides() -> None:
    template = {"attn": TEMPLATE["attn"], "mlp": {"w": jnp.full((4, 4), 5.0)}}
    patterns: Any = {"mlp.*": "keep", "*": INIT}
    got = tx.restore(BASE, template, missing=patterns, extra="ignore")
    assert float(got["mlp"]["w"][0, 0]) == 5.0
    assert float(got["attn"]["q_lora"][0, 0]) == 2.0
    patterns = {"mlp.w": "error", "mlp.*": INIT, "attn.*": INIT}
    assert check_template(BASE, template, missing=patterns, extra="ignore") == [
        ("missing", "mlp.w")
    ]


@pytest.mark.slow
def test_several_checkpoints_supply_leaves_each_opened_once() -> None:
    opened: list[int] = []

    def adapters() -> Any:
        opened.append(1)
        return {"attn": {"q_lora": jnp.full((4, 2), 7.0), "k_lora": jnp.full(3, 8.0)}}

    template = {"attn": TEMPLATE["attn"] | {"k_lora": f32(3)}, "mlp": TEMPLATE["mlp"]}
    recipe = tx.Recipe(adapters)
    patterns = {"*q_lora": recipe, "*k_lora": recipe, "mlp.*": INIT}
    match = tx.check(BASE, template, missing=patterns, extra="ignore")
    assert match.supplied == {
        "attn.k_lora": recipe.url,
        "attn.q_lora": recipe.url,
        "mlp.w": INIT.url,
    }
    assert opened == [1]
    got = tx.restore(BASE, template, missing=patterns, extra="ignore")
    assert [float(x.ravel()[0]) for x in jax.tree.leaves(got)] == [8.0, 1.0, 7.0, 3.0]


def test_files_supply_leaves_by_pattern(tmp_path: Path) -> None:
    """From files, mapped or read, each leaf has the bytes of its own supplier."""
    trees = {name: {name: jnp.full((64, 64), i)} for i, name in enumerate("abc", 1)}
    for name, tree in trees.items():
        tx.save(tmp_path / name, tree)
    template = {name: jax.ShapeDtypeStruct((64, 64), jnp.int32) for name in "abc"}
    for mapped in (False, True):
        got = tx.restore(
            tmp_path / "a",
            template,
            missing={"b": tmp_path / "b", "c": str(tmp_path / "c")},
            mapped=mapped,
        )
        assert {name: int(np.asarray(x)[63, 63]) for name, x in got.items()} == {
            "a": 1,
            "b": 2,
            "c": 3,
        }


def test_a_leaf_that_its_supplier_lacks_is_missing_from_both() -> None:
    match = tx.check(BASE, TEMPLATE, missing={"*lora": INIT, "mlp.*": BASE}, extra="ignore")
    (mismatch,) = match.mismatches
    assert mismatch.found == f"none, and none in {BASE.url}"


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("mlp", '"mlp", which matches none; hint: "mlp.*" matches the leaves below it'),
        ("atn.*", '"atn.*", which matches none; nearest: `attn`'),
        ("MLP.*", '"MLP.*", which matches none; nearest: `mlp`'),
        ("*adapter*", '"*adapter*", which matches none'),
    ],
)
def test_a_pattern_of_missing_that_matches_no_leaf_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(tx.UsageError) as caught:
        tx.check(BASE, TEMPLATE, missing={"*lora*": INIT, pattern: INIT}, extra="ignore")
    expected = "Expected missing= patterns of leaves of the template, got "
    assert str(caught.value) == expected + message


def test_a_pattern_of_missing_whose_leaves_the_checkpoint_has_is_fine() -> None:
    patterns: Any = {"attn.q": "keep", "*lora": INIT, "mlp.*": INIT}
    assert tx.check(BASE, TEMPLATE, missing=patterns, extra="ignore").ok


def test_extra_leaves_are_ignored_by_pattern() -> None:
    template = {"attn": {"q": f32(4, 4)}}
    assert tx.check(BASE, template, extra={"opt.*": "ignore"}).ignored == ("opt.mu",)
    patterns: Any = {"opt.mu": "error", "opt.*": "ignore"}
    assert check_template(BASE, template, extra=patterns) == [("extra", "opt.mu")]
    assert check_template(BASE, {"opt": {"mu": f32(2)}}, extra={"opt.*": "ignore"}) == [
        ("extra", "attn.q")
    ]
    # By the names after `at` and `rename`.
    renamed = {"kernel": f32(4, 4)}
    tx.restore(BASE, renamed, rename={"attn.q": "kernel", "opt": "o"}, extra={"o.*": "ignore"})


def test_an_unused_pattern_of_extra_is_named() -> None:
    """It is no error: the same call restores checkpoints with and without an optimizer's state."""
    match = tx.check(checkpoint_of({"w": jnp.ones(2)}), {"w": f32(2)}, extra={"opt.*": "ignore"})
    assert match.ok
    assert match.unused_patterns == ("opt.*",)
    match = tx.check(BASE, {"attn": {"q": f32(4, 4)}}, extra={"optt.*": "ignore"})
    assert not match.ok
    assert '  no leaf of the checkpoint matches the pattern "optt.*" of extra=' in str(match)


@pytest.mark.parametrize(
    "options",
    [
        {"missing": {"mlp.*": {"w": jnp.ones(2)}}},
        {"missing": {"mlp.*": None}},
        {"missing": {0: "keep"}},
        {"missing": {"mlp.*": "ignore"}},
        {"extra": "opt.*"},
        {"extra": ["opt.*"]},
        {"extra": {"opt.*": "keep"}},
        {"extra": {0: "ignore"}},
    ],
)
def test_what_is_no_choice_is_refused(options: Any) -> None:
    for call in (tx.check, tx.plan, tx.restore):
        with pytest.raises(tx.UsageError, match=r"Expected (missing|extra)="):
            call(BASE, TEMPLATE, **options)


def test_what_was_supplied_kept_and_ignored_is_named_in_the_log_and_the_statistics(
    caplog: pytest.LogCaptureFixture,
) -> None:
    template = {"attn": TEMPLATE["attn"], "mlp": {"w": jnp.ones((4, 4))}}
    patterns: Any = {"mlp.w": "keep", "attn.*": INIT}
    with caplog.at_level(logging.INFO, logger="templax"):
        tx.restore(BASE, template, missing=patterns, extra={"opt.*": "ignore"})
    stats = tx.last_restore()
    assert stats is not None
    assert stats.supplied == {"attn.q_lora": INIT.url}
    assert stats.kept == ("mlp.w",)
    assert stats.ignored == ("opt.mu",)
    told = (
        f"; 1 supplied by {INIT.url}: `attn.q_lora`; 1 kept from the template: `mlp.w`;"
        " 1 of the checkpoint ignored: `opt.mu`"
    )
    assert str(stats).endswith(told)
    assert caplog.records[-1].getMessage() == str(stats)
    made = tx.plan(BASE, template, missing=patterns, extra={"opt.*": "ignore"})
    assert str(made).endswith(
        f"  1 supplied by {INIT.url}: `attn.q_lora`\n"
        "  1 kept from the template: `mlp.w`\n"
        "  1 of the checkpoint ignored: `opt.mu`"
    )


def test_casts_are_named_in_the_log_and_the_statistics() -> None:
    names = [f"w{i}" for i in range(5)]
    stored = checkpoint_of({name: jnp.ones(2) for name in names})
    template = {name: jax.ShapeDtypeStruct((2,), jnp.float16) for name in names}
    with pytest.warns(
        tx.CastWarning, match=r"float32 to float16 \(5: `w0`, `w1`, `w2`, and 2 more\)"
    ):
        tx.restore(stored, template)
    stats = tx.last_restore()
    assert stats is not None
    assert [cast.name for cast in stats.cast_leaves] == names
    told = "; 5 cast from float32 to float16 (40 bytes): `w0`, `w1`, `w2`, and 2 more"
    assert str(stats).endswith(told)


def test_a_value_that_an_equinox_module_keeps_is_named() -> None:
    equinox = pytest.importorskip("equinox")

    class Model(equinox.Module):
        w: jax.Array
        rate: float

    stored = checkpoint_of({"w": jnp.ones(2)})
    got = tx.restore(stored, Model(jnp.zeros(2), 0.5))
    assert got.rate == 0.5
    stats = tx.last_restore()
    assert stats is not None
    assert stats.kept == ("rate",)
    assert str(stats).endswith("; 1 kept from the template: `rate`")


def test_many_supplied_leaves_are_bounded_in_text_and_complete_as_attributes() -> None:
    names = [f"x{i:03}" for i in range(500)]
    many = tx.Recipe(lambda: {name: jnp.zeros(1) for name in names})
    template = {"w": f32(2)} | {name: f32(1) for name in names}
    match = tx.check(checkpoint_of({"w": jnp.ones(2)}), template, missing=many)
    assert list(match.supplied) == names
    assert str(match).endswith("`x000`, `x001`, `x002`, and 497 more")


def test_a_manager_takes_patterns(tmp_path: Path) -> None:
    with tx.Manager(tmp_path) as manager:
        manager.save(1, {"attn": {"q": jnp.ones((4, 4))}}, wait=True)
        template = {"attn": TEMPLATE["attn"]}
        got = manager.restore(template, missing={"*lora": INIT})
        assert float(got["attn"]["q_lora"][0, 0]) == 2.0
        with pytest.raises(tx.TemplateError):
            manager.restore(TEMPLATE, missing={"*lora": INIT})
    # A directory without steps lacks every leaf: patterns that name them all begin anew.
    manager = tx.Manager(tmp_path / "new")
    assert float(manager.restore(template, missing={"attn.*": INIT})["attn"]["q"][0, 0]) == 0.0
    with pytest.raises(tx.NotFound, match=r"step, and missing= does not give `attn\.q`$"):
        manager.restore(template, missing={"*lora": INIT})
