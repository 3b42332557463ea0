"""The arrays of a state dict that are in directories beside its file, as TensorStore wrote them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
import numpy as np

from ..._catalog.entry import Chunk, Extent, LeafEntry
from ..._catalog.regions import Region
from ..._core.boxes import Shape, format_shape
from ..._core.dtypes import name_of
from ...errors import CheckpointError, Corrupted, SourceError
from ...storage.source import Source
from ..file_names import FILES
from ..zarr.container import (
    ArrayLocator,
    Container,
    Parsed,
    list_files,
    missing_dot_file_error,
    read_array,
)
from ..zarr.metadata import Array, array_prefix
from .specs import Spec


class OutsideArray(msgspec.Struct, frozen=True, gc=False):
    """An array in a directory of its own, whose keys begin with `prefix`."""

    array: Array
    prefix: str

    @property
    def shape(self) -> Shape:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype


class OutsideArrays:
    """The arrays that a file refers to.

    Args:
        source: The directory of the file.
    """

    def __init__(self, source: Source):
        self._source = source
        self._objects: dict[str, Extent] = {}
        self._unread: dict[str, CheckpointError | SourceError] = {}
        self._container, self._parsed = Container(self._objects, None, self._unread), Parsed()
        self._prefixes: dict[str, str] = {}

    def read(self, name: str, spec: Spec) -> OutsideArray:
        """Reads the metadata of an array, which must be as the file says.

        Raises:
            Corrupted: It is missing, unreadable or something else; or another leaf refers to it.
            Unsupported: It has something that templax does not read.
        """
        if spec.place in self._prefixes:  # it would be read again and again
            what = f"Expected one leaf for each array, got two for `{spec.place[:200]}`"
            raise Corrupted(what, leaf=name)
        prefix = self._prefixes[spec.place] = array_prefix(spec.place, files=True)
        found = list_files(self._source, prefix)  # and nothing else in the directory
        self._objects.update(found.objects)
        self._unread.update(found.unread)
        array = read_array(self._source, name, self._container, self._parsed, prefix)
        if array is None:
            self._container.check_listing(name, prefix)
            raise _missing_array_error(name, spec.place, prefix, self._container)
        dtype = name_of(array.dtype)
        if spec.shape not in (None, array.shape) or spec.dtype not in (None, dtype):
            want = f"{spec.dtype or dtype}{format_shape(spec.shape or array.shape)}"
            got = f"{dtype}{format_shape(array.shape)}"
            raise Corrupted(
                f"Expected {want}, as the file says, found an array {got}",
                leaf=name,
                file=spec.place,
            )
        return OutsideArray(array, prefix)

    def describe(self) -> Iterator[Region]:
        """The bytes of their files that hold no values."""
        for prefix in self._prefixes.values():
            for each in FILES:
                extent = self._objects.get(prefix + each)
                if extent is not None:
                    yield Region(
                        extent.key, extent.start, extent.stop, "index", "metadata of arrays"
                    )

    def make_locator(
        self, damages: list[Corrupted] | None
    ) -> Callable[[LeafEntry], tuple[Chunk, ...]]:
        """A function that finds the chunks of a leaf whose handle is an `OutsideArray`.

        Args:
            damages: See `Catalog.locate`.
        """
        # Whether all chunks were written is not recorded. An absent one is lost, unless the array
        # has a fill value; those of T5X and Flax have none.
        arrays = ArrayLocator(self._source, self._container, "fill", damages)

        def locate(entry: LeafEntry) -> tuple[Chunk, ...]:
            handle: OutsideArray = entry.handle
            return arrays.locate(handle.array, entry.name, handle.prefix)

        return locate


def _missing_array_error(
    name: str, place: str, prefix: str, container: Container
) -> CheckpointError:
    chunk = next((key for key in container.objects if key.startswith(prefix)), None)
    if chunk is None:
        return Corrupted("Expected a directory with an array, found none", leaf=name, file=place)
    error = missing_dot_file_error(place, chunk)
    return Corrupted(error.what, leaf=name, file=error.file, hint=error.hint)
