"""Draws which device holds which part of a leaf, and which file."""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .._catalog.catalog import Catalog
from .._catalog.entry import LeafEntry
from .._core.arguments import PyTree
from .._core.boxes import Box, Shape, box_from_index, full_box, shape_of, size_of
from .._core.chunk_grid import grid_shape, iter_cells
from .._core.names import join_path, strip_prefix
from .._core.text import list_names
from .._match.checkpoint_view import rename_unread
from .._match.options import MatchOptions
from .._plan.topology import Topology
from .._restore.api import open as open_checkpoint
from .._template.make import make_template
from .._template.sharding import NO_DEVICES, Sharding, find_sharding_problem
from .._template.template import Target, Template
from ..errors import NotFound, Unsupported, UsageError
from ..formats.registry import Checkpoint
from .picture import Picture
from .picture_tables import Area

_MAX_NUMBERS, _MAX_FILES = 4, 8
"""Ranges of numbers that are listed in a cell, and files below a title."""

_MAX_CHUNKS = 1 << 20
"""A range of a file that holds more chunks is drawn as one: metadata can declare any number."""


def draw_sharding(
    template: PyTree | Template | Shape,
    name: str | None = None,
    *,
    topology: Topology | None = None,
    spec: Sequence[Any] | None = None,
    checkpoint: Checkpoint | None = None,
    at: str = "",
) -> Picture:
    """Draws which device holds which part of a leaf.

    Unlike `jax.debug.visualize_array_sharding`, it needs neither an array nor devices, draws arrays
    of any number of dimensions, and bounds the size of the picture.

    Args:
        template: See `restore`. A shape, such as `(1024, 768)`, stands for a float32 array.
        name: The leaf; may be left out if the template has only one.
        topology: The hosts of a mesh that need not exist. Its devices are numbered in row-major
            order. Without it, the devices are those of the leaf's sharding, or those of its
            abstract mesh as one host.
        spec: Shards the leaf over the mesh of `topology` in place of its own sharding: a
            `PartitionSpec`, or a tuple such as `(None, ("data", "model"))`.
        checkpoint: See `restore`. The chunks in which it stores the leaf are drawn over the
            picture, and each part says how many chunks it overlaps, and which share of their
            elements it is: what is below 100 % is why a restore reads more than it needs.
        at: The subtree of the checkpoint that the template describes.

    Raises:
        UsageError: No such leaf, or several without a name; the sharding does not divide the leaf,
            is over another mesh than the topology's, or can't be drawn.
        NotFound: The checkpoint lacks the leaf.
        CheckpointError: It can't be opened.

    Example:
        >>> import templax as tx
        >>> topology = tx.Topology(hosts=2, devices_per_host=4, mesh={"data": 4, "model": 2})
        >>> print(tx.draw_sharding((8, 6), topology=topology, spec=("data", None)))
        float32 (8, 6), P('data', None) over data=4 × model=2
          each cell lists the devices that hold it
          down: dimension 0; to the right: 1
        <BLANKLINE>
                0:6
              ┌───────────────┐
          0:2 │ 0-1 on host 0 │
              ├───────────────┤
          2:4 │ 2-3 on host 0 │
              ├───────────────┤
          4:6 │ 4-5 on host 1 │
              ├───────────────┤
          6:8 │ 6-7 on host 1 │
              └───────────────┘
    """
    if isinstance(template, tuple) and all(isinstance(n, int) for n in template):
        template = np.broadcast_to(np.float32(0), template)
    target = _find_target(make_template(template), name)
    shape = target.user_shape
    holders, sharding = _find_holders(target, shape, topology, spec)
    title = f"{_name_leaf(target.name)}{target.dtype_name} {shape}"
    lines = ["  each cell lists the devices that hold it"]
    if sharding is not None:
        mesh = " × ".join(f"{axis}={size:,}" for axis, size in sharding.mesh.items())
        title += f", {sharding} over {mesh}"
    chunks: tuple[Box, ...] = ()
    if checkpoint is not None:
        catalog = open_checkpoint(checkpoint)
        entry = _find_entry(catalog, target.name, at)
        if entry.user_shape != shape:
            raise UsageError(
                f"Expected shape {entry.user_shape} of the checkpoint, got {shape} - at"
                f" `{target.name}`"
            )
        chunks = tuple(box for box, _ in _list_chunks(catalog, entry))
        lines.append(
            f"  chunks: how many of the {len(chunks):,} of {catalog.url} overlap a cell, and what"
            " part of their elements it is"
        )
    several = len({host for held in holders.values() for _, host in held}) > 1
    areas = tuple(
        Area(
            box,
            tuple(device for device, _ in held),
            *_label_holders(held, several),
            group=held[0][1] if several else number,
        )
        for number, (box, held) in enumerate(holders.items())
    )
    if chunks:
        areas = _measure_overlaps(areas, chunks)
    return Picture(title, shape, areas, tuple(lines), chunks)


def draw_chunks(checkpoint: Checkpoint, name: str | None = None) -> Picture:
    """Draws which file of a checkpoint stores which part of a leaf: its chunks.

    Reads metadata and indexes only.

    Args:
        checkpoint: See `restore`.
        name: The leaf; may be left out if the checkpoint has only one.

    Raises:
        UsageError: Several leaves without a name, or the leaf is a string.
        NotFound: The checkpoint lacks the leaf.
        CheckpointError: It can't be opened, or an index is damaged.

    Example:
        >>> import os, tempfile
        >>> import numpy as np, templax as tx
        >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
        >>> saved = tx.save(path, {"w": np.zeros((8, 6), np.float32)})
        >>> print(tx.draw_chunks(path, "w"))  # doctest: +ELLIPSIS
        `w`: float32 (8, 6), 1 chunk of (8, 6) in 1 file of ...
          file 0: model.safetensors, 1 chunk
          down: dimension 0; to the right: 1
        <BLANKLINE>
                0:6
              ┌────────┐
          0:8 │ file 0 │
              └────────┘
    """
    catalog = open_checkpoint(checkpoint)
    if name is None:
        arrays = [entry.name for entry in catalog.entries if entry.kind != "string"]
        name = _pick_only(arrays, "the checkpoint")
    entry = _find_entry(catalog, name, "")
    shape, chunks = entry.user_shape, _list_chunks(catalog, entry)
    counts = Counter(file for _, file in chunks)
    numbers = {file: number for number, file in enumerate(counts)}
    areas: defaultdict[Box, list[int]] = defaultdict(list)
    for box, file in chunks:
        areas[box].append(numbers[file])
    largest = max(map(shape_of, areas), default=shape)
    title = (
        f"`{name}`: {entry.dtype_name} {shape}, {_count_chunks(len(chunks))} of {largest} in"
        f" {len(counts):,} file{'s' * (len(counts) != 1)} of {catalog.url}"
    )
    lines: list[str] = []
    if entry.saved_sharding is not None:
        lines.append(f"  saved as {entry.saved_sharding}")
    for file, n in list(counts.items())[:_MAX_FILES]:
        shown = file or os.path.basename(catalog.url)
        lines.append(f"  file {numbers[file]}: {shown}, {_count_chunks(n)}")
    if len(counts) > _MAX_FILES:
        lines.append(f"  and {len(counts) - _MAX_FILES:,} more files")
    drawn = tuple(
        Area(box, tuple(found), f"file {list_numbers(found)}", group=found[0])
        for box, found in areas.items()
    )
    return Picture(title, shape, drawn or (Area(full_box(shape), (), "-"),), tuple(lines))


def _count_chunks(n: int) -> str:
    return f"{n:,} chunk{'s' * (n != 1)}"


def _find_target(template: Template, name: str | None) -> Target:
    arrays = {t.name: t for t in template.targets if t.has_data and t.kind != "string"}
    arrays |= {alias: t for t in arrays.values() for alias in t.aliases}
    if name is None:
        name = _pick_only(list(arrays), "the template")
    if name not in arrays:
        known = list_names(list(arrays)) if any(arrays) else "a single array, which has no name"
        raise UsageError(
            f"Expected the name of an array of the template, got `{name}`: it has {known}"
        )
    return arrays[name]


def _pick_only(names: Sequence[str], where: str) -> str:
    if len(names) != 1:
        found = list_names(names) if names else "none"
        raise UsageError(f"Expected the name of a leaf, as {where} has {len(names):,}: {found}")
    return names[0]


def _find_entry(catalog: Catalog, name: str, at: str) -> LeafEntry:
    """The leaf of a checkpoint that has this name below `at`, and is not a string."""
    for entry in catalog.entries:
        path = strip_prefix(entry.path, at)
        if path is not None and join_path(path) == name:
            if entry.kind == "string":
                raise UsageError(f"Expected an array, got a string - at `{name}`")
            return entry
    why = rename_unread(catalog.unread, MatchOptions(at)).get(name)
    if why is not None:
        raise Unsupported(f"templax does not read this leaf: {why}", leaf=name, file=catalog.url)
    raise NotFound("Expected a leaf, found none", leaf=name, file=catalog.url)


def _list_chunks(catalog: Catalog, entry: LeafEntry) -> list[tuple[Box, str]]:
    """The box of each stored chunk of a leaf, without padding, and its file.

    Boxes of keys are those of the array that a user sees, without the dimension of their data.
    """
    shapes = {} if catalog.chunk_shapes is None else catalog.chunk_shapes()
    stored, shape = shapes.get(entry.name), entry.user_shape
    found: list[tuple[Box, str]] = []
    for chunk in catalog.locate([entry])[entry.name]:
        box = _clip(chunk.box, entry.shape)
        boxes = [box]
        if stored is not None and chunk.origin is None:
            # Neighbours in a file are located as one chunk.
            count = math.prod(grid_shape(shape_of(box), stored))
            if len(found) + count <= _MAX_CHUNKS:
                boxes = [_shift(cell, box) for _, cell in iter_cells(shape_of(box), stored)]
        found += [(each[: len(shape)], chunk.extent.key) for each in boxes]
    return found


def _clip(box: Box, shape: Shape) -> Box:
    """A box without what lies past the edge of an array."""
    return tuple((start, min(stop, size)) for (start, stop), size in zip(box, shape, strict=True))


def _shift(box: Box, origin: Box) -> Box:
    """A box relative to the first corner of `origin` as one of the array."""
    pairs = zip(box, origin, strict=True)
    return tuple((start + first, stop + first) for (start, stop), (first, _) in pairs)


def _name_leaf(name: str) -> str:
    return f"`{name}`: " if name else ""


Holders = dict[Box, list[tuple[int, int]]]
"""Box → the number of each device that holds it, and of its host."""


def _find_holders(
    target: Target, shape: Shape, topology: Topology | None, spec: Sequence[Any] | None
) -> tuple[Holders, Sharding | None]:
    """Which devices hold which box of a leaf, and its sharding, if that has a mesh."""
    problems = [p for p in target.problems if p.problem == "sharding" and p.expected != NO_DEVICES]
    sharding = target.sharding
    if spec is not None:
        if topology is None:
            raise UsageError("Expected a topology for spec=, got none")
        sharding, problems = _make_sharding(spec, topology), []
    if problems:
        raise UsageError("; ".join(map(str, problems)))
    if topology is not None and sharding is not None:
        if list(sharding.mesh.items()) != list(topology.mesh.items()):
            raise UsageError(
                f"Expected a sharding over the mesh {dict(topology.mesh)} of the topology, got one"
                f" over {sharding.mesh} - at `{target.name}`"
            )
    elif topology is None and (found := _find_real_devices(target, shape)) is not None:
        return found, sharding
    if sharding is not None:
        uneven = find_sharding_problem(target.name, shape, sharding)
        if uneven is not None:
            raise UsageError(str(uneven))
    if topology is None:
        mesh = sharding.mesh if sharding is not None else {"device": 1}
        size = int(np.prod(list(mesh.values()), dtype=object))
        topology = Topology(hosts=1, devices_per_host=size, mesh=mesh)
    held: Holders = {}
    for device, box in _iter_boxes(topology, sharding, shape):
        held.setdefault(box, []).append((device, device // topology.devices_per_host))
    return held, sharding


def _iter_boxes(
    topology: Topology, sharding: Sharding | None, shape: Shape
) -> Iterable[tuple[int, Box]]:
    """Each device of a topology, and the box that it holds: all, without a sharding."""
    # As if each device was a host of its own.
    alone = Topology(hosts=topology.devices, devices_per_host=1, mesh=topology.mesh)
    for device in range(topology.devices):
        spec = None if sharding is None else sharding.spec
        yield device, alone.find_boxes(spec, shape, device)[0]


def _find_real_devices(target: Target, shape: Shape) -> Holders | None:
    """The devices of the sharding of JAX that a leaf asks for; None if it has none."""
    sharding = getattr(target.placement, "sharding", None)
    if sharding is None or any(p.expected == NO_DEVICES for p in target.problems):
        return None
    held: Holders = {}
    for device, index in sharding.devices_indices_map(shape).items():
        box = full_box(shape) if index is None else box_from_index(index, shape)
        held.setdefault(box, []).append((device.id, device.process_index))
    return held


def _make_sharding(spec: Sequence[Any], topology: Topology) -> Sharding:
    """A spec over the mesh of a topology.

    Raises:
        UsageError: An axis is not one of the mesh, or shards two dimensions.
    """
    made = tuple(a if a is None or isinstance(a, str) else tuple(a) for a in spec)
    axes = [a for dim in made for a in ((dim,) if isinstance(dim, str) else dim or ())]
    unknown = [a for a in axes if a not in topology.mesh]
    if unknown or len(set(axes)) < len(axes):
        raise UsageError(
            f"Expected each dimension sharded over other axes of {dict(topology.mesh)}, got {made}"
        )
    return Sharding(dict(topology.mesh), made)


def _label_holders(held: Sequence[tuple[int, int]], several: bool) -> tuple[str, str]:
    """The devices of a box, and their hosts if there are several in the picture."""
    hosts = sorted({host for _, host in held})
    label = list_numbers([device for device, _ in held])
    return label, f"on host{'s' * (len(hosts) > 1)} {list_numbers(hosts)}" if several else ""


def list_numbers(numbers: Iterable[int]) -> str:
    """Numbers as ranges; of many, the first ones.

    >>> list_numbers([0, 1, 2, 3, 8]), list_numbers(range(0, 100, 2))
    ('0-3, 8', '0, 2, 4, 6, 46 more')
    """
    ranges: list[list[int]] = []
    for n in sorted(set(numbers)):
        if ranges and n == ranges[-1][1] + 1:
            ranges[-1][1] = n
        else:
            ranges.append([n, n])
    shown = [f"{a}" if a == b else f"{a}-{b}" for a, b in ranges[:_MAX_NUMBERS]]
    more = sum(b - a + 1 for a, b in ranges[_MAX_NUMBERS:])
    return ", ".join([*shown, f"{more:,} more"] if more else shown)


def _measure_overlaps(areas: tuple[Area, ...], chunks: Sequence[Box]) -> tuple[Area, ...]:
    """The areas, which say how many chunks they overlap and what part of their elements they are.

    The chunks do not overlap each other.
    """
    bounds = np.array(chunks, np.int64).reshape(len(chunks), -1, 2)
    sizes = np.prod(bounds[..., 1] - bounds[..., 0], axis=1)
    found: list[Area] = []
    for area in areas:
        overlaps = np.ones(len(chunks), bool)
        for axis, (start, stop) in enumerate(area.box):
            overlaps &= (bounds[:, axis, 0] < stop) & (start < bounds[:, axis, 1])
        n, elements = int(overlaps.sum()), int(sizes[overlaps].sum())
        share = size_of(area.box) / elements if elements else 1.0
        note = f"{_count_chunks(n)}, {share:.1%}"
        found.append(area._replace(note=f"{area.note}; {note}" if area.note else note))
    return tuple(found)
