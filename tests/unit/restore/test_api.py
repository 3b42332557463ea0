"""What the calls take, what they refuse by name, and what they announce."""

from __future__ import annotations

import dataclasses
import os
import pickle
import shutil
import threading
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
from helpers import CKPT, CORPUS
from templax._catalog.entry import Chunk, Extent, LeafEntry
from templax.storage import Local, Memory
from templax.testing import Watched

A = jax.ShapeDtypeStruct
SCALE = {"scale": A((), jnp.float32)}


def restore(checkpoint: Any = CKPT, template: Any = SCALE, **options: Any) -> Any:
    """One leaf of a subtree."""
    return tx.restore(checkpoint, template, **{"at": "state.params", "extra": "ignore"} | options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"cast": "any"}, "Expected cast= one of float, widen, exact, got 'any'"),
        ({"extra": "keep"}, 'Expected extra="error" or "ignore", got \'keep\''),
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
def test_arguments_that_mean_nothing(options: dict[str, Any], text: str) -> None:
    with pytest.raises(tx.UsageError) as caught:
        restore(**options)
    assert str(caught.value) == text


def test_uncommitted_takes_two_words() -> None:
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
        Memory({str(p.relative_to(CKPT)): p.read_bytes() for p in CKPT.rglob("*") if p.is_file()}),
        tx.open(CKPT),
        tx.Recipe(lambda: {"state": {"params": {"scale": jnp.float32(2)}}}),
    ],
    ids=["str", "Path", "slash", "url", "Local", "Memory", "Catalog", "Recipe"],
)
def test_what_may_stand_for_a_checkpoint(checkpoint: Any) -> None:
    assert restore(checkpoint)["scale"].dtype == jnp.float32
    assert tx.check(checkpoint, SCALE, at="state.params", extra="ignore").ok


def test_an_uncommitted_checkpoint_is_read_on_explicit_request_only() -> None:
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


def test_the_longest_prefix_is_renamed_once() -> None:
    stored = tx.Recipe(lambda: {"a": {"b": jnp.zeros(2), "c": jnp.ones(2)}, "b": jnp.full(2, 2.0)})
    template = {
        "x": {"c": A((2,), jnp.float32)},
        "y": A((2,), jnp.float32),
        "a": A((2,), jnp.float32),
    }
    got = tx.restore(stored, template, rename={"a": "x", "a.b": "y", "b": "a"})
    assert [float(got[k].sum()) for k in "ya"] == [0, 4]
    assert float(got["x"]["c"].sum()) == 2


def test_a_rename_function_sees_names_below_at() -> None:
    seen: list[str] = []

    def rename(name: str) -> str:
        seen.append(name)
        return name.upper()

    got = restore(template={"SCALE": A((), jnp.float32)}, rename=rename)
    assert "scale" in seen
    assert "SCALE" in got


def test_one_warning_for_all_casts_that_points_to_the_caller() -> None:
    stored = tx.Recipe(lambda: {"a": jnp.ones(4), "b": jnp.ones((2, 2)), "c": jnp.int8([1])})
    template = {"a": A((4,), jnp.bfloat16), "b": A((2, 2), jnp.float16), "c": A((1,), jnp.int32)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tx.restore(stored, template)
    (warning,) = [w for w in caught if w.category is tx.CastWarning]
    assert warning.filename == __file__
    text = str(warning.message)
    assert text.startswith("3 of 3 leaves of Recipe(")
    assert "float32 to bfloat16 (1), float32 to float16 (1), int8 to int32 (1); 33 bytes, " in text
    assert text.endswith(' s; cast="exact" refuses this')


def test_a_report_says_what_a_restore_would_do() -> None:
    stored = tx.Recipe(lambda: {"a": jnp.ones(4), "b": jnp.ones(3), "c": jnp.ones(2)})
    template = {"a": A((4,), jnp.bfloat16), "new": jnp.ones(1), "f": print, "b": ...}
    match = tx.check(stored, template, missing="keep", extra="ignore")
    assert str(match) == "\n".join(
        [
            f"1 of 2 leaves match {match.url}, the others keep the template's values",
            "  1 cast from float32 to bfloat16 (16 bytes)",
            "  1 kept from the template: `new`",
            "  2 without data, left as in the template: `b`, `f`",
            "  2 of the checkpoint ignored: `b`, `c`",
        ]
    )
    assert str(
        tx.check(stored, {k: A((n,), jnp.float32) for k, n in zip("abc", (4, 3, 2), strict=True)})
    ) == (f"all 3 leaves match {match.url}")


def test_a_long_report_shows_twenty_and_counts_the_rest() -> None:
    stored = tx.Recipe(lambda: {"old": {f"w{i}": jnp.ones(2) for i in range(30)}})
    template = {
        "new": {f"w{i:02}": A((5,), jnp.float32) for i in range(15)},
        "old": {f"w{i}": A((3,), jnp.float32) for i in range(10)},
    }
    lines = str(tx.check(stored, template)).split("\n")
    assert lines[0] == (
        "25 of 25 leaves do not match Recipe(test_a_long_report_shows_twenty_and_counts_the_rest."
        "<locals>.<lambda>), and 20 of its leaves are not in the template"
    )
    assert len(lines) == 22
    assert lines[-1] == (
        "  and 25 more: 5 shape all under `old`; 20 extra all under `old`"
        " (`error.mismatches` has them all)"
    )


def test_many_extra_leaves_are_counted_by_subtree() -> None:
    stored = tx.Recipe(
        lambda: {
            "w": jnp.ones(2),
            "opt": {f"m{i}": jnp.ones(2) for i in range(25)},
            "ema": {f"m{i}": jnp.ones(2) for i in range(5)},
        }
    )
    lines = str(tx.check(stored, {"w": A((2,), jnp.float32)})).split("\n")
    assert lines[0].endswith("are not in the template, under `opt` (25), `ema` (5)")
    assert lines[-1] == '  hint: extra="ignore"'


# --- what two trees and their places mean


def stored(**tree: Any) -> tx.Recipe:
    return tx.Recipe(lambda: tree)


W = A((8, 2), jnp.float32)
MESH = jax.make_mesh((8,), ("x",))


@pytest.mark.parametrize(
    ("shardings", "text"),
    [
        ("cpu", "Expected a jax.sharding.Sharding or a device, got 'cpu'"),
        (P("x"), "Expected a jax.sharding.Sharding or a device, got P('x',)"),
        ({"w": 3}, "Expected a jax.sharding.Sharding or a device, got 3"),
    ],
    ids=["str", "spec", "int"],
)
def test_shardings_that_are_none_are_refused(shardings: Any, text: str) -> None:
    for call in (tx.restore, tx.check):
        with pytest.raises(tx.UsageError) as caught:
            call(stored(w=jnp.ones((8, 2))), {"w": W}, shardings=shardings)
        assert str(caught.value) == text
    with pytest.raises(tx.UsageError):
        tx.save_template({"w": W}, "never-written.json", shardings=shardings)
    assert not Path("never-written.json").exists()


@pytest.mark.parametrize("shardings", [{"v": None}, [None], {"w": {"x": None}}, {}])
def test_shardings_that_are_no_prefix_are_refused(shardings: Any) -> None:
    with pytest.raises(tx.UsageError, match=r"^`shardings` is no prefix of the template: "):
        tx.restore(stored(w=jnp.ones((8, 2))), {"w": W}, shardings=shardings)


def test_shardings_are_a_prefix_and_none_leaves_the_templates_own() -> None:
    own = SingleDeviceSharding(jax.devices()[5])
    everywhere, third = NamedSharding(MESH, P("x")), jax.devices()[3]
    template = {
        "a": {"v": W, "w": W},
        "b": A((8, 2), jnp.float32, sharding=own),
        "c": [W, np.zeros((8, 2), np.float32), ..., int],
    }
    value = jnp.arange(16.0).reshape(8, 2)
    checkpoint = stored(a={"v": value, "w": value}, b=value, c=[value, value, value, 3])
    prefix = {"a": everywhere, "b": None, "c": third}
    got = tx.restore(checkpoint, template, shardings=prefix)
    assert {x.sharding for x in got["a"].values()} == {everywhere}
    assert got["b"].sharding == own
    assert [x.devices() for x in got["c"][:2]] == [{third}] * 2  # numpy, too, goes where it is sent
    assert got["c"][2:] == [..., 3]
    plain = tx.restore(checkpoint, template, shardings=None)
    assert isinstance(plain["c"][1], np.ndarray)
    assert not plain["a"]["v"].committed


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: tx.template_of({"w": jnp.ones(2)}, specs=P()),
            "`specs` need a mesh; hint: pass mesh=, or call inside jax.set_mesh(mesh)",
        ),
        (
            lambda: tx.template_of({"w": jnp.ones(2)}, 3),
            "Expected a function to call with arguments, got dict",
        ),
    ],
    ids=["specs", "arguments"],
)
def test_what_template_of_can_not_do(call: Any, text: str) -> None:
    with pytest.raises(tx.UsageError) as caught:
        call()
    assert str(caught.value) == text


def test_specs_that_are_no_prefix_are_refused() -> None:
    with pytest.raises(tx.UsageError, match=r"^`specs` is no prefix of the template: "):
        tx.template_of({"w": jnp.ones(2)}, mesh=MESH, specs={"v": P()})


def test_a_sharding_that_does_not_divide_is_a_mismatch_before_a_read() -> None:
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


def test_extra_ignore_lists_what_it_ignored_in_the_order_of_the_file() -> None:
    checkpoint = stored(a=jnp.ones(2), b={"c": jnp.ones(2), "d": jnp.ones(1)})
    match = tx.check(checkpoint, {"a": A((2,), jnp.float32)}, extra="ignore")
    assert (match.ok, match.ignored) == (True, ("b.c", "b.d"))
    assert (match.kept, match.skipped, match.casts) == ((), (), ())
    skipped = tx.check(checkpoint, {"a": A((2,), jnp.float32), "b": ...})
    assert (skipped.ok, skipped.ignored, skipped.skipped) == (True, ("b.c", "b.d"), ("b",))
    below = tx.check(checkpoint, {"c": A((2,), jnp.float32)}, at="b", extra="ignore")
    assert below.ignored == ("d",)  # what `at` cut off is nobody's extra
    strict = tx.check(checkpoint, {"a": A((2,), jnp.float32)})
    assert [(m.problem, m.name, m.hint) for m in strict.mismatches] == [
        ("extra", "b.c", 'extra="ignore"'),
        ("extra", "b.d", 'extra="ignore"'),
    ]


def test_missing_keep_returns_the_templates_own_values() -> None:
    kept = jnp.full(2, 7.0)
    host = np.full(3, 8.0)
    template = {"a": A((2,), jnp.float32), "new": kept, "host": host, "n": 4, "s": "own"}
    got = tx.restore(stored(a=jnp.ones(2)), template, missing="keep")
    assert got["new"] is kept
    assert got["host"] is host
    assert (got["n"], got["s"]) == (4, "own")
    match = tx.check(stored(a=jnp.ones(2)), template, missing="keep")
    assert match.kept == ("host", "n", "new", "s")


def test_missing_keep_has_nothing_to_keep_of_a_shape() -> None:
    template = {"a": A((2,), jnp.float32), "new": A((2,), jnp.float32), "n": int}
    match = tx.check(stored(a=jnp.ones(2)), template, missing="keep")
    assert [m.fact for m in match.mismatches] == [
        "Expected a leaf, found none - at `n`;"
        " the template has no value to keep here, only a shape and dtype",
        "Expected a leaf, found none - at `new`;"
        " the template has no value to keep here, only a shape and dtype",
    ]


def test_missing_keep_moves_what_it_keeps_to_where_it_is_sent() -> None:
    template = {"a": W, "new": jnp.ones((8, 2)), "host": np.ones((8, 2), np.float32)}
    spread = NamedSharding(MESH, P("x"))
    got = tx.restore(stored(a=jnp.ones((8, 2))), template, missing="keep", shardings=spread)
    assert {x.sharding for x in got.values()} == {spread}
    template["host"][:] = 9
    assert got["host"].sum() == 16


def test_of_the_second_checkpoint_only_what_is_missing_is_read() -> None:
    other = Watched(Local(CORPUS / "orbax-0.12.8-noocdbt" / "ckpt"))
    template = {"scale": A((), jnp.float32), "zeros": A((4, 4), jnp.float32)}
    got = tx.restore(
        stored(state={"params": {"scale": jnp.float32(7)}}),
        template,
        at="state.params",
        missing=other,
    )
    assert got["scale"] == 7
    arrays = {key for key, *_ in other.reads if key.split("/")[-1][0].isdigit()}
    assert {key.split("/")[0] for key in arrays} <= {"state.params.zeros"}


def test_a_rename_that_merges_two_leaves_is_ambiguous() -> None:
    checkpoint = stored(a=jnp.ones(2), b=jnp.zeros(2))
    for rename in ({"a": "c", "b": "c"}, lambda name: "c"):
        match = tx.check(checkpoint, {"c": A((2,), jnp.float32)}, rename=rename)
        assert [m.fact for m in match.mismatches] == [
            "Expected one leaf of this name, got 2 in the checkpoint: ('c',) and ('c',) - at `c`"
        ]


def test_a_rename_may_empty_a_name_and_prefix_the_root() -> None:
    value = {"w": jnp.arange(2.0)}
    wrapped = tx.restore(stored(**value), {"m": {"w": A((2,), jnp.float32)}}, rename={"": "m"})
    assert wrapped["m"]["w"].tolist() == [0, 1]
    bare = tx.restore(stored(**value), A((2,), jnp.float32), rename={"w": ""})
    assert bare.tolist() == [0, 1]


def test_a_rename_of_part_of_a_key_names_nothing() -> None:
    checkpoint = stored(dense_10={"w": jnp.ones(2)})
    template = {"dense_10": {"w": A((2,), jnp.float32)}}
    with pytest.raises(tx.UsageError, match="got `dense_1`"):
        tx.check(checkpoint, template, rename={"dense_1": "other"})


def test_what_a_rename_function_raises_is_raised() -> None:
    def rename(name: str) -> str:
        raise LookupError(name)

    with pytest.raises(LookupError, match="w"):
        tx.check(stored(w=jnp.ones(2)), {"w": A((2,), jnp.float32)}, rename=rename)


def test_errors_survive_a_pickle() -> None:
    """Process pools send them."""
    with pytest.raises(tx.TemplateError) as caught:
        tx.restore(stored(w=jnp.ones((8, 3))), {"w": W}, shardings=NamedSharding(MESH, P("x")))
    for error in (
        caught.value,
        tx.Corrupted("what"),
        tx.UsageError("why"),
        tx.SourceError("where"),
    ):
        again = pickle.loads(pickle.dumps(error))  # noqa: S301
        assert (type(again), str(again)) == (type(error), str(error))
    assert pickle.loads(pickle.dumps(caught.value)).mismatches == caught.value.mismatches  # noqa: S301


# --- reads that fail


FLAVOURS: dict[str, str] = {
    "ocdbt": "orbax-0.12.8-default",
    "raw": "orbax-0.12.8-uncompressed",
    "files": "orbax-0.12.8-noocdbt",
    "zarr3": "orbax-0.12.8-zarr3",
    "processes": "orbax-0.12.8-multi2p",
    "old": "orbax-0.6.4-default",
}
BIG = {"big": A((128, 64), jnp.float32)}


@pytest.fixture(params=FLAVOURS)
def copy(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkpoint whose files may be spoiled."""
    shutil.copytree(CORPUS / FLAVOURS[request.param] / "ckpt", tmp_path / "ckpt")
    return tmp_path / "ckpt"


def extent_of(path: Path) -> Any:
    """Where one chunk of `big` lies: its file, and its bytes."""
    catalog = tx.open(path)
    leaf = catalog.leaves["state.params.big"]
    return catalog.locate([leaf])["state.params.big"][0].extent


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Any:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def test_a_restore_leaves_no_thread(copy: Path) -> None:
    before = threading.enumerate()
    restore(copy, BIG)
    assert threading.enumerate() == before
    with pytest.raises(tx.TemplateError):
        restore(copy, {"big": A((1,), jnp.float32)})
    assert threading.enumerate() == before


@pytest.mark.parametrize(
    "error",
    [
        tx.Corrupted("Expected a good disk, got a bad one"),
        tx.NotFound("Expected a file, found none"),
    ],
    ids=["damaged", "gone"],
)
def test_a_read_that_finds_damage_names_leaf_and_file(copy: Path, error: Exception) -> None:
    """Whatever the store says: that a file is gone does not mean that there is no checkpoint."""
    extent = extent_of(copy)

    def fault(key: str, start: int, stop: int) -> None:
        if key.endswith(extent.key) and start <= extent.start < stop:
            raise error

    before = threading.enumerate()
    with pytest.raises(tx.Corrupted) as caught:
        restore(Watched(Local(copy), fault), BIG)
    assert threading.enumerate() == before
    assert (caught.value.leaf, caught.value.file) == ("state.params.big", extent.key)


def failing(path: Path) -> Watched:
    """What `Local` raises of a disk that fails, for the file of `big`."""
    extent = extent_of(path)

    def fault(key: str, start: int, stop: int) -> None:
        if key.endswith(extent.key) and start <= extent.start < stop:
            raise tx.SourceError(f"can't read `{key}`: Input/output error")

    return Watched(Local(path), fault)


def test_a_store_that_fails_says_which_file(copy: Path) -> None:
    with pytest.raises(tx.SourceError) as caught:
        restore(failing(copy), BIG)
    assert extent_of(copy).key in str(caught.value)


def test_a_store_that_fails_says_which_leaf(copy: Path) -> None:
    """In its text, or in a note."""
    with pytest.raises(tx.SourceError) as caught:
        restore(failing(copy), BIG)
    assert "big" in str(caught.value) + "".join(getattr(caught.value, "__notes__", ()))


def test_a_file_cut_before_its_first_read(copy: Path) -> None:
    extent = extent_of(copy)
    catalog = tx.open(copy)
    os.truncate(copy / extent.key, (extent.start + extent.stop) // 2)
    for checkpoint in (catalog, copy):
        with pytest.raises(tx.Corrupted) as caught:
            restore(checkpoint, BIG)
        assert (caught.value.leaf, caught.value.file) == ("state.params.big", extent.key)


def test_a_file_that_is_gone_is_damage_not_absence(copy: Path) -> None:
    """`except FileNotFoundError: start afresh` must not throw a damaged checkpoint away."""
    extent = extent_of(copy)
    catalog = tx.open(copy)
    (copy / extent.key).unlink()
    for checkpoint in (catalog, copy):
        with pytest.raises(tx.Corrupted) as caught:
            restore(checkpoint, BIG)
        assert not isinstance(caught.value, FileNotFoundError)
        assert (caught.value.leaf, caught.value.file) == ("state.params.big", extent.key)


def test_a_template_error_comes_first_although_all_data_is_gone(copy: Path) -> None:
    """No array byte is read, nor is one looked for."""
    extent = extent_of(copy)
    (copy / extent.key).unlink()
    with pytest.raises(tx.TemplateError) as caught:
        restore(copy, {"big": A((64, 128), jnp.float32)})
    assert [(m.problem, m.name) for m in caught.value.mismatches] == [("shape", "big")]
    assert tx.check(copy, BIG, at="state.params", extra="ignore").ok


def test_a_file_that_changes_after_it_was_read_is_not_mixed(copy: Path) -> None:
    extent = extent_of(copy)
    catalog = tx.open(copy)
    first = restore(catalog, BIG)
    file = copy / extent.key
    file.write_bytes(file.read_bytes())
    os.utime(file, ns=(7, 7))
    with pytest.raises(tx.SourceError, match="changed since") as caught:
        restore(catalog, BIG)
    assert extent.key in str(caught.value)
    assert (restore(copy, BIG)["big"] == first["big"]).all()


def test_of_a_file_cut_under_a_read_the_leaf_named_is_one_that_lost_bytes(tmp_path: Path) -> None:
    """One read serves many leaves of a file; the file ends in the middle of them."""
    values = {f"w{i}": np.random.default_rng(i).random((64, 64), np.float32) for i in range(8)}
    catalog = _in_one_file(values)
    cut = 5 * 16384 + 100
    objects = {"data": catalog.source.read("data")[:cut].tobytes()}
    catalog = dataclasses.replace(catalog, source=Memory(objects))
    template = {k: A(v.shape, jnp.float32) for k, v in values.items()}
    with pytest.raises(tx.Corrupted) as caught:
        tx.restore(catalog, template)
    assert caught.value.file == "data"
    assert caught.value.leaf in ("w5", "w6", "w7")


def _in_one_file(values: dict[str, np.ndarray]) -> tx.Catalog:
    """A catalog as a format would make it, of arrays one after the other in one object."""
    data, chunks, entries = b"", {}, []
    for name, value in values.items():
        extent = Extent("data", len(data), len(data) + value.nbytes)
        chunks[name] = (Chunk(extent, tuple((0, n) for n in value.shape)),)
        entries.append(LeafEntry(name, (name,), value.shape, value.dtype))
        data += value.tobytes()
    return tx.Catalog(
        "memory://one",
        "test",
        "made by hand",
        tuple(entries),
        Memory({"data": data}),
        lambda wanted: {e.name: chunks[e.name] for e in wanted},
    )
