"""What the files of a database hold besides its values, for `account_bytes`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress

from ..._catalog.entry import Extent
from ..._catalog.regions import Region
from ...errors import CheckpointError
from ...storage.source import Source
from .read import list_old_places, read_database

_PROCESS = re.compile(r"(ocdbt\.process_[^/]*/)manifest\.ocdbt")

_MANIFEST = re.compile(r"([^/]+/)?manifest\.(ocdbt|[0-9a-f]{16})")

_MAX_PROCESSES = 1 << 10
"""Most databases of single processes whose indexes are read."""


def describe_database(source: Source, files: Iterable[str]) -> Iterator[Region]:
    """The manifests and nodes of the database of an item, and of those of single processes."""
    prefixes = [""]
    for file in files:
        parts = _MANIFEST.fullmatch(file)
        if parts is not None:
            yield Region(file, 0, None, "index", "manifests of OCDBT")
        if (found := _PROCESS.fullmatch(file)) is not None:
            prefixes.append(found[1])
    for prefix in prefixes[: 1 + _MAX_PROCESSES]:
        nodes: list[Extent] = []
        with suppress(CheckpointError):  # those of processes are not needed to read the leaves
            read_database(source, prefix, nodes)
        what = "index nodes of OCDBT" if not prefix else "index nodes of single processes"
        for node in nodes:
            yield Region(node.key, node.start, node.stop, "index", what)
        with suppress(CheckpointError):
            for place in list_old_places(source, prefix, nodes):
                yield Region(place.key, place.start, place.stop, "gap", "only in older versions")
