"""Where zstd frames end, in whatever pieces they arrive."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from templax import Corrupted
from templax._codecs import zstd
from templax._codecs.decode import decode
from templax._codecs.zstd import Inflater, inflate_many
from templax._codecs.zstd_frames import FrameWalk, ends_with_its_block


@st.composite
def frames(draw: Any) -> tuple[bytes, bytes, set[int]]:
    """Some frames of several kinds, what they decode to, and where each ends."""
    stored = content = b""
    ends = {0}
    for _ in range(draw(st.integers(1, 3))):
        size = draw(st.sampled_from([0, 1, 100, 70_000, 300_000]))
        rng = np.random.default_rng(draw(st.integers(0, 9)))
        piece = bytes(size) if draw(st.booleans()) else rng.bytes(size)
        made = zstandard.ZstdCompressor(
            level=draw(st.sampled_from([1, 9])),
            write_checksum=draw(st.booleans()),
            write_content_size=draw(st.booleans()),
        )
        stored += made.compress(piece)
        ends.add(len(stored))
        content += piece
        if draw(st.booleans()):  # a skippable frame
            stored += b"\x52\x2a\x4d\x18\x03\x00\x00\x00abc"
            ends.add(len(stored))
    return stored, content, ends


def is_complete(data: bytes, step: int) -> bool:
    walk = FrameWalk()
    for i in range(0, len(data), step):
        walk.feed(memoryview(data)[i : i + step])
    return walk.complete


@given(frames(), st.sampled_from([1, 3, 7, 1000, 1 << 20]), st.data())
def test_a_walk_is_complete_exactly_at_the_ends_of_frames(made: Any, step: int, data: Any) -> None:
    stored, _, ends = made
    step = step if len(stored) < 50_000 else max(step, 997)
    assert is_complete(stored, step)
    n = data.draw(st.integers(0, len(stored)))
    assert is_complete(stored[:n], step) == (n in ends)


@given(frames())
def test_frames_of_all_kinds_are_decoded(made: Any) -> None:
    stored, content, _ = made
    assert bytes(decode(("zstd",), stored, len(content))) == content


def decode_or_describe(stored: bytes, size: int) -> bytes | str:
    try:
        return bytes(decode(("zstd",), stored, size))
    except Corrupted as error:
        return str(error)


@given(frames(), st.data())
def test_numcodecs_decodes_what_zstandard_does_and_nothing_else(made: Any, data: Any) -> None:
    stored, content, _ = made
    kind = data.draw(st.sampled_from(["whole", "cut", "altered", "followed by junk"]))
    size = len(content) + data.draw(st.sampled_from([0, 0, 0, -1, 1]))
    at = data.draw(st.integers(0, len(stored) - 1))
    if kind == "cut":
        stored = stored[:at]
    elif kind == "altered":
        stored = stored[:at] + bytes([stored[at] ^ 1]) + stored[at + 1 :]
    elif kind == "followed by junk":
        stored += b"junk!"
    wanted = decode_or_describe(stored, max(size, 0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zstd, "FAST_BYTES", 1)
        patch.setattr(zstd, "_decompress", zstd._find_decompress())
        assert zstd._decompress is not None
        assert decode_or_describe(stored, max(size, 0)) == wanted


def test_numcodecs_is_imported_where_that_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    def load(codec: str) -> Any:
        loaded.append(codec)
        raise RuntimeError("compiled for another numpy")

    monkeypatch.setattr(zstd, "load_codec", load)
    monkeypatch.setattr(zstd, "_decompress", None)
    monkeypatch.delitem(sys.modules, "numcodecs.zstd", raising=False)
    zstd._find_decompress.cache_clear()
    try:
        zstd.prepare_inflating(1 << 27)
        assert not loaded
        for _ in range(2):
            zstd.prepare_inflating(1 << 28)
        assert loaded == ["zstd"]
        content = bytes(3 << 20)
        assert bytes(decode(("zstd",), zstandard.compress(content), len(content))) == content
    finally:
        zstd._find_decompress.cache_clear()


def test_a_large_frame_is_decoded_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def decompress(view: memoryview, out: memoryview) -> None:
        calls.append(len(out))
        out[:] = bytes(len(out))

    monkeypatch.setattr(zstd, "_decompress", decompress)
    for size, expected in [(zstd.FAST_BYTES, [zstd.FAST_BYTES]), (zstd.FAST_BYTES - 1, [])]:
        calls.clear()
        out = bytearray(b"x" * size)
        zstd.inflate_into(memoryview(zstandard.compress(bytes(size))), memoryview(out))
        assert (calls, bytes(out)) == (expected, bytes(size))


def test_bytes_that_are_not_frames_are_never_complete() -> None:
    assert not is_complete(b"\x28\xb5\x2f", 1)
    assert not is_complete(b"no frame at all", 3)
    assert not is_complete(zstandard.compress(b"a") + b"junk!", 4)


@pytest.mark.parametrize("cut", [1, 4])
@pytest.mark.parametrize("size", [100, 100_000])
def test_a_frame_without_its_checksum_is_damage(cut: int, size: int) -> None:
    """libzstd's streaming reader accepts it, even if the content was changed."""
    content = np.random.default_rng(0).bytes(size)
    stored = zstandard.ZstdCompressor(write_checksum=True).compress(content)
    with pytest.raises(Corrupted):
        decode(("zstd",), stored[:-cut], size)

    class Pieces:
        data = memoryview(stored[:-cut])

        def read(self, n: int) -> memoryview:
            piece, self.data = self.data[:n], self.data[n:]
            return piece

    inflater = Inflater(Pieces())
    inflater.fill(memoryview(bytearray(size)))
    with pytest.raises(Corrupted, match="cut"):
        inflater.finish()


def test_inflate_many_requires_exactly_one_frame_each() -> None:
    good = [zstandard.compress(bytes([i]) * 100, 1) for i in range(5)]
    decoded = inflate_many(good, [100] * 5)
    assert decoded is not None
    assert [bytes(d) for d in decoded] == [bytes([i]) * 100 for i in range(5)]
    longer = good[2] + zstandard.compress(b"x")
    for bad in (longer, good[2] + b"junk", good[2][:-1], b"", b"12345678901"):
        assert inflate_many([*good, bad], [100] * 6) is None
    assert inflate_many(good, [100, 100, 100, 100, 99]) is None
    assert inflate_many(good, [100, 100, 100, 100, 101]) is None


def test_single_block_frames_are_recognised_with_and_without_checksum_and_size() -> None:
    for checksum in (True, False):
        for size in (True, False):
            made = zstandard.ZstdCompressor(write_checksum=checksum, write_content_size=size)
            frame = made.compress(b"hello world")
            ends = np.array([len(frame)])
            assert ends_with_its_block(frame, np.array([0]), ends)
            assert not ends_with_its_block(frame + b"x", np.array([0]), ends + 1)
