"""Saves as npz: numpy and zipfile read them bit for bit, and damage is noticed."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import templax as tx
from helpers import count_examples
from templax._save import jobs, npz_item, writer
from templax.formats import npz_write

TREE = {
    "a": {"w": np.arange(6, dtype="f4").reshape(2, 3), "none": None, "empty": {}},
    "layers": [np.ones(3, ml_dtypes.bfloat16), np.zeros((0, 5), np.int8)],
    "step": 7,
    "big": np.arange(3_000_000, dtype="f4").reshape(3000, 1000),
    "fortran": np.asfortranarray(np.arange(12, dtype="i2").reshape(3, 4)),
    "swapped": np.arange(3, dtype=">i4"),
    "flag": True,
    "z": np.complex64(2 + 1j),
}


def flatten(tree: Any) -> dict[str, np.ndarray]:
    keyed, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(k, simple=True, separator="."): np.asarray(v) for k, v in keyed}


def assert_peers_read(path: Path, want: dict[str, np.ndarray]) -> None:
    """numpy reads the arrays bit for bit, and zipfile finds every CRC-32 right."""
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    with np.load(path) as found:
        assert sorted(found.files) == sorted(want)
        for name, value in want.items():
            value = value.astype(value.dtype.newbyteorder("="))
            got = found[name]
            assert got.shape == value.shape
            assert got.view(value.dtype).tobytes() == value.tobytes()


def assert_restored(path: Path, tree: Any) -> None:
    got, want = flatten(tx.restore(path, tree)), flatten(tree)
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert (got[name].dtype, got[name].shape) == (value.dtype, value.shape)
        assert got[name].tobytes() == value.tobytes()


@pytest.mark.parametrize("where", ["x.npz", "x"])
@pytest.mark.parametrize("wait", [True, False])
def test_a_tree_comes_back_and_numpy_reads_it(tmp_path: Path, where: str, wait: bool) -> None:
    saved = tx.save(tmp_path / where, TREE, format="npz", wait=wait).wait()
    path = tmp_path / where if where == "x.npz" else tmp_path / "x" / "arrays.npz"
    assert path.is_file()
    assert_restored(tmp_path / where, TREE)
    assert_peers_read(path, flatten(TREE))
    catalog = tx.open(tmp_path / where)
    assert catalog.format == "npz"
    assert saved.fingerprint == tx.fingerprint(TREE) == tx.fingerprint(catalog)
    assert saved.nbytes == path.stat().st_size
    assert tx.verify(tmp_path / where).checked_bytes == catalog.nbytes


_names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
_dtypes = st.sampled_from(["?", "u1", "i1", "<i2", "<u4", "<i8", "<f2", "<f4", "<f8", "<c8", "V2"])


@st.composite
def _arrays(draw: st.DrawFn) -> np.ndarray:
    name = draw(_dtypes)
    dtype = np.dtype(ml_dtypes.bfloat16 if name == "V2" else name)
    shape = draw(st.lists(st.integers(0, 9), max_size=4).map(tuple))
    nbytes = math.prod(shape) * dtype.itemsize
    data = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, nbytes, np.uint8)
    return (data % 2 if dtype.kind == "b" else data).view(dtype).reshape(shape)


@pytest.mark.slow
@count_examples(60)
@example(tree={"": np.zeros(0, "?"), ".npy": np.array(True)})
@example(tree={"a.npy": np.ones(2), "b.npy": np.ones(3)})
@given(tree=st.dictionaries(_names, _arrays(), min_size=1, max_size=8))
def test_any_arrays_come_back_or_are_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[str, np.ndarray]
) -> None:
    path = tmp_path_factory.mktemp("save") / "x.npz"
    said = ""
    try:
        tx.save(path, tree)
    except tx.SaveError as error:
        said = str(error)
    assert path.exists() != bool(said)
    if said:
        hidden = [name for name in tree if f"{name}.npy" in tree]
        assert hidden or any("/" in name for name in tree)
        assert ("has a name by which numpy finds another array" in said) == bool(hidden)
        assert hidden or "has a name that npz would split elsewhere" in said
        return
    assert_peers_read(path, tree)
    assert_restored(path, tree)
    for member in zipfile.ZipFile(path).infolist():
        ((name, value),) = [(n, v) for n, v in tree.items() if f"{n}.npy" == member.filename]
        like = io.BytesIO()
        np.save(like, value)
        data = path.read_bytes()
        extra = int.from_bytes(data[member.header_offset + 28 :][:2], "little")
        begin = member.header_offset + 30 + len(f"{name}.npy".encode()) + extra
        assert begin % 64 == 0
        assert data[begin : begin + member.file_size] == like.getvalue()


@pytest.mark.slow
def test_the_bytes_are_those_of_numpy_whatever_writes_them_when(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name, size in (
        (writer, "STEP_BYTES", 1000),
        (jobs, "SMALL_BYTES", 64),
        (jobs, "PACK_BYTES", 512),
        (jobs, "RUN_BYTES", 8192),
    ):
        monkeypatch.setattr(module, name, size)
    tree = {f"w{i}": np.arange(i * i, dtype="f4") for i in range(60)} | {"big": TREE["big"]}
    tx.save(tmp_path / "x.npz", tree, threads=4)
    assert_peers_read(tmp_path / "x.npz", tree)
    assert_restored(tmp_path / "x.npz", tree)


@pytest.mark.parametrize("limit", [1, 400, 2000])
def test_large_archives_are_zip64(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(npz_write, "_MAX32", limit)
    monkeypatch.setattr(npz_write, "_MAX16", 3)
    npz_write._encode_sizes.cache_clear()
    tree = {f"w{i}": np.arange(40 * i, dtype="f4") for i in range(8)}
    try:
        tx.save(tmp_path / "x.npz", tree)
    finally:
        npz_write._encode_sizes.cache_clear()
    data = (tmp_path / "x.npz").read_bytes()
    assert b"PK\6\6" in data
    assert b"PK\6\7" in data
    assert_peers_read(tmp_path / "x.npz", tree)
    assert_restored(tmp_path / "x.npz", tree)
    assert tx.fingerprint(tx.open(tmp_path / "x.npz")) == tx.fingerprint(tree)


def test_names_are_joined_by_what_reads_them_back(tmp_path: Path) -> None:
    haiku = {"mlp/~/linear_0": {"w": np.ones(2)}, "head/linear": {"b": np.ones(1)}}
    tx.save(tmp_path / "haiku.npz", haiku)
    assert np.load(tmp_path / "haiku.npz").files == ["head/linear/b", "mlp/~/linear_0/w"]
    assert_restored(tmp_path / "haiku.npz", haiku)
    dotted = {"a.b": np.ones(2), "c": {"d": np.ones(1)}}
    tx.save(tmp_path / "dotted.npz", dotted)
    assert np.load(tmp_path / "dotted.npz").files == ["a.b", "c.d"]
    assert_restored(tmp_path / "dotted.npz", dotted)
    with pytest.raises(tx.SaveError, match=r"`a/b.c` has a name that npz would split elsewhere"):
        tx.save(tmp_path / "mixed.npz", {"a/b": {"c": np.ones(1)}})
    assert not (tmp_path / "mixed.npz").exists()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("text", "`w` is a string, which templax does not read from npz"),
        (jax.random.key(0), "`w` is a typed PRNG key, .*: save jax.random.key_data"),
        (jnp.ones(3, jnp.int4), "`w` has dtype int4, which npz stores as bytes without a name"),
        (jnp.ones(3, jnp.float8_e5m2), "`w` has dtype float8_e5m2, which npz"),
        (None, "Expected arrays to save, got none"),
    ],
)
def test_what_npz_cannot_name_is_refused(tmp_path: Path, value: Any, said: str) -> None:
    with pytest.raises(tx.SaveError, match=said):
        tx.save(tmp_path / "x.npz", {"w": value})
    assert list(tmp_path.iterdir()) == []


def test_a_first_name_that_hides_the_format_is_refused(tmp_path: Path) -> None:
    tx.save(tmp_path / "x.npz", {"w" * 470: np.ones(1)})
    assert tx.open(tmp_path / "x.npz").format == "npz"
    with pytest.raises(tx.SaveError, match="a first name that is 2,000 characters long"):
        tx.save(tmp_path / "y.npz", {"w" * 2000: np.ones(1)})


def test_a_restore_notices_damage_and_numpy_may_change_the_archive(tmp_path: Path) -> None:
    path, tree = tmp_path / "x.npz", {"a": np.arange(100.0), "b": np.arange(3)}
    tx.save(path, tree)
    data = bytearray(path.read_bytes())
    at = data.index(np.arange(100.0).tobytes()) + 80
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(tx.Corrupted, match="a"):
        tx.restore(path, tree)
    with zipfile.ZipFile(path, "a") as archive:  # keeps the fields of the other members
        archive.writestr("c.npy", _npy(np.ones(2)))
    tx.restore(path, {"b": tree["b"], "c": np.ones(2)}, extra="ignore")
    assert tx.open(path).fingerprints is None


def test_checksums_count_only_for_the_bytes_they_are_of(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    tx.save(path, {"a": np.arange(4.0)})
    with zipfile.ZipFile(path) as archive:
        (info,) = archive.infolist()
        with zipfile.ZipFile(tmp_path / "y.npz", "w") as other:
            info.extra = info.extra
            other.writestr(info, _npy(np.arange(4.0) + 1))
    assert tx.open(path).fingerprints is not None
    assert tx.open(tmp_path / "y.npz").fingerprints is None
    assert tx.restore(tmp_path / "y.npz", {"a": np.zeros(4)})["a"].tolist() == [1, 2, 3, 4]


def test_an_archive_that_is_gone_on_with_gets_the_crc_of_all_bytes(tmp_path: Path) -> None:
    values = np.arange(1000, dtype="f4")
    tx.save(tmp_path / "x.npz", {"w": values})
    item = npz_item.NpzItem(_collect({"w": values}))
    ((_, layout),) = item._layouts
    from templax.storage.staging import Staging

    with Staging(tmp_path / "y", overwrite=False) as staging:
        file = staging.create("arrays.npz")
        file.write(values.tobytes(), layout.starts[0])
        archive: Any = item.make_file(file, layout)
        archive.write(memoryview(values.tobytes())[:400], layout.starts[0])
        crc = archive.find_crc(0)
    assert crc == zipfile.ZipFile(tmp_path / "x.npz").infolist()[0].CRC


def _collect(tree: Any) -> Any:
    from templax._save.snapshot import collect_leaves

    return collect_leaves(tree)[0]


def _npy(value: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, value)
    return out.getvalue()
