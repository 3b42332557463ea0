"""Directories of safetensors files: the index decides, and what it says is checked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import templax as tx
from helpers import CORPUS
from limits import run_limited
from opening import read_refusal

INDEX = "model.safetensors.index.json"

FIRST, SECOND = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))


def write_set(directory: Path, weight_map: Any = None, **index: Any) -> Path:
    """Two files, and an index of them as Hugging Face's libraries write it."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file({"a.w": np.arange(6, dtype="f4"), "a.b": np.ones(3, "f2")}, directory / FIRST)
    save_file({"c": np.arange(4)}, directory / SECOND, metadata={"format": "pt"})
    names = {"a.w": FIRST, "a.b": FIRST, "c": SECOND} if weight_map is None else weight_map
    text = json.dumps({"metadata": {"total_size": 62}, "weight_map": names, **index})
    (directory / INDEX).write_text(text)
    return directory


@pytest.mark.parametrize("name", [".", INDEX])
def test_a_set_is_restored_from_its_directory_or_its_index(tmp_path: Path, name: str) -> None:
    path = write_set(tmp_path / "model") / name
    (tmp_path / "model" / "config.json").write_text("{}")
    catalog = tx.open(path)
    assert (catalog.format, catalog.evidence) == ("safetensors", f"`{INDEX}`")
    assert catalog.metadata == {"total_size": 62, "format": "pt"}
    restored = tx.restore(catalog, catalog.template())
    want = load_file(tmp_path / "model" / FIRST) | load_file(tmp_path / "model" / SECOND)
    for name, value in {"a.w": restored["a"]["w"], "a.b": restored["a"]["b"]}.items():
        assert np.asarray(value).tobytes() == want[name].tobytes()
    assert np.asarray(restored["c"]).tobytes() == want["c"].tobytes()
    assert tx.verify(path).damages == ()


def test_metadata_in_which_files_differ_is_listed_whole(tmp_path: Path) -> None:
    path = write_set(tmp_path / "model")
    save_file({"a.w": np.ones(6, "f4"), "a.b": np.ones(3, "f2")}, path / FIRST, {"format": "np"})
    assert tx.open(path).metadata == {"total_size": 62, "format": ["np", "pt"]}


def test_a_tensor_that_the_index_does_not_name_is_listed_too(tmp_path: Path) -> None:
    path = write_set(tmp_path / "model", {"a.w": FIRST, "c": SECOND})
    assert set(tx.open(path).leaves) == {"a.w", "a.b", "c"}


def test_of_a_tensor_in_two_files_the_one_that_the_index_names_is_read(tmp_path: Path) -> None:
    path = write_set(tmp_path / "model")
    save_file({"c": np.full(4, 9), "a.b": np.zeros(3, "f2")}, path / SECOND)
    restored = tx.restore(path, {"a": {"b": np.zeros(3, "f2")}}, extra="ignore")
    assert restored["a"]["b"].tolist() == [1, 1, 1]
    write_set(path, {"a.w": FIRST, "c": SECOND})
    save_file({"c": np.full(4, 9), "a.b": np.zeros(3, "f2")}, path / SECOND)
    with pytest.raises(tx.Corrupted, match=r"one tensor of a name, found it in .* - at `a.b`"):
        tx.open(path)


@pytest.mark.parametrize(
    ("weight_map", "said"),
    [
        ({"a.w": FIRST, "c": "other.safetensors"}, f"file that `{INDEX}` names, found none"),
        ({"a.w": FIRST, "c": SECOND, "d": SECOND}, "1 are missing: `?d"),
        ({"a.w": "../x.safetensors"}, "Expected a file of this directory"),
        ({"a.w": f"./{FIRST}"}, "Expected a file of this directory"),
        ({"a.w": f"/{FIRST}"}, "Expected a file of this directory"),
        ({"a.w": ""}, "Expected a file of this directory"),
        ({"a.w": "x\0"}, "Expected a file of this directory"),
        ({"a.w": 1}, "index is unreadable"),
        ([], "index is unreadable"),
    ],
)
def test_an_index_that_contradicts_the_files_is_damage(
    tmp_path: Path, weight_map: Any, said: str
) -> None:
    path = write_set(tmp_path / "model", weight_map)
    with pytest.raises(tx.Corrupted, match=said):
        tx.open(path / INDEX)


@pytest.mark.parametrize(
    "text", ['{"weight_map": {"c": "a", "c": "b"}}', '{"weight_map": {"c": "\xff"}}', "{}", "{"]
)
def test_an_unreadable_index_is_damage_and_no_evidence(tmp_path: Path, text: str) -> None:
    path = write_set(tmp_path / "model")
    (path / INDEX).write_bytes(text.encode("latin-1"))
    with pytest.raises(tx.Corrupted, match="index is unreadable"):
        tx.open(path / INDEX)
    hint = f'open "{path / FIRST}" or "{path / SECOND}"'
    said = read_refusal(path, tx.Corrupted)
    assert said.startswith("The index is unreadable: ")
    assert said.endswith(f" - file `{INDEX}`; hint: {hint}")


def test_a_damaged_file_of_a_set_is_named(tmp_path: Path) -> None:
    path = write_set(tmp_path / "model")
    (path / SECOND).write_bytes((path / SECOND).read_bytes()[:-1])
    with pytest.raises(tx.Corrupted, match=SECOND):
        tx.open(path)


def test_a_set_beside_another_file_is_named_but_not_opened_by_itself(tmp_path: Path) -> None:
    path = write_set(tmp_path / "model")
    shutil.copy(CORPUS / "safetensors-official" / "model.safetensors", path / "whole.safetensors")
    message = read_refusal(path)
    assert f'"{path / INDEX}"' in message
    assert f'"{path / "whole.safetensors"}"' in message
    assert len(tx.open(path / INDEX).leaves) == 3


def test_a_directory_with_one_file_is_that_file(tmp_path: Path) -> None:
    save_file({"w": np.arange(3.0)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    catalog = tx.open(tmp_path)
    assert (list(catalog.leaves), catalog.evidence) == (["w"], "`model.safetensors`")
    assert tx.restore(tmp_path, {"w": np.zeros(3)})["w"].tolist() == [0, 1, 2]


def test_a_file_named_safetensors_that_is_none_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("x")
    assert "got a directory of `model.safetensors`" in read_refusal(tmp_path)


def test_an_index_that_names_very_many_files_takes_little_time(tmp_path: Path) -> None:
    path = write_set(tmp_path / "model")
    names = {f"t{i}": f"{'s/' * (i % 50)}f{i}" for i in range(9_000)}
    (path / INDEX).write_text(json.dumps({"weight_map": names}))
    assert (path / INDEX).stat().st_size < 10**6
    found = run_limited(f"tx.open({str(path / INDEX)!r})", cwd=tmp_path)
    assert found.error is not None
    assert found.error.startswith("Corrupted: ")


def test_a_fingerprint_is_that_of_the_file_that_the_index_names(tmp_path: Path) -> None:
    for step in (7, 9):
        tx.save(tmp_path / str(step), {"t": np.full(4, step, "f4")}, format="safetensors")
    path = tmp_path / "set"
    path.mkdir()
    for step, name in ((7, FIRST), (9, SECOND)):
        shutil.copy(tmp_path / str(step) / "model.safetensors", path / name)
    (path / INDEX).write_text(json.dumps({"weight_map": {"t": FIRST, "u": SECOND}}))
    tx.save(tmp_path / "9u", {"t": np.full(4, 9, "f4"), "u": np.ones(2)}, format="safetensors")
    shutil.copy(tmp_path / "9u" / "model.safetensors", path / SECOND)
    (differing,) = tx.diff(path, tmp_path / "9u").differing
    assert (differing.name, differing.basis) == ("t", "read")
    assert tx.diff(path, tmp_path / "9u").by_fingerprint == 1


def test_of_a_set_in_a_directory_the_whole_is_named_rather_than_its_files(tmp_path: Path) -> None:
    path = write_set(tmp_path / "model")
    with pytest.raises(tx.UnknownFormat) as caught:
        tx.open(tmp_path)
    assert caught.value.hint == f'open "{path}"'


@pytest.mark.parametrize("format", ["safetensors", "npz", "msgpack"])
def test_a_file_of_a_directory_that_is_a_link_out_of_it_is_refused(tmp_path: Path, format: Any):
    tree = {"a": np.ones(3, np.float32)}
    tx.save(tmp_path / "ckpt", tree, format=format)
    (file,) = (tmp_path / "ckpt").iterdir()
    file.rename(tmp_path / file.name)
    file.symlink_to(tmp_path / file.name)
    with pytest.raises(tx.errors.SourceError, match="a link that leads out of"):
        tx.open(tmp_path / "ckpt")
    trusted = tx.storage.Local(tmp_path / "ckpt", follow_links=True)
    np.testing.assert_array_equal(tx.restore(trusted, tree)["a"], tree["a"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            b'{"weight_map": {"w": "../x.safetensors"}}',
            "Expected a file of this directory, got `../x.safetensors` - at `w`",
        ),
        (b'{"weight_map": {"w": 1}}', "The index is unreadable: Expected `str`, got `int`"),
        (b'{"weight_map": ', "The index is unreadable: Input data was truncated"),
        (b"[" * 100_000, "The index is unreadable: "),
    ],
)
@pytest.mark.parametrize("beside", [False, True])
def test_an_index_that_cannot_be_used_is_said_to_be_the_problem(
    tmp_path: Path, text: bytes, message: str, beside: bool
) -> None:
    """Instead of a directory of files that are no checkpoint."""
    (tmp_path / "model.safetensors.index.json").write_bytes(text)
    if beside:
        save_file({"w": np.ones(3, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(tx.Corrupted) as caught:
        tx.open(tmp_path)
    assert str(caught.value).startswith(message)
    assert "`model.safetensors.index.json`" in str(caught.value)
