"""The options of a conversion, checked."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from .. import __version__
from .._core.arguments import check_int
from .._core.workers import choose_threads
from ..errors import UsageError
from ..storage.leftovers import absolute_path
from ..storage.open import local_path
from .select import Casts, parse_casts

FORMATS = ("orbax", "safetensors")

MEMORY_BYTES = 256 * 1024 * 1024
"""Default of `memory=`."""

SHARD_BYTES = 5_000_000_000
"""Bytes of data from which a tree takes several files of safetensors, by default."""

_COMPRESSION = re.compile(r"zstd(?::(?P<level>[0-9]{1,2}))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """How to write, after `make_options` has checked it and filled in the defaults.

    Attributes:
        path: The destination, absolute.
        to: The format.
        overwrite, flat, memory, threads: See `convert`.
        casts: See `parse_casts`.
        level: The zstd level; None for raw chunks.
        chunk_size: Bytes of a chunk of Orbax; None for the default.
        shard_size: Bytes of a file of safetensors.
    """

    path: str
    to: str
    overwrite: bool
    flat: bool
    memory: int
    threads: int
    casts: Casts
    level: int | None
    chunk_size: int | None
    shard_size: int

    @property
    def identity(self) -> tuple[Any, ...]:
        """What decides about the bytes that are written, beside the leaves and the metadata."""
        return __version__, self.to, self.level, self.chunk_size, self.shard_size


def make_options(
    dst: object,
    *,
    to: str,
    overwrite: bool,
    flat: bool,
    cast: object,
    compression: str | None,
    chunk_size: int | None,
    shard_size: int | None,
    memory: int | None,
    threads: int | None,
) -> ConvertOptions:
    """Checks the options that `convert` takes, which documents them.

    Raises:
        SourceError: The destination is not local.
        UsageError: An option is invalid.
    """
    if not isinstance(dst, (str, os.PathLike)):
        raise UsageError(f"Expected a path to convert to, got {dst!r}")
    path = absolute_path(local_path(dst, "writes", "convert to a local directory, then copy that"))
    if to not in FORMATS:
        known = ", ".join(f'"{each}"' for each in FORMATS)
        raise UsageError(f"Expected to= one of {known}, got {to!r}")
    for name, flag in (("overwrite", overwrite), ("flat", flat)):
        if not isinstance(flag, bool):
            raise UsageError(f"Expected {name}=True or False, got {flag!r}")
    if to != "orbax":
        for name, value in (("compression", compression), ("chunk_size", chunk_size)):
            if value is not None:
                raise UsageError(f'{name}= is for to="orbax", got to="{to}"')
    if to != "safetensors" and shard_size is not None:
        raise UsageError(f'shard_size= is for to="safetensors", got to="{to}"')
    return ConvertOptions(
        path=path,
        to=to,
        overwrite=overwrite,
        flat=flat,
        memory=MEMORY_BYTES if memory is None else check_int("memory", memory),
        threads=choose_threads(threads),
        casts=parse_casts(cast),
        level=_parse_level(compression),
        chunk_size=None if chunk_size is None else check_int("chunk_size", chunk_size),
        shard_size=SHARD_BYTES if shard_size is None else check_int("shard_size", shard_size),
    )


def _parse_level(compression: object) -> int | None:
    if compression is None:
        return None
    found = _COMPRESSION.fullmatch(compression) if isinstance(compression, str) else None
    level = int(found["level"] or 1) if found else 0
    if not 1 <= level <= 22:
        raise UsageError(
            f'Expected compression=None, "zstd" or "zstd:1" to "zstd:22", got {compression!r}'
        )
    return level
