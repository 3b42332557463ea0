"""Each rule of `docs/reference/mapping-kinds.md` makes what numpy makes of whole arrays."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import templax as tx

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "mapping-kinds.md"

RULES: dict[str, dict[str, Any]] = {
    kind: json.loads(f"{{{rules}}}")
    for kind, rules in re.findall(r'^\| ([^|]+) \| `(".*)` \|$', PAGE.read_text(), re.MULTILINE)
}
"""Kind → the rules beside it on the page."""

Leaves = dict[str, np.ndarray]


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def number(count: int, *shape: int) -> list[np.ndarray]:
    """Arrays of which none equals another."""
    return list(draw(count, *shape))


X, Y, Z = number(3, 4, 3)
EIGHT, SIX, TWELVE = draw(8, 3), draw(6, 3), draw(12, 3)
CONV, VECTOR = draw(5, 4, 3, 2), draw(6)
LAYERS = number(4, 4, 3)
EXPERTS = draw(2, 3, 4, 5)


def stack(*arrays: np.ndarray, axis: int = 0) -> np.ndarray:
    return np.stack([a.T for a in arrays], axis)


def name_layers(pattern: str) -> Leaves:
    return {pattern.format(i): x for i, x in enumerate(LAYERS)}


def interleave(halves: np.ndarray) -> np.ndarray:
    """(heads, 2, pairs, width) → (width, heads, 2 * pairs), with halves in turn."""
    heads, _, pairs, width = halves.shape
    made = np.empty((width, heads, 2 * pairs), np.float32)
    made[..., 0::2], made[..., 1::2] = (halves[:, j].transpose(2, 0, 1) for j in (0, 1))
    return made


def separate(pairs: np.ndarray) -> np.ndarray:
    """(heads * n, width), in pairs → (width, heads, n), the first of all pairs at the front."""
    by_head = pairs.reshape(2, -1, pairs.shape[-1]).transpose(2, 0, 1)
    return np.concatenate([by_head[..., 0::2], by_head[..., 1::2]], axis=-1)


def split_heads(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, 2, x.shape[-1]).transpose(2, 0, 1)


def take_columns(start: int, stop: int) -> np.ndarray:
    """Of each of two heads of `TWELVE`."""
    return TWELVE.reshape(2, 6, 3)[:, start:stop].transpose(2, 0, 1)


def merge_heads(x: np.ndarray) -> np.ndarray:
    """(width, heads, n) → (heads * n, width)."""
    return x.reshape(len(x), -1).T


def join_per_head(*parts: np.ndarray) -> np.ndarray:
    """Parts of (2 * n, width) → (width, 2 * sum of n): all of the first head come first."""
    return np.concatenate([x.reshape(2, -1, 3) for x in parts], axis=1).reshape(-1, 3).T


HEADS = draw(3, 4, 2)
HALF = np.float32(2**-0.5)

CASES: dict[str, tuple[Leaves, Leaves]] = {
    "name": ({"model.embed_tokens.weight": X}, {"embed.embedding": X}),
    "prefix": ({"opt_state.0.mu.w": X}, {"opt_state.1.0.mu.w": X}),
    "suffix": ({"dense.kernel": X, "scale": Y}, {"dense.kernel.value": X, "scale.value": Y}),
    "collection": ({"norm.running_mean": VECTOR}, {"batch_stats.norm.mean": VECTOR}),
    "permute": ({"conv.weight": CONV}, {"kernel": CONV.transpose(2, 3, 1, 0)}),
    "unit axes": ({"b": VECTOR.reshape(1, 6, 1)}, {"bias": VECTOR.reshape(1, 6)}),
    "split heads": ({"q.weight": EIGHT}, {"q.kernel": split_heads(EIGHT)}),
    "merge heads": ({"o.weight": HEADS}, {"o.kernel": merge_heads(HEADS)}),
    "stack": (name_layers("layers.{}.weight"), {"layers.kernel": stack(*LAYERS)}),
    "stack inside": (name_layers("layers.{}.weight"), {"layers.kernel": stack(*LAYERS, axis=1)}),
    "nested stack": (
        {f"layers.{i}.experts.{e}.weight": EXPERTS[i, e] for i in range(2) for e in range(3)},
        {"experts.kernel": EXPERTS.transpose(0, 1, 3, 2)},
    ),
    "unstack": ({"layers.kernel": np.stack(LAYERS)}, name_layers("layers.{}.kernel")),
    "strided stack": (
        name_layers("layers.{}.weight"),
        {"block_0.kernel": stack(*LAYERS[0::2]), "block_1.kernel": stack(*LAYERS[1::2])},
    ),
    "shifted index": (
        {f"blocks.{i + 1:02}.kernel": x for i, x in enumerate(LAYERS)},
        name_layers("layers.{}.kernel"),
    ),
    "RoPE halves to pairs": (
        {"q.weight": EIGHT},
        {"q.kernel": interleave(EIGHT.reshape(2, 2, 2, 3))},
    ),
    "RoPE pairs to halves": ({"q.weight": EIGHT}, {"q.kernel": separate(EIGHT)}),
    "scale": ({"q.weight": EIGHT}, {"q.kernel": split_heads(EIGHT) * HALF}),
    "scale and RoPE": (
        {"q.weight": EIGHT},
        {"q.kernel": separate(EIGHT) * np.float32(2)},
    ),
    "norm + 1": ({"norm.weight": VECTOR}, {"norm.scale": VECTOR + np.float32(1)}),
    "norm - 1": ({"norm.scale": VECTOR}, {"norm.weight": VECTOR - np.float32(1)}),
    "embedding by √width": ({"embed.weight": X}, {"embedding": X * np.float32(3**0.5)}),
    "constant rounded to bfloat16": ({"embed.weight": X}, {"embedding": X * np.float32(45.25)}),
    "longer vocabulary": (
        {"embed.weight": X},
        {"embedding": np.concatenate([X, np.zeros((4, 3), np.float32)])},
    ),
    "shorter vocabulary": ({"embed.weight": X}, {"embedding": X[:3]}),
    "equal parts of a fused matrix": (
        {"qkv.weight": TWELVE},
        {f"attn.{p}.kernel": split_heads(TWELVE[4 * i : 4 * i + 4]) for i, p in enumerate("qkv")},
    ),
    "one part of a fused matrix": ({"qkv.weight": TWELVE}, {"q.kernel": split_heads(TWELVE[:4])}),
    "unequal parts of a fused matrix": ({"qkv": SIX}, {"q": SIX[:4].T, "k": SIX[4:].T}),
    "one element": ({"scales": VECTOR}, {"scale": VECTOR[1:2]}),
    "even and odd columns": (
        {"gate_up.weight": EIGHT.T},
        {"gate.kernel": EIGHT.T[:, 0::2], "up.kernel": EIGHT.T[:, 1::2]},
    ),
    "interleaved per head": (
        {"qkvz": TWELVE},
        {"q": take_columns(0, 2), "v": take_columns(2, 6)},
    ),
    "interleaved per head, some for several heads": (
        {"qkvz": TWELVE},
        {"v": take_columns(2, 6).reshape(3, 4, 2)},
    ),
    "join equal parts": (
        {"mlp.gate.weight": X, "mlp.up.weight": Y},
        {"mlp.in.kernel": np.concatenate([X, Y]).T},
    ),
    "interleave two sources": (
        {"mlp.gate.weight": X, "mlp.up.weight": Y},
        {"mlp.in.kernel": np.stack([X, Y], axis=1).reshape(8, 3).T},
    ),
    "join unequal parts": (
        {"q.weight": X, "kv.weight": SIX},
        {"qkv": np.concatenate([X, SIX]).T},
    ),
    "join per head": ({"q.weight": X, "k.weight": SIX}, {"qk": join_per_head(X, SIX)}),
    "join heads": (
        {"q": HEADS, "k": HEADS[:, :2]},
        {"qkv": np.concatenate([merge_heads(HEADS), merge_heads(HEADS[:, :2])])},
    ),
    "join a fused matrix per head": (
        {"qkv": TWELVE, "z": SIX},
        {"qkvz": join_per_head(TWELVE[:4], TWELVE[4:], SIX)},
    ),
    "tied": ({"embed.weight": X}, {"embed.embedding": X, "head.kernel": X.T}),
    "drop": ({"embed.weight": X, "layers.0.inv_freq": VECTOR}, {"embed.embedding": X}),
    "rest as it is": (
        {"head.weight": X, "norm.scale": VECTOR},
        {"head.kernel": X.T, "norm.scale": VECTOR},
    ),
    "replicas": ({"replicated.kernel": np.stack(LAYERS)}, {"kernel": LAYERS[0]}),
    "repeat heads": ({"k.weight": X}, {"k.kernel": split_heads(X).repeat(3, axis=1)}),
    "reverse": (
        {"deconv.weight": CONV},
        {"kernel": CONV.transpose(2, 3, 0, 1)[::-1, ::-1]},
    ),
}
"""Kind → what is stored, and what its rules make of it."""


def test_every_kind_of_the_page_has_a_case() -> None:
    assert list(RULES) == list(CASES)


@pytest.mark.parametrize("kind", CASES)
def test_the_rule_of_a_kind_makes_what_numpy_does(kind: str, tmp_path: Path) -> None:
    stored, made = CASES[kind]
    tx.save(tmp_path / "ckpt", stored)
    view = tx.view(tmp_path / "ckpt", tx.Mapping.from_json(RULES[kind]))
    template = {name: np.empty(x.shape, x.dtype) for name, x in made.items()}
    restored = tx.restore(view, template)
    for name, values in made.items():
        np.testing.assert_array_equal(restored[name], values, err_msg=name)
    # No kind needs a template: sizes are in the rule or follow from the source.
    catalog = tx.open(view)
    assert {name: leaf.shape for name, leaf in catalog.leaves.items()} == {
        name: x.shape for name, x in made.items()
    }
