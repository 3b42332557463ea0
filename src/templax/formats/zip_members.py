"""The members of a zip archive, as byte ranges of its file.

What the central directory says is not trusted: members must lie in the file, apart from each other,
and the size that a stored one declares is that of its bytes.
"""

from __future__ import annotations

import operator
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from .._catalog.regions import ByteKind, Region
from .._codecs.npy_members import BZIP2_BLOCK, MAX_DEFLATE_RATIO, METHODS, MemberStream
from ..errors import Corrupted, Unsupported
from ..storage.source import Source, open_ranges, root_size
from .zip_directory import Listed, read_directory

_PIECE = 1 << 20

_MAX_LISTED = 1 << 20
"""Most bytes that are read to see what a zip archive of another kind is: some 15,000 members."""

_SMALL, _MAX_DECODED = 1 << 20, 1 << 29
"""Most decoded bytes of an archive of at most `_SMALL` bytes, so that it takes little time."""

_ENCRYPTED, _DESCRIBED = 0x1, 0x8

_STORED = 0

_METHODS = {
    8: "deflate",
    9: "deflate64",
    12: "bzip2",
    14: "lzma",
    93: "zstd",
    95: "xz",
    98: "ppmd",
}

_PACK_AGAIN = "unpack the archive, and pack it again with `zip -0 -r`"

ReadRange = Callable[[int, int], memoryview]


class Member(NamedTuple):
    """A file in an archive.

    Attributes:
        name: Its name.
        start, stop: Position of its bytes in the archive.
        nbytes: Size of the decoded bytes, as the archive declares it.
        method: How its bytes are compressed, one of `METHODS`; empty if they are not.
        crc32: The CRC-32 of the decoded bytes.
        extra: The extra fields of its entry in the directory.
        refusal: Why templax can't decode it; its method and its size then say nothing.
    """

    name: str
    start: int
    stop: int
    nbytes: int
    method: str
    crc32: int
    extra: bytes
    refusal: Unsupported | None = None


def list_members(source: Source) -> list[Member]:
    """The members of the archive at the root of a source, in the order of its directory.

    Raises:
        Corrupted: The directory is unreadable, or members overlap or lie outside of the file.
        Unsupported: They decode to too many bytes.
    """
    size = root_size(source)
    listed = read_directory(source, size)[0]
    first = min([info.at for info in listed], default=0)
    if first:  # readers of zip would silently read the last of several archives
        raise Corrupted(
            f"Expected the first member at byte 0, got byte {first}: these may be several archives"
            " in one file, as in the `.distcp` files of a distributed checkpoint",
            hint="open the directory with the file `.metadata`, if there is one",
        )
    read = open_ranges(source, "", size)
    members: list[Member] = []
    for info in listed:
        if info.name.endswith("/"):  # a directory, which some programs list
            continue
        start = _find_data(read, size, info)
        stop = start + info.stored_bytes
        method, refusal = _read_method(info)
        least, most = info.stored_bytes, info.stored_bytes
        if method:
            least, most = 0, METHODS[method] * (info.stored_bytes + 1)
        if stop > size or (refusal is None and not least <= info.nbytes <= most):
            raise Corrupted(
                f"Expected {info.nbytes} bytes of a member from byte {start} of {size}",
                leaf=info.name,
            )
        members.append(
            Member(info.name, start, stop, info.nbytes, method, info.crc32, info.extra, refusal)
        )
    _check_apart(members)
    total = sum(map(_count_decoded, members))
    most = _MAX_DECODED + MAX_DEFLATE_RATIO * max(0, size - _SMALL)
    if total > most:
        raise Unsupported(
            f"templax reads {most} decoded bytes of an archive of {size}, got {total}",
            hint=_PACK_AGAIN,
        )
    return members


def _read_method(info: Listed) -> tuple[str, Unsupported | None]:
    """How a member is compressed, and why templax can't decode it."""
    if info.flags & _ENCRYPTED:
        hint = f"{_PACK_AGAIN}, without a password"
        return "", Unsupported("templax reads no encrypted members", hint=hint)
    if info.method == _STORED:
        return "", None
    name = _METHODS.get(info.method, f"method {info.method}")
    return (name, None) if name in METHODS else ("", refuse_method(name))


def refuse_method(name: str) -> Unsupported:
    """The error for members that are compressed by other means than those that are read."""
    return Unsupported(f"templax does not decode `{name}` members", hint=_PACK_AGAIN)


def _count_decoded(member: Member) -> int:
    """How many bytes may be decoded for a member."""
    if member.refusal is not None:
        return 0
    return max(member.nbytes, BZIP2_BLOCK) if member.method == "bzip2" else member.nbytes


def list_names(source: Source) -> list[str]:
    """The names of the files in the archive at the root of a source.

    Empty if its directory is unreadable, or is larger than those of models.
    """
    try:
        infos = read_directory(source, root_size(source), _MAX_LISTED)[0]
    except Corrupted:
        return []
    return [info.name for info in infos if not info.name.endswith("/")]


def describe_archive(source: Source) -> Iterator[Region]:
    """The bytes of the archive at the root of a source that are not in a member."""
    size = root_size(source)
    read = open_ranges(source, "", size)
    infos, directory = read_directory(source, size)
    for info in infos:
        at, data = info.at, _find_data(read, size, info)
        extra = at + 30 + int.from_bytes(read(at + 26, at + 28), "little")
        yield Region("", at, extra, "index", "headers of zip members")
        stop = data + info.stored_bytes
        # PyTorch's "FB" and Android's 0xd935 fill the header up, so that the data is aligned.
        filled = bytes(read(extra, min(extra + 2, data))) in (b"FB", b"\x35\xd9")
        kind, what = ("padding", "fill in front of zip members") if filled else _HEADERS
        yield Region("", extra, data, kind, what)
        if info.flags & _DESCRIBED:
            after = stop + _measure_descriptor(bytes(read(stop, min(stop + 24, size))), info)
            yield Region("", stop, after, *_HEADERS)
    yield Region("", directory, size, "index", "directory of the zip archive")


_HEADERS: tuple[ByteKind, str] = ("index", "headers of zip members")


def _measure_descriptor(data: bytes, info: Listed) -> int:
    """Size of what repeats the checksum and the sizes of a member after its data."""
    for magic in (b"PK\x07\x08", b""):
        for layout in ("<IQQ", "<III"):
            nbytes = len(magic) + struct.calcsize(layout)
            if len(data) >= nbytes and data.startswith(magic):
                found = struct.unpack_from(layout, data, len(magic))
                if found == (info.crc32, info.stored_bytes, info.nbytes):
                    return nbytes
    return 0


_HEADER = struct.Struct("<4s22x2H")
"""The header of a member: its magic, and the sizes of its name and extra fields."""


def _find_data(read: ReadRange, size: int, info: Listed) -> int:
    """The position of a member's bytes, after its own header of 30 bytes, its name and extras."""
    at = info.at
    if not 0 <= at <= size - 30:
        raise Corrupted(f"Expected a member below byte {size}, got {at}", leaf=info.name)
    magic, name_size, extra_size = _HEADER.unpack(read(at, at + 30))
    if magic != b"PK\x03\x04":
        raise Corrupted("Expected the header of a member", leaf=info.name, start=at)
    return at + 30 + name_size + extra_size


def _check_apart(members: Iterable[Member]) -> None:
    names = set[str]()
    end = 0
    for member in sorted(members, key=operator.attrgetter("start", "stop")):
        if member.name in names:
            raise Corrupted("Expected one member of a name, got two", leaf=member.name)
        names.add(member.name)
        if member.start < end:
            raise Corrupted(
                f"Expected members that do not overlap, got one at byte {member.start}"
                f" before {end}",
                leaf=member.name,
            )
        end = member.stop


def check_members(source: Source, members: Iterable[Member]) -> Iterator[Corrupted]:
    """Compares the checksum of each member that can be decoded; yields the damage."""
    read = open_ranges(source, "", root_size(source))
    for member in members:
        if member.refusal is not None:
            continue
        crc = nbytes = 0
        try:
            for piece in _decode_pieces(read, member):
                crc = zlib.crc32(piece, crc)
                nbytes += len(piece)
                if nbytes > member.nbytes:
                    break
        except Unsupported:  # the leaf is one that is not read
            continue
        except Corrupted as error:
            yield Corrupted(
                error.what, leaf=member.name or None, start=member.start, stop=member.stop
            )
            continue
        if (crc, nbytes) != (member.crc32, member.nbytes):
            yield Corrupted(
                f"Expected {member.nbytes} bytes with CRC-32 {member.crc32:08x}, got {nbytes} with"
                f" {crc:08x}",
                leaf=member.name or None,
                start=member.start,
                stop=member.stop,
            )


def _decode_pieces(read: ReadRange, member: Member) -> Iterator[bytes | memoryview]:
    if member.method:
        stream = MemberStream(read(member.start, member.stop), member.method, member.nbytes)
        left = member.nbytes + stream.has_end  # one byte more tells whether there are more
        while left and (piece := stream.read(min(_PIECE, left))):
            yield piece
            left -= len(piece)
    else:
        for at in range(member.start, member.stop, _PIECE):
            yield read(at, min(at + _PIECE, member.stop))
