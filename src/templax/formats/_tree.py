"""A container of plain files: names → extents."""

from __future__ import annotations

from collections.abc import Mapping

from .._catalog import Extent
from ..sources import Source


def index(source: Source, prefix: str = "") -> Mapping[str, Extent]:
    """Every file below `prefix` ("" or ending in `/`), under its name relative to `prefix`."""
    return {info.key[len(prefix) :]: Extent(info.key, 0, info.size) for info in source.walk(prefix)}
