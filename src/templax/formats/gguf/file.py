"""Opens a GGUF file as a catalog. `file_set` opens those that a model was split into."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator

from ..._catalog.catalog import Catalog
from ..._catalog.entry import Chunk, Extent, LeafEntry
from ..._catalog.regions import Region
from ..._codecs.ggml import PREFIX, QUANTISATIONS
from ..._core.boxes import fits_address_space, format_shape, full_box, size_of, split_range
from ..._core.gc_pause import pause_gc
from ...errors import Corrupted, Unsupported
from ...storage.signatures import GGUF, recognise_root
from ...storage.source import Source, open_ranges, root_size
from .header import Header, Tensor, read_header

SPLIT_COUNT, SPLIT_TENSORS = "split.count", "split.tensors.count"
"""Keys of the metadata: into how many files a model was split, and how many tensors it has."""

SPLIT_NAME = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf")
"""The name of such a file: that of the model, its number from 1 on, and how many there are."""

_CHUNK = 1 << 20
"""Most elements of a quantised tensor in one chunk, unless a row has more: a chunk is decoded whole
even if only a part of it is wanted."""

_MAX_PADDING = 1 << 12
"""Most bytes between two tensors that are read to see whether they are padding."""


class Gguf:
    """A file with the magic of GGUF, unless its name says that it is a part of a model."""

    name = "gguf"

    def detect(self, source: Source) -> str | None:
        name = source.url.rpartition("/")[2]
        is_part = SPLIT_NAME.fullmatch(name) is not None and int(name[-10:-5]) > 1
        return None if is_part or recognise_root(source) != GGUF else "its header"

    def open(self, source: Source) -> Catalog:
        """Opens a file. Leaves are in the order of the file; quantised ones are float32.

        Raises:
            Corrupted: See `read_header`.
            Unsupported: See `read_header`; or the file is a part of a model under another name.
        """
        header = read_header(source, root_size(source))
        count = header.metadata.get(SPLIT_COUNT, 1)
        if type(count) is int and count > 1:
            raise Unsupported(
                f"templax reads the {count} files of a split model by their names, which end in"
                f" `-00001-of-{count:05}.gguf`, got another name"
            )
        return make_catalog(source, header)


class GgufPart:
    """Any file with the magic of GGUF, alone."""

    name = "gguf"

    def detect(self, source: Source) -> str | None:
        return "its header" if recognise_root(source) == GGUF else None

    def open(self, source: Source) -> Catalog:
        return make_catalog(source, read_header(source, root_size(source)))


@pause_gc()
def make_catalog(source: Source, header: Header) -> Catalog:
    """The catalog of a file."""
    entries: list[LeafEntry] = []
    for tensor in header.tensors:
        dtype, shape = tensor.type.dtype, tensor.shape
        if not fits_address_space(shape, dtype.itemsize):
            what = f"templax reads no arrays of shape {format_shape(shape)}"
            raise Unsupported(what, leaf=tensor.name)
        path = tuple(tensor.name.split("."))
        quantisation = tensor.type.name if tensor.type.quantised else None
        entries.append(
            LeafEntry(
                tensor.name,
                path,
                shape,
                dtype,
                handle=tensor,
                quantisation=quantisation,
                undecodable=_find_problem(tensor),
            )
        )
    return Catalog(
        url=source.url,
        format=Gguf.name,
        evidence="its header",
        entries=tuple(entries),
        source=source,
        locator=_locate,
        metadata=header.metadata,
        regions=functools.partial(_describe_file, source, header),
    )


def _describe_file(source: Source, header: Header) -> Iterator[Region]:
    """The bytes that hold no values: the header, and the zeros in front of and after tensors."""
    yield Region("", 0, header.nbytes, "index", "header")
    size, alignment = root_size(source), header.alignment
    read = open_ranges(source, "", size)
    for start in (header.nbytes, *(tensor.stop for tensor in header.tensors)):
        stop = min(start + -start % alignment, size)
        if 0 < stop - start <= _MAX_PADDING and not any(read(start, stop)):
            yield Region("", start, stop, "padding", f"zeros up to a multiple of {alignment}")


@pause_gc()
def _locate(
    entries: Iterable[LeafEntry], damages: list[Corrupted] | None = None
) -> dict[str, tuple[Chunk, ...]]:
    located: dict[str, tuple[Chunk, ...]] = {}
    for entry in entries:
        tensor: Tensor = entry.handle
        problem = _find_problem(tensor)
        if problem is not None and damages is None:
            raise Unsupported(problem, leaf=entry.name)
        located[entry.name] = tuple(_make_chunks(tensor))
    return located


def _find_problem(tensor: Tensor) -> str | None:
    """Why a tensor can't be decoded; None if it can."""
    if not tensor.type.quantised or tensor.type.name in QUANTISATIONS:
        return None
    return f"templax does not read tensors quantised as `{tensor.type.name}`"


def _make_chunks(tensor: Tensor) -> Iterator[Chunk]:
    stored, start = tensor.type, tensor.start
    if start == tensor.stop:
        return
    everything = full_box(tensor.shape)
    if not stored.quantised:
        yield Chunk(Extent("", start, tensor.stop), everything)
        return
    codecs = (PREFIX + stored.name,)
    if stored.name not in QUANTISATIONS:
        yield Chunk(Extent("", start, tensor.stop), everything, codecs)
        return
    count, row = size_of(everything), tensor.shape[-1]  # rows are whole blocks
    step = row * max(1, _CHUNK // row)
    for first in range(0, count, step):
        for box in split_range(first, min(first + step, count), tensor.shape):
            stop = start + size_of(box) // stored.elements * stored.nbytes
            yield Chunk(Extent("", start, stop), box, codecs)
            start = stop
