"""Variables and modules of Flax NNX that have several names, such as tied weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import templax as tx
from helpers import check_template, checkpoint_of, list_mismatches
from templax._template.flatten import SharedTree, flatten_tree

A = jax.ShapeDtypeStruct


class Tied(nnx.Module):
    """A language model whose head is its embedding."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(10, 4, rngs=rngs)
        self.head = self.embed.embedding
        self.out = nnx.Linear(4, 2, rngs=rngs)


class Pair(nnx.Module):
    """Two modules that share a whole submodule, and a list that holds it once more."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        encoder = Tied(rngs)
        self.actor = nnx.List([encoder, nnx.Linear(4, 2, rngs=rngs)])
        self.critic = nnx.Dict(encoder=encoder, out=nnx.Linear(4, 1, rngs=rngs))
        self.parts = nnx.data((encoder.out, {"again": encoder.head}))


def make_tied() -> Tied:
    return Tied(nnx.Rngs(0))


def make_pair() -> Pair:
    return Pair(nnx.Rngs(1))


def save_by_all_names(path: Path, module: Any) -> None:
    """As a program does that takes each name for a leaf of its own."""
    keyed, _ = jax.tree_util.tree_flatten_with_path(module)
    names = [".".join(str(getattr(k, "name", None) or k.idx) for k in keys) for keys, _ in keyed]
    tx.save(path, {name: leaf for name, (_, leaf) in zip(names, keyed, strict=True)})


@pytest.mark.parametrize("what", ["module", "state"])
@pytest.mark.parametrize("template", ["eval_shape", "template_of", "concrete"])
def test_tied_weights_stay_tied(tmp_path: Path, what: str, template: str) -> None:
    model = make_tied()
    tx.save(tmp_path / "c", model if what == "module" else nnx.state(model))
    want = {
        "eval_shape": lambda: nnx.eval_shape(make_tied),
        "template_of": lambda: tx.template_of(make_tied),
        "concrete": lambda: Tied(nnx.Rngs(7)),
    }[template]()
    assert tx.check(tmp_path / "c", want).ok
    got = tx.restore(tmp_path / "c", want)
    assert got.head is got.embed.embedding
    assert (got.head[...] == model.head[...]).all()
    got.head[...] += 1.0
    assert (got.embed(jnp.array([3]))[0] == model.head[...][3] + 1).all()
    assert nnx.graphdef(got) == nnx.graphdef(model)


@pytest.mark.slow
def test_shared_modules_stay_shared(tmp_path: Path) -> None:
    model = make_pair()
    tx.save(tmp_path / "c", nnx.state(model))
    got = tx.restore(tmp_path / "c", nnx.eval_shape(make_pair))
    assert got.actor[0] is got.critic["encoder"]
    assert got.parts[0] is got.actor[0].out
    assert got.parts[1]["again"] is got.actor[0].head is got.actor[0].embed.embedding
    assert got.actor[1] is not got.critic["out"]
    assert nnx.graphdef(got) == nnx.graphdef(model)
    want, have = (jax.tree.leaves(nnx.state(m)) for m in (model, got))
    assert all((a == b).all() for a, b in zip(want, have, strict=True))


@pytest.mark.slow
def test_a_module_is_saved_as_its_state_is(tmp_path: Path) -> None:
    """Each variable once, under the name that NNX gives it."""
    for make in (make_tied, make_pair):
        module, state = (tmp_path / f"{make.__name__}-{kind}" for kind in ("module", "state"))
        saved, same = tx.save(module, make()), tx.save(state, nnx.state(make()))
        assert str(saved.fingerprint) == str(same.fingerprint) == str(tx.fingerprint(make()))
        assert list(tx.open(module).leaves) == list(tx.open(state).leaves)
        assert tx.check(module, nnx.state(nnx.eval_shape(make))).ok
        assert tx.check(tx.Recipe(make), nnx.eval_shape(make)).ok
        assert tx.check(tx.Recipe(lambda: nnx.state(make())), tx.template_of(make)).ok  # noqa: B023


def test_a_module_in_two_places_of_a_dict_is_two(tmp_path: Path) -> None:
    """One abstract module may stand for a model and its average, which have other values."""
    model, average = make_tied(), Tied(nnx.Rngs(5))
    tx.save(tmp_path / "c", {"model": model, "ema": average})
    abstract = nnx.eval_shape(make_tied)
    got = tx.restore(tmp_path / "c", {"model": abstract, "ema": abstract})
    for restored, saved in ((got["model"], model), (got["ema"], average)):
        assert (restored.head[...] == saved.head[...]).all()
        assert restored.head is restored.embed.embedding
    assert got["model"].head is not got["ema"].head


@pytest.mark.slow
def test_a_state_in_two_places_of_a_dict_is_two(tmp_path: Path) -> None:
    state: Any = nnx.state(make_tied())
    average = jax.tree.map(lambda x: x + 1, state)
    tx.save(tmp_path / "c", {"params": state, "ema": average})
    got = tx.restore(tmp_path / "c", {"params": state, "ema": state})
    assert (got["ema"]["out"]["bias"][...] == state["out"]["bias"][...] + 1).all()


def test_shape_structs_in_two_places_are_two() -> None:
    one = A((2,), jnp.float32)
    block = {"w": one, "b": one}
    template = {"a": block, "b": block}
    values = iter(range(1, 5))
    stored = checkpoint_of(jax.tree.map(lambda _: jnp.full(2, float(next(values))), template))
    got = tx.restore(stored, template)
    assert [float(x[0]) for x in jax.tree.leaves(got)] == [1, 2, 3, 4]


def test_modules_in_a_dict_share_what_they_share(tmp_path: Path) -> None:
    shared = make_tied()

    class Head(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.body = shared
            self.out = nnx.Linear(4, 1, rngs=rngs)

    tree = {"actor": Head(nnx.Rngs(1)), "critic": Head(nnx.Rngs(2)), "step": 3}
    tx.save(tmp_path / "c", tree)
    got = tx.restore(tmp_path / "c", tx.template_of(tree))
    assert got["actor"].body is got["critic"].body
    assert got["actor"].out is not got["critic"].out
    assert got["step"] == 3


def test_an_optimizer_of_a_tied_model(tmp_path: Path) -> None:
    def make() -> dict[str, Any]:
        model = make_tied()
        return {"model": model, "optimizer": nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)}

    tree = make()
    tx.save(tmp_path / "c", tree)
    got = tx.restore(tmp_path / "c", nnx.eval_shape(make))
    assert got["model"].head is got["model"].embed.embedding
    want, have = jax.tree.leaves(nnx.state(tree)), jax.tree.leaves(nnx.state(got))
    for a, b in zip(want, have, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_checkpoint_with_every_name_fits_where_its_values_are_the_same(tmp_path: Path) -> None:
    save_by_all_names(tmp_path / "c", make_tied())
    assert "head.value" in tx.open(tmp_path / "c").leaves
    got = tx.restore(tmp_path / "c", nnx.eval_shape(make_tied))
    assert got.head is got.embed.embedding


def test_a_second_value_for_a_shared_variable_is_an_extra_leaf(tmp_path: Path) -> None:
    """Restoring one of two values would lose the other."""
    model = make_tied()
    state = nnx.to_pure_dict(nnx.state(model))
    tree = jax.tree.map(lambda x: {"value": x}, state)
    tx.save(tmp_path / "c", tree | {"head": {"value": state["embed"]["embedding"] + 1}})
    for checkpoint in (tmp_path / "c", checkpoint_of(tree | {"head": tree["embed"]["embedding"]})):
        match = tx.check(checkpoint, nnx.eval_shape(make_tied))
        assert list_mismatches(match) == [("extra", "head.value")]
        note = "in the template it is the object at `embed.embedding.value`"
        assert match.mismatches[0].note == note
        match = tx.check(checkpoint, nnx.eval_shape(make_tied), extra={"head.*": "ignore"})
        assert match.ignored == ("head.value",)


def test_another_name_of_a_shared_variable_is_enough(tmp_path: Path) -> None:
    value = make_tied().head[...]
    out = {"kernel": {"value": jnp.ones((4, 2))}, "bias": {"value": jnp.zeros(2)}}
    tx.save(tmp_path / "c", {"head": {"value": value}, "out": out})
    got = tx.restore(tmp_path / "c", nnx.eval_shape(make_tied))
    assert got.head is got.embed.embedding
    assert (got.head[...] == value).all()


def test_a_template_file_knows_the_other_names(tmp_path: Path) -> None:
    from templax._template.json_file import load_template

    save_by_all_names(tmp_path / "c", make_tied())
    tx.save(tmp_path / "state", nnx.state(make_tied()))
    tx.save_template(nnx.eval_shape(make_tied), tmp_path / "t.json")
    template = load_template((tmp_path / "t.json").read_bytes())
    for name in ("c", "state"):
        assert check_template(tmp_path / name, template) == []


def test_shardings_of_a_shared_variable(tmp_path: Path) -> None:
    tx.save(tmp_path / "c", make_tied())
    abstract = nnx.eval_shape(make_tied)
    device = jax.devices()[0]
    got = tx.restore(tmp_path / "c", abstract, shardings=device)
    assert got.head[...].committed
    leaves, treedef = jax.tree.flatten(abstract)
    one = jax.sharding.SingleDeviceSharding(device)
    two = jax.sharding.SingleDeviceSharding(device, memory_kind="pinned_host")
    shardings = jax.tree.unflatten(treedef, [one] * (len(leaves) - 3) + [two] + [one] * 2)
    with pytest.raises(tx.UsageError, match=r"one sharding for `embed\.embedding\.value`"):
        tx.restore(tmp_path / "c", abstract, shardings=shardings)


def test_specs_keep_variables_shared() -> None:
    mesh = jax.make_mesh((1,), ("x",))
    template: Any = tx.template_of(make_tied, mesh=mesh)
    assert template.head is template.embed.embedding
    assert template.head.get_raw_value().sharding.mesh == mesh
    again: Any = tx.template_of(template, mesh=mesh)
    assert again.head is again.embed.embedding


@pytest.mark.slow
def test_orbax_names_keep_variables_shared(tmp_path: Path) -> None:
    import templax.compat.orbax as ocp

    model = make_tied()
    save_args = jax.tree.map(lambda _: ocp.SaveArgs(dtype=jnp.bfloat16), model)
    restore_args = ocp.checkpoint_utils.construct_restore_args(nnx.eval_shape(make_tied))
    checkpointer = ocp.PyTreeCheckpointer()
    checkpointer.save(tmp_path / "c", model, save_args=save_args)
    assert "head.value" not in tx.open(tmp_path / "c").leaves
    for options in ({}, {"restore_args": restore_args}):
        with pytest.warns(tx.CastWarning):
            got: Any = checkpointer.restore(tmp_path / "c", nnx.eval_shape(make_tied), **options)
        assert got.head is got.embed.embedding
        assert got.head[...].dtype == jnp.float32


@pytest.mark.slow
def test_missing_supplies_a_shared_variable_once(tmp_path: Path) -> None:
    tx.save(tmp_path / "c", {"out": nnx.state(make_tied())["out"]})
    match = tx.check(tmp_path / "c", nnx.eval_shape(make_tied), missing=tx.Recipe(make_tied))
    assert list(match.supplied) == ["embed.embedding.value"]
    got = tx.restore(tmp_path / "c", nnx.eval_shape(make_tied), missing=tx.Recipe(make_tied))
    assert got.head is got.embed.embedding


def test_a_tree_without_shared_objects_keeps_its_treedef() -> None:
    for tree in (nnx.eval_shape(lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0))), {"a": 1}, 3):
        flat = flatten_tree(tree)
        assert not isinstance(flat.treedef, SharedTree)
        assert flat.leaves == jax.tree.leaves(tree)
