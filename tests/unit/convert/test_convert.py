"""Conversions: every pair of formats, names, casts, refusals, and what is named as not carried."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from click.testing import CliRunner

import templax as tx
from helpers import run_python
from limits import run_limited
from templax.cli.main import main
from templax.storage import Memory

CORPUS = Path(__file__).parents[2] / "corpus"

SOURCES = (
    "orbax-0.12.8-default/ckpt",
    "orbax-0.12.8-sharded8_chunks/ckpt",
    "orbax-0.12.8-zarr3/ckpt",
    "orbax-0.6.4-default/ckpt",
    "flaxmsgpack-chunked/state.msgpack",
    "npz-stored/params.npz",
    "npy-fortran/w.npy",
    "safetensors-sharded",
    "torch-2.14.1/checkpoint-legacy.pt",
)

TARGETS = ("orbax", "safetensors", "msgpack", "npz")


WITHOUT_JAX = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("jax", "jaxlib"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
import templax as tx
from templax.cli.main import main

source, to = sys.argv[1:]
for format in ("orbax", "safetensors", "msgpack", "npz"):
    tx.convert(source, f"{to}/{format}", to=format)
main(["convert", source, f"{to}/x.npz"], standalone_mode=False)
assert "jax" not in sys.modules
"""


@pytest.mark.parametrize("to", [*TARGETS, "x.safetensors", "x.msgpack", "x.npz"])
@pytest.mark.parametrize("name", [s for s in SOURCES if (CORPUS / s).exists()])
def test_every_format_becomes_every_other(name: str, to: str, tmp_path: Path) -> None:
    source, path = CORPUS / name, tmp_path / to
    how: Any = None if "." in to else to
    catalog = tx.open(source)
    narrow = [e.name for e in catalog.entries if "float8" in e.dtype_name or e.kind == "string"]
    skip = narrow if to.endswith(("npz", "safetensors")) else []
    done = tx.convert(source, path, to=how, skip=skip)
    assert path.is_file() == ("." in to)
    found = tx.diff(source, path, fingerprints=False)
    differing = [leaf for leaf in found.leaves if leaf.differences]
    assert {leaf.name for leaf in differing} == set(skip), str(found)
    assert done.verified
    assert done.leaves == len(catalog.entries) - len(skip)
    assert done.fingerprint.leaves.keys() == catalog.leaves.keys() - set(skip)
    if tx.open(path).fingerprints is not None:
        assert tx.fingerprint(tx.open(path)) == done.fingerprint


@pytest.mark.slow
def test_conversions_need_no_jax(tmp_path: Path) -> None:
    """Of any format, by the function and the command."""
    source, to = CORPUS / "orbax-0.12.8-default" / "ckpt", tmp_path
    done = run_python("-c", WITHOUT_JAX, source, to)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.iterdir())) == 5


@pytest.fixture
def ckpt(tmp_path: Path) -> Path:
    tree = {
        "params": {
            "layers": [{"w": np.arange(6, dtype=np.float32).reshape(2, 3)}],
            "n": np.arange(3),
        },
        "rate": 0.5,
        "none": None,
    }
    tx.save(tmp_path / "ckpt", tree, metadata={"run": "a", "seed": 3})
    return tmp_path / "ckpt"


def test_safetensors_are_read_by_their_library(ckpt: Path, tmp_path: Path) -> None:
    done = tx.convert(ckpt, tmp_path / "m.safetensors")
    loaded = safetensors.numpy.load_file(tmp_path / "m.safetensors")
    assert sorted(loaded) == ["params.layers.0.w", "params.n", "rate"]
    np.testing.assert_array_equal(loaded["params.layers.0.w"], [[0, 1, 2], [3, 4, 5]])
    assert done.lost == {
        "that it is a list or tuple, whose indices become names": ("params.layers",),
        "that it is a number, which becomes an array of shape ()": ("rate",),
        "a node without leaves": ("none",),
        "metadata that the format has no place for": ("seed",),
    }
    assert tx.open(tmp_path / "m.safetensors").metadata == {"run": "a"}
    text = str(done)
    assert "not carried: a node without leaves (1: `none`)" in text
    assert f"fingerprint {done.fingerprint}, read back and compared" in text


def test_metadata_that_is_not_unicode_is_named_and_not_written(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    array = {
        "zarr_format": 2, "shape": [2], "chunks": [2], "dtype": "<f4", "compressor": None,
        "fill_value": 0.0, "order": "C", "filters": None,
    }  # fmt: skip
    (tmp_path / "tree" / ".zarray").write_text(json.dumps(array))
    (tmp_path / "tree" / ".zattrs").write_text(json.dumps({"s": "\ud800"}))
    done = tx.convert(tmp_path / "tree", tmp_path / "copy", to="orbax")
    said = "metadata that readers refuse, such as text that is not Unicode"
    assert done.lost[said] == ("attributes",)
    assert "commit_timestamp_nsecs" in tx.open(tmp_path / "copy").metadata


def test_a_round_trip_restores_the_tree(ckpt: Path, tmp_path: Path) -> None:
    tx.convert(ckpt, tmp_path / "m.safetensors", at="params")
    tx.convert(tmp_path / "m.safetensors", tmp_path / "back", to="orbax")
    back = tx.open(tmp_path / "back")
    assert sorted(entry.path for entry in back.entries) == [("layers", "0", "w"), ("n",)]
    template = {"layers": [{"w": np.zeros((2, 3), np.float32)}], "n": np.zeros(3, np.int64)}
    tree = tx.restore(tmp_path / "back", template)
    np.testing.assert_array_equal(tree["layers"][0]["w"], [[0, 1, 2], [3, 4, 5]])
    flat = tx.convert(tmp_path / "m.safetensors", tmp_path / "flat", to="orbax", flat=True)
    assert sorted(entry.path for entry in tx.open(flat.path).entries) == [("layers.0.w",), ("n",)]


def test_names_are_chosen_as_in_a_restore(ckpt: Path, tmp_path: Path) -> None:
    done = tx.convert(
        ckpt, tmp_path / "a", to="npz", at="params", rename={"layers": "blocks"}, skip=["n"]
    )
    assert list(done.fingerprint.leaves) == ["blocks.0.w"]
    assert done.lost["a leaf that skip= names"] == ("n",)
    one = tx.convert(ckpt, tmp_path / "b", to="npz", at="params.n")
    assert list(one.fingerprint.leaves) == ["n"]


def test_casts_are_named_and_overflows_counted(tmp_path: Path) -> None:
    w = np.array([1, 1e6, np.inf, -1e6, np.nan], np.float32)
    tree = {"a": {"w": w}, "b": {"w": w}, "c": w, "n": np.arange(2), "rate": 0.5}
    tx.save(tmp_path / "ckpt", tree)
    done = tx.convert(
        tmp_path / "ckpt", tmp_path / "x", to="orbax", cast={"a": "float16", "*.w": "bfloat16"}
    )
    casts = [(cast.name, cast.stored, cast.written, cast.overflows) for cast in done.casts]
    assert casts == [("a.w", "float32", "float16", 2), ("b.w", "float32", "bfloat16", 0)]
    assert done.overflows == 2
    assert "overflow: 2 values that float16 can't hold, of `a.w`" in str(done)
    template = {"a": {"w": np.zeros(5, np.float16)}, "b": {"w": np.zeros(5, ml_dtypes.bfloat16)}}
    tree = tx.restore(tmp_path / "x", template, extra="ignore")
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(tree["a"]["w"], w.astype(np.float16))
    assert tree["b"]["w"].tobytes() == w.astype(ml_dtypes.bfloat16).tobytes()
    whole = tx.convert(tmp_path / "ckpt", tmp_path / "y", to="safetensors", cast=np.float16)
    assert [cast.name for cast in whole.casts] == ["a.w", "b.w", "c"]
    assert tx.open(tmp_path / "y").leaves["rate"].dtype == np.float64  # a number, no array


def test_sizes_of_files_and_chunks_are_chosen(tmp_path: Path) -> None:
    tree = {f"w{i}": np.full((64, 32), i, np.float32) for i in range(4)}
    tx.save(tmp_path / "ckpt", tree)
    tx.convert(tmp_path / "ckpt", tmp_path / "set", to="safetensors", shard_size=16384)
    assert len(list((tmp_path / "set").glob("*.safetensors"))) == 2
    done = tx.convert(
        tmp_path / "set", tmp_path / "o", to="orbax", chunk_size=1024, compression="zstd:3"
    )
    catalog = tx.open(done.path)
    chunks = catalog.locate([catalog.leaves["w3"]])["w3"]
    assert len(chunks) == 8
    assert all(chunk.codecs == ("zstd",) for chunk in chunks)
    assert not tx.diff(tmp_path / "ckpt", done.path, fingerprints=False).differs


@pytest.mark.parametrize(
    ("to", "refused"),
    [
        ("safetensors", ("`text` is a string", "`dt.int4` has dtype int4")),
        ("npz", ("`text`", "`dt.int4`", "`dt.float8_e5m2`")),
    ],
)
def test_all_leaves_that_a_format_cannot_store_are_named_at_once(
    to: Any, refused: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(tx.SaveError, match="skip= leaves them out") as caught:
        tx.convert(CORPUS / "orbax-0.12.8-special" / "ckpt", tmp_path / "x", to=to)
    assert all(each in str(caught.value) for each in refused)
    assert list(tmp_path.iterdir()) == []


def test_a_destination_must_be_free_and_apart(ckpt: Path, tmp_path: Path) -> None:
    for path in (ckpt, ckpt / "inside", tmp_path):
        with pytest.raises(tx.SaveError, match="apart from the source"):
            tx.convert(ckpt, path, to="npz", overwrite=True)
    done = tx.convert(ckpt, tmp_path / "x", to="safetensors")
    with pytest.raises(tx.AlreadyExists):
        tx.convert(ckpt, tmp_path / "x", to="safetensors")
    again = tx.convert(ckpt, tmp_path / "x", to="safetensors", overwrite=True, cast="bfloat16")
    assert again.fingerprint != done.fingerprint
    tx.convert(ckpt, tmp_path / "y.npz")
    with pytest.raises(tx.AlreadyExists):
        tx.convert(ckpt, tmp_path / "y.npz")
    tx.convert(ckpt, tmp_path / "y.npz", overwrite=True)


@pytest.mark.parametrize(
    "options",
    [
        {"to": "zarr"},
        {"to": None},
        {"to": "orbax", "shard_size": 4},
        {"to": "npz", "chunk_size": 4},
        {"to": "npz", "flat": True},
        {"to": "npz", "compression": "zstd"},
        {"to": "orbax", "chunk_size": 0},
        {"to": "orbax", "cast": "int8"},
        {"to": "orbax", "cast": "no"},
        {"to": "orbax", "cast": {"nothing": "bfloat16"}},
        {"to": "orbax", "cast": {"params.n": "bfloat16"}},
        {"to": "orbax", "skip": "params"},
        {"to": "orbax", "skip": ["nothing"]},
        {"to": "orbax", "at": "nothing"},
        {"to": "orbax", "rename": {"nothing": "x"}},
        {"to": "orbax", "verify": "yes"},
        {"to": "orbax", "threads": 0},
        {"to": "orbax", "on_progress": 3},
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], ckpt: Path, tmp_path: Path) -> None:
    with pytest.raises(tx.UsageError):
        tx.convert(ckpt, tmp_path / "x", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt"]


def test_two_leaves_of_one_name_are_refused(ckpt: Path, tmp_path: Path) -> None:
    with pytest.raises(tx.SaveError, match="two leaves are named `x`"):
        tx.convert(ckpt, tmp_path / "x", to="npz", rename=lambda _: "x")


def test_without_reading_back_the_result_says_so(ckpt: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    done = tx.convert(
        ckpt, tmp_path / "x", to="npz", verify=False, on_progress=lambda *n: calls.append(n)
    )
    assert not done.verified
    assert "NOT read back" in str(done)
    assert calls[-1] == (done.value_bytes, done.value_bytes)
    calls.clear()
    tx.convert(ckpt, tmp_path / "y", to="npz", on_progress=lambda *n: calls.append(n))
    assert calls[-1] == (2 * done.value_bytes, 2 * done.value_bytes)


def test_damage_of_the_source_is_found(ckpt: Path, tmp_path: Path) -> None:
    (file,) = (ckpt / "d").iterdir()
    data = bytearray(file.read_bytes())
    at = data.index(np.arange(6, dtype=np.float32).tobytes())
    data[at] ^= 1
    file.write_bytes(data)
    with pytest.raises(tx.Corrupted) as caught:
        tx.convert(ckpt, tmp_path / "x", to="npz")
    assert caught.value.leaf == "params.layers.0.w"
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt"]


def test_recorded_fingerprints_are_compared(ckpt: Path, tmp_path: Path) -> None:
    catalog = tx.open(ckpt)
    wrong = replace(catalog, fingerprints=lambda: {"params.n": 1})
    with pytest.raises(tx.Corrupted, match="recorded fingerprint 00000001"):
        tx.convert(wrong, tmp_path / "x", to="npz")


def test_a_source_in_memory_is_converted(ckpt: Path, tmp_path: Path) -> None:
    files = {str(p.relative_to(ckpt)): p.read_bytes() for p in ckpt.rglob("*") if p.is_file()}
    done = tx.convert(Memory(files), tmp_path / "x", to="npz")
    assert done.leaves == 3


def test_tied_tensors_are_named(tmp_path: Path) -> None:
    done = tx.convert(CORPUS / "torch-2.14.1" / "leaves.pt", tmp_path / "x", to="orbax")
    assert ("tied.one", "tied.two") in done.shared
    assert "`tied.one`, `tied.two` are the same bytes in the source" in str(done)


def test_the_other_items_of_a_step_are_named(tmp_path: Path) -> None:
    step = CORPUS / "orbax-0.12.8-manager" / "ckpt" / "20" / "state"
    done = tx.convert(step, tmp_path / "x", to="npz")
    assert "ema" in done.lost["another item of the step"]


def test_the_command_prints_the_result(ckpt: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, ["convert", *arguments])
        return result.exit_code, result.stdout

    code, text = run(
        str(ckpt), str(tmp_path / "m.npz"), "--cast", "params=float16", "--skip", "rate"
    )
    assert code == 0, text
    assert "cast: 1 leaf from float32 to float16: `params.layers.0.w`" in text
    code, text = run(
        str(ckpt), str(tmp_path / "s"), "--to", "safetensors", "--shard-size", "1KiB", "--json"
    )
    found = json.loads(text)
    assert (code, found["ok"], found["leaves"], found["verified"]) == (0, True, 3, True)
    assert run(str(ckpt), str(tmp_path / "m.npz"))[0] == 2
    assert run(str(ckpt), str(tmp_path / "o"), "--to", "orbax", "--chunk-size", "no")[0] == 2
    code, text = run(str(ckpt), str(ckpt), "--to", "orbax", "--json")
    assert (code, json.loads(text)["ok"]) == (2, False)


@pytest.mark.slow
def test_the_memory_does_not_grow_with_the_leaves(tmp_path: Path) -> None:
    """A leaf of 256 MiB, raw or in one zstd chunk, takes less than 160 MiB.

    One of 640 MiB in Fortran order takes less than 340.
    """
    begin = np.arange(1 << 20, dtype=np.float32)
    tree = {"w": np.concatenate([begin] * 64).reshape(8192, 8192)}
    tx.save(tmp_path / "raw", tree)
    tx.convert(
        tmp_path / "raw", tmp_path / "packed", to="orbax", compression="zstd", chunk_size=1 << 28
    )
    catalog = tx.open(tmp_path / "packed")
    assert len(catalog.locate(catalog.entries)["w"]) == 1
    for source in ("raw", "packed"):
        run_limited(
            f"path = {str(tmp_path / source)!r}; tx.convert(path, path + '.safetensors')",
            seconds=60,
            megabytes=160,
        )
    shape = (16384, 10240)
    np.lib.format.open_memmap(tmp_path / "f.npy", "w+", np.float32, shape, fortran_order=True)
    run_limited(
        f"path = {str(tmp_path / 'f.npy')!r}; tx.convert(path, path + '.npz')",
        seconds=60,
        megabytes=340,
    )


def test_skipped_subtrees_leave_no_empty_nodes(tmp_path: Path) -> None:
    ones = np.ones(3, np.float32)
    tree = {"opt": {"m": ones, "none": {}}, "w": ones, "aux": {"none": {}}}
    tx.save(tmp_path / "source", tree)
    done = tx.convert(
        tmp_path / "source", tmp_path / "converted", to="orbax", skip=["opt", "aux.none"]
    )
    left_out = done.lost["a node without leaves that skip= names"]
    assert sorted(left_out) == ["aux.none", "opt.none"]
    written = tx.open(tmp_path / "converted")
    assert (list(written.leaves), dict(written.empties)) == (["w"], {})


def test_hints_are_those_of_a_conversion(tmp_path: Path) -> None:
    import jax

    tx.save(tmp_path / "source", {"key": jax.random.key(0), "text": "a"})
    for to in ("safetensors", "npz"):
        with pytest.raises(tx.SaveError) as caught:
            tx.convert(tmp_path / "source", tmp_path / "converted", to=to)
        text = str(caught.value)
        assert "metadata=" not in text
        assert "key_data" not in text
        assert text.endswith("hint: skip= leaves them out")
    done = tx.convert(tmp_path / "source", tmp_path / "none", to="safetensors", skip=["*"])
    assert done.leaves == 0
    with pytest.raises(tx.SaveError, match="no reader can tell an empty npz") as caught:
        tx.convert(tmp_path / "none", tmp_path / "converted", to="npz")
    assert caught.value.hint is None


def test_absent_chunks_are_named(tmp_path: Path) -> None:
    meta = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [4],
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2]}},
        "chunk_key_encoding": {"name": "default"},
        "codecs": [{"name": "bytes"}],
        "fill_value": 7,
    }
    (tmp_path / "source" / "a" / "c").mkdir(parents=True)
    (tmp_path / "source" / "a" / "zarr.json").write_text(json.dumps(meta))
    (tmp_path / "source" / "a" / "c" / "0").write_bytes(b"\1\2")
    done = tx.convert(tmp_path / "source", tmp_path / "m.npz", rename={"a": "b"})
    assert done.filled == ("b",)
    assert "chunks of 1 leaf are absent, which means the fill value: `b`" in str(done)
    assert np.load(tmp_path / "m.npz")["b"].tolist() == [1, 2, 7, 7]


def test_empty_nodes_can_be_named(tmp_path: Path) -> None:
    tx.save(tmp_path / "source", {"w": np.ones(3, np.float32), "old": {"none": {}}})
    done = tx.convert(tmp_path / "source", tmp_path / "a", to="orbax", rename={"old": "new"})
    assert dict(tx.open(done.path).empties) == {("new", "none"): "Dict"}
    done = tx.convert(tmp_path / "source", tmp_path / "b", to="orbax", at="old")
    assert (done.leaves, dict(tx.open(done.path).empties)) == (0, {("none",): "Dict"})
    assert tx.diff(tmp_path / "source", tmp_path / "b", at="old").identical


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{source}", "{path}", "--to", "safetensors"], "hint: --skip leaves them out"),
        (["{source}", "{source}2", "--to", "orbax"], "hint: --overwrite replaces a checkpoint"),
        (["{source}", "{path}.npz", "--chunk-size", "5"], "--chunk-size is for --to orbax"),
        (["{source}", "{path}.npz", "--skip", "x"], "Expected --skip names of leaves"),
        (["{source}", "{path}.npz", "--at", "x"], "Expected --at a subtree of"),
    ],
)
def test_the_command_names_its_own_options(arguments: list[str], said: str, tmp_path: Path) -> None:
    tx.save(tmp_path / "source", {"w": np.ones(3, np.float32), "text": "a"})
    tx.save(tmp_path / "source2", {"w": np.ones(3, np.float32)})
    given = [each.format(source=tmp_path / "source", path=tmp_path / "m") for each in arguments]
    result = CliRunner().invoke(main, ["convert", *given])
    assert result.exit_code == 2
    assert said in result.stderr
    assert "=" not in result.stderr
    result = CliRunner().invoke(main, ["convert", *given, "--json"])
    error = json.loads(result.stdout)["error"]
    assert said in f"{error['what']}; hint: {error['hint']}"


def test_all_leaves_that_no_decoder_is_for_are_named_with_the_option_that_leaves_them_out(
    tmp_path: Path,
) -> None:
    source = tmp_path / "tree.zarr"
    shutil.copytree(CORPUS / "zarr-2.18.7" / "tree.zarr", source)
    for name in ("kernel", "encoder/mask"):
        file = source / name / ".zarray"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"compressor": {"id": "bz2"}}))
    found = CliRunner().invoke(main, ["convert", str(source), str(tmp_path / "x"), "--to", "orbax"])
    assert (found.exit_code, found.stderr) == (
        2,
        "error: templax does not read codec `bz2` (`encoder.mask`, `kernel`); hint: --skip leaves"
        " them out\n",
    )
    assert not (tmp_path / "x").exists()
    done = tx.convert(source, tmp_path / "x", to="orbax", skip=["encoder.mask", "kernel"])
    assert done.leaves == len(tx.open(source).leaves) - 2


def test_bytes_without_a_dtype_are_refused_with_what_helps(tmp_path: Path) -> None:
    values = np.array([1, -3], ml_dtypes.int4)
    np.savez(tmp_path / "a.npz", w=values)
    with pytest.raises(tx.SaveError) as caught:
        tx.convert(tmp_path / "a.npz", tmp_path / "b", to="orbax")
    assert str(caught.value) == (
        "This tree can't be saved: `w` is an array of dtype void8, of bytes of which the file does"
        " not say what they are; hint: skip= leaves them out, or restore with a template that names"
        " their dtype, and save that"
    )
    tx.save(tmp_path / "b", tx.restore(tmp_path / "a.npz", {"w": values}))
    assert tx.open(tmp_path / "b").leaves["w"].dtype == values.dtype


def test_errors_name_the_arguments_of_convert(tmp_path: Path) -> None:
    source, path = CORPUS / "npz-stored" / "params.npz", tmp_path / "x.safetensors"
    expected = f'Expected a path that ends in `.npz`, or to="safetensors", got to="npz" and {path}'
    with pytest.raises(tx.UsageError) as suffix:
        tx.convert(source, path, to="npz")
    assert str(suffix.value) == expected
    found = CliRunner().invoke(main, ["convert", str(source), str(path), "--to", "npz"])
    assert found.stderr == f"error: {expected.replace('to=', '--to ')}\n".replace('"', "")
    with pytest.raises(tx.UsageError) as option:
        tx.convert(source, tmp_path / "x.npz", shard_size=10)
    assert str(option.value) == 'shard_size= is for to="safetensors", got to="npz"'


def test_a_dtype_of_another_byte_order_is_that_of_this_machine(tmp_path: Path) -> None:
    values = {"w": np.array([1.5, 10, -3], np.float32)}
    tx.save(tmp_path / "ckpt", values)
    for i, cast in enumerate((">f2", np.dtype(">f2"), "<f2")):
        path = tmp_path / f"{i}.safetensors"
        done = tx.convert(tmp_path / "ckpt", path, cast=cast)
        assert done.casts[0].written == "float16"
        assert safetensors.numpy.load_file(path)["w"].tolist() == [1.5, 10, -3]


def test_none_as_a_dtype_leaves_leaves_as_they_are(tmp_path: Path) -> None:
    tx.save(tmp_path / "ckpt", {"norm": np.ones(2, np.float32), "w": np.ones(2, np.float32)})
    done = tx.convert(tmp_path / "ckpt", tmp_path / "x.npz", cast={"norm": None, "*": "float16"})
    assert [cast.name for cast in done.casts] == ["w"]
    assert np.load(tmp_path / "x.npz")["norm"].dtype == np.float32


@pytest.mark.parametrize(
    ("dtype", "lost"),
    [
        ("float4_e2m1fn", 4),
        ("float6_e2m3fn", 4),
        ("float6_e3m2fn", 4),
        ("float8_e4m3fn", 3),  # which has NaN
        ("float16", 1),
        ("bfloat16", 0),
    ],
)
@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float64"])
def test_values_that_a_dtype_cannot_hold_are_counted(
    tmp_path: Path, dtype: str, lost: int, stored: str
) -> None:
    values = np.array([1, np.nan, np.inf, -np.inf, 1e6, 6, 0], np.float64).astype(stored)
    tx.save(tmp_path / "ckpt", {"w": values})
    done = tx.convert(tmp_path / "ckpt", tmp_path / "x", to="orbax", cast=dtype)
    assert done.overflows == lost
    assert (f"that {dtype} can't hold, of `w`" in str(done)) == bool(lost)


def test_names_to_skip_may_come_from_a_generator(tmp_path: Path) -> None:
    tx.save(tmp_path / "ckpt", {"w": np.ones(2), "secret": np.ones(3)})
    done = tx.convert(tmp_path / "ckpt", tmp_path / "x.npz", skip=(name for name in ["secret"]))
    assert np.load(tmp_path / "x.npz").files == ["w"]
    assert done.lost == {"a leaf that skip= names": ("secret",)}
    for wrong in (None, "secret", [1]):
        with pytest.raises(tx.UsageError, match="Expected skip= a list of names"):
            tx.convert(tmp_path / "ckpt", tmp_path / "y.npz", skip=wrong)  # pyright: ignore[reportArgumentType]


def test_metadata_of_a_file_is_carried_over_whatever_its_keys(tmp_path: Path) -> None:
    keys = ("format", "item", "items", "not read", "use_ocdbt", "total_size")
    metadata = dict.fromkeys(keys, "mine")
    save_file = safetensors.numpy.save_file
    save_file({"w": np.ones(3, np.float32)}, tmp_path / "a.safetensors", metadata)
    done = tx.convert(tmp_path / "a.safetensors", tmp_path / "x", to="orbax")
    assert tx.open(tmp_path / "x").metadata["custom_metadata"] == metadata
    back = tx.convert(tmp_path / "x", tmp_path / "b.safetensors")
    assert tx.open(tmp_path / "b.safetensors").metadata == metadata
    assert done.lost == back.lost == {}
    tx.save(tmp_path / "y", {"w": np.ones(3)}, metadata={"templax.crc32c": "mine"})
    done = tx.convert(tmp_path / "y", tmp_path / "c.safetensors")
    assert done.lost == {"metadata that the format has no place for": ("templax.crc32c",)}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--cast", "w=float16", "--cast", "w=bfloat16"], "one dtype for 'w', got 'float16' and"),
        (["--cast", "float16", "--cast", "*=bfloat16"], "one dtype for '*', got 'float16' and"),
        (["--cast", "*=float16", "--cast", "w=bfloat16"], "comes after one that matches"),
        (["--rename", "w=a", "--rename", "w=b"], "one new name for 'w', got 'a' and 'b'"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    tmp_path: Path, arguments: list[str], said: str
) -> None:
    tx.save(tmp_path / "ckpt", {"w": np.ones(3, np.float32)})
    given = [str(tmp_path / "ckpt"), str(tmp_path / "x.npz"), *arguments]
    result = CliRunner().invoke(main, ["convert", *given])
    assert (result.exit_code, said in result.output) == (2, True), result.output
    assert not (tmp_path / "x.npz").exists()


def test_a_misspelled_name_of_an_empty_node_is_hinted_at_by_its_new_name(tmp_path: Path) -> None:
    tx.save(tmp_path / "ckpt", {"enc": {"w": np.ones(2), "empty": {}}})
    with pytest.raises(tx.UsageError, match=r"nearest: `dec\.empty`"):
        tx.convert(tmp_path / "ckpt", tmp_path / "x.npz", rename={"enc": "dec"}, skip=["dec.emty"])
