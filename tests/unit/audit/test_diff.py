"""`diff`: what differs is listed, across formats and layouts, and nothing else is."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

import templax as tx
from helpers import CORPUS, copy_case, count_examples, flip_bit
from templax.testing import Watched, strategies

CKPT = CORPUS / "orbax-0.12.8-default" / "ckpt"

SAME = ["orbax-0.12.8-noocdbt", "orbax-0.12.8-uncompressed", "orbax-0.12.8-zarr3",
        "orbax-0.12.8-sharded8", "orbax-0.4.4-default"]  # fmt: skip
"""Cases of the corpus with the tree of the default one, in other layouts."""


def save_npz(path: Path, tree: dict[str, np.ndarray]) -> Path:
    np.savez(path.with_suffix(".npz"), **tree)
    return path.with_suffix(".npz")


def save_safetensors(path: Path, tree: dict[str, np.ndarray]) -> Path:
    save_file(tree, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


def save_msgpack(path: Path, tree: dict[str, np.ndarray]) -> Path:
    from flax import serialization

    path.with_suffix(".msgpack").write_bytes(serialization.to_bytes(tree))
    return path.with_suffix(".msgpack")


def save_templax(path: Path, tree: Any) -> Path:
    tx.save(path, tree)
    return path


WRITERS: list[Callable[[Path, dict[str, np.ndarray]], Path]] = [
    save_npz,
    save_safetensors,
    save_msgpack,
    save_templax,
]


@pytest.mark.parametrize("case", SAME)
def test_layouts_of_one_tree_are_identical(case: str) -> None:
    found = tx.diff(CKPT, CORPUS / case / "ckpt")
    assert found.identical, str(found)
    assert not found.differs
    assert (found.by_fingerprint, found.by_reading) == (0, len(found.leaves))


@pytest.mark.parametrize("write_a", WRITERS)
@pytest.mark.parametrize("write_b", WRITERS)
def test_formats_are_compared_with_each_other(tmp_path: Path, write_a: Any, write_b: Any) -> None:
    rng = np.random.default_rng(0)
    a = {"w": rng.random((50, 7), np.float32), "n": np.arange(9), "e": np.zeros((0, 3))}
    b = {name: values.copy() for name, values in a.items()}
    path = write_a(tmp_path / "a", a)
    assert tx.diff(path, write_b(tmp_path / "same", b)).identical
    b["w"][3, 4] += 1
    found = tx.diff(path, write_b(tmp_path / "b", b))
    (leaf,) = found.differing
    assert (leaf.name, leaf.differences, leaf.basis) == ("w", ("values",), "read")
    assert leaf.values is not None
    assert (leaf.values.differing, leaf.values.max_abs) == (1, pytest.approx(1, abs=1e-6))


@pytest.mark.slow
@count_examples(40)
@given(strategies.trees(), strategies.trees(), st.data())
def test_exactly_what_was_changed_is_listed(tree: Any, other: Any, data: Any) -> None:
    """Of random trees: a leaf is listed if and only if a fingerprint of it would be another one."""
    if data.draw(st.booleans()):
        other = tree
    with tempfile.TemporaryDirectory() as directory:
        paths = [Path(directory, name) for name in "ab"]
        saved = [tx.save(path, each) for path, each in zip(paths, (tree, other), strict=True)]
        catalogs = [tx.open(path) for path in paths]
        recorded = [tx.fingerprint(catalog) for catalog in catalogs]
        told = tx.diff(*paths)
        read = tx.diff(*paths, fingerprints=False)
    assert saved
    facts = [
        {
            name: (entry.kind == "string", entry.dtype_name, entry.user_shape, r.leaves[name])
            for name, entry in catalog.leaves.items()
        }
        for catalog, r in zip(catalogs, recorded, strict=True)
    ]
    names = facts[0].keys() | facts[1].keys()
    wanted = {name for name in names if facts[0].get(name) != facts[1].get(name)}
    for found in (told, read):
        assert {leaf.name for leaf in found.differing} == wanted
        assert found.differs == bool(wanted)
        assert found.identical == (not wanted)
        assert len(found.leaves) == len(names)
        assert str(found)
    assert read.by_fingerprint == 0


def test_equal_fingerprints_spare_reading(tmp_path: Path) -> None:
    tree = {"same": np.arange(1000.0), "other": np.arange(1000.0)}
    tx.save(tmp_path / "a", tree)
    tx.save(tmp_path / "b", {**tree, "other": np.zeros(1000)})
    watched: list[Any] = [Watched(tx.storage.Local(str(tmp_path / name))) for name in "ab"]
    catalogs = [tx.open(source) for source in watched]
    found = tx.diff(*catalogs)
    assert (found.by_fingerprint, found.by_reading) == (1, 1)
    by_name = {leaf.name: leaf for leaf in found.leaves}
    assert by_name["same"].basis == "fingerprint"
    assert by_name["same"].values is None
    assert by_name["other"].values is not None
    assert by_name["other"].values.max_abs == 999
    assert "1 leaf is identical: 1 by fingerprint" in str(found)
    found = tx.diff(*catalogs, values=False)
    assert [leaf.name for leaf in found.differing] == ["other"]
    assert found.differing[0].values is None
    assert "the recorded fingerprints differ" in str(found)


def test_without_values_nothing_is_called_identical() -> None:
    found = tx.diff(CKPT, CORPUS / SAME[0] / "ckpt", values=False)
    assert not found.differs
    assert not found.identical
    assert "no difference found, but the values of 14 of 14 leaves were not compared" in str(found)


def test_damage_beneath_an_equal_fingerprint_is_found_by_reading(tmp_path: Path) -> None:
    for name in "ab":
        tx.save(tmp_path / name, {"w": np.arange(5000.0)})
    data = max((tmp_path / "b" / "d").iterdir(), key=lambda file: file.stat().st_size)
    data.write_bytes(flip_bit(data.read_bytes(), 8000))
    assert tx.diff(tmp_path / "a", tmp_path / "b").identical
    with pytest.raises(tx.Corrupted) as caught:
        tx.diff(tmp_path / "a", tmp_path / "b", fingerprints=False)
    assert caught.value.leaf == "w"
    assert caught.value.file == f"d/{data.name}"
    assert f"in B, {tmp_path}/b - at `w`" in str(caught.value)


def test_a_cut_file_names_the_checkpoint(tmp_path: Path) -> None:
    damaged = CORPUS / "damaged-data_truncated" / "ckpt"
    for a, b, label in ((damaged, CKPT, "A"), (CKPT, damaged, "B")):
        with pytest.raises(tx.Corrupted, match=f" in {label}, .*damaged-data_truncated") as caught:
            tx.diff(a, b)
        assert caught.value.leaf == "state.params.big"
        assert caught.value.file is not None


def test_an_unfinished_save_is_refused_unless_it_was_opened_so(tmp_path: Path) -> None:
    unfinished = copy_case("damaged-uncommitted", tmp_path / "ckpt")
    with pytest.raises(tx.Uncommitted):
        tx.diff(unfinished, CKPT)


def test_shapes_dtypes_and_kinds_are_told(tmp_path: Path) -> None:
    tx.save(
        tmp_path / "a",
        {
            "shape": np.zeros((2, 3), np.float32),
            "dtype": np.array([1, 2, 3], np.float32),
            "inexact": np.array([1], np.int64),
            "kind": "text",
            "text": "one",
            "key": jax.random.key(0),
            "mine": np.zeros(1, np.float32),
        },
    )
    tx.save(
        tmp_path / "b",
        {
            "shape": np.zeros((3, 2), np.float32),
            "dtype": np.array([1, 2, 4], np.float16),
            "inexact": np.array([1], np.float64),
            "kind": np.zeros(2, np.float32),
            "text": "two",
            "key": jax.random.key(0, impl="rbg"),
            "yours": np.zeros((1, 2), np.int32),
        },
    )
    found = tx.diff(tmp_path / "a", tmp_path / "b")
    lines = [line.split("  ", 2)[1:] for line in str(found).splitlines()[3:]]
    assert [(name.strip(), text.strip()) for name, text in lines] == [
        ("mine", "only in A: float32(1,)"),
        ("yours", "only in B: int32(1, 2)"),
        ("kind", "a string in A, an array in B; values not compared"),
        ("shape", "shape (2, 3) in A, (3, 2) in B; values not compared"),
        ("inexact", "int64 in A, float64 in B; values not compared, as no dtype holds all values"
         " of both"),
        ("key", "key<threefry2x32> in A, key<rbg> in B; values not compared"),
        ("dtype", "float32 in A, float16 in B; as float32, 1 of 3 elements differ; max abs 1,"
         " max rel 0.25, cosine 0.991460"),
        ("text", '"one" in A, "two" in B'),
    ]  # fmt: skip


def test_a_cast_without_loss_differs_in_its_dtype_only(tmp_path: Path) -> None:
    values = np.arange(100, dtype=np.float32)
    a = save_safetensors(tmp_path / "a", {"w": values})
    b = save_safetensors(tmp_path / "b", {"w": values.astype(np.float16)})
    (leaf,) = tx.diff(a, b).differing
    assert leaf.differences == ("dtype",)
    assert "as float32, all values are equal" in str(leaf)


def test_the_most_different_leaves_come_first(tmp_path: Path) -> None:
    ones = np.ones(100, np.float32)
    changes = {"tiny": 1 + 1e-6, "large": 10.0, "small": 1.01, "same": 1.0, "nan": np.nan}
    a = save_safetensors(tmp_path / "a", {name: ones.copy() for name in changes})
    tree = {name: np.append(ones[1:], np.float32(x)) for name, x in changes.items()}
    found = tx.diff(a, save_safetensors(tmp_path / "b", tree))
    assert [leaf.name for leaf in found.leaves] == ["nan", "large", "small", "tiny", "same"]
    assert "NaN 0 in A, 1 in B" in str(found)


def test_names_are_mapped_as_in_a_restore(tmp_path: Path) -> None:
    w = np.ones((2, 2), np.float32)
    tx.save(tmp_path / "a", {"state": {"params": {"layers": [{"w": w}]}, "step": 3}})
    b = save_safetensors(tmp_path / "b", {"model.blocks.0.w": w, "head": w})
    found = tx.diff(tmp_path / "a", b, at="state.params", at_b="model", rename={"layers": "blocks"})
    assert found.identical
    assert [(leaf.name, leaf.a and leaf.a.name) for leaf in found.leaves] == [
        ("blocks.0.w", "state.params.layers.0.w")
    ]
    assert tx.diff(
        tmp_path / "a",
        b,
        at="state.params",
        at_b="model",
        rename=lambda name: name.replace("layers", "blocks"),
    ).identical


def test_lists_and_dicts_of_numbers_have_the_same_names(tmp_path: Path) -> None:
    tx.save(tmp_path / "a", {"layers": [np.zeros(2), np.ones(2)]})
    tx.save(tmp_path / "b", {"layers": {"0": np.zeros(2), "1": np.ones(2)}})
    assert tx.diff(tmp_path / "a", tmp_path / "b").identical


def test_names_that_several_leaves_share_are_not_compared(tmp_path: Path) -> None:
    tx.save(tmp_path / "a", {"x": np.zeros(2), "y": np.zeros(2), "z": np.zeros(2)})
    found = tx.diff(tmp_path / "a", tmp_path / "a", rename={"x": "y"})
    assert [(leaf.name, leaf.differences) for leaf in found.leaves] == [
        ("x", ("only_b",)),
        ("y", ("ambiguous",)),
        ("z", ()),
    ]
    assert not found.identical


def test_shardings_and_empty_values_are_remarks(tmp_path: Path) -> None:
    found = tx.diff(CKPT, CORPUS / "orbax-0.12.8-sharded8" / "ckpt")
    assert found.shardings
    assert not found.differs
    assert "saved with different shardings" in str(found)
    tx.save(tmp_path / "a", {"w": np.zeros(2), "opt": {}})
    tx.save(tmp_path / "b", {"w": np.zeros(2)})
    found = tx.diff(tmp_path / "a", tmp_path / "b")
    assert (found.identical, found.empties) == (True, ("opt",))
    assert "empty values differ at `opt`" in str(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at": "stat"}, "Expected at= a subtree of .*, got `stat`; nearest: `state`"),
        ({"at_b": "nothing"}, "Expected at_b= a subtree"),
        ({"at_b": 3}, "Expected at_b= the name of a subtree"),
        ({"rename": {"nothing": "x"}}, "Expected rename= of what"),
        ({"rename": 3}, "Expected rename="),
        ({"values": "no"}, "Expected values=True or False"),
        ({"fingerprints": 1}, "Expected fingerprints=True or False"),
        ({"threads": 0}, "Expected threads="),
        ({"on_progress": 3}, "Expected on_progress="),
    ],
)
def test_invalid_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(tx.UsageError, match=message):
        tx.diff(CKPT, CKPT, **options)


def test_progress_ends_with_all_bytes() -> None:
    seen: list[tuple[int, int]] = []
    tx.diff(CKPT, CKPT, on_progress=lambda done, total: seen.append((done, total)))
    total = 2 * tx.open(CKPT).nbytes
    strings = 2 * sum(e.nbytes for e in tx.open(CKPT).entries if e.kind == "string")
    assert seen[-1] == (total - strings, total - strings)


def test_a_result_is_data() -> None:
    found = tx.diff(CKPT, CORPUS / "damaged-raw_bitflip" / "ckpt")
    (leaf,) = found.differing
    assert leaf.values is not None
    assert asdict(leaf.values)["differing"] == 1
    assert repr(found).endswith("1 of 14 leaves differ)")


def test_bytes_without_a_dtype_have_no_magnitudes(tmp_path: Path) -> None:
    for name, value in (("a", 1), ("b", 2)):
        np.savez(tmp_path / f"{name}.npz", w=np.full(3, value, ml_dtypes.float8_e4m3fn))
    text = str(tx.diff(tmp_path / "a.npz", tmp_path / "b.npz"))
    assert "3 of 3 elements differ, compared as bytes" in text
    assert "max abs" not in text


def test_maxima_are_said_to_be_those_of_finite_elements(tmp_path: Path) -> None:
    for name, value in (("a", np.inf), ("b", -np.inf)):
        np.savez(tmp_path / f"{name}.npz", w=np.array([1, value]))
    text = str(tx.diff(tmp_path / "a.npz", tmp_path / "b.npz"))
    assert "1 of 2 elements differ" in text
    assert "(of the elements that are finite in both)" in text


def test_leaves_that_no_decoder_is_for_are_named_as_not_compared_and_others_are_compared() -> None:
    path = CORPUS / "gguf" / "not-read.gguf"
    found = tx.diff(path, path)
    compared = {leaf.name for leaf in found.leaves if leaf.basis == "read"}
    assert (compared, found.differs, found.identical) == ({"norm.weight"}, False, False)
    notes = {leaf.name: leaf.note for leaf in found.leaves}
    assert notes["TQ1_0.weight"] == (
        "values not compared: templax does not read tensors quantised as `TQ1_0`"
    )
    assert f"  {notes['TQ1_0.weight']} (`TQ1_0.weight`)\n" in str(found)


def test_complex_numbers_of_which_a_part_is_nan_are_compared_in_the_other(tmp_path: Path) -> None:
    nan = np.nan
    a = np.array([complex(nan, 1), complex(nan, 1), complex(1, nan), complex(nan, nan)])
    b = np.array([complex(nan, 1), complex(nan, 2), complex(nan, 1), complex(nan, nan)])
    tx.save(tmp_path / "a", {"x": a})
    tx.save(tmp_path / "b", {"x": b})
    found = tx.diff(tmp_path / "a", tmp_path / "b")
    assert "2 of 4 elements differ;" in str(found)
    assert "differ in bits only" not in str(found)


def test_a_container_that_is_empty_in_another_way_is_named_once(tmp_path: Path) -> None:
    tx.save(tmp_path / "a", {"w": np.ones(2), "e": []})
    tx.save(tmp_path / "b", {"w": np.ones(2), "e": {}})
    found = tx.diff(tmp_path / "a", tmp_path / "b")
    assert found.empties == ("e",)
