"""The layout and the headers of safetensors files that a save writes. No I/O, no JAX.

The tensors of a file tile it, so padding cannot align them. Those whose size is a multiple of 64
come first, each at a multiple of 64 as memory-mapping requires; then the others, the largest
elements first, so that each is aligned to its elements, as the reference library does it.

The file's `__metadata__` has one entry of templax's own, `templax.crc32c`: for each tensor in the
order of the data, separated by commas, the crc32c of its bytes as 8 hexadecimal digits; or, if it
is longer than one block, the bytes per block, a colon, and the digits of each block. These
checksums count only while `__metadata__` is the last entry of the header, where templax puts it.
Programs that change tensors and carry the metadata on write it with the reference library, which
puts it first.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import attrgetter

import msgspec
import numpy as np

from .._catalog.written import Leaf
from .._core.boxes import MAX_RANK
from .._core.dtypes import name_of
from .._core.memory import ALIGN
from .._core.names import MAX_DEPTH
from ..errors import Corrupted
from .layout import Layout

CODES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn", "F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz", "I16": "int16", "U16": "uint16", "F16": "float16",
    "BF16": "bfloat16", "I32": "int32", "U32": "uint32", "F32": "float32", "C64": "complex64",
    "F64": "float64", "I64": "int64", "U64": "uint64",
}  # fmt: skip
"""The dtypes of whole bytes, as a header names them → as numpy and ml_dtypes do."""

METADATA = "__metadata__"
"""The entry of a header that is not a tensor."""

SUMS = "templax.crc32c"
"""The entry of `__metadata__` with the checksums."""

_CODE_OF = {name: code for code, name in CODES.items()}

_SOLE_SUMS = re.compile(r"[0-9a-f]{8}(?:,[0-9a-f]{8})*")

_SUM = re.compile(r"(?:([0-9]{1,19}):)?((?:[0-9a-f]{8})*)")


def _find_codes(leaves: Iterable[Leaf]) -> dict[np.dtype, str]:
    """The code of each dtype of these leaves that has one."""
    dtypes = {leaf.dtype for leaf in leaves}
    return {d: _CODE_OF[name_of(d)] for d in dtypes if name_of(d) in _CODE_OF}


def find_unwritable_leaves(leaves: Sequence[Leaf]) -> Iterator[str]:
    """What a file cannot store, as phrases that begin with the name of a leaf."""
    codes = _find_codes(leaves)
    for leaf in leaves:
        if leaf.key_impl is not None:
            what = "is a typed PRNG key, which safetensors cannot store: save jax.random.key_data"
        elif leaf.text is not None:
            what = "is a string, which safetensors cannot store: pass it in metadata="
        elif leaf.dtype not in codes:
            what = f"has dtype {name_of(leaf.dtype)}, which safetensors cannot store"
        elif leaf.name == METADATA:
            what = "has the name under which safetensors stores metadata"
        elif leaf.name.count(".") >= MAX_DEPTH:
            what = f"has more than {MAX_DEPTH} levels"
        elif len(leaf.shape) > MAX_RANK:
            what = f"has {len(leaf.shape)} dimensions, more than {MAX_RANK}"
        else:
            continue
        yield f"`{leaf.name[:200]}` {what}"


def divide_leaves(leaves: Iterable[Leaf], shard_size: int) -> list[list[Leaf]]:
    """The leaves of each file, in the order of the data.

    Leaves go to files in the order of the tree. A file takes leaves until the next one would make
    its data larger than `shard_size` bytes; a leaf larger than that has a file of its own.
    """
    alike = defaultdict[tuple[bool, int], list[Leaf]](list)
    files, total = [alike], 0
    for leaf in leaves:
        nbytes = leaf.nbytes
        if alike and total + nbytes > shard_size:
            alike = defaultdict[tuple[bool, int], list[Leaf]](list)
            files.append(alike)
            total = 0
        alike[nbytes % ALIGN > 0, -leaf.dtype.itemsize].append(leaf)
        total += nbytes
    by_name = attrgetter("name")
    return [
        [leaf for _, group in sorted(file.items()) for leaf in sorted(group, key=by_name)]
        for file in files
    ]


def name_file(number: int, count: int) -> str:
    """The name of one of `count` files, as Hugging Face's libraries choose it.

    >>> name_file(0, 1), name_file(1, 5)
    ('model.safetensors', 'model-00002-of-00005.safetensors')
    """
    return f"model-{number + 1:05}-of-{count:05}.safetensors" if count > 1 else "model.safetensors"


Blocks = tuple[int, int, int]
"""The bytes that each checksum of a tensor covers, except the last; and the range of its checksums
among those of all tensors."""


def encode_sums(crcs: np.ndarray, blocks: Sequence[Blocks]) -> str:
    """The checksums of tensors: the crc32c of each block of each."""
    data = crcs.astype(">u4").tobytes()
    if len(crcs) == len(blocks) and {last - first for _, first, last in blocks} == {1}:
        return data.hex(",", 4)  # the common case, tensors of one block
    digits = data.hex()
    return ",".join(
        [
            digits[8 * first : 8 * last]
            if last - first < 2
            else f"{block}:{digits[8 * first : 8 * last]}"
            for block, first, last in blocks
        ]
    )


def parse_sums(text: str, sizes: Sequence[int]) -> list[tuple[int, tuple[int, ...]]]:
    """The block size and the crc32c of each block, for tensors of these sizes in bytes.

    Raises:
        Corrupted: The checksums are not those of such tensors.
    """
    if _SOLE_SUMS.fullmatch(text) and 0 not in sizes:  # the common case, tensors of one block
        crcs = np.frombuffer(bytes.fromhex(text.replace(",", "")), ">u4").tolist()
        if len(crcs) == len(sizes):
            return [(nbytes, (crc,)) for nbytes, crc in zip(sizes, crcs, strict=True)]
    parts = text.split(",") if text or sizes else []
    found: list[tuple[int, tuple[int, ...]]] = []
    for part, nbytes in zip(parts, sizes, strict=False):
        match = _SUM.fullmatch(part)
        block = 0 if match is None else int(match[1] or nbytes or 1)
        if match is None or not block or len(match[2]) != 8 * -(-nbytes // block):
            break
        found.append((block, tuple(np.frombuffer(bytes.fromhex(match[2]), ">u4").tolist())))
    if len(found) != len(sizes) or len(parts) != len(sizes):
        raise Corrupted(f"Expected the checksums of {len(sizes)} tensors in `{SUMS}`, got others")
    return found


class _Tensor(msgspec.Struct, gc=False):
    """What a header says of one tensor."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class Header:
    """The header of a file, whose checksums are filled in when they are known.

    The tensors tile the file from its end on.

    Args:
        leaves: In the order of the data.
        metadata: The caller's.
        blocks: Those of each leaf.

    Attributes:
        data: The header with its length, padded so that the tensors begin at a multiple of 64; all
            checksums are zeros.
        layout: Where the tensors lie.
    """

    def __init__(
        self, leaves: Sequence[Leaf], metadata: Mapping[str, str], blocks: Sequence[Blocks]
    ):
        codes = _find_codes(leaves)
        ends = list(itertools.accumulate([leaf.nbytes for leaf in leaves], initial=0))
        header: dict[str, object] = {
            leaf.name: _Tensor(codes[leaf.dtype], leaf.shape, span)
            for leaf, span in zip(leaves, itertools.pairwise(ends), strict=True)
        }
        self._blocks = blocks
        sums = encode_sums(np.zeros(blocks[-1][2] if blocks else 0, "<u4"), blocks)
        header[METADATA] = {**metadata, SUMS: sums}
        text = msgspec.json.encode(header)
        stop = 8 + len(text) - len(b'"}}')
        self._place = slice(stop - len(sums), stop)
        text += b" " * (-(8 + len(text)) % ALIGN)
        self.data = len(text).to_bytes(8, "little") + text
        starts = [len(self.data) + end for end in ends]
        self.layout = Layout(leaves=leaves, starts=starts[:-1], size=starts[-1])

    def insert_sums(self, crcs: np.ndarray) -> bytes:
        """The header with the crc32c of each block of all tensors of the save."""
        filled = bytearray(self.data)
        filled[self._place] = encode_sums(crcs, self._blocks).encode()
        return bytes(filled)


def encode_index(files: Sequence[Sequence[Leaf]]) -> bytes:
    """The index of a set of files, as Hugging Face's libraries write it."""
    names = {
        leaf.name: name_file(i, len(files)) for i, leaves in enumerate(files) for leaf in leaves
    }
    total = sum(leaf.nbytes for leaves in files for leaf in leaves)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(names.items()))}
    return msgspec.json.format(msgspec.json.encode(index), indent=2) + b"\n"
