"""The formats of files and of sets of files: `diagnose` and `registry` both need them."""

from __future__ import annotations

from .equinox import Equinox
from .flax.file import FlaxMsgpack
from .gguf.file import Gguf
from .gguf.file_set import GgufSet
from .numpy_files import NumpyArchive, NumpyArray
from .one_file import OneFile
from .protocol import Format
from .safetensors import Safetensors
from .safetensors_set import SafetensorsSet
from .torch.dcp import DistributedCheckpoint
from .torch.file_set import TorchSet
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
    Gguf(),
)

SET_FORMATS: tuple[Format, ...] = (
    ZarrTree(),
    OneFile(),
    DistributedCheckpoint(),
    SafetensorsSet(),  # late: a directory may have such a file beside its checkpoint
    GgufSet(),
    TorchSet(),  # after safetensors: Hugging Face's repositories have the same weights as both
)
"""Directories whose files are parts of one checkpoint."""
