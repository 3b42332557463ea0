"""Families of leaves that one stored leaf is taken apart into."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import templax as tx
from templax._views.names import NamePattern
from templax._views.part_layout import PartLayout

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


@pytest.mark.skipif(not hasattr(nnx, "Pytree"), reason="modules of this Flax are no pytrees")
@pytest.mark.parametrize("name", ["embed", "head"])
def test_a_template_tells_sizes_under_each_name_of_a_tied_leaf(name: str, tmp_path: Path) -> None:
    stored = np.arange(12.0, dtype=np.float32).reshape(4, 3)
    tx.save(tmp_path / "ckpt", {"w": stored})
    mapping = tx.Mapping({f"{name}.value": tx.From("w", "(h k) d -> d h k")})
    model = tx.restore(tx.view(tmp_path / "ckpt", mapping), tx.template_of(Tied))
    np.testing.assert_array_equal(model.head[...], stored.reshape(2, 2, 3).transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("stored", "rules", "problem"),
    [
        ({"h.0": np.ones(2)}, {"b.{i-1}": "h.{i}"}, "`{i-1}` would be -1 for i=0"),
        (
            {"h.0.5": np.ones(2)},
            {"b.{(g c)}": tx.From("h.{g}.{c}", c=4)},
            "needs `c` at least 0 and less than 4, got 5",
        ),
        (
            {"e": np.ones((0, 3))},
            {"b.{i}": tx.From("e", "i d -> d")},
            "`e` has no elements along `i`, so that no leaf is made of it",
        ),
        (
            {"e": np.ones((10**15, 0))},
            {"b.{i}": tx.From("e", "i d -> d")},
            "`e` is unstacked into 1,000,000,000,000,000 leaves",
        ),
    ],
)
def test_names_that_cannot_be_made_are_an_error_of_the_rule(
    stored: dict[str, np.ndarray], rules: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    tx.save(tmp_path / "a.safetensors", stored)
    with pytest.raises(tx.MappingError, match=re.escape(problem)):
        tx.open(tx.view(tmp_path / "a.safetensors", tx.Mapping(rules)))


def test_a_rule_for_each_of_many_leaves_takes_time_linear_in_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = 300
    tx.save(tmp_path / "a.safetensors", {f"q{i:03}": np.zeros(1) for i in range(n + 1)})
    tried: list[str] = []
    match = NamePattern.match

    def count(self: NamePattern, name: str, *args: Any) -> Any:
        tried.append(name)
        return match(self, name, *args)

    monkeypatch.setattr(NamePattern, "match", count)
    rules = {f"t{i}": f"q{i:03}" for i in range(n)}
    view = tx.view(tmp_path / "a.safetensors", tx.Mapping(rules, drop=[f"q{n:03}"]))
    assert len(tx.open(view).entries) == n
    assert len(tried) == n


def test_stacked_leaves_that_are_unstacked_into_too_many_pieces_are_refused(tmp_path: Path) -> None:
    tx.save(tmp_path / "a.safetensors", {f"h.{i}": np.zeros(2000, np.int8) for i in range(501)})
    mapping = tx.Mapping({"x.{k}": tx.From("h.{i}", "k -> i")})
    with pytest.raises(tx.MappingError, match="501 leaves are unstacked into 2,000 leaves"):
        tx.open(tx.view(tmp_path / "a.safetensors", mapping))


@pytest.mark.parametrize("wanted", [[7], [3, 900]])
def test_members_that_nobody_wants_are_not_laid_out(
    wanted: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tx.save(tmp_path / "ckpt", {"w": np.arange(3000, dtype=np.float32).reshape(1000, 3)})
    laid_out: list[dict[str, int]] = []
    list_maps = PartLayout.list_maps

    def note(self: PartLayout, stacked: Any, unstacked: Any, *others: Any) -> Any:
        laid_out.append(unstacked)
        return list_maps(self, stacked, unstacked, *others)

    monkeypatch.setattr(PartLayout, "list_maps", note)
    mapping = tx.Mapping({"l.{i}.w": tx.From("w", "i d -> d")})
    view = tx.open(tx.view(tmp_path / "ckpt", mapping))
    assert len(view.leaves) == 1000
    assert tx.check(view, view.template()).ok
    assert laid_out == []
    template = {f"l.{i}.w": np.empty(3, np.float32) for i in wanted}
    made = tx.restore(view, template, extra="ignore")
    for i in wanted:
        np.testing.assert_array_equal(made[f"l.{i}.w"], np.arange(3 * i, 3 * i + 3))
    assert laid_out == [{"i": i} for i in wanted]
