"""The formats of files and of sets of files: `diagnose` and `registry` both need them."""

from __future__ import annotations

from .equinox import Equinox
from .flax.file import FlaxMsgpack
from .numpy_files import NumpyArchive, NumpyArray
from .protocol import Format
from .safetensors import Safetensors
from .safetensors_set import SafetensorsSet
from .torch.dcp import DistributedCheckpoint
from .torch.legacy import TorchLegacy
from .torch.zip_file import TorchZip
from .zarr_tree import ZarrTree

FILE_FORMATS: tuple[Format, ...] = (
    Safetensors(),
    FlaxMsgpack(),
    NumpyArchive(),
    Equinox(),
    NumpyArray(),  # after Equinox, whose files begin with an array
    TorchZip(),
    TorchLegacy(),
)

SET_FORMATS: tuple[Format, ...] = (
    ZarrTree(),
    DistributedCheckpoint(),
    SafetensorsSet(),  # last: a directory may have such a file beside its checkpoint
)
"""Directories whose files are parts of one checkpoint."""
