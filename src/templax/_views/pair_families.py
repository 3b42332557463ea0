"""Pairs the families of a template with those of a checkpoint, by names, sizes and shapes. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from .._core.boxes import Shape
from .._core.text import list_names
from .axis_guesses import Guess, list_guesses
from .families import Family, Pairing, pair_families
from .fused_families import find_fused
from .leaf_words import compare_meanings
from .paired import LEAST, Found, count_elements, may_be_cast

_MAX_COMPARISONS = 20_000
"""Maximum number of pairs of families of as many elements that are compared."""

REPLICA = "replica"
"""The axis along which replicas are stored."""

_LEAST_ALONE = 0.15
"""How much, if no other leaf has the same number of elements and a name as near."""

_MARGIN = 0.04
"""By how much the best of several names must be nearer than the next."""


@dataclass(slots=True)
class Paired:
    """What was found for the families of a template.

    Attributes:
        found: At most one for each family.
        notes: What can't be decided, in words.
        orders: What can't be decided about fused leaves.
    """

    found: list[Found]
    notes: list[str]
    orders: list[str]


def find_pairs(
    targets: Sequence[Family], sources: Sequence[Family], replicas: int | None
) -> Paired | None:
    """Finds the source of each family of a template; None if there are too many to compare.

    Args:
        targets, sources: The families.
        replicas: If not None, the size of a leading axis of every source, of which the first index
            is taken.
    """
    factor = 1 if replicas is None else replicas
    by_size: defaultdict[tuple[int, str], list[Family]] = defaultdict(list)
    for source in sources:
        by_size[count_elements(source), source.meaning.role].append(source)
    alike = [
        (target, by_size.get((count_elements(target) * factor, target.meaning.role), ()))
        for target in targets
    ]
    if sum(len(group) for _, group in alike) > _MAX_COMPARISONS:
        return None
    candidates: list[Found] = []
    for target, group in alike:
        for source in group:
            score = compare_meanings(target.meaning, source.meaning)
            if score >= _LEAST_ALONE:
                candidates += _try_pair(target, source, score, replicas)
    found = _choose(candidates)
    notes = _explain_open(candidates, found)
    orders: list[str] = []
    if replicas is None:
        fused, orders = find_fused(targets, sources, found)
        found += fused
        found += _find_tied(targets, sources, found)
    order = {id(target): i for i, target in enumerate(targets)}
    return Paired(sorted(found, key=lambda f: order[id(f.target)]), notes, orders)


def _try_pair(
    target: Family, source: Family, score: float, replicas: int | None
) -> Iterator[Found]:
    if not may_be_cast(source.first, target.first):
        return
    for pairings in pair_families(target, source):
        guesses = _guess_axes(pairings, replicas)
        if guesses:
            yield Found(target, source, pairings, guesses, score)
            return


def _guess_axes(pairings: Sequence[Pairing], replicas: int | None) -> list[Guess]:
    """All axes that fit all members."""
    shapes: list[tuple[Shape, Shape]] = []
    first = pairings[0]
    before, after = [*first.unstacked], [*first.stacked]
    wanted = (*first.unstacked.values(),)
    if replicas is not None:
        before, wanted = [REPLICA, *before], (replicas, *wanted)
    stacked = (*first.stacked.values(),)
    for pairing in pairings:
        for target, source in pairing.pairs:
            if source.shape[: len(wanted)] != wanted or target.shape[: len(stacked)] != stacked:
                return []
            shapes.append((source.shape[len(wanted) :], target.shape[len(stacked) :]))
    if first.pairs and first.pairs[0][1].kind in ("string", "key"):
        same = all(s == t for s, t in shapes) and not before and not after
        return [Guess(None)] if same else []
    return list(list_guesses(shapes, before, after, {}))


def _choose(candidates: Sequence[Found]) -> list[Found]:
    """The candidates that are the best ones of their target and of their source, by a margin."""
    chosen: list[Found] = []
    left = list(candidates)
    while left:
        by_target: defaultdict[int, list[Found]] = defaultdict(list)
        by_source: defaultdict[int, list[Found]] = defaultdict(list)
        for one in left:
            by_target[id(one.target)].append(one)
            by_source[id(one.source)].append(one)
        taken = [
            one
            for one in left
            if _is_best(one, by_target[id(one.target)]) and _is_best(one, by_source[id(one.source)])
        ]
        if not taken:
            break
        chosen += taken
        gone = {id(f) for one in taken for f in (one.target, one.source)}
        left = [one for one in left if id(one.target) not in gone and id(one.source) not in gone]
    return chosen


def _is_best(one: Found, rivals: Sequence[Found]) -> bool:
    if len(rivals) > 1 and one.score < LEAST:
        return False
    return all(one is rival or one.score > rival.score + _MARGIN for rival in rivals)


def _explain_open(candidates: Sequence[Found], found: Sequence[Found]) -> list[str]:
    """Names the targets for which several sources are equally near."""
    gone = {id(family) for one in found for family in (one.target, one.source)}
    rivals: defaultdict[str, list[str]] = defaultdict(list)
    for one in candidates:
        if id(one.target) not in gone and id(one.source) not in gone and one.score >= LEAST:
            rivals[one.target.first.name].append(one.source.first.name)
    return [
        f"can't tell by names and shapes which is `{target}`: {list_names(names)}"
        for target, names in rivals.items()
        if len(names) > 1
    ]


def _find_tied(
    targets: Sequence[Family], sources: Sequence[Family], found: Sequence[Found]
) -> list[Found]:
    """A last layer whose weight is not stored, as it is that of the embedding.

    None if a source of that size is left, which may be the last layer under another name.
    """
    gone = {id(family) for one in found for family in (one.target, one.source)}
    left = {count_elements(source) for source in sources if id(source) not in gone}
    heads = [
        target
        for target in targets
        if "head" in target.meaning.words
        and target.meaning.role == "weight"
        and not target.meaning.realm
        and id(target) not in gone
        and count_elements(target) not in left
    ]
    embeddings = [
        one
        for one in found
        if "embed" in one.target.meaning.words | one.source.meaning.words
        and not (one.target.meaning.words | one.source.meaning.words) & {"pos", "type", "patch"}
        and not one.source.meaning.realm
    ]
    if len(heads) != 1 or len(embeddings) != 1:
        return []
    made = list(_try_pair(heads[0], embeddings[0].source, embeddings[0].score, None))
    return [replace(one, tied=True) for one in made]
