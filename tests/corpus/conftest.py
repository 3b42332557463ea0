"""The corpus, and how a test puts a leaf together without the engine."""

import math
from pathlib import Path

import numpy as np
import pytest

from templax._boxes import intersect, shape_of, slices, whole, within
from templax._catalog import Catalog, LeafEntry
from templax._codecs import decode

CORPUS = Path(__file__).parent


@pytest.fixture(scope="session")
def corpus():
    return CORPUS


@pytest.fixture(scope="session")
def assemble():
    return _assemble


def _assemble(catalog: Catalog, entry: LeafEntry) -> np.ndarray:
    """The values of one leaf; asserts that its chunks tile it."""
    chunks = catalog.locate([entry])[entry.name]
    array = np.empty(entry.shape, entry.dtype)
    covered = 0
    for chunk in chunks:
        extent, shape = chunk.extent, shape_of(chunk.box)
        data = extent.inline
        if data is None:
            data = catalog.source.read(extent.key, extent.start, extent.stop)
        decoded = decode(chunk.codecs, data, math.prod(shape) * entry.dtype.itemsize)
        values = (
            np.frombuffer(decoded, np.uint8).view(entry.dtype).reshape(shape, order=chunk.order)
        )
        inside = intersect(chunk.box, whole(entry.shape))
        assert inside is not None
        array[slices(inside)] = values[slices(within(inside, chunk.box))]
        covered += math.prod(shape_of(inside))
    assert covered == array.size
    return array
