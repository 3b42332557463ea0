"""Finds the JSON item of a step that a caller asks for, and reads it."""

from __future__ import annotations

import os
from typing import Any, Literal

from .._core.text import quote_text
from ..errors import NotFound, Uncommitted
from ..storage.open import open_source
from ..storage.source import Source
from .diagnose import diagnose_source
from .orbax.directory import list_items, uncommitted_reason
from .orbax.format import enter_item, list_ends
from .orbax.json_item import read_json_item
from .registry import check_uncommitted


def read_json(
    checkpoint: str | os.PathLike[str] | Source,
    item: str | None = None,
    *,
    uncommitted: Literal["error", "allow"] = "error",
) -> Any:
    """Reads a JSON item: what a program saved beside a tree, such as the position of an iterator.

    Args:
        checkpoint: The path or URL of the item, or of the step that holds it; or a `Source`.
        item: Name of the item, such as `"data_iter"`. None for the only JSON item of the step, its
            metrics aside, or for a path that is the item's.
        uncommitted: `"allow"` reads from a save that never finished.

    Returns:
        Dicts, lists, strings, numbers, True, False or None. `NaN` and `Infinity` are accepted.

    Raises:
        NotFound: The step has no such JSON item; the error lists those that it has.
        Uncommitted: The save never finished.
        Corrupted: The file is not JSON.
        SourceError, UsageError: See `templax.open`.

    Example:
        >>> import pathlib, tempfile
        >>> import templax as tx
        >>> step = pathlib.Path(tempfile.mkdtemp(), "100")
        >>> step.joinpath("data_iter").mkdir(parents=True)
        >>> _ = step.joinpath("data_iter", "metadata").write_text('{"epoch": 3, "index": 512}')
        >>> tx.read_json(step, "data_iter")
        {'epoch': 3, 'index': 512}
    """
    check_uncommitted(uncommitted)
    source = open_source(checkpoint)
    if source.stat("") is None:
        raise diagnose_source(source)
    return read_json_item(_find_json(source, item, uncommitted))


def _find_json(source: Source, item: str | None, uncommitted: str) -> Source:
    """The directory of a JSON item."""
    reason = uncommitted_reason(source)
    if reason is not None and uncommitted == "error":
        raise Uncommitted(
            f"{source.url} is not a committed checkpoint: {reason}",
            hint='to read it all the same, uncommitted="allow"',
        )
    kinds = list_items(source)
    jsons = [name for name, kind in kinds.items() if kind == "json"]
    if item is None and not jsons:
        return source
    found = [item] if item is not None else [n for n in jsons if n != "metrics"] or jsons
    if len(found) == 1 and found[0] in jsons:
        return enter_item(source, found[0])
    wanted = "one JSON item" if item is None else f"the JSON item `{item}`"
    listed = list_ends([f"`{name}` ({kind})" for name, kind in kinds.items()])
    call = f"templax.read_json({quote_text(source.url)}, {quote_text(jsons[0])})" if jsons else None
    what = f"Expected {wanted}, found {listed or 'none'}"
    raise NotFound(what, file=source.url, hint=f"{call} reads one" if call else None)
