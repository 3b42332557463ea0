"""Files of `equinox.tree_serialise_leaves`: their leaves get the names of the template's."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import templax as tx
from templax.storage import Memory


class Model(eqx.Module):
    mlp: eqx.nn.MLP
    scale: jax.Array
    counts: np.ndarray
    steps: int
    rate: float
    frozen: bool
    activation: Any = jax.nn.relu
    name: str = "model"
    size: int = eqx.field(static=True, default=4)


def make_model(seed: int = 0, width: int = 4, depth: int = 1) -> Model:
    mlp = eqx.nn.MLP(2, 3, width, depth, key=jax.random.key(seed))
    scale = jnp.full(3, seed + 0.5, jnp.bfloat16)
    return Model(mlp, scale, np.arange(4, dtype="i4") + seed, seed + 7, 0.5 + seed, seed == 0)


def write(path: Path, tree: Any, line: bytes = b"") -> Path:
    with path.open("wb") as file:
        file.write(line)
        eqx.tree_serialise_leaves(file, tree)
    return path


def dump(tree: Any) -> bytes:
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, tree)
    return file.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("line", [b"", b'{"width": 4, "sizes": [1, 2]}\n', b"[3]\r\n"])
def test_a_module_is_restored_as_equinox_restores_it(tmp_path: Path, line: bytes) -> None:
    model = make_model()
    path = write(tmp_path / "model.eqx", model, line)
    got = tx.restore(path, make_model(1))
    with path.open("rb") as file:
        file.seek(len(line))
        want = eqx.tree_deserialise_leaves(file, make_model(1))
    assert eqx.tree_equal(got, want)
    assert (got.steps, got.rate, got.frozen, got.activation) == (7, 0.5, True, jax.nn.relu)


def test_the_line_of_json_is_metadata_and_the_evidence_says_so(tmp_path: Path) -> None:
    tree = [jnp.ones(2), jnp.zeros(3)]
    catalog = tx.open(write(tmp_path / "a", tree, b'{"width": 8}\n'))
    assert catalog.metadata == {"hyperparameters": {"width": 8}}
    assert (catalog.format, catalog.evidence) == ("equinox", "arrays after a line of JSON")
    catalog = tx.open(write(tmp_path / "b", tree))
    assert (catalog.metadata, catalog.evidence) == ({}, "arrays one after the other")
    assert [entry.name for entry in catalog.entries] == ["0", "1"]
    assert [leaf.shape for leaf in tx.restore(catalog, catalog.template())] == [(2,), (3,)]


def test_a_file_of_the_arrays_alone_keeps_the_numbers_of_the_template(tmp_path: Path) -> None:
    model = make_model()
    path = write(tmp_path / "a.eqx", eqx.filter(model, eqx.is_array))
    match = tx.check(path, make_model(1))
    assert match.ok
    assert match.kept == ("steps", "rate", "frozen", "name")
    got = tx.restore(path, make_model(1))
    assert eqx.tree_equal(eqx.filter(got, eqx.is_array), eqx.filter(model, eqx.is_array))
    assert got.steps == 8


def test_the_first_leaf_that_differs_is_named_with_its_position(tmp_path: Path) -> None:
    path = write(tmp_path / "a.eqx", make_model())
    with pytest.raises(tx.TemplateError) as caught:
        tx.restore(path, eqx.filter_eval_shape(make_model, 0, width=5))
    assert str(caught.value).split("\n")[1:] == [
        "  Expected shape `(5, 2)`, got `(4, 2)` - at `mlp.layers.0.weight`;"
        " leaf 0 of the file and the first that differs",
        "  Expected shape `(5,)`, got `(4,)` - at `mlp.layers.0.bias`; leaf 1 of the file",
        "  Expected shape `(3, 5)`, got `(3, 4)` - at `mlp.layers.1.weight`; leaf 2 of the file",
    ]


def test_other_numbers_of_leaves_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.eqx", [jnp.ones(2), jnp.ones(3)])
    more = tx.check(path, {"a": jnp.ones(2), "b": jnp.ones(3), "c": jnp.ones(4)})
    assert [m.fact for m in more.mismatches] == [
        "Expected a leaf, found none - at `c`; the first that differs; the file has 2 leaves, the"
        " template 3"
    ]
    fewer = tx.check(path, {"a": jnp.ones(2)})
    assert [m.fact for m in fewer.mismatches] == [
        "Expected no leaf, found `float32(3,)` - at `1`; the first that differs; the file has 2"
        " leaves, the template 1"
    ]
    assert tx.check(path, {"a": jnp.ones(2)}, extra="ignore").ignored == ("1",)


def test_names_that_the_caller_writes_are_positions(tmp_path: Path) -> None:
    path = write(tmp_path / "a.eqx", [jnp.ones(2), jnp.zeros(3)])
    template = {"b": jnp.ones(3), "w": jnp.ones(2)}
    assert not tx.check(path, template)
    got = tx.restore(path, template, rename={"0": "w", "1": "b"})
    assert got["b"].tolist() == [0, 0, 0]


def test_a_skipped_leaf_takes_a_position(tmp_path: Path) -> None:
    path = write(tmp_path / "a.eqx", [jnp.ones(2), jnp.zeros(3)])
    got = tx.restore(path, [..., jnp.ones(3)])
    assert got[0] is ...
    assert got[1].tolist() == [0, 0, 0]


def test_a_file_supplies_what_another_checkpoint_lacks(tmp_path: Path) -> None:
    path = write(tmp_path / "a.eqx", {"b": jnp.zeros(3), "w": jnp.ones(2)})
    tx.save(tmp_path / "ckpt", {"w": jnp.full(2, 5.0)})
    template = {"b": jnp.ones(3), "w": jnp.ones(2)}
    got = tx.restore(tmp_path / "ckpt", template, missing=path)
    assert (got["b"].tolist(), got["w"].tolist()) == ([0, 0, 0], [5, 5])


def test_bytes_without_a_dtype_are_read_as_the_template_says(tmp_path: Path) -> None:
    tree = [jnp.arange(3, dtype=jnp.float8_e4m3fn), jnp.arange(3, dtype=jnp.bfloat16)]
    got = tx.restore(write(tmp_path / "a.eqx", tree), tree)
    assert eqx.tree_equal(got, tree)
    assert tx.open(tmp_path / "a.eqx").leaves["1"].dtype == ml_dtypes.bfloat16


def test_damage_names_the_position_and_the_bytes() -> None:
    data = dump([jnp.ones(2), jnp.zeros(3)])
    for wrong, what in [
        (data[:-1], r"Expected 12 bytes for float32\(3,\), got 11 - at `1`, bytes 136-"),
        (data + b"\0\0", "Expected an array in numpy's format, got other bytes - at `2`"),
        (data + b"\x93NUMPY\1\0", "got other bytes - at `2`"),
        (b"{x}\n" + data, "The line before the arrays is not JSON"),
        (b'{"a": 1, "a": 2}\n' + data, "not JSON: .*a"),
        (b"[" * 5000 + b"]" * 5000 + b"\n" + data, "not JSON"),
    ]:
        with pytest.raises(tx.Corrupted, match=what):
            tx.open(Memory({"": wrong}))


def test_pickled_objects_are_refused_by_position() -> None:
    file = io.BytesIO()
    np.save(file, np.zeros(2))
    np.save(file, np.array([{}], object), allow_pickle=True)
    with pytest.raises(tx.Unsupported, match=r"no pickled objects.* at `1`"):
        tx.open(Memory({"": file.getvalue()}))


@pytest.mark.parametrize("before", [b"", b"not json\n", b'{"a": 1}', b'{"a": 1}\n\n'])
def test_what_only_looks_like_one_is_none(before: bytes) -> None:
    file = io.BytesIO()
    np.save(file, np.zeros(2))
    source = Memory({"": before + file.getvalue()})
    if before:
        with pytest.raises(tx.UnknownFormat, match="a file of another kind"):
            tx.open(source)
    else:
        assert tx.open(source).format == "npy"


def test_the_report_says_that_leaves_are_taken_in_order(tmp_path: Path) -> None:
    with (tmp_path / "m.eqx").open("wb") as file:
        eqx.tree_serialise_leaves(file, (np.ones(3), np.zeros(3)))
    report = str(tx.check(tmp_path / "m.eqx", {"b": np.zeros(3), "w": np.zeros(3)}))
    assert "its leaves are taken in the order of the template's" in report


class Grown(eqx.Module):
    rate: float
    scale: jax.Array
    shift: jax.Array


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_file_of_a_module_that_has_grown_since_lacks_its_last_leaves(
    tmp_path: Path, dtype: str
) -> None:
    # It has as many leaves as the module has arrays.
    path = write(tmp_path / "model.eqx", (0.25, jnp.asarray(7.0, dtype)))
    template = Grown(0.5, jnp.asarray(1.0), jnp.asarray(2.0))
    with pytest.raises(tx.TemplateError) as caught:
        tx.restore(path, template)
    (mismatch,) = caught.value.mismatches
    assert (mismatch.problem, mismatch.name) == ("missing", "shift")
    assert "the file has 2 leaves, the template 3" in str(caught.value)


def test_a_file_of_the_arrays_alone_may_be_cast(tmp_path: Path) -> None:
    arrays = jnp.asarray(7.0, jnp.bfloat16), jnp.asarray(8.0, jnp.bfloat16)
    path = write(tmp_path / "model.eqx", arrays)
    with pytest.warns(tx.CastWarning):
        got = tx.restore(path, Grown(0.5, jnp.asarray(1.0), jnp.asarray(2.0)))
    assert (got.rate, float(got.scale), float(got.shift)) == (0.5, 7, 8)
