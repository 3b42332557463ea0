"""Sets of files of PyTorch, as Hugging Face's libraries wrote them before safetensors."""

from __future__ import annotations

from ..file_set import FileSet
from .legacy import TorchLegacy
from .zip_file import TorchZip


class TorchSet(FileSet):
    """A directory with one index of files `.bin`, or with a single one; or such an index.

    `transformers.Trainer` saves its arguments beside the model, as a pickle of a class of its own.
    """

    name = "torch"
    suffix = ".bin"
    formats = (TorchZip(), TorchLegacy())
    others = frozenset({"training_args.bin"})
