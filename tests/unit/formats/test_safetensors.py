"""Safetensors files: those of the reference library are read, invalid ones are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import SafetensorError, deserialize
from safetensors.flax import save
from safetensors.numpy import load as load_with_safetensors

import templax as tx
from helpers import CORPUS, mark_slow, skip_without_dtype
from limits import run_limited
from templax.storage import Memory


def make_file(tensors: dict[str, Any], data: bytes) -> Memory:
    header = json.dumps(tensors).encode()
    return Memory({"": len(header).to_bytes(8, "little") + header + data})


@pytest.mark.slow
def test_every_dtype_of_the_reference_library_is_restored(tmp_path: Path) -> None:
    names = [
        "bool",
        "uint8",
        "int8",
        "uint16",
        "int16",
        "uint32",
        "int32",
        "float16",
        "bfloat16",
        "float32",
    ]
    tree = {f"a.{name}": jnp.arange(6).reshape(2, 3).astype(name) for name in names}
    tree |= {f"f8.{name}": jnp.arange(3).astype(name) for name in ("float8_e4m3fn", "float8_e5m2")}
    tree |= {"scalar": jnp.float32(1.5), "empty": jnp.zeros((0, 3))}
    path = tmp_path / "model.safetensors"
    path.write_bytes(save(tree, metadata={"format": "flax"}))
    catalog = tx.open(path)
    assert (catalog.format, catalog.metadata) == ("safetensors", {"format": "flax"})
    template = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in tree.items()}
    restored = tx.restore(path, template)
    for name, value in tree.items():
        assert restored[name].dtype == value.dtype
        assert np.asarray(restored[name]).tobytes() == np.asarray(value).tobytes()
    nested = tx.restore(path, {"float32": template["a.float32"]}, at="a", extra="ignore")
    assert nested["float32"].shape == (2, 3)


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("hole", "Expected tensors without holes or overlaps"),
        ("overlap", "Expected tensors without holes or overlaps"),
        ("shape", "bytes for "),
        ("trailing", "Expected a file of "),
        ("truncated", "Expected a file of "),
    ],
)
def test_files_that_the_reference_library_refuses_are_damage(case: str, said: str) -> None:
    path = CORPUS / f"damaged-st_{case}" / "model.safetensors"
    with pytest.raises(Exception):  # noqa: B017 (any exception of the library)
        load_with_safetensors(path.read_bytes())
    with pytest.raises(tx.Corrupted, match=said):
        tx.open(path)


def test_a_file_with_a_header_longer_than_itself_is_not_safetensors() -> None:
    with pytest.raises(tx.UnknownFormat):
        tx.open(CORPUS / "damaged-st_header_2e60" / "model.safetensors")


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"w": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, "dtype `F4`: its elements"),
        ({"w": {"dtype": "C128", "shape": [1], "data_offsets": [0, 8]}}, "dtype `C128` - at `w`"),
        ({"w": {"dtype": "F32", "shape": [-2, -1], "data_offsets": [0, 8]}}, "Expected 8 bytes"),
        ({"w": {"dtype": "F32", "shape": "x", "data_offsets": [0, 8]}}, "header is unreadable"),
        ({"w": {"dtype": "F32", "shape": [2]}}, "header is unreadable"),
        (
            {"w": {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]}},
            "no arrays of shape",
        ),
        ({"w": {"dtype": "U8", "shape": [1] * 40, "data_offsets": [0, 1]}}, "no arrays of shape"),
        ({"w": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 8]}}, "Expected 73786976"),
    ],
)
def test_an_invalid_header_is_refused(tensors: dict[str, Any], said: str) -> None:
    with pytest.raises(tx.CheckpointError, match=said):
        tx.open(make_file(tensors, b"\0" * 8))


def test_a_name_that_is_a_leaf_and_a_subtree_gives_a_flat_template() -> None:
    tensors = {
        "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "a.b": {"dtype": "U8", "shape": [2], "data_offsets": [3, 5]},
    }
    catalog = tx.open(make_file(tensors, bytes(range(5))))
    restored = tx.restore(catalog, catalog.template())
    assert {name: leaf.tolist() for name, leaf in restored.items()} == {
        "a": [0, 1, 2],
        "a.b": [3, 4],
    }


def test_a_boolean_that_is_not_0_or_1_is_damage() -> None:
    source = make_file({"w": {"dtype": "BOOL", "shape": [3], "data_offsets": [0, 3]}}, b"\0\1\2")
    for template in ({"w": np.zeros(3, bool)}, {"w": jax.ShapeDtypeStruct((3,), jnp.bool_)}):
        for mapped in (False, True):
            with pytest.raises(tx.Corrupted, match=r"booleans of bytes 0 and 1.* - at `w`"):
                tx.restore(source, template, mapped=mapped)


def test_errors_name_the_file_if_it_is_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(save({"w": jnp.zeros(100_000)}))
    plan = tx.plan(path, {"w": jax.ShapeDtypeStruct((100_000,), jnp.float32)})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(tx.SourceError, match=str(path)):
        tx.run(plan)
    path.unlink()
    with pytest.raises(tx.Corrupted, match=str(path)):
        tx.run(plan)


def test_tensors_out_of_order_are_restored() -> None:
    tensors = {
        "b": {"dtype": "U8", "shape": [2], "data_offsets": [3, 5]},
        "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
    }
    tree = {"a": np.zeros(3, np.uint8), "b": np.zeros(2, np.uint8)}
    restored = tx.restore(make_file(tensors, bytes(range(5))), tree)
    assert restored["a"].tolist() == [0, 1, 2]
    assert restored["b"].tolist() == [3, 4]


def write_header(path: Path, header: bytes) -> str:
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    return repr(path.name)


EMPTY = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}

WANTED = "{f'want_{i}': {'w': np.zeros(4, np.float32)} for i in range(1000)}"


@pytest.mark.parametrize("command", ["open", "ls", "check", "restore"])
@pytest.mark.parametrize(
    "names",
    [
        lambda: [f"{i:03}" + ".a" * 280 for i in range(1500)],
        lambda: [f"{i:03}" + ".a" * 60 for i in range(5000)],
        *mark_slow(
            lambda: [".".join("a" * 20_000)],
            lambda: ["x" * 400_000, *(f"n{i}" for i in range(8000))],
            lambda: [f"layers.{i}.w" for i in range(13_000)],
        ),
    ],
    ids=["deep", "less deep", "one deep", "one long", "many"],
)
def test_a_megabyte_of_names_takes_little_time_and_memory(
    tmp_path: Path, names: Any, command: str
) -> None:
    header = json.dumps(dict.fromkeys(names(), EMPTY)).encode()
    path = write_header(tmp_path / "m.safetensors", header)
    assert len(header) < 10**6
    code = {
        "open": f"str(tx.open({path}))",
        "ls": f"from templax.cli.main import main; main(['ls', {path}])",
        "check": f"str(tx.check({path}, {WANTED}, extra='ignore'))",
        "restore": f"tx.restore({path}, {WANTED})",
    }[command]

    found = run_limited(code, preload="import jax", cwd=tmp_path)

    assert len(found.stdout) < 20_000_000
    if len(names()) == 1 and command != "ls":
        assert found.error == (
            "Unsupported: templax reads trees of at most 300 levels, got 20000 below"
            " `a.a.a.a.a.a.a.a`"
        )


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ([2**62] * 300_000, "no arrays of shape"),
        ([2**60] * 300, "no arrays of shape"),
        ([10**200] * 30, "Expected over 10**30 bytes for uint8"),
        ([0, *[2**60] * 30], "no arrays of shape"),
    ],
)
def test_a_shape_is_bounded_before_its_product(tmp_path: Path, shape: list[int], said: str) -> None:
    tensor = {"dtype": "U8", "shape": shape, "data_offsets": [0, 0]}
    path = write_header(tmp_path / "m.safetensors", json.dumps({"a": tensor}).encode())
    found = run_limited(f"tx.open({path})", cwd=tmp_path)
    assert found.error is not None
    assert said in found.error
    assert len(found.error) < 2000


@pytest.mark.parametrize(
    ("header", "key"),
    [
        ('{"a": %s, "a": %s}', "a"),
        ('{"a": %s, "\\u0061": %s}', "a"),
        ('{"a": %s, "b": {"dtype": "U8", "dtype": "I8", "shape": [0], "data_offsets": [0, 0]}}', 0),
        ('{"a": %s, "__metadata__": {"x": "1", "x": "2"}}', "x"),
        ('{"a": %s, "__metadata__": {"x": "1"}, "__metadata__": {}}', "__metadata__"),
    ],
)
def test_a_key_that_occurs_twice_is_named(header: str, key: str | int) -> None:
    text = header.replace("%s", json.dumps(EMPTY)).encode()
    with pytest.raises(tx.Corrupted) as caught:
        tx.open(Memory({"": len(text).to_bytes(8, "little") + text}))
    assert f"unreadable: the key '{key or 'dtype'}' occurs twice" in str(caught.value)


def split_file(source: Memory) -> bytes:
    return bytes(source.read(""))


WHOLE = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1,
    "F8_E5M2FNUZ": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4,
    "C64": 8, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip
"""The dtypes of the reference library with elements of whole bytes → their size."""


@pytest.mark.parametrize("code", WHOLE)
def test_every_dtype_of_whole_bytes_gives_the_stored_bits(code: str) -> None:
    if code == "F8_E8M0":
        skip_without_dtype("float8_e8m0fnu")
    nbytes = 256 * WHOLE[code]
    data = bytes(i % (2 if code == "BOOL" else 256) for i in range(nbytes))
    source = make_file({"w": {"dtype": code, "shape": [256], "data_offsets": [0, nbytes]}}, data)
    assert deserialize(split_file(source))[0][1]["dtype"] == code
    catalog = tx.open(source)
    (entry,) = catalog.entries
    restored = tx.restore(catalog, {"w": np.zeros(256, entry.dtype)})
    assert restored["w"].tobytes() == data


@pytest.mark.parametrize(("code", "bits"), [("F4", 4), ("F6_E2M3", 6), ("F6_E3M2", 6)])
def test_dtypes_whose_elements_share_bytes_are_unsupported_by_name(code: str, bits: int) -> None:
    tensor = {"dtype": code, "shape": [8], "data_offsets": [0, bits]}
    source = make_file({"w": tensor}, bytes(bits))
    assert deserialize(split_file(source))[0][1]["dtype"] == code
    with pytest.raises(tx.Unsupported, match=f"dtype `{code}`: its elements share bytes.* `w`"):
        tx.open(source)


def test_the_reference_library_has_no_other_dtypes() -> None:
    source = make_file({"w": {"dtype": "X", "shape": [], "data_offsets": [0, 1]}}, b"a")
    with pytest.raises(SafetensorError) as caught:
        deserialize(split_file(source))
    named = set(str(caught.value).split("`")[1::2]) - {"X"}
    assert named == {*WHOLE, "F4", "F6_E2M3", "F6_E3M2"}


ONE = '"w": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}'


@pytest.mark.parametrize(
    "header",
    [
        "{%s, }",
        "{%s}x",
        "{%s}\0",
        '{%s, "__metadata__": {"n": 1}}',
        '{%s, "__metadata__": []}',
        '{%s, "v": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}',
        '{%s, "v": {"dtype": "U8", "shape": [1], "data_offsets": [3, 4]}}',
        '{%s, "v": {"dtype": "U8", "shape": [0], "data_offsets": [2, 1]}}',
        '{%s, "v": {"dtype": "U8", "shape": [0], "data_offsets": [1, 1]}}',
        '{%s, "v": {"dtype": "U8", "shape": [9223372036854775807, 4], "data_offsets": [2, 2]}}',
        '{%s, "v": {"dtype": "U8", "shape": [1.0], "data_offsets": [2, 2]}}',
        '{%s, "v": {"dtype": "U8", "shape": [0], "data_offsets": [2, 2, 2]}}',
        '{%s, "v": {"dtype": "U8", "shape": [0], "data_offsets": [-1, 2]}}',
        '{%s, "v": {"dtype": "u8", "shape": [0], "data_offsets": [2, 2]}}',
        '{%s, "v": {"dtype": "U8", "shape": [0]}}',
        '{%s, "v": null}',
        '{%s, "\xff": {"dtype": "U8", "shape": [0], "data_offsets": [2, 2]}}',
        '{%s, "v": {"dtype": "U8", "shape": [0], "data_offsets": [2, 2], "x": "\xff"}}',
        '{%s, "\\ud800": {"dtype": "U8", "shape": [0], "data_offsets": [2, 2]}}',
    ],
)
def test_headers_that_the_reference_library_refuses_are_refused(header: str) -> None:
    text = header.replace("%s", ONE).encode("latin-1")
    data = len(text).to_bytes(8, "little") + text + b"ab"
    with pytest.raises(SafetensorError):
        deserialize(data)
    with pytest.raises((tx.Corrupted, tx.Unsupported)):
        tx.open(Memory({"": data}))


@pytest.mark.parametrize(
    "header",
    [
        "{%s}",
        "{%s}  \n",
        '{%s, "__metadata__": null}',
        '{"__metadata__": {"format": "pt"}, %s}',
        '{%s, "v": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}',
        '{%s, "v": {"dtype": "U8", "shape": [0], "data_offsets": [2, 2], "x": 1}}',
        '{%s, "": {"dtype": "U8", "shape": [0], "data_offsets": [2, 2]}}',
        '{%s, "\\u00fc": {"dtype": "U8", "shape": [0], "data_offsets": [2, 2]}}',
    ],
)
def test_headers_that_the_reference_library_accepts_are_read(header: str) -> None:
    text = header.replace("%s", ONE).encode()
    data = len(text).to_bytes(8, "little") + text + b"ab"
    assert {name for name, _ in deserialize(data)} == set(tx.open(Memory({"": data})).leaves)


def test_metadata_is_shown_apart_from_the_format() -> None:
    text = ('{"__metadata__": {"format": "pt", "url": "x"}, ' + ONE + "}").encode()
    catalog = tx.open(Memory({"": len(text).to_bytes(8, "little") + text + b"ab"}))
    assert catalog.format == "safetensors"
    assert catalog.metadata == {"format": "pt", "url": "x"}


def test_shards_of_a_distributed_checkpoint_are_not_taken_for_whole_tensors(
    tmp_path: Path,
) -> None:
    shards = CORPUS / "torch-2.13.0" / "shards"
    first, second = sorted(shards.iterdir())
    shutil.copy(second, tmp_path / "renamed.safetensors")
    for path in (shards, first, second, tmp_path / "renamed.safetensors"):
        with pytest.raises(tx.Unsupported) as caught:
            tx.open(path)
        assert str(caught.value) == (
            "templax reads no safetensors files with the shards of a distributed checkpoint; hint:"
            " load them with torch.distributed.checkpoint.HuggingFaceStorageReader"
        )
    # The first alone can't be told from what a single process saves: whole tensors.
    shutil.copy(first, tmp_path / first.name)
    assert tx.open(tmp_path / first.name).leaves["w"].shape == (2, 3)
