"""Models that were split into several GGUF files, and directories with GGUF files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import templax as tx
from fuzz.gguf_files import encode_file
from helpers import CORPUS
from opening import read_refusal

WRITTEN = CORPUS / "gguf"

FIRST, SECOND, THIRD = (f"model-0000{i}-of-00003.gguf" for i in (1, 2, 3))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(WRITTEN / "split", tmp_path / "model"))


@pytest.mark.parametrize("name", [".", FIRST, THIRD])
def test_a_split_model_is_opened_by_its_directory_or_any_file(model: Path, name: str) -> None:
    (model / "README.md").write_text("x")
    catalog = tx.open(model / name)
    assert catalog.format == "gguf"
    assert catalog.evidence == (f"`{FIRST}`" if name == "." else f"`{name}`")
    assert list(catalog.leaves) == list(tx.open(WRITTEN / "plain.gguf").leaves)
    assert catalog.metadata["split.count"] == 3
    assert catalog.metadata["general.name"] == "tiny ü"


@pytest.mark.parametrize("name", [FIRST, SECOND, THIRD])
def test_a_file_that_is_absent_is_named(model: Path, name: str) -> None:
    (model / name).unlink()
    for path in (model, next(model.iterdir())):
        with pytest.raises(tx.Corrupted, match="names, found none") as caught:
            tx.open(path)
        assert caught.value.file == name


def test_a_file_that_is_damaged_is_named(model: Path) -> None:
    (model / SECOND).write_bytes((model / SECOND).read_bytes()[:-64])
    with pytest.raises(tx.Corrupted) as caught:
        tx.open(model)
    assert caught.value.file == SECOND


def test_a_file_of_another_model_is_noticed(model: Path) -> None:
    shutil.copy(model / SECOND, model / THIRD)
    with pytest.raises(tx.Corrupted, match="one tensor of a name, found it in"):
        tx.open(model)
    (model / THIRD).write_bytes(encode_file({}))
    with pytest.raises(tx.Corrupted, match="Expected 9 tensors in all files, found 8"):
        tx.open(model)


def test_a_part_under_another_name_is_refused(model: Path, tmp_path: Path) -> None:
    shutil.copy(model / FIRST, tmp_path / "part.gguf")
    with pytest.raises(tx.Unsupported, match=r"the 3 files of a split model by their names, which"):
        tx.open(tmp_path / "part.gguf")


def test_a_directory_with_one_file_is_that_file(tmp_path: Path) -> None:
    shutil.copy(WRITTEN / "quantised.gguf", tmp_path / "model.Q4_K_M.gguf")
    catalog = tx.open(tmp_path)
    assert (len(catalog.leaves), catalog.evidence) == (14, "`model.Q4_K_M.gguf`")


def test_a_model_that_is_one_file_of_one_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model-00001-of-00001.gguf"
    shutil.copy(WRITTEN / "plain.gguf", path)
    assert len(tx.open(path).leaves) == len(tx.open(tmp_path).leaves) == 9


def test_of_several_models_each_is_named(model: Path) -> None:
    shutil.copy(WRITTEN / "plain.gguf", model / "other.gguf")
    message = read_refusal(model)
    assert "got a directory that holds checkpoints" in message
    assert f'"{model / "other.gguf"}"' in message


def test_a_file_that_is_none_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGML")
    assert "got a directory of `model.gguf`" in read_refusal(tmp_path)
