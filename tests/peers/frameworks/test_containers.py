"""Registered pytree classes, whose leaves match by name, and templates with few leaves or none."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.struct
import jax.numpy as jnp
import jax.tree_util as jtu
import pytest

import templax as tx
from helpers import assert_same_tree, check_template


@flax.struct.dataclass
class Scaled:
    params: Any
    scale: Any
    name: str = flax.struct.field(pytree_node=False, default="scaled")


@jtu.register_dataclass
@dataclasses.dataclass
class Plain:
    params: Any
    scale: Any


class Named(NamedTuple):
    params: Any
    scale: Any


@jtu.register_pytree_with_keys_class
class WithKeys:
    """A custom node that names its children."""

    def __init__(self, params: Any, scale: Any) -> None:
        self.params, self.scale = params, scale

    def tree_flatten_with_keys(self) -> Any:
        return [
            (jtu.GetAttrKey("params"), self.params),
            (jtu.GetAttrKey("scale"), self.scale),
        ], None

    @classmethod
    def tree_unflatten(cls, _: None, children: Any) -> WithKeys:
        return cls(*children)


@jtu.register_pytree_node_class
class WithoutKeys:
    """A custom node that does not name its children."""

    def __init__(self, params: Any, scale: Any) -> None:
        self.params, self.scale = params, scale

    def tree_flatten(self) -> Any:
        return (self.params, self.scale), None

    @classmethod
    def tree_unflatten(cls, _: None, children: Any) -> WithoutKeys:
        return cls(*children)


CLASSES = [Scaled, Plain, Named, WithKeys]


def block(make: Any) -> Any:
    return make(params=[jnp.arange(3.0), {"w": jnp.ones((2, 2), jnp.bfloat16)}], scale=jnp.ones(()))


@pytest.mark.parametrize("wanted", CLASSES, ids=lambda c: c.__name__)
@pytest.mark.parametrize("stored", [Scaled, Plain, Named, dict], ids=lambda c: c.__name__)
def test_classes_with_the_same_names_match(saved: Any, stored: Any, wanted: Any) -> None:
    value = block(wanted)
    restored = tx.restore(saved(stored.__name__, block(stored)), tx.template_of(value))
    assert type(restored) is wanted
    assert_same_tree(restored, value)


def test_children_of_a_node_without_keys_are_numbered(saved: Any) -> None:
    value = block(WithoutKeys)
    path = saved("numbered", [value.params, value.scale])
    assert_same_tree(tx.restore(path, tx.template_of(value)), value)
    named = {"params": "0", "scale": "1"}
    path = saved("dict", block(dict))
    assert_same_tree(tx.restore(path, tx.template_of(value), rename=named), value)


def test_static_fields_come_from_the_template(saved: Any) -> None:
    template = tx.template_of(block(Scaled)).replace(name="another")
    assert tx.restore(saved("Scaled", block(Scaled)), template).name == "another"


@pytest.mark.parametrize("template", [{}, [], (), None, {"a": {}, "b": None, "c": ()}])
def test_a_tree_without_leaves_restores_as_itself(
    saved: Any, template: Any, variables: Any
) -> None:
    assert tx.restore(saved("linen", variables), template, extra="ignore") == template
    assert {p for p, _ in check_template(saved("linen", variables), template)} == {"extra"}


def test_skipped_subtrees_are_neither_read_nor_checked(saved: Any, variables: Any) -> None:
    path, whole = saved("linen", variables), tx.template_of(variables)
    template = {"params": {"Dense_0": whole["params"]["Dense_0"], "Dense_1": ...}}
    restored = tx.restore(path, template)
    assert restored["params"]["Dense_1"] is ...
    assert_same_tree(restored["params"]["Dense_0"], variables["params"]["Dense_0"])
    assert tx.restore(path, {"params": ...}) == {"params": ...}
    assert tx.restore(path, {**whole, "never saved": ...})["never saved"] is ...
