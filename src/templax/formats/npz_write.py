"""The layout and the headers of `.npz` archives that a save writes. No I/O, no JAX.

An archive is a zip of stored `.npy` files, as `np.savez` writes it (APPNOTE.TXT of PKWARE, 4.3).
The values of each array begin at a multiple of 64 bytes, as memory-mapping requires: an extra field
pads the header before them, as Android's `zipalign` does it.

In the central directory each member has an extra field of templax's own; see `npz_sums`.
"""

from __future__ import annotations

import functools
import io
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from .._catalog.written import Leaf
from .._core.boxes import fits_address_space
from .._core.dtypes import name_of
from .._core.memory import ALIGN
from .._core.names import join_path
from .._core.text import is_unicode
from .layout import Layout
from .npz_sums import encode_sums
from .numpy_files import split_names
from .numpy_header import CODES

_EXTRA_ZIP64, _EXTRA_PADDING = 0x0001, 0xD935

_MAX_NAME = 0xFFFF

_U16, _U32 = 0xFFFF, 0xFFFFFFFF

_MAX16, _MAX32 = _U16, _U32
"""Numbers from here on are in the fields of zip64; `_U16` or `_U32` is in their place."""

_DATE = (1 << 5) | 1  # 1 January 1980, as numpy writes it: the same values make the same file

_UTF8 = 0x0800

_CRC_AT = 14
"""Where the CRC-32 is in the header of a member."""


def find_unwritable_leaves(leaves: Iterable[Leaf]) -> Iterator[str]:
    """What an archive cannot store, as phrases that begin with the name of a leaf."""
    for leaf in leaves:
        if leaf.key_impl is not None:
            what = "is a typed PRNG key, which npz cannot store: save jax.random.key_data"
        elif leaf.text is not None:
            what = "is a string, which templax does not read from npz"
        elif _describe(leaf.dtype) is None:
            what = f"has dtype {name_of(leaf.dtype)}, which npz stores as bytes without a name"
        elif not fits_address_space(leaf.shape, leaf.dtype.itemsize):
            what = "has a shape that templax does not read"
        else:
            continue
        yield f"`{leaf.name[:200]}` {what}"


@functools.cache
def _describe(dtype: np.dtype) -> str | None:
    """How the header of an array names a dtype; None if that would not tell which one it is.

    numpy knows no dtypes of ml_dtypes and writes them as bytes without a name. bfloat16 is the only
    one that has two of them.
    """
    descr: Any = np.lib.format.dtype_to_descr(dtype)
    known = CODES.get(descr[1:]) == dtype
    return descr if known and (dtype.itemsize > 1 or dtype.kind in "biu") else None


def name_members(leaves: Sequence[Leaf]) -> tuple[list[str], list[str]]:
    """The names of the arrays in an archive, which a reader turns back into those of the leaves.

    Key paths are joined by dots as everywhere, or by slashes if a key contains one, as in the trees
    of Haiku.

    Returns:
        The names; and what no spelling can say, as phrases that begin with the name of a leaf.
    """
    wrong = list[Leaf]()
    for names in ([leaf.name for leaf in leaves], ["/".join(map(str, x.path)) for x in leaves]):
        read = [join_path(path) for path in split_names(names)]
        wrong = [leaf for leaf, name in zip(leaves, read, strict=True) if leaf.name != name]
        if not wrong and len(set(names)) == len(names):
            break
    problems = [f"`{leaf.name[:200]}` has a name that npz would split elsewhere" for leaf in wrong]
    for leaf in leaves:
        if "\0" in leaf.name or not is_unicode(leaf.name) or len(leaf.name) * 4 > _MAX_NAME // 2:
            problems.append(f"`{leaf.name[:200]}` has a name that a zip archive cannot store")
    taken = set(names)
    for leaf, name in zip(leaves, names, strict=True):
        # Of the member `a.npy`, numpy takes both `a` and `a.npy` for the name.
        if name.endswith(".npy") and name.removesuffix(".npy") in taken:
            problems.append(f"`{leaf.name[:200]}` has a name by which numpy finds another array")
    return names, problems


def lay_out(leaves: Sequence[Leaf], names: Sequence[str]) -> Layout:
    """Where the arrays lie, and the headers of their members, without the CRC-32."""
    starts, heads, at = list[int](), list[tuple[int, bytes]](), 0
    for leaf, name in zip(leaves, names, strict=True):
        begin, array = at, encode_array_head(leaf)
        nbytes = len(array) + leaf.nbytes
        key, flags = _encode_name(name)
        sizes, extra, version = _encode_sizes(nbytes)
        at += 30 + len(key) + len(extra)
        padding = -at % ALIGN
        if padding:
            padding += ALIGN if padding < 6 else 0
            extra += struct.pack("<3H", _EXTRA_PADDING, padding - 4, ALIGN) + bytes(padding - 6)
            at += padding
        head = struct.pack(
            "<4s5HI8s2H", b"PK\3\4", version, flags, 0, 0, _DATE, 0, sizes, len(key), len(extra)
        )
        at += len(array)
        heads.append((begin, head + key + extra + array))
        starts.append(at)
        at += leaf.nbytes
    return Layout(leaves=leaves, starts=starts, heads=heads, size=at)


def encode_array_head(leaf: Leaf) -> bytes:
    """The header of an array in numpy's own format, as numpy writes it."""
    return _encode_array_head(_describe(leaf.dtype), leaf.shape)


@functools.lru_cache(4096)
def _encode_array_head(descr: str | None, shape: tuple[int, ...]) -> bytes:
    out = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, header)
    return out.getvalue()


def _encode_name(name: str) -> tuple[bytes, int]:
    name = f"{name}.npy"
    return name.encode(), 0 if name.isascii() else _UTF8


@functools.lru_cache(4096)
def _encode_sizes(nbytes: int) -> tuple[bytes, bytes, int]:
    """Both sizes of a member, its extra field for zip64 or nothing, and the version it needs."""
    if nbytes < _MAX32:
        return struct.pack("<2I", nbytes, nbytes), b"", 20
    extra = struct.pack("<2H2Q", _EXTRA_ZIP64, 16, nbytes, nbytes)
    return struct.pack("<2I", _U32, _U32), extra, 45


def insert_crc(head: bytes, crc: int) -> bytes:
    """The header of a member with the CRC-32 of its bytes."""
    return head[:_CRC_AT] + crc.to_bytes(4, "little") + head[_CRC_AT + 4 :]


def encode_directory(
    layout: Layout,
    names: Sequence[str],
    crcs: Sequence[int],
    blocks: Iterable[tuple[int, int, int]],
    sums: np.ndarray,
) -> bytes:
    """The central directory of an archive, which ends the file.

    Args:
        layout: The archive.
        names: As `lay_out` got them.
        crcs: The CRC-32 of each member.
        blocks: For each array, the bytes per block and the range of its checksums in `sums`.
        sums: The crc32c of each block.
    """
    out, digests = bytearray(), sums.astype("<u4").tobytes()
    for leaf, name, (begin, _), crc, (block, first, last) in zip(
        layout.leaves, names, layout.heads, crcs, blocks, strict=True
    ):
        nbytes = len(encode_array_head(leaf)) + leaf.nbytes
        key, flags = _encode_name(name)
        sizes, extra, version = _encode_sizes(nbytes)
        place = begin
        if begin >= _MAX32:
            large = struct.pack("<2Q", nbytes, nbytes) if extra else b""
            extra = struct.pack("<2H", _EXTRA_ZIP64, len(large) + 8) + large
            extra, place, version = extra + struct.pack("<Q", begin), _U32, 45
        extra += encode_sums(crc, block, digests[4 * first : 4 * last])
        made_by = 3 << 8 | version
        out += struct.pack("<4s6HI8s", b"PK\1\2", made_by, version, flags, 0, 0, _DATE, crc, sizes)
        out += struct.pack("<5H2I", len(key), len(extra), 0, 0, 0, 0o600 << 16, place)
        out += key + extra
    count, nbytes, at = len(names), len(out), layout.size
    if count >= _MAX16 or at >= _MAX32 or nbytes >= _MAX32:
        out += struct.pack("<4sQ2H2I", b"PK\6\6", 44, 3 << 8 | 45, 45, 0, 0)
        out += struct.pack("<4Q", count, count, nbytes, at)
        out += struct.pack("<4sIQI", b"PK\6\7", 0, at + nbytes, 1)
        count, nbytes, at = _U16, _U32, _U32
    out += struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, nbytes, at, 0)
    return bytes(out)
