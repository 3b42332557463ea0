"""The notation of axes."""

from __future__ import annotations

from contextlib import suppress

import hypothesis.strategies as st
import pytest
from hypothesis import given

from mapping_strategies import AXES, dims, write_dims
from templax._views.axes import (
    flatten_dims,
    format_dims,
    parse_axes,
    parse_dim,
    parse_join_axes,
)


@pytest.mark.parametrize(
    ("text", "left", "right"),
    [
        ("h k -> k h", (("h",), ("k",)), (("k",), ("h",))),
        ("(h k) d -> d h k", (("h", "k"), ("d",)), (("d",), ("h",), ("k",))),
        ("(h k)d->d h k", (("h", "k"), ("d",)), (("d",), ("h",), ("k",))),
        ("h 1 -> h", (("h",), ()), (("h",),)),
        ("h () -> 1 h", (("h",), ()), ((), ("h",))),
        ("(h 1) -> (1 h)", (("h",),), (("h",),)),
        ("(1) -> ()", ((),), ((),)),
        ("h ... -> ... h", (("h",), ("...",)), (("...",), ("h",))),
        (" -> ", (), ()),
        (" -> x", (), (("x",),)),
        ("in1 é -> é in1", (("in1",), ("é",)), (("é",), ("in1",))),
        ("a\tb\n-> b a", (("a",), ("b",)), (("b",), ("a",))),
    ],
)
def test_axes_are_those_of_einops(
    text: str, left: tuple[tuple[str, ...], ...], right: tuple[tuple[str, ...], ...]
) -> None:
    axes = parse_axes(text)
    assert (axes.left, axes.right, axes.text) == (left, right, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("h k", "has no arrow: write the axes as `source -> target`"),
        ("h -> k -> h", "a second arrow at character 8: keep one"),
        ("(h -> h", r"`\(` that nothing closes at character 1: add the `\)`"),
        ("h -> h)", r"`\)` that closes nothing at character 7"),
        ("((h) k) -> h k", r"`\(` inside parentheses at character 2"),
        ("h h -> h", "`h` once more at character 3: name each axis once"),
        ("h -> h (h 1)", "`h` once more"),
        ("h 4 -> h", "the number `4` at character 3: name the axis and give its size, as in `n=4`"),
        ("h 01 -> h", "the number `01`"),
        ("... ... -> ...", "`...` once more"),
        ("(... h) -> h ...", "inside parentheses at character 2: move it out"),
        ("... h -> h", "on one side only: write it on both, or on neither"),
        (".. -> ..", "`..` at character 1: use names"),
        ("...h -> ...h", "`...h` at character 1: use names"),
        ("h-k -> k", "`-` at character 2"),
        ("[h] k -> k h", "brackets are for the axes of a Concat"),
        ("2h -> h", "`2h` at character 1, which is not a name: begin it with a letter"),
        ("_h -> h", "begins or ends with `_`: call it `h`"),
        ("h_ -> h", "begins or ends with `_`: call it `h`"),
        ("_ -> h", "call it `x`"),
        ("scale d -> d", "`scale` at character 1, which is the name of an option"),
        ("h, k -> k h", "`h,` at character 1"),
        ("h" * 1001, "longer than 1,000 characters"),
        (" ".join(f"a{i}" for i in range(33)) + " -> a0", "more than 32 dimensions"),
        (f"({' '.join(f'a{i}' for i in range(65))}) -> a0", "more than 64 axes"),
        (None, "Expected axes as text"),
    ],
)
def test_invalid_axes_are_refused_with_the_place_and_what_to_write(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_axes(text)


def test_an_axis_in_brackets_is_joined() -> None:
    axes = parse_join_axes("(h [f]) 1 ...")
    assert (axes.dims, axes.joined) == ((("h", "f"), (), ("...",)), "f")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("d f", r"has no brackets: .* as in `d \[f\]`"),
        ("[d] [f]", "a second bracket at character 5"),
        ("d [f", "put one name in it"),
        ("d [f g]", "put one name in it"),
        ("d []", "put one name in it"),
        ("d [1]", "put one name in it"),
        ("[...] d", "put one name in it"),
        ("[(h w)] d", "put one name in it"),
        ("d ]f[", "brackets are for|put one name"),
        ("f [f]", "`f` once more"),
        ("d -> [f]", "an arrow at character 3"),
        ("([f] d", "nothing closes"),
        (3, "Expected axes as text"),
    ],
)
def test_invalid_axes_of_a_concat_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_join_axes(text)


def test_a_dimension_has_axes() -> None:
    assert parse_dim("f") == ("f",)
    assert parse_dim(" (h  w) ") == ("h", "w")
    for text in ("", "1", "...", "h w", "()", "h -> w"):
        with pytest.raises(ValueError, match=r"`"):
            parse_dim(text)


@given(dims(list(AXES)), dims(list(AXES)))
def test_axes_are_read_as_they_are_written(left: list[list[str]], right: list[list[str]]) -> None:
    axes = parse_axes(f"{write_dims(left)} -> {write_dims(right)}")
    assert [list(dim) for dim in axes.left] == left
    assert [list(dim) for dim in axes.right] == right
    assert parse_axes(f"{format_dims(axes.left)} -> {format_dims(axes.right)}").left == axes.left
    assert sorted(flatten_dims(axes.left)) == sorted(AXES)


@given(st.text(st.sampled_from("ab ()[].->1_")))
def test_any_text_is_axes_or_refused(text: str) -> None:
    for parse in (parse_axes, parse_join_axes, parse_dim):
        with suppress(ValueError):
            parse(text)
