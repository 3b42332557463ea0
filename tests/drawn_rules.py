"""Rules drawn at random, with leaves that they fit and what numpy makes of these."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import einops
import ml_dtypes
import numpy as np
from hypothesis import strategies as st

import templax as tx

DTYPES = (np.float32, ml_dtypes.bfloat16, np.int8, np.float64, np.int64)


KINDS = ("plain", "plain", "plain", "stack", "unstack", "select", "slice", "flip", "repeat", "pad")


@dataclass
class Rule:
    """A rule drawn at random, the stored leaves that it needs, and what it makes of them."""

    rules: dict[str, Any]
    stored: dict[str, np.ndarray]
    made: dict[str, np.ndarray]
    sizes: dict[str, int] = field(default_factory=dict)


def group(draw: st.DrawFn, axes: list[str]) -> list[list[str]]:
    """Axes in any order, some of them composed."""
    axes = draw(st.permutations(axes))
    dims: list[list[str]] = []
    for axis in axes:
        if dims and draw(st.integers(0, 2)) == 0:
            dims[-1].append(axis)
        else:
            dims.append([axis])
    return dims


def spell(dims: list[list[str]]) -> str:
    return " ".join(dim[0] if len(dim) == 1 else f"({' '.join(dim)})" for dim in dims)


@st.composite
def drawn_rules(draw: st.DrawFn, kinds_of_axes: tuple[str, ...] = KINDS) -> Rule:
    """`From` with axes that are split, merged, transposed, stacked, unstacked, cut, flipped, ..."""
    dtype = draw(st.sampled_from(DTYPES))
    names = "abcdef"[: draw(st.integers(1, 5))]
    sizes = {axis: draw(st.integers(1, 4)) for axis in names}
    kinds = {axis: draw(st.sampled_from(kinds_of_axes)) for axis in names}
    if "i" in kinds.values() or all(kind in ("stack", "repeat") for kind in kinds.values()):
        kinds[names[0]] = "plain"
    left = [a for a in names if kinds[a] not in ("stack", "repeat")]
    right = [a for a in names if kinds[a] not in ("unstack", "select")]
    stacked = [a for a in names if kinds[a] == "stack"]
    unstacked = [a for a in names if kinds[a] == "unstack"]
    left_dims, right_dims = group(draw, left), group(draw, right)
    options: dict[str, Any] = {}
    full = dict(sizes)
    for axis in names:
        if kinds[axis] == "slice":
            start, rest = draw(st.integers(0, 2)), draw(st.integers(0, 2))
            full[axis] = start + sizes[axis] + rest
            options.setdefault("slice", {})[axis] = (start, start + sizes[axis])
        elif kinds[axis] == "select":
            options.setdefault("select", {})[axis] = draw(st.integers(0, sizes[axis] - 1))
        elif kinds[axis] == "flip":
            options["flip"] = [*options.get("flip", []), axis]
        elif kinds[axis] == "pad":
            options.setdefault("pad", {})[axis] = draw(st.sampled_from([0, 3]))
    grown = {a: sizes[a] + (draw(st.integers(0, 2)) if kinds[a] == "pad" else 0) for a in names}
    given_sizes = {
        axis: grown[axis] if kinds[axis] == "pad" else full[axis]
        for axis in {*left, *right} - set(stacked)
        if kinds[axis] in ("repeat", "pad") or len(find_dim(left_dims, axis)) > 1
    }
    # A padded axis has one size on either side; the source's follows from its dimension.
    for axis in names:
        dim = find_dim(left_dims, axis) if axis in left else [axis]
        if kinds[axis] == "pad" and len(dim) > 1:
            del options["pad"][axis]
            if not options["pad"]:
                del options["pad"]
            kinds[axis], grown[axis], given_sizes[axis] = "plain", sizes[axis], sizes[axis]
    shape = [math.prod([full[a] for a in dim]) for dim in left_dims]
    source = "x" + "".join(f".{{{a}}}" for a in stacked)
    target = "y" + "".join(f".{{{a}}}" for a in unstacked)
    stored: dict[str, np.ndarray] = {}
    counter = draw(st.integers(0, 100))
    for index in np.ndindex(*[sizes[a] for a in stacked]):
        name = ".".join(["x", *map(str, index)])
        stored[name] = (np.arange(math.prod(shape)) + counter).reshape(shape).astype(dtype)
        counter += 7
    made: dict[str, np.ndarray] = {}
    for index in np.ndindex(*[sizes[a] for a in unstacked]):
        pieces = [
            take_axes(values, left_dims, full, options, dict(zip(unstacked, index, strict=True)))
            for values in stored.values()
        ]
        order = [a for dim in left_dims for a in dim if a in right]
        whole = np.stack(pieces).reshape([*[sizes[a] for a in stacked], *pieces[0].shape])
        order = stacked + order
        for axis in right:
            if kinds[axis] == "repeat":
                whole = np.repeat(whole[None], sizes[axis], axis=0)
                order = [axis, *order]
        for axis in [a for dim in right_dims for a in dim]:  # one after the other
            if kinds[axis] == "pad":
                k = order.index(axis)
                width = [(0, 0)] * whole.ndim
                width[k] = 0, grown[axis] - sizes[axis]
                fill = np.array(options["pad"][axis]).astype(dtype)
                whole = np.pad(whole.astype(np.float64), width, constant_values=float(fill))
                whole = whole.astype(dtype)
        pattern = f"{' '.join(order)} -> {spell(right_dims)}"
        name = ".".join(["y", *map(str, index)])
        made[name] = einops.rearrange(whole, pattern) if order else whole.reshape(())
    axes = f"{spell(left_dims)} -> {spell(right_dims)}"
    return Rule({target: tx.From(source, axes, **options, **given_sizes)}, stored, made)


def find_dim(dims: list[list[str]], axis: str) -> list[str]:
    return next((dim for dim in dims if axis in dim), [])


def take_axes(
    values: np.ndarray,
    left: list[list[str]],
    full: dict[str, int],
    options: dict[str, Any],
    unstacked: dict[str, int],
) -> np.ndarray:
    """A source with one dimension for each axis that its target has."""
    axes = [a for dim in left for a in dim]
    values = values.reshape([full[a] for a in axes])
    index: list[Any] = []
    for axis in axes:
        if axis in unstacked:
            index.append(unstacked[axis])
        elif axis in options.get("select", {}):
            index.append(options["select"][axis])
        elif axis in options.get("slice", {}):
            index.append(slice(*options["slice"][axis]))
        else:
            index.append(slice(None, None, -1 if axis in options.get("flip", []) else None))
    return values[tuple(index)]
