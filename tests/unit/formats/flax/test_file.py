"""Files of Flax as checkpoints: what is in them, what is read of them, and directories of them."""

from __future__ import annotations

import functools
import pickle
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np
import optax
import pytest
from flax import config
from flax.training import checkpoints
from flax.training.train_state import TrainState
from hypothesis import given
from hypothesis import strategies as st
from jax.experimental.array_serialization import serialization as jax_serialization

import templax as tx
from helpers import abstract, count_examples, run_cli
from templax.formats.flax import scan
from templax.formats.flax.scan import holds_flax_arrays
from templax.formats.registry import open_catalog
from templax.storage import Memory

TREE = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, np.float32)}


class Remote(Memory):
    """A store that maps nothing, and counts the bytes that are read."""

    maps = False
    nbytes = 0

    def view(self, key: str, start: int, stop: int) -> memoryview:
        raise AssertionError("nothing is mapped")

    def read(self, *args: Any, **options: Any) -> memoryview:
        found = super().read(*args, **options)
        self.nbytes += len(found)
        return found


def assert_equal(got: Any, want: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def write(path: Path, tree: Any) -> Path:
    path.write_bytes(flax.serialization.to_bytes(tree))
    return path


@pytest.mark.slow
def test_a_train_state_is_restored_as_from_bytes_does(tmp_path: Path) -> None:
    """Tuples, NamedTuples and dataclasses are maps in the file; the template says what they are."""
    model = nn.Dense(3)
    params = model.init(jax.random.key(0), jnp.ones((1, 2)))["params"]
    state = TrainState.create(apply_fn=model.apply, params=params, tx=optax.adamw(1e-3))
    state = state.apply_gradients(grads=jax.tree.map(jnp.ones_like, params))
    path = write(tmp_path / "state.msgpack", state)
    got = tx.restore(path, jax.eval_shape(lambda: state))
    want = flax.serialization.from_bytes(state, path.read_bytes())
    assert_equal(got, jax.tree.map(jnp.asarray, want))


def test_lists_are_restored_whatever_the_file_calls_them(tmp_path: Path) -> None:
    tree = {"layers": [{"w": np.full(2, i, np.int32)} for i in range(11)], "pair": (1, 2.5)}
    assert_equal(tx.restore(write(tmp_path / "a", tree), abstract(tree)), tree)
    (tmp_path / "b").write_bytes(flax.serialization.msgpack_serialize({"layers": tree["layers"]}))
    rest = {"layers": tree["layers"]}
    assert_equal(tx.restore(tmp_path / "b", abstract(rest)), rest)


def test_python_values_are_restored_as_such(tmp_path: Path) -> None:
    tree = {"i": 7, "f": 0.5, "b": True, "none": None, "empty": {}, "w": np.ones(2, np.float16)}
    path = write(tmp_path / "state", tree)
    assert tx.open(path).empties == {("none",): "None", ("empty",): "Dict"}
    got = tx.restore(path, tree | {"w": abstract(tree["w"])})
    assert {k: got[k] for k in "ifb"} == {k: tree[k] for k in "ifb"}
    assert (got["none"], got["empty"]) == (None, {})


@pytest.mark.parametrize(
    "tree",
    [
        np.arange(3, dtype=ml_dtypes.bfloat16),
        np.float32(2),
        {"c": 1 + 2j},
        {"s": np.float32(1)},
        {"a": b"\0" * 9, **TREE},
        {"a": {"inner": b"x" * 200_000}, **TREE},
        {"a": {"text": "x" * 200_000}, **TREE},
        {"a": {str(i): i for i in range(3000)}, **TREE},
        {"a": {str(i): "x" * 3000 for i in range(300)}, **TREE},
        {"e": np.zeros((0, 3)), "z": np.zeros((), np.int8)},
        {"w": np.zeros((1,) * 32, np.int8)},
    ],
    ids=lambda tree: str(tree)[:30],
)
def test_a_file_is_recognised_whatever_its_first_entry(tree: Any) -> None:
    data = flax.serialization.msgpack_serialize(tree)
    catalog = open_catalog(Memory({"": data}))
    assert catalog.format == "flax"
    remote = open_catalog(Remote({"": data}))
    assert remote.entries == catalog.entries
    got = tx.restore(remote, remote.template())
    assert_equal(got, tx.restore(catalog, catalog.template()))


@pytest.mark.parametrize(
    "data",
    [
        msgpack.packb({"w": [1, 2, 3], "s": "x"}),
        msgpack.packb({"w": msgpack.ExtType(1, b"\x93data"), "s": "x"}),
        msgpack.packb({"w": msgpack.ExtType(5, msgpack.packb([[1], "int8", b"a"]))}),
        msgpack.packb({"a": {str(i): i for i in range(70_000)}, "w": b"\x01\x93\x91\x01\xa4int8"}),
        b"\x82\xa1a\xc1\xa1b\xc7",
        b"\xde",
        b"\xdf\xff\xff\xff\xff",
        b"\xc7",
        b"",
    ],
    ids=lambda data: data[:12].hex(),
)
def test_other_msgpack_is_not_taken_for_flax(data: bytes) -> None:
    assert not holds_flax_arrays(Memory({"f": data}), "f", len(data))
    with pytest.raises(tx.UnknownFormat):
        open_catalog(Memory({"": data}))


def test_only_what_is_between_large_arrays_is_read_from_a_store_that_does_not_map() -> None:
    large = np.arange(1 << 20, dtype=np.int32)
    tree = {"b": large, "l": [np.full(3, i, np.int32) for i in range(9)], "t": "x" * 200_000}
    tree |= {"z": large, "n": 3}
    source = Remote({"": flax.serialization.to_bytes(tree)})
    catalog = open_catalog(source)
    assert source.nbytes < 1 << 20
    got = tx.restore(catalog, abstract(tree) | {"t": ..., "n": 0})
    assert got["n"] == 3
    assert_equal({k: got[k] for k in "blz"}, {k: tree[k] for k in "blz"})


def test_small_arrays_are_read_in_ever_larger_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = {str(i): np.full(1000, i) for i in range(500)}
    data = flax.serialization.to_bytes(tree)
    source, reads = Remote({"": data}), list[int]()
    real = source.read
    monkeypatch.setattr(source, "read", lambda *a, **k: reads.append(0) or real(*a, **k))
    catalog = open_catalog(source)
    assert len(catalog.entries) == 500
    assert len(reads) < 15
    assert source.nbytes < len(data) + (1 << 18)


def test_without_anonymous_maps_the_whole_file_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "_allocate", lambda size: None)
    catalog = open_catalog(Remote({"": flax.serialization.to_bytes(TREE)}))
    assert_equal(tx.restore(catalog, abstract(TREE)), TREE)


@count_examples(150)
@given(data=st.data())
def test_stores_that_map_and_those_that_do_not_read_the_same(data: st.DataObject) -> None:
    changed = bytearray(flax.serialization.to_bytes({"a": {"s": "text", "i": 1 << 40}, **TREE}))
    for _ in range(data.draw(st.integers(0, 2))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    found = []
    for kind in (Memory, Remote):
        try:
            found.append(open_catalog(kind({"": bytes(changed)})).entries)
        except tx.TemplaxError as error:
            found.append(str(error))
    assert found[0] == found[1]


def test_chunked_arrays_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 40)
    tree = {"w": np.arange(35, dtype=np.float32).reshape(7, 5), "b": np.arange(9, dtype=np.uint8)}
    path = tmp_path / "state"
    path.write_bytes(flax.serialization.msgpack_serialize(tree))
    catalog = tx.open(path)
    assert len(catalog.locate([catalog.leaves["w"]])["w"]) > 1
    assert_equal(tx.restore(path, abstract(tree)), tree)
    mesh = jax.make_mesh((jax.device_count(),), ("x",))
    columns = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    assert_equal(tx.restore(path, abstract(tree, columns)), tree)


@pytest.mark.slow
def test_a_file_of_very_many_tiny_leaves_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "state", {str(i): np.int8(1) for i in range(60_000)})
    size = path.stat().st_size
    with pytest.raises(tx.Unsupported) as caught:
        tx.open(path)
    maximum = (1 << 15) + size // 64
    assert str(caught.value) == f"templax reads {maximum} leaves in {size} bytes, got 60000"


@pytest.mark.parametrize("first", ["vocabulary", "params"])
def test_a_file_may_have_many_numbers_before_and_after_its_arrays(
    tmp_path: Path, first: str
) -> None:
    params = {"w": np.ones((1000, 1000), np.float32)}
    vocabulary = {f"token{i}": i for i in range(40_000)}
    trees = {"vocabulary": vocabulary, "params": params}
    path = write(tmp_path / "state", {first: trees.pop(first), **trees})
    assert len(tx.open(path).leaves) == 40_001


def test_a_file_may_have_a_long_list_of_losses(tmp_path: Path) -> None:
    losses = [float(i) for i in range(20_000)]
    path = write(tmp_path / "state", {"w": np.ones(100, np.float32), "losses": losses})
    assert len(tx.open(path).leaves) == 20_001


def test_a_plan_can_be_pickled(tmp_path: Path) -> None:
    path = write(tmp_path / "state", {"step": 3, **TREE})
    plan = tx.plan(path, {"step": 0, **abstract(TREE)})
    assert str(pickle.loads(pickle.dumps(plan))) == str(plan)  # noqa: S301


def test_a_cut_file_is_damaged(tmp_path: Path) -> None:
    path = write(tmp_path / "state", TREE)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(tx.Corrupted, match="The msgpack is unreadable: Input data was truncated"):
        tx.open(path)


def test_the_file_of_an_unfinished_save_is_not_opened_as_a_checkpoint(tmp_path: Path) -> None:
    path = write(tmp_path / "checkpoint_tmp", TREE)
    with pytest.raises(tx.Uncommitted) as caught:
        tx.open(path)
    assert str(caught.value) == (
        f"{path} is not a committed checkpoint: `checkpoint_tmp` is the temporary file of a save of"
        f' Flax that never finished; hint: to read it all the same, restore from tx.open("{path}",'
        ' uncommitted="allow")'
    )
    assert_equal(tx.restore(tx.open(path, uncommitted="allow"), abstract(TREE)), TREE)
    with pytest.raises(tx.UnknownFormat) as unknown:
        tx.open(tmp_path)
    assert unknown.value.hint is None


@contextmanager
def saving(*, orbax: bool) -> Generator[None]:
    """Whether `flax.training.checkpoints` saves by Orbax, as it does by default."""
    before = config.flax_use_orbax_checkpointing
    config.update("flax_use_orbax_checkpointing", orbax)
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        yield
    config.update("flax_use_orbax_checkpointing", before)


@pytest.fixture(params=[False, True], ids=["msgpack", "orbax"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, bool]:
    """A directory that `flax.training.checkpoints` wrote, and whether Orbax did."""
    with saving(orbax=request.param):
        for step in (9, 10, 100):
            tree = {"w": jnp.full(3, float(step)), "n": {"step": step}}
            checkpoints.save_checkpoint(tmp_path, tree, step, keep=10)
    return tmp_path, request.param


def test_checkpoints_of_flax_are_restored(run: tuple[Path, bool]) -> None:
    path, orbax = run
    template = {"w": jax.ShapeDtypeStruct((3,), jnp.float32), "n": {"step": 0}}
    for step in (9, 10, 100):
        got = tx.restore(path / f"checkpoint_{step}", template)
        assert got["n"]["step"] == step
        assert_equal(got["w"], jnp.full(3, float(step)))
    assert tx.open(path / "checkpoint_10").format == ("orbax" if orbax else "flax")


def test_a_directory_of_checkpoints_of_flax_names_them(run: tuple[Path, bool]) -> None:
    path, orbax = run
    calls = (tx.open, functools.partial(tx.restore, template={"w": ...}))
    for call in calls:
        with pytest.raises(tx.UnknownFormat) as caught:
            call(path)
        assert caught.value.hint == f'open "{path}/checkpoint_100"'
        if not orbax:
            assert caught.value.what == (
                f"Expected a checkpoint that templax reads at {path}, got a directory of"
                " checkpoints, the highest number first: `checkpoint_100`, `checkpoint_10`,"
                " `checkpoint_9`"
            )
    listed = run_cli("steps", path)
    assert listed.exit_code == (0 if orbax else 2)
    assert tx.open(path / "checkpoint_100").metadata.get("step") == (None if orbax else 100)


def test_numbers_may_be_fractions_and_negative(tmp_path: Path) -> None:
    for step in (-2, 0.5, 0.25, 3, -10):
        write(tmp_path / f"checkpoint_{step}", TREE)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(tx.UnknownFormat) as caught:
        tx.open(tmp_path)
    names = [f"`checkpoint_{step}`" for step in (3, 0.5, 0.25, -2, -10)]
    assert caught.value.what.endswith(f"the highest number first: {', '.join(names)}")


def test_a_run_begins_with_the_values_of_a_file_that_is_given(tmp_path: Path) -> None:
    write(tmp_path / "checkpoint_10", TREE)
    got = tx.Manager(tmp_path).restore(abstract(TREE), missing=tmp_path / "checkpoint_10")
    assert_equal(got, TREE)


def test_arrays_of_several_processes_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All arrays are treated as if other processes had parts of them."""
    monkeypatch.setattr(checkpoints, "_is_multiprocess_array", lambda x: isinstance(x, jax.Array))
    manager = jax_serialization.GlobalAsyncCheckpointManager()
    tree = {"a": {"b": jnp.ones((2, 3))}, "w": jnp.ones(3), "n": np.ones(2)}
    with saving(orbax=False):
        checkpoints.save_checkpoint_multiprocess(tmp_path, tree, 7, gda_manager=manager)
        manager.wait_until_finished()
    assert (tmp_path / "checkpoint_7_gda" / "w" / ".zarray").exists()
    template = abstract(tree) | {"n": np.zeros(2)}
    assert_equal(tx.restore(tmp_path / "checkpoint_7", template), tree)
    with pytest.raises(tx.UnknownFormat) as caught:
        tx.open(tmp_path / "checkpoint_7_gda")
    assert str(caught.value) == (
        f"{tmp_path}/checkpoint_7_gda holds arrays of the file `checkpoint_7` beside it, which"
        f' names them; hint: open "{tmp_path}/checkpoint_7"'
    )


def test_references_to_arrays_of_orbax_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "checkpoint", {"w": np.ones(3), "v": "PLACEHOLDER://v"})
    with pytest.raises(tx.Unsupported) as caught:
        tx.open(path)
    assert str(caught.value) == (
        "Expected the array in the file, Orbax stored it in the directory of the file:"
        " `PLACEHOLDER://v` - at `v`"
    )


def test_two_leaves_that_only_their_paths_tell_apart_are_not_mixed_up(tmp_path: Path) -> None:
    tree = {"a.b": np.ones(2, np.float32), "a": {"b": np.full(2, 2, np.float32)}}
    (tmp_path / "state.msgpack").write_bytes(flax.serialization.to_bytes(tree))
    template = {"a.b": np.zeros(2, np.float32), "c": {"b": np.zeros(2, np.float32)}}
    with pytest.raises(tx.TemplaxError, match=r"a\.b"):
        tx.restore(tmp_path / "state.msgpack", template, rename={"a": "c"})
    other = {"a.b": np.ones(2, np.float32), "c": {"b": np.full(2, 2, np.float32)}}
    (tmp_path / "other.msgpack").write_bytes(flax.serialization.to_bytes(other))
    found = tx.diff(tmp_path / "state.msgpack", tmp_path / "other.msgpack", rename={"a": "c"})
    assert {leaf.differences for leaf in found.leaves} == {("ambiguous",)}


def test_an_extension_of_a_number_with_a_shape_is_an_array(tmp_path: Path) -> None:
    payload = msgpack.packb(((3,), "int8", b"abc"))
    (tmp_path / "state").write_bytes(msgpack.packb({"a": msgpack.ExtType(3, payload)}))
    (entry,) = tx.open(tmp_path / "state").entries
    assert (entry.kind, entry.shape) == ("array", (3,))


def test_what_a_split_array_has_besides_its_pieces_is_not_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 8)
    data = flax.serialization.msgpack_serialize({"a": np.arange(8, dtype=np.int32)})
    tree = msgpack.unpackb(data, ext_hook=msgpack.ExtType)
    tree["a"]["extra"] = 1
    (tmp_path / "state").write_bytes(msgpack.packb(tree))
    with pytest.raises(tx.Corrupted, match="unknown field `extra` - at `a`"):
        tx.open(tmp_path / "state")


def test_arrays_of_other_dtypes_are_listed_and_the_others_restored(tmp_path: Path) -> None:
    tree = {
        "names": np.array(["a", "bc"]),
        "w": np.arange(3.0),
        "list": [np.zeros(2, "M8[s]"), np.ones(2)],
        "lost": np.zeros(2, np.longdouble),
    }
    path = write(tmp_path / "state.msgpack", flax.serialization.to_state_dict(tree))
    catalog = tx.open(path)
    assert catalog.unread == {
        "names": "templax does not read dtype `str64`",
        "list.0": "templax does not read dtype `datetime64[s]`",
        "lost": "templax does not read dtype `float128`",
    }
    got = tx.restore(path, catalog.template())
    assert got["w"].tolist() == [0, 1, 2]
    assert got["names"] is got["list"]["0"] is ...
    with pytest.raises(tx.TemplateError, match=r"does not read - at `names`; .* dtype `str64`"):
        tx.restore(path, {"names": np.zeros(2), "w": np.zeros(3)}, extra="ignore")
    done = tx.convert(path, tmp_path / "copy.npz")
    assert "what templax does not read (3: `names`, " in str(done)

    write(tmp_path / "only", {"names": np.array(["a"])})
    with pytest.raises(tx.Unsupported, match="dtype `str32` - at `names`"):
        tx.open(tmp_path / "only")


def test_a_split_array_of_another_dtype_is_listed(tmp_path: Path) -> None:
    chunks = {"0": np.array(["ab"]), "1": np.array(["cd"])}
    split = {"__msgpack_chunked_array__": True, "shape": {"0": 2}, "chunks": chunks}
    path = write(tmp_path / "state", {"w": np.ones(2), "names": split})
    assert tx.open(path).unread == {"names": "templax does not read dtype `str64`"}


def test_a_file_of_very_many_reasons_says_that_it_has_them(tmp_path: Path) -> None:
    tree = {f"n{i}": np.array(["a" * i]) for i in range(1, 100)} | {"w": np.ones(2)}
    unread = tx.open(write(tmp_path / "state", tree)).unread
    assert unread["n1"] == "templax does not read dtype `str32`"
    assert unread["n99"] == "templax does not read one of the msgpack extensions"
    assert len(unread) == 99
