"""Arrays in numpy's formats: round trips with numpy, names, damage, and what is refused."""

from __future__ import annotations

import io
import struct
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import templax as tx
from helpers import run_cli, skip_without_dtype
from templax._audit import diff_blocks
from templax._plan import mapped_parts
from templax.formats import numpy_files, zip_members
from templax.formats.numpy_files import split_names
from templax.storage import Memory

RNG = np.random.default_rng(0)

TREE: dict[str, Any] = {
    "plain": RNG.normal(size=(3, 5)).astype("f4"),
    "fortran": np.asfortranarray(RNG.normal(size=(4, 6, 2))),
    "bfloat16": RNG.normal(size=(7, 3)).astype(ml_dtypes.bfloat16),
    "e5m2": RNG.normal(size=7).astype(ml_dtypes.float8_e5m2),
    "scalar": np.float16(3),
    "empty": np.zeros((0, 3), "i8"),
    "complex": np.array([1 + 2j, 3], "c8"),
    "bool": np.array([[True], [False]]),
}


def like(tree: Any) -> Any:
    """The tree as abstract numpy arrays."""
    return jax.tree.map(
        lambda leaf: np.broadcast_to(np.zeros((), np.asarray(leaf).dtype), np.shape(leaf)), tree
    )


def assert_same(got: Mapping[str, Any], want: Mapping[str, Any]) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert got[name].dtype == value.dtype, name
        assert got[name].shape == value.shape, name
        assert got[name].tobytes() == value.tobytes(), name


def archive(members: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as writer:
        for name, data in members.items():
            writer.writestr(name, data)
    return file.getvalue()


def save(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def open_bytes(data: bytes) -> tx.Catalog:
    return tx.open(Memory({"": data}))


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("stored_in", ["file", "memory"])
def test_archives_of_numpy_are_restored_bit_for_bit(
    tmp_path: Path, write: Callable[..., None], stored_in: str
) -> None:
    path = tmp_path / "a.npz"
    write(path, **TREE)
    catalog = tx.open(path if stored_in == "file" else Memory({"": path.read_bytes()}))
    assert catalog.format == "npz"
    assert [entry.name for entry in catalog.entries] == list(TREE)
    assert_same(tx.restore(catalog, like(TREE)), TREE)
    jax_tree = {name: TREE[name] for name in ("plain", "bfloat16", "scalar")}
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), jax_tree)
    assert_same(tx.restore(catalog, template, extra="ignore"), jax_tree)


@pytest.mark.parametrize("name", TREE)
def test_a_single_array_is_the_whole_tree(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.npy"
    np.save(path, TREE[name])
    catalog = tx.open(path)
    assert (catalog.format, [entry.name for entry in catalog.entries]) == ("npy", [""])
    got = tx.restore(path, like(TREE[name]))
    assert_same({"": got}, {"": np.asarray(TREE[name])})


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_big_endian_arrays_are_restored(tmp_path: Path, write: Callable[..., None]) -> None:
    bits = RNG.bytes(4 * 6 * 16)
    codes = ["i2", "u2", "f2", "i4", "u4", "f4", "i8", "u8", "f8", "c8", "c16"]
    stored = {code: np.frombuffer(bits, f">{code}", 24).reshape(4, 6) for code in codes}
    stored |= {f"F{code}": np.asfortranarray(value) for code, value in stored.items()}
    stored["scalar"] = np.array(3, ">i4")
    write(tmp_path / "a.npz", **stored)
    want = {name: value.astype(value.dtype.newbyteorder("=")) for name, value in stored.items()}
    got = tx.restore(tmp_path / "a.npz", like(want))
    for name, value in want.items():
        assert got[name].dtype == value.dtype
        assert got[name].tobytes() == value.tobytes()
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), "x")
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    rows = jax.ShapeDtypeStruct((4, 6), jnp.float32, sharding=sharding)
    some = tx.restore(tmp_path / "a.npz", {"f4": rows, "Ff4": rows}, extra="ignore")
    assert np.asarray(some["f4"]).tobytes() == want["f4"].tobytes()
    assert np.asarray(some["Ff4"]).tobytes() == want["f4"].tobytes()
    assert tx.verify(tmp_path / "a.npz").ok

    np.save(tmp_path / "a.npy", stored["c16"])
    assert tx.restore(tmp_path / "a.npy", like(want["c16"])).tobytes() == want["c16"].tobytes()
    assert tx.verify(tmp_path / "a.npy").ok
    tx.convert(tmp_path / "a.npz", tmp_path / "b.npz")
    copy = np.load(tmp_path / "b.npz")
    assert {name: copy[name].tobytes() for name in want} == {
        k: v.tobytes() for k, v in want.items()
    }


def test_rows_of_an_array_in_fortran_order_are_restored_apart(tmp_path: Path) -> None:
    devices = np.array(jax.devices()[:2])
    sharding = jax.sharding.NamedSharding(
        jax.sharding.Mesh(devices, "x"), jax.sharding.PartitionSpec("x")
    )
    value = np.asfortranarray(RNG.normal(size=(4, 6)).astype("f4"))
    for write in (np.savez, np.savez_compressed):
        write(tmp_path / "a.npz", w=value)
        template = {"w": jax.ShapeDtypeStruct((4, 6), jnp.float32, sharding=sharding)}
        got = tx.restore(tmp_path / "a.npz", template)["w"]
        assert np.array_equal(got, value)


@given(shape=st.lists(st.integers(0, 7), min_size=2, max_size=4), cut=st.integers(1, 64))
def test_arrays_in_fortran_order_are_read_in_pieces(shape: list[int], cut: int) -> None:
    value = np.asfortranarray(RNG.integers(0, 1 << 30, shape))
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as directory:
        patch.setattr(numpy_files, "_MIN_DIVIDED", 0)
        patch.setattr(numpy_files, "_RUN_BYTES", 0)
        patch.setattr(mapped_parts, "SCATTER_BYTES", cut)
        path = Path(directory, "a.npz")
        np.savez(path, w=value)
        catalog = tx.open(path)
        if value.size > 1 and sum(n > 1 for n in shape) > 1:
            (chunk,) = catalog.locate(catalog.entries)["w"]
            assert (chunk.order, chunk.origin is not None) == ("C", True)
        assert np.array_equal(tx.restore(path, like({"w": value}))["w"], value)
        assert tx.verify(path).ok
        patch.setattr(diff_blocks, "SPREAD_BYTES", 4 * cut)
        patch.setattr(diff_blocks, "BLOCK_BYTES", cut)
        for at in (0, 1 << 30):  # as the format locates it, and as a conversion does
            patch.setattr(numpy_files, "_MIN_DIVIDED", at)
            tx.convert(path, Path(directory, f"{at}.safetensors"))
            assert tx.diff(path, Path(directory, f"{at}.safetensors")).identical
            copy = tx.restore(Path(directory, f"{at}.safetensors"), like({"w": value}))["w"]
            assert np.array_equal(copy, value)


def test_a_mapping_reshapes_an_array_in_fortran_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = np.asfortranarray(RNG.normal(size=(4, 6, 5)))
    np.savez(tmp_path / "a.npz", w=value)
    rules = {"k": tx.From("w", "(a b) c d -> b d (c a)", a=2)}
    want = value.reshape(2, 2, 6, 5).transpose(1, 3, 2, 0).reshape(2, 5, 12)
    monkeypatch.setattr(numpy_files, "_RUN_BYTES", 0)
    for at in (0, 1 << 30):
        monkeypatch.setattr(numpy_files, "_MIN_DIVIDED", at)
        got = tx.restore(tx.view(tmp_path / "a.npz", tx.Mapping(rules)), like({"k": want}))["k"]
        assert np.array_equal(got, want)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "int4", "uint4", "float8_e8m0fnu", "uint8"])
def test_a_byte_without_a_dtype_is_read_as_what_the_template_says(
    tmp_path: Path, name: str
) -> None:
    skip_without_dtype(name)
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    value = np.arange(1, 7).astype(ml_dtypes.float8_e4m3fn if name == "uint8" else dtype)
    np.savez(tmp_path / "a.npz", w=value)
    catalog = tx.open(tmp_path / "a.npz")
    assert catalog.leaves["w"].dtype_name == "void8"
    match = tx.check(catalog, like({"w": value.view(dtype)}), cast="exact")
    assert match.viewed == {"w": name}
    assert f"1 stored without a dtype, read as {name}: `w`" in str(match)
    got = tx.restore(catalog, like({"w": value.view(dtype)}))["w"]
    assert got.dtype == dtype
    assert got.tobytes() == value.tobytes()


def test_a_byte_without_a_dtype_is_no_number_of_another_size(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", w=np.zeros(3, ml_dtypes.float8_e4m3fn))
    for dtype in ("float32", "int8", "bool", "bfloat16"):
        (mismatch,) = tx.check(
            tmp_path / "a.npz", {"w": jax.ShapeDtypeStruct((3,), dtype)}
        ).mismatches
        assert (mismatch.problem, mismatch.found) == ("dtype", "void8")
    catalog = tx.open(tmp_path / "a.npz")
    assert tx.restore(catalog, catalog.template())["w"].dtype == np.uint8


def test_names_are_split_into_key_paths() -> None:
    assert split_names(["a", "b.c", "d/e/f", "g.h/i"]) == [
        ("a",), ("b", "c"), ("d", "e", "f"), ("g.h", "i"),
    ]  # fmt: skip
    assert split_names(["~/w", "x/y/b"]) == [("~", "w"), ("x/y", "b")]
    assert split_names(["a/b//w", "c/d"]) == [("a/b", "w"), ("c", "d")]


@pytest.mark.parametrize("separator", ["/", "//"])
def test_parameters_of_haiku_match(tmp_path: Path, separator: str) -> None:
    params = {
        "mlp/~/linear_0": {"w": np.ones((2, 3), "f4"), "b": np.zeros(3, "f4")},
        "mlp/linear_1": {"w": np.full((3, 3), 2, "f4")},
    }
    flat = {f"{m}{separator}{n}": v for m, inner in params.items() for n, v in inner.items()}
    np.savez(tmp_path / "a.npz", **flat)
    got = tx.restore(tmp_path / "a.npz", like(params))
    assert got.keys() == params.keys()
    for module, inner in params.items():
        assert_same(got[module], inner)
    catalog = tx.open(tmp_path / "a.npz")
    assert catalog.template().keys() == params.keys()


def test_the_hint_for_names_that_do_not_show_that_they_are_haikus_works(tmp_path: Path) -> None:
    params = {"mlp/linear_0": {"w": np.ones(3, "f4")}, "mlp/linear_1": {"w": np.zeros(2, "f4")}}
    np.savez(tmp_path / "a.npz", **{f"{m}/w": inner["w"] for m, inner in params.items()})
    with pytest.raises(tx.TemplateError) as caught:
        tx.restore(tmp_path / "a.npz", like(params))
    assert "as Haiku does" in str(caught.value)
    code = str(caught.value).rpartition("hint: rename=")[2]
    got = tx.restore(tmp_path / "a.npz", like(params), rename=eval(code))  # noqa: S307
    assert got["mlp/linear_0"]["w"].tolist() == [1, 1, 1]


def test_a_member_needs_no_suffix() -> None:
    value = np.arange(3, dtype="i4")
    for name in ("w", "w.npy"):
        catalog = open_bytes(archive({name: save(value)}))
        assert tx.restore(catalog, {"w": like(value)})["w"].tolist() == [0, 1, 2]


def test_zip64_and_sizes_after_the_data_are_read(tmp_path: Path) -> None:
    value = np.arange(5, dtype="f4")

    class Stream(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *arguments: Any) -> int:
            raise io.UnsupportedOperation

        def tell(self) -> int:
            raise io.UnsupportedOperation

    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        file = Stream()
        with (
            zipfile.ZipFile(file, "w", compression) as writer,
            writer.open("w.npy", "w", force_zip64=True) as member,
        ):
            member.write(save(value))
        data = file.getvalue()
        assert data[6] & 8  # the sizes follow the data
        assert tx.restore(open_bytes(data), {"w": like(value)})["w"].tobytes() == value.tobytes()


def test_an_empty_archive_is_named() -> None:
    with pytest.raises(tx.UnknownFormat, match="got an empty zip archive"):
        open_bytes(archive({}))


@pytest.mark.parametrize(
    ("members", "error", "what"),
    [
        ({"w.npy": save(np.array([{}], object))}, tx.Unsupported, "pickled objects.* at `w`"),
        ({"a.npy": save(np.zeros(2)), "a": save(np.zeros(2))}, tx.Corrupted, "two - at `a`"),
        ({"w.npy": save(np.zeros(2)) + b"x"}, tx.Corrupted, "Expected 17 bytes, got float64"),
        ({"w.npy": save(np.zeros(2))[:-1]}, tx.Corrupted, "Expected 15 bytes, got float64"),
        ({"w.npy": b""}, tx.Corrupted, "at `w`"),
        ({"a/w.npy": b"\x93NUMPY"}, tx.Corrupted, r"at `a\.w`"),
    ],
)
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_what_is_wrong_with_a_member_is_named(
    members: dict[str, bytes], error: type[tx.TemplaxError], what: str, compression: int
) -> None:
    with pytest.raises(error, match=what):
        open_bytes(archive(members, compression))


def test_members_that_repeat_or_share_bytes_are_refused() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as writer:
        writer.writestr("w.npy", save(np.zeros(2)))
        with pytest.warns(UserWarning, match="Duplicate"):
            writer.writestr("w.npy", save(np.zeros(2)))
    with pytest.raises(tx.Corrupted, match="one member of a name, got two"):
        open_bytes(file.getvalue())
    data = bytearray(archive({"a.npy": save(np.zeros(2)), "b.npy": save(np.zeros(2))}))
    second = data.rindex(b"PK\1\2")
    data[second + 42 : second + 46] = struct.pack("<I", 0)  # its own header is that of `a.npy`
    with pytest.raises(tx.Corrupted, match="overlap"):
        open_bytes(bytes(data))


def test_encrypted_members_are_refused() -> None:
    data = bytearray(archive({"w.npy": save(np.zeros(2))}))
    data[data.rindex(b"PK\1\2") + 8] |= 1
    with pytest.raises(tx.Unsupported, match="no encrypted members"):
        open_bytes(bytes(data))


def test_sizes_that_bytes_cannot_have_are_refused() -> None:
    data = bytearray(archive({"w.npy": save(np.zeros(2))}, zipfile.ZIP_DEFLATED))
    at = data.rindex(b"PK\1\2") + 24
    data[at : at + 4] = struct.pack("<I", 1 << 30)
    with pytest.raises(tx.Corrupted, match=f"Expected {1 << 30} bytes of a member"):
        open_bytes(bytes(data))


def test_a_small_archive_that_decodes_to_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = archive({"w.npy": save(np.zeros(1 << 16, "u1"))}, zipfile.ZIP_DEFLATED)
    open_bytes(data)
    monkeypatch.setattr(zip_members, "_MAX_DECODED", 1 << 16)
    with pytest.raises(tx.Unsupported, match=f"{1 << 16} decoded bytes of an archive of"):
        open_bytes(data)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_verify_compares_the_checksums_of_members(tmp_path: Path, compression: int) -> None:
    noise = RNG.integers(0, 256, 3 << 20, dtype="u1")
    zeros = np.zeros(3 << 20, "u1")
    data = archive({"a/b.npy": save(noise), "c.npy": save(zeros)}, compression)
    path = tmp_path / "a.npz"
    path.write_bytes(data)
    verified = tx.verify(path)
    assert (verified.ok, verified.unchecked_bytes) == (True, 0)
    assert "agree with their checksum" in str(verified)
    for source in (path, Memory({"": data})):
        assert tx.verify(source).ok
    damaged = bytearray(data)
    damaged[1 << 20] ^= 4
    path.write_bytes(damaged)
    verified = tx.verify(path)
    assert [damage.leaf for damage in verified.damages] == ["a.b"]
    with pytest.raises(tx.TemplaxError):  # a restore compares no CRC-32
        tx.restore(path, like({"a": {"b": noise}, "c": zeros}), verify="required")


def test_every_truncation_of_an_archive_is_damage(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", **TREE)
    data = (tmp_path / "a.npz").read_bytes()
    for size in range(60, len(data), 97):
        with pytest.raises(tx.Corrupted):
            open_bytes(data[:size])


def test_a_single_array_of_another_size_is_damage() -> None:
    data = save(np.zeros(3))
    for wrong in (data[:-1], data + b"\0"):
        with pytest.raises(tx.Corrupted, match=f"Expected a file of {len(data)} bytes"):
            open_bytes(wrong)


@pytest.mark.parametrize("name", ["int4", "uint4", "int2", "float4_e2m1fn"])
def test_bytes_that_a_narrow_dtype_cannot_have_are_refused(tmp_path: Path, name: str) -> None:
    skip_without_dtype(name)
    dtype = np.dtype(getattr(ml_dtypes, name))
    np.savez(tmp_path / "a.npz", w=np.array([1, 200], np.uint8).view("V1"))
    with pytest.raises(tx.Corrupted, match=f"Expected {name}, one per byte, got the byte 200"):
        tx.restore(tmp_path / "a.npz", {"w": jax.ShapeDtypeStruct((2,), dtype)})


def test_a_template_that_is_written_for_bytes_without_a_dtype_asks_for_the_bytes(
    tmp_path: Path,
) -> None:
    np.savez(tmp_path / "a.npz", w=np.zeros(3, ml_dtypes.float8_e4m3fn))
    made = run_cli("template", tmp_path / "a.npz", "-o", tmp_path / "t.json")
    assert made.exit_code == 0, made.output
    assert run_cli("check", tmp_path / "a.npz", tmp_path / "t.json").exit_code == 0


def test_names_that_are_the_same_once_split_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    arrays = {"a.b": np.ones(2), "a/b": np.ones(3), "c": np.ones(1)}
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]
    with pytest.raises(tx.Unsupported) as caught:
        tx.open(path)
    assert str(caught.value) == (
        "templax splits names at `/` and dots, and then `a.b` and `a/b` are the same - at `a.b`;"
        " hint: save one of the arrays under another name"
    )
