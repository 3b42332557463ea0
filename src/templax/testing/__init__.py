"""For those who write a source or a format, and for templax's own tests. Needs pytest.

class TestMyStore(SourceContract):
    def make(self, objects):
        return MyStore(objects)

`Watched` notes and disturbs the reads of a source, `FaultyDisk` the changes of a file system, and
`assert_durable` says whether they survive a loss of power; `strategies` draws trees, templates
with one thing wrong, shardings and chunk grids for hypothesis.
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
