"""Dequantised blocks. Their bits are compared with the reference's in the contract tests."""

from __future__ import annotations

import numpy as np
import pytest

from templax._codecs.decode import decode
from templax._codecs.ggml import PREFIX, QUANTISATIONS
from templax.errors import Corrupted, Unsupported


@pytest.mark.parametrize("name", QUANTISATIONS)
def test_blocks_decode_alike_alone_and_together(name: str) -> None:
    """More blocks than are computed at a time."""
    layout, _ = QUANTISATIONS[name]
    rng = np.random.default_rng(0)
    count = (1 << 17) // layout.elements + 3
    data = rng.bytes(count * layout.nbytes)
    codecs = (PREFIX + name,)
    out = np.empty(count * layout.elements, np.float32)
    decode(codecs, data, out.nbytes, memoryview(out).cast("B"))
    for i in (0, 1, count // 2, count - 1):
        block = data[i * layout.nbytes : (i + 1) * layout.nbytes]
        values = out[i * layout.elements : (i + 1) * layout.elements]
        assert bytes(decode(codecs, block, values.nbytes)) == values.tobytes()


@pytest.mark.parametrize(("nbytes", "size"), [(33, 128), (35, 128), (0, 128), (34, 64), (34, 132)])
def test_incomplete_blocks_are_damage(nbytes: int, size: int) -> None:
    with pytest.raises(Corrupted, match="whole blocks of Q8_0"):
        decode(("ggml-Q8_0",), bytes(nbytes), size)


def test_no_blocks_are_no_values() -> None:
    assert bytes(decode(("ggml-Q8_0",), b"", 0)) == b""


def test_a_quantisation_without_a_decoder_is_unsupported() -> None:
    with pytest.raises(Unsupported, match="no decoder for codec `ggml-IQ1_S`"):
        decode(("ggml-IQ1_S",), bytes(50), 1024)


def test_q8_0_is_a_scale_and_bytes() -> None:
    block = np.float16(0.5).tobytes() + np.arange(-16, 16, dtype="i1").tobytes()
    values = np.frombuffer(decode(("ggml-Q8_0",), block, 128), "f4")
    assert values.tolist() == [0.5 * i for i in range(-16, 16)]
