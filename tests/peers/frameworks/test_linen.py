"""Variables of Flax Linen modules, with and without boxes."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict, freeze
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import templax as tx
from helpers import assert_same_tree

KEY = jax.random.key(0)
X = jnp.ones((1, 3))


class Boxed(nn.Module):
    """Its kernel has mesh axes, its bias logical axes."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        kernel = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "m"))
        bias = nn.with_logical_partitioning(nn.initializers.normal(), ("embed",))
        return nn.Dense(4, kernel_init=kernel, bias_init=bias)(x)


@pytest.mark.parametrize("name", ["template_of", "arrays", "numpy", "frozen", "pairs"])
def test_variables_are_restored_through_every_kind_of_template(
    saved: Any, name: str, variables: Any, mlp: Any
) -> None:
    path = saved("linen", variables)
    templates: dict[str, Any] = {
        "template_of": tx.template_of(mlp.init, KEY, X),
        "arrays": jax.tree.map(jnp.zeros_like, variables),
        "numpy": jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), variables),
        "frozen": freeze(tx.template_of(variables)),
        "pairs": {"params": FrozenDict(tx.template_of(variables)["params"])},
    }
    template = templates[name]
    wanted = jax.tree.unflatten(jax.tree.structure(template), jax.tree.leaves(variables))
    if name == "numpy":
        wanted = jax.tree.map(np.asarray, wanted)
    assert_same_tree(tx.restore(path, template), wanted)


def test_a_restored_model_computes_what_the_saved_one_did(
    saved: Any, variables: Any, mlp: Any
) -> None:
    template = tx.template_of(mlp.init, KEY, X)["params"]
    params = tx.restore(saved("linen", variables), template, at="params")
    assert (mlp.apply({"params": params}, X) == mlp.apply(variables, X)).all()


def test_boxes_are_filled_and_keep_their_names(saved: Any) -> None:
    boxed = {"w": nn.Partitioned(jnp.arange(6.0).reshape(2, 3), names=("data", None))}
    restored = tx.restore(saved("boxed", boxed), tx.template_of(boxed))
    assert_same_tree(restored, boxed)
    assert restored["w"].names == ("data", None)


@pytest.mark.slow
def test_boxes_of_both_kinds_are_restored(saved: Any) -> None:
    value = Boxed().init(KEY, X)
    restored = tx.restore(saved("both boxes", value), tx.template_of(Boxed().init, KEY, X))
    assert_same_tree(restored, value)
    dense = restored["params"]["Dense_0"]
    assert type(dense["kernel"]) is nn.Partitioned
    assert type(dense["bias"]) is nn.LogicallyPartitioned
    assert (dense["kernel"].names, dense["bias"].names) == ((None, "m"), ("embed",))


def test_boxes_match_plain_leaves_by_following_the_hint(saved: Any) -> None:
    """Saved with boxes and restored without, and the reverse."""
    boxed = Boxed().init(KEY, X)
    plain = nn.unbox(boxed)
    for stored, wanted, rename, hint in (
        (boxed, plain, lambda n: n.removesuffix(".value"), 'name.removesuffix(".value")'),
        (plain, boxed, lambda n: n + ".value", 'name + ".value"'),
    ):
        path = saved("both boxes" if stored is boxed else "unboxed", stored)
        template = tx.template_of(wanted)
        assert str(tx.check(path, template)).endswith(f"hint: rename=lambda name: {hint}")
        assert_same_tree(tx.restore(path, template, rename=rename), wanted)


def test_the_specs_of_boxes_become_shardings(saved: Any) -> None:
    boxed = {"w": nn.Partitioned(jnp.arange(8.0).reshape(8, 1), names=("data", None))}
    mesh = jax.make_mesh((8,), ("data",))
    template = tx.template_of(boxed, mesh=mesh, specs=nn.get_partition_spec(boxed))
    restored = tx.restore(saved("boxes8", boxed), template)
    assert restored["w"].value.sharding == NamedSharding(mesh, P("data", None))
    assert_same_tree(restored, boxed)


def test_shardings_of_boxes_are_a_prefix_of_the_template(saved: Any) -> None:
    value = {"w": nn.Partitioned(jnp.arange(8.0).reshape(4, 2), names=(None, "m"))}
    mesh = jax.make_mesh((2,), ("m",))
    template = tx.template_of(value)
    restored = tx.restore(
        saved("named boxes", value), template, shardings=nn.get_sharding(template, mesh)
    )
    assert_same_tree(restored, value)
    assert restored["w"].value.sharding == NamedSharding(mesh, P(None, "m"))
