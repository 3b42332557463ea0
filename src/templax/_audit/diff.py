"""`diff`: the differences of two checkpoints, in any formats."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from .._catalog.catalog import Catalog
from .._catalog.entry import LeafEntry
from .._core.names import Path, Rename, apply_rename, find_nearest, join_path, strip_prefix
from .._core.progress import Progress, check_progress
from .._core.workers import choose_threads
from .._match.checkpoint_view import CheckpointView, apply_at_and_rename, rename_unread
from .._match.options import MatchOptions
from .._restore.options import CompareOptions
from .._restore.prepare import check_rename_used, list_subtrees
from .._restore.undecodable import find_undecodable
from ..errors import Unsupported, UsageError
from ..formats.registry import Checkpoint, open_checkpoint
from .diff_blocks import EntryPair, Side, compare_leaves
from .diff_result import Diff, Difference, LeafDiff, sort_leaves
from .diff_values import find_common_dtype, summarise


def diff(
    a: Checkpoint,
    b: Checkpoint,
    *,
    at: str = "",
    at_b: str = "",
    rename: Rename | None = None,
    values: bool = True,
    fingerprints: bool = True,
    threads: int | None = None,
    on_progress: Progress | None = None,
) -> Diff:
    """Compares two checkpoints: their leaves, and the leaves' shapes, dtypes and values.

    The two may have different formats, layouts and shardings. Leaves are paired by name, as in a
    restore. Where both checkpoints record the fingerprint of a leaf (those that templax saved do)
    and these are equal, the values are equal and are not read. Everything else is read once, block
    by block and in several threads: most leaves take 8 MiB of memory at a time, and only chunks
    that must be decoded whole take more. Neither a template nor JAX is needed.

    Args:
        a, b: Two checkpoints, in any form that `open` takes.
        at: Compare only this subtree of A, as in `restore`.
        at_b: Compare only this subtree of B.
        rename: What becomes of the names of A, so that they are those of B: a mapping of prefixes
            or a function, as in `restore`. Names are those below `at`.
        values: Whether to read and compare values. If not, only metadata is read; fingerprints that
            both record are compared all the same.
        fingerprints: Whether equal fingerprints are enough. If not, all values are read. A
            fingerprint tells what was saved, not whether the files have been damaged since.
        threads: Workers that read and decode. Default: the cores of this process, at most 8.
        on_progress: Called as `on_progress(done, total)` with the bytes compared so far and in all,
            of both checkpoints together, at most ten times a second, by the thread that called
            `diff`. An exception in it ends the comparison.

    Returns:
        A `Diff`; `print(diff(a, b))` shows the leaves that differ, the most different ones first.
        A leaf of two dtypes is compared in a dtype that holds all values of both.

    Raises:
        CheckpointError: A checkpoint can't be opened, or one of its leaves can't be read. Names the
            checkpoint, the leaf and the file. A leaf in a codec or quantisation that templax does
            not decode raises nothing: its `LeafDiff.note` says that it was not compared.
        SourceError: The storage failed, or a checkpoint changed meanwhile.
        UsageError: An argument is invalid, or names nothing.

    Example:
        >>> import os, tempfile
        >>> import numpy as np, templax as tx
        >>> run = tempfile.mkdtemp()
        >>> w = np.ones((8, 6), np.float32)
        >>> _ = tx.save(os.path.join(run, "a"), {"w": w, "step": 1})
        >>> _ = tx.save(os.path.join(run, "b"), {"w": w, "step": 2})
        >>> found = tx.diff(os.path.join(run, "a"), os.path.join(run, "b"))
        >>> found.identical, [leaf.name for leaf in found.differing], found.by_fingerprint
        (False, ['step'], 1)
    """
    begin = time.perf_counter()
    threads = choose_threads(threads)
    check_progress(on_progress)
    CompareOptions(at=at, rename=rename)
    if not isinstance(at_b, str):
        raise UsageError(f"Expected at_b= the name of a subtree (str), got {at_b!r}")
    for name, flag in (("values", values), ("fingerprints", fingerprints)):
        if not isinstance(flag, bool):
            raise UsageError(f"Expected {name}=True or False, got {flag!r}")
    sides = Side("A", open_checkpoint(a)), Side("B", open_checkpoint(b))
    for side, option, subtree in zip(sides, ("at", "at_b"), (at, at_b), strict=True):
        check_subtree(side.catalog, option, subtree)
    if isinstance(rename, Mapping):
        check_rename_used(rename, sides[0].catalog, at)
    options = MatchOptions(at, rename), MatchOptions(at_b)
    leaves = _pair_leaves(sides, options)
    recorded = [_read_fingerprints(side) for side in sides]
    leaves = [_compare_fingerprints(leaf, recorded, fingerprints) for leaf in leaves]
    if values:
        leaves = _compare_values(sides, leaves, threads, on_progress)
    empties = [
        _list_empties(side.catalog, chosen) for side, chosen in zip(sides, options, strict=True)
    ]
    return Diff(
        sides[0].catalog.url,
        sides[1].catalog.url,
        sides[0].catalog.format,
        sides[1].catalog.format,
        sort_leaves(leaves),
        tuple(leaf.name for leaf in leaves if _has_other_sharding(leaf)),
        tuple(sorted({name for name, _ in empties[0].items() ^ empties[1].items()})),
        time.perf_counter() - begin,
        tuple(
            dict.fromkeys(
                name
                for side, chosen in zip(sides, options, strict=True)
                for name in rename_unread(side.catalog.unread, chosen)
            )
        ),
    )


def check_subtree(catalog: Catalog, option: str, subtree: str) -> None:
    """Refuses a subtree that has neither leaves nor empty nodes: it is a typo."""
    paths = [*(entry.path for entry in catalog.entries), *catalog.empties]
    if not paths or any(strip_prefix(path, subtree) is not None for path in paths):
        return
    near = find_nearest(subtree, list_subtrees(paths))
    raise UsageError(
        f"Expected {option}= a subtree of {catalog.url}, got `{subtree}`"
        + (f"; nearest: `{near}`" if near else "")
    )


def _pair_leaves(
    sides: tuple[Side, Side], options: tuple[MatchOptions, MatchOptions]
) -> list[LeafDiff]:
    """Pairs the leaves by name, and compares their metadata: those of A in order, then others."""
    named: list[dict[str, LeafEntry]] = []
    repeated: set[str] = set()
    for side, chosen in zip(sides, options, strict=True):
        catalog = side.catalog
        view = CheckpointView(catalog.entries, catalog.empties, catalog.url)
        renamed = apply_at_and_rename(view, chosen)
        named.append({name: entry for _, name, entry in renamed})
        stored = Counter(entry.name for _, _, entry in renamed)  # as they are looked up
        repeated |= {name for _, name, entry in renamed if stored[entry.name] > 1}
        if len(named[-1]) < len(renamed):
            counts = Counter(name for _, name, _ in renamed)
            repeated |= {name for name, count in counts.items() if count > 1}
    first, second = named
    leaves: list[LeafDiff] = []
    for name in itertools.chain(first, (name for name in second if name not in first)):
        a, b = first.get(name), second.get(name)
        if name in repeated:
            note = "several leaves of this name, which were not compared"
            leaves.append(LeafDiff(name, a, b, ("ambiguous",), note=note))
        elif a is None or b is None:
            leaves.append(LeafDiff(name, a, b, ("only_b",) if a is None else ("only_a",)))
        else:
            leaves.append(_compare_metadata(name, a, b))
    return leaves


def _compare_metadata(name: str, a: LeafEntry, b: LeafEntry) -> LeafDiff:
    """Compares two leaves, apart from their values. Strings, which an index holds, are compared."""
    numbers = ("array", "scalar")  # a format without numbers stores them as arrays
    if a.kind != b.kind and not (a.kind in numbers and b.kind in numbers):
        return LeafDiff(name, a, b, ("kind",), note="values not compared")
    if a.kind == "string":
        return LeafDiff(name, a, b, () if a.value == b.value else ("values",), basis="read")
    differences: list[Difference] = []
    if a.user_shape != b.user_shape:
        differences.append("shape")
    if (a.dtype, a.key_impl) != (b.dtype, b.key_impl):
        differences.append("dtype")
    note = None
    if a.shape != b.shape or a.key_impl != b.key_impl:
        note = "values not compared"
    elif find_common_dtype(a.dtype, b.dtype) is None:
        note = "values not compared, as no dtype holds all values of both"
    return LeafDiff(name, a, b, tuple(differences), note=note)


def _read_fingerprints(side: Side) -> Mapping[str, int]:
    """Name → crc32c of the leaf's bytes, as recorded; empty if the checkpoint records none."""
    with side.name_errors():
        found = side.catalog.fingerprints
        return {} if found is None else found()


def _is_comparable(leaf: LeafDiff) -> bool:
    """Whether the values of a leaf could be compared, and have not been yet."""
    return leaf.a is not None and leaf.b is not None and leaf.basis is None and leaf.note is None


def _compare_fingerprints(
    leaf: LeafDiff, recorded: Sequence[Mapping[str, int]], equal_is_enough: bool
) -> LeafDiff:
    """Compares the recorded fingerprints of a leaf, where both are of the same dtype and shape."""
    if not _is_comparable(leaf) or leaf.differences:
        return leaf
    assert leaf.a is not None
    assert leaf.b is not None
    one, other = recorded[0].get(leaf.a.name), recorded[1].get(leaf.b.name)
    if one is None or other is None or (one == other and not equal_is_enough):
        return leaf
    return replace(leaf, differences=() if one == other else ("values",), basis="fingerprint")


def _compare_values(
    sides: tuple[Side, Side],
    leaves: Sequence[LeafDiff],
    threads: int,
    progress: Progress | None,
) -> list[LeafDiff]:
    """Reads the leaves that fingerprints do not show to be equal, and compares their values."""
    wanted = [
        i
        for i, leaf in enumerate(leaves)
        if _is_comparable(leaf)
        or (leaf.basis == "fingerprint" and leaf.differences and leaf.note is None)
    ]
    pairs = [(leaf.a, leaf.b) for leaf in map(leaves.__getitem__, wanted)]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    compared = list(leaves)
    try:
        found = compare_leaves(sides, known, threads, progress)
    except Unsupported:
        problems = _list_undecodable(sides, known)
        if not any(problems):
            raise
        for i, problem in zip(wanted, problems, strict=True):
            if problem is not None:
                compared[i] = replace(leaves[i], note=f"values not compared: {problem.what}")
        return _compare_values(sides, compared, threads, progress)
    for i, (a, b), sums in zip(wanted, known, found, strict=True):
        leaf, values = leaves[i], summarise(sums, a.dtype, b.dtype, math.prod(a.shape))
        others = tuple(what for what in leaf.differences if what != "values")
        note = None
        if leaf.basis == "fingerprint" and not values.differing:
            note = "the recorded fingerprints differ, but the values are equal"
        differences = (*others, "values") if values.differing else others
        compared[i] = replace(leaf, differences=differences, basis="read", values=values, note=note)
    return compared


def _list_undecodable(
    sides: tuple[Side, Side], pairs: Sequence[EntryPair]
) -> list[Unsupported | None]:
    """For each pair, the error for a leaf that templax can't decode; None if it can decode both."""
    found = [
        find_undecodable(side.catalog, [pair[n] for pair in pairs]) for n, side in enumerate(sides)
    ]
    return [found[0].get(a.name) or found[1].get(b.name) for a, b in pairs]


def _has_other_sharding(leaf: LeafDiff) -> bool:
    """Whether both leaves record a sharding, and not the same one."""
    if leaf.a is None or leaf.b is None:
        return False
    one, other = leaf.a.saved_sharding, leaf.b.saved_sharding
    return one is not None and other is not None and one != other


def _list_empties(catalog: Catalog, options: MatchOptions) -> dict[str, str]:
    """Name → what is recorded there without a leaf, under the names that are compared."""
    found: dict[str, str] = {}
    for path, what in catalog.empties.items():
        rest: Path | None = strip_prefix(path, options.at)
        if rest is not None:
            found[join_path(apply_rename(rest, options.rename))] = what
    return found
