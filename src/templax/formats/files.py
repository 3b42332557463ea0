"""The formats of single files, here because `diagnose` and `registry` both need them."""

from __future__ import annotations

from .equinox import Equinox
from .flax.file import FlaxMsgpack
from .numpy_files import NumpyArchive, NumpyArray
from .protocol import Format
from .safetensors import Safetensors
from .torch.legacy import TorchLegacy
from .torch.zip_file import TorchZip

FILE_FORMATS: tuple[Format, ...] = (
    Safetensors(),
    FlaxMsgpack(),
    NumpyArchive(),
    Equinox(),
    NumpyArray(),  # after Equinox, whose files begin with an array
    TorchZip(),
    TorchLegacy(),
)
