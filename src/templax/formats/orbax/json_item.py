"""Reads a JSON item: a value that was saved beside a tree, such as the position of an iterator."""

from __future__ import annotations

from typing import Any

from ..._core.json_text import decode_json
from ...errors import Corrupted, NotFound
from ...storage.signatures import read_metadata
from ...storage.source import Source
from .directory import json_file, list_names
from .step_metadata import metadata_around
from .step_names import basename


def read_json_item(source: Source, file: str | None = None) -> Any:
    """The value of a JSON item. `NaN` and `Infinity`, which Python writes, are accepted.

    Args:
        source: The item directory, as written by Orbax's `JsonCheckpointHandler`, by the JSON
            handler of its v1 API, or by templax.
        file: The name of the file; None to find it.

    Raises:
        NotFound: There is no JSON item, or no such file.
        Corrupted: The file is not JSON, or has an object that repeats a key.
    """
    found = file or find_json_file(source)
    if found is None:
        raise NotFound("Expected a JSON item, found none", file=source.url)
    try:
        return decode_json(read_metadata(source, found))
    except (ValueError, RecursionError) as error:
        raise Corrupted(f"The JSON is unreadable: {error}", file=found) from error


def find_json_file(source: Source) -> str | None:
    """The file that holds the value of a JSON item; None if the directory is none."""
    names, name = list_names(source), basename(source)
    handlers = metadata_around(source).get("item_handlers")
    handler = handlers.get(name) if isinstance(handlers, dict) else None
    return json_file(source, names, handler) or (name if name in names else None)
