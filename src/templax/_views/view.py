"""Views: a checkpoint as a mapping shows it. A view is a catalog, and nothing of it is stored."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np
from msgspec import structs

from .._catalog.catalog import Catalog
from .._catalog.entry import Chunk, Extent, LeafEntry, Origin
from .._core.boxes import Box, full_box, shape_of, size_of
from .._core.gc_pause import pause_gc
from .._core.index_map import IndexMap, strides_of
from ..errors import Corrupted, MappingError, Unsupported, UsageError
from ..formats.registry import Checkpoint, open_checkpoint
from .compose import TooManyMapsError, compose_maps
from .mapping import Mapping as LeafMapping
from .part_layout import Piece
from .resolve import Expected, Made, resolve_mapping


def view(checkpoint: Checkpoint, mapping: LeafMapping) -> View:
    """Shows a checkpoint as a mapping says, without reading or writing anything.

    The result takes the place of a checkpoint in every call: `restore`, `check`, `plan`, `open`,
    `verify`, `diff`, `convert`. A restore reads what its template needs straight into the arrays
    that it returns: no leaf is loaded as it is stored, and no array is made twice.

    Args:
        checkpoint: See `open`. It may be a view itself: then `mapping` applies to what that shows.
        mapping: Which leaf comes from where.

    Raises:
        UsageError: `mapping` is not a `Mapping`.
        MappingError: By the calls that take the view: the mapping does not fit the checkpoint.
        Unsupported: By these calls: a leaf of a view of a view is scaled twice, or split in ways
            that do not fit together.

    Example:
        >>> import os, tempfile
        >>> import numpy as np
        >>> import templax as tx
        >>> path = os.path.join(tempfile.mkdtemp(), "torch.safetensors")
        >>> _ = tx.save(path, {"linear": {"weight": np.arange(6.0).reshape(2, 3)}})
        >>> mapping = tx.Mapping({"dense.kernel": tx.From("linear.weight", "o i -> i o")})
        >>> template = {"dense": {"kernel": np.empty((3, 2))}}
        >>> tx.restore(tx.view(path, mapping), template)["dense"]["kernel"]
        array([[0., 3.],
               [1., 4.],
               [2., 5.]])
    """
    if not isinstance(mapping, LeafMapping):
        raise UsageError(f"Expected a Mapping, got {type(mapping).__name__}")
    return View(checkpoint, mapping)


class View:
    """A checkpoint as a mapping shows it; `templax.view` makes one.

    Attributes:
        checkpoint: The checkpoint.
        mapping: Which leaf comes from where.
    """

    def __init__(self, checkpoint: Checkpoint, mapping: LeafMapping):
        self.checkpoint, self.mapping = checkpoint, mapping

    def __repr__(self) -> str:
        return f"view({self.checkpoint!r}, {self.mapping!r})"

    @property
    def digest(self) -> str:
        """A few characters that tell its mapping from others."""
        return _digest(self.mapping)

    def catalog(self) -> Catalog:
        """The leaves of the view, whose sizes follow from the checkpoint and the mapping alone."""
        return self.catalog_for(None)

    def catalog_for(self, expected: Expected | None) -> Catalog:
        """The leaves of the view, with the sizes that a template expects where nothing else tells.

        Args:
            expected: Given the name of a leaf of the view, returns its shape and dtype in the
                template, or None if the template has no such leaf. Without a template, None.
        """
        return _open_view(open_checkpoint(self.checkpoint), self.mapping, expected)


@pause_gc()
def _open_view(base: Catalog, mapping: LeafMapping, expected: Expected | None) -> Catalog:
    try:
        resolved = resolve_mapping(mapping, base.entries, expected, base.unread)
    except MappingError as error:
        error.add_note(f"in a view of {base.url}")
        raise
    fitted = functools.partial(_open_view, base, mapping)
    crcs = base.fingerprints
    if not all(entry.handle.same for entry in resolved.entries):
        crcs = None
    return replace(
        base,
        evidence=f"{base.evidence}, through a mapping of {len(mapping)} rules ({_digest(mapping)})",
        entries=resolved.entries,
        unread=resolved.unread,
        locator=functools.partial(_locate, base),
        empties=base.empties if mapping.rest == "keep" else {},
        fingerprints=crcs and functools.partial(_list_fingerprints, crcs, resolved.entries),
        positional=False,
        base=base,
        fit=fitted,
    )


def _digest(mapping: LeafMapping) -> str:
    return hashlib.sha256(json.dumps(mapping.to_json()).encode()).hexdigest()[:12]


def select_stored(catalog: Catalog) -> Catalog:
    """The checkpoint behind a view, with the leaves that the view is made of; itself if no view."""
    if catalog.base is None:
        return catalog
    used = {source.name for entry in catalog.entries for source in entry.handle.sources}
    entries = [entry for entry in catalog.base.entries if entry.name in used]
    return select_stored(replace(catalog.base, entries=tuple(entries), unread=catalog.unread))


def _list_fingerprints(
    crcs: Callable[[], Mapping[str, int]], entries: Iterable[LeafEntry]
) -> dict[str, int]:
    """The checksums of leaves that are all stored ones under other names."""
    stored = crcs()
    return {entry.name: stored[entry.handle.same.name] for entry in entries}


@pause_gc()
def _locate(
    base: Catalog, entries: Iterable[LeafEntry], damages: list[Corrupted] | None = None
) -> dict[str, tuple[Chunk, ...]]:
    """The locator of a view: the chunks of the stored leaves, carried to the leaves of the view."""
    wanted = list(entries)
    sources: dict[str, LeafEntry] = {}
    for entry in wanted:
        for source in entry.handle.sources:
            sources[source.name] = source
    mine = [source for source in sources.values() if source.kind != "string"]
    stored = base.locate(mine, damages)
    found: dict[str, tuple[Chunk, ...]] = {}
    composed = _ComposedMaps()
    for entry in wanted:
        made: Made = entry.handle
        if made.same is not None:
            found[entry.name] = tuple(
                structs.replace(chunk, stored_as=chunk.stored_as or made.same.name)
                for chunk in stored.get(made.same.name, ())
            )
            continue
        chunks: list[Chunk] = []
        for piece in made.list_pieces():
            if piece.source is None:
                chunks.append(_make_fill(entry, piece))
                continue
            for chunk in stored.get(piece.source.name, ()):
                chunks += _carry_chunk(entry, piece, piece.source, chunk, composed)
        found[entry.name] = tuple(chunks)
    return found


def _make_fill(entry: LeafEntry, piece: Piece) -> Chunk:
    """A chunk of one element, which fills what nothing is stored for."""
    value = np.array(piece.fill).astype(entry.dtype)
    box = piece.map.bound_target(_full(piece.map))
    origin = Origin((), entry.dtype, piece.map)
    extent = Extent("", 0, entry.dtype.itemsize, value.tobytes())
    return Chunk(extent, box, checked=True, origin=origin)


class _ComposedMaps:
    """The maps of a view after those of the view that it shows, each pair composed once."""

    def __init__(self) -> None:
        # The maps are kept, so that no other gets their identity.
        self._found: dict[tuple[int, int], tuple[IndexMap, IndexMap, list[IndexMap]]] = {}

    def compose(self, first: IndexMap, second: IndexMap) -> list[IndexMap]:
        key = id(first), id(second)
        if key not in self._found:
            self._found[key] = first, second, compose_maps(first, second)
        return self._found[key][2]


def _carry_chunk(
    entry: LeafEntry, piece: Piece, source: LeafEntry, chunk: Chunk, composed: _ComposedMaps
) -> Iterator[Chunk]:
    """A chunk of a stored leaf, or of one that a view shows, as chunks of the leaf made of it."""
    if chunk.origin is None:
        origin = Origin(chunk.box, source.dtype, piece.map, piece.scale, piece.add)
        yield from _place_chunk(entry, source, chunk, origin)
        return
    scale, add = piece.scale, piece.add
    if chunk.origin.is_computed:
        if scale is not None or add is not None:
            raise Unsupported(
                f"templax computes a leaf once, got scale= or add= of `{source.name}`, which the"
                " view that is shown computes already: write one mapping",
                leaf=entry.name,
            )
        scale, add = chunk.origin.scale, chunk.origin.add
    try:
        maps = composed.compose(chunk.origin.map, piece.map)
    except TooManyMapsError:
        raise Unsupported(
            f"templax can't follow `{source.name}` through both mappings, as it is split into sizes"
            " that do not divide each other: write one mapping, or convert the view first",
            leaf=entry.name,
        ) from None
    for map in maps:
        origin = Origin(chunk.origin.box, chunk.origin.dtype, map, scale, add)
        yield from _place_chunk(entry, source, chunk, origin)


def _place_chunk(
    entry: LeafEntry, source: LeafEntry, chunk: Chunk, origin: Origin
) -> Iterator[Chunk]:
    """A chunk with a certain origin, if that has anything of the leaf."""
    map, name = origin.map, chunk.stored_as or source.name
    boxes = map.split_source(origin.box)
    if not boxes:
        return
    bounds = [map.bound_target(box) for box in boxes]
    box = tuple(
        (min(low for low, _ in dim), max(high for _, high in dim))
        for dim in zip(*bounds, strict=True)
    )
    if (
        len(boxes) == 1
        and not origin.is_computed
        and origin.dtype == entry.dtype
        and chunk.order == "C"
        and size_of(boxes[0]) == size_of(origin.box) == size_of(box)
    ):
        shape = shape_of(box)
        copy = map.make_copy(
            boxes[0], origin.box, strides_of(shape_of(origin.box)), box, strides_of(shape)
        )
        if copy.is_contiguous:  # the same bytes, in another shape
            yield structs.replace(chunk, box=box, origin=None, stored_as=name)
            return
    yield structs.replace(chunk, box=box, origin=origin, stored_as=name)


def _full(map: IndexMap) -> Box:
    return full_box(tuple(axis.size for axis in map.axes))
