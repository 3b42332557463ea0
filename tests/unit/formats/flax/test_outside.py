"""Arrays beside the file of a state dict: those of T5X, and of several processes of Flax."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.serialization
import numpy as np
import pytest

import templax as tx
from helpers import CORPUS, run_cli
from limits import run_limited
from opening import read_refusal

T5X = CORPUS / "t5x" / "checkpoint_1000"

GDA = CORPUS / "flax-gda"

KERNEL = "optimizer.target.encoder.layers_0.attention.query.kernel"

PLACE = "target.encoder.layers_0.attention.query.kernel"


@pytest.fixture
def step(tmp_path: Path) -> Path:
    """A copy of a checkpoint of T5X, in the directory of a run."""
    return Path(shutil.copytree(T5X, tmp_path / "run" / "checkpoint_1000"))


def change_spec(step: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the spec of one array in the msgpack file."""
    tree = flax.serialization.msgpack_restore((step / "checkpoint").read_bytes())
    node: Any = tree
    for key in KERNEL.split("."):
        node = node[key]
    change(node)
    (step / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(tree))


def set_path(path: Any, spec: dict[str, Any]) -> None:
    spec["kvstore"]["path"] = path


def read_kernel(path: Path) -> np.ndarray:
    at = KERNEL.removesuffix(".kernel")
    return np.asarray(tx.restore(path, {"kernel": np.zeros((8, 6), "f4")}, at=at)["kernel"])


def test_a_checkpoint_of_t5x_is_named(step: Path) -> None:
    catalog = tx.open(step)
    assert catalog.format == "t5x"
    assert catalog.evidence == "the TensorStore specs in `checkpoint`"
    assert catalog.leaves[KERNEL].shape == (8, 6)
    assert catalog.leaves["optimizer.state.step"].shape == ()
    assert catalog.empties[("optimizer", "target", "decoder", "unused")] == "None"
    inside = tx.open(step / "checkpoint")
    assert (inside.format, inside.evidence) == ("t5x", "its TensorStore specs")
    assert list(map(repr, inside.entries)) == list(map(repr, catalog.entries))


def test_a_run_of_t5x_lists_its_steps(step: Path) -> None:
    shutil.copytree(step, step.parent / "checkpoint_2000")
    with pytest.raises(tx.UnknownFormat, match="holds 2 steps; the latest committed") as caught:
        tx.open(step.parent)
    assert caught.value.hint == f'open "{step.parent}/checkpoint_2000"'
    listed = json.loads(run_cli("steps", "--json", str(step.parent)).output)
    assert [each["step"] for each in listed["steps"]] == [1000, 2000]


def test_verify_compares_the_checksums_of_gzip(step: Path) -> None:
    assert tx.verify(step).damages == ()
    chunk = step / PLACE / "1.0"
    data = bytearray(chunk.read_bytes())
    data[-6] ^= 1
    chunk.write_bytes(data)
    (damage,) = tx.verify(step).damages
    assert (damage.leaf, damage.file) == (KERNEL, f"{PLACE}/1.0")


def test_the_place_where_it_was_saved_does_not_matter(step: Path, tmp_path: Path) -> None:
    want = read_kernel(step)
    decoy = tmp_path / PLACE
    shutil.copytree(step / PLACE, decoy)
    for path in sorted(decoy.iterdir()):
        if path.name != ".zarray":
            path.unlink()
    for place in (
        f"/old/run/checkpoint_1000/{PLACE}/",
        str(decoy),
        f"C:/x/{PLACE}",
        f"s3://b/{PLACE}",
    ):
        change_spec(step, functools.partial(set_path, place))
        assert np.array_equal(read_kernel(step), want)
    change_spec(step, lambda spec: spec["kvstore"].update(driver="gcs", bucket="t5x-dummy-bucket"))
    assert np.array_equal(read_kernel(step), want)


def test_the_path_of_an_old_spec_is_outside_of_the_store(step: Path) -> None:
    want = read_kernel(step)

    def move(spec: dict[str, Any]) -> None:
        spec["path"] = spec["kvstore"].pop("path")

    change_spec(step, move)
    assert np.array_equal(read_kernel(step), want)


@pytest.mark.parametrize(
    "place", ["../other", f"{PLACE}/../{PLACE}", ".", "", f"./{PLACE}", "a\0b", "a\\..\\b", "a//b"]
)
def test_a_path_that_leads_elsewhere_is_refused(step: Path, place: str) -> None:
    change_spec(step, functools.partial(set_path, place))
    for path in (step, step / "checkpoint"):
        with pytest.raises(tx.Corrupted, match="path of an array below the checkpoint") as caught:
            tx.open(path)
        assert caught.value.leaf == KERNEL


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (functools.partial(set_path, 3), tx.Corrupted, "the path of an array"),
        (lambda s: s.update(driver="n5"), tx.Unsupported, "of driver `zarr`, got `n5`"),
        (lambda s: s["kvstore"].update(driver="ocdbt"), tx.Unsupported, "got kvstore `ocdbt`"),
        (lambda s: s["metadata"].update(shape=[6, 8]), tx.Corrupted, r"float32\(6, 8\), as the"),
        (lambda s: s["metadata"].update(shape="x"), tx.Corrupted, "a shape and a dtype"),
        (lambda s: s.update(dtype="bfloat16"), tx.Corrupted, r"bfloat16\(8, 6\), as the file says"),
        (lambda s: s.update(dtype=5), tx.Corrupted, "a shape and a dtype"),
    ],
)
def test_a_spec_that_contradicts_the_array_is_damage(
    step: Path, change: Any, error: type[tx.CheckpointError], said: str
) -> None:
    change_spec(step, change)
    with pytest.raises(error, match=said) as caught:
        tx.open(step)
    assert caught.value.leaf == KERNEL


def test_a_spec_without_a_shape_is_enough(step: Path) -> None:
    want = read_kernel(step)
    change_spec(step, lambda spec: (spec.pop("metadata"), spec.pop("dtype")))
    assert np.array_equal(read_kernel(step), want)


def test_what_is_missing_is_named(step: Path) -> None:
    (step / PLACE / "1.0").unlink()
    with pytest.raises(tx.Corrupted) as caught:
        read_kernel(step)
    assert (caught.value.leaf, caught.value.file) == (KERNEL, f"{PLACE}/1.0")
    (step / PLACE / ".zarray").unlink()
    assert read_refusal(step, tx.Corrupted) == (
        f"Expected `.zarray` beside `{PLACE}/0.0`, found none - at `{KERNEL}`, file"
        f" `{PLACE}/.zarray`; hint: copy the checkpoint again, with the files whose names start"
        " with a dot"
    )
    shutil.rmtree(step / PLACE)
    assert read_refusal(step, tx.Corrupted) == (
        f"Expected a directory with an array, found none - at `{KERNEL}`, file `{PLACE}`"
    )


def test_a_link_to_an_array_elsewhere_is_not_followed(step: Path, tmp_path: Path) -> None:
    shutil.move(step / PLACE, tmp_path / "elsewhere")
    (step / PLACE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(tx.SourceError, match="it is a link that leads out"):
        read_kernel(step)


def test_a_save_that_never_finished_is_uncommitted(step: Path) -> None:
    unfinished = step.rename(step.parent / "checkpoint_1000.tmp-1700000000")
    with pytest.raises(tx.Uncommitted, match="temporary directory of a save that never finished"):
        tx.open(unfinished)
    assert len(tx.open(unfinished, uncommitted="allow").leaves) == 9


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of a run of Flax, with the arrays of several processes."""
    return Path(shutil.copytree(GDA, tmp_path / "run"))


def test_a_tree_of_one_array_is_read(run: Path) -> None:
    got = tx.restore(run / "checkpoint_8", np.zeros((4, 3), "f4"))
    assert np.asarray(got).tolist() == np.arange(12.0).reshape(4, 3).tolist()


def test_the_directory_of_such_files_names_them(run: Path) -> None:
    with pytest.raises(tx.UnknownFormat) as caught:
        tx.open(run)
    assert caught.value.hint == f'open "{run}/checkpoint_8"'
    shutil.rmtree(run / "checkpoint_8_gda")
    with pytest.raises(tx.Corrupted, match="directory with an array, found none"):
        tx.open(run / "checkpoint_8")


def test_arrays_beside_a_file_that_is_damaged_have_no_hint(run: Path) -> None:
    (run / "checkpoint_7").write_bytes(b"")
    with pytest.raises(tx.UnknownFormat, match="holds arrays of the file") as caught:
        tx.open(run / "checkpoint_7_gda")
    assert caught.value.hint is None


@pytest.mark.parametrize("place", ["../x", "a/../../x", "a//b", "/x"])
def test_a_placeholder_that_leads_elsewhere_is_refused(run: Path, place: str) -> None:
    tree = {"a": f"//GDAPlaceholder:{place}", "n": np.ones(2)}
    (run / "checkpoint_7").write_bytes(flax.serialization.to_bytes(tree))
    with pytest.raises(tx.Corrupted, match="path of an array below the checkpoint") as caught:
        tx.open(run / "checkpoint_7")
    assert caught.value.leaf == "a"


def test_two_leaves_of_one_array_are_refused(step: Path) -> None:
    change_spec(step, functools.partial(set_path, "target.zeros/"))
    with pytest.raises(tx.Corrupted, match="found an array"):
        tx.open(step)
    tree = flax.serialization.msgpack_restore((step / "checkpoint").read_bytes())
    tree["more"] = {"driver": "zarr", "kvstore": {"driver": "file", "path": "/x/target.zeros"}}
    del tree["optimizer"]["target"]["encoder"]
    (step / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(tree))
    with pytest.raises(tx.Corrupted, match="one leaf for each array, got two for") as caught:
        tx.open(step)
    assert caught.value.leaf == "optimizer.target.zeros"


@pytest.mark.slow
def test_very_many_specs_take_little_time(step: Path) -> None:
    stores = ({"driver": "file", "path": f"{i}"} for i in range(14_000))
    tree = {f"{i}": {"driver": "zarr", "kvstore": store} for i, store in enumerate(stores)}
    (step / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(tree))
    assert 600_000 < (step / "checkpoint").stat().st_size < 10**6
    found = run_limited(f"tx.open({str(step)!r})", cwd=step)
    assert found.error is not None
    assert found.error.startswith("Corrupted: Expected a directory with an array")
