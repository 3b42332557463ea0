"""The layers of a scanned transformer, as a library with one matrix per layer stores them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

Array = Any

AXES = {
    "attention.query.kernel": ("i d h k", "(h k) d"),
    "attention.key.kernel": ("i d h k", "(h k) d"),
    "attention.value.kernel": ("i d h k", "(h k) d"),
    "attention.out.kernel": ("i h k d", "d (h k)"),
    "mlp.up.kernel": ("i d f", "f d"),
    "mlp.down.kernel": ("i f d", "d f"),
}
"""Leaf below `layers` → its axes, and those of a layer's matrix, as PyTorch has them."""


def split_layers(leaves: Mapping[str, Array]) -> dict[str, Array]:
    """One matrix for each layer, transposed: what is stored."""
    import numpy as np

    stored: dict[str, Array] = {}
    for name, leaf in leaves.items():
        short = name.removeprefix("layers.")
        if short not in AXES:
            stored[name] = np.asarray(leaf)
            continue
        for i, layer in enumerate(np.asarray(leaf)):
            if short == "attention.out.kernel":
                matrix = layer.reshape(-1, layer.shape[-1])
            else:
                matrix = layer.reshape(layer.shape[0], -1)
            stored[f"layers.{i}.{short}"] = np.ascontiguousarray(matrix.T)
    return stored


def stack_layers(
    stored: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Array]:
    """The leaves again, by whole arrays: what a script does."""
    import numpy as np

    leaves: dict[str, Array] = {}
    for name, shape in shapes.items():
        short = name.removeprefix("layers.")
        if short in AXES:
            layers = [stored[f"layers.{i}.{short}"].T for i in range(shape[0])]
            leaves[name] = np.stack(layers).reshape(shape)
        else:
            leaves[name] = stored[name]
    return leaves


def make_mapping(names: Collection[str]) -> Any:
    """The same as a mapping, for those of the leaves that a tree has."""
    import templax as tx

    rules = {
        f"layers.{short}": tx.From(f"layers.{{i}}.{short}", f"{matrix} -> {leaf}")
        for short, (leaf, matrix) in AXES.items()
        if f"layers.{short}" in names
    }
    return tx.Mapping(rules, rest="keep")
