"""An Orbax item: files it can do without, and files that contradict each other."""

import json
import shutil

import numpy as np
import pytest

import templax as tx
from helpers import CORPUS, read_files
from limits import run_limited
from opening import open_local, read_refusal
from templax._core import json_text
from templax.errors import CheckpointError, Corrupted
from templax.formats import open_catalog
from templax.storage import Memory


@pytest.mark.parametrize(
    "file", ["_CHECKPOINT_METADATA", "_sharding", "array_metadatas", "commit_success.txt"]
)
@pytest.mark.parametrize("how", ["missing", "empty", "junk"])
def test_files_that_values_do_not_need_may_be_missing_or_broken(case, file, how):
    path = case("orbax-0.12.8-sharded8")
    target = path / file
    if target.is_dir():
        shutil.rmtree(target)
        if how != "missing":
            target.mkdir()
            (target / "process_0").write_bytes(b"" if how == "empty" else b"\xff{")
    elif how == "missing":
        target.unlink()
    else:
        target.write_bytes(b"" if how == "empty" else b"\xff{")
    assert len(open_local(path).entries) == 14


def test_sharding_in_an_unknown_spelling_is_not_shown(case):
    path = case("orbax-0.12.8-default")
    (path / "_sharding").write_text(
        '{"!": "x", "c3RhdGUuc3RlcA==": "{\\"sharding_type\\": 3}", "YQ==": 4}'
    )
    assert open_local(path).leaves["state.params.big"].saved_sharding is None


def test_custom_metadata_may_hold_nan(case):
    path = case("orbax-0.12.8-default")
    text = (path / "_METADATA").read_text()
    (path / "_METADATA").write_text(
        text.replace('"custom_metadata": null', '"custom_metadata": {"loss": NaN}')
    )
    loss = open_local(path).metadata["custom_metadata"]["loss"]
    assert loss != loss


def test_custom_metadata_may_have_256_levels(case):
    path = case("orbax-0.12.8-default")
    content = json.loads((path / "_METADATA").read_bytes())
    for levels in (256, 300):
        content["custom_metadata"] = json.loads("[" * levels + "]" * levels)
        (path / "_METADATA").write_text(json.dumps(content))
        if levels == 256:
            assert open_local(path).metadata["custom_metadata"] == content["custom_metadata"]
        else:
            assert "it has more than 260 levels" in read_refusal(path, Corrupted)


def test_without_metadata_names_come_from_the_keys_of_arrays(case):
    for name, index in [
        ("orbax-0.12.8-default", "`manifest.ocdbt` and "),
        ("orbax-0.12.8-noocdbt", ""),
    ]:
        path = case(name, to=name)
        names = set(open_local(path).leaves)
        (path / "_METADATA").unlink()
        catalog = open_local(path)
        assert set(catalog.leaves) == names
        assert catalog.evidence == f"{index}the keys of its arrays, as `_METADATA` is missing"


def test_a_missing_index_is_damage(case):
    path = case("orbax-0.12.8-default")
    (path / "manifest.ocdbt").unlink()
    shutil.rmtree(path / "ocdbt.process_0")
    assert read_refusal(path, Corrupted) == (
        "Expected the index of the arrays, found none - file `manifest.ocdbt`"
    )


def test_a_leaf_without_an_array_in_the_index_is_named(case):
    path = case("orbax-0.12.8-default")
    text = (path / "_METADATA").read_text()
    (path / "_METADATA").write_text(text.replace('"key": "scale"', '"key": "scald"'))
    assert read_refusal(path, Corrupted) == (
        "Expected an array, `manifest.ocdbt` has none - at `state.params.scald`"
    )


def test_a_missing_string_is_named(case):
    path = case("orbax-0.12.8-special")
    for text in ("{}", None):
        (path / "_strings.json").write_text(text) if text else (path / "_strings.json").unlink()
        assert read_refusal(path, Corrupted) == (
            "Expected a string, found none - at `text`, file `_strings.json`"
        )


def test_a_value_missing_in_the_legacy_file_is_named(case):
    path = case("orbax-0.4.4-aggregate")
    (path / "checkpoint").write_bytes(b"\x80")
    assert read_refusal(path, Corrupted).startswith(
        "Expected a value, found none - at `state.step`"
    )
    (path / "checkpoint").unlink()
    assert read_refusal(path, Corrupted) == (
        "Expected the file that holds values, found none - file `checkpoint`"
    )


def test_two_leaves_with_the_same_name_are_both_listed(case):
    path = case("orbax-0.12.8-special")
    metadata = json.loads((path / "_METADATA").read_text())
    leaf = metadata["tree_metadata"]["('a.b',)"]
    keys = [{"key": "a", "key_type": 2}, {"key": "b", "key_type": 2}]
    metadata["tree_metadata"]["('a', 'b')"] = leaf | {"key_metadata": keys}
    (path / "_METADATA").write_text(json.dumps(metadata))
    found = [entry.path for entry in open_local(path).entries if entry.name == "a.b"]
    assert found == [("a.b",), ("a", "b")]


@pytest.mark.slow
def test_altered_metadata_raises_only_errors_of_templax():
    """A random byte of a random metadata file, many times."""
    rng = np.random.default_rng(0)
    for name in (
        "orbax-0.12.8-prng",
        "orbax-0.12.8-special",
        "orbax-0.4.4-aggregate",
        "orbax-0.2.3-default",
    ):
        root = CORPUS / name / "ckpt"
        objects = {f"c/{key}": data for key, data in read_files(root).items()}
        files = [
            k
            for k in objects
            if k.split("/")[-1]
            in ("_METADATA", "_strings.json", "checkpoint", ".zarray", "_sharding")
        ]
        for _ in range(150):
            file = files[rng.integers(len(files))]
            changed = bytearray(objects[file])
            changed[rng.integers(len(changed))] = rng.integers(256)
            try:
                catalog = open_catalog(Memory(objects | {file: bytes(changed)}, "c/"))
                catalog.locate(catalog.leaves.values())
            except CheckpointError:
                pass


def test_a_committed_checkpoint_without_its_index_is_damaged_not_uncommitted(case):
    path = case("orbax-0.12.8-default")
    (path / "manifest.ocdbt").unlink()
    assert read_refusal(path, Corrupted) == (
        "The save was committed, but `manifest.ocdbt`, the index of its arrays, is missing"
        " - file `manifest.ocdbt`"
    )


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("_METADATA", '"value_type":', '"value_type": "scalar", "value_type":', "value_type"),
        ("_METADATA", '"key":', r'"\u006bey": "other", "key":', "key"),
        ("_METADATA", '"key":', '"key" \t: "other", "key":', "key"),
        ("_METADATA", '"custom_metadata": null', '"custom_metadata": {"a": 1, "a": 2}', "a"),
        ("_strings.json", "{", '{"text": "no", ', "text"),
    ],
)
def test_a_key_that_occurs_twice_is_named(case, file, old, new, said):
    path = case("orbax-0.12.8-special")
    text = (path / file).read_text()
    assert old in text
    (path / file).write_text(text.replace(old, new, 1))
    refusal = read_refusal(path, Corrupted)
    assert refusal.startswith(f"The JSON is unreadable: the key '{said}")
    assert refusal.endswith(f"occurs twice - file `{file}`")


def test_a_string_that_is_no_text_is_damage(case):
    path = case("orbax-0.12.8-special")
    (path / "_strings.json").write_text('{"text": "\\ud800"}')
    assert read_refusal(path, Corrupted).startswith("The JSON is unreadable: 'utf-8' codec can't")


def test_a_name_that_is_no_text_is_refused(case):
    path = case("orbax-0.12.8-default")
    text = (path / "_METADATA").read_text().replace('"key": "scale"', '"key": "\\ud800", "n": NaN')
    (path / "_METADATA").write_text(text)
    assert read_refusal(path, Corrupted).startswith("The JSON is unreadable: 'utf-8' codec can't")


def test_an_array_of_absent_chunks_that_memory_cannot_hold_is_refused(tmp_path):
    tmp_path.joinpath("a").mkdir()
    meta = {"zarr_format": 2, "shape": [2**40], "chunks": [2**40], "dtype": "|u1", "order": "C"}
    text = json.dumps(meta | {"compressor": None, "filters": None, "fill_value": 0})
    tmp_path.joinpath("a", ".zarray").write_text(text)

    found = run_limited(
        "tx.restore('.', {'a': jax.ShapeDtypeStruct((2**40,), np.uint8)})",
        prepare="import jax; jax.devices()",
        cwd=tmp_path,
    )

    assert found.error == "Unsupported: Expected a leaf that fits into memory, got 1.0 TiB - at `a`"


def test_leaves_called_as_the_fields_of_metadata_are_decoded_once(tmp_path, monkeypatch):
    tree = {"key": {"key": np.ones(2)}, "value_type": np.ones(2), "key_metadata": np.ones(2)}
    tx.save(tmp_path / "ckpt", tree)
    (tmp_path / "ckpt" / "templax.index").unlink()
    monkeypatch.setattr(json_text, "decode_json", None)  # slow; only for what may be repeated
    assert len(tx.open(tmp_path / "ckpt").leaves) == 3


def test_strings_that_templax_stored_flat_are_read(tmp_path):
    tx.save(tmp_path / "ckpt", {"a/b": "text", "w": np.ones(2)})
    (tmp_path / "ckpt" / "templax.index").unlink()
    (tmp_path / "ckpt" / "_strings.json").write_text('{"a/b": "text"}')
    assert tx.open(tmp_path / "ckpt").leaves["a/b"].value == "text"
