"""Reads the header of an array in numpy's own format (numpy's `lib.format`).

It is the text of a Python dict of `descr`, `fortran_order` and `shape`, which is matched by
patterns and never evaluated.
"""

from __future__ import annotations

import functools
import math
import re
from typing import Literal, NamedTuple

import numpy as np

from .._codecs.decode import find_swap
from .._codecs.npy_members import MAX_NPY_HEAD, NPY_MAGIC, npy_head_size
from .._core.boxes import MAX_RANK, Shape, fits_address_space
from .._core.dtypes import DTYPES, UNNAMED_BYTE
from ..errors import Corrupted, Unsupported

HEAD = 1 << 9
"""Bytes that are read for a header. Those that numpy writes have 64 to 256."""

_FIELDS = {
    "descr": re.compile(
        r"""\s*['"]descr['"]\s*:\s*(?:'([^'\\]*)'|"([^"\\]*)"|([\[(].*))\s*""", re.S
    ),
    "order": re.compile(r"""\s*['"]fortran_order['"]\s*:\s*(True|False)\s*"""),
    "shape": re.compile(r"""\s*['"]shape['"]\s*:\s*\(([\dL,\s]*)\)\s*"""),
}

CODES = {
    **{d.str[1:]: d for d in DTYPES.values() if d.kind in "biufc" and d.type.__module__ == "numpy"},
    "f1": DTYPES["float8_e5m2"],  # which numpy writes, but does not read
    "V2": DTYPES["bfloat16"],  # the only dtype of two bytes that numpy has no name for
    "V1": UNNAMED_BYTE,
}
"""What follows the byte order in a dtype of the header → dtype."""


class ArrayHeader(NamedTuple):
    """What the header of an array says.

    Attributes:
        dtype: In little-endian byte order.
        shape: In elements.
        order: "C" or "F".
        codecs: What `decode` needs to make the stored values little-endian.
        start, stop: Where the values begin and end, from the beginning of the magic.
        nbytes: Size of the values.
    """

    dtype: np.dtype
    shape: Shape
    order: Literal["C", "F"]
    codecs: tuple[str, ...]
    start: int
    stop: int
    nbytes: int


def parse_header(head: bytes) -> ArrayHeader:
    """Reads the header at the beginning of `head`.

    Raises:
        Corrupted: It is not one, is longer than `head`, or contradicts itself.
        Unsupported: The array holds Python objects, records, strings or dates, or has a dtype that
            templax does not read.
    """
    if not head.startswith(NPY_MAGIC) or len(head) < 12:
        raise Corrupted("Expected an array in numpy's format, got other bytes")
    if head[6] not in (1, 2, 3):
        raise Unsupported(f"templax reads versions 1 to 3 of numpy's format, got {head[6]}")
    start = npy_head_size(head)
    if start > min(len(head), MAX_NPY_HEAD):
        raise Corrupted(
            f"Expected a header of at most {min(len(head), MAX_NPY_HEAD)} bytes, got {start}"
        )
    return _parse_text(head[10 if head[6] == 1 else 12 : start], start)


@functools.lru_cache(1024)
def _parse_text(text: bytes, start: int) -> ArrayHeader:
    body = text.decode("latin-1").strip()
    if len(body) < 2 or body[0] != "{" or body[-1] != "}":
        raise _unreadable_error(body)
    found: dict[str, re.Match[str]] = {}
    at, stop = 1, len(body) - 1
    while at < stop and not body[at:stop].isspace():
        matches = {name: pattern.match(body, at, stop) for name, pattern in _FIELDS.items()}
        name, match = next(((n, m) for n, m in matches.items() if m is not None), ("", None))
        if match is None or name in found:
            raise _unreadable_error(body)
        if name == "descr" and match[3] is not None:
            fields = re.split(r""",\s*['"](?:fortran_order|shape)['"]""", match[3])[0]
            raise Unsupported(f"templax reads no records, got an array of `{fields[:80]}`")
        found[name], at = match, match.end() + 1
        if at <= stop and body[at - 1] != ",":
            raise _unreadable_error(body)
    if len(found) < len(_FIELDS):
        raise _unreadable_error(body)
    dtype, codecs = _find_dtype(
        found["descr"][1] if found["descr"][2] is None else found["descr"][2]
    )
    shape = _parse_shape(found["shape"][1])
    if not fits_address_space(shape, dtype.itemsize):
        raise Unsupported("templax reads no array that exceeds the address space")
    order = "F" if found["order"][1] == "True" and len(shape) > 1 else "C"
    nbytes = math.prod(shape) * dtype.itemsize
    return ArrayHeader(dtype, shape, order, codecs, start, start + nbytes, nbytes)


def _parse_shape(text: str) -> Shape:
    numbers = [number.strip().removesuffix("L") for number in text.split(",")]  # Python 2 wrote 3L
    if not numbers[-1]:
        numbers.pop()
    if len(numbers) > MAX_RANK:
        raise Unsupported(f"templax reads arrays of {MAX_RANK} dimensions, got {len(numbers)}")
    if not all(number.isdecimal() for number in numbers):
        raise Corrupted(f"Expected the shape of an array, got `({text[:80]})`")
    if any(len(number) > 20 for number in numbers):  # Python refuses to parse thousands of digits
        raise Unsupported("templax reads no array that exceeds the address space")
    return tuple(map(int, numbers))


def _unreadable_error(text: str) -> Corrupted:
    return Corrupted(f"The header of the array is unreadable: {text[:80]!r}")


def _find_dtype(descr: str) -> tuple[np.dtype, tuple[str, ...]]:
    """The dtype, and the codecs that reverse the bytes of big-endian numbers."""
    order, code = (descr[:1], descr[1:]) if descr[:1] in ("<", ">", "|", "=") else ("", descr)
    if code.startswith("O"):
        raise Unsupported(
            "templax reads no pickled objects, got an array of them", hint="save arrays of numbers"
        )
    dtype = CODES.get(code)
    if dtype is None:
        raise Unsupported(f"templax does not read dtype `{descr[:80]}`")
    return dtype, find_swap(dtype) if order == ">" else ()
