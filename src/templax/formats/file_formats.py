"""The formats of files and of sets of files: `diagnose` and `registry` both need them.

They are tried in this order, and each is imported once it is its turn: a listing should not wait
for formats that its checkpoint does not have.
"""

from __future__ import annotations

from collections.abc import Iterator

from .protocol import Format


def iter_file_formats() -> Iterator[Format]:
    """The formats of single files."""
    from .safetensors import Safetensors

    yield Safetensors()
    from .flax.file import FlaxMsgpack

    yield FlaxMsgpack()
    from .numpy_files import NumpyArchive, NumpyArray

    yield NumpyArchive()
    from .equinox import Equinox

    yield Equinox()
    yield NumpyArray()  # after Equinox, whose files begin with an array
    from .torch.zip_file import TorchZip

    yield TorchZip()
    from .torch.legacy import TorchLegacy

    yield TorchLegacy()
    from .gguf.file import Gguf

    yield Gguf()


def iter_set_formats() -> Iterator[Format]:
    """The formats of directories whose files are parts of one checkpoint."""
    from .zarr_tree import ZarrTree

    yield ZarrTree()
    from .one_file import OneFile

    yield OneFile()
    from .torch.dcp import DistributedCheckpoint

    yield DistributedCheckpoint()
    from .safetensors_set import SafetensorsSet

    yield SafetensorsSet()  # late: a directory may have such a file beside its checkpoint
    from .gguf.file_set import GgufSet

    yield GgufSet()
    from .torch.file_set import TorchSet

    yield TorchSet()  # after safetensors: Hugging Face's repositories have the same weights as both
