"""The options of a save, checked."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .._core.arguments import check_int
from .._core.dtypes import read_number
from .._core.json_text import encode_json
from .._core.progress import Progress, check_progress
from .._core.workers import MEMORY_BYTES, choose_threads
from .._hosts.agreement import Hosts
from ..errors import UsageError
from ..storage.sink import Sink

Url = str | os.PathLike[str] | Sink

_DEFAULT_LEVEL = 1

_COMPRESSION = re.compile(r"zstd(?::(?P<level>[0-9]{1,2}))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveOptions:
    """The options of a save, after `make_options` has checked them and filled in the defaults.

    Attributes:
        metadata: JSON that is saved with the checkpoint.
        overwrite: Whether an existing checkpoint is replaced.
        level: The zstd level, or None for raw chunks.
        memory: Bytes that may be fetched from devices and not yet written.
        threads: Number of workers.
        on_progress: Called while the data files are written.
        metrics: The metrics of a step, or None if it has none.
        after: Called with the call that saves once the checkpoint is committed, on every process,
            in the thread that saves.
    """

    metadata: Mapping[str, Any]
    overwrite: bool
    level: int | None
    memory: int
    threads: int
    on_progress: Progress | None
    metrics: Mapping[str, float] | None = None
    after: Callable[[Hosts], None] | None = None


def make_options(
    *,
    format: str = "orbax",
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    compression: str | None = None,
    memory: int | None = None,
    threads: int | None = None,
    on_progress: Progress | None = None,
) -> SaveOptions:
    """Checks the options that `templax.save` takes, which documents them.

    Raises:
        UsageError: An option is invalid.
    """
    if format != "orbax":
        raise UsageError(f'Expected format="orbax", got {format!r}')
    check_progress(on_progress)
    return SaveOptions(
        metadata=_copy_json(metadata),
        overwrite=overwrite,
        level=_parse_level(compression),
        memory=MEMORY_BYTES if memory is None else check_int("memory", memory),
        threads=choose_threads(threads),
        on_progress=on_progress,
    )


def _parse_level(compression: str | None) -> int | None:
    if compression is None:
        return None
    found = _COMPRESSION.fullmatch(compression) if isinstance(compression, str) else None
    level = int(found["level"] or _DEFAULT_LEVEL) if found else 0
    if not 1 <= level <= 22:
        raise UsageError(
            f'Expected compression=None, "zstd" or "zstd:1" to "zstd:22", got {compression!r}'
        )
    return level


def _copy_json(metadata: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The metadata as JSON will return it; later changes by the caller do not reach the copy."""
    try:
        values = {} if metadata is None else dict(metadata)
        return json.loads(encode_json(values, _to_json)) or {}
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"Expected metadata= a mapping of JSON values: {error}") from error


def _to_json(value: Any) -> bool | int | float:
    """What `encode_json` calls for a value that is not JSON: a NumPy or JAX scalar is a number."""
    number = read_number(value)
    if number is None:
        raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")
    return number
