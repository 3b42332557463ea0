"""Catalogs, plans and recipes go to another process."""

from __future__ import annotations

import functools
import multiprocessing
import pickle
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import SingleDeviceSharding

import templax as tx
from helpers import CORPUS, assert_same_tree, restore_as_saved, shard_over
from templax.storage import Local, Memory


def reload(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))  # noqa: S301 - pickled here


def make_params(key: jax.Array, width: int = 4) -> dict[str, Any]:
    """What a recipe computes; a function of a module, as pickling asks for."""
    return {"w": jax.random.normal(key, (2, width)), "rng": key, "act": abs, "name": "net", "n": 3}


def restore_pickled(data: bytes) -> dict[str, Any]:
    """In another process: restores from a catalog, and runs a plan."""
    catalog, plan = pickle.loads(data)  # noqa: S301 - pickled here
    numpy = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), catalog.template())
    ran = tx.run(plan)
    return {
        "catalog": tx.restore(catalog, numpy),
        "plan": jax.tree.map(np.asarray, ran),
        "where": [str(leaf.sharding) for leaf in jax.tree.leaves(ran)],
        "verified": tx.verify(catalog).ok,
    }


@pytest.mark.slow
def test_a_spawned_process_restores_from_a_catalog_and_runs_a_plan(tmp_path: Path) -> None:
    tree = {"a": jnp.arange(6.0).reshape(2, 3), "b": [jnp.ones(4, jnp.int32)]}
    tx.save(tmp_path / "ckpt", tree)
    catalog = tx.open(tmp_path / "ckpt")
    sharding = SingleDeviceSharding(jax.devices()[1])
    plan = tx.plan(catalog, catalog.template(), shardings=sharding)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        done = pool.apply(restore_pickled, (pickle.dumps((catalog, plan)),))
    assert_same_tree(done["catalog"], tree, kinds=False)
    assert_same_tree(done["plan"], tree, kinds=False)
    assert done["where"] == [str(sharding)] * 2
    assert done["verified"]


@pytest.mark.parametrize(
    "case",
    [
        "orbax-0.12.8-default",
        "orbax-0.12.8-noocdbt",
        "orbax-0.12.8-prng",
        "orbax-0.12.8-sharded8",
        "orbax-0.12.8-zarr3",
        "orbax-0.12.8-special",
        "orbax-0.2.3-aggregate",
        "orbax-0.4.4-default",
        "orbax-0.6.4-multi2p",
    ],
)
def test_catalogs_and_plans_of_every_layout_come_back(case: str) -> None:
    catalog = tx.open(CORPUS / case / "ckpt")
    want = restore_as_saved(catalog)
    copy = reload(catalog)
    assert repr(copy) == repr(catalog)
    assert_same_tree(tx.restore(copy, copy.template()), want)
    plan = tx.plan(catalog, catalog.template())
    again = reload(plan)
    assert str(again) == str(plan)
    assert_same_tree(tx.run(again), want)
    assert_same_tree(tx.run(reload(again)), want)
    assert tx.verify(copy).ok


def test_a_catalog_of_safetensors_in_memory_comes_back() -> None:
    data = (CORPUS / "safetensors-plain" / "model.safetensors").read_bytes()
    catalog = tx.open(Memory({"": data}))
    assert_same_tree(restore_as_saved(reload(catalog)), restore_as_saved(catalog))


def test_fingerprints_and_metadata_come_back(tmp_path: Path) -> None:
    tx.save(tmp_path / "a", {"w": jnp.arange(5.0), "s": "text"}, metadata={"run": 3})
    catalog = tx.open(tmp_path / "a")
    copy = reload(catalog)
    assert tx.fingerprint(copy) == tx.fingerprint(catalog)
    assert copy.metadata == catalog.metadata
    assert copy.leaves["w"].dtype == np.float32


def test_the_copy_sees_that_the_file_was_changed_since_it_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"before")
    source = Local(path)
    assert bytes(source.read("")) == b"before"
    copy = reload(source)
    path.write_bytes(b"after it")
    with pytest.raises(tx.SourceError, match="changed since the checkpoint was opened"):
        copy.read("")


def test_nothing_open_is_pickled(tmp_path: Path) -> None:
    """A source that has mapped files and holds a lock is a path and versions in the pickle."""
    path = tmp_path / "a"
    path.write_bytes(bytes(range(200)) * 100)
    source = Local(path)
    view = source.view("", 0, 64)
    state = source.__getstate__()
    assert set(state) == {"url", "_root", "_follow_links", "_versions"}
    copy = reload(source)
    assert not copy._maps
    assert isinstance(copy._lock, type(threading.Lock()))
    assert view is None or bytes(view) == bytes(range(64))
    assert bytes(copy.read("", 3, 5)) == b"\3\4"


def test_a_relative_path_and_its_parent_still_work_after_a_chdir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tx.save(tmp_path / "a", {"w": jnp.ones(2)})
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps(tx.open("a"))
    monkeypatch.chdir("/")
    catalog = pickle.loads(data)  # noqa: S301 - pickled here
    assert catalog.url == "a"
    assert tx.restore(catalog, {"w": np.zeros(2, np.float32)})["w"].tolist() == [1.0, 1.0]


def test_a_plan_over_several_devices_comes_back_onto_them(tmp_path: Path) -> None:
    tree = {"w": jnp.arange(32.0).reshape(8, 4)}
    tx.save(tmp_path / "a", tree)
    plan = tx.plan(tmp_path / "a", tree, shardings=shard_over(4, "x"))
    restored = tx.run(reload(plan))["w"]
    assert restored.sharding == shard_over(4, "x")
    assert restored.tolist() == tree["w"].tolist()


def test_plans_of_optimizers_keys_and_python_values_come_back(tmp_path: Path) -> None:
    params = {"w": jnp.ones((2, 3))}
    state = {
        "opt": optax.adam(1e-3).init(params),
        "key": jax.random.key(3),
        "step": 7,
        "name": "run",
        "skipped": ...,
        "numpy": np.arange(3),
    }
    tx.save(tmp_path / "a", {k: v for k, v in state.items() if k != "skipped"})
    plan = tx.plan(tmp_path / "a", state)
    assert_same_tree(tx.run(reload(plan)), state)


def test_a_plan_with_leaves_from_a_recipe_comes_back(tmp_path: Path) -> None:
    tx.save(tmp_path / "a", {"w": jnp.ones((2, 4))})
    key = jax.random.key(1)
    template = {"w": jnp.zeros((2, 4)), "rng": key}
    plan = tx.plan(tmp_path / "a", template, missing=tx.Recipe(make_params, key))
    assert_same_tree(tx.run(reload(plan)), {"w": jnp.ones((2, 4)), "rng": key})


@pytest.mark.slow
def test_a_recipe_and_its_catalog_come_back() -> None:
    recipe = tx.Recipe(make_params, jax.random.key(1), width=8)
    template = tx.template_of(make_params, jax.random.key(0), width=8)
    want = tx.restore(recipe, template)
    assert_same_tree(tx.restore(reload(recipe), template), want)
    assert_same_tree(tx.restore(reload(recipe.catalog()), template), want)
    assert_same_tree(tx.run(reload(tx.plan(recipe, template))), want)


def test_what_python_can_not_pickle_is_named(tmp_path: Path) -> None:
    key = jax.random.key(0)
    with pytest.raises(tx.UsageError, match=r"This recipe can't be pickled: .*<lambda>.*; hint: "):
        pickle.dumps(tx.Recipe(lambda k: {"w": k}, key))
    with pytest.raises(tx.UsageError, match="This recipe can't be pickled"):
        pickle.dumps(tx.Recipe(lambda k: {"w": k}, key).catalog())
    tx.save(tmp_path / "a", {"w": jnp.ones(2)})
    with pytest.raises(tx.UsageError, match=r"This plan can't be pickled: .*<lambda>"):
        pickle.dumps(tx.plan(tmp_path / "a", {"w": jnp.ones(2), "act": lambda x: x}))
    assert pickle.dumps(tx.plan(tmp_path / "a", {"w": jnp.ones(2), "act": functools.reduce}))


def test_a_plan_for_a_device_that_is_not_there_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tx.save(tmp_path / "a", {"w": jnp.ones(2)})
    sharding = SingleDeviceSharding(jax.devices()[-1])
    data = pickle.dumps(tx.plan(tmp_path / "a", {"w": jnp.ones(2)}, shardings=sharding))
    monkeypatch.setattr(jax, "devices", lambda platform=None: jax.local_devices()[:1])
    with pytest.raises(tx.UsageError, match=r"Expected device 7 of platform `cpu`, for which"):
        pickle.loads(data)  # noqa: S301 - pickled here
