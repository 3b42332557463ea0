"""The result of a conversion, and its text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .._catalog.fingerprint import Fingerprint
from .._core.text import format_size, leaf_noun, list_filled, list_names
from .._escape import join_lines


@dataclass(frozen=True, slots=True)
class LeafCast:
    """A leaf that was cast.

    Attributes:
        name: Its name as written.
        stored, written: The dtypes.
        overflows: How many of its values the new dtype can't hold: they became infinite, NaN or,
            in a dtype that has neither, another number.
    """

    name: str
    stored: str
    written: str
    overflows: int = 0


@dataclass(frozen=True, slots=True)
class Converted:
    """What `convert` did. `str(converted)` is the report.

    Attributes:
        source, source_format: The checkpoint that was read.
        path, format: The checkpoint that was written.
        leaves: Number of leaves.
        value_bytes: Bytes of their values, as written.
        nbytes: Bytes of all files that were written.
        fingerprint: Of what was written, equal to `templax.fingerprint` of the same tree.
        verified: Whether all values were read back and compared before the commit.
        casts: The leaves that were cast.
        lost: What the result does not have, in words → the names of the leaves, nodes or entries
            that it concerns.
        filled: Names of the leaves, as written, with chunks that are absent in the source, which
            means the fill value in zarr.
        shared: Groups of leaves that are the same bytes of the source, and that are written once
            for each.
        resumed_bytes: Bytes of values that an earlier, killed call had already written.
        restarted: Why the conversion of an earlier call could not be resumed, or None.
        not_removed: Paths that could not be removed in the end, such as the replaced checkpoint.
        seconds: Wall-clock time.
    """

    source: str
    source_format: str
    path: str
    format: str
    leaves: int
    value_bytes: int
    nbytes: int
    fingerprint: Fingerprint
    verified: bool
    casts: tuple[LeafCast, ...]
    lost: Mapping[str, tuple[str, ...]]
    filled: tuple[str, ...]
    shared: tuple[tuple[str, ...], ...]
    resumed_bytes: int
    restarted: str | None
    not_removed: tuple[str, ...]
    seconds: float

    @property
    def overflows(self) -> int:
        """How many values the dtypes that they were cast to can't hold."""
        return sum(cast.overflows for cast in self.casts)

    def __str__(self) -> str:
        return format_conversion(self)


def format_conversion(converted: Converted) -> str:
    """The text of `str(converted)`."""
    n, size = converted.leaves, converted.value_bytes
    speed = format_size(int(size / converted.seconds)) if converted.seconds else "0 B"
    lines = [
        f"{converted.path} ({converted.format}): {n:,} {leaf_noun(n)} of {converted.source}"
        f" ({converted.source_format}), {format_size(size)} in {converted.seconds:.2f} s"
        f" ({speed}/s)",
        f"  fingerprint {converted.fingerprint}, "
        + ("read back and compared" if converted.verified else "NOT read back (verify=False)"),
    ]
    if converted.resumed_bytes:
        there, whole = format_size(converted.resumed_bytes), format_size(size)
        lines.append(f"  resumed: {there} of {whole} had been written")
    if converted.restarted is not None:
        lines.append(f"  started over: {converted.restarted}")
    lines += [f"  {line}" for line in _describe_casts(converted.casts)]
    lines += list_filled(converted.filled)
    for what, names in converted.lost.items():
        lines.append(f"  not carried: {what} ({len(names):,}: {list_names(names)})")
    for names in converted.shared:
        lines.append(f"  not carried: that {list_names(names)} are the same bytes in the source")
    for path in converted.not_removed:
        lines.append(f"  not removed: {path}")
    return join_lines(lines)


def _describe_casts(casts: tuple[LeafCast, ...]) -> list[str]:
    groups: dict[tuple[str, str], list[LeafCast]] = {}
    for cast in casts:
        groups.setdefault((cast.stored, cast.written), []).append(cast)
    lines: list[str] = []
    for (stored, written), group in groups.items():
        n = len(group)
        names = list_names([cast.name for cast in group])
        lines.append(f"cast: {n:,} {leaf_noun(n)} from {stored} to {written}: {names}")
        over = [cast for cast in group if cast.overflows]
        if over:
            count = sum(cast.overflows for cast in over)
            lines.append(
                f"overflow: {count:,} {'value' if count == 1 else 'values'} that {written} can't"
                f" hold, of {list_names([cast.name for cast in over])}"
            )
    return lines
