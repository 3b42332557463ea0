"""Recognises files by their first bytes. Makes no claim that a signature does not prove."""

from __future__ import annotations

from ..errors import Corrupted, NotFound, UnknownFormat
from .source import Source

MAX_METADATA = 1 << 28
"""Maximum size of a metadata file or decoded index, in bytes. Orbax's own limit is 100 MB."""

_LFS = b"version https://git-lfs.github.com/spec/"

_SIGNATURES: tuple[tuple[bytes, str, str | None], ...] = (
    (b"PK\x03\x04", "a zip archive", None),
    (b"\x93NUMPY", "a numpy array (`.npy`)", None),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", None),
    (b"\x1f\x8b", "a gzip file", "unpack it"),
    (b"\x28\xb5\x2f\xfd", "a zstd file", "unpack it"),
    (b"BZh", "a bzip2 file", "unpack it"),
    (b"\xfd7zXZ\x00", "an xz file", "unpack it"),
    (b"\x80\x02", "a Python pickle, which templax never loads", None),
    (b"\x80\x03", "a Python pickle, which templax never loads", None),
    (b"\x80\x04", "a Python pickle, which templax never loads", None),
    (b"\x80\x05", "a Python pickle, which templax never loads", None),
    (b"\x0c\xdb\x3a\x2a", "the manifest of an OCDBT database", None),
)


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


def recognise(head: bytes, size: int) -> tuple[str, str | None] | None:
    """Tells what kind of file this is.

    Args:
        head: The first 512 bytes of the file, or all of them if it is shorter.
        size: Size of the file in bytes.

    Returns:
        What the file is, such as "a zip archive", and a hint on what to do about it or None. None
        if no signature matches.
    """
    for signature, what, hint in _SIGNATURES:
        if head.startswith(signature):
            if what == "a zip archive":
                return _recognise_zip(head)
            return what, hint
    if head[257:262] == b"ustar":
        return "a tar archive", "unpack it"
    length = int.from_bytes(head[:8], "little")
    if len(head) > 9 and head[8:9] == b"{" and 2 <= length <= size - 8:
        return "a safetensors file", None
    if head.startswith((b"model_checkpoint_path:", b"all_model_checkpoint_paths:")):
        return "the index of a TensorFlow checkpoint", None
    return None


def _recognise_zip(head: bytes) -> tuple[str, str | None]:
    name_length = int.from_bytes(head[26:28], "little")
    name = head[30 : 30 + name_length].decode("utf-8", "replace")
    if name.endswith(".npy"):
        return "a numpy archive (`.npz`)", None
    if name.endswith(("/data.pkl", "/version", "/byteorder", "/.format_version")):
        return "a PyTorch file", None
    return "a zip archive", "unpack it"


def read_head(source: Source, key: str, size: int, nbytes: int = 512) -> bytes:
    """Reads the first `nbytes` bytes of a file of `size` bytes, or all of a shorter one."""
    return bytes(source.read(key, 0, min(size, nbytes)))


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
