"""Hints between Linen, which keeps `params` and `batch_stats` apart, and NNX, which does not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from .._core.names import Rename
from .checkpoint_view import apply_at_and_rename
from .failure import Failure, add_hint, add_rename_hint, count_found
from .result import Match

PARAMS, STATISTICS = "params", "batch_stats"
"""The collections of Linen that NNX has as one tree."""

_VALUE = ".value"
"""The level below each variable of NNX."""

_Try = tuple[str, str, Rename]
"""What differs, the source of the function's result, and the `rename=` itself: a mapping or that
function."""


def suggest_collections(failure: Failure) -> Match | None:
    """Tries to join the collections of Linen, or to divide a tree into them.

    Given only if that finds every leaf, those of both collections among them.
    """
    if not failure.select("missing"):
        return None
    stored = [name for _, name, _ in apply_at_and_rename(failure.checkpoint, failure.options)]
    wanted = list(failure.targets_by_name())
    given = failure.options.rename
    for fact, source, more in (*_list_joins(stored, wanted), *_list_divisions(stored, wanted)):
        rename = more if given is None else failure.extend_rename(more)
        if rename is None:
            continue
        after = failure.retry(rename=rename)
        names = [name for pair in after.pairs for name in (pair.entry.name, pair.target.name)]
        if any(m.problem != "extra" for m in after.mismatches) or not any(
            STATISTICS in name.split(".") for name in names
        ):
            continue
        summary = f"{count_found(failure)}; {fact}"
        if isinstance(rename, Mapping):
            return add_rename_hint(failure, rename, after, summary)
        return add_hint(failure, f"rename=lambda name: {source}", after, summary)
    return None


def _list_joins(stored: Sequence[str], wanted: Sequence[str]) -> Iterator[_Try]:
    """Ways to drop the names of the collections from those of the checkpoint."""
    if not _has_collections(stored) or _count_below(wanted, STATISTICS):
        return

    def join(name: str) -> str:
        return name.removeprefix(f"{PARAMS}.").removeprefix(f"{STATISTICS}.")

    fact = f"the checkpoint keeps `{PARAMS}` and `{STATISTICS}` apart, the template does not"
    yield fact, "", {PARAMS: "", STATISTICS: ""}
    if any(name.endswith(_VALUE) for name in wanted):
        source = f'name.removeprefix("{PARAMS}.").removeprefix("{STATISTICS}.") + "{_VALUE}"'
        yield fact, source, lambda name: join(name) + _VALUE


def _list_divisions(stored: Sequence[str], wanted: Sequence[str]) -> Iterator[_Try]:
    """Functions that put each leaf of the checkpoint into its collection, by its last name."""
    if not _has_collections(wanted) or _count_below(stored, STATISTICS):
        return
    ends = {
        head: {f".{name.rpartition('.')[2]}" for name in wanted if name.startswith(f"{head}.")}
        for head in (PARAMS, STATISTICS)
    }
    if ends[PARAMS] & ends[STATISTICS]:
        return
    statistics = tuple(sorted(ends[STATISTICS]))
    has_values = any(name.endswith(_VALUE) for name in stored)

    def divide(name: str) -> str:
        inner = name.removesuffix(_VALUE) if has_values else name
        return f"{STATISTICS if inner.endswith(statistics) else PARAMS}.{inner}"

    inner = f'name.removesuffix("{_VALUE}")' if has_values else "name"
    listed = ", ".join(f'"{end}"' for end in statistics)
    tested = f"({listed})" if len(statistics) > 1 else listed
    yield (
        f"the template keeps `{PARAMS}` and `{STATISTICS}` apart, the checkpoint does not",
        f'("{STATISTICS}." if {inner}.endswith({tested}) else "{PARAMS}.") + {inner}',
        divide,
    )


def _has_collections(names: Sequence[str]) -> bool:
    return bool(_count_below(names, PARAMS) and _count_below(names, STATISTICS))


def _count_below(names: Sequence[str], head: str) -> int:
    return sum(name.startswith(f"{head}.") for name in names)
