"""Reads a JSON item: a value that was saved beside a tree, such as the position of an iterator."""

from __future__ import annotations

import json
from typing import Any

from ...errors import Corrupted, NotFound
from ...storage.signatures import read_metadata
from ...storage.source import Source
from .directory import basename


def read_json_item(source: Source) -> Any:
    """The value of a JSON item. `NaN` and `Infinity`, which Python writes, are accepted.

    Args:
        source: The item directory.

    Raises:
        NotFound: There is no JSON item.
        Corrupted: The file is not JSON.
    """
    for file in ("metadata", basename(source)):
        info = source.stat(file)
        if info is not None and not info.is_dir:
            break
    else:
        raise NotFound("Expected a JSON item, found none", file=source.url)
    try:
        return json.loads(bytes(read_metadata(source, file)))
    except (ValueError, RecursionError) as error:
        raise Corrupted(f"The JSON is unreadable: {error}", file=file) from error
