"""How a test puts a leaf together without the engine."""

import numpy as np
import pytest
from stored_leaves import join_chunks

from templax._catalog.catalog import Catalog
from templax._catalog.entry import LeafEntry


@pytest.fixture(scope="session")
def assemble():
    return _assemble


def _assemble(catalog: Catalog, entry: LeafEntry) -> np.ndarray:
    """The values of one leaf; asserts that its chunks tile it."""
    chunks = catalog.locate([entry])[entry.name]
    return join_chunks(chunks, entry.shape, entry.dtype, catalog.source)
