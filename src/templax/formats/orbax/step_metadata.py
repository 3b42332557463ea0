"""What a step says of itself beside its trees: custom metadata, the commit, and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ...errors import CheckpointError, Corrupted, NotFound, SourceError
from ...storage.marks import COMMITTED, STEP_METADATA
from ...storage.source import Source
from .sidecars import read_json

METRICS = "metrics/metrics"


def step_metadata(source: Source) -> dict[str, Any]:
    """`_CHECKPOINT_METADATA` of a directory; empty if missing or unreadable.

    For what can do without, such as the classification of a directory. What a caller asks for comes
    from `read_step_metadata`.
    """
    try:
        return read_step_metadata(source)
    except CheckpointError:
        return {}


def metadata_around(source: Source) -> dict[str, Any]:
    """`_CHECKPOINT_METADATA` beside a directory; empty if missing or unreadable, for any reason."""
    with suppress(SourceError):
        return step_metadata(source.at(".."))
    return {}


def read_step_metadata(source: Source) -> dict[str, Any]:
    """`_CHECKPOINT_METADATA` of a directory; empty if there is none.

    Raises:
        Corrupted: The file is damaged.
        UnknownFormat: The file is a Git LFS pointer.
    """
    return _read_object(source, STEP_METADATA) or {}


def read_custom_metadata(source: Source) -> dict[str, Any]:
    """The metadata that a caller saved with a step; empty if there is none.

    Raises:
        Corrupted, UnknownFormat: See `read_step_metadata`.
    """
    return _get_object(source, read_step_metadata(source), "custom_metadata")


def read_metrics(source: Source) -> dict[str, Any]:
    """The metrics that a step was saved with, as its JSON has them; empty if there are none.

    Raises:
        Corrupted: The file is damaged or lost.
        UnknownFormat: The file is a Git LFS pointer.
    """
    found = _read_object(source, METRICS)
    if found:
        return found
    about = read_step_metadata(source)
    known = _get_object(source, about, "metrics")
    handlers = about.get("item_handlers")
    listed = isinstance(handlers, dict) and "metrics" in handlers
    lost = found is None and (listed or source.stat("metrics") is not None)
    # Orbax's v1 API may have put an item of that name there, of other files.
    if lost and not known and all(f.key.endswith(COMMITTED) for f in source.children("metrics/")):
        raise Corrupted("Expected the metrics, found no file", file=f"{source.url}/{METRICS}")
    return known


def _get_object(source: Source, about: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = about.get(name)
    if found is not None and not isinstance(found, dict):
        raise Corrupted(
            f"Expected an object as `{name}`, got {type(found).__name__}",
            file=f"{source.url}/{STEP_METADATA}",
        )
    return found or {}


def _read_object(source: Source, key: str) -> dict[str, Any] | None:
    """A JSON object, in which numbers may be NaN; None if there is no file."""
    if source.stat(key) is None:
        return None
    try:
        return read_json(source, key, dict[str, Any])
    except (Corrupted, NotFound) as error:
        raise Corrupted(error.what, file=f"{source.url}/{key}", hint=error.hint) from error
