"""Saves as safetensors: the reference library reads them bit for bit, and damage is noticed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import deserialize, safe_open
from safetensors.flax import load_file as load_flax
from safetensors.numpy import save_file

import templax as tx
from helpers import count_examples
from templax._core.dtypes import DTYPES
from templax._save.save import _check_alone
from templax.formats.safetensors_write import CODES, parse_sums

TREE = {
    "a": {"w": np.arange(6, dtype="f4").reshape(2, 3), "none": None, "empty": {}},
    "layers": [jnp.ones(3, jnp.bfloat16), np.zeros((0, 5), np.int8)],
    "step": 7,
    "big": np.arange(3_000_000, dtype="f4").reshape(3000, 1000),
    "fortran": np.asfortranarray(np.arange(12, dtype="i2").reshape(3, 4)),
    "swapped": np.arange(3, dtype=">i4"),
}


def read_peer(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Name → dtype, shape and bytes of the tensors in a directory, as the reference reads them."""
    return {
        name: (view["dtype"], tuple(view["shape"]), bytes(view["data"]))
        for file in sorted(path.glob("*.safetensors"))
        for name, view in deserialize(file.read_bytes())
    }


def read_header(file: Path) -> tuple[dict[str, Any], int]:
    """The header of a file, and where its data begins."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), 8 + length


def flatten(tree: Any) -> dict[str, np.ndarray]:
    keyed, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(k, simple=True, separator="."): np.asarray(v) for k, v in keyed}


def assert_equal(got: Any, want: Any) -> None:
    got, want = flatten(got), flatten(want)
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert (got[name].dtype, got[name].shape) == (value.dtype, value.shape)
        assert got[name].tobytes() == value.tobytes()


@pytest.mark.parametrize("shard_size", [None, 100])
@pytest.mark.parametrize("wait", [True, False])
def test_a_tree_comes_back_and_the_reference_reads_it(
    tmp_path: Path, shard_size: int | None, wait: bool
) -> None:
    saved = tx.save(
        tmp_path / "x", TREE, format="safetensors", shard_size=shard_size, wait=wait
    ).wait()
    got = tx.restore(tmp_path / "x", TREE)
    assert_equal(got, TREE)
    assert type(got["step"]) is int
    want = flatten(TREE)
    peer = read_peer(tmp_path / "x")
    assert peer.keys() == want.keys()
    for name, (code, shape, data) in peer.items():
        assert (CODES[code], shape) == (want[name].dtype.name, want[name].shape)
        assert data == want[name].astype(want[name].dtype.newbyteorder("=")).tobytes()
    catalog = tx.open(tmp_path / "x")
    assert saved.fingerprint == tx.fingerprint(TREE) == tx.fingerprint(catalog)
    assert saved.leaves == len(want)
    assert saved.nbytes == sum(file.stat().st_size for file in (tmp_path / "x").iterdir())
    assert tx.verify(tmp_path / "x").checked_bytes == catalog.nbytes


_names = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


@st.composite
def _arrays(draw: st.DrawFn) -> np.ndarray:
    dtype = DTYPES[draw(st.sampled_from([n for n in CODES.values() if n in DTYPES]))]
    shape = draw(st.lists(st.integers(0, 9), max_size=4).map(tuple))
    seed = draw(st.integers(0, 2**32 - 1))
    nbytes = math.prod(shape) * dtype.itemsize
    data = np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)
    return (data % 2 if dtype.kind == "b" else data).view(dtype).reshape(shape)


@pytest.mark.slow
@count_examples(60)
@given(
    tree=st.dictionaries(_names.filter(lambda n: n != "__metadata__"), _arrays(), max_size=8),
    shard_size=st.sampled_from([None, 1, 64, 1000]),
    metadata=st.dictionaries(_names, _names, max_size=3),
)
def test_any_arrays_come_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory,
    tree: dict[str, np.ndarray],
    shard_size: int | None,
    metadata: dict[str, str],
) -> None:
    path = tmp_path_factory.mktemp("save") / "x"
    tx.save(path, tree, format="safetensors", shard_size=shard_size, metadata=metadata)
    peer = read_peer(path)
    assert {name: data for name, (_, _, data) in peer.items()} == {
        name: value.tobytes() for name, value in tree.items()
    }
    restored = tx.restore(path, tree)
    for name, value in tree.items():
        assert (restored[name].dtype, restored[name].shape) == (value.dtype, value.shape)
        assert restored[name].tobytes() == value.tobytes()
    for file in path.glob("*.safetensors"):
        with safe_open(file, "np") as opened:
            found = opened.metadata()
        assert {k: v for k, v in found.items() if k != "templax.crc32c"} == metadata
        header, begin = read_header(file)
        assert begin % 64 == 0
        for name, tensor in header.items():
            if name != "__metadata__" and tree[name].size:
                start, stop = tensor["data_offsets"]
                assert start % (64 if (stop - start) % 64 == 0 else tree[name].dtype.itemsize) == 0


def test_a_set_is_named_and_indexed_as_hugging_face_does(tmp_path: Path) -> None:
    tree = {"a": np.ones(6, "f4"), "b": np.ones(10, "f4"), "c": np.ones(4, "f4"), "d": np.ones(1)}
    tx.save(tmp_path / "x", tree, format="safetensors", shard_size=40, metadata={"format": "pt"})
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    index = json.loads((tmp_path / "x" / "model.safetensors.index.json").read_text())
    assert index == {
        "metadata": {"total_size": 88},
        "weight_map": dict(zip("abcd", [names[0], names[1], names[2], names[2]], strict=True)),
    }
    assert sorted(file.name for file in (tmp_path / "x").glob("model-*")) == names
    assert tx.open(tmp_path / "x").metadata == {"total_size": 88, "format": "pt"}
    assert load_flax(tmp_path / "x" / names[1])["b"].tolist() == [1] * 10


def test_arrays_of_whole_cache_lines_are_mapped(tmp_path: Path) -> None:
    tree = {"odd": np.ones(3, "i1"), "w": np.ones((64, 64), "f4"), "v": np.ones(16, "f4")}
    tx.save(tmp_path / "x", tree, format="safetensors")
    header, begin = read_header(tmp_path / "x" / "model.safetensors")
    assert [n for n in header if (begin + header[n].get("data_offsets", [1])[0]) % 64 == 0] == [
        "v", "w", "odd",
    ]  # fmt: skip
    template = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in tree.items()}
    plan = tx.plan(tmp_path / "x", template, mapped=True)
    assert plan.mapped_bytes == sum(value.nbytes for value in tree.values())
    assert_equal(tx.run(plan), tree)


def test_arrays_on_several_devices_are_saved_whole(tmp_path: Path) -> None:
    mesh = jax.make_mesh((len(jax.devices()),), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    tree = {"w": jax.device_put(np.arange(64.0, dtype="f4"), sharding)}
    tx.save(tmp_path / "x", tree, format="safetensors")
    assert_equal(tx.restore(tmp_path / "x", tree), tree)


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"k": jax.random.key(0)}, r"`k` is a typed PRNG key, .*: save jax.random.key_data"),
        ({"k": "text"}, r"`k` is a string, .*: pass it in metadata="),
        ({"k": jnp.zeros(3, jnp.int4)}, "`k` has dtype int4, which safetensors cannot store"),
        ({"k": np.zeros(3, "c16")}, "`k` has dtype complex128, which"),
        ({"__metadata__": np.ones(1)}, "`__metadata__` has the name under which"),
        ({"a.b": 1, "a": {"b": 2}}, "two leaves are named `a.b`"),
        ({".".join("a" * 301): 1}, "has more than 300 levels"),
    ],
)
def test_what_the_format_cannot_store_is_refused_by_name(
    tmp_path: Path, tree: Any, said: str
) -> None:
    with pytest.raises(tx.SaveError, match=said):
        tx.save(tmp_path / "x", tree, format="safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"compression": "zstd"}, "safetensors has no compression, got compression='zstd'"),
        ({"metadata": {"a": 1}}, r"Expected metadata= of strings, .*, got 1 for 'a'"),
        ({"metadata": {"templax.crc32c": "x"}}, "which templax adds itself"),
        ({"shard_size": 0}, "shard_size"),
        ({"format": "orbax", "shard_size": 9}, 'shard_size= is for format="safetensors"'),
        ({"format": "pickle"}, "Expected format= one of "),
    ],
)
def test_options_that_make_no_sense_are_refused(
    tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(tx.UsageError, match=said):
        tx.save(tmp_path / "x", {"w": np.ones(1)}, **{"format": "safetensors", **options})
    assert list(tmp_path.iterdir()) == []


def test_several_processes_are_refused() -> None:
    with pytest.raises(tx.UsageError, match="by one process, got 2; hint: gather"):
        _check_alone("safetensors", 2)


def test_overwriting_replaces_a_checkpoint_of_either_format_and_nothing_else(
    tmp_path: Path,
) -> None:
    path = tmp_path / "x"
    for value, options in enumerate(
        [
            {"format": "safetensors"},
            {"format": "safetensors", "shard_size": 8},
            {"format": "orbax"},
            {"format": "safetensors"},
        ]
    ):
        tree = {"a": np.full(2, value), "b": np.full(3, value)}
        tx.save(path, tree, overwrite=True, **options)
        assert tx.open(path).format == options["format"]
        assert_equal(tx.restore(path, tree), tree)
    with pytest.raises(tx.AlreadyExists):
        tx.save(path, tree, format="safetensors")
    (path / "config.json").write_text("{}")
    for format in ("safetensors", "orbax"):
        with pytest.raises(tx.SaveError, match="replaces one checkpoint, found other files"):
            tx.save(path, tree, format=format, overwrite=True)
    assert_equal(tx.restore(path, tree), tree)


def test_a_save_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "x"
    tx.save(path, {"w": np.ones(3)}, format="safetensors")

    def fail(done: int, total: int) -> None:
        raise RuntimeError("stop")

    for options in ({"path": path, "overwrite": True}, {"path": tmp_path / "y"}):
        with pytest.raises(RuntimeError, match="stop"):
            tx.save(
                options.pop("path"), {"w": np.zeros(3)}, format="safetensors", on_progress=fail,
                **options,
            )  # fmt: skip
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]
    assert tx.restore(path, {"w": np.zeros(3)})["w"].tolist() == [1, 1, 1]


# --- checksums


def test_a_flipped_bit_is_damage(tmp_path: Path) -> None:
    tx.save(tmp_path / "x", TREE, format="safetensors")
    file = tmp_path / "x" / "model.safetensors"
    header, begin = read_header(file)
    data = bytearray(file.read_bytes())
    data[begin + header["big"]["data_offsets"][1] - 1] ^= 1
    file.write_bytes(data)
    for path in (tmp_path / "x", file):
        with pytest.raises(tx.Corrupted, match=r"Expected crc32c .* - at `big`"):
            tx.restore(path, TREE)
    assert len(tx.verify(file).damages) == 1


def test_checksums_that_another_program_carried_on_do_not_count(tmp_path: Path) -> None:
    tx.save(tmp_path / "x", {"w": np.ones(3, "f4")}, format="safetensors")
    with safe_open(tmp_path / "x" / "model.safetensors", "np") as opened:
        metadata = opened.metadata()
    save_file({"w": np.zeros(3, "f4")}, tmp_path / "y", metadata=metadata)
    catalog = tx.open(tmp_path / "y")
    assert (catalog.fingerprints, catalog.metadata) == (None, metadata)
    assert tx.restore(catalog, {"w": np.ones(3, "f4")})["w"].tolist() == [0, 0, 0]


def test_a_set_with_a_file_without_checksums_has_no_fingerprint(tmp_path: Path) -> None:
    tree = {"a": np.ones(3, "f4"), "b": np.ones(3, "f4")}
    tx.save(tmp_path / "x", tree, format="safetensors", shard_size=1)
    assert tx.open(tmp_path / "x").fingerprints is not None
    save_file({"b": np.zeros(3, "f4")}, tmp_path / "x" / "model-00002-of-00002.safetensors")
    assert tx.open(tmp_path / "x").fingerprints is None
    assert tx.restore(tmp_path / "x", tree)["b"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("", [1]),
        ("00000000", []),
        ("00000000", [0]),
        ("0000000", [1]),
        ("0000000X", [1]),
        ("00000000", [1, 1]),
        ("00000000,00000000", [1]),
        ("0:0000000000000000", [2]),
        ("1:00000000", [2]),
        ("1:000000000000000000000000", [2]),
        ("-1:00000000", [1]),
        ("9" * 20 + ":00000000", [1]),
        ("1:", [1]),
        ("0:", [1]),
    ],
)
def test_checksums_that_do_not_fit_the_tensors_are_damage(text: str, sizes: list[int]) -> None:
    with pytest.raises(tx.Corrupted, match=f"the checksums of {len(sizes)} tensors"):
        parse_sums(text, sizes)


def test_checksums_are_parsed() -> None:
    assert parse_sums("", []) == []
    assert parse_sums("000000ff,,2:0000000100000002", [4, 0, 3]) == [
        (4, (255,)), (1, ()), (2, (1, 2)),
    ]  # fmt: skip
