"""The directory of a zip archive is read as Python's `zipfile` reads it, or refused."""

from __future__ import annotations

import io
import random
import zipfile
from contextlib import suppress

import pytest

from templax.errors import Corrupted
from templax.formats.zip_directory import read_directory
from templax.storage import Memory


def _archive(*, comment: bytes = b"", before: bytes = b"") -> bytes:
    file = io.BytesIO(before)
    file.seek(len(before))
    with zipfile.ZipFile(file, "w") as writer:
        writer.comment = comment
        for i, name in enumerate(["w.npy", "größe/日本.npy", "empty/", "x" * 300]):
            info = zipfile.ZipInfo(name)
            info.extra = b"\x99\x99\x03\x00abc" * (i % 2)
            info.compress_type = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[i // 2]
            writer.writestr(info, b"" if name.endswith("/") else bytes(100 * i))
    return file.getvalue()


def _read(data: bytes) -> list[tuple[object, ...]]:
    listed, start = read_directory(Memory({"": data}), len(data))
    members = [
        (m.name, m.flags, m.method, m.crc32, m.stored_bytes, m.nbytes, m.at, m.extra)
        for m in listed
    ]
    return [*members, (start,)]


def _read_by_zipfile(data: bytes) -> list[tuple[object, ...]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [
            (m.filename, m.flag_bits, m.compress_type, m.CRC, m.compress_size, m.file_size,
             m.header_offset, m.extra)
            for m in archive.infolist()
        ]  # fmt: skip
        return [*members, (archive.start_dir,)]


def _archives(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    found = [
        _archive(),
        _archive(comment=b"PK, a comment"),
        _archive(before=b"another file before it"),
        _archive(comment=b"c" * 65535, before=b"b"),
    ]
    for limit in (50, 5):  # the size of some members, and the place of the directory, in 64 bits
        monkeypatch.setattr(zipfile, "ZIP64_LIMIT", limit)
        found.append(_archive(comment=b"large"))
    monkeypatch.undo()
    file = io.BytesIO()
    zipfile.ZipFile(file, "w").close()
    return [*found, file.getvalue()]


def test_it_lists_what_zipfile_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    for data in _archives(monkeypatch):
        assert _read(data) == _read_by_zipfile(data)


def test_a_changed_directory_is_refused_or_read_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    random_bytes = random.Random(0)
    accepted = 0
    for data in _archives(monkeypatch):
        at = _read_by_zipfile(data)[-1][0]
        assert isinstance(at, int)
        for _ in range(150):
            changed = bytearray(data)
            changed[random_bytes.randrange(at, len(data))] = random_bytes.randrange(256)
            cut = random_bytes.choice([0, 0, 0, random_bytes.randrange(len(data) - at)])
            changed = changed[: len(data) - cut]
            with suppress(Corrupted):
                found = _read(bytes(changed))
                assert found == _read_by_zipfile(bytes(changed))
                accepted += 1
    assert accepted


def test_what_is_no_archive_is_refused() -> None:
    for data in (b"", b"PK\x05\x06", bytes(100), _archive()[:-1]):
        with pytest.raises(Corrupted, match="File is not a zip file"):
            _read(data)
