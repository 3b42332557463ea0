"""For those who write a source or a format, and for templax's own tests. Needs pytest.

class TestMyStore(SourceContract):
    def make(self, objects):
        return MyStore(objects)
"""

from ._contract import FormatContract, SourceContract
from ._sources import Watched

__all__ = ["FormatContract", "SourceContract", "Watched"]
