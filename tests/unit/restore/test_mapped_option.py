"""The option `mapped`: leaves that are views of the file."""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import templax as tx
from helpers import assert_same_tree
from templax.storage import Local
from templax.testing import Watched


def save_aligned(tmp_path: Path) -> tuple[Path, Any]:
    """A safetensors file whose data begins at a multiple of 64."""
    tree = {
        "a": np.arange(4096, dtype=np.float32).reshape(64, 64),
        "b": np.arange(77, dtype=np.int8),
        "c": np.ones((3, 16), np.float32),
    }
    path = tmp_path / "m.safetensors"
    stop, header = 0, {}
    for name in ("a", "c", "b"):
        value = tree[name]
        dtype = {"f": "F32", "i": "I8"}[value.dtype.kind]
        header[name] = {
            "dtype": dtype, "shape": value.shape, "data_offsets": [stop, stop + value.nbytes]
        }  # fmt: skip
        stop += value.nbytes
    text = json.dumps(header)
    text += " " * (-(8 + len(text)) % 64)
    data = b"".join(tree[name].tobytes() for name in ("a", "c", "b"))
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + data)
    return path, tree


def test_mapped_leaves_are_views_of_the_file_and_outlive_it(tmp_path: Path) -> None:
    path, tree = save_aligned(tmp_path)
    source = Watched(Local(path))
    catalog = tx.open(source)
    template = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in tree.items()}
    del source.reads[:]
    made = tx.plan(catalog, template, mapped=True)
    restored = tx.run(made)
    assert made.mapped_bytes == 64 * 64 * 4 + 3 * 16 * 4 + 77
    assert source.reads == []
    mapped = [
        line for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line
    ]
    assert len(mapped) == 1
    address = restored["a"].unsafe_buffer_pointer()
    low, high = (int(x, 16) for x in mapped[0].split()[0].split("-"))
    assert low <= address < high
    path.unlink()
    assert_same_tree(restored, tree, kinds=False)
    before = path.parent / "other"
    before.write_bytes(b"x" * 100_000)
    os.replace(before, path)  # a new file under the same name
    assert_same_tree(restored, tree, kinds=False)
    del restored, catalog, made, source
    gc.collect()
    assert str(path) not in Path("/proc/self/maps").read_text()


def test_donating_a_mapped_array_does_not_change_the_file(tmp_path: Path) -> None:
    path, tree = save_aligned(tmp_path)
    content = path.read_bytes()
    template = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in tree.items()}
    restored = tx.restore(path, template, mapped=True)
    jax.jit(lambda a: a * 2, donate_argnums=0)(restored["a"]).block_until_ready()
    assert path.read_bytes() == content


def test_leaves_that_cannot_be_mapped_are_read(tmp_path: Path) -> None:
    """Leaves to cast, numpy leaves, leaves at an offset that is not a multiple of 64."""
    path, tree = save_aligned(tmp_path)
    cast = {"a": jax.ShapeDtypeStruct((64, 64), jnp.bfloat16)}
    made = tx.plan(path, cast, mapped=True, extra="ignore")
    assert (made.mapped_bytes, made.unmapped) == (0, {"cast": 1})
    assert "\n  not mapped: 1 cast\n" in str(made)
    made = tx.plan(path, {"a": np.zeros((64, 64), np.float32)}, mapped=True, extra="ignore")
    assert (made.mapped_bytes, made.unmapped) == (0, {"numpy arrays or Python values": 1})
    array = tx.run(made)["a"]
    array[:] = 0  # the array belongs to the caller
    data = bytearray(path.read_bytes())
    n = int.from_bytes(data[:8], "little")
    shifted = tmp_path / "shifted.safetensors"
    shifted.write_bytes((n + 8).to_bytes(8, "little") + data[8 : 8 + n] + b" " * 8 + data[8 + n :])
    template = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in tree.items()}
    made = tx.plan(shifted, template, mapped=True)
    assert (made.mapped_bytes, made.unmapped) == (0, {"at no multiple of 64 bytes": 3})
    assert tx.plan(shifted, template).unmapped == {}
    assert_same_tree(tx.run(made), tree, kinds=False)


def test_files_on_a_network_file_system_are_not_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, tree = save_aligned(tmp_path)
    monkeypatch.setattr("templax.storage.local._file_system", lambda path: "nfs4")
    source = Local(path)
    assert not source.maps
    assert source.view("", 0, 8) is None
    template = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in tree.items()}
    made = tx.plan(source, template, mapped=True)
    assert (made.mapped_bytes, made.unmapped) == (0, {"in no local file system": 3})
    assert_same_tree(tx.run(made), tree, kinds=False)


def test_a_file_that_changed_before_it_is_mapped_is_refused(tmp_path: Path) -> None:
    path, tree = save_aligned(tmp_path)
    template = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in tree.items()}
    made = tx.plan(path, template, mapped=True)
    os.utime(path, ns=(0, 0))
    with pytest.raises(tx.SourceError, match="changed since"):
        tx.run(made)
    path.unlink()
    with pytest.raises(tx.Corrupted, match="Expected a data file, found none - at `a`"):
        tx.run(made)
