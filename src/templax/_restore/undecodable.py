"""Finds the leaves whose chunks templax has no decoder for, so that one error names them all."""

from __future__ import annotations

from collections.abc import Sequence

from .._catalog.catalog import Catalog
from .._catalog.entry import Chunk, LeafEntry
from .._codecs.decode import DECODABLE, FILL
from .._core.text import list_names
from .._match.result import MAX_SHOWN
from ..errors import TemplaxError, Unsupported


def can_decode(chunk: Chunk) -> bool:
    """Whether there is a decoder for the codecs. Otherwise the bytes are only read."""
    return chunk.codecs == FILL or DECODABLE.issuperset(chunk.codecs)


def find_undecodable(catalog: Catalog, entries: Sequence[LeafEntry]) -> dict[str, Unsupported]:
    """Finds the leaves that templax can't decode: name → the error that a restore would raise.

    Args:
        catalog: The checkpoint.
        entries: Leaves of it with distinct names; none of them a string.

    Raises:
        Corrupted, Unsupported: They can't be located for another reason; see `Catalog.locate`.
    """
    found: dict[str, Unsupported] = {}
    by_name = {entry.name: entry for entry in entries}
    for name, chunks in catalog.locate(entries, []).items():
        if not all(map(can_decode, chunks)):
            try:
                catalog.locate([by_name[name]])
            except Unsupported as error:
                found[name] = error
    return found


def name_undecodable(
    wanted: Sequence[tuple[Catalog, Sequence[LeafEntry]]], error: Unsupported, remedy: str
) -> Unsupported:
    """The error for leaves that can't be located: it names all that templax can't decode.

    Args:
        wanted: Each checkpoint, and the leaves that were to be located in it, with distinct names;
            none of them a string.
        error: What `Catalog.locate` raised for one of them.
        remedy: How to leave them out. A hint only if other leaves remain and can be located.
    """
    try:
        found = [find_undecodable(catalog, entries) for catalog, entries in wanted]
    except TemplaxError:
        return error
    problems = [problem for each in found for problem in each.values()]
    if not problems:
        return error
    hints = dict.fromkeys(problem.hint for problem in problems if problem.hint)
    remain = False
    try:
        for (catalog, entries), refused in zip(wanted, found, strict=True):
            others = [entry for entry in entries if entry.name not in refused]
            catalog.locate(others)
            remain = remain or bool(others)
    except TemplaxError:
        remain = False
    if remain:
        hints[remedy] = None
    hint = "; ".join(hints) or None
    if len(problems) == 1:
        (one,) = problems
        return Unsupported(one.what, hint=hint).locate(
            leaf=one.leaf, file=one.file, start=one.start, stop=one.stop, box=one.box
        )
    several = sum(map(bool, found)) > 1
    reasons: dict[tuple[str, str], list[str]] = {}
    for (catalog, _), refused in zip(wanted, found, strict=True):
        of = f" of {catalog.url}" if several else ""
        for name, problem in refused.items():
            reasons.setdefault((problem.what, of), []).append(name)
    what = [f"{what} ({list_names(names, MAX_SHOWN)}{of})" for (what, of), names in reasons.items()]
    return Unsupported("; ".join(what), hint=hint)
