"""Decoding gives exactly the bytes asked for, or an error; it trusts no declared size."""

import contextlib
import gzip
import tracemalloc
import zlib

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from numcodecs import LZ4, Blosc

from templax._codecs.crc32c import crc32c
from templax._codecs.decode import decode
from templax._codecs.zstd import inflate
from templax.errors import Corrupted, TemplaxError, Unsupported


def encode_checksum(data):
    return crc32c(data).to_bytes(4, "little")


def compress_sized(data, **options):
    return zstandard.ZstdCompressor(**options).compress(data)


def compress_streamed(data):
    """A frame that does not declare its size, as TensorStore may write it."""
    compressor = zstandard.ZstdCompressor().compressobj()
    return compressor.compress(data) + compressor.flush()


ENCODE = {
    (): lambda d: d,
    ("zstd",): compress_sized,
    ("crc32c",): lambda d: d + encode_checksum(d),
    ("crc32c", "zstd"): lambda d: compress_sized(d) + encode_checksum(compress_sized(d)),
    ("zstd", "crc32c"): lambda d: compress_sized(d + encode_checksum(d)),
    ("gzip",): gzip.compress,
    ("crc32c", "gzip"): lambda d: (z := gzip.compress(d)) + encode_checksum(z),
    ("gzip", "crc32c"): lambda d: gzip.compress(d + encode_checksum(d)),
    ("zlib",): zlib.compress,
    ("blosc",): lambda d: Blosc("zstd", 5, Blosc.BITSHUFFLE).encode(d),
    ("crc32c", "blosc"): lambda d: (z := Blosc("lz4").encode(d)) + encode_checksum(z),
    ("lz4",): lambda d: LZ4().encode(d) if d else bytes(5),
}


def seal_blosc(*, flags=1, nbytes=64, blocksize=64, stored=20):
    """A blosc chunk with four bytes of data that are nothing."""
    sizes = b"".join(n.to_bytes(4, "little") for n in (nbytes, blocksize, stored))
    return bytes([2, 1, flags, 1]) + sizes + bytes(4)


@pytest.mark.parametrize("codecs", ENCODE)
@given(data=st.binary(max_size=3000))
def test_decoding_reverses_encoding(codecs, data):
    stored = ENCODE[codecs](data)
    assert bytes(decode(codecs, stored, len(data))) == data
    out = memoryview(np.zeros(len(data), np.uint8))
    assert decode(codecs, memoryview(stored), len(data), out) is out
    assert bytes(out) == data


@pytest.mark.parametrize("codecs", ENCODE)
@pytest.mark.parametrize("off", [-1, 1, 1000])
def test_a_wrong_length_is_damage(codecs, off):
    data = bytes(range(200))
    with pytest.raises(Corrupted):
        decode(codecs, ENCODE[codecs](data), len(data) + off)


@pytest.mark.parametrize("codecs", [c for c in ENCODE if c])
@given(junk=st.binary(max_size=300), nbytes=st.integers(0, 400))
def test_arbitrary_bytes_raise_only_errors_of_templax(codecs, junk, nbytes):
    with contextlib.suppress(TemplaxError):
        assert len(decode(codecs, junk, nbytes)) == nbytes


@pytest.mark.parametrize(
    ("dtype", "codec"),
    [(">u2", "big-endian-2"), (">f4", "big-endian-4"), (">f8", "big-endian-8")],
)
@pytest.mark.parametrize("compression", [(), ("zstd",), ("blosc",), ("zstd", "crc32c")])
def test_big_endian_numbers_are_turned_in_place_where_they_are_decoded(dtype, codec, compression):
    values = np.arange(7).astype(dtype)
    stored = ENCODE[compression](values.tobytes())
    kept = bytes(stored)
    want = values.astype(values.dtype.newbyteorder("<")).tobytes()
    assert bytes(decode((*compression, codec), stored, len(want))) == want
    out = memoryview(bytearray(len(want)))
    assert decode((*compression, codec), memoryview(stored), len(want), out) is out
    assert (bytes(out), stored) == (want, kept)
    with pytest.raises(Corrupted):
        decode((codec,), b"123", 3)


@pytest.mark.parametrize(
    ("codec", "stored", "message"),
    [
        ("blosc", b"x" * 15, "Expected a blosc chunk, got 15 bytes"),
        ("blosc", seal_blosc(nbytes=1 << 30), "the blosc chunk declares 1073741824"),
        ("blosc", seal_blosc(stored=21), "Expected a blosc chunk of 21 bytes, got 20"),
        ("blosc", seal_blosc(blocksize=1 << 30), "Expected blosc, got bytes that do not decode"),
        ("lz4", (1 << 30).to_bytes(4, "little") + bytes(8), "lz4 chunk declares 1073741824"),
        ("lz4", (64).to_bytes(4, "little") + b"\xff" * 8, "Expected lz4, got bytes"),
        ("lz4", b"1234", "Expected a size and an lz4 block, got 4 bytes"),
    ],
)
def test_what_numcodecs_decodes_is_checked_before_it_is_called(codec, stored, message):
    with pytest.raises(Corrupted, match=message):
        decode((codec,), stored, 64)


def test_blosc_with_snappy_is_refused_by_name():
    with pytest.raises(Unsupported, match="codec `blosc` with snappy"):
        decode(("blosc",), seal_blosc(flags=2 << 5), 64)


def test_raw_bytes_are_not_copied():
    data = bytearray(b"abcd")
    view = decode((), data, 4)
    data[0] = ord("x")
    assert bytes(view) == b"xbcd"


def test_frames_after_an_empty_one_count_as_well():
    compress = zstandard.ZstdCompressor().compress
    assert bytes(decode(("zstd",), compress(b""), 0)) == b""
    with pytest.raises(Corrupted, match="Expected 0 decoded bytes, got more"):
        decode(("zstd",), compress(b"") + compress(b"abc"), 0)


def test_a_chunk_may_have_several_frames():
    stored = compress_sized(b"a" * 1000) + compress_streamed(b"b" * 500) + compress_sized(b"c")
    assert bytes(decode(("zstd",), stored, 1501)) == b"a" * 1000 + b"b" * 500 + b"c"


def test_the_message_for_a_wrong_checksum_shows_both():
    with pytest.raises(Corrupted) as caught:
        decode(("crc32c",), b"123456789" + bytes(4), 9)
    assert str(caught.value) == "Expected crc32c `00000000`, got `e3069283`"


def test_the_checksum_of_a_frame_is_verified():
    stored = bytearray(compress_sized(bytes(1000), write_checksum=True))
    stored[-1] ^= 1
    with pytest.raises(Corrupted, match="checksum"):
        decode(("zstd",), stored, 1000)


def test_a_frame_that_declares_too_much_is_refused_before_decoding():
    with pytest.raises(Corrupted) as caught:
        decode(("zstd",), compress_sized(bytes(1 << 20)), 1000)
    assert str(caught.value) == "Expected 1000 decoded bytes, the zstd frame declares 1048576"


@pytest.mark.slow
def test_a_gzip_bomb_takes_no_memory():
    bomb = gzip.compress(bytes(64 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(Corrupted) as caught:
            decode(("gzip",), bomb, 1000)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert str(caught.value) == "Expected 1000 decoded bytes, got more"


def test_a_gzip_chunk_may_have_several_members():
    stored = gzip.compress(b"a" * 1000) + gzip.compress(b"") + gzip.compress(b"b")
    assert bytes(decode(("gzip",), stored, 1001)) == b"a" * 1000 + b"b"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d[:-1], "Expected gzip, got bytes that do not decode (they end too early"),
        (lambda d: d[: len(d) // 2], "Expected gzip, got bytes that do not decode"),
        (
            lambda d: d[:-8] + b"xxxx" + d[-4:],
            "do not decode (Error -3 while decompressing data: incorrect data check",
        ),
        (
            lambda d: d[:-4] + b"xxxx",
            "do not decode (Error -3 while decompressing data: incorrect length",
        ),
        (lambda d: d[:20] + b"\xff" * 20 + d[40:], "Expected gzip, got bytes that do not decode"),
        (lambda d: d + b"x", "do not decode (they end too early"),
        (lambda d: b"", "Expected 10000 decoded bytes, got 0"),
        (
            lambda d: b"x" * 100,
            "do not decode (Error -3 while decompressing data: incorrect",
        ),
    ],
)
def test_damaged_gzip_is_named(change, message):
    data = np.random.default_rng(0).bytes(10_000)
    with pytest.raises(Corrupted) as caught:
        decode(("gzip",), change(gzip.compress(data)), len(data))
    assert message in str(caught.value)


@pytest.mark.parametrize("compress", [compress_sized, compress_streamed])
def test_a_compression_bomb_takes_no_memory(compress):
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
    stored = compress_sized(np.random.default_rng(0).bytes(10_000))
    with pytest.raises(Corrupted, match="decoded bytes"):
        decode(("zstd",), stored[:-100], 10_000)


@given(data=st.binary(max_size=5000))
def test_inflate_accepts_frames_up_to_its_limit(data):
    assert inflate(compress_streamed(data), len(data)) == data
    if data:
        with pytest.raises(Corrupted):
            inflate(compress_streamed(data), len(data) - 1)


def test_the_fill_codec_repeats_one_element():
    out = memoryview(np.zeros(12, np.uint8))
    assert bytes(decode(("fill",), b"\x01\x02\x03\x04", 12, out)) == b"\x01\x02\x03\x04" * 3
    assert bytes(decode(("fill",), b"\x07", 3)) == b"\x07" * 3
    for element in (b"", b"12345"):
        with pytest.raises(Corrupted, match="Expected an element that fills 12 bytes"):
            decode(("fill",), element, 12)


def test_a_codec_without_a_decoder_is_named():
    with pytest.raises(Unsupported, match="no decoder for codec `bz2`"):
        decode(("bz2",), b"", 0)


def test_a_buffer_of_the_wrong_size_is_a_value_error():
    with pytest.raises(ValueError, match="out has 3 bytes, expected 4"):
        decode((), b"1234", 4, memoryview(bytearray(3)))
