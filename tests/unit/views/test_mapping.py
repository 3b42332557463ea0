"""Mappings as JSON, in files, as tables, and in pickles."""

from __future__ import annotations

import copy
import json
import math
import pickle
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

import templax as tx
from mapping_strategies import mappings

LLAMA = tx.Mapping(
    {
        "embed.embedding": "model.embed_tokens.weight",
        "layers.{i}.norm.scale": "model.layers.{i}.input_layernorm.weight",
        "layers.{i}.attn.q.kernel": tx.From(
            "model.layers.{i}.self_attn.q_proj.weight", "(h k) d -> d h k", scale="k**-0.5", k=64
        ),
        "layers.{i}.mlp.in.kernel": tx.From(
            "model.layers.{i}.mlp.{p}.weight", "f d -> d (p f)", p=["gate_proj", "up_proj"]
        ),
        "layers.{i}.attn.kv": tx.Concat(
            ["k.{i}", tx.From("v.{i}", "f d -> d f", slice={"f": (0, 8)})], "d [f]"
        ),
    },
    drop=["*.rotary_emb.inv_freq"],
    rest="keep",
)

DOCUMENT = {
    "embed.embedding": {"from": "model.embed_tokens.weight"},
    "layers.{i}.norm.scale": {"from": "model.layers.{i}.input_layernorm.weight"},
    "layers.{i}.attn.q.kernel": {
        "from": "model.layers.{i}.self_attn.q_proj.weight",
        "axes": "(h k) d -> d h k",
        "scale": "k**-0.5",
        "k": 64,
    },
    "layers.{i}.mlp.in.kernel": {
        "from": "model.layers.{i}.mlp.{p}.weight",
        "axes": "f d -> d (p f)",
        "p": ["gate_proj", "up_proj"],
    },
    "layers.{i}.attn.kv": {
        "concat": [
            {"from": "k.{i}"},
            {"from": "v.{i}", "axes": "f d -> d f", "slice": {"f": [0, 8]}},
        ],
        "axes": "d [f]",
    },
    "$drop": ["*.rotary_emb.inv_freq"],
    "$rest": "keep",
}


def test_the_json_form_is_an_object_for_each_rule() -> None:
    assert LLAMA.to_json() == DOCUMENT
    assert list(LLAMA.to_json()) == list(DOCUMENT)
    assert tx.Mapping.from_json(DOCUMENT) == LLAMA
    assert tx.Mapping({}).to_json() == {}


def test_a_document_may_be_written_in_short() -> None:
    short = {
        "a": "b",
        "c": {"from": "d", "axes": "h k -> k h", "flip": "h", "pad": "k", "crop": ["h"]},
        "e": {"concat": ["f", "g"], "axes": "[h]"},
        "$drop": "*.x",
    }
    assert tx.Mapping.from_json(short) == tx.Mapping(
        {
            "a": "b",
            "c": tx.From("d", "h k -> k h", flip=["h"], pad=["k"], crop="h"),
            "e": tx.Concat(["f", "g"], "[h]"),
        },
        drop=["*.x"],
    )


@given(mappings())
def test_a_mapping_survives_json_pickle_and_copy(mapping: tx.Mapping) -> None:
    document = json.loads(json.dumps(mapping.to_json(), allow_nan=False))
    again = tx.Mapping.from_json(document)
    assert again == mapping
    assert hash(again) == hash(mapping)
    assert again.to_json() == mapping.to_json()
    assert list(again.rules) == list(mapping.rules)
    assert pickle.loads(pickle.dumps(mapping)) == mapping  # noqa: S301
    assert copy.deepcopy(mapping) == mapping
    for rule in mapping.rules.values():
        assert copy.deepcopy(rule) == rule
        assert eval(repr(rule), vars(tx)) == rule  # noqa: S307


@given(mappings(), mappings())
def test_equal_mappings_have_equal_documents(one: tx.Mapping, other: tx.Mapping) -> None:
    assert (one == other) == (one.to_json() == other.to_json())


def test_a_file_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    LLAMA.save(path)
    assert tx.Mapping.load(path) == LLAMA
    assert json.loads(path.read_text()) == DOCUMENT
    assert len(path.read_text().splitlines()) == len(DOCUMENT) + 2
    tx.Mapping({}).save(str(path))
    assert len(tx.Mapping.load(str(path))) == 0
    assert [file.name for file in tmp_path.iterdir()] == ["map.json"]


@given(mapping=mappings())
def test_any_mapping_is_loaded_as_it_was_saved(
    mapping: tx.Mapping, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("map") / "map.json"
    mapping.save(path)
    assert tx.Mapping.load(path) == mapping


def refuse_constant(text: str) -> None:
    raise AssertionError(f"{text} is not JSON")


@pytest.mark.parametrize("value", [math.inf, -math.inf, "-inf"])
def test_a_leaf_filled_with_infinity_is_saved_as_strict_json(
    value: float | str, tmp_path: Path
) -> None:
    path = tmp_path / "map.json"
    mapping = tx.Mapping({"x": tx.From("w", "a -> a", pad={"a": value}, a=4)})
    mapping.save(path)
    document = json.loads(path.read_text(), parse_constant=refuse_constant)
    assert document["x"]["pad"] == {"a": "inf" if value == math.inf else "-inf"}
    loaded = tx.Mapping.load(path)
    assert loaded == mapping
    tx.save(tmp_path / "ckpt", {"w": np.ones(3, np.float32)})
    filled = tx.restore(tx.view(tmp_path / "ckpt", loaded), {"x": np.empty(4, np.float32)})["x"]
    np.testing.assert_array_equal(filled, np.float32([1, 1, 1, float(value)]))


@pytest.mark.parametrize("text", ["-Infinity", "Infinity", "NaN", "1e999", "-1e999"])
def test_a_file_with_a_number_that_json_or_float64_lacks_is_refused(
    text: str, tmp_path: Path
) -> None:
    path = tmp_path / "map.json"
    path.write_text(f'{{"x": {{"from": "w", "axes": "a -> a", "pad": {{"a": {text}}}}}}}')
    message = '`x`: pad= `a`: Expected a number that float64 can hold, or "inf" or "-inf", got '
    with pytest.raises(tx.MappingError, match=message + repr(float(text))):
        tx.Mapping.load(path)


@pytest.mark.slow
def test_a_save_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    LLAMA.save(path)
    before = path.read_bytes()
    large = tx.Mapping({f"{n}.{'x' * 60_000}": "a" for n in range(300)})
    with pytest.raises(tx.MappingError, match="at most 16,777,216 bytes"):
        large.save(path)
    assert path.read_bytes() == before
    with pytest.raises(tx.SaveError, match="make its directory first"):
        LLAMA.save(tmp_path / "none" / "map.json")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "Expected a mapping file, .* in `.*map.json`"),
        (b"[1]", "Expected a JSON object with a rule for each target, got list"),
        (b'{"a": "b", "a": "c"}', "the key 'a' occurs twice"),
        (b'{"a": {"from": "b", "from": "c"}}', "the key 'from' occurs twice"),
        (b'{"a": \xff}', "Expected a mapping file"),
        (b"[" * 100_000, "Expected a mapping file"),
        (b"1" * 5000, "Expected a mapping file"),
        (b" " * (1 << 24) + b"{}", "at most 16,777,216 bytes"),
    ],
    ids=range(8),
)
def test_a_file_that_is_no_mapping_is_refused(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_bytes(data)
    with pytest.raises(tx.MappingError, match=message):
        tx.Mapping.load(path)


def test_a_file_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(tx.NotFound, match="Expected a mapping file, found nothing"):
        tx.Mapping.load(tmp_path / "map.json")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (None, "Expected a JSON object"),
        ("a", "Expected a JSON object"),
        ({"w": 3}, "`w`: Expected a name or an object with `from` or `concat`, got int"),
        ({"w": None}, "`w`: Expected a name or an object"),
        ({"w": {}}, "`w`: Expected a name or an object with `from`, got one with nothing"),
        ({"w": {"axes": "h -> h"}}, "got one with `axes`"),
        ({"w": {"from": 3}}, "`w`: Expected a name as text, got 3"),
        ({"w": {"from": "a", "axes": 3}}, "`w`: Expected axes as text"),
        ({"w": {"from": "a", "axis": "h -> h"}}, "`w`: axis= Expected a size, or a list of names"),
        ({"w": {"from": "a", "concat": ["b"]}}, "`w`: Expected an object with `concat` and `axes`"),
        ({"w": {"concat": ["b"]}}, "`w`: Expected an object with `concat` and `axes`"),
        ({"w": {"concat": "b", "axes": "[f]"}}, "`w`: Expected a list of rules in `concat`"),
        ({"w": {"concat": [3], "axes": "[f]"}}, "`w`: Expected a name or an object with `from`"),
        (
            {"w": {"concat": [{"concat": ["a"], "axes": "[f]"}], "axes": "[f]"}},
            "`w`: Expected a name or an object with `from`",
        ),
        ({"w": {"from": "a", "self": 3}}, "`w`: self= has `self`, which is not an axis"),
        ({"w": {"from": "a", "source": 3}}, "`w`: source= has `source`, which is not an axis"),
        ({"$drop": 3}, "Expected drop="),
        ({"$drop": None}, "Expected drop="),
        ({"$rest": 3}, "Expected rest="),
        ({"$dorp": "x"}, r"`\$dorp`: names with `\$` in front"),
        ({3: "x"}, "`3`: Expected a name as text, got 3"),
        ({"w": {3: "x", "from": "a"}}, "`w`: "),
    ],
)
def test_a_document_that_is_no_mapping_is_refused(document: Any, message: str) -> None:
    with pytest.raises(tx.MappingError, match=message):
        tx.Mapping.from_json(document)


def test_all_problems_of_a_document_are_listed() -> None:
    with pytest.raises(tx.MappingError) as caught:
        tx.Mapping.from_json({"a": 3, "b": {"from": "x.{i}"}, "c": {}, "d": "e", "$rest": "x"})
    assert [text[:4] for text in caught.value.problems] == ["`a`:", "`c`:", "`b`:", "Expe"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(("from", "axes", "concat", "select", "slice", "pad", "scale", "h"))
            | st.text(max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(json_values | st.dictionaries(st.text(max_size=6), json_values))
def test_any_document_is_a_mapping_or_refused(document: Any) -> None:
    try:
        mapping = tx.Mapping.from_json(document)
    except tx.MappingError as error:
        assert error.problems  # noqa: PT017
        return
    assert tx.Mapping.from_json(mapping.to_json()) == mapping


def test_a_mapping_is_printed_as_a_table() -> None:
    assert str(LLAMA).splitlines() == [
        "target                    from                                      axes",
        "embed.embedding           model.embed_tokens.weight",
        "layers.{i}.norm.scale     model.layers.{i}.input_layernorm.weight",
        "layers.{i}.attn.q.kernel  model.layers.{i}.self_attn.q_proj.weight  (h k) d -> d h k,"
        " scale='k**-0.5', k=64",
        "layers.{i}.mlp.in.kernel  model.layers.{i}.mlp.{p}.weight           f d -> d (p f),"
        " p=['gate_proj', 'up_proj']",
        "layers.{i}.attn.kv                                                  d [f]",
        "                          k.{i}",
        "                          v.{i}                                     f d -> d f,"
        " slice={'f': [0, 8]}",
        "drop *.rotary_emb.inv_freq",
        "keep the rest",
    ]
    assert repr(LLAMA) == "Mapping(5 rules)"
    assert repr(tx.Mapping({"a": "b"})) == "Mapping(1 rule)"


def test_a_table_has_no_control_characters() -> None:
    text = str(tx.Mapping({"a\n\x1b[2Jb": "c\u202e"}, drop="\x07"))
    assert all(line.isprintable() for line in text.split("\n"))
    assert len(text.split("\n")) == 3


def test_a_source_that_is_wrong_is_not_pickled() -> None:
    for rule in (tx.From("a", "h"), tx.Concat([], "[f]")):
        with pytest.raises(tx.MappingError):
            pickle.dumps(rule)
