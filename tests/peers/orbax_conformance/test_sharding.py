"""Taken from Orbax's own tests: shardings, memory kinds and chunks."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AbstractMesh, Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

import templax as tx
from helpers import abstract, assert_same_tree, mark_slow, restore_as_saved, save_with_orbax

S = jax.ShapeDtypeStruct
SPECS = [P(), P("x"), P("y"), P(None, "x"), P("x", "y"), P(("x", "y")), P("y", "x")]


def device_mesh(*shape: int, names: tuple[str, ...] = ("x", "y"), reverse: bool = False) -> Mesh:
    devices = jax.devices()[: int(np.prod(shape))]
    return Mesh(np.array(devices[::-1] if reverse else devices).reshape(shape), names)


@pytest.mark.slow
@pytest.mark.parametrize("stored", [*SPECS[-2:], *mark_slow(*SPECS[:-2])], ids=str)
def test_any_spec_restores_to_any_other(tmp_path, stored):
    """On eight devices, and to a single one."""
    mesh = device_mesh(4, 2)
    values = jnp.arange(128.0).reshape(16, 8)
    tree = {"w": jax.device_put(values, NamedSharding(mesh, stored))}
    path = save_with_orbax(tmp_path / "x", tree)
    shardings = [NamedSharding(mesh, spec) for spec in SPECS]
    for sharding in [*shardings, SingleDeviceSharding(jax.devices()[5])]:
        restored = tx.restore(path, {"w": S((16, 8), jnp.float32, sharding=sharding)})
        assert restored["w"].sharding == sharding
        assert np.array_equal(restored["w"], values)
        assert_same_tree(tx.restore(path, abstract(tree), shardings=sharding), restored)


def test_shards_need_not_align_with_chunks(tmp_path):
    """Twelve elements in two chunks are restored to three devices."""
    sharding = NamedSharding(device_mesh(2, names=("x",)), P("x"))
    path = save_with_orbax(tmp_path / "x", {"w": jax.device_put(jnp.arange(12), sharding)})
    wanted = NamedSharding(device_mesh(3, names=("x",)), P("x"))
    restored = tx.restore(path, {"w": S((12,), jnp.int32, sharding=wanted)})["w"]
    assert [s.data.tolist() for s in restored.addressable_shards] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10, 11],
    ]
    assert restored.sharding == wanted


@pytest.mark.slow
def test_the_devices_of_a_mesh_may_be_reversed(tmp_path):
    """The same spec on the same devices in reverse order."""
    values = jnp.arange(64).reshape(8, 8)
    stored = NamedSharding(device_mesh(4, 2), P("x", "y"))
    path = save_with_orbax(tmp_path / "x", {"w": jax.device_put(values, stored)})
    wanted = NamedSharding(device_mesh(4, 2, reverse=True), P("x", "y"))
    restored = tx.restore(path, {"w": S((8, 8), jnp.int32, sharding=wanted)})["w"]
    assert restored.sharding == wanted
    assert np.array_equal(restored, values)
    for shard in restored.addressable_shards:
        assert np.array_equal(shard.data, values[shard.index])


@pytest.mark.parametrize("how", ["foreign devices", "garbage", "empty", "missing"])
def test_an_invalid_saved_sharding_is_never_fatal(tmp_path, how):
    """Whatever `_sharding` holds, with a template and without one."""
    sharding = NamedSharding(device_mesh(4, 2), P("x"))
    path = save_with_orbax(tmp_path / "x", {"w": jax.device_put(jnp.arange(8), sharding)})
    file = path / "_sharding"
    if how == "foreign devices":
        file.write_text(file.read_text().replace('\\"id\\": 7', '\\"id\\": 70000'))
    elif how == "missing":
        file.unlink()
    else:
        file.write_text("{garbage" if how == "garbage" else "")
    for restored in (restore_as_saved(path), tx.restore(path, {"w": S((8,), jnp.int32)})):
        assert restored["w"].tolist() == list(range(8))
        assert restored["w"].sharding.device_set == {jax.devices()[0]}


def test_an_abstract_mesh_resolves_to_the_current_one(saved, golden, golden_template):
    """The one that `jax.set_mesh` has set."""
    mesh = device_mesh(4, 2)
    sharding = NamedSharding(AbstractMesh((4, 2), ("x", "y")), P("x"))
    template = golden_template | {"a": S((8,), jnp.int32, sharding=sharding)}
    with jax.set_mesh(mesh):
        restored = tx.restore(saved.v0, template)
    assert_same_tree(restored, golden)
    assert restored["a"].sharding.is_equivalent_to(NamedSharding(mesh, P("x")), 1)


def test_the_layout_of_a_format_is_obeyed(tmp_path):
    """The array has the `Format` of the template."""
    from jax.experimental.layout import Format, Layout

    values = jnp.arange(12.0).reshape(3, 4)
    path = save_with_orbax(tmp_path / "x", {"w": values})
    wanted = Format(Layout(major_to_minor=(1, 0)), SingleDeviceSharding(jax.devices()[0]))
    restored = tx.restore(path, {"w": S((3, 4), jnp.float32, sharding=wanted)})["w"]
    assert restored.format.layout.major_to_minor == (1, 0)
    assert np.array_equal(restored, values)


@pytest.mark.parametrize("kind", ["pinned_host", "unpinned_host", "device"])
def test_memory_kinds_are_obeyed(tmp_path, kind):
    """The array has the memory kind of the template."""
    path = save_with_orbax(tmp_path / "x", {"w": jnp.arange(8.0)})
    kinds = {memory.kind for memory in jax.devices()[0].addressable_memories()}
    if kind not in kinds:
        pytest.skip(f"no {kind} on this device")
    wanted = NamedSharding(device_mesh(4, 2), P("x"), memory_kind=kind)
    restored = tx.restore(path, {"w": S((8,), jnp.float32, sharding=wanted)})["w"]
    assert restored.sharding.memory_kind == kind
    assert np.array_equal(restored, np.arange(8.0))


PEAK = """
import sys, jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import jax.numpy as jnp
import templax as tx

def now(what):
    return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith(what))

mesh = Mesh(np.array(jax.devices()).reshape(8), ("r",))
def restore(name, n):
    wanted = jax.ShapeDtypeStruct((n,), jnp.float32, sharding=NamedSharding(mesh, P()))
    return tx.restore(f"{sys.argv[1]}/{name}", {"w": wanted})
restore("small", 1024)
open("/proc/self/clear_refs", "w").write("5")
before = now("VmRSS")
tree = restore("big", 8 << 20)
print(now("VmHWM") - before)
assert len(tree["w"].addressable_shards) == 8
"""


@pytest.mark.slow
def test_a_replicated_array_takes_host_memory_once(tmp_path):
    """32 MiB on each of 8 CPU devices take at most 34 MiB of host memory."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("the peak of a process can't be reset here")
    # Not compressed: an encoded chunk would take memory, too.
    save_with_orbax(tmp_path / "small", {"w": jnp.zeros(1024)}, use_compression=False)
    big = {"w": jnp.arange(8 << 20, dtype=jnp.float32)}
    save_with_orbax(tmp_path / "big", big, use_compression=False)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) <= 34 << 20


@pytest.mark.parametrize("zarr3", [False, True])
def test_shards_saved_in_several_chunks_are_read(tmp_path, zarr3):
    """Shards of four elements in chunks of two."""
    sharding = NamedSharding(device_mesh(2, names=("x",)), P("x"))
    tree = {"w": jax.device_put(jnp.arange(8, dtype=jnp.int32), sharding)}
    chunked = ocp.SaveArgs(chunk_byte_size=8)
    path = save_with_orbax(tmp_path / "x", tree, save_args={"w": chunked}, use_zarr3=zarr3)
    recorded = json.loads((path / "array_metadatas" / "process_0").read_text())
    assert recorded["array_metadatas"][0]["array_metadata"]["chunk_shape"] == [2]
    assert restore_as_saved(path)["w"].tolist() == list(range(8))
    wanted = NamedSharding(device_mesh(8, names=("x",)), P("x"))
    restored = tx.restore(path, {"w": S((8,), jnp.int32, sharding=wanted)})["w"]
    assert [s.data.tolist() for s in restored.addressable_shards] == [[i] for i in range(8)]
