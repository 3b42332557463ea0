"""GGUF files: shapes, metadata, quantised tensors, damage. The values are in the contract tests."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import templax as tx
from fuzz.gguf_files import SPEC, encode_file
from helpers import CORPUS, run_cli
from limits import run_limited
from templax.formats.registry import open_catalog
from templax.storage import Memory

WRITTEN = CORPUS / "gguf"


class Remote(Memory):
    """A file in a store that maps none, and counts the bytes that are read."""

    maps = False

    def __init__(self, data: bytes):
        super().__init__({"": data})
        self.url = "memory://model.gguf"
        self.nbytes = 0

    def read(
        self, key: str, start: int = 0, stop: int | None = None, out: memoryview | None = None
    ) -> memoryview:
        data = super().read(key, start, stop, out)
        self.nbytes += len(data)
        return data


def write(path: Path, change: Callable[[dict[str, Any]], object] | None = None) -> Path:
    spec = copy.deepcopy(SPEC)
    if change is not None:
        change(spec)
    path.write_bytes(encode_file(spec))
    return path


def test_shapes_are_in_the_order_of_numpy() -> None:
    catalog = tx.open(WRITTEN / "plain.gguf")
    assert (catalog.format, catalog.evidence) == ("gguf", "its header")
    leaves = catalog.leaves
    assert {name: (leaves[name].shape, leaves[name].dtype_name) for name in list(leaves)[:3]} == {
        "token_embd.weight": ((5, 8), "float32"),
        "blk.0.attn_q.weight": ((2, 3, 4), "float16"),
        "blk.0.f64": ((3, 2), "float64"),
    }
    assert leaves["blk.0.attn_q.weight"].path == ("blk", "0", "attn_q", "weight")
    assert leaves["blk.0.bf16"].dtype == ml_dtypes.bfloat16
    assert all(entry.quantisation is None for entry in catalog.entries)


def test_metadata_is_shown_and_long_lists_are_described() -> None:
    assert tx.open(WRITTEN / "plain.gguf").metadata == {
        "general.architecture": "llama",
        "general.name": "tiny ü",
        "llama.attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),
        "llama.block_count": 1,
        "test.list": [3, -4, 5],
        "test.low": -(1 << 63),
        "test.words": ["a", "ü"],
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.scores": "a list of 300 of type float32",
        "tokenizer.ggml.tokens": "a list of 300 of type string",
    }


def test_quantised_tensors_are_float32_and_say_so() -> None:
    catalog = tx.open(WRITTEN / "quantised.gguf")
    for entry in catalog.entries[:-1]:
        assert (entry.dtype_name, entry.shape) == ("float32", (2, 2, 768))
        assert entry.quantisation == entry.path[0]
    assert catalog.entries[-1].quantisation is None
    assert "float32  (2, 2, 768)  12.0 KiB  from Q4_K" in str(catalog)


def test_a_template_may_ask_for_another_float() -> None:
    path = WRITTEN / "quantised.gguf"
    wide = tx.restore(path, {"Q8_0": {"weight": np.zeros((2, 2, 768), "f4")}}, extra="ignore")
    narrow = {"Q8_0": {"weight": np.zeros((2, 2, 768), ml_dtypes.bfloat16)}}
    with pytest.warns(tx.CastWarning, match="float32 to bfloat16"):
        got = tx.restore(path, narrow, extra="ignore")["Q8_0"]["weight"]
    with np.errstate(all="ignore"):
        want = np.asarray(wide["Q8_0"]["weight"]).astype(ml_dtypes.bfloat16)
    assert np.asarray(got).tobytes() == want.tobytes()


def test_quantisations_that_are_not_read_are_listed_and_refused_by_name() -> None:
    catalog = tx.open(WRITTEN / "not-read.gguf")
    names = [entry.quantisation for entry in catalog.entries[:-1]]
    assert names == [
        *("Q8_1", "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ3_S", "IQ2_S", "IQ1_M"),
        *("TQ1_0", "TQ2_0", "NVFP4", "Q1_0"),
    ]
    entry = catalog.leaves["IQ2_XXS.weight"]
    assert (entry.shape, entry.dtype_name) == ((2, 2, 256), "float32")
    template = {"IQ2_XXS": {"weight": np.zeros((2, 2, 256), "f4")}}
    assert tx.check(catalog, template, extra="ignore").ok
    with pytest.raises(tx.Unsupported) as caught:
        tx.restore(catalog, template, extra="ignore")
    assert caught.value.hint is None
    assert str(caught.value) == (
        "templax does not read tensors quantised as `IQ2_XXS` - at `IQ2_XXS.weight`"
    )
    assert entry.undecodable == caught.value.what
    got = tx.restore(catalog, catalog.template(decodable_only=True))
    assert (got["IQ2_XXS"]["weight"], got["norm"]["weight"].shape) == (..., (4,))
    assert tx.verify(catalog).damages == ()


def test_a_large_quantised_tensor_is_several_chunks_of_whole_rows(tmp_path: Path) -> None:
    rows, row = 3000, 1536
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (rows * row // 32, 34), dtype=np.uint8)
    blocks[:, :2] = np.frombuffer(np.float16(0.25).tobytes(), np.uint8)
    spec = {"tensors": [["w", [row, rows], 8, 0]]}
    (tmp_path / "m.gguf").write_bytes(encode_file(spec) + blocks.tobytes())
    catalog = tx.open(tmp_path / "m.gguf")
    chunks = catalog.locate(catalog.entries)["w"]
    assert [chunk.box[0] for chunk in chunks[:2]] == [(0, 682), (682, 1364)]
    assert len(chunks) == 5
    got = np.asarray(tx.restore(catalog, {"w": np.zeros((rows, row), "f4")})["w"])
    want = blocks[:, 2:].view("i1").astype("f4").reshape(rows, row) * np.float32(0.25)
    assert np.array_equal(got, want)


@pytest.mark.slow
def test_only_the_header_is_read_to_open_a_file() -> None:
    tokens = [f"token {i}" for i in range(200_000)]
    spec = {"metadata": [["tokens", 9, [8, tokens[:1000]]]], "tensors": [["w", [1 << 20], 0, 0]]}
    source = Remote(encode_file(spec) + bytes(4 << 20))
    catalog = open_catalog(source)
    assert catalog.metadata == {"tokens": "a list of 1000 of type string"}
    assert source.nbytes < 2 << 20
    packed = b"".join(struct.pack("<Q", len(t)) + t.encode() for t in tokens)
    listed = struct.pack("<IQ", 8, len(tokens)) + packed
    entry = struct.pack("<Q", 6) + b"tokens" + struct.pack("<I", 9) + listed
    tensor = struct.pack("<Q", 1) + b"w" + struct.pack("<IQIQ", 1, 1 << 20, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + entry + tensor
    source = Remote(head + bytes(-len(head) % 32) + bytes(8 << 20))
    catalog = open_catalog(source)
    assert catalog.metadata == {"tokens": "a list of 200000 of type string"}
    assert len(head) > 3 << 20
    assert source.nbytes < 6 << 20


def test_a_scalar_and_an_empty_tensor(tmp_path: Path) -> None:
    def add_scalar(spec: dict[str, Any]) -> None:
        spec["tensors"].append(["s", [], 0, 384])
        spec["nbytes"] = 388

    path = write(tmp_path / "m", add_scalar)
    template = {"s": np.zeros((), "f4"), "e": {"weight": np.zeros((3, 0), "f2")}}
    got = tx.restore(path, template, extra="ignore")
    assert got["s"] == 0
    assert got["e"]["weight"].shape == (3, 0)


def _set(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(spec: dict[str, Any]) -> None:
        node: Any = spec
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value

    return change


_HUGE = (1 << 64) - 1


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (_set("version", value=1), tx.Unsupported, "versions 2 and 3, got version 1"),
        (_set("version", value=4), tx.Unsupported, "versions 2 and 3, got version 4"),
        (_set("version", value=3 << 24), tx.Unsupported, "big-endian"),
        (_set("t_count", value=_HUGE), tx.Corrupted, "Expected at most"),
        (_set("e_count", value=_HUGE), tx.Corrupted, "Expected at most"),
        (_set("metadata", 1, 2, value=0), tx.Corrupted, "a power of two, got 0"),
        (_set("metadata", 1, 2, value=48), tx.Corrupted, "a power of two, got 48"),
        (_set("metadata", 1, value=["general.alignment", 8, "x"]), tx.Corrupted, "power of two"),
        (_set("metadata", 2, 0, value="x.flag"), tx.Corrupted, "each key of the metadata once"),
        (_set("metadata", 2, 1, value=13), tx.Unsupported, "metadata of type 13"),
        (_set("metadata", 0, 2, value="\udcff"), tx.Corrupted, "Expected text"),
        (_set("metadata", 5, 2, value=[8, [], _HUGE]), tx.Corrupted, "Expected at most"),
        (_set("metadata", 5, 2, value=[0, [], _HUGE]), tx.Corrupted, "Expected at most"),
        (_set("metadata", 5, 2, value=[9, []]), tx.Unsupported, "a list of lists"),
        (_set("metadata", 5, 2, value=[77, []]), tx.Unsupported, "a list of type 77"),
        (_set("tensors", 1, 0, value="a.weight"), tx.Corrupted, "one tensor of a name"),
        (_set("tensors", 1, 3, value=0), tx.Corrupted, "do not overlap"),
        (_set("tensors", 1, 3, value=33), tx.Corrupted, "a multiple of 32, got 33"),
        (_set("tensors", 3, 3, value=1 << 63), tx.Corrupted, "a file of at least"),
        (_set("nbytes", value=300), tx.Corrupted, "a file of at least"),
        (_set("tensors", 1, 1, value=[33, 2]), tx.Corrupted, "whole blocks of 32 elements of Q8_0"),
        (_set("tensors", 0, 1, value=[1 << 63, 1 << 63]), tx.Corrupted, "a file of at least"),
        (_set("tensors", 4, 1, value=[0, 1 << 63]), tx.Unsupported, "no arrays of shape"),
        (_set("tensors", 0, 1, value=[1] * 33), tx.Corrupted, "at most 32 dimensions"),
        (_set("tensors", 0, 2, value=31), tx.Unsupported, "tensors of type 31"),
    ],
)
def test_damage_is_named(
    tmp_path: Path, change: Any, error: type[tx.CheckpointError], said: str
) -> None:
    path = write(tmp_path / "m.gguf", change)
    with pytest.raises(error, match=said):
        tx.open(path)


@pytest.mark.parametrize("name", ["plain.gguf", "quantised.gguf"])
def test_a_file_that_ends_early_is_damage(tmp_path: Path, name: str) -> None:
    data = (WRITTEN / name).read_bytes()
    for size in [4, 8, 20, 24, 25, *range(30, len(data) - 64, 97)]:
        (tmp_path / "m").write_bytes(data[:size])
        with pytest.raises(tx.Corrupted) as caught:
            tx.open(tmp_path / "m")
        assert type(caught.value) is tx.Corrupted  # whose name is shown in tracebacks


def test_a_file_is_recognised_whatever_its_name_and_the_number_of_tensors(tmp_path: Path) -> None:
    """With 123 tensors, the ninth byte is that of a safetensors header."""
    spec = {"tensors": [[f"t{i}", [8], 0, 32 * i] for i in range(123)], "nbytes": 32 * 123}
    (tmp_path / "m").write_bytes(encode_file(spec))
    assert tx.open(tmp_path / "m").format == "gguf"


def test_a_file_with_many_tensors_takes_little_time(tmp_path: Path) -> None:
    row = struct.pack("<IQIQ", 1, 0, 0, 0)
    names = (str(i).encode() for i in range(29_000))
    rows = b"".join(struct.pack("<Q", len(name)) + name + row for name in names)
    data = b"GGUF" + struct.pack("<IQQ", 3, 29_000, 0) + rows + bytes(64)
    assert len(data) < 1_100_000
    (tmp_path / "m").write_bytes(data)
    found = run_limited(f"len(tx.open({str(tmp_path / 'm')!r}).leaves)", cwd=tmp_path)
    assert found.error is None


def test_what_a_list_of_many_empty_texts_costs(tmp_path: Path) -> None:
    count = 124_000
    listed = struct.pack("<IQ", 8, count) + bytes(8 * count)
    entry = struct.pack("<Q", 1) + b"k" + struct.pack("<I", 9) + listed
    (tmp_path / "m").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry + bytes(32))
    found = run_limited(f"print(dict(tx.open({str(tmp_path / 'm')!r}).metadata))", cwd=tmp_path)
    assert found.stdout.strip() == "{'k': 'a list of 124000 of type string'}"


def test_ls_has_the_quantisation_in_json() -> None:
    data = json.loads(run_cli("ls", "--json", str(WRITTEN / "quantised.gguf")).output)
    found = {leaf["name"]: leaf["quantisation"] for leaf in data["leaves"]}
    assert found["Q4_K.weight"] == "Q4_K"
    assert found["norm.weight"] is None
