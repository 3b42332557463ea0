"""The result of a match, its text, and the error that carries it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from .._catalog.entry import LeafEntry
from .._core.dtypes import class_of, is_lossless
from .._core.text import be_verb, leaf_noun, list_names, quote_text
from .._escape import join_lines
from .._template.template import Target, Template
from ..errors import Mismatch, TemplaxError

MAX_SHOWN = 20
"""How many mismatches a report shows; the rest are only counted."""


class Pair(msgspec.Struct, frozen=True, gc=False):
    """A target and the leaf that fills it.

    Attributes:
        target: The leaf of the template.
        entry: The leaf of the checkpoint.
        source: 0 if `entry` is of the checkpoint itself; otherwise the position, counted from 1,
            of its supplier among the checkpoints given as `missing=`.
    """

    target: Target
    entry: LeafEntry
    source: int = 0

    @property
    def by_value(self) -> bool:
        """Whether the leaf fits only if its value, an `int`, is within the range of the target."""
        target, entry = self.target, self.entry
        return (
            entry.kind == "scalar"
            and target.kind == "array"
            and class_of(entry.dtype) == "int"
            and not is_lossless(entry.dtype, target.dtype)
        )


class CastNote(msgspec.Struct, frozen=True, gc=False):
    """A leaf that is cast.

    Attributes:
        name: The leaf.
        stored: Name of the dtype in the checkpoint.
        wanted: Name of the dtype in the template.
        nbytes: Size of the leaf as stored.
    """

    name: str
    stored: str
    wanted: str
    nbytes: int


@dataclass(frozen=True, slots=True, repr=False)
class Match:
    """The comparison of a checkpoint with a template. `str(match)` is the report.

    Attributes:
        url: The checkpoint.
        template: The template.
        pairs: The targets that a leaf fills, each with its leaf, in template order.
        supplied: Names of template leaves that the checkpoint lacks, each with the URL of the one
            given as `missing=` that supplies it.
        kept: Names of template leaves that keep the template's own value: because of
            `missing="keep"`, or Python values of an Equinox module that the checkpoint lacks.
        skipped: Names of template leaves without data: `...`, functions, static values.
        ignored: Names of leaves of the checkpoint that are not restored, because of
            `extra=` or because the template has `...` in their place.
        unused_patterns: Patterns of `extra=` that match no leaf of the checkpoint.
        mismatches: All differences, in template order, extra leaves last. Empty if `ok`.
        casts: All leaves that are cast.
        viewed: Names of template leaves of which the checkpoint does not say the dtype, only that
            an element has one byte, each with the dtype that it is read as.
        aligned: Whether the file has no names, so that its leaves are the template's in order.
        summary: One sentence that explains all mismatches, if there is one. Control
            characters are escaped, as it may contain names.
        rename: The complete mapping that a `rename=` hint proposes; the text may shorten it.
        undecidable: Names of square leaves that fit, but may be transposed: others of their name
            are, or a hint renames them from PyTorch's `weight` to Flax's `kernel` or back, or maps
            them by what their neighbours are. Whether they are transposed, their shape can't tell.
    """

    url: str
    template: Template
    pairs: tuple[Pair, ...] = ()
    supplied: Mapping[str, str] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    unused_patterns: tuple[str, ...] = ()
    mismatches: tuple[Mismatch, ...] = ()
    casts: tuple[CastNote, ...] = ()
    viewed: Mapping[str, str] = field(default_factory=dict)
    aligned: bool = False
    summary: str | None = None
    rename: Mapping[str, str] | None = None
    undecidable: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether `restore` would succeed."""
        return not self.mismatches

    def __bool__(self) -> bool:
        """The same as `ok`, so that `assert tx.check(...)` fails on a mismatch."""
        return self.ok

    def __repr__(self) -> str:
        n = len(self.mismatches)
        verdict = "ok" if self.ok else f"{n:,} mismatch{'' if n == 1 else 'es'}"
        return f"Match({self.url!r}, {len(self.pairs):,} leaves matched, {verdict})"

    def portable(self) -> Match:
        """The same report without devices and open files, which can't be pickled."""
        targets = tuple(msgspec.structs.replace(t, placement=None) for t in self.template.targets)
        return replace(self, template=Template(targets), pairs=())

    def __str__(self) -> str:
        return format_match(self)


class TemplateError(TemplaxError, ValueError):
    """The checkpoint does not match the template. Raised before any array data is read.

    Attributes:
        match: The whole comparison.
        mismatches: All differences, in template order. The text shows the first 20.

    If the checkpoint does not match the template of another process of the job, the text is that of
    its error, and `match` is the comparison with the template of this process.
    """

    def __init__(self, match: Match, text: str | None = None):
        ValueError.__init__(self, str(match) if text is None else text)  # already escaped
        self.match = match
        self.mismatches: tuple[Mismatch, ...] = match.mismatches

    def __reduce__(self) -> tuple[type[TemplateError], tuple[Match, str]]:
        return type(self), (self.match.portable(), str(self))


def format_match(match: Match) -> str:
    """The text of `str(match)` and of `TemplateError`.

    One sentence about the whole tree, then a line for each mismatch with the leaf, a note and a
    hint. After 20 lines, the rest is counted by kind and subtree. A hint that several mismatches
    share is printed once, at the end.
    """
    if match.ok:
        return join_lines([_format_verdict(match), *_format_remarks(match)])
    if match.summary is not None:
        return join_lines(match.summary.split("\n"))
    extras = [m.name for m in match.mismatches if m.problem == "extra"]
    names = {t.name for t in match.template.targets}
    unmatched = len({m.name for m in match.mismatches if m.problem != "extra" and m.name in names})
    unmatched = unmatched or int(len(extras) < len(match.mismatches))
    total = sum(t.has_data for t in match.template.targets)
    if unmatched:
        verb = "does" if unmatched == 1 else "do"
        head = f"{unmatched} of {total} {leaf_noun(total)} {verb} not match {match.url}"
        if extras:
            head += f", and {len(extras)} of its leaves {be_verb(extras)} not in the template"
    else:
        n = len(extras)
        head = f"{n} {leaf_noun(n)} of {match.url} {be_verb(extras)} not in the template"
        head = ", ".join(filter(None, (head, _format_subtrees(extras))))
    hints = Counter(m.hint for m in match.mismatches if m.hint)
    shared = {hint for hint, n in hints.items() if n > 1}
    lines = [head, *format_mismatches(match.mismatches, shared)]
    lines += _format_unused_patterns(match)
    turned = any(m.problem == "shape" for m in match.mismatches)
    how = " like the above" if turned else ", as PyTorch stores it"
    lines += [
        f"  Can't tell by its shape whether it is transposed{how} - at `{name}`"
        for name in match.undecidable[:MAX_SHOWN]
    ]
    if len(match.undecidable) > MAX_SHOWN:
        rest = len(match.undecidable) - MAX_SHOWN
        lines.append(f"  and {rest} more of these (`error.match.undecidable` has them all)")
    lines += [f"  hint: {hint}" for hint in hints if hint in shared]
    return join_lines(lines)


def format_mismatches(mismatches: Sequence[Mismatch], shared: Collection[str] = ()) -> list[str]:
    """Formats the first mismatches, one per line, and counts the rest.

    Args:
        mismatches: The mismatches.
        shared: Hints to leave out, because the caller prints them once.
    """
    lines = [
        f"  {m.fact}" if m.hint is None or m.hint in shared else f"  {m}"
        for m in mismatches[:MAX_SHOWN]
    ]
    rest = mismatches[MAX_SHOWN:]
    if rest:
        lines.append(
            f"  and {len(rest)} more: {_count_by_problem(rest)} (`error.mismatches` has them all)"
        )
    return lines


def _format_verdict(match: Match) -> str:
    n = len(match.pairs) - len(match.supplied)
    total = sum(t.has_data for t in match.template.targets)
    if n == total:
        return (
            f"all {total} {leaf_noun(total)} match {match.url}"
            if total != 1
            else f"the leaf matches {match.url}"
        )
    fates = ["are supplied"] * bool(match.supplied) + ["keep the template's values"] * bool(
        match.kept
    )
    text = f"{n} of {total} {leaf_noun(total)} match {match.url}"
    return f"{text}, the others {' or '.join(fates)}"


def _format_remarks(match: Match) -> list[str]:
    lines = [f"  {line}" for line in list_casts(match.casts)]
    if match.aligned:
        lines.append("  the file has no names: its leaves are taken in the order of the template's")
    for dtype in dict.fromkeys(match.viewed.values()):
        names = [name for name, viewed in match.viewed.items() if viewed == dtype]
        fate = f"{len(names):,} stored without a dtype, read as {dtype}"
        lines.append(f"  {fate}: {list_names(names)}")
    differences = list_differences(match.supplied, match.kept, match.ignored, match.skipped)
    lines += [f"  {line}" for line in differences]
    return lines + _format_unused_patterns(match)


def group_casts(casts: Sequence[CastNote]) -> dict[tuple[str, str], list[CastNote]]:
    """Casts by their stored and wanted dtypes."""
    groups: dict[tuple[str, str], list[CastNote]] = {}
    for cast in casts:
        groups.setdefault((cast.stored, cast.wanted), []).append(cast)
    return groups


def list_casts(casts: Sequence[CastNote]) -> list[str]:
    """Names what is cast: a line for each pair of dtypes."""
    return [
        f"{len(group):,} cast from {stored} to {wanted} ({sum(c.nbytes for c in group):,} bytes):"
        f" {list_names([c.name for c in group])}"
        for (stored, wanted), group in group_casts(casts).items()
    ]


def list_differences(
    supplied: Mapping[str, str],
    kept: Sequence[str],
    ignored: Sequence[str],
    skipped: Sequence[str] = (),
) -> list[str]:
    """Names what a restore takes from elsewhere or leaves out: a line for each kind and supplier.

    Args:
        supplied, kept, ignored, skipped: See `Match`.
    """
    by_fate: dict[str, list[str]] = {}
    for name, url in supplied.items():
        by_fate.setdefault(f"supplied by {url}", []).append(name)
    by_fate["kept from the template"] = list(kept)
    by_fate["without data, left as in the template"] = list(skipped)
    by_fate["of the checkpoint ignored"] = list(ignored)
    return [f"{len(n):,} {fate}: {list_names(n)}" for fate, n in by_fate.items() if n]


def _format_unused_patterns(match: Match) -> list[str]:
    return [
        f"  no leaf of the checkpoint matches the pattern {quote_text(pattern)} of extra="
        for pattern in match.unused_patterns
    ]


def _count_by_problem(mismatches: Sequence[Mismatch]) -> str:
    by_problem: dict[str, list[str]] = {}
    for m in mismatches:
        by_problem.setdefault(m.problem, []).append(m.name)
    return "; ".join(
        " ".join(filter(None, (f"{len(names)} {problem}", _format_subtrees(names))))
        for problem, names in by_problem.items()
    )


def _format_subtrees(names: Sequence[str]) -> str:
    """Says that all names are under `opt_state`, or which subtrees have most of them."""
    if len(names) == 1:
        return f"at `{names[0]}`"
    parts = [name.split(".") for name in names]
    depth = 0
    while all(len(p) > depth + 1 for p in parts) and len({p[depth] for p in parts}) == 1:
        depth += 1
    if depth:
        return f"all under `{'.'.join(parts[0][:depth])}`"
    heads = Counter(p[0] for p in parts)
    if len(heads) == len(names):
        return ""
    shown = ", ".join(f"`{head}` ({n})" for head, n in heads.most_common(3))
    return f"under {shown}" + (f" and {len(heads) - 3} others" if len(heads) > 3 else "")
