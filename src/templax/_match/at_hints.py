"""Hints on `at=`: the checkpoint may hold the template's tree elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .._core.names import Path, join_path, split_name
from .._core.text import quote_text
from .failure import Failure, add_hint, count_found, is_much_better
from .meaning import is_average, list_moments
from .result import Match

MAX_CANDIDATES = 8
"""How many values of `at` are tried; each try costs one match."""

MAX_CHOICES = 3
"""How many equally good values of `at` a hint offers."""


@dataclass(slots=True)
class _Place:
    """A subtree of the checkpoint with leaves of wanted names.

    Attributes:
        path: Where it is.
        named: How many wanted names occur in it.
        fitting: How many of these have the wanted shape.
    """

    path: Path
    named: int = 0
    fitting: int = 0

    @property
    def at(self) -> str:
        return join_path(self.path)

    @property
    def depth(self) -> int:
        return len(self.path)


def suggest_at(failure: Failure) -> Match | None:
    """Tries other values of `at`.

    Several subtrees may fit equally well, since the moments of an optimizer have the structure of
    the parameters, and may fit even better where the parameters have changed. Hence a subtree is
    never offered while a less deep one holds half of the wanted leaves, an average of weights only
    if there is nothing else, and moments never.
    """
    if not failure.select("missing") or list_moments(split_name(failure.options.at)):
        return None  # nothing is missing, or the caller wants moments, which weights are not
    places = _list_places(failure)
    wanted = len(failure.targets_by_name())
    weights = [p for p in places if not list_moments(p.path)]
    current = next((p for p in places if p.at == failure.options.at), None)
    holding = [p for p in weights if 2 * p.fitting >= wanted]
    if any(not is_average(p.path) for p in holding):
        holding = [p for p in holding if not is_average(p.path)]
    if current in holding:
        holding = [p for p in holding if p.depth <= current.depth]
    least = min((p.depth for p in holding), default=0)
    tried = [p for p in places if p is not current]
    ranked = sorted(tried, key=lambda p: (p not in holding, p not in weights, -p.named, p.depth))
    if _look_alike(ranked[: MAX_CANDIDATES + 1]):
        return None
    after = {p.at: failure.retry(at=p.at) for p in ranked[:MAX_CANDIDATES]}
    working = [p for p in ranked[:MAX_CANDIDATES] if is_much_better(failure, after[p.at])]
    choices = [p for p in working if p in holding and p.depth == least]
    if not holding:
        choices = [p for p in working if p in weights]
    if not choices:
        return None
    fewest = min(len(after[p.at].mismatches) for p in choices)
    best = [p for p in choices if len(after[p.at].mismatches) == fewest]
    best = sorted((p for p in best if p.depth == min(b.depth for b in best)), key=lambda p: p.at)
    also = [
        p
        for p in sorted(working, key=lambda p: (p.depth, p.at))
        if p not in best
        and (len(after[p.at].mismatches) == fewest or (p in weights and p.fitting == wanted))
    ]
    if len(best) > MAX_CHOICES or (len(best) > 1 and fewest):
        return None
    return _offer(failure, best, also, after[best[0].at])


def _list_places(failure: Failure) -> list[_Place]:
    targets = failure.targets_by_name()
    places: dict[str, _Place] = {}
    for entry in failure.checkpoint.entries:
        for depth in range(len(entry.path) + 1):
            target = targets.get(join_path(entry.path[depth:]))
            if target is not None:
                path = entry.path[:depth]
                place = places.setdefault(join_path(path), _Place(path))
                place.named += 1
                place.fitting += target.user_shape == entry.user_shape
    return list(places.values())


def _look_alike(ranked: Sequence[_Place]) -> bool:
    """Whether more places than are tried hold as many wanted names as the first."""
    return len(ranked) > MAX_CANDIDATES and ranked[-1].named == ranked[0].named


def _offer(failure: Failure, best: Sequence[_Place], also: Sequence[_Place], after: Match) -> Match:
    content = "most" if any(m.problem == "missing" for m in after.mismatches) else "the same tree"
    places = " and ".join(f"under `{p.at}`" if p.at else "at its root" for p in best)
    others = " and ".join(f"`{p.at}`" for p in also[:MAX_CHOICES])
    well = f" (as well as under {others})" if others else ""
    summary = f"{count_found(failure)}; the checkpoint holds {content} {places}{well}"
    hint = " or ".join(f"at={quote_text(p.at)}" for p in best)
    return add_hint(failure, hint, after, summary)
