"""Recognises files by their first bytes. Makes no claim that a signature does not prove."""

from __future__ import annotations

import re

from ..errors import Corrupted, NotFound, UnknownFormat
from .source import Source, root_size

MAX_METADATA = 1 << 28
"""Maximum size of a metadata file or decoded index, in bytes. Orbax's own limit is 100 MB."""

_LFS = b"version https://git-lfs.github.com/spec/"

NPY, NPZ = "a numpy array (`.npy`)", "a numpy archive (`.npz`)"

PICKLE, PYTORCH = "a Python pickle, which templax never loads", "a PyTorch file"

HDF5 = "an HDF5 file"

TENSORFLOW = "the index of a TensorFlow checkpoint"

SAFETENSORS = "a safetensors file"

GGUF = "a GGUF file"

ZIP = "a zip archive"

_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\x93NUMPY", NPY),
    (b"\x89HDF\r\n\x1a\n", HDF5),
    (b"\x1f\x8b", "a gzip file"),
    (b"\x28\xb5\x2f\xfd", "a zstd file"),
    (b"\x04\x22\x4d\x18", "an lz4 file"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ\x00", "an xz file"),
    (b"\x80\x02", PICKLE),
    (b"\x80\x03", PICKLE),
    (b"\x80\x04", PICKLE),
    (b"\x80\x05", PICKLE),
    (b"\x0c\xdb\x3a\x2a", "the manifest of an OCDBT database"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"model_checkpoint_path:", TENSORFLOW),
    (b"all_model_checkpoint_paths:", TENSORFLOW),
)


_OLD_PYTORCH = re.compile(
    rb"\x80[\x02-\x05](?:\x95.{8})?\x8a\x0a"
    + re.escape((0x1950A86A20F9469CFC6C).to_bytes(10, "little")),
    re.DOTALL,
)
"""The pickle of a magic number, with which `torch.save` began a file before PyTorch 1.6."""


def is_old_pytorch(head: bytes) -> bool:
    """Whether a file is in the format of PyTorch before 1.6, which was not a zip archive."""
    return _OLD_PYTORCH.match(head) is not None


def is_lfs_pointer(head: bytes) -> bool:
    """Whether a file is the text that Git LFS leaves in place of a file that was not fetched."""
    return head.startswith(_LFS)


def make_lfs_error(file: str) -> UnknownFormat:
    """The error for a checkpoint whose files were not fetched from Git LFS."""
    return UnknownFormat(
        "Expected checkpoint data, got a Git LFS pointer", file=file, hint="run `git lfs pull`"
    )


def diagnose_lfs_pointer(source: Source, key: str) -> UnknownFormat | None:
    """The error for a file that is too short because it is a Git LFS pointer; None if it is not."""
    info = source.stat(key)
    if info is None or info.is_dir or not is_lfs_pointer(read_head(source, key, info.size, 64)):
        return None
    return make_lfs_error(key)


def recognise(head: bytes, size: int) -> str | None:
    """Tells what kind of file this is.

    What has a structure goes before signatures of a few bytes, which may be part of a number: two
    bytes of every pickle are a possible length of a safetensors header.

    Args:
        head: The first 512 bytes of the file, or all of them if it is shorter.
        size: Size of the file in bytes.

    Returns:
        What the file is, such as "a zip archive"; None if nothing is recognised.
    """
    if head.startswith(b"GGUF"):  # as the length of a safetensors header, it exceeds the limit
        return GGUF
    length = int.from_bytes(head[:8], "little")
    if len(head) > 9 and head[8:9] == b"{" and 2 <= length <= size - 8:
        return SAFETENSORS
    if head[257:262] == b"ustar":
        return "a tar archive"
    if head.startswith(b"PK\x03\x04"):
        return _recognise_zip(head)
    if is_old_pytorch(head):
        return PYTORCH
    return next((what for signature, what in _SIGNATURES if head.startswith(signature)), None)


def _recognise_zip(head: bytes) -> str:
    name_length = int.from_bytes(head[26:28], "little")
    name = head[30 : 30 + name_length].decode("utf-8", "replace")
    data = head[30 + name_length + int.from_bytes(head[28:30], "little") :]
    if name.endswith(".npy") or data.startswith(b"\x93NUMPY"):
        return NPZ
    if name.endswith(("/data.pkl", "/version", "/byteorder", "/.format_version")):
        return PYTORCH
    return ZIP


def read_head(source: Source, key: str, size: int, nbytes: int = 512) -> bytes:
    """Reads the first `nbytes` bytes of a file of `size` bytes, or all of a shorter one."""
    return bytes(source.read(key, 0, min(size, nbytes)))


def read_root(source: Source) -> bytes:
    """Reads the head of the file at the root of a source; empty if there is no file."""
    size = root_size(source)
    return read_head(source, "", size) if size else b""


def recognise_root(source: Source) -> str | None:
    """What the file at the root of a source is, by its head; see `recognise`."""
    return recognise(read_root(source), root_size(source))


def read_metadata(source: Source, key: str) -> memoryview:
    """Reads a whole metadata file.

    Raises:
        NotFound: There is no such file.
        Corrupted: The file is larger than `MAX_METADATA`; nothing was read.
        UnknownFormat: The file is a Git LFS pointer.
    """
    info = source.stat(key)
    if info is None or info.is_dir:
        raise NotFound("Expected a file, found none", file=key)
    if info.size > MAX_METADATA:
        raise Corrupted(
            f"Expected at most {MAX_METADATA} bytes of metadata, got {info.size}", file=key
        )
    data = source.read(key)
    if is_lfs_pointer(bytes(data[:64])):
        raise make_lfs_error(key)
    return data
