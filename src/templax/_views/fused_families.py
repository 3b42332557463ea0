"""Pairs families that only one of two trees fuses into one leaf, such as q, k and v. Pure.

Shapes tell along which axis the parts lie, but not in which order, or whether they alternate head
by head: notes say so.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from .._core.boxes import Shape
from .._core.text import list_names
from .axes import format_dims, parse_axes
from .axis_guesses import FUSED, Guess, list_guesses
from .families import Family, Pairing, pair_families
from .leaf_words import compare_meanings
from .paired import LEAST, Found, count_elements, may_be_cast

_MAX_COMPARISONS = 20_000
"""Maximum number of pairs of a fused family and a family that may be one of its parts."""

_AXES = "abcdefgh"
"""Names for axes of which nothing is known."""


@dataclass(frozen=True, slots=True)
class _Fusion:
    """Parts that some models fuse into one leaf.

    Attributes:
        whole: The word for the fused leaf.
        parts: The words for its parts, in their most common order.
        order: This order, in words.
        otherwise: What to write if the parts alternate.
    """

    whole: str
    parts: tuple[str, ...]
    order: str
    otherwise: str


_FUSIONS = (
    _Fusion(
        "qkv",
        ("q", "k", "v"),
        "all queries, then all keys, then all values",
        "if it has them head by head, `(t h k)` must be `(h t k)`",
    ),
    _Fusion(
        "kv",
        ("k", "v"),
        "all keys, then all values",
        "if it has them head by head, `(t h k)` must be `(h t k)`",
    ),
    _Fusion(
        "gateup",
        ("gate", "in"),
        "all of the gate, then all of the other",
        "if they alternate, `(t f)` must be `(f t)`",
    ),
)


def find_fused(
    targets: Sequence[Family], sources: Sequence[Family], found: Sequence[Found]
) -> tuple[list[Found], list[str]]:
    """Pairs the leaves that one tree fuses and the other keeps separate.

    Args:
        targets, sources: All families.
        found: The pairs found so far.

    Returns:
        A `Found` for each part, and notes on what can't be told.
    """
    gone = {id(family) for one in found for family in (one.target, one.source)}
    made: list[Found] = []
    unclear: defaultdict[str, list[str]] = defaultdict(list)
    for fusion in _FUSIONS:
        for wholes, singles, splits in ((sources, targets, True), (targets, sources, False)):
            fused = [w for w in wholes if fusion.whole in w.meaning.words and id(w) not in gone]
            apart = [
                single
                for single in singles
                if len(single.meaning.words.intersection(fusion.parts)) == 1
                and id(single) not in gone
            ]
            if len(fused) * len(apart) > _MAX_COMPARISONS:
                what = "{} are too many to look for the parts of each"
                unclear[what] += [w.first.name for w in fused]
                continue
            for whole in fused:
                left = [single for single in apart if id(single) not in gone]
                parts = _find_parts(fusion, whole, left, splits)
                if parts is None:
                    continue
                fits = list(_list_fits(whole, parts, splits))
                name = fits[0][0].pairings[0].source if splits and fits else ""
                name = name or whole.write_name(["{i}"] * whole.rank)
                if len(fits) > 1:
                    what = "can't tell by their shapes along which axis the parts of {} lie"
                    unclear[f"{what}: nothing is suggested for it"].append(name)
                if len(fits) == 1:
                    made += fits[0]
                    gone.update(id(each) for one in fits[0] for each in (one.source, one.target))
                    unclear[_explain_order(fusion, fits[0])].append(name)
    notes = [text.replace("{}", list_names(names), 1) for text, names in unclear.items()]
    return made, notes


def _explain_order(fusion: _Fusion, made: Sequence[Found]) -> str:
    otherwise = f"; {fusion.otherwise}" if made[0].cut is None else ""
    return f"can't tell in what order {{}} holds its parts: taken as {fusion.order}{otherwise}"


def _find_parts(
    fusion: _Fusion, whole: Family, singles: Sequence[Family], splits: bool
) -> list[Family] | None:
    """The families that are the parts of a fused one, in order; None if any is missing."""
    scores: defaultdict[str, list[tuple[float, int]]] = defaultdict(list)
    for i, single in enumerate(singles):
        words = single.meaning.words.intersection(fusion.parts)
        pair = (whole.first, single.first) if splits else (single.first, whole.first)
        if not may_be_cast(*pair):
            continue
        called = single.meaning.words - words | {fusion.whole}
        score = compare_meanings(replace(single.meaning, words=called), whole.meaning)
        if score >= LEAST:
            scores[next(iter(words))].append((score, i))
    chosen: list[Family] = []
    for part in fusion.parts:
        best = sorted(scores[part], reverse=True)[:2]
        if not best or (len(best) == 2 and best[0][0] == best[1][0]):
            return None
        chosen.append(singles[best[0][1]])
    if sum(map(count_elements, chosen)) != count_elements(whole):
        return None
    if not splits and len({single.first.dtype for single in chosen}) > 1:
        return None  # a leaf that is joined has one dtype
    return chosen


def _list_fits(whole: Family, parts: Sequence[Family], splits: bool) -> Iterator[list[Found]]:
    """Yields the rules for the parts, for each axis of the whole along which they may lie."""
    pairings: list[Pairing] = []
    for part in parts:
        pair = (part, whole) if splits else (whole, part)
        ways = [way for way in pair_families(*pair) if len(way) == 1]
        if not ways:
            return
        pairings.append(ways[0][0])
    if not splits and len({one.target for one in pairings}) > 1:
        return
    shapes = [_find_shapes(one) for one in pairings]
    known = [each for each in shapes if each is not None]
    if len(known) < len(parts):
        return
    whole_shapes = {source if splits else target for source, target in known}
    if len(whole_shapes) > 1:
        return
    (shape,) = whole_shapes
    if splits:
        equal = list(_split_equally(whole, parts, pairings, known))
        if equal:
            yield equal
            return
    apart = [target if splits else source for source, target in known]
    for d, n in enumerate(shape):
        beside = math.prod(shape) // n if n else 0
        lengths = [math.prod(each) // beside if beside else 0 for each in apart]
        if not beside or sum(lengths) != n or any(math.prod(each) % beside for each in apart):
            continue
        made: list[Found] = []
        start = 0
        for part, one, other, length in zip(parts, pairings, apart, lengths, strict=True):
            piece = (*shape[:d], length, *shape[d + 1 :])
            guesses = _guess_axes(one, *((piece, other) if splits else (other, piece)))
            pair = (part, whole) if splits else (whole, part)
            if not guesses:
                break
            before = len(one.unstacked) if splits else len(one.stacked)
            cut = (before + d, start, start + length)
            made.append(Found(*pair, [one], guesses, 1.0, cut=cut, is_joined=not splits))
            start += length
        else:
            yield made


def _split_equally(
    whole: Family,
    parts: Sequence[Family],
    pairings: Sequence[Pairing],
    shapes: Sequence[tuple[Shape, Shape]],
) -> Iterator[Found]:
    """Yields parts of equal shape, each as an index of an axis `t`."""
    n = len(parts)
    for i, (part, one, pair) in enumerate(zip(parts, pairings, shapes, strict=True)):
        if pair != shapes[0]:
            return
        guesses = list(list_guesses([pair], [*one.unstacked], [*one.stacked], {"t": n}, FUSED))
        if not guesses:
            return
        yield Found(part, whole, [one], guesses, 1.0, {"select": {"t": i}, "t": n})


def _find_shapes(pairing: Pairing) -> tuple[Shape, Shape] | None:
    """The shapes of sources and targets without stacked axes, if all members agree."""
    unstacked, stacked = (*pairing.unstacked.values(),), (*pairing.stacked.values(),)
    shapes = {
        (source.shape, target.shape)
        for target, source in pairing.pairs
        if source.shape[: len(unstacked)] == unstacked and target.shape[: len(stacked)] == stacked
    }
    if len(shapes) != 1:
        return None
    source, target = shapes.pop()
    return source[len(unstacked) :], target[len(stacked) :]


def _guess_axes(pairing: Pairing, source: Shape, target: Shape) -> list[Guess]:
    """Guesses the axes of a part, with a name for each dimension."""
    before, after = [*pairing.unstacked], [*pairing.stacked]
    names = " ".join(_AXES[: len(source)])
    plain = f"{' '.join([*before, names])} -> {' '.join([*after, names])}"
    return [
        replace(guess, text=plain) if guess.text is None or "..." in guess.text else guess
        for guess in list_guesses([(source, target)], before, after, {})
        if guess.text is None or not {"1", "()"} & {*guess.text.split()}
    ]


def write_cut(text: str, cut: tuple[int, int, int]) -> Mapping[str, tuple[int, int]]:
    """The `slice=` of a rule with the given axes."""
    d, start, stop = cut
    return {format_dims((parse_axes(text).left[d],)): (start, stop)}


def write_join(text: str, d: int) -> str:
    """The axes of a `Concat` along a dimension of the target, from the axes of its parts."""
    right = parse_axes(text).right
    taken = {axis for dim in right if len(dim) == 1 for axis in dim}
    free = iter(name for name in _AXES if name not in taken)
    names = [dim[0] if len(dim) == 1 else next(free) for dim in right]
    names[d] = f"[{names[d]}]"
    return " ".join(names)
