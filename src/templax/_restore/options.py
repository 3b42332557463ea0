"""The options of a restore, declared and validated once for every call that takes them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypedDict

from .._catalog.catalog import Catalog
from .._core.arguments import PyTree, check_company, check_int
from .._core.dtypes import CASTS, Cast
from .._core.names import Rename
from .._core.progress import Progress, check_progress
from .._core.text import format_value, quote_text
from .._core.workers import MEMORY_BYTES, choose_threads
from .._match.options import ExtraChoice
from .._plan.sharing import ShareReads
from ..errors import UsageError
from ..formats.registry import Checkpoint, SupportsCatalog
from ..storage.source import Source

Verify = Literal["available", "required", "off"]

Supply = Literal["error", "keep"] | Checkpoint
"""What to do about a missing leaf; a checkpoint supplies it."""

Missing = Supply | Mapping[str, Supply]
"""The argument `missing=`; a mapping has the patterns of leaf names as keys."""

Extra = ExtraChoice | Mapping[str, ExtraChoice]
"""The argument `extra=`; a mapping has the patterns of leaf names as keys."""


class CompareKeywords(TypedDict, total=False):
    """The keyword arguments of `check`. `restore` documents each of them."""

    at: str
    rename: Rename | None
    shardings: PyTree
    missing: Missing
    extra: Extra
    cast: Cast


class PlanKeywords(CompareKeywords, total=False):
    """The keyword arguments of `plan`. `restore` documents each of them."""

    verify: Verify
    memory: int | None
    threads: int | None
    mapped: bool
    share_reads: ShareReads


class RestoreKeywords(PlanKeywords, total=False):
    """The keyword arguments of `Manager.restore`. `restore` documents each of them."""

    on_progress: Progress | None
    timeout: float | None
    alone: bool


@dataclass(frozen=True)
class CompareOptions:
    """How a checkpoint is compared with a template: the arguments of `check`, validated.

    Raises:
        UsageError: An argument is invalid.
    """

    at: str = ""
    rename: Rename | None = None
    shardings: PyTree = None
    missing: Missing = "error"
    extra: Extra = "error"
    cast: Cast = "float"

    def __post_init__(self) -> None:
        if not isinstance(self.at, str):
            raise UsageError(
                f"Expected at= the name of a subtree (str), got {format_value(self.at)}"
            )
        _check_missing(self.missing)
        _check_extra(self.extra)
        if self.cast not in CASTS:
            raise UsageError(
                f"Expected cast= one of {', '.join(CASTS)}, got {format_value(self.cast)}"
            )
        rename = self.rename
        if not (rename is None or callable(rename) or _maps_names(rename)):
            raise UsageError(
                f"Expected rename= a dict of names (str) or a function, got {format_value(rename)}"
            )

    @property
    def missing_policy(self) -> Literal["error", "keep"] | None:
        """What to do about every missing leaf; None if another checkpoint supplies it, or if that
        depends on its name.
        """
        missing = self.missing
        if isinstance(missing, str) and (missing == "error" or missing == "keep"):
            return missing
        return None


@dataclass(frozen=True)
class PlanOptions(CompareOptions):
    """How a restore is planned: the arguments of `plan`, validated.

    Raises:
        UsageError: An argument is invalid.
    """

    verify: Verify = "available"
    memory: int | None = None
    threads: int | None = None
    mapped: bool = False
    share_reads: ShareReads = "auto"

    def __post_init__(self) -> None:
        choose_threads(self.threads)
        if self.memory is not None:
            check_int("memory", self.memory)
        if self.verify not in ("available", "required", "off"):
            raise UsageError(
                f'Expected verify="available", "required" or "off", got {format_value(self.verify)}'
            )
        if not isinstance(self.mapped, bool):
            raise UsageError(f"Expected mapped=True or False, got {format_value(self.mapped)}")
        if self.share_reads not in ("auto", "always", "never"):
            got = format_value(self.share_reads)
            raise UsageError(f'Expected share_reads="auto", "always" or "never", got {got}')
        super().__post_init__()

    def count_workers(self, *, remote: bool) -> int:
        """Threads that read and decode: as asked, or the default."""
        return choose_threads(self.threads, remote=remote)

    @property
    def memory_bytes(self) -> int:
        """Host bytes in flight: as asked, or the default."""
        return MEMORY_BYTES if self.memory is None else check_int("memory", self.memory)


@dataclass(frozen=True)
class RestoreOptions(PlanOptions):
    """How a checkpoint is restored: the arguments of `restore`, validated.

    Raises:
        UsageError: An argument is invalid.
    """

    on_progress: Progress | None = None
    timeout: float | None = None
    alone: bool = False

    def __post_init__(self) -> None:
        check_progress(self.on_progress)
        check_company(self.timeout, self.alone)
        if self.alone and self.share_reads == "always":
            raise UsageError(
                'Expected share_reads="auto" or "never" with alone=True, got "always": a process'
                " on its own has nobody to share with"
            )
        super().__post_init__()


def _check_missing(missing: Missing) -> None:
    if not isinstance(missing, Mapping):
        return
    for pattern, supply in missing.items():
        known = isinstance(supply, (str, os.PathLike, Source, Catalog, SupportsCatalog))
        if not isinstance(pattern, str) or not known:
            raise UsageError(
                'Expected missing= a mapping of patterns (str) to "error", "keep" or a checkpoint,'
                f" got {format_value(pattern)}: {type(supply).__name__}"
                + ("" if known else "; hint: a tree of values is templax.Recipe(lambda: tree)")
            )


def _check_extra(extra: Extra) -> None:
    choices = extra if isinstance(extra, Mapping) else {"*": extra}
    for pattern, choice in choices.items():
        known = isinstance(choice, str) and choice in ("error", "ignore")
        if not isinstance(pattern, str) or not known:
            hint = ""
            if isinstance(extra, str) and not extra.isidentifier():
                hint = f'; hint: extra={{{quote_text(extra)}: "ignore"}} ignores what it matches'
            raise UsageError(
                'Expected extra="error", "ignore" or a mapping of patterns (str) to one of these,'
                f" got {format_value(extra)}{hint}"
            )


def _maps_names(rename: object) -> bool:
    return isinstance(rename, Mapping) and all(
        isinstance(old, str) and isinstance(new, str) for old, new in rename.items()
    )
