"""What `save` writes comes back as it was; what can't be saved is said before a file is made."""

from __future__ import annotations

import enum
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import templax as tx
from helpers import CORPUS
from templax._core import chunk_grid
from templax._core.dtypes import DTYPES
from templax._save import item, snapshot, writer
from templax._save import job as job_module
from templax.formats.orbax import checksum_index

SAVED_BY_ORBAX = [
    path
    for path in sorted(CORPUS.glob("orbax-*"))
    if (path / "ckpt").is_dir() and (path / "ckpt" / "_CHECKPOINT_METADATA").exists()
]
COMPRESSIONS = [None, "zstd", "zstd:7"]


def _values(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> np.ndarray:
    dtype = np.dtype(dtype)
    raw = np.random.default_rng(seed).integers(0, 256, (*shape, dtype.itemsize), np.uint8)
    if dtype.kind == "b":
        raw &= 1
    if "int4" in dtype.name or "float4" in dtype.name:
        raw &= 15
    if "int2" in dtype.name:
        raw &= 3
    if "float6" in dtype.name:
        raw &= 63
    return raw.view(dtype).reshape(shape)


class State(NamedTuple):
    """As most optimizers have, who keep nothing."""


@pytest.fixture
def tree() -> dict[str, Any]:
    return {
        "w": jnp.arange(600, dtype=jnp.float32).reshape(30, 20),
        "layers": [{"b": jnp.ones(5, jnp.bfloat16)}, (np.arange(6).reshape(2, 3), np.float16(3))],
        "numbers": {"int": -7, "float": 0.1, "bool": True, "complex": 1j, "text": "hi\nthere"},
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(1, impl="rbg"), 3),
        "int4": jnp.arange(-8, 8).astype(jnp.int4),
        "fp8": jnp.float8_e4m3fn(2.0),
        "nothing": np.zeros((0, 3), np.int8),
        "empty": {"none": None, "dict": {}, "list": [], "tuple": (), "state": State()},
        "a.b/c d": np.array("2026-11-24", "datetime64[D]").astype(np.int64),
        "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        "strided": np.arange(20, dtype=np.int16)[::3],
        "big endian": np.arange(5, dtype=">i8"),
        "large": np.arange(1_300_000, dtype=np.int32).reshape(1300, 1000),
    }


def _same(got: Any, want: Any) -> None:
    """Same structure, and each leaf of the same type, dtype and bytes."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
        if isinstance(b, jax.Array) and jnp.issubdtype(b.dtype, jax.dtypes.prng_key):
            assert a.dtype == b.dtype, path
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        if isinstance(b, (jax.Array, np.ndarray, np.generic)):
            np.testing.assert_array_equal(a, b, strict=True, err_msg=str(path))
            assert isinstance(a, jax.Array) == isinstance(b, jax.Array), path
        else:
            assert type(a) is type(b), path
            assert a == b, path


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("index", [True, False])
def test_every_kind_of_leaf_comes_back(
    tree: Any, tmp_path: Path, compression: str | None, wait: bool, index: bool
) -> None:
    saved = tx.save(tmp_path / "ckpt", tree, compression=compression, wait=wait).wait()
    if not index:  # as who else reads it would
        (tmp_path / "ckpt" / checksum_index.INDEX_FILE).unlink()
        # Orbax has no complex scalar: it is an array to whoever does not read the index.
        tree["numbers"]["complex"] = np.asarray(1j)
    restored = tx.restore(tmp_path / "ckpt", tree, verify="required" if index else "available")
    _same(restored, tree)
    if index:
        assert tx.fingerprint(restored) == saved.fingerprint == tx.fingerprint(tree)


def test_a_cpu_has_the_name_that_every_orbax_finds(tmp_path: Path) -> None:
    tx.save(tmp_path / "ckpt", {"w": jax.device_put(1.0, jax.devices()[3])})
    (sharding,) = json.loads((tmp_path / "ckpt" / "_sharding").read_text()).values()
    assert json.loads(sharding)["device_str"] == "TFRT_CPU_3"


def test_the_index_and_orbaxs_files_say_the_same(tree: Any, tmp_path: Path) -> None:
    tx.save(tmp_path / "ckpt", tree, metadata={"run": 3})
    ours = tx.open(tmp_path / "ckpt")
    (tmp_path / "ckpt" / checksum_index.INDEX_FILE).unlink()
    theirs = tx.open(tmp_path / "ckpt")
    assert ours.evidence != theirs.evidence

    def facts(catalog: tx.Catalog) -> list[Any]:
        return [
            (e.path, e.shape, e.dtype, e.key_impl, e.value, e.saved_sharding)
            for e in catalog.entries
        ]

    assert facts(ours) == facts(theirs)
    # Orbax 0.6 would read nothing of a tree with an empty type that it doesn't know.
    names = {"Tuple": "List", "NamedTuple": "None"}
    assert theirs.empties == {path: names.get(e, e) for path, e in ours.empties.items()}
    assert set(names) < set(ours.empties.values())
    assert ours.metadata == theirs.metadata
    assert ours.metadata["custom_metadata"] == {"run": 3}
    a, b = ours.locate(ours.entries), theirs.locate(theirs.entries)
    for name, chunks in a.items():
        places = {(c.extent.key, c.extent.start) for c in chunks}
        assert places <= {(c.extent.key, c.extent.start) for c in b[name]}, name
        assert all(c.checked and c.sums for c in chunks), name


@pytest.mark.parametrize("name", sorted(DTYPES))
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_every_dtype_comes_back_bit_for_bit(
    name: str, compression: str | None, tmp_path: Path
) -> None:
    array = _values((7, 5), DTYPES[name])
    saved = tx.save(tmp_path / "ckpt", {"x": array}, compression=compression)
    restored = tx.restore(tmp_path / "ckpt", {"x": np.empty_like(array)})["x"]
    assert restored.tobytes() == array.tobytes()
    assert tx.fingerprint({"x": restored}) == saved.fingerprint


@pytest.mark.parametrize("dtype", ["int4", "uint4", "int2", "float4_e2m1fn"])
def test_bits_that_do_not_count_are_not_saved(dtype: str, tmp_path: Path) -> None:
    """Elements of less than a byte take one each; what is in its upper bits is an accident."""
    dirty = np.arange(256, dtype=np.uint8).view(np.dtype(getattr(ml_dtypes, dtype)))
    clean = (np.arange(256) & (3 if "2" in dtype[-1] else 15)).astype(np.uint8).view(dirty.dtype)
    tx.save(tmp_path / "ckpt", {"x": dirty})
    restored = tx.restore(tmp_path / "ckpt", {"x": dirty})["x"]
    assert restored.tobytes() == clean.tobytes()
    assert tx.fingerprint({"x": dirty}) == tx.fingerprint({"x": clean})


def test_a_recorded_fingerprint_is_that_of_an_opened_checkpoint(tree: Any, tmp_path: Path) -> None:
    saved = tx.save(tmp_path / "ckpt", tree)
    assert tx.fingerprint(tx.open(tmp_path / "ckpt")) == saved.fingerprint
    for path in (tmp_path / "ckpt", str(tmp_path / "ckpt")):
        with pytest.raises(tx.UsageError, match="got a path"):
            tx.fingerprint(path)
    (tmp_path / "ckpt" / checksum_index.INDEX_FILE).unlink()
    with pytest.raises(tx.UsageError, match="that templax saved"):
        tx.fingerprint(tx.open(tmp_path / "ckpt"))


def test_a_tree_may_be_one_bare_leaf_or_nothing(tmp_path: Path) -> None:
    tx.save(tmp_path / "leaf", jnp.arange(3))
    np.testing.assert_array_equal(tx.restore(tmp_path / "leaf", jnp.zeros(3, int)), [0, 1, 2])
    saved = tx.save(tmp_path / "nothing", {})
    assert saved.leaves == 0
    assert tx.open(tmp_path / "nothing").empties == {(): "Dict"}


def test_functions_come_from_the_template(tmp_path: Path) -> None:
    """As they do when a whole model is the template: they have no data."""
    model = {"w": jnp.ones(3), "act": jax.nn.relu, "norm": np.float32}
    assert tx.save(tmp_path / "ckpt", model).leaves == 1
    restored = tx.restore(tmp_path / "ckpt", {"w": jnp.zeros(3), "act": jax.nn.relu})
    assert restored["act"] is jax.nn.relu


# --- what can't be saved


@jax.jit
def _doubled(x: jax.Array) -> jax.Array:
    return x * 2


def _donated() -> jax.Array:
    x = jnp.ones(4)
    jax.jit(lambda x: x * 2, donate_argnums=0)(x)
    if not x.is_deleted():
        x.delete()
    return x


BAD = {
    "abstract": (lambda: jax.ShapeDtypeStruct((2,), jnp.float32), "abstract"),
    "skipped": (lambda: ..., "never restored"),
    "objects": (lambda: np.array([object()]), "dtype object"),
    "text": (lambda: np.array(["a"]), "dtype <U1"),
    "longdouble": (lambda: np.zeros(2, np.longdouble), "dtype"),
    "huge": (lambda: 2**70, "int64 can't hold"),
    "bytes": (lambda: b"raw", "np.frombuffer"),
    "set": (lambda: {1, 2}, "builtins.set"),
    "donated": (_donated, "donated"),
    "surrogate": (lambda: "\udc80", "Unicode"),
    "masked": (lambda: np.ma.masked_array([1.0, 2.0], [0, 1]), "mask would be lost"),
}


def test_all_leaves_that_cannot_be_saved_are_named_and_no_file_is_made(tmp_path: Path) -> None:
    tree = {"fine": jnp.ones(3)} | {name: make() for name, (make, _) in BAD.items()}
    with pytest.raises(tx.SaveError) as caught:
        tx.save(tmp_path / "ckpt", tree)
    for name, (_, why) in BAD.items():
        assert f"`{name}`" in str(caught.value)
        assert why in str(caught.value)
    assert "fine" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_traced_array_is_refused_by_name(tmp_path: Path) -> None:
    @jax.jit
    def step(x: jax.Array) -> jax.Array:
        tx.save(tmp_path / "ckpt", {"x": x})
        return x

    with pytest.raises(tx.SaveError, match=r"`x` is traced: save outside of jax\.jit"):
        step(jnp.ones(2))


def test_two_leaves_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(tx.SaveError, match=r"two leaves are named `a\.b`"):
        tx.save(tmp_path / "ckpt", {"a": {"b": jnp.ones(1)}, "a.b": jnp.ones(2)})


@pytest.mark.parametrize(
    "wrong",
    [
        {"format": "npz"},
        {"compression": "gzip"},
        {"compression": "zstd:0"},
        {"compression": "zstd:23"},
        {"compression": True},
        {"metadata": {"a": {1, 2}}},
        {"memory": 0},
        {"threads": -1},
    ],
)
def test_an_argument_that_means_nothing_is_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(tx.UsageError):
        tx.save(tmp_path / "ckpt", {"w": jnp.ones(3)}, **wrong)
    assert os.listdir(tmp_path) == []


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    tx.save(tmp_path / "ckpt", {"w": jnp.zeros(3)})
    with pytest.raises(tx.AlreadyExists, match="ckpt"):
        tx.save(tmp_path / "ckpt", {"w": jnp.ones(3)})
    assert tx.restore(tmp_path / "ckpt", {"w": jnp.ones(3)})["w"].sum() == 0
    tx.save(tmp_path / "ckpt", {"w": jnp.ones(3)}, overwrite=True)
    assert tx.restore(tmp_path / "ckpt", {"w": jnp.ones(3)})["w"].sum() == 3
    assert os.listdir(tmp_path) == ["ckpt"]


COLLECTIONS = {
    "one": ["cks/ema"],
    "two": ["cks/ema", "cks/raw"],
    "inside": ["cks", "cks/ema"],
    "run inside": ["cks", "cks/run/10"],
}


@pytest.mark.parametrize("what", sorted(COLLECTIONS))
def test_overwrite_replaces_no_directory_of_checkpoints(what: str, tmp_path: Path) -> None:
    """Nor a checkpoint that has something of others in it, however that came there."""
    tx.save(tmp_path / "one", {"w": jnp.ones(3)})
    for place in COLLECTIONS[what]:
        shutil.copytree(tmp_path / "one", tmp_path / place, dirs_exist_ok=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(tx.SaveError, match="replaces one checkpoint, found"):
        tx.save(tmp_path / "cks", {"w": jnp.ones(3)}, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_overwrite_replaces_no_checkpoint_with_a_note_in_it(tmp_path: Path) -> None:
    tx.save(tmp_path / "ckpt", {"w": jnp.ones(3)})
    (tmp_path / "ckpt" / "notes.txt").write_text("...")
    with pytest.raises(tx.SaveError, match=r"found `notes\.txt` in it"):
        tx.save(tmp_path / "ckpt", {"w": jnp.ones(3)}, overwrite=True)


@pytest.mark.parametrize("place", ["ema", "d/deeper"])
def test_nothing_is_saved_inside_of_a_checkpoint(place: str, tmp_path: Path) -> None:
    tx.save(tmp_path / "ckpt", {"w": jnp.ones(3)})
    with pytest.raises(tx.SaveError, match="got one inside"):
        tx.save(tmp_path / "ckpt" / place, {"w": jnp.ones(3)})


@pytest.mark.parametrize("case", SAVED_BY_ORBAX, ids=lambda case: case.name)
def test_overwrite_replaces_what_any_orbax_saved(case: Path, tmp_path: Path) -> None:
    found = sorted((case / "ckpt").iterdir())
    steps = [path for path in found if path.name.isdigit()]
    source = steps[0] if steps else case / "ckpt"
    shutil.copytree(source, tmp_path / "7")
    tx.save(tmp_path / "7", {"w": jnp.ones(3)}, overwrite=True)
    assert list(tx.open(tmp_path / "7").leaves) == ["w"]


@pytest.mark.parametrize("what", ["files", "steps"])
def test_overwrite_replaces_nothing_but_a_checkpoint(what: str, tmp_path: Path) -> None:
    """Not the run that it is in, and not a home directory."""
    (tmp_path / "run").mkdir()
    if what == "files":
        (tmp_path / "run" / "thesis.tex").write_text("...")
    else:
        tx.save(tmp_path / "run" / "10", {"w": jnp.ones(3)})
        tx.save(tmp_path / "run" / "20", {"w": jnp.ones(3)})
    before = sorted(tmp_path.rglob("*"))
    found = "other files" if what == "files" else "2 steps"
    with pytest.raises(tx.SaveError, match=f"replaces one checkpoint, found {found}"):
        tx.save(tmp_path / "run", {"w": jnp.ones(3)}, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


# --- in the background


def test_values_are_safe_once_a_background_save_returns(tmp_path: Path) -> None:
    host = np.arange(3_000_000, dtype=np.float32)
    small = np.arange(10)
    tree = {"host": host, "small": small, "device": jnp.arange(2_000_000), "n": 5}
    want = jax.tree.map(np.array, tree)
    saved = tx.save(tmp_path / "ckpt", tree, wait=False)
    host[:] = -1
    small[:] = -1
    tree["device"].delete()
    saved.wait()
    restored = tx.restore(tmp_path / "ckpt", want)
    jax.tree.map(np.testing.assert_array_equal, restored, want)


@pytest.mark.parametrize("sharded", [False, True])
def test_donated_arrays_are_saved_as_they_were(
    sharded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While they are being written: a step would overwrite them in place, were they not held."""
    go = threading.Event()
    real = writer.Writer._write_chunks

    def late(*args: Any) -> None:
        assert go.wait(60)
        real(*args)

    monkeypatch.setattr(writer.Writer, "_write_chunks", late)
    values = jnp.arange(1_000_000, dtype=jnp.float32).reshape(8, -1)
    if sharded:
        mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
        spec = jax.sharding.PartitionSpec("x")
        values = jax.device_put(values, jax.sharding.NamedSharding(mesh, spec))
    step = jax.jit(lambda x: -x - 1, donate_argnums=0)
    fresh = step(values + 0)  # without a save: donated memory is used again
    place = fresh.addressable_data(0).unsafe_buffer_pointer()
    assert step(fresh).addressable_data(0).unsafe_buffer_pointer() == place
    want = np.array(values)
    saved = tx.save(tmp_path / "ckpt", {"w": values}, wait=False)
    for _ in range(3):
        values = jax.block_until_ready(step(values))
    go.set()
    np.testing.assert_array_equal(tx.restore(saved.wait().path, {"w": want})["w"], want)


def _blocked(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Saves wait before they are committed until the event is set."""
    go = threading.Event()
    describe = job_module.Job._write_small_files

    def wait(job: Any, files: Any) -> Any:
        assert go.wait(60)
        return describe(job, files)

    monkeypatch.setattr(job_module.Job, "_write_small_files", wait)
    return go


def test_a_handle_tells_how_far_a_save_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = _blocked(monkeypatch)
    saved = tx.save(tmp_path / "ckpt", {"w": jnp.ones(3)}, wait=False)
    assert not saved.done()
    assert "not finished" in repr(saved)
    with pytest.raises(TimeoutError, match="still being saved"):
        saved.wait(0.01)
    with pytest.raises(tx.UsageError, match="wait"):
        _ = saved.nbytes
    assert not (tmp_path / "ckpt").exists()
    go.set()
    assert saved.wait() is saved
    assert saved.done()
    files = [f for f in (tmp_path / "ckpt").rglob("*") if f.is_file()]
    assert saved.nbytes == sum(f.stat().st_size for f in files)
    assert saved.seconds >= saved.stages["write"] >= 0


def test_the_next_save_waits_for_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = _blocked(monkeypatch)
    first = tx.save(tmp_path / "1", {"w": jnp.ones(3)}, wait=False)
    threading.Timer(0.2, go.set).start()
    tx.save(tmp_path / "2", {"w": jnp.ones(3)})
    assert first.done()


def test_a_failure_nobody_waited_for_is_raised_at_the_next_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(job: Any, files: Any) -> None:
        raise tx.SaveError("No space is left", file="x")

    with monkeypatch.context() as patch:
        patch.setattr(job_module.Job, "_write_small_files", full)
        saved = tx.save(tmp_path / "1", {"w": jnp.ones(3)}, wait=False)
        saved._outcome.wait_for_end()
    with pytest.raises(tx.SaveError, match="An earlier save failed: No space is left"):
        tx.save(tmp_path / "2", {"w": jnp.ones(3)})
    assert os.listdir(tmp_path) == []
    tx.save(tmp_path / "2", {"w": jnp.ones(3)})  # it is raised once
    with pytest.raises(tx.SaveError, match="No space"):
        saved.wait()


def test_a_failure_that_was_waited_for_is_not_raised_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(job_module.Job, "_write_small_files", lambda job, files: 1 / 0)
        saved = tx.save(tmp_path / "1", {"w": jnp.ones(3)}, wait=False)
        with pytest.raises(ZeroDivisionError):
            saved.wait()
    tx.save(tmp_path / "2", {"w": jnp.ones(3)})


def _python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_end_of_the_process_waits_for_a_save(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np, templax as tx\n"
        "tx.save(sys.argv[1], {'w': np.ones(20_000_000, np.float32)}, wait=False, threads=4)\n"
    )
    done = _python(code, str(tmp_path / "ckpt"))
    assert done.returncode == 0, done.stderr
    assert tx.open(tmp_path / "ckpt").nbytes == 80_000_000


def test_the_end_of_the_process_reports_what_failed(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np, templax as tx\n"
        "from templax._save import job as job_module\n"
        "def full(job, files): raise tx.SaveError('No space is left')\n"
        "job_module.Job._write_small_files = full\n"
        "tx.save(sys.argv[1], {'w': np.ones(3)}, wait=False)\n"
    )
    done = _python(code, str(tmp_path / "ckpt"))
    assert "ckpt was NOT saved: No space is left" in done.stderr
    assert "Traceback" not in done.stderr


def test_progress_goes_up_to_all_bytes(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    tree = {f"w{i}": np.zeros(10_000_000, np.uint8) for i in range(4)}
    tx.save(tmp_path / "ckpt", tree, on_progress=lambda *at: seen.append(at), compression="zstd")
    assert seen == sorted(seen)
    assert seen[-1] == (40_000_000, 40_000_000)
    assert {total for _, total in seen} == {40_000_000}


def test_what_progress_raises_stops_the_save(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        tx.save(tmp_path / "ckpt", {"w": np.zeros(1_000_000)}, on_progress=stop)
    assert os.listdir(tmp_path) == []
    assert threading.active_count() == before


def test_no_more_is_fetched_from_devices_than_memory_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CPU arrays that pretend to be elsewhere: at most `memory` bytes of them at a time."""
    lock, held, most = threading.Lock(), 0, 0
    leaf_bytes = 1_000_000

    class Fetched(np.ndarray):
        def __del__(self) -> None:
            nonlocal held
            if self.base is None:
                with lock:
                    held -= leaf_bytes

    def fetch(value: np.ndarray) -> np.ndarray:
        nonlocal held, most
        with lock:
            held += leaf_bytes
            most = max(most, held)
        copy = np.ndarray.__new__(Fetched, value.shape, value.dtype)
        copy[...] = value
        return copy

    def leaves_of(tree: Any) -> Any:
        leaves, empties = snapshot.collect_leaves(tree)
        for leaf in leaves:
            ((box, own),) = leaf.pieces
            leaf.pieces = ((box, lambda own=own: fetch(own())),)
            leaf.transient = True
        return leaves, empties

    monkeypatch.setattr(item, "collect_leaves", leaves_of)
    tree = {f"w{i:02}": np.full(leaf_bytes, i, np.uint8) for i in range(20)}
    tx.save(tmp_path / "ckpt", tree, memory=3 * leaf_bytes, threads=8)
    assert leaf_bytes <= most <= 3 * leaf_bytes
    jax.tree.map(np.testing.assert_array_equal, tx.restore(tmp_path / "ckpt", tree), tree)


def test_a_leaf_larger_than_the_memory_is_fetched_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = {"a": np.arange(2_000_000), "b": np.arange(3)}
    tx.save(tmp_path / "ckpt", tree, memory=1, threads=2)
    jax.tree.map(np.testing.assert_array_equal, tx.restore(tmp_path / "ckpt", tree), tree)


def test_jax_keeps_no_copy_that_a_save_made() -> None:
    """Else a save would leave the tree in host memory, too, as long as its arrays live."""
    packed = jnp.arange(8).astype(jnp.int4)  # of which JAX has no view
    leaves, _ = snapshot.collect_leaves({"x": packed})
    assert [int(v) for v in leaves[0].pieces[0][1]()] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert packed._npy_value is None  # pyright: ignore


def test_a_signal_handler_may_save_while_the_program_does(tmp_path: Path) -> None:
    """As those do that are told that the machine is taken away."""
    code = (
        "import signal, sys, numpy as np, templax as tx\n"
        "from templax._save import job as job_module\n"
        "def handler(*_):\n"
        "    tx.save(sys.argv[1] + '/emergency', {'w': np.ones(3)})\n"
        "    print('saved', flush=True)\n"
        "signal.signal(signal.SIGTERM, handler)\n"
        "real = job_module.copy_values\n"
        "def copied(*args):\n"
        "    if not copied.done:\n"
        "        copied.done = True\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "    real(*args)\n"
        "copied.done = False\n"
        "job_module.copy_values = copied\n"
        "tx.save(sys.argv[1] + '/usual', {'w': np.ones(3)}, wait=False).wait()\n"
    )
    done = _python(code, str(tmp_path))
    assert done.stdout == "saved\n", done.stderr
    assert sorted(os.listdir(tmp_path)) == ["emergency", "usual"]


def test_no_save_begins_inside_of_another(tmp_path: Path) -> None:
    def again(done: int, total: int) -> None:
        tx.save(tmp_path / "inner", {"w": np.ones(3)})

    saved = tx.save(tmp_path / "outer", {"w": np.ones(3)}, wait=False, on_progress=again)
    with pytest.raises(tx.UsageError, match="inside of another"):
        saved.wait(60)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("url", [None, 5, ["a"]])
def test_what_is_no_path_is_refused(url: Any) -> None:
    with pytest.raises(tx.UsageError, match="Expected a path"):
        tx.save(url, {"w": np.ones(3)})


def test_a_string_of_an_enum_is_its_value(tmp_path: Path) -> None:
    class Colour(str, enum.Enum):  # noqa: UP042  (whose str() is another)
        RED = "red"

    tx.save(tmp_path / "ckpt", {"c": Colour.RED})
    assert tx.restore(tmp_path / "ckpt", {"c": ""}) == {"c": "red"}


def test_more_text_than_a_restore_would_read_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_module, "MAX_METADATA", 10_000)
    with pytest.raises(tx.SaveError, match="which a restore would refuse"):
        tx.save(tmp_path / "ckpt", {"s": "a" * 10_001})
    assert os.listdir(tmp_path) == []


# --- the layout


def test_a_leaf_is_one_range_at_a_multiple_of_64_and_maps(tree: Any, tmp_path: Path) -> None:
    tx.save(tmp_path / "ckpt", tree)
    catalog = tx.open(tmp_path / "ckpt")
    for name, chunks in catalog.locate(catalog.entries).items():
        leaf = catalog.leaves[name]
        if leaf.nbytes and leaf.kind != "string":
            (chunk,) = chunks
            assert chunk.extent.start % 64 == 0
            assert chunk.extent.nbytes == leaf.nbytes
            assert chunk.box == tuple((0, n) for n in leaf.shape)
            assert chunk.block <= chunk_grid.CHUNK_BYTES
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    template = {"large": jax.ShapeDtypeStruct((1300, 1000), np.int32, sharding=here)}
    plan = tx.plan(catalog, template, extra="ignore", mapped=True)
    assert plan.mapped_bytes == plan.placed_bytes == 5_200_000


def test_many_small_leaves_are_few_files(tmp_path: Path) -> None:
    tx.save(tmp_path / "ckpt", {f"w{i}": np.full(100, i, np.float32) for i in range(3000)})
    assert sum(f.is_file() for f in (tmp_path / "ckpt").rglob("*")) <= 8
    catalog = tx.open(tmp_path / "ckpt")
    assert tx.plan(catalog, catalog.template()).requests <= 2


def test_compression_makes_it_smaller(tmp_path: Path) -> None:
    tree = {"w": jnp.zeros((1000, 1000))}
    raw = tx.save(tmp_path / "raw", tree).nbytes
    small = tx.save(tmp_path / "zstd", tree, compression="zstd").nbytes
    assert small < raw / 100
    (chunk,) = (catalog := tx.open(tmp_path / "zstd")).locate(catalog.entries)["w"]
    assert chunk.codecs == ("zstd",)
