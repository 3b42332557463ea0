"""What a view makes of small checkpoints, and what it says of mappings that do not fit."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import einops
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import templax as tx
from helpers import run_cli
from templax._audit.diff_blocks import SPREAD_BYTES, find_pinned
from templax._catalog.entry import Chunk, Extent, LeafEntry, Origin
from templax._convert.leftovers import identify_source
from templax._core.boxes import full_box
from templax._core.index_map import IndexMap, MapAxis

A = np.arange(24, dtype=np.float32).reshape(4, 6)
B = np.arange(12, dtype=np.float32).reshape(2, 6) + 100
BF16 = np.random.default_rng(0).standard_normal((6, 4)).astype(ml_dtypes.bfloat16)


def make_view(
    directory: Path, stored: dict[str, Any], rules: dict[str, Any], **options: Any
) -> Any:
    path = directory / "model.safetensors"
    tx.save(path, stored, overwrite=True)
    return tx.view(path, tx.Mapping(rules, **options))


def restore_all(view: Any) -> dict[str, np.ndarray]:
    """Every leaf of a view, in the shape that follows from the checkpoint alone."""
    entries = tx.open(view).entries
    return tx.restore(view, {entry.name: np.empty(entry.shape, entry.dtype) for entry in entries})


VALUES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "joined unequal parts": (
        {"g": A, "u": B},
        {"w": tx.Concat([tx.From("g", "f d -> d f"), tx.From("u", "f d -> d f")], "d [f]")},
        {"w": np.concatenate([A.T, B.T], 1)},
    ),
    "joined as they are": (
        {"g": A, "u": B},
        {"w": tx.Concat(["g", "u"], "[f] d")},
        {"w": np.concatenate([A, B])},
    ),
    "joined for each head": (
        {"q": A, "k": B},
        {"w": tx.Concat([tx.From(n, "(h f) r -> (h f) r", h=2) for n in ("q", "k")], "(h [f]) r")},
        {"w": np.concatenate([A.reshape(2, 2, 6), B.reshape(2, 1, 6)], 1).reshape(6, 6)},
    ),
    "cut for each head": (
        {"w": A},
        {"q": tx.From("w", "(h f) r -> (h f) r", slice={"f": (1, 2)}, h=2)},
        {"q": A.reshape(2, 2, 6)[:, 1:2].reshape(2, 6)},
    ),
    "a composite axis that is cut": (
        {"p": A},
        {"p": tx.From("p", "a (h w) -> h w a", slice={"(h w)": (1, 5)}, h=2)},
        {"p": A[:, 1:5].reshape(4, 2, 2).transpose(1, 2, 0)},
    ),
    "RoPE halves to pairs": (
        {"p": A.reshape(8, 3)},
        {"p": tx.From("p", "(h two k) d -> (h k two) d", two=2, h=2)},
        {"p": einops.rearrange(A.reshape(8, 3), "(h two k) d -> (h k two) d", two=2, h=2)},
    ),
    "every other layer": (
        {f"l.{i}.w": np.full(2, i, np.float32) for i in range(6)},
        {"s.{c}.w": tx.From("l.{(g c)}.w", "d -> g d", c=2)},
        {f"s.{c}.w": np.array([[i, i] for i in range(c, 6, 2)], np.float32) for c in range(2)},
    ),
    "experts of layers": (
        {f"l.{i}.e.{e}.w": A + 10 * i + e for i in range(2) for e in range(3)},
        {"w": tx.From("l.{i}.e.{e}.w", "f d -> i e d f")},
        {"w": np.stack([np.stack([(A + 10 * i + e).T for e in range(3)]) for i in range(2)])},
    ),
    "one source of two leaves": (
        {"e": A},
        {"a": "e", "b": tx.From("e", "v d -> d v")},
        {"a": A, "b": A.T},
    ),
    "some layers, the last one first": (
        {"w": A},
        {"l.{i}": tx.From("w", "i d -> d", slice={"i": (1, 4)}, flip="i")},
        {"l.0": A[3], "l.1": A[2], "l.2": A[1]},
    ),
    "a subtree that moved": (
        {"opt.0.mu.w": A, "step": np.int32(3)},
        {"opt.1.0.{...}": "opt.0.{...}", "step": "step"},
        {"opt.1.0.mu.w": A, "step": np.int32(3)},
    ),
    "a rule more specific than the rest": (
        {"m.a": A, "m.b": A},
        {"n.{...}": "m.{...}", "n.b": tx.From("m.b", "x y -> y x")},
        {"n.a": A, "n.b": A.T},
    ),
    "a factor": ({"p": BF16}, {"p": tx.From("p", scale=-1)}, {"p": -BF16}),
}


@pytest.mark.parametrize("case", VALUES)
def test_leaves_have_the_values_of_numpy(case, tmp_path):
    stored, rules, expected = VALUES[case]
    made = restore_all(make_view(tmp_path, stored, rules))
    assert made.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(made[name], values)


def test_the_affine_step_rounds_once_to_the_dtype_of_the_template(tmp_path):
    rule = tx.From("p", "(h k) d -> d h k", scale="k**-0.5", add=1, h=2)
    made = tx.restore(
        make_view(tmp_path, {"p": BF16}, {"p": rule}), {"p": np.empty((4, 2, 3), "f2")}
    )
    values = BF16.astype(np.float32) * np.float32(3**-0.5) + np.float32(1)
    expected = values.astype(np.float16).reshape(2, 3, 4).transpose(2, 0, 1)
    np.testing.assert_array_equal(made["p"].view(np.uint16), np.array(expected).view(np.uint16))


@pytest.mark.parametrize(
    ("rule", "shape", "expected"),
    [
        (tx.From("e", "v d -> v d", pad="v"), (6, 6), np.pad(A, [(0, 2), (0, 0)])),
        (
            tx.From("e", "v d -> d v", pad={"v": -1}),
            (6, 5),
            np.pad(A.T, [(0, 0), (0, 1)], constant_values=-1),
        ),
        (tx.From("e", "v d -> v d", crop="v"), (3, 6), A[:3]),
        (tx.From("e", "v d -> v d", pad="v", crop="v"), (4, 6), A),
        (tx.From("e", "(h k) d -> h (k d)"), (2, 12), A.reshape(2, 12)),
        (tx.From("e", "(h k) d -> d h k"), (6, 2, 2), A.reshape(2, 2, 6).transpose(2, 0, 1)),
    ],
)
def test_sizes_that_the_checkpoint_does_not_tell_come_from_the_template(
    rule, shape, expected, tmp_path
):
    view = make_view(tmp_path, {"e": A}, {"y": rule})
    made = tx.restore(view, {"y": np.empty(shape, np.float32)})
    np.testing.assert_array_equal(made["y"], expected)
    assert tx.check(view, {"y": np.empty(shape, np.float32)}).ok


STACK = {"l.0": A, "l.2": A}
ERRORS: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]] = [
    ({"e": A}, {"y": tx.From("e", "(h k) d -> d h k")}, {}, "`y`: .* `h` and `k`: give h=N or k=N"),
    ({"e": A}, {"y": tx.From("e", "(h k) d -> d h k", h=3)}, {}, "3 does not divide: check"),
    ({"e": A, "f": A, "g": A}, {"y": "e"}, {}, "no rule names `f`, `g`: write rules .* drop="),
    ({"y": A, "z.0": A}, {"y": "x"}, {}, "no `x`; it has `y`, which this rule makes: .* already"),
    ({"weights": A}, {"y": "weight"}, {}, "no `weight`; nearest: `weights`"),
    (STACK, {"y": tx.From("l.{i}", "a b -> i a b")}, {}, "up to 2, but there is no 1: .* no holes"),
    (
        {"a": A, "b": B},
        {"y": tx.From("{p}", "a b -> p a b", p=["a", "b"])},
        {},
        r"`a` has shape \(4, 6\), `b` has \(2, 6\)",
    ),
    (
        {"a": A, "b": A.astype(np.float64)},
        {"y": tx.From("{p}", "a b -> p a b", p=["a", "b"])},
        {},
        "`a` is float32, `b` is float64",
    ),
    ({"a.0": A, "a.1": A, "b": A}, {"y.{i}": "a.{i}", "y.1": "b"}, {}, "both make `y.1`"),
    ({"m.a": A, "x": A}, {"n.{...}": "m.{...}", "n.a": "x"}, {}, "both make `n.a`: .* `m.a` to"),
    ({"m.a": A, "o.n": A}, {"n.{...}": "m.{...}", "{...}.a": "o.{...}"}, {}, "both make `n.a`"),
    ({"a": A, "b": A}, {"y": "a"}, {"drop": ["b", "c*"]}, "drop='c.*' matches no leaf: leave it"),
    ({"a": A}, {"y": "a"}, {"drop": "*"}, "drop='.*' matches `a`, which a rule uses"),
    ({"a": np.arange(3)}, {"y": tx.From("a", scale=2)}, {}, "are for floats, `a` is int64"),
    ({"a": A}, {"y": tx.From("a", "a b c -> a b c")}, {}, "name 3 dimensions, the source has 2"),
    ({"a": A, "y": B}, {"y": "a"}, {"rest": "keep"}, "`y` makes `y`, which the checkpoint has as"),
    ({"g": A}, {"w": tx.Concat(["g", "u"], "[f] d")}, {}, "no `u`, but the other parts"),
    ({"a": A}, {"y": tx.From("a", "a b -> b", select={"a": 4})}, {}, "beyond its 4 elements"),
    ({"a": A}, {"y": tx.From("a", "a b -> a b", slice={"a": (2, 5)})}, {}, "beyond its 4 elements"),
]


@pytest.mark.parametrize(("stored", "rules", "options", "said"), ERRORS)
def test_a_mapping_that_does_not_fit_is_one_error_that_says_what_to_write(
    stored, rules, options, said, tmp_path
):
    view = make_view(tmp_path, stored, rules, **options)
    with pytest.raises(tx.MappingError, match=said):
        tx.open(view)


def test_all_problems_of_all_rules_are_in_one_error(tmp_path):
    rules = {"x": "p", "y": tx.From("e", "(h k) d -> d h k"), "z": tx.From("f", "a b c -> c b a")}
    with pytest.raises(tx.MappingError) as caught:
        tx.open(make_view(tmp_path, {"e": A, "f": B}, rules))
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["`y`", "`z`", "`x`"]


def test_a_mismatch_names_both_leaves_and_what_would_make_it_fit(tmp_path):
    view = make_view(tmp_path, {"e": A}, {"y": tx.From("e", "v d -> v d")})
    with pytest.raises(
        tx.TemplateError, match=r'at `y`; made from e; pad="v" in its rule'
    ) as caught:
        tx.restore(view, {"y": np.empty((5, 6), np.float32)})
    assert [m.problem for m in caught.value.mismatches] == ["shape"]
    padded = make_view(tmp_path, {"e": A}, {"y": tx.From("e", "v d -> v d", pad="v")})
    assert tx.check(padded, {"y": np.empty((5, 6), np.float32)}).ok


ADVICE = [
    ("v d -> v d", {}, (5, 6), 'pad="v"'),
    ("v d -> v d", {}, (3, 6), 'crop="v"'),
    ("v d -> d v", {}, (4, 5), 'crop="d", pad="v"'),
    ("v d -> d v", {}, (2, 3), 'crop=["d", "v"]'),
    ("v d -> h v d", {"h": 2}, (3, 4, 6), "h=3"),
    ("v d -> d r v", {"r": 5}, (6, 2, 3), 'r=2, crop="v"'),
    ("v d -> v d", {"v": 4}, (5, 6), 'pad="v", v=5'),
    ("v d -> v d", {"pad": "v", "v": 5}, (7, 6), "v=7"),
    ("v d -> v d", {"pad": "v", "v": 5}, (3, 6), 'crop="v", v=3'),
    ("(a b) d -> a b d", {"a": 2}, (5, 2, 7), 'pad=["a", "d"], a=5'),
    ("v d -> v d", {"slice": {"d": (1, 3)}}, (4, 4), "slice={'d': (1, 5)}"),
    (
        "v d -> v d",
        {"slice": {"d": (1, 3), "v": (0, 2)}},
        (3, 4),
        "slice={'v': (0, 3), 'd': (1, 5)}",
    ),
]


@pytest.mark.parametrize(("axes", "options", "shape", "advice"), ADVICE)
def test_following_the_advice_makes_a_leaf_fit(axes, options, shape, advice, tmp_path):
    view = make_view(tmp_path, {"e": A}, {"y": tx.From("e", axes, **options)})
    (mismatch,) = tx.check(view, {"y": np.empty(shape, np.float32)}).mismatches
    assert f"made from e; {advice} in its rule would make it {shape}" in str(mismatch)
    changed = eval(f"dict({advice})")  # noqa: S307
    view = make_view(tmp_path, {"e": A}, {"y": tx.From("e", axes, **(options | changed))})
    assert tx.check(view, {"y": np.empty(shape, np.float32)}).ok


@pytest.mark.parametrize(
    ("rule", "shape"),
    [
        (tx.From("{i}", "d -> i d"), (3, 6)),
        (tx.From("{p}", "d -> d p", p=["0", "1"]), (6, 1)),
        (tx.From("w", "v d -> v d", slice={"d": (1, 3)}), (4, 6)),
        (tx.From("w", "(a b) d -> (a b) d", a=2), (5, 6)),
    ],
)
def test_no_advice_is_given_where_none_would_make_a_leaf_fit(rule, shape, tmp_path):
    stored = {"0": A[0], "1": A[1], "w": A}
    view = make_view(tmp_path, stored, {"y": rule}, rest="keep")
    found = tx.check(view, {"y": np.empty(shape, np.float32)}, extra="ignore")
    assert "made from " in str(found)
    assert "in its rule would make it" not in str(found)


def test_damage_is_named_by_both_names(tmp_path):
    view = make_view(tmp_path, {"w": A, "b": B}, {"k": tx.From("w", "a b -> b a")}, drop="b")
    data = bytearray((tmp_path / "model.safetensors").read_bytes())
    data[data.index(A.tobytes())] ^= 1
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(tx.Corrupted, match="at `k`, stored as `w`"):
        tx.restore(view, {"k": np.empty((6, 4), np.float32)})
    assert [damage.leaf for damage in tx.verify(view).damages] == ["w"]


def test_a_view_that_leaves_the_damaged_leaf_out_is_sound(tmp_path):
    view = make_view(tmp_path, {"w": A, "b": B}, {"k": "w"}, drop="b")
    data = bytearray((tmp_path / "model.safetensors").read_bytes())
    data[data.index(B.tobytes())] ^= 1
    (tmp_path / "model.safetensors").write_bytes(data)
    assert tx.verify(view).ok
    assert not tx.verify(tmp_path / "model.safetensors").ok


@pytest.mark.parametrize("to", ["orbax", "safetensors", "msgpack", "npz"])
def test_a_view_converts_and_is_identical_to_what_was_written(to, tmp_path):
    rules = {"k": tx.From("w", "(h a) b -> b h a", h=2), "l": tx.From("w", "a b -> a b", flip="a")}
    view = make_view(tmp_path, {"w": A}, rules)
    done = tx.convert(view, tmp_path / f"out.{to}", to=to)
    assert tx.diff(view, done.path).identical
    assert not tx.diff(make_view(tmp_path, {"w": A + 1}, rules), done.path).identical
    (tree,) = [tx.restore(done.path, {"k": np.empty((6, 2, 2), "f4"), "l": np.empty((4, 6), "f4")})]
    np.testing.assert_array_equal(tree["k"], A.reshape(2, 2, 6).transpose(2, 0, 1))
    np.testing.assert_array_equal(tree["l"], A[::-1])
    assert done.shared == ()


def test_a_conversion_is_resumed_with_the_same_mapping_only(tmp_path):
    plain = make_view(tmp_path, {"w": A}, {"w": "w"})
    turned = make_view(tmp_path, {"w": A}, {"w": tx.From("w", "a b -> b a")})
    again = tx.view(plain.checkpoint, tx.Mapping({"w": "w"}))
    assert identify_source(tx.open(plain)) == identify_source(tx.open(again))
    assert identify_source(tx.open(plain)) != identify_source(tx.open(turned))


def test_at_rename_missing_and_extra_work_on_the_names_of_the_view(tmp_path):
    view = make_view(tmp_path, {"w": A, "v": B}, {"p.k": tx.From("w", "a b -> b a"), "p.l": "v"})
    template = {"q": np.empty((6, 4), np.float32)}
    options: dict[str, Any] = {"at": "p", "rename": {"k": "q"}, "extra": "ignore"}
    np.testing.assert_array_equal(tx.restore(view, template, **options)["q"], A.T)
    tx.save(tmp_path / "base", {"p": {"l": B}})
    template = {"p": {"l": np.empty((2, 6), np.float32), "k": np.empty((6, 4), np.float32)}}
    tree = tx.restore(tmp_path / "base", template, missing=view)
    np.testing.assert_array_equal(tree["p"]["k"], A.T)


def test_sizes_of_a_supplier_come_from_the_template(tmp_path):
    view = make_view(tmp_path, {"w": A}, {"k": tx.From("w", "(h a) b -> b h a")})
    tx.save(tmp_path / "base", {"l": B})
    template = {"l": np.empty((2, 6), np.float32), "k": np.empty((6, 2, 2), np.float32)}
    tree = tx.restore(tmp_path / "base", template, missing=view)
    np.testing.assert_array_equal(tree["k"], A.reshape(2, 2, 6).transpose(2, 0, 1))


def test_a_catalog_of_a_view_can_be_pickled(tmp_path):
    view = make_view(tmp_path, {"w": A}, {"k": tx.From("w", "a b -> b a")})
    catalog = pickle.loads(pickle.dumps(tx.open(view)))  # noqa: S301
    np.testing.assert_array_equal(restore_all(catalog)["k"], A.T)


def test_only_what_a_box_needs_is_read(tmp_path):
    stored = {f"l.{i}": np.full((8, 1 << 18), i, np.float32) for i in range(3)}
    view = make_view(tmp_path, stored, {"w": tx.From("l.{i}", "(a b) c -> b i a c", a=2)})
    plan = tx.plan(view, {"w": np.empty((4, 3, 2, 1 << 18), np.float32)})
    assert plan.read_bytes == 3 * 8 * (1 << 20)
    save_file(stored, tmp_path / "plain.safetensors")  # with checksums, their blocks are read whole
    mapping = tx.Mapping({"w": tx.From("l.{i}", "(a b) c -> i a c", a=4, select={"b": 1})})
    one = tx.view(tmp_path / "plain.safetensors", mapping)
    plan = tx.plan(one, {"w": np.empty((3, 4, 1 << 18), np.float32)})
    assert plan.read_bytes == 3 * 4 * (1 << 20)


@pytest.mark.slow
def test_a_compressed_chunk_is_decoded_once_and_nothing_but_chunks_is_held(tmp_path):
    rng = np.random.default_rng(0)
    stored = {f"l.{i}": rng.standard_normal((512, 4096)).astype(np.float32) for i in range(3)}
    tx.save(tmp_path / "ckpt", stored, compression="zstd")
    catalog = tx.open(tmp_path / "ckpt")
    chunks = [chunk for found in catalog.locate(catalog.entries).values() for chunk in found]
    view = tx.view(catalog, tx.Mapping({"w": tx.From("l.{i}", "(a b) c -> c i a b", a=8)}))
    plan = tx.plan(view, {"w": np.empty((4096, 3, 8, 64), np.float32)}, threads=2)
    assert plan.decoded_chunks == len(chunks) >= 3
    decoded = max(math.prod(b - a for a, b in chunk.box) * 4 for chunk in chunks)
    needed = decoded + max(chunk.extent.nbytes for chunk in chunks)
    assert needed <= plan.scratch_bytes <= plan.peak_bytes <= 2 * needed
    values = np.stack([each.reshape(8, 64, 4096) for each in stored.values()])
    np.testing.assert_array_equal(tx.run(plan)["w"], values.transpose(3, 0, 1, 2))


@pytest.mark.slow
def test_a_large_compressed_chunk_that_is_transposed_converts(tmp_path):
    values = np.arange(3 << 20, dtype=np.float32).reshape(3 << 9, 1 << 11)
    tx.save(tmp_path / "m.safetensors", {"w": values})
    options: dict[str, Any] = {"compression": "zstd", "chunk_size": 1 << 30}
    tx.convert(tmp_path / "m.safetensors", tmp_path / "ckpt", to="orbax", **options)
    view = tx.view(tmp_path / "ckpt", tx.Mapping({"w": tx.From("w", "a b -> b a")}))
    tx.convert(view, tmp_path / "turned.npz")
    with np.load(tmp_path / "turned.npz") as file:
        np.testing.assert_array_equal(file["w"], values.T)


def test_absent_chunks_of_a_mapped_leaf_have_the_fill_value(tmp_path):
    about = {"zarr_format": 2, "shape": [4, 6], "chunks": [2, 3], "dtype": "<f4", "order": "C"}
    about |= {"compressor": None, "filters": None, "fill_value": 7.0}
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / ".zarray").write_text(json.dumps(about))
    (tmp_path / "w" / "1.0").write_bytes(A[2:, :3].tobytes())
    expected = np.full((4, 6), 7, np.float32)
    expected[2:, :3] = A[2:, :3]
    view = tx.view(tmp_path, tx.Mapping({"k": tx.From("w", "(h a) b -> b h a", h=2)}))
    made = restore_all(view)
    np.testing.assert_array_equal(made["k"], expected.reshape(2, 2, 6).transpose(2, 0, 1))
    assert tx.verify(view).filled == ("w",)


def test_a_chunk_in_fortran_order_keeps_its_order(tmp_path):
    about = {"zarr_format": 2, "shape": [4, 6], "chunks": [4, 6], "dtype": "<f4", "order": "F"}
    about |= {"compressor": None, "filters": None, "fill_value": 0.0}
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / ".zarray").write_text(json.dumps(about))
    (tmp_path / "w" / "0.0").write_bytes(A.tobytes(order="F"))
    rules = {"same": tx.From("w", "(h a) b -> h a b", h=2), "turned": tx.From("w", "a b -> b a")}
    made = restore_all(tx.view(tmp_path, tx.Mapping(rules)))
    np.testing.assert_array_equal(made["same"], A.reshape(2, 2, 6))
    np.testing.assert_array_equal(made["turned"], A.T)


def test_a_part_without_a_factor_is_cast_beside_one_with_it(tmp_path):
    parts = [tx.From("p", "a b -> a b", scale=2), tx.From("q", "a b -> a b")]
    view = make_view(tmp_path, {"p": BF16, "q": BF16}, {"w": tx.Concat(parts, "[a] b")})
    made = tx.restore(view, {"w": np.empty((12, 4), np.float16)})["w"]
    values = np.concatenate([BF16.astype(np.float32) * 2, BF16.astype(np.float32)])
    np.testing.assert_array_equal(made, values.astype(np.float16))


def test_bytes_of_which_several_leaves_are_made_are_useful_once(tmp_path):
    view = make_view(tmp_path, {"w": A}, {"a": "w", "b": tx.From("w", "a b -> b a")})
    plan = tx.plan(view, {"a": np.empty((4, 6), "f4"), "b": np.empty((6, 4), "f4")})
    assert plan.useful_bytes == plan.read_bytes == A.nbytes


def test_empty_nodes_and_fingerprints_are_those_of_leaves_that_keep_their_values(tmp_path):
    tx.save(tmp_path / "ckpt", {"w": A, "v": B, "none": None})
    kept = tx.open(tx.view(tmp_path / "ckpt", tx.Mapping({"k": "w"}, rest="keep")))
    assert kept.empties == {("none",): "None"}
    assert kept.fingerprints is not None
    stored = tx.open(tmp_path / "ckpt").fingerprints
    assert stored is not None
    assert kept.fingerprints() == {"k": stored()["w"], "v": stored()["v"]}
    rules = {"k": "w", "u": tx.From("v", "a b -> b a")}
    turned = tx.open(tx.view(tmp_path / "ckpt", tx.Mapping(rules)))
    assert (turned.empties, turned.fingerprints) == ({}, None)


def test_a_catalog_of_a_view_takes_its_sizes_from_each_template(tmp_path):
    rules = {"k": tx.From("w", "v d -> v d", pad="v", crop="v", v=5)}
    catalog = tx.open(make_view(tmp_path, {"w": A}, rules))
    assert catalog.leaves["k"].shape == (5, 6)
    scaled = tx.open(make_view(tmp_path, {"w": BF16}, {"k": tx.From("w", scale="3")}))
    made = tx.restore(scaled, {"k": np.empty((6, 4), np.float32)}, cast="exact")["k"]
    np.testing.assert_array_equal(made, BF16.astype(np.float32) * np.float32(3))


def test_a_factor_does_not_make_integers_of_floats(tmp_path):
    view = make_view(tmp_path, {"w": BF16}, {"k": tx.From("w", scale=2)})
    (mismatch,) = tx.check(view, {"k": np.empty((6, 4), np.int32)}).mismatches
    assert (mismatch.problem, mismatch.found) == ("dtype", "bfloat16")


def test_leaves_that_are_listed_in_one_row_say_so(tmp_path):
    stored = {f"h.{i}.w": A for i in range(4)}
    view = make_view(tmp_path, stored, {"l.{i}.k": tx.From("h.{i}.w", "a b -> b a")})
    assert "from h.0.w and alike" in str(tx.open(view))


def test_a_restore_reads_nothing_between_short_runs_that_lie_far_apart(tmp_path):
    """Blocks of a conversion do: it needs the rest, too."""
    stored = np.arange(64 * 8 * 4096, dtype=np.float32).reshape(64, 8, 4096)
    np.savez(tmp_path / "a.npz", w=stored)  # without checksums, of which whole blocks are read
    rules = {"k": tx.From("w", "a b c -> a c", select={"b": 3})}
    view = tx.view(tmp_path / "a.npz", tx.Mapping(rules))
    wanted = stored[:, 3]
    plan = tx.plan(view, {"k": np.empty(wanted.shape, np.float32)})
    assert plan.read_bytes == wanted.nbytes
    assert np.array_equal(tx.run(plan)["k"], wanted)
    tx.convert(view, tmp_path / "copy.npz")
    assert np.array_equal(np.load(tmp_path / "copy.npz")["k"], wanted)


def test_blocks_of_a_transposed_leaf_are_large():
    entry = LeafEntry("k", ("k",), (1 << 14, 1 << 14), np.dtype(np.float32))
    axes = MapAxis(1 << 14, (1, 1), (0, 1)), MapAxis(1 << 14, (0, 1), (1, 1))
    box = full_box(entry.shape)
    origin = Origin(box, entry.dtype, IndexMap(axes, (0, 0), (0, 0)))
    chunk = Chunk(Extent("", 0, 1 << 30), box, origin=origin)
    step = SPREAD_BYTES >> 16
    assert find_pinned([chunk], 0) == [(i, min(i + step, 1 << 14)) for i in range(0, 1 << 14, step)]


def test_the_command_line_takes_a_mapping(tmp_path):
    view = make_view(tmp_path, {"w": A}, {"k": tx.From("w", "a b -> b a")})
    view.mapping.save(tmp_path / "map.json")
    path, options = str(tmp_path / "model.safetensors"), ("--map", str(tmp_path / "map.json"))
    (leaf,) = json.loads(run_cli("ls", path, *options, "--json").output)["leaves"]
    assert (leaf["name"], leaf["shape"], leaf["made_from"]) == ("k", [6, 4], "w")
    assert "from w" in run_cli("ls", path, *options).output
    template = str(tmp_path / "want.json")
    assert run_cli("template", path, *options, "-o", template).exit_code == 0
    assert run_cli("check", path, template, *options).exit_code == 0
    assert run_cli("check", path, template).exit_code == 1
    assert run_cli("verify", path, *options).exit_code == 0
    out = str(tmp_path / "out.npz")
    assert run_cli("convert", path, out, *options).exit_code == 0
    assert run_cli("diff", path, out, *options).exit_code == 0
    assert run_cli("diff", path, out).exit_code == 1
    assert run_cli("ls", path, *options, "--bytes").exit_code == 2


def test_sizes_of_leaves_that_the_template_does_not_ask_for_need_not_be_known(tmp_path):
    rules = {"y": tx.From("e", "v d -> d v"), "z": tx.From("f", "(h k) d -> d h k")}
    view = make_view(tmp_path, {"e": A, "f": B}, rules)
    template = {"y": np.empty((6, 4), np.float32)}
    np.testing.assert_array_equal(tx.restore(view, template, extra="ignore")["y"], A.T)
    with pytest.raises(tx.TemplateError, match="made from f, in a shape that is not known"):
        tx.restore(view, template)


def test_any_of_the_unstacked_leaves_that_a_template_asks_for_tells_their_shape(tmp_path):
    rules = {"l.{i}": tx.From("w", "i (h k) -> k h")}
    view = make_view(tmp_path, {"w": A}, rules)
    made = tx.restore(view, {"l": {"2": np.empty((3, 2), np.float32)}}, extra="ignore")
    np.testing.assert_array_equal(made["l"]["2"], A[2].reshape(2, 3).T)


def test_what_is_no_mapping_is_refused(tmp_path):
    with pytest.raises(tx.UsageError, match="Expected a Mapping, got dict"):
        tx.view(tmp_path, {"a": "b"})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (np.uint8, -1),
        (np.uint8, 300),
        (np.int64, 0.5),
        (np.int32, float("inf")),
        (np.bool_, 5),
        (np.float16, 1e30),
        (ml_dtypes.int4, 8),
        (ml_dtypes.float8_e4m3fn, float("-inf")),
        (np.complex64, 1e300),
    ],
)
def test_a_value_to_fill_with_that_the_dtype_lacks_is_an_error(dtype, value, tmp_path):
    rules = {"x": tx.From("w", "a -> a", pad={"a": value}, a=3)}
    tx.save(tmp_path / "a", {"w": np.ones(2, dtype)})
    with pytest.raises(tx.MappingError, match=f"`x`: pad= fills with .*, which {np.dtype(dtype)}"):
        tx.open(tx.view(tmp_path / "a", tx.Mapping(rules)))


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(np.float16, float("-inf")), (np.int64, 2**62 + 1), (np.bool_, 1), (np.complex64, -1.5)],
)
def test_what_the_dtype_can_hold_is_filled_in_exactly(dtype, value, tmp_path):
    rules = {"x": tx.From("w", "a -> a", pad={"a": value}, a=3)}
    tx.save(tmp_path / "a", {"w": np.ones(2, dtype)})
    made = restore_all(tx.view(tmp_path / "a", tx.Mapping(rules)))["x"]
    np.testing.assert_array_equal(made, np.array([1, 1, value], dtype))


@pytest.mark.parametrize("option", [{"scale": 1e300}, {"scale": "1e-30 * 1e-30"}, {"add": -1e39}])
def test_a_step_that_float32_cannot_hold_is_an_error(option, tmp_path):
    view = make_view(tmp_path, {"w": A}, {"x": tx.From("w", "a b -> b a", **option)})
    with pytest.raises(tx.MappingError, match=r"`x`: .* is -?1e.*, which float32 can't hold"):
        tx.open(view)
