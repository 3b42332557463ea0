"""A mapping × the leaves of a checkpoint → the leaves of a view. Pure.

Each rule is expanded to its families, the sizes of its axes are worked out from the shapes of the
sources and, where these do not tell, from those that a template expects. All problems of all rules
are in one error.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Protocol

import msgspec
import numpy as np
from msgspec import structs

from .._catalog.entry import LeafEntry
from .._core.boxes import Shape
from .._core.dtypes import class_of
from .._core.names import find_nearest, split_name
from .._core.text import list_names
from ..errors import MappingError
from .name_index import NameIndex
from .names import Binding, NamePattern
from .part_layout import Piece, RuleError, SizeUnknown, check_fill
from .rule_layout import RuleLayout, Stack
from .rules import Concat, From
from .stacks import describe_sources, format_source, list_stacked, name_member, order_stack


class RuleSet(Protocol):
    """What is asked of a mapping."""

    @property
    def rules(self) -> Mapping[str, From | Concat]: ...
    @property
    def targets(self) -> Mapping[str, NamePattern]: ...
    @property
    def drop(self) -> tuple[str, ...]: ...
    @property
    def rest(self) -> Literal["error", "keep"]: ...


Expected = Callable[[str], "tuple[Shape, np.dtype] | None"]
"""The shape and dtype that a template expects of a leaf, by its name in the view."""

Key = tuple[tuple[str, int | str], ...]
"""Values of the placeholders that both names of a rule have: a member of a family."""


_MAX_UNSTACKED = 1_000_000
"""Pieces that a mapping may cut leaves into by unstacking: a few bytes may say 10**15 of them."""


_MAX_HINTS = 20
"""Rules without a source for which the nearest name is sought: an error shows no more lines."""


_MAX_TRIED = 64
"""Leaves that are unstacked of which a template may ask for the first."""


class Made(msgspec.Struct, frozen=True, gc=False):
    """How a leaf of a view is made.

    Attributes:
        rule: The rule, as its target's name; None for a leaf that `rest="keep"` passes through.
        same: The stored leaf, if the leaf is exactly that under another name.
        layout: How the rule is laid out; None if the leaf is a stored one, or has no known shape.
        at: The index of the leaf along each placeholder that only the target's name has.
        found: The stored leaves that each part of the rule takes.
    """

    rule: str | None
    same: LeafEntry | None = None
    layout: RuleLayout | None = None
    at: Mapping[str, int] = MappingProxyType({})
    found: Sequence[Stack] = ()

    def list_pieces(self) -> Iterator[Piece]:
        """Where the elements come from; the pieces tile the leaf."""
        # Made when the leaf is located: a view may have a million leaves of which few are wanted.
        return iter(()) if self.layout is None else self.layout.make_pieces(self.at, self.found)

    @property
    def sources(self) -> list[LeafEntry]:
        """The stored leaves, each once."""
        if self.same is not None:
            return [self.same]
        return list({e.name: e for stack in self.found for e in stack.values()}.values())


@dataclass(frozen=True)
class Resolved:
    """What a mapping makes of a checkpoint.

    Attributes:
        entries: The leaves of the view; the `handle` of each is a `Made`.
        layouts: Rule, as its target's name → how it is laid out: once for all of its leaves, or for
            each shape of sources.
        unread: The leaves that templax does not read and the mapping does not drop: name → why.
    """

    entries: tuple[LeafEntry, ...]
    layouts: Mapping[str, Sequence[RuleLayout]]
    unread: Mapping[str, str]


def resolve_mapping(
    mapping: RuleSet,
    stored: Sequence[LeafEntry],
    expected: Expected | None,
    unread: Mapping[str, str] | None = None,
) -> Resolved:
    """Applies a mapping to the leaves of a checkpoint.

    Args:
        mapping: The rules.
        stored: All leaves of the checkpoint.
        expected: What a template expects of a leaf; without a template, None. With one, the sizes
            of leaves that it does not ask for may stay unknown.
        unread: Leaves of the checkpoint that templax does not read: name → why.

    Raises:
        MappingError: The mapping does not fit the leaves; lists every problem of every rule.
    """
    return _Resolver(mapping, stored, expected, unread or {}).resolve()


def _expect_nothing(name: str) -> None:
    del name


class _Resolver:
    def __init__(
        self,
        mapping: RuleSet,
        stored: Sequence[LeafEntry],
        expected: Expected | None,
        unread: Mapping[str, str],
    ):
        self._unread, self._unread_names = unread, NameIndex(list(unread))
        self._mapping, self._expected = mapping, expected or _expect_nothing
        self._fits_template = expected is not None
        self._stored = {entry.name: entry for entry in stored}
        self._names = NameIndex(list(self._stored))
        self._unstacked = 0
        self._problems: list[str] = []
        self._entries: dict[str, LeafEntry] = {}
        self._used: set[str] = set()
        self._layouts: dict[tuple[str, *tuple[object, ...]], RuleLayout] = {}

    def resolve(self) -> Resolved:
        mapping, dropped = self._mapping, self._find_dropped()
        texts = [text for text, target in mapping.targets.items() if not target.has_rest]
        rests = [text for text, target in mapping.targets.items() if target.has_rest]
        rests.sort(key=lambda text: mapping.targets[text].specificity, reverse=True)
        unmatched: list[str] = []
        for text in texts + rests:
            target, rule = mapping.targets[text], mapping.rules[text]
            # A more specific rule wins over `{...}`.
            taken = (self._used, dropped) if target.has_rest else ()
            if not self._apply_rule(text, target, rule, taken):
                unmatched.append(text)
        self._report_unmatched(unmatched)
        left = [name for name in self._stored if name not in self._used and name not in dropped]
        if mapping.rest == "keep":
            for name in left:
                entry = self._stored[name]
                self._add(structs.replace(entry, handle=Made(None, same=entry)))
        elif left and not self._problems:
            self._report_left(left)
        wrong: defaultdict[str, list[str]] = defaultdict(list)
        for name, pattern in dropped.items():
            if name in self._used:
                wrong[pattern].append(name)
        for pattern, names in wrong.items():
            self._problems.append(
                f"drop={pattern!r} matches {list_names(names)}, which a rule uses: make it narrower"
            )
        if self._problems:
            raise MappingError(self._problems)
        layouts: defaultdict[str, list[RuleLayout]] = defaultdict(list)
        for (text, *_), layout in self._layouts.items():
            layouts[text].append(layout)
        gone = dropped.keys() | self._entries.keys()
        unread = {name: why for name, why in self._unread.items() if name not in gone}
        return Resolved(tuple(self._entries.values()), layouts, unread)

    def _find_dropped(self) -> dict[str, str]:
        """Name of a leaf that is dropped → the pattern."""
        found: dict[str, str] = {}
        for pattern in self._mapping.drop:
            mine = [*self._names.match_glob(pattern), *self._unread_names.match_glob(pattern)]
            if not mine:
                self._problems.append(f"drop={pattern!r} matches no leaf: leave it out")
            found |= dict.fromkeys(mine, pattern)
        return found

    def _report_unmatched(self, unmatched: Sequence[str]) -> None:
        """Reports rules whose sources the checkpoint lacks."""
        for text in unmatched:
            rule, target = self._mapping.rules[text], self._mapping.targets[text]
            parts = rule.parts if isinstance(rule, Concat) else (rule,)
            wanted = " and ".join(f"`{part.source.text}`" for part in parts)
            refused = [part.source.text for part in parts if part.source.text in self._unread]
            if refused:
                why = self._unread[refused[0]]
                self._problems.append(f"`{text}`: templax does not read `{refused[0]}`: {why}")
                continue
            similar = self._names.list_candidates(target)
            there = next((name for name in similar if _match(target, parts[0], name)), None)
            if there is not None:
                hint = f"it has `{there}`, which this rule makes: it seems to be mapped already"
            else:
                few = len(self._problems) < _MAX_HINTS
                near = find_nearest(parts[0].source.text, self._stored) if few else None
                hint = f"nearest: `{near}`" if near else "correct the name, or leave the rule out"
            self._problems.append(f"`{text}`: the checkpoint has no {wanted}; {hint}")

    def _report_left(self, left: Sequence[str]) -> None:
        """Reports leaves that no rule names."""
        names, part = set(left), From("_")
        mapped = next(
            (
                name
                for target in self._mapping.targets.values()
                for name in self._names.list_candidates(target)
                if name in names and _match(target, part, name)
            ),
            None,
        )
        hint = 'write rules for them, or drop=[...], or rest="keep"'
        if mapped is not None:
            hint = f"`{mapped}` is what a rule makes: the checkpoint seems to be mapped already"
        self._problems.append(f"no rule names {list_names(left)}: {hint}")

    def _apply_rule(
        self,
        text: str,
        target: NamePattern,
        rule: From | Concat,
        taken: Sequence[Container[str]],
    ) -> bool:
        """Adds the leaves that a rule makes of all leaves but those that are taken.

        Returns:
            Whether any leaf of the checkpoint matched.
        """
        parts = rule.parts if isinstance(rule, Concat) else (rule,)
        families = [self._find_family(target, part, taken) for part in parts]
        keys = list(dict.fromkeys(key for family in families for key in family))
        for key in keys:
            try:
                found: list[Stack] = []
                for part, family in zip(parts, families, strict=True):
                    if key not in family:
                        there = format_source(part, dict(key))
                        raise RuleError(f"the checkpoint has no {there}, but the other parts")
                    found.append(order_stack(part, target, family[key]))
                for entry in self._make_members(text, target, rule, parts, found, dict(key)):
                    self._add(entry)
            except RuleError as error:
                self._problems.append(f"`{text}`: {error}")
                break  # the other members mostly have the same problem
        for family in families:
            for sources in family.values():
                self._used.update(entry.name for entry in sources.values())
        return bool(keys)

    def _find_family(
        self, target: NamePattern, part: From, taken: Sequence[Container[str]]
    ) -> dict[Key, dict[tuple[int | str, ...], LeafEntry]]:
        """The sources of a part: for each member, those along its stacked placeholders."""
        found: dict[Key, dict[tuple[int | str, ...], LeafEntry]] = {}
        shared, stacked = [*target.placeholders, "..."], list_stacked(part, target)
        for name in self._names.list_candidates(part.source):
            if any(name in each for each in taken):
                continue
            binding = part.source.match(name, part.names, part.sizes)
            if binding is None:
                continue
            key = tuple((p, binding[p]) for p in shared if p in binding)
            position = tuple(binding[p] for p in stacked)
            found.setdefault(key, {})[position] = self._stored[name]
        return found

    def _make_members(
        self,
        text: str,
        target: NamePattern,
        rule: From | Concat,
        parts: Sequence[From],
        found: Sequence[Stack],
        shared: Binding,
    ) -> Iterator[LeafEntry]:
        """The leaves for one binding of the shared placeholders: one, or those of an axis."""
        sizes = {k: v for part in parts for k, v in part.sizes.items()}
        names = {k: v for part in parts for k, v in part.names.items()}
        first = next(iter(found[0].values()))
        if isinstance(rule, From) and rule.axes is None:
            name = name_member(target, shared, sizes)
            if rule.scale is None and rule.add is None:
                yield structs.replace(
                    first,
                    name=name,
                    path=split_name(name),
                    handle=Made(text, same=first),
                    made_from=first.name,
                )
                return
        for entry in itertools.chain.from_iterable(each.values() for each in found):
            if entry.kind in ("string", "key"):
                raise RuleError(f"`{entry.name}` is a {entry.kind}: take it as it is, without axes")
            if entry.dtype != first.dtype:
                raise RuleError(
                    f"`{first.name}` is {first.dtype_name}, `{entry.name}` is {entry.dtype_name}:"
                    " one leaf has one dtype"
                )
        unstacked = [p for p in target.placeholders if p not in shared]
        # A template may ask for some of them only: each tells the shape of all.
        values = [names.get(p, range(sizes.get(p, _MAX_TRIED))) for p in unstacked]
        first_names = [
            name_member(target, {**shared, **dict(zip(unstacked, each, strict=True))}, sizes)
            for each in itertools.islice(itertools.product(*values), _MAX_TRIED)
        ]
        expected = next(filter(None, map(self._expected, first_names)), None)
        try:
            layout = self._lay_out(text, rule, parts, found, expected, unstacked)
        except SizeUnknown:
            if expected is not None or not self._fits_template:
                raise
            # The template does not ask for this leaf, so that nobody needs its shape.
            name = first_names[0]
            made_from = f"{describe_sources(found, None)}, in a shape that is not known"
            yield LeafEntry(
                name,
                split_name(name),
                first.shape,
                first.dtype,
                handle=Made(text),
                made_from=made_from,
            )
            return
        dtype, computed = first.dtype, any(part.scale or part.add for part in parts)
        if computed:
            if class_of(dtype) != "float":
                raise RuleError(
                    f"scale and add are for floats, `{first.name}` is {first.dtype_name}"
                )
            if expected is not None and class_of(expected[1]) == "float":
                dtype = expected[1]
        self._check_count(found, {p: layout.counts[p] for p in unstacked})
        for value in itertools.chain.from_iterable(part.pad.values() for part in parts):
            check_fill(value, dtype)
        made_from = describe_sources(found, expected and layout.explain(expected[0]))
        for index in itertools.product(*[range(layout.counts[p]) for p in unstacked]):
            at = dict(zip(unstacked, index, strict=True))
            chosen: Binding = {p: names[p][i] if p in names else i for p, i in at.items()}
            name = name_member(target, {**shared, **chosen}, sizes)
            made = Made(text, None, layout, at, found)
            yield LeafEntry(
                name,
                split_name(name),
                layout.shape,
                dtype,
                handle=made,
                made_from=made_from,
            )

    def _check_count(self, found: Sequence[Stack], counts: Mapping[str, int]) -> None:
        """Refuses to unstack leaves into none, which would drop them, or into too many."""
        if not counts:
            return
        first, sources = next(iter(found[0].values())), sum(map(len, found))
        for placeholder, n in counts.items():
            if not n:
                raise RuleError(
                    f"`{first.name}` has no elements along `{placeholder}`, so that no leaf is"
                    " made of it: add it to drop= instead"
                )
        n = math.prod(counts.values())
        self._unstacked += n * sources
        if self._unstacked > _MAX_UNSTACKED:
            of = f"`{first.name}` is" if sources == 1 else f"{sources:,} leaves are"
            raise RuleError(
                f"{of} unstacked into {n:,} leaves: a mapping takes at most {_MAX_UNSTACKED:,}"
                " pieces of leaves in this way, unstack fewer axes"
            )

    def _lay_out(
        self,
        text: str,
        rule: From | Concat,
        parts: Sequence[From],
        found: Sequence[Stack],
        expected: tuple[Shape, np.dtype] | None,
        unstacked: Sequence[str],
    ) -> RuleLayout:
        """The layout of a member; members whose sources look alike share one."""
        shapes: list[Shape] = []
        for sources in found:
            first, *others = sources.values()
            for entry in others:
                if entry.shape != first.shape:
                    raise RuleError(
                        f"`{first.name}` has shape {first.shape}, `{entry.name}` has"
                        f" {entry.shape}: what is stacked has one shape"
                    )
            shapes.append(first.shape)
        key = (text, *shapes, *(tuple(each) for each in found), expected and expected[0])
        layout = self._layouts.get(key)
        if layout is None:
            counts: list[dict[str, int]] = []
            for part, sources in zip(parts, found, strict=True):
                *_, last = sources
                stacked = list_stacked(part, self._mapping.targets[text])
                counts.append({p: i + 1 for p, i in zip(stacked, last, strict=True)})
            layout = RuleLayout(rule, parts, shapes, counts, expected and expected[0], unstacked)
            self._layouts[key] = layout
        return layout

    def _add(self, entry: LeafEntry) -> None:
        other = self._entries.get(entry.name)
        if other is None:
            self._entries[entry.name] = entry
            return
        rule, first = entry.handle.rule, other.handle.rule
        if rule is None:
            self._problems.append(
                f"`{first}` makes `{entry.name}`, which the checkpoint has as well: add the latter"
                " to drop="
            )
        else:
            of = " and ".join(f"`{source.name}`" for source in entry.handle.sources[:1])
            self._problems.append(
                f"`{rule}` and `{first}` both make `{entry.name}`: make one of them narrower, or"
                f" add {of} to drop="
            )


def _match(target: NamePattern, part: From, name: str) -> bool:
    return target.match(name, part.names, part.sizes) is not None
