"""Code that runs under Orbax and under `templax.compat.orbax`: trees, comparisons, runs."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as orbax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

import templax.compat.orbax as compat
from helpers import abstract, assert_same_tree


class Pair(NamedTuple):
    x: Any
    y: Any


def first_device() -> SingleDeviceSharding:
    return SingleDeviceSharding(jax.devices()[0])


def make_mesh() -> Mesh:
    return Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("data", "model"))


def small_tree() -> dict[str, Any]:
    return {"a": jnp.arange(8, dtype=jnp.float32), "b": {"c": jnp.array([1, 2, 3], jnp.int32)}}


def small_template(
    shape: tuple[int, ...] = (8,), dtype: Any = jnp.float32, c: Any = jnp.int32
) -> dict[str, Any]:
    """A template of `small_tree`, or one that differs: shape and dtype of `a`, dtype of `b.c`."""
    leaf = jax.ShapeDtypeStruct
    return {"a": leaf(shape, dtype), "b": {"c": leaf((3,), c)}}


def rich_tree() -> dict[str, Any]:
    """Containers and leaves of every kind that both libraries save."""
    return {
        "pair": Pair(jnp.arange(2.0), jnp.arange(3.0)),
        "tuple": (jnp.ones(1), jnp.zeros(1)),
        "list": [jnp.ones(2)],
        "ints": {0: jnp.ones(1), 1: jnp.zeros(1)},
        "none": None,
        "empty": {},
        "nothing": [],
        "bf16": jnp.arange(4, dtype=jnp.bfloat16),
        "numpy": np.arange(3, dtype=np.int64),
        "int": 5,
        "float": 1.5,
    }


def rich_template(sharding: Any = None) -> dict[str, Any]:
    """A template of `rich_tree` that asks for numpy where numpy was saved."""
    return abstract(rich_tree(), sharding) | {"numpy": rich_tree()["numpy"]}


def sharded_tree() -> dict[str, Any]:
    sharding = NamedSharding(make_mesh(), PartitionSpec("data", "model"))
    return {
        "w": jax.device_put(jnp.arange(32.0).reshape(8, 4), sharding),
        "key": jax.random.key(7),
    }


def weights() -> dict[str, Any]:
    """A leaf that is too large to be stored inside an index."""
    return {"w": jax.random.normal(jax.random.key(0), (64, 64))}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Ignores the warnings of Orbax."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def assert_same(ours: Any, theirs: Any) -> None:
    """The same tree, types, dtypes, bits and placement."""
    assert_same_tree(ours, theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        if isinstance(a, jax.Array):
            assert a.sharding.is_equivalent_to(b.sharding, a.ndim), (a.sharding, b.sharding)
        else:
            assert type(a) is type(b), (a, b)


def assert_interchangeable(
    save: Callable[[Any, Path], Any], restore: Callable[[Any, Path], Any], directory: Path
) -> None:
    """Saves with each library and restores each result with each; all have to agree.

    Args:
        save: Saves below a directory; what it returns has to be the same for both libraries.
        restore: Restores what was saved below a directory.
        directory: Where each library gets a directory of its own.
    """
    for ocp in (orbax, compat):
        (directory / ocp.__name__).mkdir()
    theirs, ours = (save(ocp, directory / ocp.__name__) for ocp in (orbax, compat))
    assert_same(ours, theirs)
    want = restore(orbax, directory / orbax.__name__)
    for writer in (orbax, compat):
        for reader in (orbax, compat):
            got = restore(reader, directory / writer.__name__)
            assert_same(_put_on_device(got), _put_on_device(want))


def _put_on_device(tree: Any) -> Any:
    """Without a template, templax restores what was saved from numpy as `jax.Array`."""
    return jax.tree.map(
        lambda x: jax.device_put(x, first_device()) if isinstance(x, np.ndarray) else x, tree
    )


def step_state(step: int) -> dict[str, Any]:
    return {"w": jnp.full(4, float(step)), "step": step}


def describe_run(manager: Any) -> list[Any]:
    """All steps, the newest and the best."""
    return [list(manager.all_steps()), manager.latest_step(), manager.best_step()]


def save_steps(
    ocp: Any, path: Path, steps: Iterable[int], metrics: Any = None, **options: Any
) -> list[Any]:
    """Saves steps of the run `path / "run"`; what the manager answered meanwhile."""
    said = []
    options = ocp.CheckpointManagerOptions(**options)
    with ocp.CheckpointManager(path / "run", options=options) as manager:
        for step in steps:
            more = {} if metrics is None else {"metrics": metrics(step)}
            due = manager.should_save(step)
            saved = manager.save(step, args=ocp.args.StandardSave(step_state(step)), **more)
            said += [due, saved, describe_run(manager)]
        manager.wait_until_finished()
        said.append(describe_run(manager))
    return said
