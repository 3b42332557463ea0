"""The options of a save, checked."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .._core.arguments import check_int
from .._core.dtypes import read_number
from .._core.json_text import encode_json
from .._core.progress import Progress, check_progress
from .._core.text import format_value
from .._core.workers import MEMORY_BYTES, choose_threads
from ..errors import UsageError
from ..formats.safetensors_write import SUMS
from ..storage.open import is_remote
from ..storage.sink import Sink

if TYPE_CHECKING:
    from .._hosts.agreement import Hosts  # imports JAX
    from ..storage.stores import Store

Url = str | os.PathLike[str] | Sink

SHARD_BYTES = 5_000_000_000
"""Bytes of data from which a tree takes several files of safetensors, by default."""

SUFFIXES = {"safetensors": ".safetensors", "npz": ".npz", "msgpack": ".msgpack"}
"""The formats that a single file can have → what the names of such files end in."""

_DEFAULT_LEVEL = 1

_COMPRESSION = re.compile(r"zstd(?::(?P<level>[0-9]{1,2}))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveOptions:
    """The options of a save, after `make_options` has checked them and filled in the defaults.

    Attributes:
        format: "orbax", or one of `SUFFIXES`.
        single: Whether the destination is a file, rather than a directory.
        metadata: JSON that is saved with the checkpoint; strings if it is safetensors.
        overwrite: Whether an existing checkpoint is replaced.
        keeps_others: Whether what others put into the directory of a checkpoint that is replaced
            stays there.
        level: The zstd level, or None for raw chunks.
        memory: Bytes that may be fetched from devices and not yet written.
        threads: Number of workers.
        on_progress: Called while the data files are written.
        shard_size: Bytes of data from which a tree takes several files of safetensors.
        metrics: The metrics of a step, or None if it has none.
        after: Called with the call that saves once the checkpoint is committed, on every process,
            in the thread that saves.
        storage: How to reach the object store of the destination, or None.
        whole: Whether to write the files that mark the checkpoint as finished.
        marks: Names of empty files in the checkpoint, which say what kind of checkpoint it is.
    """

    format: str
    single: bool
    metadata: Mapping[str, Any]
    overwrite: bool
    level: int | None
    memory: int
    threads: int
    on_progress: Progress | None
    shard_size: int
    metrics: Mapping[str, float] | None = None
    after: Callable[[Hosts], None] | None = None
    storage: Store | None = None
    whole: bool = True
    marks: tuple[str, ...] = ()
    keeps_others: bool = False


def make_options(
    *,
    format: str | None = None,
    path: str = "",
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    compression: str | None = None,
    memory: int | None = None,
    threads: int | None = None,
    on_progress: Progress | None = None,
    shard_size: int | None = None,
    storage: Store | None = None,
    argument: str = "format",
) -> SaveOptions:
    """Checks the options that `templax.save` takes, which documents them.

    Args:
        argument: What the caller's own argument for `format` is called, for errors.

    Raises:
        UsageError: An option is invalid.
    """
    format, single = choose_format(format, path, argument)
    if format != "orbax" and is_remote(path):
        raise UsageError(
            f"templax writes {format} to local disks only; hint: omit the format to save in Orbax's"
            " layout, or save to a local path and copy the files"
        )
    check_progress(on_progress)
    saved = _copy_json(metadata)
    if format != "orbax" and compression is not None:
        raise UsageError(f"{format} has no compression, got compression={compression!r}")
    if format == "safetensors":
        _check_strings(saved)
    elif format != "orbax" and saved:
        raise UsageError(f"{format} has no place for metadata, got metadata=")
    if format != "safetensors" and shard_size is not None:
        raise UsageError(f'shard_size= is for {argument}="safetensors", got {argument}="{format}"')
    if shard_size is None:
        shard_size = sys.maxsize if single else SHARD_BYTES
    return SaveOptions(
        format=format,
        single=single,
        metadata=saved,
        overwrite=overwrite,
        level=_parse_level(compression),
        memory=MEMORY_BYTES if memory is None else check_int("memory", memory),
        threads=choose_threads(threads),
        on_progress=on_progress,
        shard_size=check_int("shard_size", shard_size),
        storage=storage,
    )


def choose_format(format: str | None, path: str, argument: str = "format") -> tuple[str, bool]:
    """The format of a save, and whether its destination is a single file.

    A path that ends in `.safetensors`, `.npz` or `.msgpack` is a file of that format.

    Args:
        format: As the caller gave it; None to choose by the path.
        path: The destination; "" if it is a directory whatever its name.
        argument: What the caller's own argument is called, for errors.

    Raises:
        UsageError: The format does not exist, or the suffix of the path belongs to another one.

    >>> choose_format(None, "run/model.npz"), choose_format("npz", "run/model")
    (('npz', True), ('npz', False))
    >>> choose_format(None, "run/model"), choose_format("orbax", "run/model.npz")
    (('orbax', False), ('orbax', False))
    """
    known = ("orbax", *SUFFIXES)
    if format is not None and format not in known:
        listed = ", ".join(f"`{name}`" for name in known)
        raise UsageError(f"Expected {argument}= one of {listed}, got {format_value(format)}")
    found = next((name for name, suffix in SUFFIXES.items() if path.endswith(suffix)), None)
    if found is None or format == "orbax":
        return format or "orbax", False
    if format not in (None, found):
        raise UsageError(
            f'Expected a path that ends in `{SUFFIXES[format]}`, or {argument}="{found}", got'
            f' {argument}="{format}" and {path}'
        )
    return found, True


def _check_strings(metadata: Mapping[str, Any]) -> None:
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise UsageError(
                f"Expected metadata= of strings, as safetensors stores it, got {value!r:.80} for"
                f" {key!r:.80}"
            )
        if key == SUMS:
            raise UsageError(f"Expected metadata= without {key!r}, which templax adds itself")


def _parse_level(compression: str | None) -> int | None:
    if compression is None:
        return None
    found = _COMPRESSION.fullmatch(compression) if isinstance(compression, str) else None
    level = int(found["level"] or _DEFAULT_LEVEL) if found else 0
    if not 1 <= level <= 22:
        got = format_value(compression)
        raise UsageError(f'Expected compression=None, "zstd" or "zstd:1" to "zstd:22", got {got}')
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
