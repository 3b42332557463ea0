"""Sets of safetensors files."""

from __future__ import annotations

from .file_set import INDEX_SUFFIX, FileSet
from .safetensors import Safetensors


class SafetensorsSet(FileSet):
    """A directory with one index of safetensors files, or with a single one; or such an index."""

    name = "safetensors"
    suffix = ".safetensors"
    formats = (Safetensors(),)


INDEX = SafetensorsSet.suffix + INDEX_SUFFIX
"""What the name of an index ends in."""
