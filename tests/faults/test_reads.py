"""Reads that fail, or files that shrink or change: one error that names the place."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path
from typing import Any

import jax
import pytest

import templax as tx
from helpers import copy_case
from templax.storage import Local
from templax.testing import Watched

DATA = "ocdbt.process_0/d/"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of an uncompressed checkpoint, which has its values in data files."""
    return copy_case("orbax-0.12.8-uncompressed", tmp_path / "ckpt")


@pytest.fixture(autouse=True)
def _check_threads() -> Any:
    before = set(threading.enumerate())
    yield
    assert {t for t in threading.enumerate() if t.name.startswith("templax")} <= before


def find_data_file(checkpoint: Path) -> Path:
    (name,) = {
        chunk.extent.key
        for chunks in tx.open(checkpoint)
        .locate([tx.open(checkpoint).leaves["state.params.big"]])
        .values()
        for chunk in chunks
    }
    return checkpoint / name


def test_an_error_of_the_source_is_raised(checkpoint: Path) -> None:
    def fault(key: str, start: int, stop: int) -> None:
        if key.startswith(DATA):
            raise tx.SourceError(f"can't read `{key}`: Input/output error")

    catalog = tx.open(Watched(Local(checkpoint), fault))
    with pytest.raises(tx.SourceError, match="Input/output error"):
        tx.restore(catalog, catalog.template())


def test_a_data_file_truncated_after_the_catalog_was_opened(checkpoint: Path) -> None:
    """Another program truncates a file while the catalog is open."""
    catalog = tx.open(checkpoint)
    template = catalog.template()
    os.truncate(find_data_file(checkpoint), 100)
    with pytest.raises(tx.Corrupted) as caught:
        tx.restore(catalog, template)
    error = caught.value
    assert error.leaf == "state.params.big"
    assert error.file is not None
    assert error.file.startswith(DATA)
    assert str(error).startswith("Expected at least ")


def test_a_data_file_removed_after_the_catalog_was_opened(checkpoint: Path) -> None:
    catalog = tx.open(checkpoint)
    template = catalog.template()
    find_data_file(checkpoint).unlink()
    with pytest.raises(tx.Corrupted, match="Expected a data file, found none - at `state"):
        tx.restore(catalog, template)


def test_a_file_that_changes_between_two_reads(checkpoint: Path) -> None:
    """Bytes of two versions never end up in one tree."""
    file = find_data_file(checkpoint)
    catalog = tx.open(checkpoint)
    tx.restore(catalog, catalog.template())
    os.utime(file, ns=(0, 0))
    with pytest.raises(tx.SourceError, match="changed since"):
        tx.restore(catalog, catalog.template())
    tx.restore(checkpoint, catalog.template())  # a new catalog sees one version


def test_no_array_is_read_before_a_template_error(checkpoint: Path) -> None:
    """So the data files may be missing."""
    catalog = tx.open(checkpoint)
    template = catalog.template()
    template["state"]["params"]["scale"] = jax.ShapeDtypeStruct((2,), "float32")
    find_data_file(checkpoint).unlink()
    with pytest.raises(tx.TemplateError, match="Expected shape"):
        tx.restore(catalog, template)


def test_an_unreadable_file_is_named(checkpoint: Path) -> None:
    file = find_data_file(checkpoint)
    content = file.read_bytes()
    file.unlink()
    file.mkdir()
    with pytest.raises(tx.TemplaxError) as caught:
        tx.restore(checkpoint, tx.open(checkpoint).template())
    assert file.name in str(caught.value)
    file.rmdir()
    file.write_bytes(content)


def test_the_buffers_of_a_failed_restore_are_freed(checkpoint: Path) -> None:
    """Nothing keeps what was read before the error, not even the error."""
    import numpy as np

    def fault(key: str, start: int, stop: int) -> None:
        if key.startswith(DATA):
            raise tx.SourceError("gone")

    catalog = tx.open(Watched(Local(checkpoint), fault))
    template = jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype) if hasattr(x, "shape") else x, catalog.template()
    )
    before = sum(x.nbytes for x in gc.get_objects() if isinstance(x, np.ndarray))
    for _ in range(3):
        with pytest.raises(tx.SourceError):
            tx.restore(catalog, template)
    gc.collect()
    after = sum(x.nbytes for x in gc.get_objects() if isinstance(x, np.ndarray))
    assert after <= before + 32768


@pytest.mark.parametrize("threads", [1, 3, 64])
def test_any_number_of_threads_gives_the_same_tree(checkpoint: Path, threads: int) -> None:
    catalog = tx.open(checkpoint)
    one = tx.restore(catalog, catalog.template(), threads=1)
    other = tx.restore(catalog, catalog.template(), threads=threads)
    assert all(
        bool((a == b).all()) if hasattr(a, "all") else a == b
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )
