"""Messages and attributes of exceptions, and that they can be pickled."""

from __future__ import annotations

import copy
import pickle
import traceback
from typing import Any

import jax
import pytest

import templax as tx
from helpers import checkpoint_like, f32
from mismatches import mismatched_trees
from templax._match.result import MAX_SHOWN

A = jax.ShapeDtypeStruct


def test_a_template_error_carries_the_match_and_every_mismatch() -> None:
    checkpoint, template = mismatched_trees(MAX_SHOWN + 5)
    with pytest.raises(tx.TemplateError) as caught:
        tx.restore(checkpoint_like(checkpoint), template)
    error = caught.value
    assert isinstance(error, tx.TemplaxError)
    assert isinstance(error, ValueError)
    assert error.mismatches == error.match.mismatches
    assert len(error.mismatches) == MAX_SHOWN + 5
    assert not error.match.ok
    assert str(error) == str(error.match) == str(tx.check(checkpoint_like(checkpoint), template))
    assert str(error) in "".join(traceback.format_exception(error))


def test_a_mismatch_has_the_documented_attributes() -> None:
    with pytest.raises(tx.TemplateError) as caught:
        tx.restore(checkpoint_like({"w": f32(2, 3)}), {"w": f32(3, 2)})
    (m,) = caught.value.mismatches
    assert (m.problem, m.name, m.expected, m.found) == ("shape", "w", "(3, 2)", "(2, 3)")
    assert m.hint is not None
    assert str(m) == f"{m.fact}; hint: {m.hint}"


def error_cases() -> list[Any]:
    wrong: list[tuple[Any, Any, dict[str, Any]]] = [
        ({"w": f32(2)}, {"w": f32(3)}, {}),
        ({"params": {"w": f32(2)}}, {"w": f32(2)}, {}),
        ({"Dense": f32(2)}, {"dense": f32(2)}, {}),
        ({"w": f32(2), "o": f32(2)}, {"w": f32(2)}, {}),
        ({"w": f32(2), "k": 3}, {"w": f32(3), "k": jax.random.key(0), "f": print, "s": ...}, {}),
        (*mismatched_trees(MAX_SHOWN + 9), {}),
        ({"w": f32(2)}, {"w": f32(3)}, {"shardings": jax.devices()[1]}),
        ({"w": f32(2)}, {"w": f32(3)}, {"missing": "keep"}),
    ]
    return [pytest.param(*case, id=str(i)) for i, case in enumerate(wrong)]


@pytest.mark.parametrize(("checkpoint", "template", "options"), error_cases())
def test_a_template_error_survives_pickle_and_copy(
    checkpoint: Any, template: Any, options: Any
) -> None:
    with pytest.raises(tx.TemplateError) as caught:
        tx.restore(checkpoint_like(checkpoint), template, **options)
    error = caught.value
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(error, protocol))  # noqa: S301 - pickled here
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
        tx.MappingError(["`a`: wrong", "`b`: wrong, too"]),
        tx.MissingPackage("needs JAX", name="jax", hint="install it"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_every_other_error_survives_pickle(error: tx.TemplaxError) -> None:
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - pickled here
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_messages_have_fact_place_and_hint() -> None:
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
