"""The result of a verification, and its text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .._core.text import leaf_noun, list_filled, list_names
from .._escape import join_lines
from .._match.result import MAX_SHOWN
from ..errors import Corrupted


def format_verification(verified: Verified, rest: str = "`verified.damages` has them all") -> str:
    """The text of `str(verified)`: the verdict, the damages, and what could not be checked.

    Args:
        verified: The result.
        rest: Says where to find the damages beyond the first 20.
    """
    n, url, checked = verified.leaves, verified.url, verified.checked_bytes
    took = f" ({verified.seconds:.2f} s)"
    if verified.damages:
        count, names = len(verified.damages), {d.leaf for d in verified.damages if d.leaf}
        of = n + len(names.intersection(verified.unread))
        where = f" in {len(names):,} of {of:,} {leaf_noun(of)}" if names else ""
        damages = "damage" if count == 1 else "damages"
        lines = [f"{url} is damaged: {count:,} {damages}{where}{took}"]
        lines += [f"  {damage}" for damage in verified.damages[:MAX_SHOWN]]
        if count > MAX_SHOWN:
            lines.append(f"  and {count - MAX_SHOWN:,} more ({rest})")
        lines.append(f"  {checked:,} bytes were compared with their checksum")
    elif verified.unchecked_bytes and not checked:
        what = f"none of its {verified.unchecked_bytes:,} bytes has a checksum"
        lines = [f"{url} shows no damage, but {what}{took}"]
        return join_lines([*lines, *_list_rest(verified)])
    elif verified.unchecked_bytes:
        lines = [f"{url} shows no damage: {checked:,} bytes agree with their checksum{took}"]
    else:
        what = f"all {checked:,} bytes of {n:,} {leaf_noun(n)} agree with their checksum"
        lines = [f"{url} is sound: {what}{took}"]
        return join_lines([*lines, *_list_rest(verified)])
    if verified.unchecked_bytes:
        names = verified.unchecked
        lines.append(
            f"  {verified.unchecked_bytes:,} bytes of {len(names):,} {leaf_noun(len(names))} have"
            f" none: {list_names(names)}"
        )
    return join_lines([*lines, *_list_rest(verified)])


def _list_rest(verified: Verified) -> Iterator[str]:
    """The leaves that have no values, or none that templax reads."""
    yield from list_filled(verified.filled)
    if verified.unread:
        n = len(verified.unread)
        yield f"  templax does not read {n:,} {leaf_noun(n)}: {list_names(verified.unread)}"


@dataclass(frozen=True, slots=True)
class Verified:
    """What `verify` found. `str(verified)` is the report.

    Attributes:
        url: The checkpoint.
        leaves: Number of leaves, without strings, which an index holds.
        damages: Each has `.what`, `.leaf`, `.box`, `.file`, `.start` and `.stop`, as far as known.
            Damages that concern no leaf come first, the others in the order of the leaves.
        checked_bytes: Stored bytes that were compared with a checksum, now or when the index that
            holds them was read.
        unchecked_bytes: Stored bytes that no checksum covers. They were read, and decoded if they
            are compressed by a codec that templax reads. That finds bytes that can't be read, but
            few that were altered. Includes the bytes of leaves whose chunks templax can't find,
            such as those in a chunk grid of another kind; these were not read.
        unchecked: Names of the leaves that these bytes belong to.
        seconds: Wall-clock time.
        filled: Names of the leaves with chunks that are absent, which means the fill value in zarr.
            A copy that was cut short looks the same.
        unread: Names of the leaves that templax does not read. They do not count in `leaves`, and
            were not decoded, though checksums of whole files cover them.
    """

    url: str
    leaves: int
    damages: tuple[Corrupted, ...]
    checked_bytes: int
    unchecked_bytes: int
    unchecked: tuple[str, ...]
    seconds: float
    filled: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged, as far as can be told."""
        return not self.damages

    def __str__(self) -> str:
        return format_verification(self)
