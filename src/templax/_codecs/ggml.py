"""Dequantises the blocks of GGML, as which GGUF files store tensors: stored bytes → float32.

The layouts are those of `ggml-common.h` and `ggml-quants.c` (ggml-org/ggml). Each value is computed
by the same operations in the same order as in the reference for numpy, `gguf.quants.dequantize` of
PyPI's `gguf`, so that the bits are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from ..errors import Corrupted

_PIECE = 1 << 16
"""Elements that are computed at a time, so that what lies between the steps stays in a cache."""

PREFIX = "ggml-"
"""What the name of such a codec begins with; the name of the quantisation follows."""


class Layout(NamedTuple):
    """The blocks of a quantisation.

    Attributes:
        elements: Number of elements of a block.
        nbytes: Bytes that store them.
    """

    elements: int
    nbytes: int


def dequantise_into(name: str, view: memoryview, out: memoryview) -> memoryview:
    """Dequantises blocks that must fill `out` exactly; returns `out`.

    Args:
        name: The quantisation, one of `QUANTISATIONS`.
        view: The stored bytes.
        out: Memory for the float32 elements.

    Raises:
        Corrupted: There are too many or too few blocks.
    """
    layout, dequantise = QUANTISATIONS[name]
    count, rest = divmod(len(out), 4 * layout.elements)
    if rest or len(view) != count * layout.nbytes:
        raise Corrupted(
            f"Expected whole blocks of {name} for {len(out) // 4} elements, got {len(view)} bytes"
        )
    blocks = np.frombuffer(view, np.uint8).reshape(count, layout.nbytes)
    values = np.frombuffer(out, np.float32).reshape(count, layout.elements)
    step = max(1, _PIECE // layout.elements)
    with np.errstate(all="ignore"):  # scales may be NaN, or infinite
        for at in range(0, count, step):
            dequantise(blocks[at : at + step], values[at : at + step])
    return out


def _read_scale(blocks: np.ndarray, at: int) -> np.ndarray:
    """The float16 at this position of each block, as a column."""
    column = np.ascontiguousarray(blocks[:, at : at + 2])
    return column.view(np.float16).astype(np.float32)


def _unpack_bits(packed: np.ndarray, width: int, run: int) -> np.ndarray:
    """Elements of `width` bits, `run` bytes of which hold the lowest bits of `run` elements, then
    the next bits of the next `run`, and so on.
    """
    shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
    spread = packed.reshape(len(packed), -1, 1, run) >> shifts
    return (spread & np.uint8((1 << width) - 1)).reshape(len(packed), -1)


def _q4_0(blocks: np.ndarray, out: np.ndarray) -> None:
    q = _unpack_bits(blocks[:, 2:], 4, 16).view(np.int8) - np.int8(8)
    np.multiply(_read_scale(blocks, 0), q, out=out)


def _q4_1(blocks: np.ndarray, out: np.ndarray) -> None:
    np.multiply(_read_scale(blocks, 0), _unpack_bits(blocks[:, 4:], 4, 16), out=out)
    np.add(out, _read_scale(blocks, 2), out=out)


def _five_bits(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    fifth = np.unpackbits(high, axis=1, bitorder="little")
    return _unpack_bits(low, 4, 16) | (fifth << np.uint8(4))


def _q5_0(blocks: np.ndarray, out: np.ndarray) -> None:
    q = _five_bits(blocks[:, 2:6], blocks[:, 6:]).view(np.int8) - np.int8(16)
    np.multiply(_read_scale(blocks, 0), q, out=out)


def _q5_1(blocks: np.ndarray, out: np.ndarray) -> None:
    np.multiply(_read_scale(blocks, 0), _five_bits(blocks[:, 4:8], blocks[:, 8:]), out=out)
    np.add(out, _read_scale(blocks, 2), out=out)


def _q8_0(blocks: np.ndarray, out: np.ndarray) -> None:
    np.multiply(blocks[:, 2:].view(np.int8), _read_scale(blocks, 0), out=out)


# The K-quantisations have super-blocks of 256 elements, whose blocks have scales of their own.


def _scale_blocks(out: np.ndarray, scales: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Multiplies the elements of each block by its scale, into `out`; returns that, in blocks."""
    shape = (*scales.shape, -1)
    parts = out.reshape(shape)
    np.multiply(scales[:, :, None], q.reshape(shape), out=parts)
    return parts


def _q2_k(blocks: np.ndarray, out: np.ndarray) -> None:
    scales, q = blocks[:, :16], _unpack_bits(blocks[:, 16:80], 2, 32)
    parts = _scale_blocks(out, _read_scale(blocks, 80) * (scales & np.uint8(15)), q)
    least = _read_scale(blocks, 82) * (scales >> np.uint8(4))
    np.subtract(parts, least[:, :, None], out=parts)


def _q3_k(blocks: np.ndarray, out: np.ndarray) -> None:
    low, high = _unpack_bits(blocks[:, 96:104], 4, 8), _unpack_bits(blocks[:, 104:108], 2, 4)
    scales = (low | (high << np.uint8(4))).view(np.int8) - np.int8(32)
    third = _unpack_bits(blocks[:, :32], 1, 32) ^ np.uint8(1)  # 1 means that nothing is subtracted
    q = _unpack_bits(blocks[:, 32:96], 2, 32).view(np.int8) - (third << np.uint8(2)).view(np.int8)
    _scale_blocks(out, _read_scale(blocks, 108) * scales, q)


def _read_six_bits(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The eight scales and minima of a super-block, each of 6 bits, in 12 bytes."""
    first, second, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    low, top = np.uint8(0x3F), np.uint8(0x30)
    scales = (first & low, (rest & np.uint8(15)) | ((first >> np.uint8(2)) & top))
    minima = (second & low, (rest >> np.uint8(4)) | ((second >> np.uint8(2)) & top))
    return np.concatenate(scales, axis=1), np.concatenate(minima, axis=1)


def _scale_and_shift(blocks: np.ndarray, q: np.ndarray, out: np.ndarray) -> None:
    scales, minima = _read_six_bits(blocks[:, 4:16])
    parts = _scale_blocks(out, _read_scale(blocks, 0) * scales, q)
    np.subtract(parts, (_read_scale(blocks, 2) * minima)[:, :, None], out=parts)


def _q4_k(blocks: np.ndarray, out: np.ndarray) -> None:
    _scale_and_shift(blocks, _unpack_bits(blocks[:, 16:], 4, 32), out)


def _q5_k(blocks: np.ndarray, out: np.ndarray) -> None:
    fifth = _unpack_bits(blocks[:, 16:48], 1, 32) << np.uint8(4)
    _scale_and_shift(blocks, _unpack_bits(blocks[:, 48:], 4, 32) | fifth, out)


def _q6_k(blocks: np.ndarray, out: np.ndarray) -> None:
    high = _unpack_bits(blocks[:, 128:192], 2, 32) << np.uint8(4)
    q = (_unpack_bits(blocks[:, :128], 4, 64) | high).view(np.int8) - np.int8(32)
    _scale_blocks(out, _read_scale(blocks, 208) * blocks[:, 192:208].view(np.int8), q)


_IQ4 = np.array(
    (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113), np.float32
)


def _iq4_nl(blocks: np.ndarray, out: np.ndarray) -> None:
    np.multiply(_read_scale(blocks, 0), _IQ4[_unpack_bits(blocks[:, 2:], 4, 16)], out=out)


def _iq4_xs(blocks: np.ndarray, out: np.ndarray) -> None:
    high = _unpack_bits(blocks[:, 2:4], 2, 1)
    low = _unpack_bits(blocks[:, 4:8], 4, 1)
    scales = (low | (high << np.uint8(4))).view(np.int8) - np.int8(32)
    _scale_blocks(out, _read_scale(blocks, 0) * scales, _IQ4[_unpack_bits(blocks[:, 8:], 4, 16)])


_E2M1 = np.array((0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12), np.float32)
"""Twice the values of the elements of MXFP4; half of the scale makes up for that."""


def _mxfp4(blocks: np.ndarray, out: np.ndarray) -> None:
    exponent = blocks[:, :1].astype(np.uint32)
    bits = np.where(exponent < 2, 0x200000 << exponent, (exponent - 1) << np.uint32(23))
    scale = bits.astype(np.uint32).view(np.float32)
    np.multiply(scale, _E2M1[_unpack_bits(blocks[:, 1:], 4, 16)], out=out)


Dequantise = Callable[[np.ndarray, np.ndarray], None]

QUANTISATIONS: Mapping[str, tuple[Layout, Dequantise]] = {
    "Q4_0": (Layout(32, 18), _q4_0),
    "Q4_1": (Layout(32, 20), _q4_1),
    "Q5_0": (Layout(32, 22), _q5_0),
    "Q5_1": (Layout(32, 24), _q5_1),
    "Q8_0": (Layout(32, 34), _q8_0),
    "Q2_K": (Layout(256, 84), _q2_k),
    "Q3_K": (Layout(256, 110), _q3_k),
    "Q4_K": (Layout(256, 144), _q4_k),
    "Q5_K": (Layout(256, 176), _q5_k),
    "Q6_K": (Layout(256, 210), _q6_k),
    "IQ4_NL": (Layout(32, 18), _iq4_nl),
    "IQ4_XS": (Layout(256, 136), _iq4_xs),
    "MXFP4": (Layout(32, 17), _mxfp4),
}
"""Name → layout, and what computes the elements of some blocks. The others of GGML are listed with
their sizes in `formats.gguf.types`."""
