"""Decoding gives exactly the bytes asked for, or `Corrupted`; never memory by a declared size."""

import contextlib
import tracemalloc

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from templax._codecs.crc32c import crc32c
from templax._codecs.decode import decode
from templax._codecs.zstd import inflate
from templax.errors import Corrupted, TemplaxError, Unsupported


def _sum(data):
    return crc32c(data).to_bytes(4, "little")


def _zstd(data, **options):
    return zstandard.ZstdCompressor(**options).compress(data)


def _streamed(data):
    """A frame that does not declare its size, as TensorStore may write it."""
    compressor = zstandard.ZstdCompressor().compressobj()
    return compressor.compress(data) + compressor.flush()


ENCODE = {
    (): lambda d: d,
    ("zstd",): _zstd,
    ("crc32c",): lambda d: d + _sum(d),
    ("crc32c", "zstd"): lambda d: _zstd(d) + _sum(_zstd(d)),
    ("zstd", "crc32c"): lambda d: _zstd(d + _sum(d)),
}


@pytest.mark.parametrize("codecs", ENCODE)
@given(data=st.binary(max_size=3000))
def test_decoding_undoes_encoding(codecs, data):
    stored = ENCODE[codecs](data)
    assert bytes(decode(codecs, stored, len(data))) == data
    out = memoryview(np.zeros(len(data), np.uint8))
    assert decode(codecs, memoryview(stored), len(data), out) is out
    assert bytes(out) == data


@pytest.mark.parametrize("codecs", ENCODE)
@pytest.mark.parametrize("off", [-1, 1, 1000])
def test_a_length_that_differs_is_damage(codecs, off):
    data = bytes(range(200))
    with pytest.raises(Corrupted):
        decode(codecs, ENCODE[codecs](data), len(data) + off)


@pytest.mark.parametrize("codecs", [c for c in ENCODE if c])
@given(junk=st.binary(max_size=300), nbytes=st.integers(0, 400))
def test_arbitrary_bytes_raise_only_errors_of_templax(codecs, junk, nbytes):
    with contextlib.suppress(TemplaxError):
        assert len(decode(codecs, junk, nbytes)) == nbytes


def test_raw_bytes_are_not_copied():
    data = bytearray(b"abcd")
    view = decode((), data, 4)
    data[0] = ord("x")
    assert bytes(view) == b"xbcd"


def test_several_frames_are_one_chunk():
    stored = _zstd(b"a" * 1000) + _streamed(b"b" * 500) + _zstd(b"c")
    assert bytes(decode(("zstd",), stored, 1501)) == b"a" * 1000 + b"b" * 500 + b"c"


def test_a_checksum_that_differs_shows_both():
    with pytest.raises(Corrupted) as caught:
        decode(("crc32c",), b"123456789" + bytes(4), 9)
    assert str(caught.value) == "Expected crc32c `00000000`, got `e3069283`"


def test_a_frame_with_a_checksum_of_its_own_is_verified():
    stored = bytearray(_zstd(bytes(1000), write_checksum=True))
    stored[-1] ^= 1
    with pytest.raises(Corrupted, match="checksum"):
        decode(("zstd",), stored, 1000)


def test_a_declared_size_that_is_too_large_is_refused_before_decoding():
    with pytest.raises(Corrupted) as caught:
        decode(("zstd",), _zstd(bytes(1 << 20)), 1000)
    assert str(caught.value) == "Expected 1000 decoded bytes, the zstd frame declares 1048576"


@pytest.mark.parametrize("compress", [_zstd, _streamed])
def test_a_bomb_takes_no_memory(compress):
    bomb = compress(bytes(64 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(Corrupted):
            decode(("zstd",), bomb, 1000)
        with pytest.raises(Corrupted, match="at most 2000 decoded bytes"):
            inflate(bomb, 2000)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_truncated_frame_is_damage():
    stored = _zstd(np.random.default_rng(0).bytes(10_000))
    with pytest.raises(Corrupted, match="decoded bytes"):
        decode(("zstd",), stored[:-100], 10_000)


@given(data=st.binary(max_size=5000))
def test_inflate_takes_frames_of_any_size_up_to_its_limit(data):
    assert inflate(_streamed(data), len(data)) == data
    if data:
        with pytest.raises(Corrupted):
            inflate(_streamed(data), len(data) - 1)


def test_fill_repeats_one_element():
    out = memoryview(np.zeros(12, np.uint8))
    assert bytes(decode(("fill",), b"\x01\x02\x03\x04", 12, out)) == b"\x01\x02\x03\x04" * 3
    assert bytes(decode(("fill",), b"\x07", 3)) == b"\x07" * 3
    for element in (b"", b"12345"):
        with pytest.raises(Corrupted, match="Expected an element that fills 12 bytes"):
            decode(("fill",), element, 12)


def test_a_codec_without_a_decoder_is_named():
    with pytest.raises(Unsupported, match="no decoder for codec `blosc`"):
        decode(("blosc",), b"", 0)


def test_a_buffer_of_another_size_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="out has 3 bytes, expected 4"):
        decode((), b"1234", 4, memoryview(bytearray(3)))
