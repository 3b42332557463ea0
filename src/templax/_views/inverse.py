"""The rules that undo a mapping: each source, made of the leaves that were made of it. Pure."""

from __future__ import annotations

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .._core.text import list_names
from .axes import ELLIPSIS, Dim, flatten_dims, format_dims
from .inverse_names import NameKey, ignore_placeholders, key_of_source, list_drops, list_name_sizes
from .names import NamePattern
from .part_layout import Joined, PartLayout, RuleError
from .resolve import RuleSet
from .rule_layout import RuleLayout, list_dims
from .rules import Concat, From

_PASS_OF = "pass of= the checkpoint that the mapping is for"


@dataclass(frozen=True, slots=True)
class _Share:
    """What a part of a rule holds of its source, and how that is made of the rule's target.

    Attributes:
        target: The rule, as its target's name.
        left, right: Dimensions of the target and of the source; None for a leaf as it is.
        options: Arguments of the `From` that makes the share of the target.
        placeholders: Those of both names, which no axis may be called instead.
        place: Which axis of the source is cut: the dimension, and the axis in it, or None for all
            of its axes. None if the share is all of the source.
        start, stop: The range of that axis.
        total: The size of that axis; None if it isn't known.
    """

    target: str
    left: Sequence[Dim] | None
    right: Sequence[Dim]
    options: dict[str, Any]
    placeholders: frozenset[str] = frozenset()
    place: tuple[int, int | None] | None = None
    start: int = 0
    stop: int = 0
    total: int | None = None

    def make_part(self) -> From:
        axes = None
        if self.left is not None:
            axes = f"{format_dims(self.left)} -> {format_dims(self.right)}"
        return From(self.target, axes, **self.options)


def invert_rules(
    mapping: RuleSet, layouts: Mapping[str, Sequence[RuleLayout]], take: Sequence[str]
) -> tuple[dict[str, From | Concat], list[str], list[str]]:
    """The rules that undo those of a mapping.

    Args:
        mapping: The mapping.
        layouts: How its rules are laid out for a checkpoint, by their targets' names; empty if
            nothing is known but the rules.
        take: Rules, as their targets' names, that are taken where several hold the same elements:
            of each source, the first one that serves.

    Returns:
        The rules, the patterns of leaves that they do not need, and what can't be undone and why.
    """
    problems = [
        f"drop={pattern!r}: what is dropped can't be had back: write a rule for it"
        for pattern in mapping.drop
    ]
    problems += [
        f"take= names {text!r:.200}, but the mapping has no rule for it"
        for text in take
        if text not in mapping.rules
    ]
    groups: defaultdict[NameKey, list[_Share]] = defaultdict(list)
    for text, rule in mapping.rules.items():
        try:
            shares = _list_shares(mapping.targets[text], rule, layouts.get(text, ()), text in take)
            for part, share in shares:
                groups[key_of_source(part)].append(share)
        except RuleError as error:
            problems.append(f"`{text}`: {error}")
    if problems:  # a source that another rule has is not to blame
        return {}, [], problems
    rules: dict[str, From | Concat] = {}
    used: set[str] = set()
    spelled: dict[str, str] = {}
    for (name, _), group in groups.items():
        try:
            if name in rules or spelled.setdefault(ignore_placeholders(name), name) != name:
                raise RuleError(
                    f"another rule takes `{spelled[ignore_placeholders(name)]}`, which differs from"
                    f" `{name}` by placeholders or their names only: write both alike"
                )
            taken = sorted(
                (share for share in group if share.target in take),
                key=lambda share: take.index(share.target),
            )
            chosen = _choose_shares(name, taken or group)
            if len(chosen) < len(group) and not taken:
                raise RuleError(_explain_copies(name, group, "", chosen))
            rules[name] = _join_shares(name, chosen)
            used.update(share.target for share in chosen)
        except RuleError as error:
            problems.append(f"`{group[0].target}`: {error}")
    drop: list[str] = []
    for text, target in mapping.targets.items():
        if text not in used and not problems:
            try:
                drop += list_drops(target, mapping.rules[text])
            except RuleError as error:
                problems.append(f"`{text}`: {error}")
    return rules, drop, problems


def _list_shares(
    target: NamePattern, rule: From | Concat, layouts: Sequence[RuleLayout], taken: bool
) -> Iterator[tuple[From, _Share]]:
    """What a rule holds of each of its sources."""
    parts = rule.parts if isinstance(rule, Concat) else (rule,)
    for part in parts:
        lost = {"scale": part.scale, "add": part.add, "crop": part.crop or None}
        for option, given in lost.items():
            if given is not None:
                why = "elements are left out" if option == "crop" else "values are rounded"
                raise RuleError(f"{option}= has no inverse, as {why}")
    if isinstance(rule, From) and rule.axes is None:
        options = {**rule.names, **list_name_sizes(target, rule)}
        yield rule, _Share(target.text, None, (), options)
        return
    sizes = [_Sizes(part, [each.parts[k] for each in layouts]) for k, part in enumerate(parts)]
    dims = [list_dims(rule, part, 0) for part in parts]
    lengths = [
        None if joined is None else each.measure(joined, right)
        for each, (_, right, joined) in zip(sizes, dims, strict=True)
    ]
    for k, (part, (left, right, joined)) in enumerate(zip(parts, dims, strict=True)):
        share = _undo_part(target, part, left, right, sizes[k], joined)
        repeated = _find_repeated(part, left, right, sizes[k])
        if repeated is not None and not taken:
            where = f" along `{repeated}`"
            raise RuleError(_explain_copies(part.source.text, [share], where, [share]))
        if len(parts) > 1 and joined is not None:
            if None in lengths:
                raise RuleError(f"only shapes tell where its parts begin: {_PASS_OF}")
            known = [n for n in lengths if n is not None]
            share = _take_joined(share, sizes[k], joined, sum(known[:k]), known[k], sum(known))
        yield part, share


def _find_repeated(
    part: From, left: Sequence[Dim], right: Sequence[Dim], sizes: _Sizes
) -> str | None:
    """An axis along which a part is repeated, if there is one."""
    given = {*flatten_dims(left), *part.source.placeholders}
    added = [axis for axis in flatten_dims(right) if axis not in given]
    return next((axis for axis in added if sizes.find_target(axis) != 1), None)


def _explain_copies(
    name: str, group: Sequence[_Share], where: str, chosen: Sequence[_Share]
) -> str:
    """Says that elements are held several times, which may differ by now, and what to write."""
    holders = list(dict.fromkeys(share.target for share in group))
    taken = list(dict.fromkeys(share.target for share in chosen))
    what = "the first copy" if where or len(holders) == 1 else "this one"
    return (
        f"{list_names(holders)} {'holds' if len(holders) == 1 else 'hold'} copies of `{name}`"
        f"{where}, which may differ by now: pass take={json.dumps(taken)} to take {what} and leave"
        " the others out"
    )


class _Sizes:
    """The sizes of the axes of a part, as far as they are known: from its rule alone, or from
    layouts, if those agree.
    """

    def __init__(self, part: From, layouts: Sequence[PartLayout]):
        self.part, self._layouts = part, layouts

    def find_source(self, axis: str) -> int | None:
        if self._layouts:
            return _agree([layout.sizes.source.get(axis) for layout in self._layouts])
        if axis in self.part.pad and (axis,) not in self.part.slice:
            return None
        return self._find_given(axis)

    def find_target(self, axis: str) -> int | None:
        if self._layouts:
            return _agree([layout.sizes.target.get(axis) for layout in self._layouts])
        if (axis,) in self.part.slice:
            start, stop = self.part.slice[axis,]
            return stop - start
        return self._find_given(axis)

    def find_length(self, dim: Dim) -> int | None:
        """The length of a dimension of the source."""
        if len(dim) == 1:
            return self.find_source(dim[0])
        return _agree([each.shape[list(each.left).index(dim)] for each in self._layouts])

    def measure(self, joined: str | int, right: Sequence[Dim]) -> int | None:
        """The length of the part along what parts are joined along."""
        axes = (joined,) if isinstance(joined, str) else right[joined]
        sizes = [self.find_target(axis) for axis in axes]
        return None if None in sizes else math.prod([n for n in sizes if n is not None])

    def _find_given(self, axis: str) -> int | None:
        if axis in self.part.names:
            return len(self.part.names[axis])
        return self.part.sizes.get(axis)


def _agree(sizes: Sequence[int | None]) -> int | None:
    """The size, if all members of a family have the same."""
    return sizes[0] if len(set(sizes)) == 1 else None


def _undo_part(
    target: NamePattern,
    part: From,
    left: Sequence[Dim],
    right: Sequence[Dim],
    sizes: _Sizes,
    joined: Joined,
) -> _Share:
    """What a part holds of its source, made of the part of the target that it fills."""
    before, after = flatten_dims(left), flatten_dims(right)
    for axis in part.flip:
        if axis in target.placeholders:
            raise RuleError(
                f"it unstacks `{axis}` in reverse, and leaves are stacked in the order of their"
                " names: flip the stack first, in a mapping of its own"
            )
    given: dict[str, int] = dict(list_name_sizes(target, part))
    select = {a: 0 for a in after if a not in before and a not in part.source.placeholders}
    if isinstance(joined, str):
        select.pop(joined, None)
    cropped = [a for a in part.pad if (a,) not in part.slice and a != joined]
    for dim in right:
        both = [a for a in dim if a in cropped]
        if len(both) > 1:
            raise RuleError(
                f"it pads `{both[0]}` and `{both[1]}` of one dimension, of which an inverse could"
                " not tell both lengths: pad one of them in a mapping of its own"
            )
    for axis in cropped:
        given |= _as_size(axis, sizes.find_source(axis))
    given |= dict.fromkeys(part.select, 1)
    for dim in right:
        # All sizes but one of a composite axis: that one follows.
        spare = next((a for a in dim if a in cropped), next((a for a in dim if a != joined), None))
        for axis in dim if len(dim) > 1 else ():
            known = axis not in part.names and axis not in cropped
            if known and (axis != spare or axis in part.sizes):
                given |= _as_size(axis, sizes.find_target(axis))
    options: dict[str, Any] = {
        "select": select,
        "flip": [a for a in part.flip if a in before],
        "crop": cropped,
        **part.names,
        **given,
    }
    options = {name: value for name, value in options.items() if value not in ({}, [])}
    placeholders = frozenset((*target.placeholders, *part.source.placeholders))
    share = _Share(target.text, right, left, options, placeholders)
    cuts = [((axis,), index, index + 1) for axis, index in part.select.items()]
    cuts += [(dim, start, stop) for dim, (start, stop) in part.slice.items()]
    found = [
        (dim, start, stop, total)
        for dim, start, stop in cuts
        if (total := sizes.find_length(dim)) != stop - start
    ]
    if len(found) > 1:
        raise RuleError(
            f"it cuts `{part.source.text}` along {' and '.join(format_dims([c[0]]) for c in found)}"
            ", and parts are joined along one axis only"
        )
    for dim, start, stop, total in found:
        d = next(d for d, each in enumerate(left) if dim[0] in each)
        j = None if left[d] == dim else left[d].index(dim[0])
        share = replace(share, place=(d, j), start=start, stop=stop, total=total)
    return share


def _as_size(axis: str, size: int | None) -> dict[str, int]:
    return {} if size is None else {axis: size}


def _take_joined(
    share: _Share, sizes: _Sizes, joined: str | int, offset: int, length: int, total: int
) -> _Share:
    """A share that is made of a range of the joined axis of its target."""
    options, left = dict(share.options), share.left or ()
    if joined in sizes.part.source.placeholders:
        raise RuleError(
            f"`{joined}` stacks leaves inside a Concat: name each of them as a part of its own"
        )
    if isinstance(joined, str) and joined in flatten_dims(share.right):
        taken = sizes.find_source(joined) if joined in sizes.part.pad else length
        if taken is None:
            raise RuleError(f"only shapes tell how far `{joined}` is padded: {_PASS_OF}")
        options["slice"] = {joined: (offset, offset + taken)}
        options[joined] = total
    elif isinstance(joined, str):  # repeated along it
        options["select"] = {**options.get("select", {}), joined: offset}
        options[joined] = total
    else:
        options["slice"] = {format_dims([left[joined]]): (offset, offset + length)}
    return replace(share, options=options)


def _choose_shares(name: str, group: Sequence[_Share]) -> list[_Share]:
    """Shares that are a source together, each element once.

    Raises:
        RuleError: There are none, or it is not known.
    """
    for share in group:
        if share.place is None:
            return [share]
    targets = " and ".join(dict.fromkeys(f"`{share.target}`" for share in group))
    for place in dict.fromkeys(share.place for share in group):
        mine = [share for share in group if share.place == place]
        totals = {share.total for share in mine} - {None}
        if not totals:
            axis = _format_place(mine[0])
            raise RuleError(
                f"only shapes tell whether {targets} are all of `{name}`: {_PASS_OF}, or give the"
                f" size of `{axis}`"
            )
        chains: dict[int, list[_Share]] = {n: [] for n in totals if n is not None}
        for share in sorted(mine, key=lambda share: share.start, reverse=True):
            if share.stop in chains:
                chains.setdefault(share.start, [share, *chains[share.stop]])
        if 0 in chains:
            return chains[0]
    raise RuleError(
        f"{targets} {'is' if len(group) == 1 else 'are'} not all of `{name}`: the rest is lost, so"
        " write rules for it"
    )


def _format_place(share: _Share) -> str:
    d, j = share.place or (0, None)
    return format_dims([share.right[d]]) if j is None else share.right[d][j]


def _join_shares(name: str, shares: Sequence[_Share]) -> From | Concat:
    """The rule that makes a source of its shares."""
    first = shares[0]
    if first.place is None:
        return first.make_part()
    d, j = first.place
    dims = list(first.right)
    if j is None and any(len(share.right[d]) > 1 for share in shares):
        # The parts fit dimension by dimension.
        taken = {axis for share in shares for axis in flatten_dims(share.right)}
        joined = _find_free_name(taken)
        dims[d], j = (joined,), 0
        alike = all(
            [len(dim) for dim in share.right[:d]] == [len(dim) for dim in first.right[:d]]
            and [len(dim) for dim in share.right[d + 1 :]] == [len(dim) for dim in dims[d + 1 :]]
            for share in shares
        )
    else:
        joined = dims[d][j or 0]
        shares = [_rename_axes(share, first) for share in shares]
        alike = all(list(share.right) == dims for share in shares)
    if not alike:
        raise RuleError(f"write the axes of `{name}` alike in all rules that take a part of it")
    bracketed = [tuple(f"[{axis}]" if axis == joined else axis for axis in dim) for dim in dims]
    return Concat([share.make_part() for share in shares], format_dims(bracketed))


def _rename_axes(share: _Share, first: _Share) -> _Share:
    """A share whose axes are called as in another, if that can be told and done."""
    mine, theirs = flatten_dims(share.right), flatten_dims(first.right)
    left = share.left or ()
    fixed = share.placeholders | first.placeholders
    called = {a: b for a, b in zip(mine, theirs, strict=False) if a != b}
    others = set(flatten_dims(left)) - set(mine)
    if not called or len(mine) != len(theirs) or ELLIPSIS in {*called, *called.values()}:
        return share
    if fixed & {*called, *called.values()} or others & set(called.values()):
        return share

    def rename(dims: Sequence[Dim]) -> list[Dim]:
        return [tuple(called.get(axis, axis) for axis in dim) for dim in dims]

    options: dict[str, Any] = {}
    for key, value in share.options.items():
        if key in ("flip", "crop"):
            options[key] = [called.get(axis, axis) for axis in value]
        elif key == "select":
            options[key] = {called.get(axis, axis): index for axis, index in value.items()}
        elif key == "slice":
            cuts = {
                format_dims(rename([tuple(dim.strip("()").split())])): r for dim, r in value.items()
            }
            options[key] = cuts
        else:
            options[called.get(key, key)] = value
    return replace(share, left=rename(left), right=rename(share.right), options=options)


def _find_free_name(taken: set[str]) -> str:
    return next(name for i in itertools.count() if (name := f"n{i or ''}") not in taken)
