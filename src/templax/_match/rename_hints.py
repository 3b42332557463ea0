"""Hints that rename: each is tried, by matching again with it, before it is given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from .._catalog.entry import LeafEntry
from .._core.names import Path, Rename, join_path, prefixes, split_name
from .._core.text import quote_text
from .._template.template import Target
from .checkpoint_view import apply_at_and_rename
from .failure import (
    Failure,
    add_hint,
    add_rename_hint,
    count_found,
    is_much_better,
    solves_only,
)
from .leaf_hints import add_leaf_hints
from .meaning import list_moments
from .moved_subtrees import find_moved_subtrees
from .result import Match
from .similar_names import pair_similar_names


def suggest_wrapping(failure: Failure) -> Match | None:
    """Tries to put the checkpoint's tree under a prefix, as the template may do."""
    if not failure.select("missing"):
        return None
    names = {name for _, name, _ in apply_at_and_rename(failure.checkpoint, failure.options)}
    prefix = _find_wrapper(names, [t.name for t in failure.result.template.targets])
    if prefix is None:
        return None
    summary = f"{count_found(failure)}; the template wraps the checkpoint's tree in `{prefix}`"
    return _try_mapping(failure, {"": prefix}, summary)


def _find_wrapper(inner: set[str], outer: Sequence[str]) -> str | None:
    """The prefix that most names of `outer` have before a name of `inner`.

    None if there is none, or if several do: `online` and `target` may have the same tree. Moments
    do not count, which have the tree of the parameters.
    """
    votes: Counter[str] = Counter()
    for name in outer:
        head, rest = "", name
        while "." in rest:
            element, rest = rest.split(".", 1)
            head = f"{head}.{element}" if head else element
            if rest in inner:
                votes[head] += 1
        if "" in inner:
            votes[name] += 1
    ranked = [(head, n) for head, n in votes.most_common() if not list_moments(split_name(head))]
    if not ranked or (len(ranked) > 1 and 2 * ranked[1][1] > ranked[0][1]):
        return None
    return ranked[0][0]


@dataclass(frozen=True, slots=True)
class _Respelling:
    """A function that may turn each name of the checkpoint into one of the template.

    Attributes:
        fact: What differs between the two spellings.
        source: The function's result, as Python source.
        apply: The function.
        separator: What the checkpoint has in place of the dot, if that is what differs.
    """

    fact: str
    source: str
    apply: Callable[[str], str]
    separator: str | None = None


_BOX = "an extra level `value` (an NNX variable or a Flax box)"


def _list_respellings(stored: Sequence[Path], wanted: Sequence[Path]) -> Iterator[_Respelling]:
    if any(path and path[-1] == "value" for path in stored):
        yield _Respelling(
            f"the checkpoint has {_BOX}",
            'name.removesuffix(".value")',
            lambda name: name.removesuffix(".value"),
        )
    if any(path and path[-1] == "value" for path in wanted):
        yield _Respelling(
            f"the template has {_BOX}", 'name + ".value"', lambda name: name + ".value"
        )
    for sep in ",/|":
        if any(sep in str(element) for path in stored for element in path):
            yield _Respelling(
                f"the checkpoint joins names by `{sep}`",
                f'name.replace("{sep}", ".")',
                lambda name, sep=sep: name.replace(sep, "."),
                sep,
            )
        if any(sep in str(element) for path in wanted for element in path):
            yield _Respelling(
                f"the template joins names by `{sep}`",
                f'name.replace(".", "{sep}")',
                lambda name, sep=sep: name.replace(".", sep),
            )
    if any("/" in str(element) for path in wanted for element in path[:-1]):
        yield _Respelling(
            "the template joins the names of modules by `/`, as Haiku does",
            'name.replace(".", "/", name.count(".") - 1)',
            lambda name: name.replace(".", "/", name.count(".") - 1),
        )


def _list_words(stored: Sequence[Path], wanted: Sequence[Path]) -> Iterator[_Respelling]:
    for old, new in (("weight", "kernel"), ("kernel", "weight")):
        if old in map(_last_word, stored) and new in map(_last_word, wanted):
            yield _Respelling(
                f"the checkpoint calls `{old}` what the template calls `{new}`",
                f'name.replace("{old}", "{new}")',
                lambda name, old=old, new=new: name.replace(old, new),
            )


def _last_word(path: Path) -> str:
    return join_path(path).rsplit(".", 1)[-1]


def suggest_respelling(failure: Failure) -> Match | None:
    """Tries to respell all names: with or without the level `value`, or with another separator."""
    return _try_respellings(failure, _list_respellings)


def suggest_other_word(failure: Failure) -> Match | None:
    """Tries the words of other libraries, even if the shapes differ: PyTorch's are transposed."""
    return _try_respellings(failure, _list_words)


def _try_respellings(
    failure: Failure,
    list_respellings: Callable[[Sequence[Path], Sequence[Path]], Iterator[_Respelling]],
) -> Match | None:
    if not failure.select("missing"):
        return None
    at = failure.options.at
    leaves = apply_at_and_rename(failure.checkpoint, failure.options)
    if not leaves:
        # Nothing lies under `at`, which may be the beginning of a name with other separators.
        at = ""
        leaves = [(e.path, e.name, e) for e in failure.checkpoint.entries]
    targets = list(failure.targets_by_name().values())
    for respelling in list_respellings(
        [path for path, _, _ in leaves], [target.path for target in targets]
    ):
        names = [respelling.apply(name) for _, name, _ in leaves]
        tries = _place_respelled(respelling, names, [target.name for target in targets], at)
        for fact, source, function, new_at in tries:
            hint = f"rename=lambda name: {source}"
            if new_at != failure.options.at:
                hint = f"{hint}, at={quote_text(new_at)}"
            summary = f"{count_found(failure)}; {fact}"
            hinted = _try_function(failure, function, hint, summary, new_at)
            if hinted is not None:
                return hinted
    return None


def _try_function(
    failure: Failure, function: Callable[[str], str], hint: str, summary: str, at: str
) -> Match | None:
    """Tries to rename by a function; where the caller renames already, by a mapping of both.

    Args:
        failure: The failed match.
        function: The function.
        hint: How to call `restore` with the function.
        summary: What is wrong.
        at: The subtree to restore with it.
    """
    if failure.options.rename is None:
        after = failure.retry(rename=function, at=at)
        return add_hint(failure, hint, after, summary) if is_much_better(failure, after) else None
    return _try_mapping(failure, function, summary) if at == failure.options.at else None


def _try_mapping(failure: Failure, more: Rename, summary: str) -> Match | None:
    """Tries a mapping that does what the caller's `rename` does and then `more`."""
    rename = failure.extend_rename(more)
    if rename is None:
        return None
    after = failure.retry(rename=rename)
    return (
        add_rename_hint(failure, rename, after, summary) if is_much_better(failure, after) else None
    )


def _place_respelled(
    respelling: _Respelling, names: Sequence[str], wanted: Sequence[str], at: str
) -> Iterator[tuple[str, str, Callable[[str], str], str]]:
    """The ways to use respelled names: as they are, and without or with a prefix.

    Yields:
        What differs, the function's result as source, the function, and the value of `at`.
    """
    fact, source, apply = respelling.fact, respelling.source, respelling.apply
    yield fact, source, apply, at
    outer = _find_wrapper(set(wanted), names)
    if outer is not None:
        also = f"{fact}, and the checkpoint holds that tree under `{outer}`"
        if respelling.separator is None:
            yield also, source, apply, ".".join(filter(None, (at, outer)))
        else:  # `at` names whole elements, which such names do not have
            prefix = f"{outer}."
            yield (
                also,
                f"{source}.removeprefix({quote_text(prefix)})",
                lambda name: apply(name).removeprefix(prefix),
                at,
            )
    outer = _find_wrapper(set(names), wanted)
    if outer is not None:
        prefix = f"{outer}."
        yield (
            f"{fact}, and the template wraps the tree in `{outer}`",
            f"{quote_text(prefix)} + {source}",
            lambda name: prefix + apply(name),
            at,
        )


def suggest_renames(failure: Failure) -> Match | None:
    """Tries to rename leaves that are spelled almost alike, and subtrees that moved."""
    if not failure.select("missing"):
        return None
    targets, leaves = failure.targets_by_name(), failure.leaves_by_name()
    old_names = pair_similar_names(failure, targets, leaves)
    if len(set(old_names.values())) != len(old_names):
        old_names = {}  # two targets want the same leaf
    similar = dict(
        _strip_common_end(leaves[old][0], targets[new].path) for new, old in old_names.items()
    )
    moved = _find_moves(failure, targets, leaves)
    above_similar = {name for old in similar for name in _list_subtrees(old)}
    apart = {
        old: new
        for old, new in moved.items()
        if old not in above_similar and similar.keys().isdisjoint(_list_subtrees(old))
    }
    for rename, spelled in (({**similar, **apart}, old_names), (moved, {}), (similar, old_names)):
        hinted = _try_renames(failure, rename, spelled, moved)
        if hinted is not None:
            return hinted
    return None


def _try_renames(
    failure: Failure,
    rename: Mapping[str, str],
    old_names: Mapping[str, str],
    moved: Mapping[str, str],
) -> Match | None:
    """Tries a mapping. Only a hint that solves exactly what it is printed for is given."""
    extended = failure.extend_rename(rename) if rename else None
    if extended is None:
        return None
    after = failure.retry(rename=extended)
    missing = {m.name for m in failure.select("missing")}
    new_subtrees = {new for old, new in moved.items() if rename.get(old) == new}
    solved = {("missing", new) for new in old_names} | {
        ("missing", name) for name in missing if not new_subtrees.isdisjoint(_list_subtrees(name))
    }
    if not solves_only(failure, after, solved):
        return None
    noted = tuple(
        replace(m, note=f"nearest: `{old_names[m.name]}`")
        if m.problem == "missing" and m.name in old_names
        else m
        for m in failure.result.mismatches
    )
    failure = replace(failure, result=replace(failure.result, mismatches=noted))
    return add_rename_hint(failure, extended, after, None)


def _find_moves(
    failure: Failure,
    targets: Mapping[str, Target],
    leaves: Mapping[str, tuple[Path, LeafEntry]],
) -> dict[str, str]:
    """Subtrees of the checkpoint that the template has elsewhere: `{old: new}`."""
    matched = {pair.target.name for pair in failure.result.pairs if not pair.source}
    moved = find_moved_subtrees(
        list(leaves.values()),
        [(target.path, target) for target in targets.values()],
        [name for name in (*targets, *leaves) if name not in matched],
    )
    return {join_path(old): join_path(new) for old, new in moved.items()}


def _list_subtrees(name: str) -> list[str]:
    """A name and those of the subtrees around it: `a.b` → `a`, `a.b`."""
    return prefixes(split_name(name))


def _strip_common_end(old: Path, new: Path) -> tuple[str, str]:
    """Two paths without the end that they share: `a.Dense_0.w`, `a.dense_0.w` → `a.Dense_0`, ..."""
    old_elements, new_elements = list(map(str, old)), list(map(str, new))
    while len(old_elements) > 1 and len(new_elements) > 1 and old_elements[-1] == new_elements[-1]:
        old_elements.pop()
        new_elements.pop()
    return ".".join(old_elements), ".".join(new_elements)


def suggest_setting_aside(failure: Failure) -> Match | None:
    """Tries to rename leaves that do not fit, such as an old head, so that `missing=` applies.

    This works where `missing=` fills the gap and `extra="ignore"` leaves out the renamed leaves.
    Silent where a leaf hint tells how to use them, or where another leaf of the checkpoint may fit.
    """
    if failure.select("missing"):
        return None
    targets, leaves = failure.targets_by_name(), failure.leaves_by_name()
    unfit = {m.name for m in failure.result.mismatches if m.problem in ("shape", "dtype", "kind")}
    if not unfit or not unfit <= leaves.keys() or len(unfit) == len(leaves):
        return None
    entries = {name: entry for name, (_, entry) in leaves.items()}
    hinted = add_leaf_hints(failure.result.mismatches, targets, entries, failure.options)
    if any(m.hint for m in hinted) or failure.find_possible(unfit):
        return None  # the leaves can be had, so they are not to be begun anew
    fitting = {p for name, (path, _) in leaves.items() if name not in unfit for p in prefixes(path)}
    rename: dict[str, str] = {}
    for name in unfit:
        # The outermost subtree that holds no leaf that fits.
        outermost = next(p for p in prefixes(leaves[name][0]) if p not in fitting)
        rename[outermost] = f"old.{outermost}"
    extended = failure.extend_rename(dict(sorted(rename.items())))
    if extended is None:
        return None
    after = failure.retry(rename=extended)
    solved = {(m.problem, m.name) for m in failure.result.mismatches if m.name in unfit}
    return (
        add_rename_hint(failure, extended, after, None)
        if solves_only(failure, after, solved)
        else None
    )
