"""Gives the leaves of a file without names those of the template, in the order of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from msgspec import structs

from .._catalog.entry import LeafEntry
from .._core.dtypes import class_of
from .._core.text import leaf_noun
from .._template.template import Target, Template
from ..errors import Mismatch
from .result import Match


def align_leaves(entries: Sequence[LeafEntry], template: Template) -> list[LeafEntry]:
    """The leaves under the names of the template's, in order.

    If the file has more leaves than the template, the names of the rest are their positions.
    """
    targets = list_positions(template, entries)
    aligned = [
        structs.replace(entry, name=target.name, path=target.path)
        for entry, target in zip(entries, targets, strict=False)
    ]
    return aligned + list(entries[len(aligned) :])


def list_positions(template: Template, entries: Sequence[LeafEntry]) -> list[Target]:
    """The leaves of the template that a file in their order has one each for.

    Strings and leaves without data, such as functions, are in no such file. A `...` is one leaf.

    If the file has as many leaves as the template without its optional ones, which are the Python
    values of Equinox modules, it is taken to be without them, as a file of the arrays alone is:
    unless its leaves fit the first of all, since then it may lack the last instead.
    """
    targets = [t for t in template.targets if t.kind not in ("static", "string")]
    required = [target for target in targets if not target.optional]
    if len(entries) != len(required) or len(required) == len(targets):
        return targets
    fits = all(_fits(entry, target) for entry, target in zip(entries, targets, strict=False))
    return targets if fits else required


def _fits(entry: LeafEntry, target: Target) -> bool:
    """Whether a leaf may be the one that a template has; arrays may have to be cast."""
    same = entry.dtype == target.dtype
    if target.kind == "array":
        same = class_of(entry.dtype) == class_of(target.dtype)
    return same and entry.shape == target.shape


def note_positions(match: Match, entries: Sequence[LeafEntry]) -> Match:
    """Adds to the mismatches of aligned leaves where they are in the file.

    Args:
        match: The comparison of a template with aligned leaves.
        entries: The leaves of the file.
    """
    targets, count = list_positions(match.template, entries), len(entries)
    positions = {target.name: i for i, target in enumerate(targets)}
    counts = f"the file has {count} {leaf_noun(count)}, the template {len(targets)}"
    noted = list[Mismatch]()
    for mismatch in match.mismatches:
        i = positions.get(mismatch.name, count)
        notes = [mismatch.note, f"leaf {i} of the file" if i < count else None]
        if not noted:
            notes[1:] = [" and ".join(filter(None, (notes[1], "the first that differs")))]
            notes += [counts] if count != len(targets) else []
        noted.append(replace(mismatch, note="; ".join(filter(None, notes)) or None))
    return replace(match, mismatches=tuple(noted))
