"""Expressions of sizes of axes."""

from __future__ import annotations

import ast
import time
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from templax._views.expressions import parse_expression

SIZES = {"k": 64, "h": 8, "d": 512}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("k**-0.5", 0.125),
        ("k ** 0.5", 8.0),
        ("-k**2", -4096.0),
        ("2**-k**0", 0.5),
        ("2**3**2", 512.0),
        ("d / h / k", 1.0),
        ("d - h - k", 440.0),
        ("1 + 2 * 3", 7.0),
        ("(1 + 2) * 3", 9.0),
        ("--2", 2.0),
        ("2 * -3", -6.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("1e3 + 2E-1", 1000.2),
        (3, 3.0),
        (-0.25, -0.25),
        (1e300, 1e300),
        (10**30, 1e30),
    ],
)
def test_an_expression_has_the_value_that_python_gives_it(value: Any, expected: float) -> None:
    assert parse_expression(value).evaluate(SIZES) == expected


def test_an_expression_lists_its_axes() -> None:
    assert parse_expression("(k * h)**-0.5 / k").names == {"k", "h"}
    assert parse_expression(3).names == frozenset()
    assert parse_expression("k") == parse_expression("k")
    assert parse_expression(2).text == "2"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "has nothing where it can't stand"),
        ("k +", "has the end where"),
        ("+k", r"`\+` at character 1"),
        ("k h", "`h` at character 3"),
        ("2k", "`k` at character 2"),
        ("k()", r"`\)` at character 3|`\(` at character 2"),
        ("(k", "the end"),
        ("k)", r"`\)` at character 2"),
        ("k // h", "`/` at character 4"),
        ("k % h", "`%` at character 3"),
        ("k.real", r"`\.` at character 2"),
        ("k[0]", r"`\[` at character 2"),
        ("k if h else d", "`if` at character 3"),
        ("lambda: k", "`:` at character 7"),
        ("__import__('os')", "`__import__` at character 1, which begins or ends with `_`"),
        ("'k'", "`'` at character 1"),
        ("0x10", "`x10` at character 2"),
        ("1_000", "`_000` at character 2"),
        ("1j", "`j` at character 2"),
        ("k == h", "`=` at character 3"),
        ("٣", "`٣` at character 1"),
        ("9**9**9", "too large"),
        ("1e308**9", "too large"),
        ("1e308 * 10", "not a finite"),
        ("1 / 0", "divides by zero"),
        ("0**-1", "divides by zero"),
        ("(-1)**0.5", "not a finite"),
        ("1e999", "not a finite"),
        ("1e999 - 1e999", "not a finite"),
        ("(" * 50 + "k" + ")" * 50, "more than 20 levels"),
        ("-" * 50 + "k", "more than 20 levels"),
        ("**".join("k" * 50), "more than 20 levels"),
        ("k" * 201, "longer than 200"),
        (float("nan"), "finite"),
        (float("inf"), "finite"),
        (10**400, "larger"),
        pytest.param(10**5000, "larger", id="many digits"),
        (10**250, "longer than 200"),
        (True, "Expected a number or an expression"),
        (None, "Expected a number or an expression"),
        ([], "Expected a number or an expression"),
    ],
)
def test_nothing_else_is_an_expression(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_expression(value)


@pytest.mark.parametrize(
    ("text", "sizes", "message"),
    [
        ("k**-0.5", {}, "needs the size of `k`"),
        ("1 / (k - 64)", SIZES, "divides by zero"),
        ("9**9**k", SIZES, "too large"),
        ("(h - k)**0.5", SIZES, "not a finite"),
        ("k", {"k": 10**400}, "too large"),
    ],
)
def test_a_value_that_is_no_number_is_refused(
    text: str, sizes: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        parse_expression(text).evaluate(sizes)


def test_many_levels_side_by_side_are_allowed() -> None:
    assert parse_expression(" + ".join(["-1"] * 39)).evaluate({}) == -39


@given(st.text(st.sampled_from("k12.e+-*/() "), max_size=30))
def test_what_is_accepted_means_what_it_means_in_python(text: str) -> None:
    begin = time.process_time()
    try:
        value = parse_expression(text).evaluate({"k": 3})
    except ValueError:
        return
    finally:
        assert time.process_time() - begin < 1
    tree = ast.parse(text.strip(), mode="eval")
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            node.value = float(node.value)
    assert eval(compile(tree, "", "eval"), {"k": 3.0}) == value  # noqa: S307
