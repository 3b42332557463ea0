"""What a match needs of a checkpoint, and the names that `at` and `rename` give its leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from .._catalog.entry import LeafEntry
from .._core.names import Path, apply_rename, join_path, split_name, strip_prefix
from .options import MatchOptions


@dataclass(frozen=True, slots=True)
class CheckpointView:
    """What a match needs of a catalog.

    Attributes:
        entries: The leaves.
        empties: Values that are recorded without a leaf, such as an empty dict, by path.
        url: For the report.
        fingerprints: Returns name → crc32c of the leaf's bytes, if the checkpoint records them.
        unread: Leaves that templax can't read: name → why.
    """

    entries: Sequence[LeafEntry]
    empties: Mapping[Path, str] = field(default_factory=dict)
    url: str = ""
    fingerprints: Callable[[], Mapping[str, int]] | None = None
    unread: Mapping[str, str] = field(default_factory=dict)


RenamedLeaf = tuple[Path, str, LeafEntry]
"""A leaf of the checkpoint, with its path and name after `at` and `rename`."""


def apply_at_and_rename(checkpoint: CheckpointView, options: MatchOptions) -> list[RenamedLeaf]:
    """The leaves of a checkpoint that `at` selects, under their names after `rename`."""
    if not options.at and options.rename is None:
        return [(e.path, e.name, e) for e in checkpoint.entries]
    leaves = []
    for entry in checkpoint.entries:
        path = strip_prefix(entry.path, options.at)
        if path is not None:
            path = apply_rename(path, options.rename)
            leaves.append((path, join_path(path), entry))
    return leaves


def rename_unread(unread: Mapping[str, str], options: MatchOptions) -> dict[str, str]:
    """The leaves that can't be read, as `apply_at_and_rename` names the others: name → why."""
    found: dict[str, str] = {}
    for name, why in unread.items():
        path = strip_prefix(split_name(name), options.at)
        if path is not None:
            found[join_path(apply_rename(path, options.rename))] = why
    return found
