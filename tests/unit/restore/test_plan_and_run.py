"""`plan` and `run`: the cost of a restore, and arguments that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import templax as tx
from helpers import CKPT, CORPUS, assert_same_tree, enable_x64
from stored_leaves import save_leaves
from templax.storage import Local, Memory
from templax.testing import Watched

RAW = CORPUS / "orbax-0.12.8-uncompressed" / "ckpt"


def test_a_plan_reads_no_array_and_can_be_run_repeatedly() -> None:
    source = Watched(Local(RAW))
    catalog = tx.open(source)
    template = catalog.template()
    del source.reads[:]
    made = tx.plan(catalog, template)
    assert source.reads == []
    once, again = tx.run(made), tx.run(made)
    assert_same_tree(once, tx.restore(RAW, template))
    assert_same_tree(once, again)
    assert len(source.reads) == 2 * made.requests


def test_a_plan_states_the_cost_of_a_restore() -> None:
    source = Watched(Local(CKPT))
    catalog = tx.open(source)
    del source.reads[:]
    made = tx.plan(catalog, catalog.template())
    tx.run(made)
    assert made.requests == len(source.reads)
    assert made.read_bytes == sum(stop - start for _, start, stop in source.reads)
    assert 0 < made.useful_bytes <= made.read_bytes
    text = str(made)
    assert text.splitlines()[0] == f"restore of 14 leaves from {CKPT}"
    assert f"bytes read          {made.read_bytes:>14,}  as stored" in text
    assert "not verifiable: `state.params.big`" in text


def test_restoring_one_leaf_reads_only_its_bytes_and_the_index() -> None:
    source = Watched(Local(RAW))
    big = jax.ShapeDtypeStruct((128, 64), jnp.float32)
    tx.restore(tx.open(source), {"big": big}, at="state.params", extra="ignore")
    data = [(key, stop - start) for key, start, stop in source.reads if "/d/" in key]
    assert sum(nbytes for _, nbytes in data) <= 128 * 64 * 4 + 4096  # with the index node


def test_restoring_one_leaf_reads_no_byte_of_another(tmp_path: Path) -> None:
    path, tree = save_leaves(tmp_path, 150, (100, 100))
    source = Watched(Local(path))
    catalog = tx.open(source)
    del source.reads[:]
    template = {"l77": jax.ShapeDtypeStruct((100, 100), jnp.float32)}
    restored = tx.restore(catalog, template, extra="ignore")
    assert_same_tree(restored["l77"], tree["l77"], kinds=False)
    (chunk,) = catalog.locate([catalog.leaves["l77"]])["l77"]
    assert source.reads == [("", chunk.extent.start, chunk.extent.stop)]


def test_a_plan_for_a_template_file_cannot_be_run(tmp_path: Path) -> None:
    from templax._template.json_file import template_from_catalog

    made = tx.plan(RAW, template_from_catalog(tx.open(RAW)))
    assert made.placed_bytes > 32768
    with pytest.raises(tx.UsageError, match="a template from a file"):
        tx.run(made)
    with pytest.raises(tx.UsageError, match="Expected a Plan"):
        tx.run(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"threads": 0}, "Expected threads= an int of at least 1, got 0"),
        ({"threads": True}, "Expected threads= an int of at least 1, got True"),
        ({"memory": 0}, "Expected memory= an int of at least 1, got 0"),
        ({"memory": "2GiB"}, "Expected memory= an int of at least 1, got '2GiB'"),
        ({"verify": True}, 'Expected verify="available", "required" or "off", got True'),
        ({"mapped": "yes"}, "Expected mapped=True or False, got 'yes'"),
        (
            {"share_reads": True},
            'Expected share_reads="auto", "always" or "never", got True',
        ),
    ],
)
def test_invalid_options_are_refused(options: Any, said: str) -> None:
    with pytest.raises(tx.UsageError) as caught:
        tx.restore(RAW, {}, **options)
    assert str(caught.value) == said


def test_reprs_are_short() -> None:
    catalog = tx.open(RAW)
    template = catalog.template()
    assert repr(catalog) == f"Catalog({str(RAW)!r}, orbax, 14 leaves)"
    assert repr(tx.plan(RAW, template)) == f"Plan({str(RAW)!r}, 14 leaves, 34,404 bytes)"
    assert repr(tx.check(RAW, template)) == f"Match({str(RAW)!r}, 14 leaves matched, ok)"
    wrong = tx.check(RAW, {"no": jax.ShapeDtypeStruct((), jnp.float32)}, extra="ignore")
    assert repr(wrong) == f"Match({str(RAW)!r}, 0 leaves matched, 1 mismatch)"


def test_a_rename_of_an_absent_name_is_refused() -> None:
    """With `missing=` or `extra="ignore"` a misspelled name would go unnoticed."""
    template = {"weight": jax.ShapeDtypeStruct((16, 8), jnp.float32)}
    options: Any = {"at": "state.params.dense", "extra": "ignore"}
    recipe = tx.Recipe(lambda: {"weight": jnp.zeros((16, 8))})
    with pytest.raises(tx.UsageError) as caught:
        tx.restore(RAW, template, rename={"kernell": "weight"}, missing=recipe, **options)
    assert str(caught.value) == (
        f"Expected rename= of what {RAW} has under `state.params.dense`, got `kernell`;"
        " nearest: `kernel`"
    )
    restored = tx.restore(RAW, template, rename={"kernel": "weight"}, missing=recipe, **options)
    assert restored["weight"].any()


@pytest.mark.parametrize("template", [object(), [len, len], {"init": jnp.zeros}])
def test_a_template_without_arrays_is_refused(template: Any) -> None:
    """A model or its `init` in place of its parameters would be returned unchanged."""
    with pytest.raises(tx.UsageError, match="Expected a template with arrays, got "):
        tx.restore(RAW, template, extra="ignore")


def test_a_plan_made_with_x64_cannot_be_run_without() -> None:
    tree = {"w": np.array([2**40, 2**40 + 1])}
    recipe = Memory({"": encode_safetensors(tree)})
    with enable_x64(True):
        plan = tx.plan(recipe, {"w": jax.ShapeDtypeStruct((2,), np.dtype("int64"))})
        assert tx.run(plan)["w"].tolist() == [2**40, 2**40 + 1]
    with pytest.raises(tx.UsageError, match="jax_enable_x64 as it was when the plan was made"):
        tx.run(plan)


def encode_safetensors(tree: dict[str, np.ndarray]) -> bytes:
    from safetensors.numpy import save

    return save(tree)
