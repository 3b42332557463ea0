"""What holds zarr arrays: the files of a directory, or the values of a database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ..._catalog.catalog import record_damage
from ..._catalog.entry import Chunk, Extent
from ..._core.gc_pause import pause_gc
from ...errors import CheckpointError, Corrupted, NotFound, SourceError
from ...storage.signatures import diagnose_lfs_pointer, is_lfs_pointer, make_lfs_error
from ...storage.source import Source
from ..file_names import FILES
from .budget import ChunkBudget
from .chunks import locate_arrays
from .metadata import MAX_FILE, Array, array_prefix, parse_metadata

_POINTER_BYTES = 256

_FIRST = FILES[0]


@dataclass(frozen=True, slots=True)
class Container:
    """Arrays by key.

    Attributes:
        objects: Key → extent of each file or value.
        index: File that lists them; None if they are files themselves.
        unread: Key → problem of each file or directory that could not be listed. An array, or a
            part of one, may be there.
    """

    objects: Mapping[str, Extent]
    index: str | None
    unread: Mapping[str, CheckpointError | SourceError] = field(default_factory=dict)

    def check_listing(
        self, name: str, prefix: str | None = None, damages: list[Corrupted] | None = None
    ) -> None:
        """Raises, or adds to `damages`, the problem with any part of an array that was not listed.

        An absent chunk may mean the fill value. A chunk that exists but could not be listed would
        silently be replaced by it.

        Args:
            name, prefix: See `locate_arrays`.
            damages: See `Catalog.locate`.
        """
        if prefix is None:
            prefix = array_prefix(name, files=True)
        for key, problem in self.unread.items():
            if key.startswith(prefix) or prefix.startswith(f"{key}/"):
                if isinstance(problem, SourceError):
                    raise problem
                record_damage(Corrupted(problem.what, leaf=name, file=key), damages, problem)

    def check_all_listed(self, source: Source) -> None:
        """Raises if the listing may lack arrays. For where no other file names them."""
        for key, problem in self.unread.items():
            if not isinstance(problem, SourceError):
                continue
            places = [key] if key.endswith(FILES) else [f"{key}/{file}" for file in FILES]
            if problem.errno or any(source.at(place).stat("") is not None for place in places):
                raise problem


@pause_gc()
def list_files(source: Source, prefix: str = "") -> Container:
    """Lists the files below a prefix of `source`, each as one extent."""
    objects: dict[str, Extent] = {}
    unread: dict[str, CheckpointError | SourceError] = {}
    for info in source.walk(prefix):
        if info.problem is None:
            objects[info.key] = Extent(info.key, 0, info.size)
        else:
            unread[info.key] = info.problem
    return Container(objects, None, unread)


Parsed = dict[tuple[str, bytes], Array]
"""Name and bytes of a metadata file → what it says."""


def read_array(
    source: Source, name: str, container: Container, parsed: Parsed, prefix: str | None = None
) -> Array | None:
    """The metadata of an array; None if there is none.

    Args:
        source: Where the container is.
        name: Name of the leaf.
        container: The container.
        parsed: What was parsed so far. Layers of a model often have equal metadata, so that equal
            bytes are parsed once.
        prefix: What the array's keys begin with. Default: `array_prefix(name)`.

    Raises:
        Corrupted, Unsupported: See `parse_metadata`.
        UnknownFormat: The file is a Git LFS pointer.
    """
    if prefix is None:
        prefix = array_prefix(name, files=container.index is None)
    for file in FILES:
        extent = container.objects.get(prefix + file)
        if extent is None:
            continue
        inline = extent.inline
        try:
            data = read_extent(source, extent) if inline is None else bytes(inline)
            array = parsed.get((file, data))
            if array is None:
                array = parsed[file, data] = parse_metadata(data, file)
            return array
        except CheckpointError as error:
            raise error.locate(leaf=name, file=extent.key) from error
    return None


def read_arrays(source: Source, names: Sequence[str], container: Container) -> list[Array | None]:
    """The metadata of many arrays, of which most are values in a database, and many are equal.

    Args:
        source, container: See `read_array`.
        names: Names of the leaves.

    Returns:
        In the order of the names, what `read_array` returns.

    Raises:
        Corrupted, Unsupported, UnknownFormat: See `read_array`.
    """
    parsed: Parsed = {}
    inline: dict[bytes | memoryview, Array] = {}
    arrays: list[Array | None] = []
    objects = container.objects
    for name in names:
        # Fast path: the metadata are a value in the index, and equal to those of an earlier array.
        extent = objects.get(f"{name}/{_FIRST}") if name and name[-1] != "/" else None
        data = extent.inline if extent is not None else None
        array = inline.get(data) if data is not None else None
        if array is None:
            array = read_array(source, name, container, parsed)
            if array is not None and data is not None:
                inline[data] = array
        arrays.append(array)
    return arrays


def read_extent(source: Source, extent: Extent, maximum: int = MAX_FILE) -> bytes:
    """Reads a metadata file, or value of a database.

    Raises:
        Corrupted: It is larger than `maximum`, or its data file is missing.
        UnknownFormat: It is a Git LFS pointer.
    """
    if extent.inline is not None:
        return bytes(extent.inline)
    if extent.nbytes > maximum:
        raise Corrupted(f"Expected at most {maximum} bytes, got {extent.nbytes}")
    try:
        data = bytes(source.read(extent.key, extent.start, extent.stop))
    except NotFound as error:
        raise Corrupted("Expected a data file, found none") from error
    if is_lfs_pointer(data):
        raise make_lfs_error(extent.key)
    return data


def missing_dot_file_error(name: str, chunk: str) -> Corrupted:
    """The error for chunks without the `.zarray` that describes them: some tools skip dot files."""
    return Corrupted(
        f"Expected `.zarray` beside `{chunk}`, found none",
        leaf=name,
        file=f"{name}/.zarray",
        hint="copy the checkpoint again, with the files whose names start with a dot",
    )


class ArrayLocator:
    """Locates the arrays of a container for one call of `Catalog.locate`.

    Unless `damages` is given, it checks that chunks lie within existing files.

    Args:
        source: Where the container is.
        container: The container.
        absent: See `locate_arrays`.
        damages: See `Catalog.locate`.
    """

    def __init__(
        self,
        source: Source,
        container: Container,
        absent: Literal["error", "fill"],
        damages: list[Corrupted] | None,
    ):
        self._source, self._container = source, container
        self._absent: Literal["error", "fill"] = absent
        self._damages, self._budget = damages, ChunkBudget(container.objects)
        self._sizes: dict[str, int] = {}

    def locate(self, array: Array, name: str, prefix: str | None = None) -> tuple[Chunk, ...]:
        """The chunks of an array.

        Args:
            array, name, prefix: See `locate_arrays`.

        Raises:
            Corrupted, Unsupported: See `locate_arrays`.
        """
        container, damages = self._container, self._damages
        if container.unread:
            container.check_listing(name, prefix, damages)
        chunks = locate_arrays(
            array,
            name,
            container.objects,
            self._source,
            absent=self._absent,
            index=container.index,
            damages=damages,
            budget=self._budget,
            prefix=prefix,
        )
        if container.index is not None and damages is None:
            self._check_data_files(name, chunks)
        elif container.index is None and not self._sizes and chunks:
            extent = chunks[0].extent
            if extent.inline is None and extent.nbytes <= _POINTER_BYTES:
                self._sizes[extent.key] = extent.nbytes  # Git LFS replaces all files or none
                if (pointer := diagnose_lfs_pointer(self._source, extent.key)) is not None:
                    raise pointer
        return chunks

    def _check_data_files(self, leaf: str, chunks: Iterable[Chunk]) -> None:
        for extent in (chunk.extent for chunk in chunks):
            if extent.inline is not None:
                continue
            size = self._sizes.get(extent.key)
            if size is None:
                info = self._source.stat(extent.key)
                if info is None or info.is_dir:
                    raise Corrupted("Expected a data file, found none", leaf=leaf, file=extent.key)
                size = self._sizes[extent.key] = info.size
            if extent.stop > size:
                raise diagnose_lfs_pointer(self._source, extent.key) or Corrupted(
                    f"Expected at least {extent.stop} bytes, the file has {size}",
                    leaf=leaf,
                    file=extent.key,
                    start=extent.start,
                    stop=extent.stop,
                )
