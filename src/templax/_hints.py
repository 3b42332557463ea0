"""Hints on mismatches. Each is tried, by matching again as the hint says, before it is given."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ._catalog import LeafEntry
from ._errors import Mismatch
from ._match import Match, Options, Side, fit, match, seen
from ._names import Path, fold, join, nearest
from ._template import Target, Template

MOST_CANDIDATES = 8
"""Hints of one sort that are tried; each try costs one match."""


@dataclass(frozen=True, slots=True)
class _Case:
    """A failed match and what it takes to try again."""

    result: Match
    side: Side
    options: Options
    fallback: Side | None

    def again(self, options: Options, template: Template | None = None) -> Match:
        template = template or self.result.template
        return match(self.result.url, self.side, template, options, self.fallback)

    def of(self, *problems: str) -> list[Mismatch]:
        return [m for m in self.result.mismatches if m.problem in problems]


def with_hints(result: Match, side: Side, options: Options, fallback: Side | None) -> Match:
    """A failed match, its mismatches with hints where one helps; silent where none does."""
    case = _Case(result, side, options, fallback)
    for whole_tree in (_at, _wrap, _value_level, _rename, _only_extra):
        better = whole_tree(case)
        if better is not None:
            result = better
            break
    if result.summary is not None:
        return result
    leaves = {t.name: t for t in result.template.targets}
    entries = {name: entry for _, name, entry in seen(side, options)}
    hinted = [_of_leaf(m, leaves, entries, options) for m in result.mismatches]
    return replace(result, mismatches=tuple(_stacked(hinted, leaves, entries)))


# Of the whole tree.


def _explained(case: _Case, hint: str, after: Match, summary: str | None, **more: object) -> Match:
    """The match with `hint` on each mismatch that it removes."""
    left = {(m.problem, m.name) for m in after.mismatches}
    mismatches = tuple(
        m if (m.problem, m.name) in left else replace(m, hint=hint) for m in case.result.mismatches
    )
    text = None
    if summary is not None:
        text = f"{summary}; hint: {hint}"
        if after.mismatches:
            n = len(after.mismatches)
            text += f" (which leaves {n} {'mismatch' if n == 1 else 'mismatches'}, for instance: "
            text += f"{after.mismatches[0].fact})"
    return replace(case.result, mismatches=mismatches, summary=text, **more)


def _better(case: _Case, after: Match) -> bool:
    """Whether every template leaf is found now, and less is wrong than before."""
    return not any(m.problem == "missing" for m in after.mismatches) and len(
        after.mismatches
    ) < len(case.result.mismatches)


def _found(case: _Case) -> str:
    """`none of 148 leaves found in ckpt/1000`, or however many are."""
    total = sum(t.has_data for t in case.result.template.targets)
    found = total - len(case.of("missing"))
    text = f"{found or 'none'} of {total} {'leaf' if total == 1 else 'leaves'} found in"
    under = f" under `{case.options.at}`" if case.options.at else ""
    return f"{text} {case.result.url}{under}"


def _quoted(text: str) -> str:
    """A Python literal of a name, also of one that holds quotes."""
    return json.dumps(text, ensure_ascii=False)


def _at(case: _Case) -> Match | None:
    """The checkpoint holds the template's tree deeper (or less deep) than `at` says."""
    if not case.of("missing") or not case.side.entries:
        return None
    wanted = {t.name for t in case.result.template.targets if t.has_data}
    votes: Counter[str] = Counter()
    for entry in case.side.entries:
        for i in range(len(entry.path) + 1):
            if join(entry.path[i:]) in wanted:
                votes[join(entry.path[:i])] += 1
    works = []
    candidates = votes.most_common(MOST_CANDIDATES + 1)
    if len(candidates) > MOST_CANDIDATES and candidates[-1][1] == candidates[0][1]:
        return None  # more places look alike than are worth trying
    for at, _ in candidates[:MOST_CANDIDATES]:
        if at != case.options.at:
            after = case.again(replace(case.options, at=at))
            if _better(case, after):
                works.append((len(after.mismatches), at, after))
    works.sort(key=lambda w: w[0])
    if not works or (len(works) > 1 and works[0][0] == works[1][0]):
        return None  # none, or several equally good: which one is meant is not ours to say
    _, at, after = works[0]
    there = f"under `{at}`" if at else "at its root"
    summary = f"{_found(case)}; the checkpoint holds the same tree {there}"
    return _explained(case, f"at={_quoted(at)}", after, summary)


def _wrap(case: _Case) -> Match | None:
    """The template holds the checkpoint's tree under a prefix."""
    if not case.of("missing") or case.options.rename is not None:
        return None
    names = {name for _, name, _ in seen(case.side, case.options)}
    votes: Counter[str] = Counter()
    for target in case.result.template.targets:
        for i in range(1, len(target.path) + 1):
            if join(target.path[i:]) in names:
                votes[join(target.path[:i])] += 1
    for prefix, _ in votes.most_common(1):
        rename = {"": prefix}
        after = case.again(replace(case.options, rename=rename))
        if _better(case, after):
            summary = f"{_found(case)}; the template wraps the checkpoint's tree in `{prefix}`"
            return _explained(case, f"rename={_literal(rename)}", after, summary, rename=rename)
    return None


_VALUE: tuple[tuple[str, Callable[[str], str]], ...] = (
    ('rename=lambda name: name.removesuffix(".value")', lambda name: name.removesuffix(".value")),
    ('rename=lambda name: name + ".value"', lambda name: name + ".value"),
)


def _value_level(case: _Case) -> Match | None:
    """One side has the extra `value` level of NNX variables and of Flax's boxes."""
    if not case.of("missing") or case.options.rename is not None:
        return None
    for hint, rename in _VALUE:
        after = case.again(replace(case.options, rename=rename))
        if _better(case, after):
            side = "checkpoint" if "removesuffix" in hint else "template"
            summary = (
                f"{_found(case)}; the {side} has an extra level `value`"
                " (an NNX variable or a Flax box)"
            )
            return _explained(case, hint, after, summary)
    return None


def _rename(case: _Case) -> Match | None:
    """Leaves of the checkpoint whose names are near the missing ones: another case or spelling."""
    missing, extra = case.of("missing"), case.of("extra")
    if not missing or not extra or case.options.rename is not None:
        return None
    leaves = {t.name: t for t in case.result.template.targets}
    entries = {name: (path, entry) for path, name, entry in seen(case.side, case.options)}
    spare = {m.name for m in extra}
    folded: dict[str, list[str]] = defaultdict(list)
    for name in spare:
        folded[fold(name)].append(name)
    pairs: dict[str, str] = {}
    for m in missing:
        same = folded.get(fold(m.name), [])
        near = same[0] if len(same) == 1 else None
        if near is None and not same and len(missing) * len(spare) <= 10_000:
            siblings = [n for n in spare if entries[n][0][:-1] == leaves[m.name].path[:-1]]
            near = nearest(m.name, siblings)
        if near is not None and not fit(leaves[m.name], entries[near][1], case.options.cast)[0]:
            pairs[m.name] = near
    if len(set(pairs.values())) != len(pairs) or not pairs:
        return None  # two leaves want the same one
    rename = dict(_prefix_pair(entries[old][0], leaves[new].path) for new, old in pairs.items())
    after = case.again(replace(case.options, rename=rename))
    gone = {(m.problem, m.name) for m in case.result.mismatches} - {
        (m.problem, m.name) for m in after.mismatches
    }
    solved = {("missing", new) for new in pairs} | {("extra", old) for old in pairs.values()}
    if not solved <= gone or len(after.mismatches) != len(case.result.mismatches) - len(solved):
        return None
    noted = [
        replace(m, note=f"nearest: `{pairs[m.name]}`")
        if m.problem == "missing" and m.name in pairs
        else m
        for m in case.result.mismatches
    ]
    case = replace(case, result=replace(case.result, mismatches=tuple(noted)))
    return _explained(case, f"rename={_literal(rename)}", after, None, rename=rename)


def _prefix_pair(old: Path, new: Path) -> tuple[str, str]:
    """Two paths without the end they share: `a.Dense_0.w`, `a.dense_0.w` → `a.Dense_0`, ..."""
    o, n = list(map(str, old)), list(map(str, new))
    while len(o) > 1 and len(n) > 1 and o[-1] == n[-1]:
        o.pop()
        n.pop()
    return ".".join(o), ".".join(n)


def _only_extra(case: _Case) -> Match | None:
    if len(case.of("extra")) != len(case.result.mismatches):
        return None
    after = case.again(replace(case.options, extra="ignore"))
    return _explained(case, 'extra="ignore"', after, None) if after.ok else None


def _literal(rename: Mapping[str, str]) -> str:
    items = [f"{_quoted(old)}: {_quoted(new)}" for old, new in rename.items()]
    if len(items) <= 6:
        return "{" + ", ".join(items) + "}"
    return (
        "{"
        + ", ".join(items[:3])
        + f", ...}} ({len(items)} entries, whole in `error.match.rename`)"
    )


# Of one leaf.

_X64 = 'jax.config.update("jax_enable_x64", True), or a numpy array as template leaf'


def _of_leaf(
    m: Mismatch, leaves: Mapping[str, Target], entries: Mapping[str, LeafEntry], options: Options
) -> Mismatch:
    target, entry = leaves.get(m.name), entries.get(m.name)
    if m.hint is not None or target is None:
        return m
    if entry is None:
        near = (
            nearest(m.name, (n for n in entries if n not in leaves))
            if len(entries) <= 2000
            else None
        )
        return replace(m, note=f"nearest: `{near}`") if near and m.note is None else m
    if m.problem == "shape":
        shape = entry.shape
        if len(shape) >= 2 and shape == (*target.shape[:-2], target.shape[-1], target.shape[-2]):
            turned = replace(target, shape=shape)
            if not any(w.problem == "shape" for w in fit(turned, entry, options.cast)[0]):
                return replace(
                    m,
                    hint=f"the checkpoint holds the transpose: ask for shape `{shape}` "
                    "and swap the last two axes of the result",
                )
    if m.problem == "dtype" and m is target.problem:  # a jax.Array of 64 bits
        if any(w.problem == "dtype" for w in fit(target, entry, options.cast)[0]):
            return m
        return replace(m, hint=_X64)
    if m.problem == "dtype":
        for cast in ("widen", "float"):
            if options.cast != "float" and not fit(target, entry, cast)[0]:
                return replace(m, hint=f'cast="{cast}"')
    return m


_NUMBERED = re.compile(r"^(.*?)(\d+)$")


def _stacked(
    mismatches: Sequence[Mismatch], leaves: Mapping[str, Target], entries: Mapping[str, LeafEntry]
) -> Iterable[Mismatch]:
    """Says where one side stacks (as scan does) layers that the other names one by one."""
    missing = [leaves[m.name] for m in mismatches if m.problem == "missing"]
    extra = [entries[m.name] for m in mismatches if m.problem == "extra" and m.name in entries]
    hints: dict[str, str] = {}
    for names, n, axis, stack in _stacks(missing, extra):
        hint = (
            f"the checkpoint stacks these {n} layers along axis {axis} of `{stack}`, as scan does: "
            "ask for the stacked leaf and split the result"
        )
        hints |= dict.fromkeys([*names, stack], hint)
    for names, n, axis, stack in _stacks(extra, missing):
        hint = (
            f"the checkpoint holds `{stack}` as {n} layers, `{names[0]}` to `{names[-1]}`: "
            f"ask for the layers and stack the results along axis {axis}"
        )
        hints |= dict.fromkeys([*names, stack], hint)
    return [
        replace(m, hint=hints[m.name]) if m.name in hints and not m.hint else m for m in mismatches
    ]


def _stacks(
    layers: Sequence[Target | LeafEntry], stacks: Sequence[Target | LeafEntry]
) -> Iterable[tuple[list[str], int, int, str]]:
    """Groups of equal leaves numbered 0..n-1 that one leaf of `stacks` holds along one axis.

    Yields:
        Names of the layers, their number, the axis, and the name of the stacked leaf.
    """
    groups: dict[tuple[Path, str, Path], dict[int, Target | LeafEntry]] = defaultdict(dict)
    for leaf in layers:
        for i, element in enumerate(leaf.path):
            numbered = _NUMBERED.match(str(element))
            if numbered:
                key = (leaf.path[:i], numbered[1], leaf.path[i + 1 :])
                groups[key][int(numbered[2])] = leaf
    for (head, stem, tail), group in groups.items():
        n = len(group)
        shapes = {leaf.shape for leaf in group.values()}
        if n < 2 or set(group) != set(range(n)) or len(shapes) != 1:
            continue
        (shape,) = shapes
        for stack in stacks:
            rest = stack.path[: len(head)] == head and stack.path[len(head) :]
            # `layers_0.kernel` is stacked as `layers.kernel` or, by NNX and others, as `kernel`.
            named = rest and (
                (rest[1:] == tail and fold(str(rest[0])).startswith(fold(stem))) or rest == tail
            )
            axes = [a for a in range(len(shape) + 1) if stack.shape == (*shape[:a], n, *shape[a:])]
            if named and axes:
                names = [join(group[i].path) for i in range(n)]
                yield names, n, axes[0], join(stack.path)
                break
