"""The result of a match, its text, and the error that carries it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from .._catalog.entry import LeafEntry
from .._core.dtypes import class_of, is_lossless
from .._core.text import be_verb, leaf_noun, list_names
from .._template.template import Target, Template
from ..errors import Mismatch, TemplaxError

SHOWN = 20
"""Mismatches written out; the rest are counted."""


class Pair(msgspec.Struct, frozen=True, gc=False):
    """A target and the leaf that fills it; `fallback` if that is the second checkpoint's."""

    target: Target
    entry: LeafEntry
    fallback: bool = False

    @property
    def by_value(self) -> bool:
        """Whether they fit only if the number stored is one that the target's dtype holds."""
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
        stored, wanted: Names of the dtypes.
        nbytes: Bytes of the leaf as stored.
    """

    name: str
    stored: str
    wanted: str
    nbytes: int


@dataclass(frozen=True, slots=True, repr=False)
class Match:
    """A checkpoint compared with a template. `str(match)` is the report.

    Attributes:
        url: The checkpoint.
        template: What was wanted.
        pairs: Each target that a leaf fills, in template order.
        kept: Names of template leaves that keep the template's own value (`missing="keep"`).
        skipped: Names of template leaves that carry no data: `...`, functions, static values.
        ignored: Names of leaves of the checkpoint that nothing asks for (`extra="ignore"`, or
            under a `...`).
        mismatches: Every difference, in template order, extras last. Empty if all fits.
        casts: Every leaf that is cast.
        summary: A sentence on the whole tree, if one explains all mismatches.
        rename: The mapping that a `rename=` hint proposes, whole; the text may shorten it.
    """

    url: str
    template: Template
    pairs: tuple[Pair, ...] = ()
    kept: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    mismatches: tuple[Mismatch, ...] = ()
    casts: tuple[CastNote, ...] = ()
    summary: str | None = None
    rename: Mapping[str, str] | None = None

    @property
    def ok(self) -> bool:
        """Whether `restore` would succeed."""
        return not self.mismatches

    def __bool__(self) -> bool:
        """`ok`: `assert tx.check(...)` means what it says."""
        return self.ok

    def __repr__(self) -> str:
        n = len(self.mismatches)
        said = "ok" if self.ok else f"{n:,} mismatch{'' if n == 1 else 'es'}"
        return f"Match({self.url!r}, {len(self.pairs):,} leaves matched, {said})"

    def portable(self) -> Match:
        """The same report without what only this process can hold: devices, open files."""
        targets = tuple(msgspec.structs.replace(t, placement=None) for t in self.template.targets)
        return replace(self, template=Template(targets), pairs=())

    def __str__(self) -> str:
        return format_match(self)


class TemplateError(TemplaxError, ValueError):
    """The checkpoint does not fit the template. Raised before one array byte is read.

    Attributes:
        match: The whole comparison.
        mismatches: Every difference, in template order. The text shows the first 20.
    """

    def __init__(self, match: Match):
        super().__init__(str(match))
        self.match = match
        self.mismatches: tuple[Mismatch, ...] = match.mismatches

    def __reduce__(self) -> tuple[type[TemplateError], tuple[Match]]:
        return type(self), (self.match.portable(),)


def format_match(match: Match) -> str:
    """The text of `str(match)` and of `TemplateError`.

    Grammar: a sentence on the whole, then one line per mismatch, `what - at `leaf``, with its note
    and hint; after 20 lines the rest is counted by kind and subtree.
    """
    if match.ok:
        return "\n".join([_format_verdict(match), *_format_remarks(match)])
    if match.summary is not None:
        return match.summary
    extras = [m.name for m in match.mismatches if m.problem == "extra"]
    asked = {t.name for t in match.template.targets}
    others = len({m.name for m in match.mismatches if m.problem != "extra" and m.name in asked})
    others = others or int(len(extras) < len(match.mismatches))
    total = sum(t.has_data for t in match.template.targets)
    if others:
        verb = "does" if others == 1 else "do"
        head = f"{others} of {total} {leaf_noun(total)} {verb} not match {match.url}"
        if extras:
            head += f", and {len(extras)} of its leaves {be_verb(extras)} not in the template"
    else:
        n = len(extras)
        head = f"{n} {leaf_noun(n)} of {match.url} {be_verb(extras)} not in the template"
        head = ", ".join(filter(None, (head, _format_subtrees(extras))))
    hints = Counter(m.hint for m in match.mismatches if m.hint)
    shared = {hint for hint, n in hints.items() if n > 1}
    lines = [head, *format_mismatches(match.mismatches, shared)]
    lines += [f"  hint: {hint}" for hint in hints if hint in shared]
    return "\n".join(lines)


def format_mismatches(mismatches: Sequence[Mismatch], shared: Collection[str] = ()) -> list[str]:
    """A line per mismatch, its hint left out if it is one of `shared`; the rest counted."""
    lines = [
        f"  {m.fact}" if m.hint is None or m.hint in shared else f"  {m}"
        for m in mismatches[:SHOWN]
    ]
    rest = mismatches[SHOWN:]
    if rest:
        lines.append(
            f"  and {len(rest)} more: {_count_by_problem(rest)} (`error.mismatches` has them all)"
        )
    return lines


def _format_verdict(match: Match) -> str:
    n = len(match.pairs)
    total = sum(t.has_data for t in match.template.targets)
    if n == total:
        return (
            f"all {total} {leaf_noun(total)} match {match.url}"
            if total != 1
            else f"the leaf matches {match.url}"
        )
    text = f"{n} of {total} {leaf_noun(total)} match {match.url}"
    return f"{text}, the others keep the template's values"


def _format_remarks(match: Match) -> list[str]:
    lines = []
    kinds = Counter((c.stored, c.wanted) for c in match.casts)
    for (stored, wanted), n in kinds.items():
        nbytes = sum(c.nbytes for c in match.casts if (c.stored, c.wanted) == (stored, wanted))
        lines.append(f"  {n} cast from {stored} to {wanted} ({nbytes:,} bytes)")
    spare = sum(pair.fallback for pair in match.pairs)
    if spare:
        lines.append(f"  {spare} supplied by the checkpoint given as `missing=`")
    for what, names in (
        ("kept from the template", match.kept),
        ("without data, left as in the template", match.skipped),
        ("of the checkpoint ignored", match.ignored),
    ):
        if names:
            lines.append(f"  {len(names)} {what}: {list_names(names)}")
    return lines


def _count_by_problem(mismatches: Sequence[Mismatch]) -> str:
    by_problem: dict[str, list[str]] = {}
    for m in mismatches:
        by_problem.setdefault(m.problem, []).append(m.name)
    return "; ".join(
        " ".join(filter(None, (f"{len(names)} {problem}", _format_subtrees(names))))
        for problem, names in by_problem.items()
    )


def _format_subtrees(names: Sequence[str]) -> str:
    """`all under `opt_state``, or the three largest subtrees with their counts."""
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
