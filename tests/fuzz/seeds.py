"""Inputs to begin with, cut out of the checkpoints of `tests/corpus`."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import zstandard

from .encodings import MANIFEST, NODE

CORPUS = Path(__file__).resolve().parents[1] / "corpus"

_MAX_SEED = 1 << 14


@functools.cache
def corpus_files() -> tuple[tuple[str, bytes], ...]:
    """The files of all checkpoints, with their names, without duplicates."""
    found: dict[bytes, str] = {}
    for path in sorted(CORPUS.rglob("*")):
        if path.is_file() and len(path.relative_to(CORPUS).parts) > 1:
            found.setdefault(path.read_bytes(), path.relative_to(CORPUS).as_posix())
    return tuple((name, data) for data, name in found.items())


def files_named(*names: str, most: int = 12) -> list[bytes]:
    """The contents of some files with one of these names, the shortest first."""
    found = [data for key, data in corpus_files() if key.rpartition("/")[2] in names]
    return sorted((data for data in found if len(data) <= _MAX_SEED), key=len)[:most]


def files_ending(suffix: str, most: int = 12) -> list[bytes]:
    """The contents of some files with this suffix, the shortest first."""
    found = [data for key, data in corpus_files() if key.endswith(suffix)]
    return sorted((data for data in found if len(data) <= _MAX_SEED), key=len)[:most]


def bodies(magic: int, most: int = 40) -> list[bytes]:
    """The decoded bodies of OCDBT manifests or nodes, the shortest first."""
    found = {body for _, data in corpus_files() for body in _find_bodies(data, magic)}
    return sorted((body for body in found if len(body) <= _MAX_SEED), key=len)[:most]


def _find_bodies(data: bytes, magic: int) -> Iterator[bytes]:
    mark, at = magic.to_bytes(4, "big"), 0
    while (at := data.find(mark, at)) >= 0:
        length = int.from_bytes(data[at + 4 : at + 12], "little")
        envelope = data[at : at + length]
        at += 4
        if 18 <= length <= len(data) and envelope[12:13] == b"\0":
            body = envelope[14:-4]
            if envelope[13] == 1:
                try:
                    body = zstandard.ZstdDecompressor().decompressobj().decompress(body)
                except zstandard.ZstdError:
                    continue
            yield body


def checkpoints() -> dict[str, dict[str, bytes]]:
    """Small checkpoints of every kind, as the files of each: the damaged ones are left out."""
    found: dict[str, dict[str, bytes]] = {}
    for directory in sorted(CORPUS.iterdir()):
        if not directory.is_dir() or directory.name.startswith(("damaged", "__", ".")):
            continue
        files = {
            path.relative_to(directory).as_posix(): path.read_bytes()
            for path in sorted(directory.rglob("*"))
            if path.is_file() and path.name not in ("HOW.json", "expected.json")
        }
        found[directory.name] = files
    return found


__all__ = ["MANIFEST", "NODE", "bodies", "checkpoints", "files_ending", "files_named"]
