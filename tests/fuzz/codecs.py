"""Targets for codecs: zstd, gzip, blosc, lz4."""

from __future__ import annotations

import gzip
import zlib

import zstandard
from numcodecs import LZ4, Blosc

from templax._codecs.crc32c import crc32c
from templax._codecs.decode import decode
from templax._codecs.zstd import inflate, inflate_many
from templax._codecs.zstd_frames import FrameWalk
from templax.errors import Corrupted

from .encodings import seal_gzip
from .targets import Wrong, add_target

_DECODED = 1 << 20
"""Maximum size of the chunks that a target decodes, in bytes."""


def _frames() -> list[bytes]:
    compress = zstandard.ZstdCompressor(level=3, write_checksum=True).compress
    plain = zstandard.ZstdCompressor(level=19, write_content_size=False).compress
    text = b"templax " * 40 + bytes(range(256))
    skippable = b"\x50\x2a\x4d\x18\4\0\0\0skip"
    return [
        *(compress(b) for b in (b"", b"a", text, bytes(5000))),
        *(plain(b) for b in (b"", text)),
        compress(text) + skippable + plain(b"more"),
        bytes.fromhex("28b52ffd6000ff030000") + b"a",
        bytes.fromhex("28b52ffd0058") + b"\x03\x00\x10a",
    ]


_ZSTD_CODECS = ((("zstd",)), ("crc32c", "zstd"), ("zstd", "crc32c"), ("crc32c", "zstd", "crc32c"))


@add_target("zstd", seeds=lambda: [bytes([i % 4, 0, 0]) + f for f in _frames() for i in (0, 1)])
def read_zstd(data: bytes) -> None:
    """A byte that chooses the codecs, two for how much the size differs, then zstd frames."""
    if len(data) < 3:
        return
    codecs, frames = _ZSTD_CODECS[data[0] & 3], data[3:]
    off = int.from_bytes(data[1:3], "little", signed=True)
    _check_walk(frames)
    try:
        content = inflate(frames, _DECODED)
    except Corrupted:
        content = None
    stored = frames if codecs[0] == "zstd" else frames + crc32c(frames).to_bytes(4, "little")
    tail = 4 if codecs[-1] == "crc32c" else 0
    nbytes = max(0, (64 if content is None else len(content)) + off - tail)
    many = inflate_many([frames, frames], [nbytes + tail] * 2)
    out = decode(codecs, stored, nbytes)
    if content is None or bytes(out) != content[: len(content) - tail]:
        raise Wrong(f"decoded {len(out)} bytes that differ from those of the frames")
    if many is not None and any(bytes(piece) != content for piece in many):
        raise Wrong("many frames decode to something else than one")


def _check_walk(frames: bytes) -> None:
    """Checks that frames that arrive in pieces end where they end if they arrive at once."""
    whole, pieces = FrameWalk(), FrameWalk()
    whole.feed(memoryview(frames))
    for at in range(0, min(len(frames), 512), 3):
        pieces.feed(memoryview(frames)[at : at + 3])
    pieces.feed(memoryview(frames)[max(0, 3 * ((min(len(frames), 512) + 2) // 3)) :])
    if whole.complete != pieces.complete:
        raise Wrong("frames that arrive in pieces end elsewhere")


def _members() -> list[bytes]:
    text = b"templax " * 40
    deflated = [gzip.compress(b, mtime=0)[10:-8] for b in (b"", b"a", text, bytes(5000))]
    return [
        *(b"\1\0\0" + d for d in deflated),
        *(b"\0\0\0" + gzip.compress(b, mtime=0) for b in (b"", text)),
        b"\0\0\0" + gzip.compress(text) + gzip.compress(b"more"),
    ]


@add_target("gzip", seeds=_members)
def read_gzip(data: bytes) -> None:
    """A byte that chooses deflated bytes, to be sealed, or gzip; two for the size; then those."""
    if len(data) < 3:
        return
    body = seal_gzip(data[3:]) if data[0] & 1 else data[3:]
    off = int.from_bytes(data[1:3], "little", signed=True)
    try:
        content = gzip.decompress(body) if len(body) < 1 << 10 else None
    except (OSError, EOFError, zlib.error):
        content = None
    nbytes = max(0, (64 if content is None else len(content)) + off)
    out = decode(("gzip",), body, nbytes)
    if content is not None and bytes(out) != content:
        raise Wrong(f"decoded {len(out)} bytes that differ from those of the members")


_COMPRESSORS = (
    Blosc("lz4", 5, Blosc.SHUFFLE),
    Blosc("blosclz", 9, Blosc.NOSHUFFLE, 64),
    Blosc("zstd", 1, Blosc.BITSHUFFLE, 128),
    Blosc("zlib", 1, Blosc.SHUFFLE),
    LZ4(),
)


def _chunks() -> list[bytes]:
    body = b"templax " * 40 + bytes(range(256))
    codecs = ("lz4" if isinstance(each, LZ4) else "blosc" for each in _COMPRESSORS)
    return [
        bytes([codec == "lz4", sealed, 0, 0]) + bytes(each.encode(text))
        for codec, each in zip(codecs, _COMPRESSORS, strict=True)
        for text in (b"a", body, bytes(5000))
        for sealed in (0, 1)
    ]


@add_target("blosc", seeds=_chunks)
def read_blosc(data: bytes) -> None:
    """A byte that chooses lz4, one that has the sizes corrected, two for the size; then a chunk."""
    if len(data) < 4:
        return
    lz4, body = bool(data[0] & 1), bytearray(data[4:])
    first = 0 if lz4 else 4
    declared = int.from_bytes(body[first : first + 4], "little")
    nbytes = max(0, min(declared, _DECODED) + int.from_bytes(data[2:4], "little", signed=True))
    if data[1] & 1 and len(body) >= first + 4:
        body[first : first + 4] = nbytes.to_bytes(4, "little")
        if not lz4 and len(body) >= 16:
            body[12:16] = len(body).to_bytes(4, "little")
    out = decode(("lz4",) if lz4 else ("blosc",), bytes(body), nbytes)
    if len(out) != nbytes:
        raise Wrong(f"decoded {len(out)} bytes, asked for {nbytes}")
