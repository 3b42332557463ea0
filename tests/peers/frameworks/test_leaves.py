"""Trees of Flax, Optax, NNX and Equinox, saved by Orbax, restored through templates of theirs."""

from __future__ import annotations

import dataclasses
import functools
import shutil
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.core import FrozenDict, freeze
from flax.training.train_state import TrainState
from jax.experimental.layout import Format, Layout
from jax.sharding import AxisType, Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

import templax as tx

A = jax.ShapeDtypeStruct
KEY = jax.random.key(0)
X = jnp.ones((1, 3))


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.relu(nn.Dense(8)(x))
        return nn.Dense(4)(x)


def is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def equal(got: Any, want: Any) -> None:
    """The same treedef, types, dtypes and bytes; functions are the same objects."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        if is_key(b):
            assert a.dtype == b.dtype
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        if not hasattr(b, "dtype"):
            assert type(a) is type(b)
            assert a is b or a == b
            continue
        assert isinstance(a, jax.Array) == isinstance(b, jax.Array)
        a, b = np.asarray(a), np.asarray(b)
        assert (a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("checkpoints")
    made: dict[str, Path] = {}

    def by_orbax(name: str, tree: Any) -> Path:
        if name not in made:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with ocp.PyTreeCheckpointer() as checkpointer:
                    checkpointer.save(directory / name, tree)
            made[name] = directory / name
        return made[name]

    return by_orbax


def found(path: Any, template: Any, **options: Any) -> list[tuple[str, str]]:
    return [(m.problem, m.name) for m in tx.check(path, template, **options).mismatches]


# --- Flax linen


@functools.cache
def variables() -> Any:
    return MLP().init(KEY, X)


@pytest.mark.parametrize("name", ["template_of", "arrays", "numpy", "frozen", "pairs"])
def test_linen_variables_through_templates_of_each_leaf(saved: Any, name: str) -> None:
    value = variables()
    path = saved("linen", value)
    templates: dict[str, Any] = {
        "template_of": tx.template_of(MLP().init, KEY, X),
        "arrays": jax.tree.map(jnp.zeros_like, value),
        "numpy": jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), value),
        "frozen": freeze(tx.template_of(value)),
        "pairs": {"params": FrozenDict(tx.template_of(value)["params"])},
    }
    template = templates[name]
    wanted = jax.tree.unflatten(jax.tree.structure(template), jax.tree.leaves(value))
    if name == "numpy":
        wanted = jax.tree.map(np.asarray, wanted)
    equal(tx.restore(path, template), wanted)


def test_a_restored_model_computes_what_the_saved_one_did(saved: Any) -> None:
    value = variables()
    params = tx.restore(
        saved("linen", value), tx.template_of(MLP().init, KEY, X)["params"], at="params"
    )
    assert (MLP().apply({"params": params}, X) == MLP().apply(value, X)).all()


def optimizer() -> optax.GradientTransformation:
    """Its state holds EmptyState, MaskedNode, a count, moments and a schedule's step."""
    mask = {"Dense_0": True, "Dense_1": False}
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.masked(optax.adamw(optax.linear_schedule(1e-3, 0.0, 10)), mask),
    )


@functools.cache
def train_state() -> TrainState:
    return TrainState.create(apply_fn=MLP().apply, params=variables()["params"], tx=optimizer())


def test_train_state_with_empty_and_masked_optimizer_states(saved: Any) -> None:
    state = train_state()
    state = state.apply_gradients(grads=jax.tree.map(jnp.ones_like, state.params))
    path = saved("train_state", state)
    template = jax.eval_shape(lambda: state)
    restored = tx.restore(path, template)
    assert isinstance(restored, TrainState)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b, np.asarray(a).dtype).tobytes()
    assert restored.apply_fn == state.apply_fn
    again = restored.apply_gradients(grads=jax.tree.map(jnp.ones_like, state.params))
    want = state.apply_gradients(grads=jax.tree.map(jnp.ones_like, state.params))
    equal(again.params, want.params)


def test_one_part_of_a_train_state(saved: Any) -> None:
    state = train_state()
    path = saved("fresh", state)
    equal(tx.restore(path, tx.template_of(state.params), at="params"), state.params)
    adam = tx.template_of(state.opt_state[1])
    equal(tx.restore(path, adam, at="opt_state.1"), state.opt_state[1])


def test_another_optimizer_is_refused_leaf_by_leaf(saved: Any) -> None:
    state = train_state()
    other = TrainState.create(apply_fn=None, params=state.params, tx=optax.sgd(0.1, momentum=0.9))
    problems = found(saved("fresh", state), jax.eval_shape(lambda: other))
    assert {p for p, _ in problems} == {"missing", "extra"}
    assert all(name.startswith("opt_state") for _, name in problems)


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
    """A custom node that says what its children are called."""

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
    """A custom node that names nothing: its children are numbered."""

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
def test_classes_with_the_same_names_meet(saved: Any, stored: Any, wanted: Any) -> None:
    value = block(wanted)
    restored = tx.restore(saved(stored.__name__, block(stored)), tx.template_of(value))
    assert type(restored) is wanted
    equal(restored, value)


def test_a_node_without_keys_is_numbered(saved: Any) -> None:
    value = block(WithoutKeys)
    path = saved("numbered", [value.params, value.scale])
    equal(tx.restore(path, tx.template_of(value)), value)
    named = {"params": "0", "scale": "1"}
    equal(tx.restore(saved("dict", block(dict)), tx.template_of(value), rename=named), value)


def test_static_fields_are_the_templates(saved: Any) -> None:
    template = tx.template_of(block(Scaled)).replace(name="another")
    assert tx.restore(saved("Scaled", block(Scaled)), template).name == "another"


def test_boxes_are_filled_and_keep_their_names(saved: Any) -> None:
    boxed = {"w": nn.Partitioned(jnp.arange(6.0).reshape(2, 3), names=("data", None))}
    restored = tx.restore(saved("boxed", boxed), tx.template_of(boxed))
    equal(restored, boxed)
    assert restored["w"].names == ("data", None)


def test_the_specs_of_boxes_become_shardings(saved: Any) -> None:
    boxed = {"w": nn.Partitioned(jnp.arange(8.0).reshape(8, 1), names=("data", None))}
    mesh = jax.make_mesh((8,), ("data",))
    template = tx.template_of(boxed, mesh=mesh, specs=nn.get_partition_spec(boxed))
    restored = tx.restore(saved("boxes8", boxed), template)
    assert restored["w"].value.sharding == NamedSharding(mesh, P("data", None))
    equal(restored, boxed)


# --- Flax NNX


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(2, 3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(2)])


def test_nnx_state_through_a_state_and_through_a_module(saved: Any) -> None:
    net = Net(nnx.Rngs(0))
    state = nnx.state(net)
    path = saved("nnx", state)
    equal(tx.restore(path, tx.template_of(lambda: nnx.state(Net(nnx.Rngs(0))))), state)
    equal(tx.restore(path, nnx.state(nnx.eval_shape(lambda: Net(nnx.Rngs(0))))), state)
    restored = tx.restore(path, tx.template_of(Net, nnx.Rngs(0)))
    assert type(restored) is Net
    equal(nnx.state(restored), state)
    assert (restored.linear(jnp.ones((1, 2))) == net.linear(jnp.ones((1, 2)))).all()


def test_nnx_parameters_alone(saved: Any) -> None:
    params = nnx.state(Net(nnx.Rngs(0)), nnx.Param)
    path = saved("nnx", nnx.state(Net(nnx.Rngs(0))))
    abstract = nnx.state(nnx.eval_shape(lambda: Net(nnx.Rngs(0))), nnx.Param)
    assert {problem for problem, _ in found(path, abstract)} == {"extra"}
    equal(tx.restore(path, abstract, extra="ignore"), params)


def test_an_nnx_module_is_updated_from_a_pure_dict(saved: Any) -> None:
    """`nnx.List` has int keys, a pure dict of its state too, the file strings: all meet."""
    net, other = Net(nnx.Rngs(0)), Net(nnx.Rngs(7))
    pure = nnx.to_pure_dict(nnx.state(net))
    path = saved("pure", pure)
    template = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: Net(nnx.Rngs(7)))))
    state = nnx.state(other)
    nnx.replace_by_pure_dict(state, tx.restore(path, template))
    nnx.update(other, state)
    equal(nnx.state(other), nnx.state(net))


# --- Equinox


class Regularised(eqx.Module):
    linear: eqx.nn.Linear
    dropout: eqx.nn.Dropout
    activation: Any
    steps: int
    name: str = eqx.field(static=True)

    def __init__(self, key: Any) -> None:
        self.linear = eqx.nn.Linear(2, 2, key=key)
        self.dropout = eqx.nn.Dropout(0.3)
        self.activation = jax.nn.gelu
        self.steps = 3
        self.name = "regularised"


def test_equinox_module_with_functions_numbers_and_static_fields(saved: Any) -> None:
    """Saved as Equinox users do: arrays only. Numbers and functions come back as they are."""
    model = Regularised(KEY)
    path = saved("eqx", eqx.filter(model, eqx.is_array))
    for template in (
        model,
        tx.template_of(Regularised, KEY),
        eqx.filter_eval_shape(Regularised, KEY),
    ):
        restored = tx.restore(path, template)
        equal(restored, model)
        assert restored.activation is jax.nn.gelu
        assert (restored.dropout.p, restored.steps, restored.name) == (0.3, 3, "regularised")
    assert tx.check(path, model).ok


def test_equinox_numbers_that_were_saved_are_read(saved: Any) -> None:
    model = Regularised(KEY)
    whole = eqx.filter(model, lambda x: not callable(x))
    whole = eqx.tree_at(lambda m: m.dropout.p, whole, 0.9)
    restored = tx.restore(saved("eqx whole", whole), model, extra="ignore")
    assert restored.dropout.p == 0.9


def test_equinox_arrays_that_are_missing_are_missing(saved: Any) -> None:
    class Deeper(eqx.Module):
        linear: eqx.nn.Linear
        head: eqx.nn.Linear

    path = saved("eqx", eqx.filter(Regularised(KEY), eqx.is_array))
    template = Deeper(eqx.nn.Linear(2, 2, key=KEY), eqx.nn.Linear(2, 1, key=KEY))
    assert found(path, template) == [("missing", "head.weight"), ("missing", "head.bias")]


# --- keys, strings, skips, bare leaves, places


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_typed_keys_of_each_implementation(saved: Any, impl: str) -> None:
    value = {
        "one": jax.random.key(1, impl=impl),
        "many": jax.random.split(jax.random.key(2, impl=impl), 8),
    }
    path = saved(impl, value)
    template = jax.eval_shape(lambda: value)
    equal(tx.restore(path, template), value)
    mesh = jax.make_mesh((8,), ("x",))
    spread = NamedSharding(mesh, P("x"))
    restored = tx.restore(path, template, shardings={"one": None, "many": spread})
    equal(restored, value)
    assert restored["many"].sharding.is_equivalent_to(spread, 1)
    other = "rbg" if impl != "rbg" else "threefry2x32"
    wrong = {**template, "one": jax.eval_shape(lambda: jax.random.key(1, impl=other))}
    assert found(path, wrong) == [("dtype", "one")]
    raw = {**template, "one": A(jax.random.key_data(value["one"]).shape, jnp.uint32)}
    assert found(path, raw) == [("kind", "one")]


def test_strings_numbers_and_skipped_leaves(saved: Any) -> None:
    value = {"s": "words", "i": 3, "f": 0.5, "b": True, "w": jnp.ones(2), "m": {"v": jnp.ones(2)}}
    path = saved("values", value)
    equal(tx.restore(path, value), value)
    types = {"s": str, "i": int, "f": float, "b": bool, "w": ..., "m": ...}
    restored = tx.restore(path, types)
    assert restored == {"s": "words", "i": 3, "f": 0.5, "b": True, "w": ..., "m": ...}
    assert [type(restored[k]) for k in "sifb"] == [str, int, float, bool]
    assert found(path, {**types, "s": int}) == [("kind", "s")]
    assert found(path, {**types, "w": str}) == [("kind", "w")]


@pytest.mark.parametrize("template", [{}, [], (), None, {"a": {}, "b": None, "c": ()}])
def test_a_tree_without_leaves_restores_as_itself(saved: Any, template: Any) -> None:
    assert tx.restore(saved("linen", variables()), template, extra="ignore") == template
    assert {p for p, _ in found(saved("linen", variables()), template)} == {"extra"}


def test_a_bare_leaf_of_each_kind(saved: Any) -> None:
    path = saved("linen", variables())
    want = variables()["params"]["Dense_0"]["kernel"]
    at = "params.Dense_0.kernel"
    assert (tx.restore(path, A((3, 8), jnp.float32), at=at) == want).all()
    assert isinstance(tx.restore(path, np.zeros((3, 8), np.float32), at=at), np.ndarray)
    assert tx.restore(path, ..., at=at) is ...


def test_numpy_results_are_writable_and_their_own(saved: Any) -> None:
    template = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), variables())
    restored = tx.restore(saved("linen", variables()), template)
    for leaf, given in zip(jax.tree.leaves(restored), jax.tree.leaves(template), strict=True):
        assert leaf.flags.writeable
        assert leaf.flags.c_contiguous
        assert leaf is not given
        leaf[...] = 7
        assert not given.any()
    equal(tx.restore(saved("linen", variables()), tx.template_of(variables())), variables())


def test_arrays_of_a_template_are_neither_used_nor_changed(saved: Any) -> None:
    template = jax.tree.map(jnp.zeros_like, variables())
    tx.restore(saved("linen", variables()), template)
    assert not any(leaf.any() for leaf in jax.tree.leaves(template))


def test_uncommitted_without_a_sharding_and_committed_with_one(saved: Any) -> None:
    path, third = saved("linen", variables()), jax.devices()[3]
    plain = tx.restore(path, tx.template_of(variables()))
    assert not any(leaf.committed for leaf in jax.tree.leaves(plain))
    placed = tx.restore(path, tx.template_of(variables()), shardings=third)
    assert all(leaf.committed and leaf.devices() == {third} for leaf in jax.tree.leaves(placed))
    again = tx.restore(path, placed)
    assert all(leaf.committed and leaf.devices() == {third} for leaf in jax.tree.leaves(again))


@pytest.mark.parametrize("kind", ["device", "pinned_host", "unpinned_host"])
def test_memory_kinds_are_obeyed(saved: Any, kind: str) -> None:
    if kind not in {m.kind for m in jax.devices()[0].addressable_memories()}:
        pytest.skip(f"no {kind} memory")
    mesh = jax.make_mesh((8,), ("x",))
    sharding = NamedSharding(mesh, P(None, "x"), memory_kind=kind)
    template = A((3, 8), jnp.float32, sharding=sharding)
    restored = tx.restore(saved("linen", variables()), template, at="params.Dense_0.kernel")
    assert restored.sharding == sharding
    assert restored.sharding.memory_kind == kind
    assert (np.asarray(restored) == np.asarray(variables()["params"]["Dense_0"]["kernel"])).all()


def test_an_abstract_mesh_is_that_of_the_context(saved: Any) -> None:
    mesh = jax.make_mesh((8,), ("x",))
    abstract = NamedSharding(mesh.abstract_mesh, P(None, "x"))
    path, at = saved("linen", variables()), "params.Dense_0.kernel"
    with jax.set_mesh(mesh):
        restored = tx.restore(path, A((3, 8), jnp.float32, sharding=abstract), at=at)
    assert restored.sharding == NamedSharding(mesh, P(None, "x"))
    assert found(path, A((3, 8), jnp.float32, sharding=abstract), at=at) == [("sharding", "")]


# --- more of Flax


class Boxed(nn.Module):
    """A kernel with mesh axes, a bias with logical ones."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        kernel = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "m"))
        bias = nn.with_logical_partitioning(nn.initializers.normal(), ("embed",))
        return nn.Dense(4, kernel_init=kernel, bias_init=bias)(x)


def test_boxes_of_both_kinds_from_an_initialiser(saved: Any) -> None:
    value = Boxed().init(KEY, X)
    restored = tx.restore(saved("both boxes", value), tx.template_of(Boxed().init, KEY, X))
    equal(restored, value)
    dense = restored["params"]["Dense_0"]
    assert type(dense["kernel"]) is nn.Partitioned
    assert type(dense["bias"]) is nn.LogicallyPartitioned
    assert (dense["kernel"].names, dense["bias"].names) == ((None, "m"), ("embed",))


def test_boxes_meet_plain_leaves_by_the_hint_that_is_printed(saved: Any) -> None:
    """Saved with boxes, wanted without; and the other way round."""
    boxed = Boxed().init(KEY, X)
    plain = nn.unbox(boxed)
    for stored, wanted, rename, hint in (
        (boxed, plain, lambda n: n.removesuffix(".value"), 'name.removesuffix(".value")'),
        (plain, boxed, lambda n: n + ".value", 'name + ".value"'),
    ):
        path = saved("both boxes" if stored is boxed else "unboxed", stored)
        template = tx.template_of(wanted)
        assert str(tx.check(path, template)).endswith(f"hint: rename=lambda name: {hint}")
        equal(tx.restore(path, template, rename=rename), wanted)


def test_shardings_of_flax_for_boxes_are_a_prefix(saved: Any) -> None:
    value = {"w": nn.Partitioned(jnp.arange(8.0).reshape(4, 2), names=(None, "m"))}
    mesh = jax.make_mesh((2,), ("m",))
    template = tx.template_of(value)
    restored = tx.restore(
        saved("named boxes", value), template, shardings=nn.get_sharding(template, mesh)
    )
    equal(restored, value)
    assert restored["w"].value.sharding == NamedSharding(mesh, P(None, "m"))


def test_a_train_state_as_its_own_template_counts_in_python(saved: Any) -> None:
    """`step` is an int in a fresh state: it comes back as one, with the number that was saved."""
    state = train_state()
    later = state.apply_gradients(grads=jax.tree.map(jnp.ones_like, state.params))
    path = saved("own template", later)
    restored = tx.restore(path, state)
    equal(restored, later)
    assert (type(restored.step), restored.step) == (int, 1)
    assert restored.tx is state.tx


OPTIMIZERS = {
    "multi_transform": lambda: optax.multi_transform(
        {"a": optax.adam(1e-3), "b": optax.sgd(1e-2)}, {"kernel": "a", "bias": "b"}
    ),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(1e-3),
    "multi_steps": lambda: optax.MultiSteps(optax.adam(1e-3), 4),
    "adafactor": lambda: optax.adafactor(1e-3),
    "masked": lambda: optax.masked(optax.lion(1e-3), {"kernel": True, "bias": False}),
    "identity": optax.identity,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_of_optimizers(saved: Any, name: str) -> None:
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}
    init = OPTIMIZERS[name]().init
    state = jax.tree.map(lambda x: x + jnp.ones_like(x) if hasattr(x, "dtype") else x, init(params))
    path = saved(name, {"opt": state, "other": jnp.ones(1)})
    template = {"opt": tx.template_of(init, params), "other": ...}
    restored = tx.restore(path, template)["opt"]
    equal(restored, state)
    for leaf in jax.tree.leaves(restored):
        assert isinstance(leaf, jax.Array)
    equal(tx.restore(path, {"opt": init(params), "other": ...})["opt"], state)


def test_masked_nodes_ask_for_nothing(saved: Any) -> None:
    """A checkpoint of the unmasked optimizer holds more than the template: that is said."""
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}
    full = optax.masked(optax.trace(0.9), {"kernel": True, "bias": True}).init(params)
    half = optax.masked(optax.trace(0.9), {"kernel": True, "bias": False}).init(params)
    path = saved("unmasked", full)
    template = tx.template_of(half)
    assert found(path, template) == [("extra", "inner_state.trace.bias")]
    restored = tx.restore(path, template, extra="ignore")
    equal(restored, half)
    assert type(restored.inner_state.trace["bias"]) is optax.MaskedNode


# --- more of NNX


def test_nnx_split_states_merge_into_the_module(saved: Any) -> None:
    net = Net(nnx.Rngs(0))
    graph, params, rest = nnx.split(net, nnx.Param, ...)
    path = saved("split", {"params": params, "rest": rest})
    _, *abstract = nnx.split(nnx.eval_shape(lambda: Net(nnx.Rngs(1))), nnx.Param, ...)
    template = dict(zip(("params", "rest"), abstract, strict=True))
    restored = tx.restore(path, template)
    equal(restored["params"], params)
    equal(restored["rest"], rest)
    merged = nnx.merge(graph, restored["params"], restored["rest"])
    x = jnp.ones((1, 2))
    assert (merged.linear(x) == net.linear(x)).all()
    equal(tx.restore(path, abstract[0], at="params"), params)


def test_nnx_whole_states_through_each_part(saved: Any) -> None:
    """The parts of a state are found in a checkpoint of the whole, and the other way round."""
    net = Net(nnx.Rngs(0))
    path = saved("nnx", nnx.state(net))
    _, *parts = nnx.split(net, nnx.Param, nnx.BatchStat, ...)
    asked: list[str] = []
    for part in parts:
        template = tx.template_of(part)
        equal(tx.restore(path, template, extra="ignore"), part)
        asked += [t.name for t in tx.check(path, template, extra="ignore").template.targets]
    assert sorted(asked) == sorted(tx.open(path).leaves)


def test_an_nnx_optimizer_is_a_template(saved: Any) -> None:
    def make() -> nnx.Optimizer[Any]:
        return nnx.Optimizer(Net(nnx.Rngs(0)), optax.adam(1e-3), wrt=nnx.Param)

    optimizer = make()
    optimizer.step.set_value(jnp.uint32(5))
    path = saved("nnx optimizer", nnx.state(optimizer))
    restored = tx.restore(path, tx.template_of(make))
    equal(nnx.state(restored), nnx.state(optimizer))
    assert int(restored.step.get_value()) == 5


def test_a_single_nnx_variable_is_a_template(saved: Any) -> None:
    net = Net(nnx.Rngs(0))
    path = saved("nnx", nnx.state(net))
    restored = tx.restore(path, nnx.Param(A((2, 3), jnp.float32)), at="linear.kernel")
    assert type(restored) is nnx.Param
    assert (restored.get_value() == net.linear.kernel.get_value()).all()


def test_nnx_shardings_reach_the_restored_variables(saved: Any) -> None:
    """From the metadata of a module, as `eval_shape` keeps it, and as NNX's named shardings."""

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
            equal(restored, state)


# --- more of Equinox


def test_equinox_state_beside_its_module(saved: Any) -> None:
    make = eqx.nn.make_with_state(eqx.nn.BatchNorm)
    model, state = make(4, "batch", mode="batch")
    path = saved("eqx state", (eqx.filter(model, eqx.is_array), state))
    for template in ((model, state), eqx.filter_eval_shape(make, 4, "batch", mode="batch")):
        restored = tx.restore(path, template)
        assert jax.tree.structure(restored) == jax.tree.structure((model, state))
        for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves((model, state)), strict=True):
            if isinstance(b, jax.Array):
                assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_equinox_modules_in_a_dict_keep_their_numbers_but_a_dict_does_not(saved: Any) -> None:
    """A number of a module may be configuration; a number of a plain tree is data."""
    path = saved("eqx in dict", {"model": eqx.filter(Regularised(KEY), eqx.is_array)})
    restored = tx.restore(path, {"model": Regularised(KEY)})
    assert (restored["model"].steps, restored["model"].dropout.p) == (3, 0.3)
    assert found(path, {"model": Regularised(KEY), "step": 3}) == [("missing", "step")]
    assert found(path, {"model": {"linear": ..., "p": 0.3}}) == [("missing", "model.p")]


def test_equinox_models_compute_what_the_saved_one_did(saved: Any) -> None:
    mlp = eqx.nn.MLP(2, 3, 8, 2, activation=jax.nn.gelu, key=KEY)
    path = saved("mlp", eqx.filter(mlp, eqx.is_array))
    template = tx.template_of(eqx.nn.MLP, 2, 3, 8, 2, activation=jax.nn.gelu, key=KEY)
    restored = tx.restore(path, template)
    equal(restored, mlp)
    assert (restored(jnp.ones(2)) == mlp(jnp.ones(2))).all()


# --- more of leaves and places


def test_keys_on_several_axes_are_spread_over_a_mesh(saved: Any) -> None:
    keys = jax.random.split(jax.random.key(3, impl="rbg"), (8, 2))
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    template = jax.eval_shape(lambda: {"k": keys})
    path = saved("key matrix", {"k": keys})
    for spec in (P("x"), P("x", "y"), P(None, "y"), P(("x", "y"))):
        sharding = NamedSharding(mesh, spec)
        restored = tx.restore(path, template, shardings=sharding)
        equal(restored, {"k": keys})
        assert restored["k"].sharding.is_equivalent_to(sharding, 2)
        assert restored["k"].committed
    wrong = NamedSharding(mesh, P(None, "x"))
    assert found(path, template, shardings=wrong) == [("sharding", "k")]
    assert found(path, jax.eval_shape(lambda: {"k": keys[:, 0]})) == [("shape", "k")]
    assert not tx.restore(path, template)["k"].committed


@pytest.mark.parametrize("wanted", [jnp.float32, np.float32, "python", "array", "numpy", "0d"])
def test_a_number_is_what_the_template_says(saved: Any, wanted: Any) -> None:
    path = saved("numbers", {"n": jnp.float32(1.5)})
    leaf, kind = {
        "python": (float, float),
        "array": (A((), jnp.float32), jax.Array),
        "numpy": (np.float32(0), np.float32),
        "0d": (np.zeros((), np.float32), np.ndarray),
        jnp.float32: (jnp.float32, jax.Array),
        np.float32: (np.float32, np.float32),
    }[wanted]
    restored = tx.restore(path, {"n": leaf})["n"]
    assert isinstance(restored, kind)
    assert restored == 1.5
    assert np.shape(restored) == ()


def test_numbers_of_another_class_are_refused(saved: Any) -> None:
    value = {"s": "words", "i": 3, "f": 0.5, "b": True, "w": jnp.ones(2), "m": {"v": jnp.ones(2)}}
    path = saved("values", value)
    for name, leaf in (("i", bool), ("b", int), ("f", int), ("i", str), ("i", A((), jnp.bool_))):
        rest = dict.fromkeys("sifbwm", ...)
        assert [n for _, n in found(path, rest | {name: leaf})] == [name]


def test_results_share_no_memory(saved: Any) -> None:
    """Not with each other, not with a second restore, not with the files."""
    value = {"small": [jnp.arange(4.0) + i for i in range(8)], "large": jnp.arange(50_000.0)}
    path = saved("apart", value)
    template = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), value)
    catalog = tx.open(path)
    one, two = tx.restore(catalog, template), tx.restore(catalog, template)
    arrays = [*jax.tree.leaves(one), *jax.tree.leaves(two), *jax.tree.leaves(template)]
    for i, a in enumerate(arrays):
        assert not any(np.shares_memory(a, b) for b in arrays[:i])
    for a in jax.tree.leaves(one):
        assert a.flags.writeable
        a[...] = -1
    equal(two, jax.tree.map(np.asarray, value))
    equal(tx.restore(catalog, tx.template_of(value)), value)


def test_results_outlive_the_checkpoint(tmp_path: Path) -> None:
    value = {"small": jnp.arange(4.0), "large": jnp.arange(300_000.0)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        handler = ocp.PyTreeCheckpointHandler(use_compression=False)
        ocp.Checkpointer(handler).save(tmp_path / "x", args=ocp.args.PyTreeSave(value))
    restored = tx.restore(tmp_path / "x", tx.template_of(value))
    for file in (tmp_path / "x").rglob("*"):
        if file.is_file():
            file.write_bytes(b"\xff" * file.stat().st_size)  # a mapped file would show through
    shutil.rmtree(tmp_path / "x")
    equal(restored, value)


def test_donated_and_deleted_arrays_still_say_shape_and_sharding(saved: Any) -> None:
    """Restoring into the state that a training step has just consumed."""
    third = jax.devices()[3]
    value = jax.device_put(variables(), third)
    for leaf in jax.tree.leaves(value):
        leaf.delete()
    restored = tx.restore(saved("linen", variables()), value)
    equal(restored, variables())
    assert {leaf.sharding.device_set.pop() for leaf in jax.tree.leaves(restored)} == {third}
    assert found(saved("linen", variables()), {**value, "new": None}) == []


def test_a_bare_leaf_that_was_saved_bare(saved: Any) -> None:
    path = saved("bare", jnp.arange(3))
    assert tx.restore(path, A((3,), jnp.int32)).tolist() == [0, 1, 2]
    assert isinstance(tx.restore(path, np.zeros(3, np.int32)), np.ndarray)
    assert tx.restore(path, ...) is ...
    assert str(tx.check(path, A((4,), jnp.int32))).endswith(
        "Expected shape `(4,)`, got `(3,)` - at the leaf itself"
    )


def test_skipped_subtrees_cost_and_check_nothing(saved: Any) -> None:
    value = variables()
    path = saved("linen", value)
    template = {"params": {"Dense_0": tx.template_of(value)["params"]["Dense_0"], "Dense_1": ...}}
    restored = tx.restore(path, template)
    assert restored["params"]["Dense_1"] is ...
    equal(restored["params"]["Dense_0"], value["params"]["Dense_0"])
    assert tx.restore(path, {"params": ...}) == {"params": ...}
    nowhere = {**tx.template_of(value), "never saved": ...}
    assert tx.restore(path, nowhere)["never saved"] is ...


def test_every_kind_of_sharding_is_obeyed(saved: Any) -> None:
    value = {"w": jnp.arange(64.0).reshape(8, 8)}
    path = saved("square", value)
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    odd = Mesh(np.array(jax.devices())[[6, 1, 3]].reshape(1, 3), ("a", "b"))
    shardings = [
        SingleDeviceSharding(jax.devices()[4]),
        NamedSharding(mesh, P("y", "x")),
        NamedSharding(mesh, P(None, ("x", "y"))),
        NamedSharding(odd, P("a")),
        NamedSharding(mesh, P("x"), memory_kind="pinned_host"),
        jax.pmap(lambda x: x)(jnp.zeros((8, 1))).sharding,
    ]
    for sharding in shardings:
        for restored in (
            tx.restore(path, {"w": A((8, 8), jnp.float32, sharding=sharding)}),
            tx.restore(path, tx.template_of(value), shardings=sharding),
            tx.restore(path, {"w": jax.device_put(value["w"], sharding)}),
        ):
            assert restored["w"].sharding.is_equivalent_to(sharding, 2)
            assert restored["w"].sharding.memory_kind == sharding.memory_kind
            assert restored["w"].committed
            for shard in restored["w"].addressable_shards:
                assert (np.asarray(shard.data) == np.asarray(value["w"])[shard.index]).all()


def test_a_format_for_a_whole_subtree(saved: Any) -> None:
    value = {"a": jnp.arange(12.0).reshape(3, 4), "b": [jnp.arange(6.0).reshape(2, 3)]}
    wanted = Format(Layout((1, 0)), SingleDeviceSharding(jax.devices()[2]))
    restored = tx.restore(saved("formats", value), tx.template_of(value), shardings=wanted)
    equal(restored, value)
    for leaf in jax.tree.leaves(restored):
        assert leaf.format.layout.major_to_minor == (1, 0)
        assert leaf.devices() == {jax.devices()[2]}


def test_an_abstract_mesh_of_another_shape_is_a_mismatch(saved: Any) -> None:
    mesh, other = jax.make_mesh((8,), ("x",)), jax.make_mesh((4, 2), ("x", "y"))
    template = A((3, 8), jnp.float32, sharding=NamedSharding(mesh.abstract_mesh, P(None, "x")))
    path, at = saved("linen", variables()), "params.Dense_0.kernel"
    with jax.set_mesh(other):
        assert found(path, template, at=at) == [("sharding", "")]
        with pytest.raises(tx.TemplateError, match="no mesh of its shape is set"):
            tx.restore(path, template, at=at)


# --- wherever JAX is told to work


@pytest.mark.parametrize("kind", ["Explicit", "Auto"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"])
def test_casts_inside_a_mesh(saved: Any, kind: str, dtype: str) -> None:
    """`jax.set_mesh` is how a training script begins; some casts are XLA's, on one device."""
    value = jnp.linspace(-3, 3, 16)
    path = saved("line", {"w": value})
    mesh = jax.make_mesh((8,), ("x",), axis_types=(getattr(AxisType, kind),))
    sharding = NamedSharding(mesh, P("x"))
    for template in (A((16,), dtype), A((16,), dtype, sharding=sharding)):
        with jax.set_mesh(mesh), warnings.catch_warnings():
            warnings.simplefilter("ignore", tx.CastWarning)
            restored = tx.restore(path, {"w": template})
        equal(restored, {"w": value.astype(dtype)})


def test_what_has_no_sharding_goes_to_one_device_inside_a_mesh_too(saved: Any) -> None:
    value = {"w": jnp.arange(3.0), "key": jax.random.key(1), "keys": jax.random.split(KEY, 8)}
    path = saved("no sharding", value)
    template = jax.eval_shape(lambda: value)
    with jax.set_mesh(jax.make_mesh((8,), ("x",))):
        restored = tx.restore(path, template)
    equal(restored, value)
    assert [leaf.devices() for leaf in restored.values()] == [{jax.devices()[0]}] * 3
    assert not any(leaf.committed for leaf in restored.values())


def test_the_default_device_is_that_of_the_context(saved: Any) -> None:
    value = {"w": jnp.arange(3.0), "key": jax.random.key(1)}
    path = saved("default device", value)
    with jax.default_device(jax.devices()[3]):
        restored = tx.restore(path, jax.eval_shape(lambda: value))
    equal(restored, value)
    assert [leaf.devices() for leaf in restored.values()] == [{jax.devices()[3]}] * 2


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_restore_inside_a_traced_function_gives_constants(saved: Any, dtype: str) -> None:
    value = {"w": jnp.linspace(-3, 3, 16), "key": jax.random.key(1)}
    path = saved("traced", value)
    template = {"w": A((16,), dtype), "key": jax.eval_shape(lambda: jax.random.key(1))}

    @jax.jit
    def step(x: Any) -> Any:
        restored = tx.restore(path, template)
        return x * restored["w"], jax.random.bits(restored["key"])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tx.CastWarning)
        scaled, bits = step(jnp.ones((), dtype))
    assert (scaled == value["w"].astype(dtype)).all()
    assert bits == jax.random.bits(value["key"])


@pytest.mark.parametrize("placed", [False, True])
def test_types_of_arrays_are_templates(saved: Any, placed: bool) -> None:
    """`jax.typeof` and the avals of a traced function say shape and dtype, as a struct does."""
    value = {"w": jnp.arange(16.0), "n": jnp.int32(3)}
    path = saved("types", value)
    template = jax.tree.map(jax.typeof, value)
    mesh = jax.make_mesh((8,), ("x",))
    if not placed:
        equal(tx.restore(path, template), value)
        return
    spread = jax.device_put(value, NamedSharding(mesh, P()))
    with jax.set_mesh(mesh):
        restored = tx.restore(path, jax.tree.map(jax.typeof, spread))
    equal(restored, value)
    assert restored["w"].sharding.is_equivalent_to(NamedSharding(mesh, P()), 1)


@pytest.mark.parametrize("order", ["<f4", ">f4"])
def test_numpy_results_have_the_byte_order_of_the_template(saved: Any, order: str) -> None:
    path = saved("line", {"w": jnp.linspace(-3, 3, 16)})
    restored = tx.restore(path, {"w": np.zeros(16, order)})["w"]
    assert restored.dtype == np.dtype(order)
    assert restored.tolist() == jnp.linspace(-3, 3, 16).tolist()


def test_what_orbax_says_of_a_checkpoint_is_a_template(saved: Any) -> None:
    """Its metadata carries the sharding of the past, which is not obeyed."""
    path = saved("line", {"w": jnp.linspace(-3, 3, 16)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ocp.PyTreeCheckpointer() as checkpointer:
            metadata = checkpointer.metadata(path).item_metadata.tree
    restored = tx.restore(path, metadata)
    equal(restored, {"w": jnp.linspace(-3, 3, 16)})
    assert not restored["w"].committed


def test_what_has_no_sharding_is_of_use_inside_a_mesh(saved: Any) -> None:
    """Committed to one device it would be refused by every function that is jitted there."""
    value = {"w": jnp.arange(3.0), "key": jax.random.key(1)}
    path = saved("default device", value)
    with jax.set_mesh(jax.make_mesh((8,), ("x",))):
        restored = tx.restore(path, jax.eval_shape(lambda: value))
        doubled = jax.jit(lambda w: w * 2)(restored["w"])
        bits = jax.jit(jax.random.bits)(restored["key"])
    assert doubled.tolist() == [0, 2, 4]
    assert int(bits) == int(jax.random.bits(value["key"]))
