"""The types of tensors in GGUF: `enum ggml_type` and the sizes of its blocks (ggml.h, ggml.c)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ..._codecs.ggml import QUANTISATIONS
from ..._core.dtypes import DTYPES


class TensorType(NamedTuple):
    """How the elements of a tensor are stored.

    Attributes:
        name: Its name, such as "Q4_K".
        elements: Number of elements of a block.
        nbytes: Bytes of a block.
        dtype: Of the elements; of quantised ones, that of the values which they stand for.
        quantised: Whether they must be computed.
    """

    name: str
    elements: int
    nbytes: int
    dtype: np.dtype
    quantised: bool = False


_PLAIN = {
    0: ("F32", "float32"),
    1: ("F16", "float16"),
    24: ("I8", "int8"),
    25: ("I16", "int16"),
    26: ("I32", "int32"),
    27: ("I64", "int64"),
    28: ("F64", "float64"),
    30: ("BF16", "bfloat16"),
}

_READ = {
    2: "Q4_0",
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    8: "Q8_0",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    20: "IQ4_NL",
    23: "IQ4_XS",
    39: "MXFP4",
}

_NOT_READ = {
    9: ("Q8_1", 32, 40),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    29: ("IQ1_M", 256, 56),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}

_FLOAT = DTYPES["float32"]

TYPES: Mapping[int, TensorType] = {
    **{i: TensorType(n, 1, DTYPES[d].itemsize, DTYPES[d]) for i, (n, d) in _PLAIN.items()},
    **{i: TensorType(n, *QUANTISATIONS[n][0], _FLOAT, quantised=True) for i, n in _READ.items()},
    **{i: TensorType(*layout, _FLOAT, quantised=True) for i, layout in _NOT_READ.items()},
}
"""The number of a type in a file → the type."""
