"""Families of leaves that one stored leaf is taken apart into."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import templax as tx

QKV = np.arange(2 * 12.0).reshape(2, 12)


def test_names_given_for_a_family_tell_its_size(tmp_path: Path) -> None:
    tx.save(tmp_path / "ckpt", {"qkv": QKV})
    rule = tx.From("qkv", "d (p h k) -> d h k", p=["q", "k", "v"])
    view = tx.view(tmp_path / "ckpt", tx.Mapping({"attn.{p}": rule}))
    template = {"attn": {name: np.empty((2, 2, 2)) for name in ("q", "k", "v")}}
    made = tx.restore(view, template)["attn"]
    for i, name in enumerate(("q", "k", "v")):
        np.testing.assert_array_equal(made[name], QKV[:, 4 * i : 4 * i + 4].reshape(2, 2, 2))


def test_fewer_names_than_there_are_leaves_is_an_error(tmp_path: Path) -> None:
    tx.save(tmp_path / "ckpt", {"qkv": QKV.reshape(2, 3, 4)})
    mapping = tx.Mapping({"attn.{p}": tx.From("qkv", "d p k -> d k", p=["q", "k"])})
    with pytest.raises(tx.MappingError, match="Expected 2 elements along `p`, qkv has 3"):
        tx.open(tx.view(tmp_path / "ckpt", mapping))


class Tied(nnx.Module):
    def __init__(self) -> None:
        self.embed = nnx.Param(jnp.zeros((3, 2, 2)))
        self.head = self.embed


@pytest.mark.parametrize("name", ["embed", "head"])
def test_a_template_tells_sizes_under_each_name_of_a_tied_leaf(name: str, tmp_path: Path) -> None:
    stored = np.arange(12.0, dtype=np.float32).reshape(4, 3)
    tx.save(tmp_path / "ckpt", {"w": stored})
    mapping = tx.Mapping({f"{name}.value": tx.From("w", "(h k) d -> d h k")})
    model = tx.restore(tx.view(tmp_path / "ckpt", mapping), tx.template_of(Tied))
    np.testing.assert_array_equal(model.head[...], stored.reshape(2, 2, 3).transpose(2, 0, 1))
