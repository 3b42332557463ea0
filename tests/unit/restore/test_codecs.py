"""Old checkpoints with gzip chunks, and arrays with a codec that templax does not read."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore as ts

import templax as tx
from helpers import CORPUS, abstract, copy_case, restore_as_saved, run_cli

TREE = {
    "a": np.arange(2000, dtype=np.float32).reshape(50, 40),
    "b": np.arange(7, dtype=np.int32),
    "c": np.asarray(2.5, jnp.bfloat16),
}


def write_arrays(path: Path, tree: dict[str, Any], compressor: Any, **metadata: Any) -> Path:
    """One directory per array, as Orbax wrote them before it used a database."""
    for name, value in tree.items():
        chunks = [max(1, -(-n // 2)) for n in value.shape]
        spec = {
            "driver": "zarr",
            "kvstore": f"file://{path}/{name}/",
            "metadata": {"compressor": compressor, "chunks": chunks, **metadata},
            "create": True,
        }
        store = ts.open(spec, dtype=value.dtype.name, shape=value.shape).result()
        store.write(value).result()
    return path


def recompress(path: Path) -> Path:
    """Makes the zstd chunks of an old checkpoint gzip, as Orbax 0.2.1 with JAX 0.4.8 wrote them."""
    import zstandard

    for file in path.rglob(".zarray"):
        about = json.loads(file.read_text())
        assert about["compressor"]["id"] == "zstd"
        file.write_text(json.dumps(about | {"compressor": {"id": "gzip", "level": 1}}))
        for chunk in file.parent.iterdir():
            if chunk.name != ".zarray":
                stream = zstandard.ZstdDecompressor().stream_reader(chunk.read_bytes())
                chunk.write_bytes(gzip.compress(stream.read(), 1))
    return path


@pytest.mark.parametrize("case", ["orbax-0.2.3-default", "orbax-0.12.8-noocdbt"])
def test_a_checkpoint_of_orbax_before_zstd_is_restored(case: str, tmp_path: Path) -> None:
    theirs = CORPUS / case / "ckpt"
    path = recompress(copy_case(case, tmp_path / "ckpt"))
    want, got = tx.fingerprint(restore_as_saved(theirs)), tx.fingerprint(restore_as_saved(path))
    assert got.leaves == want.leaves
    verified = tx.verify(path)
    assert verified.ok
    assert verified.checked_bytes > 0  # gzip has checksums, which zstd chunks here had not


@pytest.mark.parametrize("level", [0, 1, 9])
def test_gzip_chunks_are_read_in_whole_and_in_part(level: int, tmp_path: Path) -> None:
    path = write_arrays(tmp_path / "ckpt", TREE, {"id": "gzip", "level": level})
    got = tx.restore(path, abstract(TREE))
    for name, value in TREE.items():
        assert np.asarray(got[name]).tobytes() == value.tobytes()
    plan = tx.plan(path, abstract(TREE))
    assert plan.decoded_chunks == 7
    assert tx.verify(path).unchecked == ()
    assert tx.restore(path, abstract(TREE), verify="required")["b"].tolist() == list(range(7))


def test_altered_gzip_is_damage_at_its_leaf(tmp_path: Path) -> None:
    path = write_arrays(tmp_path / "ckpt", TREE, {"id": "gzip", "level": 1})
    chunk = path / "a" / "1.0"
    data = chunk.read_bytes()
    for altered in (data[:-6] + bytes(2) + data[-4:], data[:-9], data[: len(data) // 2], b""):
        chunk.write_bytes(altered)
        with pytest.raises(tx.Corrupted) as caught:
            tx.restore(path, abstract(TREE))
        assert (caught.value.leaf, caught.value.file) == ("a", "a/1.0")
        assert [(d.leaf, d.file) for d in tx.verify(path).damages] == [("a", "a/1.0")]


def test_a_gzip_chunk_that_cannot_hold_its_array_is_refused_unread(tmp_path: Path) -> None:
    path = write_arrays(tmp_path / "ckpt", {"a": TREE["a"]}, {"id": "gzip", "level": 1})
    file = path / "a" / ".zarray"
    about = json.loads(file.read_text())
    file.write_text(json.dumps(about | {"shape": [2**20, 2**12], "chunks": [2**20, 2**12]}))
    (path / "a" / "0.0").write_bytes(gzip.compress(bytes(1000)))
    with pytest.raises(tx.Corrupted, match=r"that can't decode to as many - at `a`"):
        tx.restore(path, {"a": np.empty((2**20, 2**12), np.float32)})


UNKNOWN: dict[str, dict[str, Any]] = {
    "templax does not read codec `lzma`": {"compressor": {"id": "lzma", "preset": 1}},
    "templax does not read codec `bz2`": {"compressor": {"id": "bz2", "level": 1}},
    "templax reads no zarr filters, got `delta`": {"filters": [{"id": "delta", "dtype": "<f4"}]},
    "templax reads arrays of order C and F, got `X`": {"order": "X"},
}


@pytest.fixture(params=UNKNOWN)
def unknown(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """A checkpoint whose leaf `a` templax can't decode, and what it says."""
    path = write_arrays(tmp_path / "ckpt", TREE, {"id": "zstd", "level": 1})
    file = path / "a" / ".zarray"
    file.write_text(json.dumps(json.loads(file.read_text()) | UNKNOWN[request.param]))
    return path, request.param


def test_what_needs_no_values_works_with_an_unknown_codec(unknown: tuple[Path, str]) -> None:
    path, _ = unknown
    catalog = tx.open(path)
    assert {name: e.shape for name, e in catalog.leaves.items()} == {
        name: value.shape for name, value in TREE.items()
    }
    assert tx.check(path, abstract(TREE)).ok
    assert tx.check(path, catalog.template()).ok
    for command in ("ls", "template"):
        result = run_cli(command, path)
        assert result.exit_code == 0
        assert "float32" in result.output


def test_an_unknown_codec_is_an_error_when_its_leaf_is_read(unknown: tuple[Path, str]) -> None:
    path, said = unknown
    for call in (tx.restore, tx.plan):
        with pytest.raises(tx.Unsupported) as caught:
            call(path, abstract(TREE))
        assert (caught.value.what, caught.value.leaf) == (said, "a")
    rest = {name: value for name, value in TREE.items() if name != "a"}
    got = tx.restore(path, abstract(rest), extra="ignore")
    assert got["b"].tolist() == list(range(7))


def test_verify_reads_what_it_cannot_decode_and_says_so(unknown: tuple[Path, str]) -> None:
    path, _ = unknown
    verified = tx.verify(path)
    assert verified.ok
    assert "a" in verified.unchecked
    (path / "a" / "1.0").unlink()
    (path / "b" / "0").write_bytes(b"x")
    assert {damage.leaf for damage in tx.verify(path).damages} == {"a", "b"}


def test_verify_names_leaves_whose_chunks_it_cannot_find(tmp_path: Path) -> None:
    path = write_arrays(tmp_path / "ckpt", TREE, None)
    shutil.rmtree(path / "a")
    (path / "a").mkdir()
    about = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [50, 40],
        "data_type": "float32",
        "chunk_grid": {"name": "rectilinear", "configuration": {}},
        "chunk_key_encoding": {"name": "default"},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
    }
    (path / "a" / "zarr.json").write_text(json.dumps(about))
    verified = tx.verify(path)
    assert "a" in verified.unchecked
    assert verified.unchecked_bytes >= TREE["a"].nbytes
    with pytest.raises(tx.Unsupported, match="does not read chunk grid `rectilinear` - at `a`"):
        tx.restore(path, abstract(TREE))


def test_a_python_number_with_an_unknown_codec_does_not_keep_check_from_working(
    tmp_path: Path,
) -> None:
    path = copy_case("orbax-0.12.8-noocdbt", tmp_path / "ckpt")
    for file in path.rglob(".zarray"):
        about = json.loads(file.read_text())
        file.write_text(json.dumps(about | {"compressor": {"id": "bz2"}}))
    template = tx.open(path).template()
    assert tx.check(path, template).ok
    with pytest.raises(tx.Unsupported, match="codec `bz2`") as caught:
        tx.restore(path, template)
    arrays = [entry.name for entry in tx.open(path).entries if entry.kind != "string"]
    assert [name for name in arrays if f"`{name}`" not in str(caught.value)] == []
    assert caught.value.hint is None  # there are no others


def write_with_codecs(path: Path, values: dict[str, np.ndarray], codecs: dict[str, str]) -> Path:
    path = write_arrays(path, values, None)
    for name, codec in codecs.items():
        file = path / name / ".zarray"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"compressor": {"id": codec}}))
    return path


def test_an_error_names_undecodable_leaves_of_all_checkpoints_that_supply_some(
    tmp_path: Path,
) -> None:
    a, b, c = np.arange(4.0), np.arange(5.0), np.arange(6.0)
    path = write_with_codecs(tmp_path / "one", {"a": a, "b": b}, {"a": "lzma"})
    other = write_with_codecs(tmp_path / "other", {"a": a, "c": c}, {"c": "lzma"})
    with pytest.raises(tx.Unsupported) as caught:
        tx.restore(path, {"a": a, "b": b, "c": c}, missing=other)
    assert str(caught.value) == (
        f"templax does not read codec `lzma` (`a` of {path}); templax does not read codec `lzma`"
        f" (`c` of {other}); hint: to leave them out, write `...` for them in the template"
    )
    got = tx.restore(path, {"a": ..., "b": b, "c": ...}, missing=other)
    assert got["b"].tolist() == b.tolist()


def test_an_error_names_all_leaves_with_an_unknown_codec_and_what_restores_the_others(
    tmp_path: Path,
) -> None:
    values = {name: np.arange(4.0) for name in "abcd"}
    codecs = {"a": "lzma", "c": "lzma", "d": "bz2"}
    path = write_with_codecs(tmp_path / "ckpt", values, codecs)
    said = (
        "templax does not read codec `lzma` (`a`, `c`); templax does not read codec `bz2` (`d`);"
        " hint: to leave them out, write `...` for them in the template"
    )
    for call in (tx.restore, tx.plan):
        with pytest.raises(tx.Unsupported) as caught:
            call(path, values)
        assert str(caught.value) == said
    got = tx.restore(path, {"a": ..., "b": np.zeros(4), "c": ..., "d": ...})
    assert got["b"].tolist() == [0, 1, 2, 3]
    with pytest.raises(tx.Unsupported, match="hint: skip= leaves them out"):
        tx.convert(path, tmp_path / "copy", to="npz")
    tx.convert(path, tmp_path / "copy", to="npz", skip=["a", "c", "d"])
    (path / "b" / "0").unlink()
    with pytest.raises(tx.TemplaxError) as caught:
        tx.plan(path, values)
    assert "to leave them out" not in str(caught.value)
