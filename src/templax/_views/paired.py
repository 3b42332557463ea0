"""Families of two trees that are taken for the same, and what they must have in common. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .._core.dtypes import class_of, may_cast
from .axis_guesses import Guess
from .families import Family, Leaf, Pairing

LEAST = 0.3
"""How much two names must have in common."""


@dataclass(slots=True)
class Found:
    """A family of the template, and what it is made of.

    Attributes:
        target, source: The families.
        pairings: The names of its rules.
        guesses: All axes that fit.
        score: How much the names have in common.
        options: More arguments of `From`.
        cut: The dimension of the fused leaf and the range of it that is this part, if it is one.
        is_joined: Whether the target is the fused leaf, and has a `Found` for each part.
        tied: Whether the source fills another target, too.
    """

    target: Family
    source: Family
    pairings: Sequence[Pairing]
    guesses: Sequence[Guess]
    score: float
    options: Mapping[str, object] = field(default_factory=dict[str, object])
    cut: tuple[int, int, int] | None = None
    is_joined: bool = False
    tied: bool = False


def count_elements(family: Family) -> int:
    """The number of elements of all leaves of a family."""
    return sum(math.prod(leaf.shape) for leaf in family.members.values())


def may_be_cast(source: Leaf, target: Leaf) -> bool:
    """Whether a leaf may be restored into another, as far as its kind and dtype go."""
    numeric = ("array", "scalar")
    if source.kind not in numeric or target.kind not in numeric:
        return source.kind == target.kind and source.key_impl == target.key_impl
    if "scalar" in (source.kind, target.kind):
        return source.shape == target.shape
    if class_of(source.dtype) != class_of(target.dtype):
        return False  # integers in place of floats are quantised
    return source.dtype == target.dtype or may_cast(source.dtype, target.dtype, "float")
