"""States, modules and optimizers of Flax NNX."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import templax as tx
from helpers import assert_same_tree, check_template

A = jax.ShapeDtypeStruct


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(2, 3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(2)])


def test_a_state_and_a_module_are_templates(saved: Any) -> None:
    net = Net(nnx.Rngs(0))
    state = nnx.state(net)
    path = saved("nnx", state)
    assert_same_tree(tx.restore(path, tx.template_of(lambda: nnx.state(Net(nnx.Rngs(0))))), state)
    assert_same_tree(tx.restore(path, nnx.state(nnx.eval_shape(lambda: Net(nnx.Rngs(0))))), state)
    restored = tx.restore(path, tx.template_of(Net, nnx.Rngs(0)))
    assert type(restored) is Net
    assert_same_tree(nnx.state(restored), state)
    assert (restored.linear(jnp.ones((1, 2))) == net.linear(jnp.ones((1, 2)))).all()


def test_parameters_are_restored_alone(saved: Any) -> None:
    params = nnx.state(Net(nnx.Rngs(0)), nnx.Param)
    path = saved("nnx", nnx.state(Net(nnx.Rngs(0))))
    abstract = nnx.state(nnx.eval_shape(lambda: Net(nnx.Rngs(0))), nnx.Param)
    assert {problem for problem, _ in check_template(path, abstract)} == {"extra"}
    assert_same_tree(tx.restore(path, abstract, extra="ignore"), params)


def test_split_states_merge_into_the_module(saved: Any) -> None:
    net = Net(nnx.Rngs(0))
    graph, params, rest = nnx.split(net, nnx.Param, ...)
    path = saved("split", {"params": params, "rest": rest})
    _, *abstract = nnx.split(nnx.eval_shape(lambda: Net(nnx.Rngs(1))), nnx.Param, ...)
    template = dict(zip(("params", "rest"), abstract, strict=True))
    restored = tx.restore(path, template)
    assert_same_tree(restored["params"], params)
    assert_same_tree(restored["rest"], rest)
    merged = nnx.merge(graph, restored["params"], restored["rest"])
    x = jnp.ones((1, 2))
    assert (merged.linear(x) == net.linear(x)).all()
    assert_same_tree(tx.restore(path, abstract[0], at="params"), params)


def test_each_part_of_a_state_is_found_in_the_whole(saved: Any) -> None:
    """And together the parts request every leaf of it."""
    net = Net(nnx.Rngs(0))
    path = saved("nnx", nnx.state(net))
    _, *parts = nnx.split(net, nnx.Param, nnx.BatchStat, ...)
    asked: list[str] = []
    for part in parts:
        template = tx.template_of(part)
        assert_same_tree(tx.restore(path, template, extra="ignore"), part)
        asked += [t.name for t in tx.check(path, template, extra="ignore").template.targets]
    assert sorted(asked) == sorted(tx.open(path).leaves)


def test_a_module_is_updated_from_a_pure_dict(saved: Any) -> None:
    """The keys of an `nnx.List` are ints there, and strings in the checkpoint."""
    net, other = Net(nnx.Rngs(0)), Net(nnx.Rngs(7))
    pure = nnx.to_pure_dict(nnx.state(net))
    path = saved("pure", pure)
    template = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: Net(nnx.Rngs(7)))))
    state = nnx.state(other)
    nnx.replace_by_pure_dict(state, tx.restore(path, template))
    nnx.update(other, state)
    assert_same_tree(nnx.state(other), nnx.state(net))


@pytest.mark.slow
def test_an_optimizer_is_a_template(saved: Any) -> None:
    def make() -> nnx.Optimizer[Any]:
        return nnx.Optimizer(Net(nnx.Rngs(0)), optax.adam(1e-3), wrt=nnx.Param)

    optimizer = make()
    optimizer.step.set_value(jnp.uint32(5))
    path = saved("nnx optimizer", nnx.state(optimizer))
    restored = tx.restore(path, tx.template_of(make))
    assert_same_tree(nnx.state(restored), nnx.state(optimizer))
    assert int(restored.step.get_value()) == 5


def test_a_single_variable_is_a_template(saved: Any) -> None:
    net = Net(nnx.Rngs(0))
    path = saved("nnx", nnx.state(net))
    restored = tx.restore(path, nnx.Param(A((2, 3), jnp.float32)), at="linear.kernel")
    assert type(restored) is nnx.Param
    assert (restored.get_value() == net.linear.kernel.get_value()).all()


@pytest.mark.slow
def test_shardings_of_variables_are_obeyed(saved: Any) -> None:
    """From the metadata of a module, and as named shardings or partition specs of NNX."""

    class Split(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            init = nnx.with_partitioning(nnx.initializers.lecun_normal(), (None, "m"))
            self.linear = nnx.Linear(4, 4, rngs=rngs, kernel_init=init)

    mesh = jax.make_mesh((2,), ("m",))
    wanted = NamedSharding(mesh, P(None, "m"))
    with jax.set_mesh(mesh):
        state = nnx.state(Split(nnx.Rngs(0)))
        path = saved("nnx sharded", state)
        abstract = nnx.state(nnx.eval_shape(lambda: Split(nnx.Rngs(0))))
        for restored in (
            tx.restore(path, abstract),
            tx.restore(path, abstract, shardings=nnx.get_named_sharding(abstract, mesh)),
            tx.restore(
                path, tx.template_of(abstract, mesh=mesh, specs=nnx.get_partition_spec(abstract))
            ),
        ):
            assert restored["linear"]["kernel"].get_value().sharding == wanted
            assert_same_tree(restored, state)
