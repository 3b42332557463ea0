"""Square weights, whose shape does not tell whether they are transposed: neighbours and names do.

What these can't tell for certain is noted, and is in `undecidable`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from safetensors.numpy import save_file

import templax as tx
from helpers import count_examples
from templax._template.make import make_template
from templax._views.suggest import find_suggestion

D, F = 8, 32

Values = dict[str, np.ndarray]


_rng = np.random.default_rng(0)


def draw(*shape: int) -> np.ndarray:
    return np.asarray(_rng.normal(size=shape), np.float32)


def turn(values: Values) -> Values:
    return {name: np.ascontiguousarray(value.T) for name, value in values.items()}


def rename(values: Values, spelling: str) -> Values:
    """Spells the names anew: `layers.0.{}.weight`."""
    return {spelling.format(name): value for name, value in values.items()}


def suggest(
    tmp_path: Path, stored: Values, want: Values, is_whole: bool = True
) -> tuple[list[str], tuple[str, ...]]:
    """Restores with the mapping that is suggested, which makes all leaves if it is whole.

    Returns:
        The names of the leaves that are not as wanted, and of those that are said to be uncertain,
        in order.
    """
    path = tmp_path / "stored.safetensors"
    save_file({name: np.ascontiguousarray(value) for name, value in stored.items()}, path)
    template = {name: np.zeros_like(value) for name, value in want.items()}
    notes: list[str] = []
    mapping = tx.suggest(path, template, on_note=notes.append)
    if mapping is None:
        assert not is_whole
        return [], ()
    made = tx.restore(tx.view(path, mapping), template, missing="error" if is_whole else "keep")
    found = find_suggestion(tx.open(path).entries, make_template(template))
    assert found is not None
    uncertain = "transposed" in " ".join(notes)
    assert uncertain == bool(found.undecidable)
    wrong = [
        name
        for name, value in want.items()
        if name in found.covered and not np.array_equal(made[name], value)
    ]
    return wrong, tuple(sorted(found.undecidable))


def make_weights(*names: str, up: str = "up") -> Values:
    """Square weights (inputs, outputs), and one that is not, whose shape tells the layout."""
    return {name: draw(D, D) for name in names} | {up: draw(D, F)}


def test_neighbours_decide_whatever_they_are_called(tmp_path: Path) -> None:
    weights = make_weights(*"qkvo")
    stored = rename(turn(weights), "layers.0.attn.{}_proj.weight")
    want = {f"layers.0.attn.w{n}": weights[n] for n in "qkvo"}
    want["layers.0.mlp.w_up"] = weights["up"]
    wrong, uncertain = suggest(tmp_path, stored, want)
    assert wrong == []
    assert uncertain == tuple(f"layers.0.attn.w{n}" for n in "koqv")


def test_check_says_which_leaves_of_its_mapping_are_uncertain(tmp_path: Path) -> None:
    weights = make_weights(*"qkvo")
    path = tmp_path / "stored.safetensors"
    save_file(rename(turn(weights), "layers.0.{}_proj.weight"), path)
    match = tx.check(path, {f"layers.0.w{name}": value for name, value in weights.items()})
    assert match.undecidable == tuple(f"layers.0.w{name}" for name in "koqv")
    assert "can't tell by its shape whether `layers.0.wk`, " in str(match)


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        ("block_0/{}/weight", "block_0.{}.kernel"),
        ("layers,0,{},weight", "layers.0.{}.kernel"),
        ("layers_0_{}_weight", "layers.0.{}.kernel"),
        ("layers.0.{}.weight", "layers/0/{}/kernel"),
        ("layers.0.{}.weight", "layers/0/{}/kernel/value"),
    ],
)
def test_names_are_read_with_any_separator(tmp_path: Path, stored: str, wanted: str) -> None:
    weights = make_weights(*"qk")
    for only in (weights, {name: weights[name] for name in "qk"}):
        want = rename(only, wanted)
        wrong, uncertain = suggest(tmp_path, rename(turn(only), stored), want)
        assert wrong == []
        assert uncertain == tuple(wanted.format(name) for name in "kq")


def test_layers_that_are_stacked_are_turned_like_their_neighbours(tmp_path: Path) -> None:
    layers = [make_weights(*"qkv") for _ in range(3)]
    stored: Values = {}
    for i, layer in enumerate(layers):
        stored |= rename(turn(layer), f"layers.{i}.attn.{{}}_proj.weight")
    want = {f"layers.attn.w{n}": np.stack([x[n] for x in layers]) for n in (*"qkv", "up")}
    wrong, uncertain = suggest(tmp_path, stored, want)
    assert (wrong, len(uncertain)) == ([], 3)


def test_layers_that_are_stacked_on_both_sides_may_be_transposed(tmp_path: Path) -> None:
    weights = {"q": draw(3, D, D), "k": draw(3, D, D), "up": draw(3, D, F)}
    turned = {name: value.swapaxes(1, 2) for name, value in weights.items()}
    want = rename(weights, "layers.w_{}")
    wrong, uncertain = suggest(tmp_path, rename(turned, "layers.{}.weight"), want)
    assert (wrong, uncertain) == ([], ("layers.w_k", "layers.w_q"))


def test_heads_are_turned_like_their_neighbours(tmp_path: Path) -> None:
    weights = make_weights(*"qkv")
    want = {f"layers.0.{n}.w": weights[n].reshape(D, 2, D // 2) for n in "qkv"}
    want["layers.0.w_up"] = weights["up"]
    stored = rename(turn(weights), "layers.0.{}_proj.weight")
    wrong, uncertain = suggest(tmp_path, stored, want)
    assert (wrong, len(uncertain)) == ([], 3)


@pytest.mark.parametrize(
    ("stored", "wanted", "turned"),
    [
        ("weight", "kernel", True),
        ("kernel", "weight", True),
        ("weight", "w", True),  # Haiku
        ("w", "kernel", False),
    ],
)
def test_names_decide_where_all_are_square(
    tmp_path: Path, stored: str, wanted: str, turned: bool
) -> None:
    weights = {name: draw(D, D) for name in "qkv"}
    want = rename(weights, f"{{}}.{wanted}")
    there = rename(turn(weights) if turned else weights, f"{{}}.{stored}")
    wrong, uncertain = suggest(tmp_path, there, want)
    assert (wrong, uncertain) == ([], tuple(sorted(want)))


def test_leaves_that_only_moved_are_certain_unless_others_are_turned(tmp_path: Path) -> None:
    weights = {name: draw(D, D) for name in "qkv"}
    stored, want = rename(weights, "model.{}.weight"), rename(weights, "{}.weight")
    assert suggest(tmp_path, stored, want) == ([], ())
    up = draw(D, F)
    wrong, uncertain = suggest(tmp_path, stored | {"model.up.w": up.T}, want | {"mlp.w_up": up})
    assert "mlp.w_up" not in wrong
    assert uncertain == tuple(sorted(want))


def test_a_leaf_whose_name_is_the_same_is_kept_unless_such_leaves_are_turned(
    tmp_path: Path,
) -> None:
    out, up, fc = draw(D, D), draw(D, F), draw(D, F)
    want = {"out.w": out, "mlp.w_up": up}
    stored = {"out.w": out, "mlp.up.weight": np.ascontiguousarray(up.T)}
    assert suggest(tmp_path, stored, want) == ([], ("out.w",))
    stored |= {"out.w": out.T, "fc.w": fc.T}
    assert suggest(tmp_path, stored, want | {"fc.w": fc}) == ([], ("out.w",))


def test_neighbours_that_are_not_turned_decide_for_certain(tmp_path: Path) -> None:
    weights = make_weights(*"qk")
    wrong = suggest(tmp_path, rename(weights, "attn.{}.w"), rename(weights, "block.attn.{}.kernel"))
    assert wrong == ([], ())


def test_neighbours_that_are_not_turned_are_doubted_where_names_suggest_it(tmp_path: Path) -> None:
    """What is not turned may be a table under a name of its own."""
    weights = {"q": draw(D, D), "lut": draw(20, D)}
    stored, want = rename(weights, "m.{}.weight"), rename(weights, "m.{}.w")
    assert suggest(tmp_path, stored, want) == ([], ("m.q.w",))


def test_biases_of_heads_are_neither_turned_nor_uncertain(tmp_path: Path) -> None:
    bias, up = draw(2, 2), draw(D, F)
    stored = {"attn.q_proj.bias": bias, "mlp.up_proj.weight": np.ascontiguousarray(up.T)}
    want = {"attn.q.bias": bias, "mlp.up.kernel": up}
    assert suggest(tmp_path, stored, want) == ([], ())


def test_a_unit_axis_makes_nothing_uncertain(tmp_path: Path) -> None:
    gate, up = draw(1, D), draw(D, F)
    want = {"gate.kernel": gate, "up.kernel": up}
    stored = {"gate.weight": gate.T, "up.weight": np.ascontiguousarray(up.T)}
    assert suggest(tmp_path, stored, want) == ([], ())


@pytest.mark.parametrize("to_torch", [False, True])
def test_square_convolutions_of_one_element_are_turned(tmp_path: Path, to_torch: bool) -> None:
    """Both orders of libraries fit (1, 1, n, n): the other is the inverse."""
    flax = {"conv.kernel": draw(1, 1, D, D)}
    torch = {"conv.weight": np.ascontiguousarray(flax["conv.kernel"].transpose(3, 2, 0, 1))}
    stored, want = (flax, torch) if to_torch else (torch, flax)
    assert suggest(tmp_path, stored, want) == ([], tuple(want))


NAMES = ("q", "k", "v", "o", "gate", "up", "down", "first", "second", "embed", "last", "head")

STYLES: dict[str, tuple[str, list[str]]] = {
    "hugging face": (
        "model.layers.{i}.",
        [
            *(f"self_attn.{n}_proj.weight" for n in "qkvo"),
            *(f"mlp.{n}_proj.weight" for n in ("gate", "up", "down")),
            *("input_layernorm.weight", "post_attention_layernorm.weight"),
            *("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"),
        ],
    ),
    "meta": (
        "layers.{i}.",
        [
            *(f"attention.w{n}.weight" for n in "qkvo"),
            *(f"feed_forward.w{n}.weight" for n in "132"),
            *("attention_norm.weight", "ffn_norm.weight"),
            *("tok_embeddings.weight", "norm.weight", "output.weight"),
        ],
    ),
    "flax": (
        "params.layers_{i}.",
        [
            *(f"attn.{n}.kernel" for n in ("query", "key", "value", "out")),
            *(f"mlp.{n}.kernel" for n in ("gate", "up", "down")),
            *("attn_norm.scale", "mlp_norm.scale"),
            *("params.embed.embedding", "params.final_norm.scale", "params.lm_head.kernel"),
        ],
    ),
    "plain": (
        "blocks.{i}.",
        [
            *(f"attn.w{n}" for n in "qkvo"),
            *(f"ffn.w_{n}" for n in ("gate", "up", "down")),
            *("attn_norm.g", "ffn_norm.g", "embed.w", "final_norm.g", "unembed.w"),
        ],
    ),
}
"""How libraries call the leaves of a Llama: the prefix of a layer, then the names."""


class Style(NamedTuple):
    """How one of two trees stores a model."""

    names: str
    is_turned: bool
    separator: str


def make_llama(style: Style, values: Mapping[tuple[str, int], np.ndarray]) -> Values:
    prefix, names = STYLES[style.names]
    model: Values = {}
    for (name, i), value in values.items():
        text = names[NAMES.index(name)]
        text = text if name in ("embed", "last", "head") else prefix.format(i=i) + text
        stored = value.T if style.is_turned and name != "embed" else value
        model[text.replace(".", style.separator)] = stored
    return model


@st.composite
def styles(draw_from: st.DrawFn) -> tuple[Style, Style]:
    one, other = (
        Style(names, draw_from(st.booleans()), draw_from(st.sampled_from("...,/_")))
        for names in draw_from(st.permutations([*STYLES]))[:2]
    )
    return one, other


@pytest.mark.slow
@given(
    styles=styles(),
    width=st.sampled_from([8, 12]),
    queries=st.sampled_from([0, 16]),
    keys=st.sampled_from([0, 4]),
    hidden=st.sampled_from([0, 24]),
    layers=st.integers(1, 3),
)
@count_examples(100)
def test_no_leaf_is_wrong_that_is_not_said_to_be_uncertain(
    styles: tuple[Style, Style], width: int, queries: int, keys: int, hidden: int, layers: int
) -> None:
    """Whatever names and layout either tree has."""
    q, kv, f = queries or width, keys or width, hidden or width
    shapes = {"q": (width, q), "k": (width, kv), "v": (width, kv), "o": (q, width)}
    shapes |= {"gate": (width, f), "up": (width, f), "down": (f, width)}
    shapes |= dict.fromkeys(("first", "second"), (width,))
    values = {(name, i): draw(*shape) for i in range(layers) for name, shape in shapes.items()}
    values |= {("embed", 0): draw(20, width), ("last", 0): draw(width)}
    values |= {("head", 0): draw(width, 20)}
    stored, want = (make_llama(style, values) for style in styles)
    is_whole = all(style.separator == "." for style in styles)
    with tempfile.TemporaryDirectory() as directory:
        wrong, uncertain = suggest(Path(directory), stored, want, is_whole)
    assert {*wrong} <= {*uncertain}
    assert not (is_whole and wrong), "the last layer tells how both trees store their weights"
