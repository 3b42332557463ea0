"""Restores onto shardings that span processes: typed keys, kept values, recipes, casts.

In each job process 1 begins when process 0 has ended its restores, which they make alone: nothing
in them waits for another process.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

import templax as tx

SETUP = """
import json
import ml_dtypes
import jax.numpy as jnp
import numpy as np
import templax as tx
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P, SingleDeviceSharding

devices = np.array(jax.devices())
flat, back = Mesh(devices, ("x",)), Mesh(devices[::-1], ("x",))
grid = Mesh(devices.reshape(count, 2), ("a", "b"))
first, last = Mesh(devices[:2], ("x",)), Mesh(devices[-2:], ("x",))
places = {
    "replicated": NamedSharding(flat, P()),
    "split": NamedSharding(flat, P("x")),
    "split back": NamedSharding(back, P("x")),
    "by process": NamedSharding(grid, P("a")),
    "boxes": NamedSharding(grid, P("b", "a")),
    "columns": NamedSharding(grid, P(None, "b")),
    "on process 0": NamedSharding(first, P("x")),
    "on process 1": NamedSharding(last, P()),
    "one device of 0": SingleDeviceSharding(devices[1]),
    "one device of 1": SingleDeviceSharding(devices[-1]),
    "host memory": NamedSharding(flat, P("x"), memory_kind="pinned_host"),
    "other memory": NamedSharding(flat, P(), memory_kind="unpinned_host"),
    "host memory of 1": SingleDeviceSharding(devices[-1], memory_kind="pinned_host"),
    "unconstrained": NamedSharding(flat, P(P.UNCONSTRAINED)),
}

def is_key(x):
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)

def data_of(x):
    return np.asarray(jax.random.key_data(x) if is_key(x) else x)

def assert_holds(got, want, sharding):
    "`got` has the sharding asked for and, bit for bit, the part of `want` on each device."
    assert isinstance(got, jax.Array) and got.committed
    assert got.sharding.is_equivalent_to(sharding, got.ndim), (got.sharding, sharding)
    assert got.sharding.memory_kind == (sharding.memory_kind or "device")
    assert (got.shape, got.dtype) == (want.shape, want.dtype)
    assert {s.device for s in got.addressable_shards} == sharding.addressable_devices
    data = data_of(want)
    for shard in got.addressable_shards:
        piece = data_of(shard.data)
        assert piece.dtype == data.dtype
        assert piece.tobytes() == np.ascontiguousarray(data[shard.index]).tobytes()

def make(values, sharding):
    data = data_of(values)
    pieces = []
    for device, index in sharding.addressable_devices_indices_map(values.shape).items():
        piece = jax.device_put(data if index is None else data[index], device)
        if is_key(values):
            piece = jax.random.wrap_key_data(piece, impl=str(jax.random.key_impl(values)))
        pieces.append(piece)
    return jax.make_array_from_single_device_arrays(
        values.shape, sharding, pieces, dtype=values.dtype
    )

def fits(sharding, shape):
    try:
        sharding.check_compatible_aval(shape)
        sharding.shard_shape(shape)
    except ValueError:
        return False
    return True

def restore_alone(*args, **options):
    return tx.restore(*args, **options, alone=True)

def in_turn(call):
    from jax._src import distributed
    wait = distributed.global_state.client.wait_at_barrier
    if index > 0:
        wait("process 0 has ended", 100_000)
    try:
        call()
    finally:
        if index == 0:
            wait("process 0 has ended", 100_000)

def set_mesh(kind):
    kinds = (getattr(jax.sharding.AxisType, kind),)
    jax.set_mesh(jax.make_mesh((2 * count,), ("x",), axis_types=kinds))

keys = {
    "key": jax.random.key(3),
    "keys": jax.random.split(jax.random.key(4), 8),
    "table": jax.random.split(jax.random.key(5, impl="rbg"), (4, 8)),
    "none": jax.random.split(jax.random.key(6), (0, 4)),
}
"""


def _parse_output(outputs: list[Any]) -> list[Any]:
    for output in outputs:
        assert output.code == 0, output.err
    return [json.loads(output.out.splitlines()[-1]) for output in outputs]


def _make_keys() -> dict[str, Any]:
    return {
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(4), 8),
        "table": jax.random.split(jax.random.key(5, impl="rbg"), (4, 8)),
        "none": jax.random.split(jax.random.key(6), (0, 4)),
    }


KEYS = """
done = []
def restore():
    for where, sharding in places.items():
        template = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
            for name, x in keys.items()
            if fits(sharding, x.shape)
        }
        assert tx.check(args[0], template, extra="ignore").ok
        got = restore_alone(args[0], template, extra="ignore")
        for name, x in got.items():
            assert_holds(x, keys[name], sharding)
            done.append([where, name])
    # A large array of keys in batches, box by box.
    many = jax.ShapeDtypeStruct((4096,), keys["key"].dtype, sharding=places["split"])
    got = restore_alone(args[0], {"many": many}, at="more", extra="ignore", memory=4096)["many"]
    assert_holds(got, jax.random.split(jax.random.key(7), 4096), places["split"])
    plan = tx.plan(args[0], {"many": many}, at="more", extra="ignore")
    done.append(plan.placed_bytes)
    done.append(plan.read_bytes)
in_turn(restore)
# All processes save what they have restored.
tree = {name: make(x, places["replicated"]) for name, x in keys.items()}
tree["keys"] = make(keys["keys"], places["split back"])
tree["table"] = make(keys["table"], places["boxes"])
tree["key"] = make(keys["key"], places["one device of 1"])
tx.save(args[1], tree)
print(json.dumps(done))
"""


@pytest.mark.slow
def test_typed_keys_restore_onto_every_sharding(run: Any, tmp_path: Path) -> None:
    keys = _make_keys()
    many = jax.random.split(jax.random.key(7), 4096)
    tx.save(tmp_path / "ckpt", keys | {"more": {"many": many}})
    paths = str(tmp_path / "ckpt"), str(tmp_path / "again")
    said = _parse_output(run(2, SETUP + KEYS, *paths))
    for *done, placed, read in said:
        assert len(done) > 30
        assert placed == 4096 * 8 // 2
        assert read == placed  # each process reads the boxes of its own devices, and no others
    again = tx.restore(tmp_path / "again", keys, verify="required")
    assert tx.fingerprint(again) == tx.fingerprint(keys)


KEEP = """
values = keys | {
    "f32": np.arange(64, dtype=np.float32).reshape(8, 8),
    "int4": np.arange(64).reshape(8, 8).astype(ml_dtypes.int4),
    "number": np.float32(2.5),
    "flags": np.arange(8) % 3 == 0,
    "local": jnp.arange(8.0) * 1.5,
    "none": np.zeros((0, 4), np.float32),
}
weak = jnp.asarray(0.1)
assert weak.weak_type
replicated = {name: make(values[name], places["replicated"]) for name in ("f32", "keys")}
split = {name: make(values[name], places["split"]) for name in ("f32", "keys")}
done = []

def keep(leaf, sharding=None):
    shardings = {"new": sharding, "step": None}
    template = {"new": leaf, "step": 0}
    options = dict(shardings=shardings, missing={"new": "keep"})
    found = tx.check(args[0], template, **options)
    if not found.ok:
        try:
            restore_alone(args[0], template, **options)
        except tx.TemplateError as error:
            return str(error)
    got = restore_alone(args[0], template, **options)["new"]
    assert tx.last_restore().kept == ("new",)
    return got

def keep_all():
    for where, sharding in places.items():
        for name, x in values.items():
            if fits(sharding, x.shape):
                assert_holds(keep(x, sharding), x, sharding)
                done.append([where, name])
        for name, x in replicated.items():  # each process has all of it
            if fits(sharding, x.shape):
                assert_holds(keep(x, sharding), values[name], sharding)
        for name, x in split.items():  # each box stays on its process
            if where in ("split", "host memory"):
                assert_holds(keep(x, sharding), values[name], sharding)
    got = keep(weak, places["replicated"])
    assert got.weak_type
    assert_holds(got, weak, places["replicated"])
    assert keep(split["f32"]) is split["f32"]
    # The caller's memory is not shared.
    mine = values["f32"].copy()
    got = keep(mine, places["split"])
    mine[:] = 0
    assert_holds(got, values["f32"], places["split"])
    done.append([
        keep(x, places[to])
        for x, to in ((split["f32"], "replicated"), (split["keys"], "split back"))
    ])
in_turn(keep_all)
print(json.dumps(done))
"""


def test_kept_values_go_where_the_template_says(run: Any, tmp_path: Path) -> None:
    tx.save(tmp_path / "ckpt", {"step": 3})
    said = _parse_output(run(2, SETUP + KEEP, str(tmp_path / "ckpt")))
    for *done, refused in said:
        assert len(done) > 60
        for text in refused:
            assert "at `new`" in text
            assert (
                "the template's value is on other processes, and a restore moves nothing between"
                " them: keep it in its own sharding" in text
            )
    assert said[0][-1] == said[1][-1]


RECIPES = """
key = make(keys["key"], places["replicated"])
def init(key):
    a, b = jax.random.split(key)
    return {"w": jax.random.normal(a, (8, 8)), "b": jnp.zeros(8), "rng": b, "scale": 2.0}

def sharded(key):
    tree = init(key)
    return tree | {"w": jax.lax.with_sharding_constraint(tree["w"], places["split"])}

want = init(keys["key"])
template = {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=places[to])
    for (name, x), to in zip(want.items(), ("boxes", "split", "replicated"), strict=False)
} | {"scale": float}
refused = []

def refuse(recipe):
    texts = set()
    for call in (tx.check, tx.plan, restore_alone):
        try:
            call(recipe, {"w": template["w"]}, extra="ignore")
        except tx.UsageError as error:
            texts.add(str(error))
    (text,) = texts
    refused.append(text)

def restore():
    values_needed = lambda key: init(key) if int(jax.random.key_data(key)[-1]) else {}
    for mesh in (None, "Auto", "Explicit"):
        if mesh is not None:
            set_mesh(mesh)
        for recipe in (
            tx.Recipe(init, keys["key"]),
            tx.Recipe(init, key),
            tx.Recipe(jax.jit(init), key),
            tx.Recipe(values_needed, key),
        )[: 1 if mesh == "Explicit" else 4]:
            assert tx.check(recipe, template).ok
            got = restore_alone(recipe, template)
            for name in ("w", "b", "rng"):
                assert_holds(got[name], want[name], template[name].sharding)
            got = restore_alone(args[0], template, missing=recipe)
            assert_holds(got["rng"], want["rng"], template["rng"].sharding)
            assert got["b"].sharding == places["split"]
    set_mesh("Auto")
    w = make(np.ones((8, 8), np.float32), places["split"])
    refuse(tx.Recipe(sharded, keys["key"]))
    refuse(tx.Recipe(jax.jit(sharded), keys["key"]))
    only_w = jax.jit(lambda key: {"w": init(key)["w"]}, out_shardings=places["split"])
    refuse(tx.Recipe(only_w, keys["key"]))
    refuse(tx.Recipe(lambda: {"w": w * 2}))
    refuse(tx.Recipe(lambda key, w: {"w": w}, key, w))
    # What does not reach the result, such as a constraint on activations, does not matter.
    got = restore_alone(tx.Recipe(lambda key: sharded(key) and init(key), key), template)
    assert_holds(got["w"], want["w"], template["w"].sharding)
in_turn(restore)
print(json.dumps(refused))
"""


@pytest.mark.slow
def test_what_a_recipe_computes_is_placed_without_the_others(run: Any, tmp_path: Path) -> None:
    tx.save(tmp_path / "ckpt", {"b": np.ones(8, np.float32)})
    said = _parse_output(run(2, SETUP + RECIPES, str(tmp_path / "ckpt")))
    assert said[0] == said[1]
    for text in said[0][:3]:
        assert text.startswith("Expected a function that each process can compute alone, Recipe(")
        assert text.endswith(
            "hint: leave that out, since the template's shardings place what the function returns"
        )
    for text in said[0][3:]:
        assert text.startswith("Expected a function of arrays of which each process has all, Rec")


CASTS = """
import warnings
warnings.simplefilter("ignore", tx.CastWarning)
stored = {
    "f32": np.linspace(-3, 3, 64, dtype=np.float32).reshape(8, 8),
    "bf16": np.arange(64).reshape(8, 8).astype(ml_dtypes.bfloat16),
    "f64": np.linspace(0, 1, 64).reshape(8, 8),
    "int4": (np.arange(64).reshape(8, 8) % 8).astype(ml_dtypes.int4),
}
dtypes = {
    "f32": [np.float32, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.float16],
    "bf16": [ml_dtypes.bfloat16, np.float32, ml_dtypes.float8_e5m2],
    "f64": [np.float32, ml_dtypes.bfloat16],
    "int4": [ml_dtypes.int4, np.int8],
}
done = []

def restore():
    for mesh in (None, "Auto", "Explicit"):
        if mesh is not None:
            set_mesh(mesh)
        for where, sharding in places.items():
            template, want = {}, {}
            for name, x in stored.items():
                for dtype in dtypes[name]:
                    for weak in (False, True):
                        label = f"{np.dtype(dtype).name} {weak}"
                        template.setdefault(name, {})[label] = jax.ShapeDtypeStruct(
                            (8, 8), dtype, sharding=sharding, weak_type=weak
                        )
                        with jax.default_device(jax.local_devices()[0]):
                            cast = np.asarray(jax.device_put(x).astype(dtype))
                        want.setdefault(name, {})[label] = cast
            for label in range(8):
                some = {
                    n: list(t.values())[label] for n, t in template.items() if len(t) > label
                }
                got = restore_alone(args[0], some, extra="ignore")
                for name, x in got.items():
                    assert_holds(x, list(want[name].values())[label], sharding)
                    assert x.weak_type == some[name].weak_type
                    done.append(name)
            # A Python number, and a NumPy scalar as template leaf, as arrays.
            if fits(sharding, ()):
                one = jax.ShapeDtypeStruct((), np.int32, sharding=sharding)
                got = restore_alone(args[0], {"n": one}, extra="ignore")["n"]
                assert_holds(got, np.int32(7), sharding)
                got = restore_alone(args[0], {"n": np.int64(0)}, extra="ignore")["n"]
                assert isinstance(got, np.int64)
                got = restore_alone(
                    args[0], {"s": np.float32(0)}, extra="ignore", shardings=sharding
                )["s"]
                assert_holds(got, np.float32(2.5), sharding)
in_turn(restore)
print(json.dumps(len(done)))
"""


@pytest.mark.slow
def test_casts_and_weak_types_need_no_other_process(run: Any, tmp_path: Path) -> None:
    tree = {
        "f32": np.linspace(-3, 3, 64, dtype=np.float32).reshape(8, 8),
        "bf16": np.arange(64).reshape(8, 8).astype(ml_dtypes.bfloat16),
        "f64": np.linspace(0, 1, 64).reshape(8, 8),
        "int4": (np.arange(64).reshape(8, 8) % 8).astype(ml_dtypes.int4),
        "n": 7,
        "s": np.float32(2.5),
    }
    tx.save(tmp_path / "ckpt", tree)
    said = _parse_output(run(2, SETUP + CASTS, str(tmp_path / "ckpt"), timeout_s=200.0))
    assert said[0] == said[1] > 300


CHECKED = """
from jax.experimental.layout import Format, Layout

manual = jax.make_mesh((2 * count,), ("x",), axis_types=(jax.sharding.AxisType.Manual,))
explicit = jax.make_mesh((2 * count,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
places |= {
    "manual": NamedSharding(manual, P()),
    "explicit": NamedSharding(explicit, P("x")),
    "reduced": NamedSharding(explicit, P(reduced={"x"})),
}
for where in ("replicated", "split", "one device of 1"):
    for order in ((0, 1), (1, 0), (0,), ()):
        places[f"{where} {order}"] = Format(Layout(order), places[where])
    places[f"{where} tiled"] = Format(Layout((0, 1), tiling=((8, 128),)), places[where])
values = {
    "f32": np.arange(64, dtype=np.float32).reshape(8, 8),
    "int4": np.arange(64).reshape(8, 8).astype(ml_dtypes.int4),
    "flags": np.arange(8) % 3 == 0,
    "number": np.float32(2.5),
} | keys
counts = {"ok": 0, "refused": 0}

def check():
    for where, place in places.items():
        sharding = place.sharding if isinstance(place, Format) else place
        for name, x in values.items():
            for template, options in (
                ({name: jax.ShapeDtypeStruct(x.shape, x.dtype)}, {"shardings": place}),
                ({"flags": bool, "new": x}, {"shardings": {"flags": None, "new": place}}),
            ):
                options |= {"extra": "ignore", "missing": {"*new": "keep", "f*": "error"}}
                if "new" in template:
                    template["flags"] = np.zeros(8, bool)
                else:
                    options.pop("missing")
                ok = tx.check(args[0], template, **options).ok
                try:
                    (*_, got) = restore_alone(args[0], template, **options).values()
                except tx.TemplateError:
                    assert not ok, (where, name)
                    counts["refused"] += 1
                else:
                    assert ok, (where, name)
                    assert_holds(got, x, sharding)
                    counts["ok"] += 1
in_turn(check)
print(json.dumps(counts))
"""


@pytest.mark.slow
def test_check_refuses_what_a_restore_refuses(run: Any, tmp_path: Path) -> None:
    tree = {
        "f32": np.arange(64, dtype=np.float32).reshape(8, 8),
        "int4": np.arange(64).reshape(8, 8).astype(ml_dtypes.int4),
        "flags": np.arange(8) % 3 == 0,
        "number": np.float32(2.5),
    }
    tx.save(tmp_path / "ckpt", tree | _make_keys())
    said = _parse_output(run(2, SETUP + CHECKED, str(tmp_path / "ckpt")))
    assert said[0] == said[1]
    assert said[0]["ok"] > 150
    assert said[0]["refused"] > 150
