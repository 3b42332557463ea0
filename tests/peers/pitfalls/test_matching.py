"""What people who restore JAX checkpoints suffer from, row by row of the project's ranked list.

Each row that concerns reading through a template has a test named after it. Rows on saving, object
stores, several hosts and other frameworks' files belong to later work. The checkpoints are real
ones: saved here by Orbax, or of the corpus.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx, struct
from flax.core import freeze
from flax.training.train_state import TrainState
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

import templax as tx
from templax.sources import Local
from templax.testing import Watched

CORPUS = Path(__file__).parents[2] / "corpus"
A = jax.ShapeDtypeStruct
KEY = jax.random.key(0)


class Model(nn.Module):
    layers: int = 3

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(self.layers):
            x = nn.Dense(8)(x)
        return x


X = jnp.ones((1, 8))


@pytest.fixture
def save(tmp_path: Path) -> Any:
    def by_orbax(tree: Any, name: str = "ckpt", **options: Any) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            handler = ocp.PyTreeCheckpointHandler(**options)
            ocp.Checkpointer(handler).save(tmp_path / name, args=ocp.args.PyTreeSave(tree))
        return tmp_path / name

    return by_orbax


def found(path: Any, template: Any, **options: Any) -> list[tuple[str, str]]:
    with pytest.raises(tx.TemplateError) as caught:
        tx.restore(path, template, **options)
    return [(m.problem, m.name) for m in caught.value.mismatches]


def equal(got: Any, want: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        if isinstance(b, jax.Array) and jnp.issubdtype(b.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: A(x.shape, x.dtype), tree)


def in_one_device_process(code: str, *arguments: Any) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_pain_01_saved_sharding_is_not_replayed() -> None:
    """Saved on 8 devices, and by two processes; restored where there is one device."""
    code = (
        "import sys, jax, templax as tx\n"
        "assert jax.device_count() == 1\n"
        "for path in sys.argv[1:]:\n"
        "    catalog = tx.open(path)\n"
        "    tree = tx.restore(catalog, catalog.template())\n"
        "    assert {d for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)"
        " for d in x.devices()} == {jax.devices()[0]}\n"
        "    print(float(tree['state']['params']['big'].sum()))\n"
    )
    cases = ["orbax-0.12.8-sharded8", "orbax-0.12.8-multi2p", "orbax-0.11.10-sharded8"]
    sums = in_one_device_process(code, *(CORPUS / case / "ckpt" for case in cases)).split()
    assert len(set(sums)) == 1


def test_pain_02_no_silent_partial_load(save: Any) -> None:
    """A 3-layer checkpoint into a 4-layer model; and the other way round."""
    path = save(Model(3).init(KEY, X))
    deeper = tx.template_of(Model(4).init, KEY, X)
    assert found(path, deeper) == [
        ("missing", "params.Dense_3.bias"),
        ("missing", "params.Dense_3.kernel"),
    ]
    shallower = tx.template_of(Model(2).init, KEY, X)
    assert found(path, shallower) == [
        ("extra", "params.Dense_2.bias"),
        ("extra", "params.Dense_2.kernel"),
    ]


def test_pain_03_host_memory_stays_near_the_tree(save: Any) -> None:
    """96 MiB in 24 leaves: the peak grows by the tree and the requests in flight."""
    mib = 1 << 20
    tree = {f"w{i}": jnp.arange(mib, dtype=jnp.float32) + i for i in range(24)}
    path = save(tree)
    code = (
        "import sys, resource, jax, numpy as np, templax as tx\n"
        "template = {f'w{i}': jax.ShapeDtypeStruct((1 << 20,), np.float32) for i in range(24)}\n"
        "jax.block_until_ready(jax.device_put(np.ones(3)))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "tree = jax.block_until_ready(tx.restore(sys.argv[1], template))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    grown = int(in_one_device_process(code, path)) * 1024
    assert grown < 1.5 * 96 * mib


def test_pain_06_a_hostile_file_ends_in_an_error_not_in_the_process() -> None:
    """A zstd bomb, a shape of 2**46 elements: named, in bounded memory."""
    code = (
        "import sys, resource, templax as tx\n"
        "size = 1 << 30\n"
        "import jax; jax.devices()\n"
        "vms = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (vms + size, vms + size))\n"
        "for path in sys.argv[1:]:\n"
        "    catalog = tx.open(path)\n"
        "    try:\n"
        "        tx.restore(catalog, catalog.template())\n"
        "    except tx.Damaged as error:\n"
        "        print(error.leaf)\n"
    )
    cases = ["damaged-zstd_bomb", "damaged-huge_shape"]
    out = in_one_device_process(code, *(CORPUS / case / "ckpt" for case in cases))
    assert out.split() == ["state.params.big"] * 2


def test_pain_07_orbax_and_flax_are_not_needed() -> None:
    """A restore imports neither: what they break in each other can't break it."""
    code = (
        "import sys, templax as tx\n"
        "catalog = tx.open(sys.argv[1])\n"
        "tx.restore(catalog, catalog.template())\n"
        "print(sorted({'orbax', 'flax', 'tensorstore'} & set(sys.modules)))\n"
    )
    assert in_one_device_process(code, CORPUS / "orbax-0.12.8-default" / "ckpt").strip() == "[]"


def test_pain_10_one_function_one_return_type() -> None:
    """Every generation and layout comes back as the template's tree, through the same call."""
    template = {"w": A((8, 6), jnp.float32)}
    for case in sorted(CORPUS.glob("orbax-*")):
        if "crash" in case.name or "handmade" in case.name or "manager" in case.name:
            continue
        if case.name.endswith(("prng", "special")):
            continue
        got = tx.restore(case / "ckpt", template, at="state.params.layers.0", extra="ignore")
        assert jax.tree.structure(got) == jax.tree.structure(template)


class Pair(NamedTuple):
    left: Any
    right: Any


@struct.dataclass
class State:
    step: Any
    pair: Any


def test_pain_11_containers_are_the_templates(save: Any) -> None:
    """NamedTuples, dataclasses, FrozenDicts, tuples and optax states, never dicts and lists."""
    tree = {
        "state": State(jnp.int32(1), Pair(jnp.ones(2), (jnp.zeros(3), [jnp.ones(1)]))),
        "opt": optax.adam(0.1).init({"w": jnp.ones(2)}),
        "frozen": freeze({"a": {"b": jnp.ones(2)}}),
    }
    got = tx.restore(save(tree), abstract(tree))
    equal(got, tree)
    assert type(got["state"].pair) is Pair
    assert type(got["opt"][0]) is type(tree["opt"][0])
    assert type(got["opt"][1]) is optax.EmptyState


def test_pain_12_no_silent_cast(save: Any) -> None:
    """Float to float is announced once; anything that loses more than precision is refused."""
    path = save({"w": jnp.ones(4), "n": jnp.int32([16777217]), "m": jnp.ones(3)})
    template = {"w": A((4,), jnp.bfloat16), "n": A((1,), jnp.int32), "m": A((3,), jnp.bfloat16)}
    with pytest.warns(tx.CastWarning) as caught:
        tx.restore(path, template)
    assert len(caught) == 1
    assert "2 of 3 leaves" in str(caught[0].message)
    assert "float32 to bfloat16 (2)" in str(caught[0].message)
    template["n"] = A((1,), jnp.float32)
    assert found(path, template) == [("dtype", "n")]
    assert found(path, template, cast="exact") == [("dtype", n) for n in "mnw"]


def test_pain_13_a_subtree_is_one_argument(save: Any) -> None:
    """Parameters of a training state; only their bytes are read."""
    state = TrainState.create(
        apply_fn=print, params=Model().init(KEY, X)["params"], tx=optax.adam(0.1)
    )
    path = save(state, use_ocdbt=False)
    for directory in path.iterdir():
        if directory.name.startswith("opt_state") and directory.name.endswith("kernel"):
            for chunk in directory.glob("[0-9]*"):
                chunk.write_bytes(b"no chunk")  # would fail if it were read
    got = tx.restore(path, abstract(state.params), at="params")
    equal(got, state.params)


def test_pain_14_typed_keys_and_nnx_state(save: Any) -> None:
    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.linear = nnx.Linear(2, 3, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

    state = nnx.state(Net(nnx.Rngs(0)))
    path = save(state)
    template = nnx.state(nnx.eval_shape(lambda: Net(nnx.Rngs(1))))
    equal(tx.restore(path, template), state)
    keys = {"k": jax.random.key(1, impl="rbg")}
    other = {"k": jax.random.key(1)}
    assert found(save(keys, "keys"), other) == [("dtype", "k")]


def test_pain_17_checkpoints_of_every_generation_open() -> None:
    for case in [
        "0.2.3-default",
        "0.2.3-aggregate",
        "0.4.4-default",
        "0.5.5-noocdbt",
        "0.6.4-zarr3",
    ]:
        catalog = tx.open(CORPUS / f"orbax-{case}" / "ckpt")
        assert tx.restore(catalog, catalog.template())["state"]["params"]["big"].shape == (128, 64)


def test_pain_18_one_error_one_line_per_leaf(save: Any) -> None:
    path = save({"a": {"kernel": jnp.ones((64, 64)), "bias": jnp.ones(3)}})
    template = {"a": {"kernel": A((65, 64), jnp.float32), "bias": A((3,), jnp.int8)}}
    with pytest.raises(tx.TemplateError) as caught:
        tx.restore(path, template)
    assert str(caught.value) == (
        f"2 of 2 leaves do not match {path}\n"
        "  Expected dtype `int8`, got `float32` - at `a.bias`\n"
        "  Expected shape `(65, 64)`, got `(64, 64)` - at `a.kernel`"
    )


def test_pain_20_scan_and_unrolled_layers_are_told_apart(save: Any) -> None:
    path = save({"layers": {"w": jnp.ones((4, 2, 3))}})
    match = tx.check(path, {f"layers_{i}": {"w": A((2, 3), jnp.float32)} for i in range(4)})
    assert "the checkpoint stacks these 4 layers along axis 0 of `layers.w`" in str(match)


def test_pain_21_numpy_in_and_out(save: Any) -> None:
    """A checkpoint of numpy arrays into arrays on devices, and the other way round."""
    tree = {"w": np.arange(6, dtype=np.float32)}
    got = tx.restore(save(tree), {"w": A((6,), jnp.float32)})["w"]
    assert isinstance(got, jax.Array)
    got = tx.restore(save({"w": jnp.arange(6.0)}, "jax"), {"w": np.zeros(6, np.float32)})["w"]
    assert isinstance(got, np.ndarray)
    got[0] = 9  # it is the caller's own


def test_pain_23_renamed_keys(save: Any) -> None:
    """Linen to NNX: a mapping, checked for collisions; near names come with the mapping to pass."""
    path = save({"Dense_0": {"kernel": jnp.ones(2)}, "Dense_1": {"kernel": jnp.zeros(2)}})
    template = {
        "dense_0": {"kernel": A((2,), jnp.float32)},
        "out": {"kernel": A((2,), jnp.float32)},
    }
    rename = {"Dense_0": "dense_0", "Dense_1": "out"}
    assert tx.restore(path, template, rename=rename)["out"]["kernel"].sum() == 0
    collision = {"Dense_0": "out", "Dense_1": "out"}
    assert ("ambiguous", "out.kernel") in found(path, template, rename=collision)


def test_pain_25_int_keys_meet_their_spelling(save: Any) -> None:
    path = save({"layers": {0: jnp.ones(2), 1: jnp.zeros(2)}})
    got = tx.restore(path, {"layers": {0: A((2,), jnp.float32), 1: A((2,), jnp.float32)}})
    assert list(got["layers"]) == [0, 1]
    both = {"layers": {"0": A((2,), jnp.float32), "1": A((2,), jnp.float32)}}
    assert list(tx.restore(path, both)["layers"]) == ["0", "1"]


def test_pain_26_what_is_inside_is_seen_without_devices() -> None:
    code = (
        "import sys, templax as tx\n"
        "catalog = tx.open(sys.argv[1])\n"
        "leaf = catalog.leaves['state.params.big']\n"
        "print(leaf.shape, leaf.dtype_name, leaf.nbytes, 'jax' in sys.modules)\n"
    )
    out = in_one_device_process(code, CORPUS / "orbax-0.12.8-sharded8" / "ckpt")
    assert out.strip() == "(128, 64) float32 32768 False"


@pytest.mark.parametrize("dtype", ["int4", "float8_e4m3fn", "float8_e5m2", "bfloat16", "int8"])
def test_pain_28_narrow_dtypes_come_back_bit_for_bit(save: Any, dtype: str) -> None:
    tree = {"w": jnp.arange(-8, 8).astype(dtype)}
    got = tx.restore(save(tree), abstract(tree))
    assert got["w"].dtype == jnp.dtype(dtype)
    equal(got, tree)


def test_pain_29_zero_size_arrays_are_read(tmp_path: Path) -> None:
    """Orbax refuses to save one; a checkpoint that has one restores."""
    shutil.copytree(CORPUS / "orbax-0.12.8-noocdbt" / "ckpt", tmp_path / "ckpt")
    array = tmp_path / "ckpt" / "state.params.zeros"
    metadata = json.loads((array / ".zarray").read_text())
    (array / ".zarray").write_text(json.dumps({**metadata, "shape": [0, 4]}))
    shutil.rmtree(array / "0.0", ignore_errors=True)
    for chunk in array.glob("[0-9]*"):
        chunk.unlink()
    template = {"zeros": A((0, 4), jnp.float32)}
    got = tx.restore(tmp_path / "ckpt", template, at="state.params", extra="ignore")
    assert got["zeros"].shape == (0, 4)


def test_pain_30_nothing_is_printed_or_warned(
    save: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    tree = Model().init(KEY, X)
    path = save(tree)
    caplog.clear()
    capfd.readouterr()
    with caplog.at_level(logging.INFO), warnings.catch_warnings():
        warnings.simplefilter("error")
        tx.restore(path, abstract(tree))
    # One line for who asks for it: Python shows no INFO by default.
    (record,) = [r for r in caplog.records if r.name.startswith("templax")]
    assert (record.name, record.levelno) == ("templax", logging.INFO)
    assert capfd.readouterr() == ("", "")


def test_pain_31_shardings_of_a_template_are_one_argument(save: Any) -> None:
    """`eval_shape` loses shardings: `mesh=` and `specs=` put them into the template."""
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    tree = Model().init(KEY, X)
    template = tx.template_of(
        Model().init,
        KEY,
        X,
        mesh=mesh,
        specs=lambda name, _: PartitionSpec(None, "model") if "kernel" in name else None,
    )
    got = tx.restore(save(tree), template)
    kernel = got["params"]["Dense_0"]["kernel"]
    assert kernel.sharding == NamedSharding(mesh, PartitionSpec(None, "model"))
    assert not got["params"]["Dense_0"]["bias"].committed


def test_pain_34_the_step_is_a_leaf(save: Any) -> None:
    """No step is guessed from a directory's name: the state says which it is."""
    path = save({"step": jnp.int32(101), "w": jnp.ones(2)}, "100")
    assert tx.restore(path, {"step": int, "w": ...})["step"] == 101
    assert tx.open(path).metadata["step"] == 100


def test_pain_35_empty_containers_are_the_templates(save: Any) -> None:
    tree = {"w": jnp.ones(2), "none": None, "empty": {}, "state": optax.EmptyState()}
    got = tx.restore(save(tree), {**tree, "w": A((2,), jnp.float32)})
    assert (got["none"], got["empty"], got["state"]) == (None, {}, optax.EmptyState())


def test_pain_36_a_missing_chunk_is_an_error_not_zeros() -> None:
    with pytest.raises(tx.Damaged) as caught:
        tx.restore(
            CORPUS / "damaged-chunk_missing" / "ckpt",
            {"big": A((128, 64), jnp.float32)},
            at="state.params",
            extra="ignore",
        )
    assert (caught.value.leaf, caught.value.file) == ("state.params.big", "state.params.big/0.0")


def test_pain_37_lost_dot_files_and_lfs_pointers(tmp_path: Path) -> None:
    shutil.copytree(
        CORPUS / "orbax-0.12.8-noocdbt" / "ckpt",
        tmp_path / "ckpt",
        ignore=shutil.ignore_patterns(".*"),
    )
    with pytest.raises(tx.Damaged, match="with the files whose names start with a dot"):
        tx.open(tmp_path / "ckpt")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    shutil.copytree(CORPUS / "orbax-0.12.8-default" / "ckpt", tmp_path / "lfs")
    (tmp_path / "lfs" / "_METADATA").write_text(pointer)
    with pytest.raises(tx.UnknownFormat, match="git lfs pull"):
        tx.open(tmp_path / "lfs")


def test_pain_39_any_path_will_do(save: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative, with `~`, a `pathlib.Path`, with a slash at its end."""
    path = save({"w": jnp.ones(2)})
    monkeypatch.chdir(path.parent)
    monkeypatch.setenv("HOME", str(path.parent))
    for spelled in ("ckpt", "./ckpt/", "~/ckpt", Path("ckpt"), f"file://{path}"):
        assert tx.restore(spelled, {"w": A((2,), jnp.float32)})["w"].sum() == 2


def test_pain_40_the_only_pytree_item_is_found(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ocp.CheckpointManager(tmp_path / "run") as manager:
            items = {
                "state": ocp.args.StandardSave({"w": jnp.ones(2)}),
                "config": ocp.args.JsonSave({"lr": 0.1}),
            }
            manager.save(7, args=ocp.args.Composite(**items))
    assert tx.restore(tmp_path / "run" / "7", {"w": A((2,), jnp.float32)})["w"].sum() == 2
    with pytest.raises(tx.UnknownFormat) as caught:
        tx.open(tmp_path / "run")
    assert str(caught.value) == (
        f"{tmp_path}/run holds 1 step; the latest committed step is 7;"
        f' hint: open "{tmp_path}/run/7"'
    )


def test_pain_42_leaves_that_are_no_arrays(save: Any) -> None:
    tree = {"s": "text", "n": 3, "x": 0.5, "w": jnp.ones(2)}
    path = save(tree)
    template = {"s": str, "n": int, "x": float, "w": A((2,), jnp.float32)}
    got = tx.restore(path, template)
    assert (got["s"], got["n"], got["x"]) == ("text", 3, 0.5)
    assert found(path, {**template, "s": A((), jnp.float32)}) == [("kind", "s")]


def test_pain_43_sharded_and_unsharded_leaves_mix(save: Any) -> None:
    mesh = jax.make_mesh((8,), ("x",))
    split = NamedSharding(mesh, PartitionSpec("x"))
    tree = {"a": jax.device_put(jnp.arange(8.0), split), "b": jnp.ones(3), "c": np.ones(2)}
    template = {"a": A((8,), jnp.float32), "b": A((3,), jnp.float32), "c": np.zeros(2)}
    equal(tx.restore(save(tree), template), tree)
    template["b"] = A((3,), jnp.float32, sharding=SingleDeviceSharding(jax.devices()[3]))
    got = tx.restore(save(tree, "again"), template)
    assert got["b"].devices() == {jax.devices()[3]}


def test_pain_44_memory_kinds_are_obeyed(save: Any) -> None:
    tree = {"w": jnp.arange(8.0)}
    mesh = jax.make_mesh((8,), ("x",))
    sharding = NamedSharding(mesh, PartitionSpec("x"), memory_kind="pinned_host")
    got = tx.restore(save(tree), {"w": A((8,), jnp.float32, sharding=sharding)})["w"]
    assert got.sharding == sharding
    assert got.sharding.memory_kind == "pinned_host"


def test_pain_45_ls_ends_with_the_code_that_restores(save: Any) -> None:
    path = save(Model().init(KEY, X))
    done = subprocess.run(
        [sys.executable, "-m", "templax.cli", "ls", str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    code = done.stdout.split("To restore it:")[1].split("# or into")[0]
    scope: dict[str, Any] = {}
    exec("\n".join(line.strip() for line in code.splitlines()), scope)
    equal(scope["tree"], Model().init(KEY, X))


def test_pain_48_it_works_inside_a_running_event_loop(save: Any) -> None:
    path = save({"w": jnp.ones(2)})

    async def serve() -> Any:
        direct = tx.restore(path, {"w": A((2,), jnp.float32)})
        threaded = await asyncio.to_thread(tx.restore, path, {"w": A((2,), jnp.float32)})
        return direct, threaded

    loop = asyncio.new_event_loop()
    try:
        direct, threaded = loop.run_until_complete(serve())
    finally:
        loop.close()
    equal(direct, threaded)


def test_pain_49_a_single_array_is_a_pytree(save: Any) -> None:
    path = save({"w": jnp.arange(3.0)})
    assert tx.restore(path, A((3,), jnp.float32), at="w").tolist() == [0, 1, 2]


# --- the same pains from other sides


RECORDED = "state.params.big"


def digest_of_big(case: str) -> str:
    expected = json.loads((CORPUS / case / "expected.json").read_text())
    (digest,) = {v["sha256"] for k, v in expected.items() if k.endswith("state/params/big")}
    return digest


SHARDED = ["orbax-0.11.10-sharded8", "orbax-0.12.8-sharded8", "orbax-0.12.8-multi2p"]


@pytest.mark.parametrize("case", [*SHARDED, "orbax-0.12.8-sharded8_chunks", "orbax-0.6.4-multi2p"])
def test_pain_01_any_devices_will_do(case: str) -> None:
    """Shown by `open`, ignored by `restore`: one device, all of them, some, numpy."""
    path, at = CORPUS / case / "ckpt", RECORDED
    assert tx.open(path).leaves[RECORDED].saved_sharding is not None
    two = jax.sharding.Mesh(np.array(jax.devices()[5:7]), ("z",))
    for sharding in (
        None,
        SingleDeviceSharding(jax.devices()[7]),
        NamedSharding(two, PartitionSpec(None, "z")),
        NamedSharding(jax.make_mesh((8,), ("data",)), PartitionSpec("data")),
    ):
        got = tx.restore(path, A((128, 64), jnp.float32, sharding=sharding), at=at)
        assert hashlib.sha256(np.asarray(got).tobytes()).hexdigest() == digest_of_big(case)
        assert sharding is None or got.sharding == sharding
    host = tx.restore(path, np.zeros((128, 64), np.float32), at=at)
    assert hashlib.sha256(host.tobytes()).hexdigest() == digest_of_big(case)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_pain_01_devices_that_are_not_here_do_not_matter(save: Any, platform: str) -> None:
    """The file names accelerators of another machine."""
    mesh = jax.make_mesh((8,), ("x",))
    value = jax.device_put(jnp.arange(16.0), NamedSharding(mesh, PartitionSpec("x")))
    path = save({"w": value})
    file = path / "_sharding"
    text = file.read_text().replace('\\"id\\": ', f'\\"platform\\": \\"{platform}\\", \\"id\\": 6')
    assert platform in text
    file.write_text(text)
    assert tx.restore(path, {"w": A((16,), jnp.float32)})["w"].tolist() == list(range(16))
    equal(tx.restore(path, tx.open(path).template()), {"w": value})


def test_pain_02_both_directions_in_one_error(save: Any) -> None:
    """Missing, extra, wrong shape and wrong dtype at once, and nothing is filled in."""
    path = save(Model(3).init(KEY, X))
    template = tx.template_of(Model(2).init, KEY, X)
    template["params"]["Dense_1"] = {
        "kernel": A((8, 9), jnp.float32),
        "bias": A((8,), jnp.int32),
        "scale": A((8,), jnp.float32),
    }
    before = jax.tree.leaves(template)
    assert found(path, template) == [
        ("dtype", "params.Dense_1.bias"),
        ("shape", "params.Dense_1.kernel"),
        ("missing", "params.Dense_1.scale"),
        ("extra", "params.Dense_2.bias"),
        ("extra", "params.Dense_2.kernel"),
    ]
    assert jax.tree.leaves(template) == before


def test_pain_02_a_wrong_subtree_never_returns_the_target(save: Any) -> None:
    """Not even under the two policies that forgive most."""
    path = save(Model(1).init(KEY, X))
    target = Model(1).init(jax.random.key(1), X)["params"]
    assert {p for p, _ in found(path, target, missing="keep", extra="ignore")} == {"missing"}
    again = {"encoder": target}
    assert {p for p, _ in found(path, again, missing="keep", extra="ignore")} == {"missing"}


def test_pain_02_policies_say_what_they_did(save: Any) -> None:
    path = save({"w": jnp.ones(2), "old": jnp.ones(3)})
    match = tx.check(path, {"w": jnp.zeros(2), "new": jnp.zeros(1)}, missing="keep", extra="ignore")
    assert (match.ok, match.kept, match.ignored) == (True, ("new",), ("old",))
    assert "1 kept from the template: `new`" in str(match)
    assert "1 of the checkpoint ignored: `old`" in str(match)


def test_pain_12_integers_keep_their_last_digit(save: Any) -> None:
    """16777217 is no float32: no policy lets it become one, and a cast to bfloat16 is exact JAX."""
    path = save({"n": jnp.int32([16777217]), "w": jnp.linspace(-1e-3, 1e3, 1001)})
    for cast in ("float", "widen", "exact"):
        assert found(path, {"n": A((1,), jnp.float32), "w": ...}, cast=cast) == [("dtype", "n")]
        narrow = {"n": A((1,), jnp.int16), "w": ...}
        assert found(path, narrow, cast=cast) == [("dtype", "n")]
    with pytest.warns(tx.CastWarning, match="1 of 1 leaf"):
        got = tx.restore(path, {"n": ..., "w": A((1001,), jnp.bfloat16)})
    equal(got["w"], jnp.linspace(-1e-3, 1e3, 1001).astype(jnp.bfloat16))
    assert found(path, {"n": ..., "w": A((1001,), jnp.bfloat16)}, cast="widen") == [("dtype", "w")]
    assert found(path, {"n": ..., "w": A((1001,), jnp.int32)}) == [("dtype", "w")]


def test_pain_13_a_new_head_on_old_parameters(save: Any) -> None:
    """One call: what is there is read, what is new is computed, what is old is ignored."""
    old, new = Model(2).init(KEY, X), Model(3).init(jax.random.key(1), X)
    path = save({**old, "opt": jnp.ones(4)})
    init = tx.Recipe(Model(3).init, jax.random.key(1), X)
    template = tx.template_of(Model(3).init, KEY, X)["params"]
    got = tx.restore(path, template, at="params", missing=init, extra="ignore")
    equal(got["Dense_0"], old["params"]["Dense_0"])
    equal(got["Dense_1"], old["params"]["Dense_1"])
    equal(got["Dense_2"], new["params"]["Dense_2"])


def test_pain_13_only_the_bytes_of_the_subtree_are_read(save: Any) -> None:
    value = {k: {"w": jnp.asarray(np.random.default_rng(0).random((64, 64)))} for k in "ab"}
    path = save(value, use_ocdbt=False)
    source = Watched(Local(path))
    tx.restore(source, {"w": A((64, 64), jnp.float32)}, at="a")
    arrays = {key.split("/")[0] for key, *_ in source.reads if key.endswith("/0.0")}
    assert arrays == {"a.w"}


def test_pain_17_the_same_values_from_every_generation() -> None:
    """0.2 to 0.12: one template, one set of bits."""
    template = {"params": {"big": A((128, 64), jnp.float32), "scale": A((), jnp.float32)}}
    for case in sorted(CORPUS.glob("orbax-*")):
        if case.name.endswith(("prng", "special", "crash_merge", "aligned")):
            continue
        path = case / "ckpt"
        if case.name.endswith("manager"):
            path = path / "20" / "state"
        got = tx.restore(path, template, at="state", extra="ignore")
        digest = hashlib.sha256(np.asarray(got["params"]["big"]).tobytes()).hexdigest()
        assert digest == digest_of_big(case.name)


def test_pain_18_a_thousand_wrong_leaves_are_one_screen(save: Any) -> None:
    path = save({"l": {f"w{i:03}": jnp.ones(1) for i in range(200)}})
    with pytest.raises(tx.TemplateError) as caught:
        tx.restore(path, {"l": {f"w{i:03}": A((2,), jnp.float32) for i in range(200)}})
    lines = str(caught.value).splitlines()
    assert len(caught.value.mismatches) == 200
    assert lines[0] == f"200 of 200 leaves do not match {path}"
    assert lines[1] == "  Expected shape `(2,)`, got `(1,)` - at `l.w000`"
    assert lines[21:] == [
        "  and 180 more: 180 shape all under `l` (`error.mismatches` has them all)"
    ]


def test_pain_20_layers_stacked_in_the_template(save: Any) -> None:
    path = save({f"layers_{i}": {"w": jnp.ones((2, 3))} for i in range(4)})
    match = tx.check(path, {"layers": {"w": A((4, 2, 3), jnp.float32)}})
    (hint,) = {m.hint for m in match.mismatches}
    assert hint == (
        "the checkpoint holds `layers.w` as 4 layers, `layers_0.w` to `layers_3.w`:"
        " ask for the layers and stack the results along axis 0"
    )


def test_pain_23_near_names_come_with_the_mapping_that_works(save: Any) -> None:
    value = {"Dense_0": {"kernel": jnp.ones(2)}, "LayerNorm_0": {"scale": jnp.zeros(3)}}
    path = save(value)
    template = {
        "dense_0": {"kernel": A((2,), jnp.float32)},
        "layer_norm_0": {"scale": A((3,), jnp.float32)},
    }
    match = tx.check(path, template)
    assert match.rename == {"Dense_0": "dense_0", "LayerNorm_0": "layer_norm_0"}
    assert 'rename={"Dense_0": "dense_0", "LayerNorm_0": "layer_norm_0"}' in str(match)
    got = tx.restore(path, template, rename=match.rename)
    equal(got["layer_norm_0"], value["LayerNorm_0"])


def test_pain_25_two_spellings_of_one_key_are_named(save: Any) -> None:
    """Two leaves of a template with one name: which of them is meant is not guessed."""
    path = save({"layers": {0: jnp.ones(2)}})

    twice = {"layers": {0: A((2,), jnp.float32)}, "layers.0": A((2,), jnp.float32)}
    assert found(path, twice) == [("ambiguous", "layers.0")]


def test_pain_25_a_dict_with_both_spellings_is_refused_in_words(save: Any) -> None:
    """JAX can't sort such a dict, so that no template is made of it."""
    path = save({"layers": {0: jnp.ones(2)}})
    leaf = A((2,), jnp.float32)
    with pytest.raises(tx.TemplaxError):
        tx.restore(path, {"layers": {0: leaf, "0": leaf}})


@pytest.mark.parametrize("fails", [False, True])
def test_pain_30_nothing_is_logged_by_anyone(
    save: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], fails: bool
) -> None:
    """No "event loop is closed", no absl flood: a failure is one exception."""
    path = save({"w": jnp.arange(5000.0)}, use_ocdbt=False)
    if fails:
        (path / "w" / "0").write_bytes(b"")
    caplog.clear()
    capfd.readouterr()
    with caplog.at_level(logging.INFO + 1, logger="templax"):
        if fails:
            with pytest.raises(tx.Damaged):
                tx.restore(path, {"w": A((5000,), jnp.float32)})
        else:
            tx.restore(path, {"w": A((5000,), jnp.float32)})
        gc.collect()
    assert [r for r in caplog.records if not r.name.startswith("jax")] == []
    assert capfd.readouterr() == ("", "")


def test_pain_31_leaves_without_a_sharding_are_counted_by_nobody_but_seen(save: Any) -> None:
    """`nnx.eval_shape` under a mesh keeps shardings of that mesh, abstract: they are obeyed."""
    mesh = jax.make_mesh((8,), ("m",))
    path = save({"w": jnp.arange(16.0)})
    template = {
        "w": A((16,), jnp.float32, sharding=NamedSharding(mesh.abstract_mesh, PartitionSpec("m")))
    }
    with jax.set_mesh(mesh):
        got = tx.restore(path, template)
    assert got["w"].sharding == NamedSharding(mesh, PartitionSpec("m"))
    with pytest.raises(tx.TemplateError, match=r"with jax\.set_mesh\(mesh\):"):
        tx.restore(path, template)


def test_pain_35_leaves_where_the_checkpoint_has_nothing(save: Any) -> None:
    """A template with a leaf where None or {} was saved says what is there instead."""
    path = save({"w": jnp.ones(2), "none": None, "empty": {}})
    template = {"w": ..., "none": A((2,), jnp.float32), "empty": A((2,), jnp.float32)}
    with pytest.raises(tx.TemplateError) as caught:
        tx.restore(path, template)
    assert [m.fact for m in caught.value.mismatches] == [
        "Expected a leaf, found `Dict` - at `empty`",
        "Expected a leaf, found `None` - at `none`",
    ]
    assert found(path, {"w": None, "none": None}) == [("extra", "w")]


def test_pain_40_several_items_are_listed_with_how_to_open_each(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ocp.CheckpointManager(tmp_path / "run") as manager:
            items = {k: ocp.args.StandardSave({"w": jnp.ones(2)}) for k in ("state", "ema")}
            manager.save(7, args=ocp.args.Composite(**items))
    step = tmp_path / "run" / "7"
    with pytest.raises(tx.UnknownFormat) as caught:
        tx.restore(step, {"w": A((2,), jnp.float32)})
    for item in ("state", "ema"):
        assert item in str(caught.value)
        assert tx.restore(step / item, {"w": A((2,), jnp.float32)})["w"].sum() == 2


def test_pain_42_what_can_not_be_restored_is_named(save: Any) -> None:
    path = save({"rng": {"state": jnp.ones(2), "name": "PCG64"}})
    for leaf in (np.zeros(2, object), np.zeros(2, "U3"), np.zeros(2, "M8[s]")):
        problems = found(path, {"rng": {"state": leaf, "name": str}})
        assert {name for _, name in problems} == {"rng.state"}
        assert "kind" in {problem for problem, _ in problems}
    assert found(path, {"rng": {"state": ..., "name": int}}) == [("kind", "rng.name")]
    got = tx.restore(path, {"rng": {"state": ..., "name": "MT19937"}})
    assert got["rng"]["name"] == "PCG64"


def test_pain_48_many_requests_at_once(save: Any) -> None:
    """A server restores in several tasks and threads of one loop."""
    value = {"w": jnp.arange(5000.0)}
    path = save(value)

    async def serve() -> list[Any]:
        calls = [asyncio.to_thread(tx.restore, path, abstract(value)) for _ in range(8)]
        return await asyncio.gather(*calls)

    loop = asyncio.new_event_loop()
    try:
        results = loop.run_until_complete(serve())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()
    for got in results:
        equal(got, value)
    assert not [t for t in threading.enumerate() if t.name.startswith("templax")]


def test_pain_49_an_array_saved_alone(save: Any) -> None:
    for name, options in (("a", {}), ("b", {"use_ocdbt": False}), ("c", {"use_zarr3": True})):
        path = save(jnp.arange(3.0), name, **options)
        assert tx.restore(path, A((3,), jnp.float32)).tolist() == [0, 1, 2]
        assert found(path, A((4,), jnp.float32)) == [("shape", "")]
