"""The formats that templax reads, and opening a checkpoint of whichever format it has."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from .._catalog.catalog import Catalog
from .._core.text import quote_text
from ..errors import NotFound, TemplaxError, Uncommitted, UsageError
from ..storage.head import KeptHead
from ..storage.open import is_fsspec, open_source
from ..storage.source import Source
from .diagnose import diagnose_source
from .file_formats import FILE_FORMATS, SET_FORMATS
from .flax.file import FlaxArrays
from .orbax.directory import list_items, list_run_ahead, uncommitted_reason
from .orbax.format import Orbax, enter_item, list_ends
from .orbax.json_item import read_json_item
from .protocol import Format
from .zarr_tree import ZarrTree

if TYPE_CHECKING:
    from ..storage.stores import Store

FORMATS: tuple[Format, ...] = (
    *FILE_FORMATS,
    FlaxArrays(),
    ZarrTree(),  # before Orbax, of which a database without its other files may be as well
    Orbax(),
    *SET_FORMATS,
)


def open_catalog(source: Source, *, uncommitted: Literal["error", "allow"] = "error") -> Catalog:
    """Opens the checkpoint at `source` with the first format that recognises it.

    Args:
        source: The root of the checkpoint.
        uncommitted: "allow" to open a checkpoint whose save never finished.

    Raises:
        NotFound: The source does not exist.
        UnknownFormat: No format recognises it; the error describes what it is instead.
        Uncommitted: The save never finished, unless `uncommitted="allow"`.
        Corrupted, Unsupported: See `Format.open`.
    """
    info = source.stat("")
    if info is not None and info.is_dir and uncommitted == "error":
        reason = uncommitted_reason(source)  # before the tree is read, which may be incomplete
        if reason is not None:
            raise _uncommitted_error(source, reason)
    if info is not None and info.is_dir:
        list_run_ahead(source)
    looked_at = KeptHead(source)
    format = next((each for each in FORMATS if each.detect(looked_at) is not None), None)
    if format is None:
        raise diagnose_source(source)
    catalog = format.open(source)
    if catalog.uncommitted is not None and uncommitted == "error":
        raise _uncommitted_error(catalog.source, catalog.uncommitted)
    return catalog


def _uncommitted_error(source: Source, reason: str) -> Uncommitted:
    """The error for a save that never finished; hints at reading it if everything is there."""
    hint = None
    with suppress(TemplaxError):
        catalog = open_catalog(source, uncommitted="allow")
        catalog.locate(e for e in catalog.leaves.values() if e.kind != "string")
        opened = f'tx.open({quote_text(catalog.url)}, uncommitted="allow")'
        hint = f"to read it all the same, restore from {opened}"
    return Uncommitted(f"{source.url} is not a committed checkpoint: {reason}", hint=hint)


def read_json(
    checkpoint: str | os.PathLike[str] | Source,
    item: str | None = None,
    *,
    uncommitted: Literal["error", "allow"] = "error",
) -> Any:
    """Reads a JSON item: what a program saved beside a tree, such as the position of an iterator.

    Args:
        checkpoint: The path or URL of the item, or of the step that holds it; or a `Source`.
        item: Name of the item, such as `"data_iter"`. None for the only JSON item of the step, its
            metrics aside, or for a path that is the item's.
        uncommitted: `"allow"` reads from a save that never finished.

    Returns:
        Dicts, lists, strings, numbers, True, False or None. `NaN` and `Infinity` are accepted.

    Raises:
        NotFound: There is no such JSON item; the error lists those that are there.
        Uncommitted: The save never finished.
        Corrupted: The file is not JSON.
        SourceError, UsageError: See `templax.open`.

    Example:
        >>> import pathlib, tempfile
        >>> import templax as tx
        >>> step = pathlib.Path(tempfile.mkdtemp(), "100")
        >>> step.joinpath("data_iter").mkdir(parents=True)
        >>> _ = step.joinpath("data_iter", "metadata").write_text('{"epoch": 3, "index": 512}')
        >>> tx.read_json(step, "data_iter")
        {'epoch': 3, 'index': 512}
    """
    _check_uncommitted(uncommitted)
    source = open_source(checkpoint)
    if source.stat("") is None:
        raise diagnose_source(source)
    return read_json_item(_find_json(source, item, uncommitted))


def _find_json(source: Source, item: str | None, uncommitted: str) -> Source:
    """The directory of a JSON item."""
    reason = uncommitted_reason(source)
    if reason is not None and uncommitted == "error":
        raise Uncommitted(
            f"{source.url} is not a committed checkpoint: {reason}",
            hint='to read it all the same, uncommitted="allow"',
        )
    kinds = list_items(source)
    jsons = [name for name, kind in kinds.items() if kind == "json"]
    if item is None and not jsons:
        return source
    found = [item] if item is not None else [n for n in jsons if n != "metrics"] or jsons
    if len(found) == 1 and found[0] in jsons:
        return enter_item(source, found[0])
    wanted = "one JSON item" if item is None else f"the JSON item `{item}`"
    listed = list_ends([f"`{name}` ({kind})" for name, kind in kinds.items()])
    call = f"templax.read_json({quote_text(source.url)}, {quote_text(jsons[0])})" if jsons else None
    what = f"Expected {wanted}, found {listed or 'none'}"
    raise NotFound(what, file=source.url, hint=f"{call} reads one" if call else None)


@runtime_checkable
class SupportsCatalog(Protocol):
    """An object usable in place of a checkpoint because it has a catalog, such as a `Recipe`."""

    def catalog(self) -> Catalog: ...


Checkpoint = str | os.PathLike[str] | Source | Catalog | SupportsCatalog


def open_checkpoint(
    checkpoint: Checkpoint, uncommitted: Literal["error", "allow"] = "error"
) -> Catalog:
    """The catalog of a checkpoint in any form that callers may pass; see `templax.open`."""
    if isinstance(checkpoint, Catalog):
        return checkpoint
    _check_uncommitted(uncommitted)
    if isinstance(checkpoint, (str, os.PathLike, Source)) or is_fsspec(checkpoint):
        return open_catalog(open_source(checkpoint), uncommitted=uncommitted)
    if isinstance(checkpoint, SupportsCatalog):
        return checkpoint.catalog()
    raise UsageError(
        f"Expected a path, Source, Catalog or Recipe as checkpoint, got {type(checkpoint).__name__}"
    )


def with_storage(checkpoint: Checkpoint, storage: Store | None) -> Checkpoint:
    """The source of a URL that is reached as `storage` says; without one, the checkpoint as given.

    Raises:
        UsageError: The checkpoint is not a URL that such a store serves.
    """
    if storage is None:
        return checkpoint
    if isinstance(checkpoint, (str, os.PathLike, Source)) or is_fsspec(checkpoint):
        return open_source(checkpoint, storage)
    raise UsageError(f"Expected a URL beside storage=, got {type(checkpoint).__name__}")


def _check_uncommitted(uncommitted: str) -> None:
    if uncommitted not in ("error", "allow"):
        raise UsageError(f'Expected uncommitted="error" or "allow", got {uncommitted!r}')
