"""Arrays are placed as the template says, whichever devices saved them."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

import templax as tx
from helpers import CORPUS, assert_same_tree

A = jax.ShapeDtypeStruct
KEY = jax.random.key(0)
X = jnp.ones((1, 8))
RECORDED = "state.params.big"
SHARDED = ["orbax-0.11.10-sharded8", "orbax-0.12.8-sharded8", "orbax-0.12.8-multi2p"]


@pytest.mark.slow
def test_the_saved_sharding_is_not_replayed(run_on_one_device: Any) -> None:
    """Saved on 8 devices or by two processes, restored on one device."""
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
    sums = run_on_one_device(code, *(CORPUS / case / "ckpt" for case in cases)).split()
    assert len(set(sums)) == 1


@pytest.mark.parametrize("case", [*SHARDED, "orbax-0.12.8-sharded8_chunks", "orbax-0.6.4-multi2p"])
def test_any_devices_can_be_the_target(case: str, sha256_of_big: Any) -> None:
    """`open` shows the saved sharding, `restore` ignores it: one device, several, numpy."""
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
        assert hashlib.sha256(np.asarray(got).tobytes()).hexdigest() == sha256_of_big(case)
        assert sharding is None or got.sharding == sharding
    host = tx.restore(path, np.zeros((128, 64), np.float32), at=at)
    assert hashlib.sha256(host.tobytes()).hexdigest() == sha256_of_big(case)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_devices_of_another_machine_do_not_matter(save: Any, platform: str) -> None:
    """The saved sharding names accelerators that this machine lacks."""
    mesh = jax.make_mesh((8,), ("x",))
    value = jax.device_put(jnp.arange(16.0), NamedSharding(mesh, PartitionSpec("x")))
    path = save({"w": value})
    file = path / "_sharding"
    text = file.read_text().replace('\\"id\\": ', f'\\"platform\\": \\"{platform}\\", \\"id\\": 6')
    assert platform in text
    file.write_text(text)
    assert tx.restore(path, {"w": A((16,), jnp.float32)})["w"].tolist() == list(range(16))
    assert_same_tree(tx.restore(path, tx.open(path).template()), {"w": value})


@pytest.mark.slow
def test_mesh_and_specs_give_a_template_its_shardings(save: Any, model: Any) -> None:
    """`eval_shape` loses shardings; `template_of` adds them."""
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    tree = model().init(KEY, X)
    template = tx.template_of(
        model().init,
        KEY,
        X,
        mesh=mesh,
        specs=lambda name, _: PartitionSpec(None, "model") if "kernel" in name else None,
    )
    got = tx.restore(save(tree), template)
    kernel = got["params"]["Dense_0"]["kernel"]
    assert kernel.sharding == NamedSharding(mesh, PartitionSpec(None, "model"))
    assert not got["params"]["Dense_0"]["bias"].committed


def test_a_sharding_over_an_abstract_mesh_needs_that_mesh(save: Any) -> None:
    """`nnx.eval_shape` under a mesh leaves such shardings in its result."""
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


@pytest.mark.slow
def test_sharded_and_unsharded_leaves_mix(save: Any) -> None:
    mesh = jax.make_mesh((8,), ("x",))
    split = NamedSharding(mesh, PartitionSpec("x"))
    tree = {"a": jax.device_put(jnp.arange(8.0), split), "b": jnp.ones(3), "c": np.ones(2)}
    template = {"a": A((8,), jnp.float32), "b": A((3,), jnp.float32), "c": np.zeros(2)}
    assert_same_tree(tx.restore(save(tree), template), tree)
    template["b"] = A((3,), jnp.float32, sharding=SingleDeviceSharding(jax.devices()[3]))
    got = tx.restore(save(tree, "again"), template)
    assert got["b"].devices() == {jax.devices()[3]}


def test_memory_kinds_are_obeyed(save: Any) -> None:
    tree = {"w": jnp.arange(8.0)}
    mesh = jax.make_mesh((8,), ("x",))
    sharding = NamedSharding(mesh, PartitionSpec("x"), memory_kind="pinned_host")
    got = tx.restore(save(tree), {"w": A((8,), jnp.float32, sharding=sharding)})["w"]
    assert got.sharding == sharding
    assert got.sharding.memory_kind == "pinned_host"
