"""Tests for authors of sources and formats, also used by templax's own tests. Requires pytest.

To test a store, subclass its contract and run pytest:

    class TestMyStore(SourceContract):
        def make(self, objects):
            return MyStore(objects)

`Watched` records the reads of a source and can make them fail. `FaultyDisk` does the same for
changes to a file system, and `assert_durable` checks that a recorded save survives a power loss.
`strategies` provides hypothesis strategies: trees, templates with a single mistake, shardings and
chunk grids.
"""

from . import strategies
from .contract import FormatContract, SourceContract
from .disks import FaultyDisk, Operation, assert_durable
from .sources import Watched

__all__ = [
    "FaultyDisk",
    "FormatContract",
    "Operation",
    "SourceContract",
    "Watched",
    "assert_durable",
    "strategies",
]
