"""`template_of(specs=)`: rules on the names of leaves, and specs that Flax makes."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

import templax as tx
from helpers import set_mesh

TREE = {
    "encoder": {"kernel": jnp.ones((8, 4)), "bias": jnp.ones(8)},
    "head": {"kernel": jnp.ones((8, 4))},
    "step": jnp.zeros((), jnp.int32),
}


def mesh() -> Any:
    return jax.make_mesh((1, 1), ("data", "model"))


def find_specs(tree: Any) -> dict[str, P]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf.sharding.spec for path, leaf in leaves}


def test_the_first_rule_that_a_name_matches_counts() -> None:
    rules = [("head.*", P("data")), ("*.kernel", P(None, "model")), ("*.bias", P())]
    assert find_specs(tx.template_of(TREE, mesh=mesh(), specs=rules)) == {
        "['encoder']['kernel']": P(None, "model"),
        "['encoder']['bias']": P(),
        "['head']['kernel']": P("data"),
        "['step']": P(),  # without dimensions, there is nothing to choose
    }


def test_a_rule_may_leave_arrays_without_a_sharding() -> None:
    template = tx.template_of(TREE, mesh=mesh(), specs=[("encoder.*", None), ("*", P("data"))])
    assert template["encoder"]["kernel"].sharding is None
    assert template["head"]["kernel"].sharding.spec == P("data")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            [("*.kernel", P()), ("*.bais", P()), ("*", P())],
            "Expected an array whose name matches `*.bais`, found none",
        ),
        (
            [("*.kernel", P()), ("head.kernel", P("data")), ("*", P())],
            "Expected an array whose name matches `head.kernel` that no earlier rule takes"
            " (`*.kernel` does), found none",
        ),
        (
            [("*.kernel", P("data"))],
            "Expected a rule for each array, found none for `encoder.bias`; hint: end with"
            ' ("*", PartitionSpec()) to replicate all others',
        ),
        (
            [("kernel", P("data")), ("*", P())],
            "Expected an array whose name matches `kernel`, found none",
        ),
    ],
)
def test_rules_that_do_not_fit_are_refused(rules: Any, message: str) -> None:
    with pytest.raises(tx.UsageError) as caught:
        tx.template_of(TREE, mesh=mesh(), specs=rules)
    assert str(caught.value) == message


def test_a_rule_for_all_others_may_find_none() -> None:
    rules = [("*.kernel", P("data")), ("*.bias", P()), ("step", P()), ("*", P())]
    assert tx.template_of(TREE, mesh=mesh(), specs=rules)["head"]["kernel"].sharding.spec == P(
        "data"
    )


def test_every_array_that_a_spec_does_not_fit_is_named() -> None:
    rules = [("encoder.*", P("rows")), ("*", P("data"))]
    with pytest.raises(tx.UsageError) as caught:
        tx.template_of(TREE, mesh=mesh(), specs=rules)
    first, second = str(caught.value).split("; ")
    assert "rows" in first
    assert first.endswith(" - at `encoder.bias`")
    assert "rows" in second
    assert second.endswith(" - at `encoder.kernel`")


def test_a_rule_may_leave_out_the_value_of_an_nnx_variable() -> None:
    state = nnx.state(nnx.Linear(8, 8, rngs=nnx.Rngs(0)))
    for rules in (
        [("kernel", P(None, "model")), ("bias", P("model"))],
        [("kernel.value", P(None, "model")), ("bias.value", P("model"))],
    ):
        template = tx.template_of(state, mesh=mesh(), specs=rules)
        assert jax.tree.leaves(template["kernel"])[0].sharding.spec == P(None, "model")
        assert jax.tree.leaves(template["bias"])[0].sharding.spec == P("model")
    attention = {"attn": {"value": jnp.ones(8)}}  # a leaf called so is no variable
    with pytest.raises(tx.UsageError, match=r"matches `attn`, found none"):
        tx.template_of(attention, mesh=mesh(), specs=[("attn", P("data")), ("*", P())])


class Annotated(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        init = nn.with_partitioning(nn.initializers.ones, (None, "model"))
        return nn.Dense(8, kernel_init=init)(x)


def test_specs_that_linen_finds_in_a_model_are_used() -> None:
    model = Annotated()
    boxed = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 4)))
    specs = nn.get_partition_spec(boxed)
    template = tx.template_of(nn.meta.unbox(boxed), mesh=mesh(), specs=specs)
    assert find_specs(template) == {
        "['params']['Dense_0']['bias']": P(),
        "['params']['Dense_0']['kernel']": P(None, "model"),
    }


def test_specs_of_logical_axes_are_used() -> None:
    init = nn.with_logical_partitioning(nn.initializers.ones, ("embed", "mlp"))
    model = nn.Dense(8, kernel_init=init)
    boxed = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 4)))
    logical = nn.get_partition_spec(boxed)
    specs = nn.logical_to_mesh(logical, rules=[("embed", None), ("mlp", "model")])
    template = tx.template_of(nn.meta.unbox(boxed), mesh=mesh(), specs=specs)
    assert template["params"]["kernel"].sharding.spec == P(None, "model")


def test_specs_that_nnx_finds_in_a_model_are_used() -> None:
    init = nnx.with_partitioning(nnx.initializers.ones, (None, "model"))

    def make() -> Any:
        return nnx.Linear(4, 8, kernel_init=init, rngs=nnx.Rngs(0))

    with set_mesh(mesh()):
        state = nnx.state(nnx.eval_shape(make))
        template = tx.template_of(state, mesh=mesh(), specs=nnx.get_partition_spec(state))
    assert jax.tree.leaves(template["kernel"])[0].sharding.spec == P(None, "model")
    assert jax.tree.leaves(template["bias"])[0].sharding.spec == P()


def test_an_abstract_mesh_stands_for_one_that_is_set_later(tmp_path: Any) -> None:
    tx.save(tmp_path / "ckpt", TREE)
    abstract = AbstractMesh((1, 1), ("data", "model"))
    rules = [("*.kernel", P("data", "model")), ("*", P())]
    template = tx.template_of(TREE, mesh=abstract, specs=rules)
    concrete = mesh()
    with set_mesh(concrete):
        tree = tx.restore(tmp_path / "ckpt", template)
    assert tree["head"]["kernel"].sharding == NamedSharding(concrete, P("data", "model"))
    np.testing.assert_array_equal(tree["head"]["kernel"], TREE["head"]["kernel"])


def test_rules_shard_the_state_of_an_optimizer_as_its_parameters() -> None:
    state = jax.eval_shape(optax.adam(1e-3).init, {"w": {"kernel": jnp.ones((8, 4))}})
    template = tx.template_of(state, mesh=mesh(), specs=[("*.kernel", P("data")), ("*", P())])
    specs = [leaf.sharding.spec for leaf in jax.tree.leaves(template)]
    assert specs == [P(), P("data"), P("data")]  # count, mu, nu


def test_an_array_of_64_bits_is_not_left_out_of_the_rules() -> None:
    tree = {"w": np.ones((2, 2)), "v": np.ones(2, np.float32), "n": np.int64(3)}
    said = "Expected an array that JAX can shard, got float64 while jax_enable_x64 is off - at `w`"
    specs: list[Any] = [
        [("w", P("data")), ("*", P())],
        {"w": P("data"), "v": P(), "n": P()},
        lambda name, leaf: P("data") if name == "w" else P(),
    ]
    for each in specs:
        with pytest.raises(tx.UsageError) as caught:
            tx.template_of(tree, mesh=mesh(), specs=each)
        assert str(caught.value) == said
    with pytest.raises(tx.UsageError, match="Expected a rule for each array, found none for `w`"):
        tx.template_of(tree, mesh=mesh(), specs=[("v", P("data"))])
    got = tx.template_of(tree, mesh=mesh(), specs=[("w", P()), ("v", P("data"))])
    assert got["w"].dtype == np.float64
    assert got["v"].sharding.spec == P("data")


def test_a_mesh_that_is_none_is_refused() -> None:
    with pytest.raises(tx.UsageError, match=r"Expected a jax.sharding.Mesh, got \(4, 2\)"):
        tx.template_of(TREE, mesh=(4, 2))  # pyright: ignore[reportArgumentType]
