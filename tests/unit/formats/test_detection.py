"""Each format's files are recognised as its own, whatever their first bytes look like."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
import zstandard

import templax as tx
from helpers import CORPUS
from templax.errors import UnknownFormat
from templax.formats.orbax.format import Orbax
from templax.formats.safetensors import Safetensors
from templax.storage import Local, Memory
from templax.testing import Watched

TREE = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, np.float32)}


def safetensors_with_header(length: int) -> bytes:
    """A valid file whose header has this length."""
    header = {"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
    text = json.dumps(header).encode()
    assert len(text) <= length
    return length.to_bytes(8, "little") + text.ljust(length) + TREE["w"].tobytes()


# Lengths whose bytes are the signature of another kind of file.
LENGTHS = {
    "pickle 2": 0x0280,
    "pickle 3": 0x0380,
    "pickle 4": 0x0480,
    "pickle 5": 0x0580,
    "pickle 4, longer": 0x10480,
    "gzip": 0x8B1F,
    "bzip2": int.from_bytes(b"BZh", "little"),
    "msgpack map": 0x81,
    "msgpack map16": 0xDE,
}


@pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS)
def test_a_safetensors_file_is_read_whatever_the_length_of_its_header(length: int) -> None:
    catalog = tx.open(Memory({"": safetensors_with_header(length)}))
    assert (catalog.format, catalog.leaves["w"].shape) == ("safetensors", (2, 3))


def test_a_tensor_name_that_looks_like_a_tar_header_changes_nothing() -> None:
    name = "x" * (257 - 10) + "ustar"
    header = {name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text + TREE["w"].tobytes()
    assert data[257:262] == b"ustar"
    assert list(tx.open(Memory({"": data})).leaves) == [name]


def write_npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, **TREE)
    return file.getvalue()


def write_npy() -> bytes:
    file = io.BytesIO()
    np.save(file, TREE["w"])
    return file.getvalue()


def write_equinox(before: bytes = b"") -> bytes:
    file = io.BytesIO()
    file.write(before)
    eqx.tree_serialise_leaves(file, {k: jnp.asarray(v) for k, v in TREE.items()})
    return file.getvalue()


def write_tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"), io.BytesIO())
    return file.getvalue()


def write_zip(member: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(member, b"x")
    return file.getvalue()


VALID: dict[str, Callable[[], bytes]] = {
    "a Python pickle, which templax never loads": lambda: pickle.dumps(TREE),
    "a zip archive": lambda: write_zip("notes.txt"),
    "a tar archive": write_tar,
    "a gzip file": lambda: gzip.compress(b"x"),
    "a zstd file": lambda: zstandard.compress(b"x"),
    "an xz file": lambda: lzma.compress(b"x"),
    "the manifest of an OCDBT database": lambda: (
        CORPUS / "orbax-0.12.8-default" / "ckpt" / "manifest.ocdbt"
    ).read_bytes(),
}
"""What a file is → a valid file of that kind."""


@pytest.mark.parametrize("what", VALID)
def test_a_valid_file_is_named_as_what_it_is_and_no_format_claims_it(
    what: str, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(VALID[what]())
    assert Safetensors().detect(Local(path)) is None
    assert Orbax().detect(Local(path)) is None
    with pytest.raises(UnknownFormat) as caught:
        tx.open(path)
    said = f"Expected a checkpoint that templax reads at {path}, got {what}"
    assert caught.value.what == said


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_every_protocol_with_a_signature_are_named(protocol: int) -> None:
    with pytest.raises(UnknownFormat, match="a Python pickle, which templax never loads"):
        tx.open(Memory({"": pickle.dumps(TREE, protocol)}))


@pytest.mark.parametrize("what", ["a Python pickle, which templax never loads", "an xz file"])
def test_a_file_called_checkpoint_is_orbax_only_if_it_is_msgpack(what: str) -> None:
    source = Memory({"c/checkpoint": VALID[what]()}, "c/")
    assert Orbax().detect(source) is None
    with pytest.raises(UnknownFormat, match=f"a directory of `checkpoint` \\({what}\\)"):
        tx.open(source)


def test_a_safetensors_file_called_checkpoint_is_opened_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    path.write_bytes(safetensors_with_header(0x81))
    with pytest.raises(UnknownFormat) as caught:
        tx.open(tmp_path)
    assert caught.value.hint == f'open "{path}"'
    assert list(tx.open(path).leaves) == ["w"]


@pytest.mark.parametrize(
    ("format", "data"),
    [
        ("npz", write_npz()),
        ("npy", write_npy()),
        ("equinox", write_equinox()),
        ("equinox", write_equinox(b'{"width": 8}\n')),
    ],
)
def test_files_of_numpy_and_equinox_are_told_apart(format: str, data: bytes) -> None:
    source = Memory({"": data})
    assert tx.open(source).format == format
    assert Safetensors().detect(source) is None
    assert Orbax().detect(source) is None


def test_an_array_that_happens_to_be_followed_by_other_bytes_is_no_equinox_file() -> None:
    with pytest.raises(tx.Corrupted, match=r"with an array of float32\(2, 3\)"):
        tx.open(Memory({"": write_npy() + b"\x93NUMP"}))
    with pytest.raises(UnknownFormat, match="a file of another kind"):
        tx.open(Memory({"": b"not json\n" + write_npy()}))


def test_the_directory_of_another_zip_is_read_only_as_far_as_models_have_one() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("directory/", b"")
        for i in range(30_000):
            archive.writestr(f"directory/{i}.npy", b"")
    data = file.getvalue()
    source = Watched(Memory({"": data}))
    with pytest.raises(UnknownFormat, match="got a zip archive; hint: unpack it"):
        tx.open(source)
    directory = len(data) - data.index(b"PK\x01\x02")
    assert directory > 3 << 19
    assert sum(stop - start for _, start, stop in source.reads) < directory
