"""Leaves in families: those whose names differ in the numbers of their blocks only. Pure."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from .._catalog.entry import LeafEntry
from .._template.template import Target
from .leaf_words import Meaning, Ordinal, read_name
from .names import escape_braces

Index = tuple[int, ...]

Leaf = LeafEntry | Target

PLACEHOLDERS = ("i", "j", "l", "m", "n", "q", "r", "s")
"""Names of placeholders; none of them is an axis in `axis_guesses`."""

_NUMBER = re.compile(r"(?P<stem>(?:.*[^0-9])?)(?P<number>0|[1-9][0-9]{0,8})", re.DOTALL)

_DIGITS = re.compile(r"[0-9]+")

_MAX_STAGES = 32
"""Maximum number of stages of blocks, each of which gets rules of its own."""

_ALIKE = 0.6
"""How much blocks of one kind have in common: leaves of the average one / leaves of any of them."""


@dataclass(slots=True)
class Family:
    """Leaves whose names differ in the numbers of their blocks only.

    Attributes:
        parts: The literal text before, between and after the numbers.
        members: The numbers → the leaf.
        blocks: All numbers that blocks of this kind have in the tree, whatever leaves are in them.
        meaning: What the name says.
    """

    parts: tuple[str, ...]
    members: dict[Index, Leaf]
    blocks: frozenset[Index]
    meaning: Meaning

    @property
    def rank(self) -> int:
        """How many numbers a name has."""
        return len(self.parts) - 1

    @property
    def first(self) -> Leaf:
        return next(iter(self.members.values()))

    def write_name(self, fields: Sequence[str]) -> str:
        """The name with texts in place of its numbers."""
        texts = [escape_braces(part) for part in self.parts]
        pieces = itertools.chain.from_iterable(zip(texts, fields, strict=False))
        return "".join((*pieces, texts[-1]))


@dataclass(frozen=True, slots=True)
class Pairing:
    """How the names of two families correspond: the names of a rule, and which leaf is whose.

    Attributes:
        target, source: The names of the rule.
        pairs: Each target with its sources, which are stacked if they are several.
        stacked: Placeholders that only the source has, with the number of leaves along each.
        unstacked: Placeholders that only the target has, with that number.
    """

    target: str
    source: str
    pairs: Sequence[tuple[Leaf, Leaf]]
    stacked: Mapping[str, int] = field(default_factory=dict)
    unstacked: Mapping[str, int] = field(default_factory=dict)


def group_families(leaves: Sequence[Leaf]) -> list[Family]:
    """Divides the leaves of a tree into families, in the order of their first members."""
    names = [leaf.name.split(".") for leaf in leaves]
    numbers = [_find_numbers(elements) for elements in names]
    opened = _find_blocks(names, numbers)
    ordinals = _rank_siblings(names, numbers, opened)
    members: dict[tuple[str, ...], dict[Index, Leaf]] = {}
    where: dict[tuple[str, ...], int] = {}
    blocks: defaultdict[tuple[str, ...], set[Index]] = defaultdict(set)
    for at, (leaf, elements) in enumerate(zip(leaves, names, strict=True)):
        parts, index = _cut_name(elements, numbers[at], opened[at])
        members.setdefault(parts, {})[index] = leaf
        where.setdefault(parts, at)
        blocks[_strip_last(parts)].add(index)
    return [
        Family(
            parts,
            found,
            frozenset(blocks[_strip_last(parts)]),
            read_name(names[where[parts]], ordinals[where[parts]], frozenset(opened[where[parts]])),
        )
        for parts, found in members.items()
    ]


def pair_families(target: Family, source: Family) -> Iterator[list[Pairing]]:
    """The ways in which the members of two families may correspond, each as a list of rules."""
    if target.rank != source.rank and len(target.members) == len(source.members) == 1:
        names = [escape_braces(family.first.name) for family in (target, source)]
        yield [Pairing(names[0], names[1], [(target.first, source.first)])]
    if target.rank == source.rank:
        shift = _find_shift(target.blocks, source.blocks)
        if shift is None:
            shift = _find_shift(set(target.members), set(source.members))
        if shift is not None and {_add(i, shift) for i in target.members} == {*source.members}:
            yield [_pair_shifted(target, source, shift)]
    elif target.rank == source.rank - 1 or (source.rank > 1 and target.rank == 0):
        yield from _pair_stacked(target, source)
    elif source.rank == target.rank - 1 or (target.rank > 1 and source.rank == 0):
        yield from _pair_unstacked(target, source)
    if {target.rank, source.rank} == {1, 2} and len(target.blocks) == len(source.blocks):
        counted = list(_pair_counted(target, source))
        if sum(len(pairing.pairs) for pairing in counted) == len(target.members):
            yield counted


def _find_numbers(elements: Sequence[str]) -> dict[int, tuple[str, int]]:
    """Position of an element that ends in a number → what is before it, and the number."""
    found: dict[int, tuple[str, int]] = {}
    for i, element in enumerate(elements):
        if element and element[-1] in "0123456789":
            match = _NUMBER.fullmatch(element)
            if match is not None:
                found[i] = match["stem"], int(match["number"])
    return found


def _find_blocks(
    names: Sequence[Sequence[str]], numbers: Sequence[Mapping[int, tuple[str, int]]]
) -> list[list[int]]:
    """For each name, the positions of elements that number blocks with much the same leaves."""
    suffixes: defaultdict[tuple[str, ...], defaultdict[int, set[str]]]
    suffixes = defaultdict(lambda: defaultdict(set))
    keys: list[dict[int, tuple[str, ...]]] = []
    for elements, found in zip(names, numbers, strict=True):
        mine: dict[int, tuple[str, ...]] = {}
        skeleton = [
            _DIGITS.sub("#", element) if i in found else element
            for i, element in enumerate(elements)
        ]
        for i, (stem, number) in found.items():
            key = (*skeleton[:i], stem)
            rest = elements[i + 1 :]
            if _counts_blocks(elements, i, stem):
                mine[i] = key
                suffixes[key][number].add(".".join(rest))
        keys.append(mine)
    alike = {key for key, values in suffixes.items() if _are_alike(list(values.values()))}
    return [[i for i, key in mine.items() if key in alike] for mine in keys]


def _counts_blocks(elements: Sequence[str], i: int, stem: str) -> bool:
    """Whether the number of an element may count blocks: by what is in them, or by its name."""
    below = len(elements) - i - 1 - (elements[-1] == "value")
    if below > 1:
        return True
    word = stem or (elements[i - 1] if i else "")
    return below == 1 and any(w in word.casefold() for w in ("layers", "block", "expert"))


def _are_alike(blocks: Sequence[set[str]]) -> bool:
    union = {_DIGITS.sub("#", name) for block in blocks for name in block}
    if len(blocks) < 2:
        return False
    total = sum(len({_DIGITS.sub("#", name) for name in block}) for block in blocks)
    return total >= _ALIKE * len(blocks) * len(union)


def _rank_siblings(
    names: Sequence[Sequence[str]],
    numbers: Sequence[Mapping[int, tuple[str, int]]],
    opened: Sequence[Sequence[int]],
) -> list[dict[int, Ordinal]]:
    """For each name: position of an element with a number that does not count blocks → its rank."""
    values: defaultdict[tuple[str, ...], set[int]] = defaultdict(set)
    keys: list[dict[int, tuple[tuple[str, ...], int]]] = []
    for elements, found, blocks in zip(names, numbers, opened, strict=True):
        mine: dict[int, tuple[tuple[str, ...], int]] = {}
        prefix: list[str] = []
        for i, element in enumerate(elements):
            if i in found and i not in blocks:
                key = (*prefix, found[i][0])
                values[key].add(found[i][1])
                mine[i] = key, found[i][1]
            prefix.append(f"{found[i][0]}#" if i in blocks else element)
        keys.append(mine)
    ranks = {key: {n: r for r, n in enumerate(sorted(found))} for key, found in values.items()}
    return [
        {i: Ordinal(ranks[key][n], len(ranks[key])) for i, (key, n) in mine.items()}
        for mine in keys
    ]


def _cut_name(
    elements: Sequence[str], found: Mapping[int, tuple[str, int]], blocks: Sequence[int]
) -> tuple[tuple[str, ...], Index]:
    """The text around the numbers of blocks, and these."""
    if not blocks:
        return (".".join(elements),), ()
    parts: list[str] = []
    text: list[str] = []
    for i, element in enumerate(elements):
        if i in blocks:
            parts.append(".".join([*text, found[i][0]]))
            text = [""]
        else:
            text.append(element)
    return (*parts, ".".join(text)), tuple(found[i][1] for i in blocks)


def _strip_last(parts: tuple[str, ...]) -> tuple[str, ...]:
    return parts[:-1]


def _add(index: Index, shift: Index) -> Index:
    return tuple(a + b for a, b in zip(index, shift, strict=True))


def _find_shift(
    targets: frozenset[Index] | set[Index], sources: frozenset[Index] | set[Index]
) -> Index | None:
    """What to add to the numbers of all targets to get those of the sources."""
    if not targets or len(targets) != len(sources):
        return None
    first, other = min(targets), min(sources)
    shift = tuple(b - a for a, b in zip(first, other, strict=True))
    return shift if {_add(index, shift) for index in targets} == sources else None


def _write_fields(placeholders: Sequence[str], shift: Sequence[int]) -> list[str]:
    return [
        f"{{{p}}}" if not s else f"{{{p}{s:+}}}" for p, s in zip(placeholders, shift, strict=True)
    ]


def _pair_shifted(target: Family, source: Family, shift: Index) -> Pairing:
    placeholders = PLACEHOLDERS[: target.rank]
    # Placeholders are at least 0 on both sides, so the smaller of two numbers is the plain one.
    up = [max(s, 0) for s in shift]
    down = [max(-s, 0) for s in shift]
    return Pairing(
        target.write_name(_write_fields(placeholders, down)),
        source.write_name(_write_fields(placeholders, up)),
        [(leaf, source.members[_add(i, shift)]) for i, leaf in target.members.items()],
    )


def _pair_stacked(target: Family, source: Family) -> Iterator[list[Pairing]]:
    """A target whose leaves are those of several sources, one after the other."""
    for kept in itertools.combinations(range(source.rank), target.rank):
        along = [k for k in range(source.rank) if k not in kept]
        sizes = _count_grid([tuple(i[k] for k in along) for i in source.members])
        if sizes is None or len(source.members) != len(target.members) * _prod(sizes):
            continue
        starts = [min(i[k] for i in source.members) for k in along]
        projected = {tuple(i[k] for k in kept): leaf for i, leaf in source.members.items()}
        shift = _find_shift({*target.members}, {*projected})
        if shift is None:
            continue
        names = PLACEHOLDERS[: source.rank]
        ups = [0] * source.rank
        for k, start in zip(along, starts, strict=True):
            ups[k] = start
        downs = [max(-s, 0) for s in shift]
        for k, s in zip(kept, shift, strict=True):
            ups[k] = max(s, 0)
        yield [
            Pairing(
                target.write_name(_write_fields([names[k] for k in kept], downs)),
                source.write_name(_write_fields(names, ups)),
                [(leaf, projected[_add(i, shift)]) for i, leaf in target.members.items()],
                stacked={names[k]: n for k, n in zip(along, sizes, strict=True)},
            )
        ]


def _pair_unstacked(target: Family, source: Family) -> Iterator[list[Pairing]]:
    """Targets that are the parts of a source along its first axes."""
    for found in _pair_stacked(source, target):
        yield [
            Pairing(p.source, p.target, [(b, a) for a, b in p.pairs], unstacked=p.stacked)
            for p in found
        ]


def _pair_counted(target: Family, source: Family) -> Iterator[Pairing]:
    """Blocks that one tree counts through and the other by stages: `Block_3` is `layer2.1`."""
    swapped = target.rank == 2
    staged, flat = (target, source) if swapped else (source, target)
    order = {i: n for n, i in enumerate(sorted(staged.blocks))}
    numbers = sorted(flat.blocks)
    stages: defaultdict[int, list[Index]] = defaultdict(list)
    for index in sorted(staged.members):
        stages[index[0]].append(index)
    if len(stages) > _MAX_STAGES:
        return
    for stage, members in stages.items():
        ones = [numbers[order[i]] for i in members]
        if any(one not in flat.members for one in ones):
            return
        pairs = [
            (staged.members[i], flat.members[one]) for i, one in zip(members, ones, strict=True)
        ]
        low, base = members[0][1], ones[0][0]
        if len(members) == 1:
            texts = [staged.write_name([str(stage), str(low)]), flat.write_name([str(base)])]
        else:
            least = min(low, base)
            texts = [
                staged.write_name([str(stage), _write_fields("i", [low - least])[0]]),
                flat.write_name(_write_fields("i", [base - least])),
            ]
        if not swapped:
            texts, pairs = texts[::-1], [(b, a) for a, b in pairs]
        yield Pairing(texts[0], texts[1], pairs)


def _count_grid(indices: Sequence[Index]) -> list[int] | None:
    """The sizes of a grid that some numbers fill without a hole; None if they do not."""
    distinct = {*indices}
    sizes: list[int] = []
    for k in range(len(indices[0])):
        values = sorted({i[k] for i in distinct})
        if values != list(range(values[0], values[0] + len(values))):
            return None
        sizes.append(len(values))
    return sizes if len(distinct) == _prod(sizes) else None


def _prod(sizes: Sequence[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total
