"""What can be said about a rule before any tree is seen. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from .axes import ELLIPSIS, Axes, flatten_dims, format_dims
from .names import Field, NamePattern
from .rules import Concat, From, Rule


def find_problems(target: NamePattern, rule: Rule) -> list[str]:
    """Says what is wrong with a rule, each problem with what to write instead.

    Args:
        target: The name of the leaf that it makes.
        rule: What it makes it of.
    """
    if rule.problems:
        return list(rule.problems)
    parts = rule.parts if isinstance(rule, Concat) else (rule,)
    problems = list(_check_target(target, parts))
    for i, part in enumerate(parts):
        where = f"part {i + 1}: " if isinstance(rule, Concat) else ""
        found = [*_check_names(target, part), *_check_part(target, rule, part)]
        problems += [f"{where}{problem}" for problem in found]
    return problems


def _check_part(target: NamePattern, rule: Rule, part: From) -> Iterator[str]:
    axes = part.axes
    if isinstance(rule, Concat):
        if axes is None:
            axes = Axes(rule.axes.dims, rule.axes.dims, rule.axes.text)
        elif not _fits_join(axes, rule):
            yield (
                f"the right side of `{axes.text}` does not have the axes of `{rule.axes.text}`:"
                " name the same axes, or write as many of them in each place"
            )
    if axes is None:
        yield from _check_whole_leaf(target, part)
        return
    yield from _check_placeholders(target, part, axes)
    yield from _check_sides(target, part, axes)
    yield from _check_options(target, part, axes)


def _fits_join(axes: Axes, rule: Concat) -> bool:
    """Whether the axes of a part are those of its `Concat`: by name, or else by position, be it of
    axes or of dimensions, so that `h w -> (h w)` fits `[n]`.
    """
    mine, wanted = flatten_dims(axes.right), flatten_dims(rule.axes.dims)
    by_position = [name == ELLIPSIS for name in mine] == [name == ELLIPSIS for name in wanted]
    if by_position or set(mine) == set(wanted):
        return True
    pairs = list(zip(axes.right, rule.axes.dims, strict=False))
    return len(axes.right) == len(rule.axes.dims) and all(
        one == other
        if ELLIPSIS in (*one, *other)
        else len(one) == len(other) or len(one) > len(other) == 1
        for one, other in pairs
    )


def _check_target(target: NamePattern, parts: Sequence[From]) -> Iterator[str]:
    """What concerns the target's name, whose placeholders get their names and sizes from parts."""
    names: dict[str, tuple[str, ...]] = {}
    sizes: dict[str, int] = {}
    for name in target.placeholders:
        users = [part for part in parts if name in part.source.placeholders] or parts
        if len({part.names.get(name) for part in users}) > 1:
            yield f"parts do not agree on the names of `{name}`: give {name}= in each of them"
        if len({part.sizes[name] for part in parts if name in part.sizes}) > 1:
            yield f"parts do not agree on the size of `{name}`: give the same in each of them"
    for part in parts:
        names |= part.names
        sizes |= part.sizes
    yield from _check_pattern(target, names, sizes)


def _check_names(target: NamePattern, part: From) -> Iterator[str]:
    """What concerns the names of a source and of what it becomes."""
    source = part.source
    yield from _check_pattern(source, part.names, part.sizes)
    if target.has_rest != source.has_rest:
        one = target.text if target.has_rest else source.text
        yield f"`{{...}}` is in `{one:.200}` only: write it in both names, or in neither"
    for name in part.names:
        if name not in source.placeholders and name not in target.placeholders:
            yield (
                f"{name}= gives names, but no name has `{{{name}}}`: give a size, or write the"
                " placeholder"
            )


def _check_pattern(
    pattern: NamePattern, names: Mapping[str, Sequence[str]], sizes: Mapping[str, int]
) -> Iterator[str]:
    for segment in pattern.segments:
        if not isinstance(segment, Field):
            continue
        for name in segment.names:
            if name in names and not segment.plain:
                yield (
                    f"`{segment.text}` is an integer, but {name}= gives names: write `{{{name}}}`,"
                    " or do not give any"
                )
        for name in segment.names[1:]:
            if name not in sizes and name not in names:
                yield f"`{segment.text}` needs the size of `{name}`: give it, as in {name}=4"
    ambiguity = pattern.find_ambiguity(names)
    if ambiguity is not None:
        yield ambiguity


def _split_placeholders(target: NamePattern, part: From) -> tuple[list[str], list[str], list[str]]:
    """The placeholders of both names, of the source only, and of the target only."""
    source = part.source.placeholders
    return (
        [name for name in source if name in target.placeholders],
        [name for name in source if name not in target.placeholders],
        [name for name in target.placeholders if name not in source],
    )


def _check_whole_leaf(target: NamePattern, part: From) -> Iterator[str]:
    """A source that is taken as it is."""
    _, stacked, unstacked = _split_placeholders(target, part)
    for name in stacked:
        yield (
            f"`{{{name}}}` is in the source's name only: write it in the target's, too, or stack"
            f" along it with axes, as in `... -> {name} ...`"
        )
    for name in unstacked:
        yield (
            f"`{{{name}}}` is in the target's name only: write it in the source's, too, or unstack"
            f" it with axes, as in `{name} ... -> ...`"
        )
    options = {
        "select": part.select,
        "slice": part.slice,
        "flip": part.flip,
        "pad": part.pad,
        "crop": part.crop,
    }
    for option, given in options.items():
        if given:
            yield f"{option}= is given without axes: name them, as in `h k -> h k`"
    yield from _check_sizes(target, part, ())
    yield from _check_expressions(part, ())


def _check_placeholders(target: NamePattern, part: From, axes: Axes) -> Iterator[str]:
    left, right = set(flatten_dims(axes.left)), set(flatten_dims(axes.right))
    shared, stacked, unstacked = _split_placeholders(target, part)
    for name in shared:
        if name in left or name in right:
            yield (
                f"`{name}` is a placeholder of both names and an axis of `{axes.text}`: call the"
                " axis something else"
            )
    for name in stacked:
        if name in left or name not in right:
            yield (
                f"`{{{name}}}` is in the source's name only, so `{name}` must be an axis of the"
                f" right side of `{axes.text}` and not of the left: write it there to stack along"
                " it, or in the target's name"
            )
    for name in unstacked:
        if name not in left or name in right or name in part.select:
            yield (
                f"`{{{name}}}` is in the target's name only, so `{name}` must be an axis of the"
                f" left side of `{axes.text}`, and neither of the right nor selected: write it"
                " there to unstack it, or in the source's name"
            )


def _check_sides(target: NamePattern, part: From, axes: Axes) -> Iterator[str]:
    """Axes on one side only."""
    left, right = flatten_dims(axes.left), flatten_dims(axes.right)
    placeholders = {*target.placeholders, *part.source.placeholders}
    for name in left:
        if name not in right and name not in part.select and name not in placeholders:
            yield (
                f"`{name}` is on the left of `{axes.text}` only: write it on the right, too, or"
                f" take one index, as in select={{'{name}': 0}}"
            )
    for name in right:
        if name not in left and name not in part.sizes and name not in placeholders:
            yield (
                f"`{name}` is on the right of `{axes.text}` only: write it on the left or as a"
                f" placeholder of the source, or give its size, as in {name}=4, to repeat along it"
            )


def _check_options(target: NamePattern, part: From, axes: Axes) -> Iterator[str]:
    left, right = set(flatten_dims(axes.left)), set(flatten_dims(axes.right))
    known = left | right
    kept = left & right
    _, stacked, _ = _split_placeholders(target, part)
    for name in part.select:
        if name in right:
            yield f"select= takes one index of `{name}`: remove it from the right of `{axes.text}`"
        elif name not in left:
            yield _explain_unknown("select=", name, left - right, "an axis of the left side only")
    for dim in part.slice:
        if dim not in axes.left and not (len(dim) == 1 and dim[0] in left):
            wanted = "an axis or a whole group in parentheses on the left side"
            yield _explain_unknown("slice=", format_dims((dim,)), left, wanted)
    cut = [name for dim in part.slice for name in dim]
    for name in dict.fromkeys(cut):
        if cut.count(name) > 1:
            yield f"slice= cuts `{name}` twice: give one range"
        if name in part.select:
            yield f"`{name}` is in slice= and select=: select alone takes one index"
    for name in part.flip:
        if name in stacked:
            yield f"flip= has `{name}`, along which leaves are stacked in the order of their names"
        elif name not in known:
            yield _explain_unknown("flip=", name, known, "an axis")
        elif name in part.select:
            yield f"`{name}` is in flip= and select=: select alone takes one index"
    for option, names in (("pad=", part.pad), ("crop=", part.crop)):
        for name in names:
            if name not in kept:
                yield _explain_unknown(option, name, kept, "an axis of both sides")
    yield from _check_sizes(target, part, known)
    yield from _check_expressions(part, known)


def _check_sizes(target: NamePattern, part: From, known: Collection[str]) -> Iterator[str]:
    fields = [
        segment
        for pattern in (target, part.source)
        for segment in pattern.segments
        if isinstance(segment, Field)
    ]
    counted = {name for f in fields for name in f.names[1:]}
    for name in part.sizes:
        if name not in known and name not in counted:
            yield _explain_unknown(f"{name}=", name, {*known, *counted}, "an axis")


def _check_expressions(part: From, known: Collection[str]) -> Iterator[str]:
    for option, expression in (("scale=", part.scale), ("add=", part.add)):
        for name in sorted(expression.names - set(known)) if expression is not None else ():
            yield _explain_unknown(option, name, known, "an axis")


def _explain_unknown(option: str, name: str, known: Collection[str], wanted: str) -> str:
    there = set(known) - {ELLIPSIS}
    choices = ", ".join(f"`{axis}`" for axis in sorted(there))
    instead = f"give one of {choices}" if choices else "leave it out"
    return f"{option} has `{name}`, which is not {wanted}: {instead}"
