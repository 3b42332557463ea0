"""What the calls take, what they refuse by name, and what they announce."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import templax as tx
from templax.sources import Local, Memory

CASE = Path(__file__).parents[1] / "corpus" / "orbax-0.12.8-default" / "ckpt"
A = jax.ShapeDtypeStruct
SCALE = {"scale": A((), jnp.float32)}


def restore(checkpoint: Any = CASE, template: Any = SCALE, **options: Any) -> Any:
    """One leaf of a subtree."""
    return tx.restore(checkpoint, template, **{"at": "state.params", "extra": "ignore"} | options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"cast": "any"}, "Expected cast= one of float, widen, exact, got 'any'"),
        ({"extra": "keep"}, 'Expected extra="error" or "ignore", got \'keep\''),
        ({"at": None}, "Expected at= the name of a subtree (str), got None"),
        ({"at": ("state",)}, "Expected at= the name of a subtree (str), got ('state',)"),
        (
            {"missing": "ignore"},
            'Expected missing="error", "keep" or a checkpoint, got \'ignore\','
            " where there is nothing",
        ),
        (
            {"missing": None},
            "Expected a path, Source, Catalog or Recipe as checkpoint, got NoneType",
        ),
        ({"checkpoint": 3}, "Expected a path, Source, Catalog or Recipe as checkpoint, got int"),
        ({"checkpoint": ""}, 'Expected a path, got ""'),
        ({"rename": 5}, "Expected rename= a dict of names (str) or a function, got 5"),
        (
            {"rename": {"a": None}},
            "Expected rename= a dict of names (str) or a function, got {'a': None}",
        ),
        ({"rename": lambda name: None}, "Expected a name (str) from rename('big'), got None"),
        ({"threads": 0}, "Expected threads= a number of at least 1, got 0"),
        ({"threads": "x"}, "Expected threads= a number of at least 1, got 'x'"),
    ],
)
def test_arguments_that_mean_nothing(options: dict[str, Any], text: str) -> None:
    with pytest.raises(tx.UsageError) as caught:
        restore(**options)
    assert str(caught.value) == text


def test_uncommitted_takes_two_words() -> None:
    with pytest.raises(tx.UsageError, match='Expected uncommitted="error" or "allow", got True'):
        tx.open(CASE, uncommitted=True)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "checkpoint",
    [
        str(CASE),
        CASE,
        f"{CASE}/",
        f"file://{CASE}",
        Local(CASE),
        Memory({str(p.relative_to(CASE)): p.read_bytes() for p in CASE.rglob("*") if p.is_file()}),
        tx.open(CASE),
        tx.Recipe(lambda: {"state": {"params": {"scale": jnp.float32(2)}}}),
    ],
    ids=["str", "Path", "slash", "url", "Local", "Memory", "Catalog", "Recipe"],
)
def test_what_may_stand_for_a_checkpoint(checkpoint: Any) -> None:
    assert restore(checkpoint)["scale"].dtype == jnp.float32
    assert tx.check(checkpoint, SCALE, at="state.params", extra="ignore").ok


def test_an_uncommitted_checkpoint_is_read_on_explicit_request_only() -> None:
    path = CASE.parents[1] / "damaged-uncommitted" / "ckpt"
    for call in (tx.open, restore, lambda p: tx.check(p, SCALE)):
        with pytest.raises(tx.Uncommitted) as caught:
            call(path)
        assert str(caught.value) == (
            f"{path} is not a committed checkpoint: `_CHECKPOINT_METADATA` has no commit time and"
            " there is no `commit_success.txt`; hint: to read it all the same, restore from"
            f' tx.open("{path}", uncommitted="allow")'
        )
    catalog = tx.open(path, uncommitted="allow")
    assert catalog.uncommitted
    assert restore(catalog)["scale"].dtype == jnp.float32


def test_missing_may_be_another_path() -> None:
    other = CASE.parents[1] / "orbax-0.12.8-zarr3" / "ckpt"
    got = tx.restore(
        tx.Recipe(lambda: {"state": {"params": {"scale": jnp.float32(7)}}}),
        {"scale": A((), jnp.float32), "zeros": A((4, 4), jnp.float32)},
        at="state.params",
        missing=other,
    )
    assert (float(got["scale"]), float(got["zeros"].sum())) == (7, 0)


def test_the_longest_prefix_is_renamed_once() -> None:
    stored = tx.Recipe(lambda: {"a": {"b": jnp.zeros(2), "c": jnp.ones(2)}, "b": jnp.full(2, 2.0)})
    template = {
        "x": {"c": A((2,), jnp.float32)},
        "y": A((2,), jnp.float32),
        "a": A((2,), jnp.float32),
    }
    got = tx.restore(stored, template, rename={"a": "x", "a.b": "y", "b": "a"})
    assert [float(got[k].sum()) for k in "ya"] == [0, 4]
    assert float(got["x"]["c"].sum()) == 2


def test_a_rename_function_sees_names_below_at() -> None:
    seen: list[str] = []

    def rename(name: str) -> str:
        seen.append(name)
        return name.upper()

    got = restore(template={"SCALE": A((), jnp.float32)}, rename=rename)
    assert "scale" in seen
    assert "SCALE" in got


def test_one_warning_for_all_casts_that_points_to_the_caller() -> None:
    stored = tx.Recipe(lambda: {"a": jnp.ones(4), "b": jnp.ones((2, 2)), "c": jnp.int8([1])})
    template = {"a": A((4,), jnp.bfloat16), "b": A((2, 2), jnp.float16), "c": A((1,), jnp.int32)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tx.restore(stored, template)
    (warning,) = [w for w in caught if w.category is tx.CastWarning]
    assert warning.filename == __file__
    text = str(warning.message)
    assert text.startswith("3 of 3 leaves of Recipe(")
    assert "float32 to bfloat16 (1), float32 to float16 (1), int8 to int32 (1); 33 bytes, " in text
    assert text.endswith(' s; cast="exact" refuses this')


def test_a_report_says_what_a_restore_would_do() -> None:
    stored = tx.Recipe(lambda: {"a": jnp.ones(4), "b": jnp.ones(3), "c": jnp.ones(2)})
    template = {"a": A((4,), jnp.bfloat16), "new": jnp.ones(1), "f": print, "b": ...}
    match = tx.check(stored, template, missing="keep", extra="ignore")
    assert str(match) == "\n".join(
        [
            f"1 of 2 leaves match {match.url}, the others keep the template's values",
            "  1 cast from float32 to bfloat16 (16 bytes)",
            "  1 kept from the template: `new`",
            "  2 without data, left as in the template: `b`, `f`",
            "  2 of the checkpoint ignored: `b`, `c`",
        ]
    )
    assert str(
        tx.check(stored, {k: A((n,), jnp.float32) for k, n in zip("abc", (4, 3, 2), strict=True)})
    ) == (f"all 3 leaves match {match.url}")


def test_a_long_report_shows_twenty_and_counts_the_rest() -> None:
    stored = tx.Recipe(lambda: {"old": {f"w{i}": jnp.ones(2) for i in range(30)}})
    template = {
        "new": {f"w{i:02}": A((5,), jnp.float32) for i in range(15)},
        "old": {f"w{i}": A((3,), jnp.float32) for i in range(10)},
    }
    lines = str(tx.check(stored, template)).split("\n")
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
    stored = tx.Recipe(
        lambda: {
            "w": jnp.ones(2),
            "opt": {f"m{i}": jnp.ones(2) for i in range(25)},
            "ema": {f"m{i}": jnp.ones(2) for i in range(5)},
        }
    )
    lines = str(tx.check(stored, {"w": A((2,), jnp.float32)})).split("\n")
    assert lines[0].endswith("are not in the template, under `opt` (25), `ema` (5)")
    assert lines[-1] == '  hint: extra="ignore"'
