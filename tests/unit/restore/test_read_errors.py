"""Reads that fail: the error names the leaf and the file, and no thread is left."""

from __future__ import annotations

import dataclasses
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import templax as tx
from helpers import CORPUS
from templax._catalog.entry import Chunk, Extent, LeafEntry
from templax.storage import Local, Memory
from templax.testing import Watched

pytestmark = pytest.mark.usefixtures("no_thread_left")

A = jax.ShapeDtypeStruct


def restore(checkpoint: Any, template: Any) -> Any:
    """Restores `state.params` in part."""
    return tx.restore(checkpoint, template, at="state.params", extra="ignore")


FLAVOURS: dict[str, str] = {
    "ocdbt": "orbax-0.12.8-default",
    "raw": "orbax-0.12.8-uncompressed",
    "files": "orbax-0.12.8-noocdbt",
    "zarr3": "orbax-0.12.8-zarr3",
    "processes": "orbax-0.12.8-multi2p",
    "old": "orbax-0.6.4-default",
}


BIG = {"big": A((128, 64), jnp.float32)}


@pytest.fixture(params=FLAVOURS)
def copy(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkpoint whose files may be changed."""
    shutil.copytree(CORPUS / FLAVOURS[request.param] / "ckpt", tmp_path / "ckpt")
    return tmp_path / "ckpt"


def find_extent_of_big(path: Path) -> Any:
    """The file and bytes of one chunk of `big`."""
    catalog = tx.open(path)
    leaf = catalog.leaves["state.params.big"]
    return catalog.locate([leaf])["state.params.big"][0].extent


def test_a_restore_leaves_no_thread(copy: Path) -> None:
    before = threading.enumerate()
    restore(copy, BIG)
    assert threading.enumerate() == before
    with pytest.raises(tx.TemplateError):
        restore(copy, {"big": A((1,), jnp.float32)})
    assert threading.enumerate() == before


@pytest.mark.parametrize(
    "error",
    [
        tx.Corrupted("Expected a good disk, got a bad one"),
        tx.NotFound("Expected a file, found none"),
    ],
    ids=["damaged", "gone"],
)
def test_a_read_that_finds_damage_names_leaf_and_file(copy: Path, error: Exception) -> None:
    """Whatever the store raises: a missing file does not mean that there is no checkpoint."""
    extent = find_extent_of_big(copy)

    def fault(key: str, start: int, stop: int) -> None:
        if key.endswith(extent.key) and start <= extent.start < stop:
            raise error

    before = threading.enumerate()
    with pytest.raises(tx.Corrupted) as caught:
        restore(Watched(Local(copy), fault), BIG)
    assert threading.enumerate() == before
    assert (caught.value.leaf, caught.value.file) == ("state.params.big", extent.key)


def fail_reads_of_big(path: Path) -> Watched:
    """A source that raises what `Local` raises for a failing disk, for the chunk of `big`."""
    extent = find_extent_of_big(path)

    def fault(key: str, start: int, stop: int) -> None:
        if key.endswith(extent.key) and start <= extent.start < stop:
            raise tx.SourceError(f"can't read `{key}`: Input/output error")

    return Watched(Local(path), fault)


def test_a_failing_store_names_the_file(copy: Path) -> None:
    with pytest.raises(tx.SourceError) as caught:
        restore(fail_reads_of_big(copy), BIG)
    assert find_extent_of_big(copy).key in str(caught.value)


def test_a_failing_store_names_the_leaf(copy: Path) -> None:
    """In its message or in a note."""
    with pytest.raises(tx.SourceError) as caught:
        restore(fail_reads_of_big(copy), BIG)
    assert "big" in str(caught.value) + "".join(getattr(caught.value, "__notes__", ()))


def test_a_file_truncated_before_its_first_read_is_damage(copy: Path) -> None:
    extent = find_extent_of_big(copy)
    catalog = tx.open(copy)
    os.truncate(copy / extent.key, (extent.start + extent.stop) // 2)
    for checkpoint in (catalog, copy):
        with pytest.raises(tx.Corrupted) as caught:
            restore(checkpoint, BIG)
        assert (caught.value.leaf, caught.value.file) == ("state.params.big", extent.key)


def test_a_missing_data_file_is_damage_not_a_missing_checkpoint(copy: Path) -> None:
    """`except FileNotFoundError` must not make a program start over from a damaged checkpoint."""
    extent = find_extent_of_big(copy)
    catalog = tx.open(copy)
    (copy / extent.key).unlink()
    for checkpoint in (catalog, copy):
        with pytest.raises(tx.Corrupted) as caught:
            restore(checkpoint, BIG)
        assert not isinstance(caught.value, FileNotFoundError)
        assert (caught.value.leaf, caught.value.file) == ("state.params.big", extent.key)


def test_a_template_error_is_raised_even_if_all_data_is_missing(copy: Path) -> None:
    """No array byte is read or looked for."""
    extent = find_extent_of_big(copy)
    (copy / extent.key).unlink()
    with pytest.raises(tx.TemplateError) as caught:
        restore(copy, {"big": A((64, 128), jnp.float32)})
    assert [(m.problem, m.name) for m in caught.value.mismatches] == [("shape", "big")]
    assert tx.check(copy, BIG, at="state.params", extra="ignore").ok


def test_a_file_that_changed_since_it_was_read_is_refused(copy: Path) -> None:
    extent = find_extent_of_big(copy)
    catalog = tx.open(copy)
    first = restore(catalog, BIG)
    file = copy / extent.key
    file.write_bytes(file.read_bytes())
    os.utime(file, ns=(7, 7))
    with pytest.raises(tx.SourceError, match="changed since") as caught:
        restore(catalog, BIG)
    assert extent.key in str(caught.value)
    assert (restore(copy, BIG)["big"] == first["big"]).all()


def test_a_truncated_file_names_a_leaf_that_lost_bytes(tmp_path: Path) -> None:
    """One read serves many leaves of a file; the file ends in the middle of them."""
    values = {f"w{i}": np.random.default_rng(i).random((64, 64), np.float32) for i in range(8)}
    catalog = make_catalog(values)
    cut = 5 * 16384 + 100
    objects = {"data": catalog.source.read("data")[:cut].tobytes()}
    catalog = dataclasses.replace(catalog, source=Memory(objects))
    template = {k: A(v.shape, jnp.float32) for k, v in values.items()}
    with pytest.raises(tx.Corrupted) as caught:
        tx.restore(catalog, template)
    assert caught.value.file == "data"
    assert caught.value.leaf in ("w5", "w6", "w7")


def make_catalog(values: dict[str, np.ndarray]) -> tx.Catalog:
    """A catalog, as a format would make it, of arrays stored one after the other."""
    data, chunks, entries = b"", {}, []
    for name, value in values.items():
        extent = Extent("data", len(data), len(data) + value.nbytes)
        chunks[name] = (Chunk(extent, tuple((0, n) for n in value.shape)),)
        entries.append(LeafEntry(name, (name,), value.shape, value.dtype))
        data += value.tobytes()
    return tx.Catalog(
        "memory://one",
        "test",
        "made by hand",
        tuple(entries),
        Memory({"data": data}),
        lambda wanted: {e.name: chunks[e.name] for e in wanted},
    )
