"""The options of a save, checked."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .._core.arguments import check_int
from .._core.workers import MAX_THREADS, MEMORY_BYTES, count_cores
from ..errors import UsageError
from ..storage.sink import Sink

_ZSTD_LEVEL = 1

_COMPRESSION = re.compile(r"zstd(?::(?P<level>[0-9]{1,2}))?")


def make_options(
    format: str,
    metadata: Mapping[str, Any] | None,
    overwrite: bool,
    compression: str | None,
    memory: int | None,
    threads: int | None,
    on_progress: Progress | None,
) -> SaveOptions:
    if format != "orbax":
        raise UsageError(f'Expected format="orbax", got {format!r}')
    level = None
    if compression is not None:
        found = _COMPRESSION.fullmatch(compression) if isinstance(compression, str) else None
        level = int(found["level"] or _ZSTD_LEVEL) if found else 0
        if not 1 <= level <= 22:
            raise UsageError(
                f'Expected compression=None, "zstd" or "zstd:1" to "zstd:22", got {compression!r}'
            )
    try:
        metadata = json.loads(json.dumps({} if metadata is None else dict(metadata)))
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"Expected metadata= a mapping of JSON values: {error}") from error
    return SaveOptions(
        metadata or {},
        overwrite,
        level,
        MEMORY_BYTES if memory is None else check_int("memory", memory),
        min(MAX_THREADS, count_cores()) if threads is None else check_int("threads", threads),
        on_progress,
    )


Progress = Callable[[int, int], None]

Url = str | os.PathLike[str] | Sink


@dataclass(frozen=True, slots=True)
class SaveOptions:
    """What is asked of a save, checked.

    Attributes:
        level: Of zstd; None for raw chunks.
        metrics: Of a step.
        after: Called once it is committed, in the thread that did it.
    """

    metadata: Mapping[str, Any]
    overwrite: bool
    level: int | None
    memory: int
    threads: int
    on_progress: Progress | None
    metrics: Mapping[str, float] | None = None
    after: Callable[[], None] | None = None
