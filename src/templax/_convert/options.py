"""The options of a conversion, checked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import __version__
from .._core.arguments import check_int
from .._core.progress import Progress
from .._core.text import format_value
from .._save import options as save_options
from .._save.options import SaveOptions
from ..errors import UsageError
from ..storage.leftovers import absolute_path
from ..storage.open import find_remote, local_path
from .select import Casts, parse_casts

if TYPE_CHECKING:
    from ..storage.stores import Store

FORMATS = ("orbax", *save_options.SUFFIXES)
"""The formats that can be written."""

MEMORY_BYTES = 256 * 1024 * 1024
"""Default of `memory=`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """How to write, after `make_options` has checked it and filled in the defaults.

    Attributes:
        path: The destination, absolute.
        save: How to save, apart from the metadata.
        casts: See `parse_casts`.
        flat: Whether each name is a single key.
        chunk_size: Bytes of a chunk of Orbax; None for the default.
    """

    path: str
    save: SaveOptions
    casts: Casts
    flat: bool
    chunk_size: int | None

    @property
    def identity(self) -> tuple[Any, ...]:
        """What decides about the bytes that are written, beside the leaves and the metadata."""
        save = self.save
        how = (save.format, save.single, save.level, save.shard_size)
        return __version__, *how, self.chunk_size


def make_options(
    dst: object,
    *,
    to: str | None,
    overwrite: bool,
    flat: bool,
    cast: object,
    compression: str | None,
    chunk_size: int | None,
    shard_size: int | None,
    memory: int | None,
    threads: int | None,
    on_progress: Progress | None,
    storage: Store | None = None,
) -> ConvertOptions:
    """Checks the options that `convert` takes, which documents them.

    Raises:
        SourceError: The destination is not local.
        UsageError: An option is invalid.
    """
    if not isinstance(dst, (str, os.PathLike)):
        raise UsageError(f"Expected a path to convert to, got {type(dst).__name__}")
    remote = find_remote(dst, storage)
    if remote is not None:
        path = remote[1].rstrip("/")
    else:
        hint = "convert to a local directory, then copy that"
        path = absolute_path(local_path(dst, "writes", hint))
    for name, flag in (("overwrite", overwrite), ("flat", flat)):
        if not isinstance(flag, bool):
            raise UsageError(f"Expected {name}=True or False, got {format_value(flag)}")
    if to is None and not path.endswith(tuple(save_options.SUFFIXES.values())):
        known = ", ".join(f'"{each}"' for each in FORMATS)
        raise UsageError(f"Expected to= one of {known} for a directory, got {format_value(to)}")
    save = save_options.make_options(
        format=to,
        path=path,
        overwrite=overwrite,
        compression=compression,
        memory=MEMORY_BYTES if memory is None else memory,
        threads=threads,
        on_progress=on_progress,
        shard_size=shard_size,
        storage=storage,
        argument="to",
    )
    if save.format != "orbax":
        for name, given in (("chunk_size", chunk_size is not None), ("flat", flat)):
            if given:
                raise UsageError(f'{name}= is for to="orbax", got to="{save.format}"')
    return ConvertOptions(
        path=path,
        save=save,
        casts=parse_casts(cast),
        flat=flat,
        chunk_size=None if chunk_size is None else check_int("chunk_size", chunk_size),
    )
