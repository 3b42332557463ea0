"""Strategies for mappings that are valid, whatever trees they meet."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st

import templax as tx

AXES = ("a", "b", "c", "h", "k", "four")
PLACEHOLDERS = ("i", "j", "e")

literals = st.text(st.sampled_from("abwx_0.{}é/~ ") | st.characters(), max_size=8).map(
    lambda text: text.replace("{", "{{").replace("}", "}}")
)
names = st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=4, unique=True)


@st.composite
def dims(draw: st.DrawFn, axes: list[str]) -> list[list[str]]:
    """The axes in any order, divided into dimensions, with unit axes between them."""
    found: list[list[str]] = []
    for axis in draw(st.permutations(axes)):
        if found and draw(st.booleans()):
            found[-1].append(axis)
        else:
            found.append([axis])
        if draw(st.integers(0, 9)) == 0:
            found.append([])
    return found


def write_dims(dims: list[list[str]]) -> str:
    return " ".join(d[0] if len(d) == 1 else f"({' '.join(d)})" for d in dims)


@st.composite
def patterns(draw: st.DrawFn, placeholders: list[str]) -> str:
    """A name with placeholders, each an integer between text that has no digits there."""
    text = draw(literals).lstrip("$")
    for name in placeholders:
        form = draw(st.sampled_from(("{%s}", "{%s+2}", "{%s-1}", "{%s:03}")))
        text += "n" + form % name + "." + draw(literals)
    return text


@st.composite
def sources(draw: st.DrawFn, shared: list[str], right: list[str] | None = None) -> tx.From:
    """A source of a target with the placeholders `shared`, and the axes `right` if it is a part."""
    stacked = draw(st.lists(st.sampled_from(("e", "q")), unique=True)) if right is None else []
    name = draw(patterns([*shared, *stacked]))
    options: dict[str, Any] = {}
    numbers = st.integers(-9, 9) | st.floats(-9, 9)
    if draw(st.booleans()):
        options["scale"] = draw(numbers)
    if right is None and not stacked and draw(st.booleans()):
        return tx.From(name, **options)
    if right is None:
        axes = draw(st.lists(st.sampled_from(AXES), unique=True, min_size=1))
    else:
        axes = right
    picked = draw(st.lists(st.sampled_from(("s", "t")), unique=True, max_size=2))
    left = draw(dims([*axes, *picked]))
    rest = right is None and draw(st.booleans())
    text = f"{write_dims(left)}{' ...' if rest else ''} -> "
    text += write_dims(draw(dims([*axes, *stacked]))) + (" ..." if rest else "")
    options["select"] = {axis: draw(st.integers(0, 3)) for axis in picked}
    flat = st.lists(st.sampled_from(axes), unique=True)
    fills = numbers | st.sampled_from(("inf", "-inf", math.inf))
    options["pad"] = {axis: draw(fills) for axis in draw(flat)}
    options["crop"] = draw(flat)
    options["flip"] = draw(flat)
    if draw(st.booleans()):
        options["add"] = f"{draw(st.sampled_from(axes))}**-0.5 / ({draw(st.integers(1, 9))} + 1)"
    start = draw(st.integers(0, 5))
    dim = draw(st.sampled_from([d for d in left if d and not {*d} & {*picked}] or [[]]))
    if dim:
        options["slice"] = {write_dims([dim]): (start, start + draw(st.integers(1, 5)))}
    sizes = {axis: draw(st.integers(1, 9)) for axis in draw(flat)}
    given_names = {axis: draw(names) for axis in stacked if f"{{{axis}}}" in name}
    return tx.From(name, text, **options, **sizes, **given_names)


@st.composite
def rules(draw: st.DrawFn, shared: list[str]) -> str | tx.From | tx.Concat:
    if not shared and draw(st.integers(0, 3)) == 0:
        return draw(patterns([]))
    if draw(st.integers(0, 3)):
        return draw(sources(shared))
    axes = draw(st.lists(st.sampled_from(AXES), unique=True, min_size=1))
    joined = draw(st.sampled_from(axes))
    text = write_dims(draw(dims([f"[{axis}]" if axis == joined else axis for axis in axes])))
    parts = draw(st.lists(sources(shared, axes) | patterns(shared), min_size=1, max_size=3))
    return tx.Concat(parts, text)


@st.composite
def mappings(draw: st.DrawFn) -> tx.Mapping:
    found: dict[str, Any] = {}
    for _ in range(draw(st.integers(0, 4))):
        shared = draw(st.lists(st.sampled_from(("i", "j")), unique=True))
        found[draw(patterns(shared))] = draw(rules(shared))
    drop = draw(st.lists(st.sampled_from(("*.inv_freq", "a.{i}.b", "w?")), unique=True))
    return tx.Mapping(found, drop=drop, rest=draw(st.sampled_from(("error", "keep"))))
