"""What `restore` takes: checkpoints, renames, missing and extra leaves, shardings."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

import templax as tx
from helpers import CKPT, CORPUS, SET_MESH, read_files
from templax.storage import Local, Memory
from templax.testing import Watched

A = jax.ShapeDtypeStruct


SCALE = {"scale": A((), jnp.float32)}


def restore(checkpoint: Any = CKPT, template: Any = SCALE, **options: Any) -> Any:
    """Restores `state.params` in part."""
    return tx.restore(checkpoint, template, **{"at": "state.params", "extra": "ignore"} | options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"cast": "any"}, "Expected cast= one of float, widen, exact, got 'any'"),
        (
            {"extra": "keep"},
            'Expected extra="error", "ignore" or a mapping of patterns (str) to one of these,'
            " got 'keep'",
        ),
        ({"at": None}, "Expected at= the name of a subtree (str), got None"),
        ({"at": ("state",)}, "Expected at= the name of a subtree (str), got ('state',)"),
        (
            {"missing": "ignore"},
            'Expected missing="error", "keep" or a checkpoint, got \'ignore\','
            " where there is nothing",
        ),
        (
            {"missing": None},
            "Expected a path, Source, Catalog or Recipe as checkpoint, got NoneType",
        ),
        ({"checkpoint": 3}, "Expected a path, Source, Catalog or Recipe as checkpoint, got int"),
        ({"checkpoint": ""}, 'Expected a path, got ""'),
        ({"rename": 5}, "Expected rename= a dict of names (str) or a function, got 5"),
        (
            {"rename": {"a": None}},
            "Expected rename= a dict of names (str) or a function, got {'a': None}",
        ),
        ({"rename": lambda name: None}, "Expected a name (str) from rename('big'), got None"),
        ({"threads": 0}, "Expected threads= an int of at least 1, got 0"),
        ({"threads": "x"}, "Expected threads= an int of at least 1, got 'x'"),
    ],
)
def test_invalid_arguments_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(tx.UsageError) as caught:
        restore(**options)
    assert str(caught.value) == text


def test_an_invalid_value_of_uncommitted_is_refused() -> None:
    with pytest.raises(tx.UsageError, match='Expected uncommitted="error" or "allow", got True'):
        tx.open(CKPT, uncommitted=True)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "checkpoint",
    [
        str(CKPT),
        CKPT,
        f"{CKPT}/",
        f"file://{CKPT}",
        Local(CKPT),
        Memory(read_files(CKPT)),
        tx.open(CKPT),
        tx.Recipe(lambda: {"state": {"params": {"scale": jnp.float32(2)}}}),
    ],
    ids=["str", "Path", "slash", "url", "Local", "Memory", "Catalog", "Recipe"],
)
def test_anything_that_names_a_checkpoint_is_accepted(checkpoint: Any) -> None:
    assert restore(checkpoint)["scale"].dtype == jnp.float32
    assert tx.check(checkpoint, SCALE, at="state.params", extra="ignore").ok


def test_an_uncommitted_checkpoint_is_read_only_if_asked() -> None:
    path = CORPUS / "damaged-uncommitted" / "ckpt"
    for call in (tx.open, restore, lambda p: tx.check(p, SCALE)):
        with pytest.raises(tx.Uncommitted) as caught:
            call(path)
        assert str(caught.value) == (
            f"{path} is not a committed checkpoint: `_CHECKPOINT_METADATA` has no commit time and"
            " there is no `commit_success.txt`; hint: to read it all the same, restore from"
            f' tx.open("{path}", uncommitted="allow")'
        )
    catalog = tx.open(path, uncommitted="allow")
    assert catalog.uncommitted
    assert restore(catalog)["scale"].dtype == jnp.float32


def test_missing_may_be_another_path() -> None:
    other = CORPUS / "orbax-0.12.8-zarr3" / "ckpt"
    got = tx.restore(
        tx.Recipe(lambda: {"state": {"params": {"scale": jnp.float32(7)}}}),
        {"scale": A((), jnp.float32), "zeros": A((4, 4), jnp.float32)},
        at="state.params",
        missing=other,
    )
    assert (float(got["scale"]), float(got["zeros"].sum())) == (7, 0)


def test_the_longest_prefix_of_rename_applies_once() -> None:
    stored = tx.Recipe(lambda: {"a": {"b": jnp.zeros(2), "c": jnp.ones(2)}, "b": jnp.full(2, 2.0)})
    template = {
        "x": {"c": A((2,), jnp.float32)},
        "y": A((2,), jnp.float32),
        "a": A((2,), jnp.float32),
    }
    got = tx.restore(stored, template, rename={"a": "x", "a.b": "y", "b": "a"})
    assert [float(got[k].sum()) for k in "ya"] == [0, 4]
    assert float(got["x"]["c"].sum()) == 2


def test_a_rename_function_gets_names_below_at() -> None:
    seen: list[str] = []

    def rename(name: str) -> str:
        seen.append(name)
        return name.upper()

    got = restore(template={"SCALE": A((), jnp.float32)}, rename=rename)
    assert "scale" in seen
    assert "SCALE" in got


def test_one_cast_warning_points_to_the_caller() -> None:
    stored = tx.Recipe(lambda: {"a": jnp.ones(4), "b": jnp.ones((2, 2)), "c": jnp.int8([1])})
    template = {"a": A((4,), jnp.bfloat16), "b": A((2, 2), jnp.float16), "c": A((1,), jnp.int32)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tx.restore(stored, template)
    (warning,) = [w for w in caught if w.category is tx.CastWarning]
    assert warning.filename == __file__
    text = str(warning.message)
    assert text.startswith("3 of 3 leaves of Recipe(")
    pairs = "float32 to bfloat16 (1: `a`), float32 to float16 (1: `b`), int8 to int32 (1: `c`)"
    assert f"{pairs}; 33 bytes, " in text
    assert text.endswith(' s; cast="exact" refuses this')


def checkpoint_with(**tree: Any) -> tx.Recipe:
    return tx.Recipe(lambda: tree)


W = A((8, 2), jnp.float32)


MESH = jax.make_mesh((8,), ("x",))


@pytest.mark.parametrize(
    ("shardings", "text"),
    [
        ("cpu", "Expected a jax.sharding.Sharding or a device, got 'cpu'"),
        (P("x"), f"Expected a jax.sharding.Sharding or a device, got {P('x')!r}"),
        ({"w": 3}, "Expected a jax.sharding.Sharding or a device, got 3"),
    ],
    ids=["str", "spec", "int"],
)
def test_values_that_are_not_shardings_are_refused(shardings: Any, text: str) -> None:
    for call in (tx.restore, tx.check):
        with pytest.raises(tx.UsageError) as caught:
            call(checkpoint_with(w=jnp.ones((8, 2))), {"w": W}, shardings=shardings)
        assert str(caught.value) == text
    with pytest.raises(tx.UsageError):
        tx.save_template({"w": W}, "never-written.json", shardings=shardings)
    assert not Path("never-written.json").exists()


@pytest.mark.parametrize("shardings", [{"v": None}, [None], {"w": {"x": None}}, {}])
def test_shardings_that_are_not_a_prefix_are_refused(shardings: Any) -> None:
    with pytest.raises(tx.UsageError, match=r"^`shardings` is not a prefix of the template: "):
        tx.restore(checkpoint_with(w=jnp.ones((8, 2))), {"w": W}, shardings=shardings)


def test_shardings_are_a_prefix_and_none_keeps_the_templates_own() -> None:
    own = SingleDeviceSharding(jax.devices()[5])
    everywhere, third = NamedSharding(MESH, P("x")), jax.devices()[3]
    template = {
        "a": {"v": W, "w": W},
        "b": A((8, 2), jnp.float32, sharding=own),
        "c": [W, np.zeros((8, 2), np.float32), ..., int],
    }
    value = jnp.arange(16.0).reshape(8, 2)
    checkpoint = checkpoint_with(a={"v": value, "w": value}, b=value, c=[value, value, value, 3])
    prefix = {"a": everywhere, "b": None, "c": third}
    got = tx.restore(checkpoint, template, shardings=prefix)
    assert {x.sharding for x in got["a"].values()} == {everywhere}
    assert got["b"].sharding == own
    assert [x.devices() for x in got["c"][:2]] == [{third}] * 2  # numpy leaves are placed too
    assert got["c"][2:] == [..., 3]
    plain = tx.restore(checkpoint, template, shardings=None)
    assert isinstance(plain["c"][1], np.ndarray)
    assert not plain["a"]["v"].committed


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: tx.template_of({"w": jnp.ones(2)}, specs=P()),
            f"`specs` need a mesh; hint: pass mesh=, or call inside {SET_MESH}(mesh)",
        ),
        (
            lambda: tx.template_of({"w": jnp.ones(2)}, 3),
            "Expected a function to call with arguments, got dict",
        ),
    ],
    ids=["specs", "arguments"],
)
def test_invalid_arguments_of_template_of_are_refused(call: Any, text: str) -> None:
    with pytest.raises(tx.UsageError) as caught:
        call()
    assert str(caught.value) == text


def test_specs_that_are_not_a_prefix_are_refused() -> None:
    with pytest.raises(tx.UsageError, match=r"^`specs` is not a prefix of the template: "):
        tx.template_of({"w": jnp.ones(2)}, mesh=MESH, specs={"v": P()})


def test_a_sharding_that_does_not_divide_is_a_mismatch_before_any_read() -> None:
    catalog = Watched(Local(CKPT))
    with pytest.raises(tx.TemplateError) as caught:
        restore(
            catalog,
            {"big": A((128, 64), jnp.float32), "step": A((7,), jnp.float32)},
            shardings={
                "big": NamedSharding(MESH, P(None, "x")),
                "step": NamedSharding(MESH, P("x")),
            },
        )
    assert [(m.problem, m.name) for m in caught.value.mismatches] == [
        ("sharding", "step"),
        ("missing", "step"),
    ]
    assert not [key for key, *_ in catalog.reads if key.startswith("ocdbt.process_")]


def test_extra_ignore_lists_ignored_leaves_in_the_order_of_the_file() -> None:
    checkpoint = checkpoint_with(a=jnp.ones(2), b={"c": jnp.ones(2), "d": jnp.ones(1)})
    match = tx.check(checkpoint, {"a": A((2,), jnp.float32)}, extra="ignore")
    assert (match.ok, match.ignored) == (True, ("b.c", "b.d"))
    assert (match.kept, match.skipped, match.casts) == ((), (), ())
    skipped = tx.check(checkpoint, {"a": A((2,), jnp.float32), "b": ...})
    assert (skipped.ok, skipped.ignored, skipped.skipped) == (True, ("b.c", "b.d"), ("b",))
    below = tx.check(checkpoint, {"c": A((2,), jnp.float32)}, at="b", extra="ignore")
    assert below.ignored == ("d",)  # leaves outside `at` are not extra
    strict = tx.check(checkpoint, {"a": A((2,), jnp.float32)})
    assert [(m.problem, m.name, m.hint) for m in strict.mismatches] == [
        ("extra", "b.c", 'extra="ignore"'),
        ("extra", "b.d", 'extra="ignore"'),
    ]


def test_missing_keep_returns_the_templates_own_values() -> None:
    kept = jnp.full(2, 7.0)
    host = np.full(3, 8.0)
    template = {"a": A((2,), jnp.float32), "new": kept, "host": host, "n": 4, "s": "own"}
    got = tx.restore(checkpoint_with(a=jnp.ones(2)), template, missing="keep")
    assert got["new"] is kept
    assert got["host"] is host
    assert (got["n"], got["s"]) == (4, "own")
    match = tx.check(checkpoint_with(a=jnp.ones(2)), template, missing="keep")
    assert match.kept == ("host", "n", "new", "s")


def test_missing_keep_cannot_keep_abstract_leaves() -> None:
    template = {"a": A((2,), jnp.float32), "new": A((2,), jnp.float32), "n": int}
    match = tx.check(checkpoint_with(a=jnp.ones(2)), template, missing="keep")
    assert [m.fact for m in match.mismatches] == [
        "Expected a leaf, found none - at `n`;"
        " the template has no value to keep here, only a shape and dtype",
        "Expected a leaf, found none - at `new`;"
        " the template has no value to keep here, only a shape and dtype",
    ]


@pytest.mark.slow
def test_missing_keep_applies_shardings_to_kept_values() -> None:
    template = {"a": W, "new": jnp.ones((8, 2)), "host": np.ones((8, 2), np.float32)}
    spread = NamedSharding(MESH, P("x"))
    got = tx.restore(
        checkpoint_with(a=jnp.ones((8, 2))), template, missing="keep", shardings=spread
    )
    assert {x.sharding for x in got.values()} == {spread}
    template["host"][:] = 9
    assert got["host"].sum() == 16


def test_only_missing_leaves_are_read_from_the_second_checkpoint() -> None:
    other = Watched(Local(CORPUS / "orbax-0.12.8-noocdbt" / "ckpt"))
    template = {"scale": A((), jnp.float32), "zeros": A((4, 4), jnp.float32)}
    got = tx.restore(
        checkpoint_with(state={"params": {"scale": jnp.float32(7)}}),
        template,
        at="state.params",
        missing=other,
    )
    assert got["scale"] == 7
    arrays = {key for key, *_ in other.reads if key.split("/")[-1][0].isdigit()}
    assert {key.split("/")[0] for key in arrays} <= {"state.params.zeros"}


def test_a_rename_that_merges_two_leaves_is_ambiguous() -> None:
    checkpoint = checkpoint_with(a=jnp.ones(2), b=jnp.zeros(2))
    for rename in ({"a": "c", "b": "c"}, lambda name: "c"):
        match = tx.check(checkpoint, {"c": A((2,), jnp.float32)}, rename=rename)
        assert [m.fact for m in match.mismatches] == [
            "Expected one leaf of this name, got 2 in the checkpoint: ('a',) and ('b',) - at `c`"
        ]


def test_rename_can_unwrap_a_leaf_and_wrap_the_root() -> None:
    value = {"w": jnp.arange(2.0)}
    wrapped = tx.restore(
        checkpoint_with(**value), {"m": {"w": A((2,), jnp.float32)}}, rename={"": "m"}
    )
    assert wrapped["m"]["w"].tolist() == [0, 1]
    bare = tx.restore(checkpoint_with(**value), A((2,), jnp.float32), rename={"w": ""})
    assert bare.tolist() == [0, 1]


def test_a_rename_of_part_of_a_key_is_refused() -> None:
    checkpoint = checkpoint_with(dense_10={"w": jnp.ones(2)})
    template = {"dense_10": {"w": A((2,), jnp.float32)}}
    with pytest.raises(tx.UsageError, match="got `dense_1`"):
        tx.check(checkpoint, template, rename={"dense_1": "other"})


def test_exceptions_of_a_rename_function_are_raised() -> None:
    def rename(name: str) -> str:
        raise LookupError(name)

    with pytest.raises(LookupError, match="w"):
        tx.check(checkpoint_with(w=jnp.ones(2)), {"w": A((2,), jnp.float32)}, rename=rename)


def test_errors_can_be_pickled() -> None:
    """Process pools send exceptions pickled."""
    with pytest.raises(tx.TemplateError) as caught:
        tx.restore(
            checkpoint_with(w=jnp.ones((8, 3))), {"w": W}, shardings=NamedSharding(MESH, P("x"))
        )
    for error in (
        caught.value,
        tx.Corrupted("what"),
        tx.UsageError("why"),
        tx.SourceError("where"),
    ):
        again = pickle.loads(pickle.dumps(error))  # noqa: S301
        assert (type(again), str(again)) == (type(error), str(error))
    assert pickle.loads(pickle.dumps(caught.value)).mismatches == caught.value.mismatches  # noqa: S301
