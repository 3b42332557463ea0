"""Targets for arrays in numpy's formats: headers, archives, and files of Equinox."""

from __future__ import annotations

import io
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import templax as tx
from templax.formats.numpy_header import parse_header
from templax.formats.registry import open_catalog
from templax.storage import Memory

from . import seeds
from .inspection import inspect
from .mutators import mutate_bytes
from .targets import Wrong, add_target

_TOKENS = (
    b"\x93NUMPY", b"'descr': '<f4'", b"'descr': '|V1'", b"'shape': (3,)", b"'fortran_order': True",
    b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b'{"n": 1}\n',
)  # fmt: skip


def _save(*arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    for array in arrays:
        np.save(file, array)
    return file.getvalue()


def _arrays() -> list[np.ndarray]:
    return [
        np.arange(3, dtype="i1"),
        np.zeros((2, 3), order="F"),
        np.ones(2, ml_dtypes.bfloat16),
        np.ones((2, 2), ml_dtypes.float8_e4m3fn),
        np.zeros(()),
        np.zeros((0, 4)),
    ]


def _archives() -> list[bytes]:
    stored, deflated, bare, mixed = (io.BytesIO() for _ in range(4))
    np.savez(stored, *_arrays())
    named: dict[str, Any] = {f"a/~/b{i}/w": array for i, array in enumerate(_arrays())}
    np.savez_compressed(deflated, **named)
    with zipfile.ZipFile(bare, "w") as writer:
        writer.writestr("x.npy", _save(np.zeros(2, "u1")))
    with zipfile.ZipFile(mixed, "w") as writer:
        for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
            writer.writestr(f"x{method}.npy", _save(np.arange(9)), method)
    written = [file.getvalue() for file in (stored, deflated, bare, mixed)]
    return [*written, _save_summed(), *seeds.files_ending(".npz")]


def _save_summed() -> bytes:
    """An archive of templax's own, whose members have checksums."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "x.npz")
        tx.save(path, {"w": np.arange(3.0), "n": 2})
        return path.read_bytes()


@add_target("numpy-header", seeds=lambda: [_save(a) for a in _arrays()], tokens=_TOKENS)
def read_header(data: bytes) -> None:
    """The beginning of an array."""
    header = parse_header(data)
    if not 10 <= header.start <= len(data) or header.nbytes < 0:
        raise Wrong(f"a header of {header.start} bytes and {header.nbytes} of values")


@add_target("npy", seeds=lambda: seeds.files_ending(".npy") + [_save(a) for a in _arrays()],
            mutate=mutate_bytes, tokens=_TOKENS)  # fmt: skip
def read_array(data: bytes) -> None:
    """A file of one array."""
    inspect(open_catalog(Memory({"": data})))


@add_target("npz", seeds=_archives, mutate=mutate_bytes, tokens=_TOKENS)
def read_archive(data: bytes) -> None:
    """An archive of arrays."""
    inspect(open_catalog(Memory({"": data})))


@add_target(
    "equinox",
    seeds=lambda: [
        _save(*_arrays()),
        b'{"n": 1}\n' + _save(*_arrays()),
        *seeds.files_ending(".eqx"),
    ],
    mutate=mutate_bytes,
    tokens=_TOKENS,
)
def read_equinox(data: bytes) -> None:
    """Arrays one after the other, perhaps after a line of JSON."""
    inspect(open_catalog(Memory({"": data})))
