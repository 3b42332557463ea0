"""The members of a zip archive, as byte ranges of its file.

The central directory is read by `zipfile`. What it says is not trusted: members must lie in the
file, apart from each other, and the size that a stored one declares is that of its bytes.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from .._catalog.regions import ByteKind, Region
from .._codecs.deflate import MAX_DEFLATE_RATIO, InflateStream
from ..errors import Corrupted, Unsupported
from ..storage.source import Source, open_ranges, root_size

if TYPE_CHECKING:
    import zipfile

_PIECE = 1 << 20

_MAX_DIRECTORY = 1 << 28
"""Most bytes of a central directory that are read."""

_MAX_LISTED = 1 << 20
"""Most bytes that are read to see what a zip archive of another kind is: some 15,000 members."""

_SMALL, _MAX_DECODED = 1 << 20, 1 << 29
"""Most decoded bytes of an archive of at most `_SMALL` bytes, so that it takes little time."""

_WINDOW = 1 << 16

_ENCRYPTED, _DESCRIBED = 0x1, 0x8

_UNREADABLE = (ValueError, NotImplementedError, OverflowError, EOFError)
"""What `zipfile` raises for a damaged directory, besides its own error."""

_METHODS = {9: "deflate64", 12: "bzip2", 14: "lzma", 93: "zstd"}


ReadRange = Callable[[int, int], memoryview]


class Member(NamedTuple):
    """A file in an archive.

    Attributes:
        name: Its name.
        start, stop: Position of its bytes in the archive.
        nbytes: Size of the decoded bytes, as the archive declares it.
        deflated: Whether its bytes are deflated; otherwise they are stored as they are.
        crc32: The CRC-32 of the decoded bytes.
        extra: The extra fields of its entry in the directory.
    """

    name: str
    start: int
    stop: int
    nbytes: int
    deflated: bool
    crc32: int
    extra: bytes


def list_members(source: Source) -> list[Member]:
    """The members of the archive at the root of a source, in the order of its directory.

    Raises:
        Corrupted: The directory is unreadable, or members overlap or lie outside of the file.
        Unsupported: A member is encrypted, or compressed by other means than deflate.
    """
    import zipfile  # takes some ms

    size = root_size(source)
    listed = _read_directory(source, size)[0]
    first = min((info.header_offset for info in listed), default=0)
    if first:  # Python's `zipfile` would silently read the last of several archives
        raise Corrupted(
            f"Expected the first member at byte 0, got byte {first}: these may be several archives"
            " in one file, as in the `.distcp` files of a distributed checkpoint",
            hint="open the directory with the file `.metadata`, if there is one",
        )
    read = open_ranges(source, "", size)
    members: list[Member] = []
    for info in listed:
        if info.filename.endswith("/"):  # a directory, which some programs list
            continue
        if info.flag_bits & _ENCRYPTED:
            raise Unsupported("templax reads no encrypted members", leaf=info.filename)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            name = _METHODS.get(info.compress_type, f"method {info.compress_type}")
            raise Unsupported(
                f"templax does not decode `{name}` members",
                leaf=info.filename,
                hint="unpack the archive, and pack it again with `zip -0 -r`",
            )
        start = _find_data(read, size, info)
        stop = start + info.compress_size
        deflated = info.compress_type == zipfile.ZIP_DEFLATED
        most = MAX_DEFLATE_RATIO * (info.compress_size + 1) if deflated else info.compress_size
        if stop > size or info.file_size > most or (not deflated and info.file_size < most):
            raise Corrupted(
                f"Expected {info.file_size} bytes of a member from byte {start} of {size}",
                leaf=info.filename,
            )
        member = Member(
            info.filename, start, stop, info.file_size, deflated, info.CRC, bytes(info.extra)
        )
        members.append(member)
    _check_apart(members)
    total = sum(member.nbytes for member in members)
    most = _MAX_DECODED + MAX_DEFLATE_RATIO * max(0, size - _SMALL)
    if total > most:
        raise Unsupported(
            f"templax reads {most} decoded bytes of an archive of {size}, got {total}"
        )
    return members


def list_names(source: Source) -> list[str]:
    """The names of the files in the archive at the root of a source.

    Empty if its directory is unreadable, or is larger than those of models.
    """
    try:
        infos = _read_directory(source, root_size(source), _MAX_LISTED)[0]
    except Corrupted:
        return []
    return [info.filename for info in infos if not info.filename.endswith("/")]


def _read_directory(
    source: Source, size: int, most: int = _MAX_DIRECTORY
) -> tuple[list[zipfile.ZipInfo], int]:
    """What the directory of an archive lists, and where it begins. Reads at most `most` bytes."""
    import zipfile

    try:
        with zipfile.ZipFile(io.BufferedReader(_Reader(source, size, most), _WINDOW)) as archive:
            return archive.infolist(), archive.start_dir
    except (zipfile.BadZipFile, struct.error, *_UNREADABLE) as error:
        raise Corrupted(f"The directory of the zip archive is unreadable: {error}") from error


def describe_archive(source: Source) -> Iterator[Region]:
    """The bytes of the archive at the root of a source that are not in a member."""
    size = root_size(source)
    read = open_ranges(source, "", size)
    infos, directory = _read_directory(source, size)
    for info in infos:
        at, data = info.header_offset, _find_data(read, size, info)
        extra = at + 30 + int.from_bytes(read(at + 26, at + 28), "little")
        yield Region("", at, extra, "index", "headers of zip members")
        stop = data + info.compress_size
        # PyTorch's "FB" and Android's 0xd935 fill the header up, so that the data is aligned.
        filled = bytes(read(extra, min(extra + 2, data))) in (b"FB", b"\x35\xd9")
        kind, what = ("padding", "fill in front of zip members") if filled else _HEADERS
        yield Region("", extra, data, kind, what)
        if info.flag_bits & _DESCRIBED:
            after = stop + _measure_descriptor(bytes(read(stop, min(stop + 24, size))), info)
            yield Region("", stop, after, *_HEADERS)
    yield Region("", directory, size, "index", "directory of the zip archive")


_HEADERS: tuple[ByteKind, str] = ("index", "headers of zip members")


def _measure_descriptor(data: bytes, info: zipfile.ZipInfo) -> int:
    """Size of what repeats the checksum and the sizes of a member after its data."""
    for magic in (b"PK\x07\x08", b""):
        for layout in ("<IQQ", "<III"):
            nbytes = len(magic) + struct.calcsize(layout)
            if len(data) >= nbytes and data.startswith(magic):
                found = struct.unpack_from(layout, data, len(magic))
                if found == (info.CRC, info.compress_size, info.file_size):
                    return nbytes
    return 0


def _find_data(read: ReadRange, size: int, info: zipfile.ZipInfo) -> int:
    """The position of a member's bytes, after its own header of 30 bytes, its name and extras."""
    at = info.header_offset
    if not 0 <= at <= size - 30:
        raise Corrupted(f"Expected a member below byte {size}, got {at}", leaf=info.filename)
    head = bytes(read(at, at + 30))
    if head[:4] != b"PK\x03\x04":
        raise Corrupted("Expected the header of a member", leaf=info.filename, start=at)
    return at + 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")


def _check_apart(members: Iterable[Member]) -> None:
    names = set[str]()
    end = 0
    for member in sorted(members, key=lambda m: (m.start, m.stop)):
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
    """Compares the checksum of each member; yields the damage."""
    read = open_ranges(source, "", root_size(source))
    for member in members:
        crc = nbytes = 0
        try:
            for piece in _decode_pieces(read, member):
                crc = zlib.crc32(piece, crc)
                nbytes += len(piece)
                if nbytes > member.nbytes:
                    break
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
    if member.deflated:
        stream = InflateStream(read(member.start, member.stop))
        yield from iter(lambda: stream.read(_PIECE), b"")
    else:
        for at in range(member.start, member.stop, _PIECE):
            yield read(at, min(at + _PIECE, member.stop))


class _Reader(io.RawIOBase):
    """The file at the root of a source, as `zipfile` reads it."""

    def __init__(self, source: Source, size: int, most: int):
        self._source, self._size, self._at = source, size, 0
        self._most = self._left = most

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        stop = min(self._at + len(buffer), self._size)
        n = max(0, stop - self._at)
        self._left -= n
        if self._left < 0:
            raise ValueError(f"it has more than {self._most} bytes")
        if n:
            self._source.read("", self._at, stop, memoryview(buffer)[:n])
        self._at += n
        return n
