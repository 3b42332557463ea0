"""Sets of files of PyTorch under an index. `test_safetensors_set` has the rules of all sets."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import templax as tx
from helpers import CORPUS
from opening import read_refusal

WRITTEN = CORPUS / "torch-set"

INDEX = "pytorch_model.bin.index.json"

FIRST, SECOND = (f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the set: the first file is a zip, the second as PyTorch wrote it before 1.6."""
    shutil.copytree(WRITTEN, tmp_path / "model", ignore=shutil.ignore_patterns("write.py"))
    return tmp_path / "model"


def edit_index(model: Path, **places: Any) -> None:
    index = json.loads((model / INDEX).read_text())
    index["weight_map"] |= {name.replace("_", "."): file for name, file in places.items()}
    (model / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize("name", [".", INDEX])
def test_a_set_is_opened_by_its_directory_or_its_index(model: Path, name: str) -> None:
    (model / "config.json").write_text("{}")
    shutil.copy(CORPUS / "torch-2.14.1" / "checkpoint.pt", model / "training_args.bin")
    catalog = tx.open(model / name)
    assert (catalog.format, catalog.evidence) == ("torch", f"`{INDEX}`")
    assert catalog.metadata == {"total_size": 347}
    assert len(catalog.leaves) == 8
    assert tx.restore(catalog, {"encoder": {"0": {"steps": np.zeros((), "i8")}}}, extra="ignore")


def test_a_directory_with_one_file_is_that_file(tmp_path: Path) -> None:
    shutil.copy(CORPUS / "torch-2.14.1" / "leaves.pt", tmp_path / "pytorch_model.bin")
    shutil.copy(CORPUS / "torch-2.14.1" / "checkpoint.pt", tmp_path / "training_args.bin")
    catalog = tx.open(tmp_path)
    assert (catalog.format, catalog.evidence) == ("torch", "`pytorch_model.bin`")
    assert catalog.leaves.keys() == tx.open(tmp_path / "pytorch_model.bin").leaves.keys()


def test_an_old_file_alone_is_of_the_same_format(tmp_path: Path) -> None:
    shutil.copy(WRITTEN / SECOND, tmp_path / "pytorch_model.bin")
    assert tx.open(tmp_path / "pytorch_model.bin").format == "torch-legacy"
    assert "decoder.0.mask" in tx.open(tmp_path).leaves


def test_safetensors_beside_it_are_opened_instead(model: Path) -> None:
    shutil.copy(CORPUS / "safetensors-official" / "model.safetensors", model)
    assert tx.open(model).evidence == "`model.safetensors`"


def test_a_file_that_is_none_of_pytorch_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "vocabulary.bin").write_bytes(b"words")
    assert "got a directory of `vocabulary.bin`" in read_refusal(tmp_path)


def test_files_that_no_index_names_are_listed(model: Path) -> None:
    (model / INDEX).unlink()
    hint = f'open "{model / FIRST}" or "{model / SECOND}"'
    assert read_refusal(model).endswith(f"got a directory that holds checkpoints; hint: {hint}")


@pytest.mark.parametrize(
    ("places", "said"),
    [
        ({"absent": "other.bin"}, f"file that `{INDEX}` names, found none - file `other.bin`"),
        ({"absent": SECOND}, "1 are missing: `?absent"),
        ({"shared_weight": SECOND}, "1 are missing: `?shared.weight"),
        ({"absent": f"../{FIRST}"}, "Expected a file of this directory"),
        ({"absent": "/x.bin"}, "Expected a file of this directory"),
    ],
)
def test_an_index_that_contradicts_the_files_is_damage(
    model: Path, places: dict[str, str], said: str
) -> None:
    edit_index(model, **places)
    with pytest.raises(tx.Corrupted, match=said):
        tx.open(model / INDEX)


def test_a_tensor_that_the_index_does_not_name_is_listed_too(model: Path) -> None:
    text = json.loads((model / INDEX).read_text())
    del text["weight_map"]["encoder.0.bias"]
    (model / INDEX).write_text(json.dumps(text))
    assert "encoder.0.bias" in tx.open(model).leaves
    text["weight_map"]["shared.weight"] = FIRST
    shutil.copy(model / FIRST, model / SECOND)
    text["weight_map"] = {"shared.weight": FIRST, "encoder.embed.weight": SECOND}
    (model / INDEX).write_text(json.dumps(text))
    assert set(tx.open(model).leaves) == {"shared.weight", "encoder.embed.weight"}
    del text["weight_map"]["shared.weight"]
    text["weight_map"]["x"] = FIRST
    (model / INDEX).write_text(json.dumps(text))
    with pytest.raises(tx.Corrupted, match="one tensor of a name, found it in"):
        tx.open(model)


def test_a_tensor_of_the_index_that_is_not_read_is_not_missing(tmp_path: Path) -> None:
    shutil.copy(WRITTEN / FIRST, tmp_path)
    shutil.copy(CORPUS / "torch-2.13.0" / "quantised.pt", tmp_path / SECOND)
    index = json.loads((WRITTEN / INDEX).read_text())
    own = {name: file for name, file in index["weight_map"].items() if file == FIRST}
    index["weight_map"] = own | {"q": SECOND, "w": SECOND}
    (tmp_path / INDEX).write_text(json.dumps(index))
    catalog = tx.open(tmp_path)
    assert set(catalog.leaves) == {*own, "w"}
    assert list(catalog.unread) == ["q"]
    assert "dequantize" in catalog.unread["q"]
    assert tx.verify(catalog).unread == ("q",)
    assert tx.restore(catalog, catalog.template())["w"].shape == (2,)

    index["weight_map"] |= {"q": FIRST}  # which has none
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(tx.Corrupted, match=f"1 are missing: q - at `q`, file `{FIRST}`"):
        tx.open(tmp_path)


def test_a_leaf_that_one_file_has_and_another_has_in_a_form_that_is_not_read(
    tmp_path: Path,
) -> None:
    shutil.copy(CORPUS / "torch-2.13.0" / "quantised.pt", tmp_path / FIRST)
    made = tmp_path / SECOND
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("m/data.pkl", pickle.dumps({"q": 1.5, "z": 2.5}, 2))
    index = {"metadata": {}, "weight_map": {"w": FIRST, "z": SECOND}}
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(tx.Corrupted, match=f"found it in `{FIRST}` and `{SECOND}` - at `q`"):
        tx.open(tmp_path)
    for file, read, unread in [(FIRST, {"w", "z"}, ["q"]), (SECOND, {"q", "w", "z"}, [])]:
        index["weight_map"]["q"] = file
        (tmp_path / INDEX).write_text(json.dumps(index))
        catalog = tx.open(tmp_path)
        assert (set(catalog.leaves), list(catalog.unread)) == (read, unread)


def test_a_file_that_is_not_pytorchs_is_named(model: Path) -> None:
    (model / FIRST).write_bytes(b"x" * 100)
    with pytest.raises(tx.CheckpointError) as caught:
        tx.open(model)
    assert caught.value.file == FIRST


def test_a_file_with_another_class_is_named(model: Path) -> None:
    with zipfile.ZipFile(model / FIRST, "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x02cos\nsystem\nq\x00X\x01\x00\x00\x00x\x85R.")
    with pytest.raises(tx.Unsupported, match=r"no `os\.system` in a pickle") as caught:
        tx.open(model)
    assert caught.value.file == FIRST


def test_verify_names_the_file_with_the_damage(model: Path) -> None:
    data = bytearray((model / FIRST).read_bytes())
    (extent,) = (
        chunk.extent
        for chunk in tx.open(model).locate([tx.open(model).leaves["shared.weight"]])[
            "shared.weight"
        ]
    )
    assert extent.key == FIRST
    data[extent.start] ^= 1
    (model / FIRST).write_bytes(data)
    (damage,) = tx.verify(model).damages
    assert (damage.file, damage.start) == (FIRST, extent.start)
    assert damage.leaf in ("shared.weight", "encoder.embed.weight")


def test_verify_of_a_set_of_zip_files_compares_all_values(model: Path) -> None:
    assert not tx.open(model).audits_values  # the second file has no checksums
    text = json.loads((model / INDEX).read_text())
    text["weight_map"] = {k: v for k, v in text["weight_map"].items() if v == FIRST}
    (model / INDEX).write_text(json.dumps(text))
    (model / SECOND).unlink()
    assert tx.open(model).audits_values


def test_a_set_can_be_pickled(model: Path) -> None:
    catalog = pickle.loads(pickle.dumps(tx.open(model)))  # noqa: S301 (our own)
    template = {"decoder": {"0": {"mask": np.zeros(3, bool)}}}
    assert tx.restore(catalog, template, extra="ignore")["decoder"]["0"]["mask"].tolist() == [
        True,
        False,
        True,
    ]
