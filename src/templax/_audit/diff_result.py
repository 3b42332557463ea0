"""The result of comparing two checkpoints, and its text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from .._catalog.entry import LeafEntry
from .._core.dtypes import UNNAMED_BYTE
from .._core.text import be_verb, leaf_noun, list_names, quote_text
from .._escape import join_lines
from .._match.result import MAX_SHOWN
from .diff_values import ValueDiff

Difference = Literal["only_a", "only_b", "ambiguous", "kind", "shape", "dtype", "values"]

Basis = Literal["fingerprint", "read"]

_ORDER: tuple[Difference, ...] = (
    "only_a",
    "only_b",
    "ambiguous",
    "kind",
    "shape",
    "dtype",
    "values",
)

_MAX_TEXT = 40
"""Characters of a string leaf that are shown."""


@dataclass(frozen=True, slots=True)
class LeafDiff:
    """One leaf name, in the two checkpoints.

    Attributes:
        name: The name: in A after `at` and `rename`, in B after `at_b`.
        a, b: The leaf of each checkpoint; None where it has none of that name.
        differences: In what they differ: `"only_a"` or `"only_b"`, if only one has it;
            `"ambiguous"`, if several leaves of a checkpoint have the name, which are not compared;
            `"kind"` (an array or number, a string, a typed PRNG key), `"shape"`, `"dtype"`,
            `"values"`. Empty if nothing that was compared differs.
        basis: How the values were compared: by the `"fingerprint"` that both checkpoints record, or
            because both were `"read"`. None if they were not.
        values: How the values differ, if they were read; None for strings.
        note: Why the values were not compared, or what else is to be said of them.
    """

    name: str
    a: LeafEntry | None
    b: LeafEntry | None
    differences: tuple[Difference, ...] = ()
    basis: Basis | None = None
    values: ValueDiff | None = None
    note: str | None = None

    def __str__(self) -> str:
        return join_lines([f"`{self.name}`: {', '.join(_describe(self)) or 'no difference'}"])


@dataclass(frozen=True, slots=True, repr=False)
class Diff:
    """The differences of two checkpoints. `str(diff)` is the report.

    Attributes:
        a, b: The URLs of the checkpoints.
        format_a, format_b: Their formats.
        leaves: One per leaf name. Those that differ come first, the most different ones at the top:
            what only one has, kinds, shapes and dtypes, then values, by `distance`; then the others
            in the order of A.
        shardings: Names of the leaves that were saved with different shardings. This does not count
            as a difference, either.
        empties: Names at which only one records an empty value, such as `{}` or None, or each
            another. Many formats record none, so this does not count as a difference.
        seconds: Wall-clock time.
        unread: Names of leaves of A or B that templax can't read, so that they were not compared.
    """

    a: str
    b: str
    format_a: str
    format_b: str
    leaves: tuple[LeafDiff, ...]
    shardings: tuple[str, ...]
    empties: tuple[str, ...]
    seconds: float
    unread: tuple[str, ...] = ()

    @property
    def differing(self) -> tuple[LeafDiff, ...]:
        """The leaves that differ, the most different ones first."""
        return tuple(leaf for leaf in self.leaves if leaf.differences)

    @property
    def differs(self) -> bool:
        """Whether any difference was found, in what was compared."""
        return any(leaf.differences for leaf in self.leaves)

    @property
    def identical(self) -> bool:
        """Whether both hold the same leaves, bit for bit, and all of their values were compared."""
        same = all(not leaf.differences and leaf.basis is not None for leaf in self.leaves)
        return same and not self.unread

    @property
    def by_fingerprint(self) -> int:
        """How many leaves were compared by the fingerprints that both checkpoints record."""
        return sum(leaf.basis == "fingerprint" for leaf in self.leaves)

    @property
    def by_reading(self) -> int:
        """How many leaves were read and compared."""
        return sum(leaf.basis == "read" for leaf in self.leaves)

    def __repr__(self) -> str:
        n = len(self.differing)
        return f"Diff({self.a!r}, {self.b!r}, {n:,} of {len(self.leaves):,} leaves differ)"

    def __str__(self) -> str:
        return format_diff(self)


def rank(leaf: LeafDiff) -> tuple[float, ...]:
    """The key that sorts leaves by how much they differ, the most different ones first."""
    if not leaf.differences:
        return (len(_ORDER),)
    first = min(map(_ORDER.index, leaf.differences))
    values = leaf.values
    if values is None:
        return first, 0
    new_nonfinite = values.nan_a != values.nan_b or values.inf_a != values.inf_b
    distance = math.inf if values.distance is None else values.distance
    return first, 1, -new_nonfinite, -distance, -values.max_rel, -values.differing


def format_diff(
    diff: Diff, maximum: int | None = MAX_SHOWN, rest: str = "`diff.differing` has them all"
) -> str:
    """The text of `str(diff)`: the verdict, then a line for each leaf that differs.

    Args:
        diff: The result.
        maximum: Most leaves to show; None for all.
        rest: Says where to find the others.
    """
    differing, n = diff.differing, len(diff.leaves)
    lines = [f"A: {diff.a} ({diff.format_a})", f"B: {diff.b} ({diff.format_b})"]
    compared = diff.by_fingerprint + diff.by_reading
    if differing:
        verb = "differs" if len(differing) == 1 else "differ"
        lines.append(f"{len(differing):,} of {n:,} {leaf_noun(n)} {verb} ({diff.seconds:.2f} s)")
    elif diff.identical:
        lines.append(f"identical: {n:,} {leaf_noun(n)} ({diff.seconds:.2f} s)")
    else:
        n += len(diff.unread)
        lines.append(
            f"no difference found, but the values of {n - compared:,} of {n:,} {leaf_noun(n)}"
            f" were not compared ({diff.seconds:.2f} s)"
        )
    shown = differing[:maximum]
    width = max((len(leaf.name) for leaf in shown if len(leaf.name) <= 40), default=0)
    for leaf in shown:
        lines.append(f"  {leaf.name.ljust(width)}  {'; '.join(_describe(leaf))}")
    if len(differing) > len(shown):
        lines.append(f"  and {len(differing) - len(shown):,} more ({rest})")
    lines += [f"  {line}" for line in _list_remarks(diff)]
    return join_lines(lines)


def _list_remarks(diff: Diff) -> Iterator[str]:
    """What else is to be said of a comparison: how the leaves were compared, and shardings."""
    equal = [leaf for leaf in diff.leaves if not leaf.differences]
    same = [leaf for leaf in equal if leaf.basis is not None]
    if same:
        told = sum(leaf.basis == "fingerprint" for leaf in same)
        how = [f"{told:,} by fingerprint"] * bool(told)
        how += [f"{len(same) - told:,} by reading"] * bool(len(same) - told)
        verb = "is" if len(same) == 1 else "are"
        yield f"{len(same):,} {leaf_noun(len(same))} {verb} identical: {', '.join(how)}"
    if diff.differs and len(same) < len(equal):
        count = len(equal) - len(same)
        yield f"the values of {count:,} other {leaf_noun(count)} were not compared"
    notes: dict[str, list[str]] = {}
    for leaf in equal:
        if leaf.basis is None and leaf.note is not None:
            notes.setdefault(leaf.note, []).append(leaf.name)
    for note, names in notes.items():
        yield f"{note} ({list_names(names)})"
    if diff.unread:
        count = len(diff.unread)
        yield f"templax does not read {count:,} {leaf_noun(count)}: {list_names(diff.unread)}"
    if diff.shardings:
        count = len(diff.shardings)
        yield (
            f"{count:,} {leaf_noun(count)} {be_verb(diff.shardings)} saved with different"
            f" shardings: {list_names(diff.shardings)}"
        )
    if diff.empties:
        yield f"empty values differ at {list_names(diff.empties)}"


def _describe(leaf: LeafDiff) -> list[str]:
    """The differences of a leaf in words."""
    parts: list[str] = []
    a, b = leaf.a, leaf.b
    for what in leaf.differences:
        if what == "only_a" and a is not None:
            parts.append(f"only in A: {a.dtype_name}{a.user_shape}")
        elif what == "only_b" and b is not None:
            parts.append(f"only in B: {b.dtype_name}{b.user_shape}")
        elif a is None or b is None or what in ("ambiguous", "values"):
            continue
        elif what == "kind":
            parts.append(f"{_name_kind(a)} in A, {_name_kind(b)} in B")
        elif what == "shape":
            parts.append(f"shape {a.user_shape} in A, {b.user_shape} in B")
        else:
            parts.append(f"{a.dtype_name} in A, {b.dtype_name} in B")
    if leaf.values is not None:
        parts += _describe_values(leaf.values, "dtype" in leaf.differences)
    elif "values" in leaf.differences and a is not None and b is not None:
        if a.value is not None and b.value is not None:
            parts.append(f"{_shorten(a.value)} in A, {_shorten(b.value)} in B")
        else:
            parts.append("the recorded fingerprints differ")
    if leaf.note is not None:
        parts.append(leaf.note)
    return parts


_KINDS = {"array": "an array", "scalar": "a number", "string": "a string", "key": "a PRNG key"}


def _name_kind(entry: LeafEntry) -> str:
    return _KINDS[entry.kind]


def _shorten(text: str) -> str:
    return quote_text(text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "...")


def _describe_values(values: ValueDiff, widened: bool) -> list[str]:
    """How values differ, in words."""
    n = values.elements
    start = f"as {values.compared_as}, " if widened else ""
    if not values.differing:
        return [f"{start}all values are equal"] if widened else []
    facts = [f"{start}{values.differing:,} of {n:,} elements differ"]
    if not values.unequal:
        facts[0] += " in bits only (the sign of zero, or of NaN its payload)"
        return facts
    if values.unequal < values.differing:
        facts[0] += f", {values.differing - values.unequal:,} of them in bits only"
    if values.compared_as == UNNAMED_BYTE.name:
        return [f"{facts[0]}, compared as bytes, since the files do not say their dtype"]
    parts = [f"max abs {_format(values.max_abs)}", f"max rel {_format(values.max_rel)}"]
    if values.max_ulps is not None:
        parts.append(f"max ULPs {values.max_ulps:,}")
    if values.cosine is not None:
        parts.append(f"cosine {values.cosine:.6f}")
    if any((values.nan_a, values.nan_b, values.inf_a, values.inf_b)):
        parts[-1] += " (of the elements that are finite in both)"
    facts.append(", ".join(parts))
    counts = (("NaN", values.nan_a, values.nan_b), ("Inf", values.inf_a, values.inf_b))
    facts += [f"{what} {x:,} in A, {y:,} in B" for what, x, y in counts if x or y]
    return facts


def _format(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:.3g}"


def sort_leaves(leaves: Sequence[LeafDiff]) -> tuple[LeafDiff, ...]:
    """The leaves by how much they differ, the most different ones first; else in their order."""
    return tuple(sorted(leaves, key=rank))
