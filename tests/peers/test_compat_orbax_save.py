"""The same code saves under Orbax and under `templax.compat.orbax`; each restores both results.

Where they differ, both sides are asserted, as in `test_compat_orbax.py`.
"""

import gc
import json
import logging
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as orbax
import pytest
from flax.training import orbax_utils
from jax.sharding import NamedSharding, PartitionSpec

import templax as tx
import templax.compat.orbax as compat
from templax import _saving
from templax.sources._leftovers import temporary

from .test_compat_orbax import (
    S,
    abstract,
    assert_same,
    first_device,
    mesh,
    quiet,
    rich_tree,
    sharded_tree,
    small_tree,
)

logging.getLogger("absl").setLevel(logging.CRITICAL)
# A save that fails in Orbax leaves coroutines and futures behind, which complain when collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

BOTH = pytest.mark.parametrize("ocp", [orbax, compat], ids=["orbax", "compat"])


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """What Orbax leaves behind is collected where its complaints are expected."""
    with quiet():
        yield
        gc.collect()


# Code that saves below `path`. What it returns has to be the same, too.


def pytree(ocp, path):
    return ocp.PyTreeCheckpointer().save(path / "ckpt", small_tree())


def pytree_by_keyword(ocp, path):
    ocp.PyTreeCheckpointer().save(path / "ckpt", item=small_tree(), force=True)


def pytree_as_text_path(ocp, path):
    ocp.PyTreeCheckpointer().save(str(path / "ckpt"), small_tree())


def pytree_in_new_directories(ocp, path):
    ocp.PyTreeCheckpointer(use_ocdbt=True, use_zarr3=True).save(path / "a/b/ckpt", small_tree())


def pytree_of_rich_containers(ocp, path):
    ocp.PyTreeCheckpointer().save(path / "ckpt", rich_tree())


def pytree_bare_array(ocp, path):
    ocp.PyTreeCheckpointer().save(path / "ckpt", jnp.arange(5.0))


def save_args(ocp, path):
    tree = {"x": jnp.arange(3.0), "y": [np.arange(3.0), None], "n": 5, "s": "text", "none": None}
    args = jax.tree.map(lambda _: ocp.SaveArgs(), tree)
    args["x"] = ocp.SaveArgs(dtype=np.dtype(jnp.bfloat16))
    args["y"][0] = ocp.SaveArgs(dtype=np.dtype(np.float32), chunk_byte_size=64)
    args["n"] = ocp.type_handlers.SaveArgs(dtype=np.dtype(np.int8), aggregate=True)
    ocp.PyTreeCheckpointer().save(path / "ckpt", tree, save_args=args)


def pytree_save_args_of_flax(ocp, path):
    """As flax's guides have it; these save args are Orbax's own."""
    tree = small_tree()
    args = orbax_utils.save_args_from_target(tree)
    ocp.PyTreeCheckpointer().save(path / "ckpt", tree, save_args=args)


def pytree_some_save_args(ocp, path):
    args = {"a": ocp.SaveArgs(dtype=np.dtype(np.float16)), "b": {"c": None}}
    ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).save(
        path / "ckpt", args=ocp.args.PyTreeSave(small_tree(), args)
    )


def pytree_args(ocp, path):
    handler = ocp.PyTreeCheckpointHandler(use_zarr3=False, save_concurrent_gb=4)
    checkpointer = ocp.Checkpointer(handler)
    args = ocp.args.PyTreeSave(small_tree(), ocdbt_target_data_file_size=0)
    checkpointer.save(path / "ckpt", args=args, custom_metadata={"lr": 0.5})
    return checkpointer.metadata(path / "ckpt").custom_metadata


def pytree_args_by_position(ocp, path):
    checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    checkpointer.save(path / "ckpt", ocp.args.PyTreeSave(small_tree()))


def of_optax(ocp, path):
    params = {"w": jnp.ones((3, 2))}
    state = {"params": params, "opt": optax.adam(1e-3).init(params), "step": 7}
    ocp.PyTreeCheckpointer().save(path / "ckpt", state)


def pytree_force_replaces(ocp, path):
    checkpointer = ocp.PyTreeCheckpointer()
    checkpointer.save(path / "ckpt", {"old": jnp.ones(3)})
    checkpointer.save(path / "ckpt", small_tree(), force=True)


def standard(ocp, path):
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.save(path / "ckpt", small_tree())


def standard_waits_when_asked(ocp, path):
    checkpointer = ocp.StandardCheckpointer()
    checkpointer.save(path / "ckpt", small_tree(), custom_metadata={"run": "a"})
    checkpointer.wait_until_finished()
    checkpointer.check_for_errors()
    there = (path / "ckpt").exists()
    metadata = checkpointer.metadata(path / "ckpt").custom_metadata
    checkpointer.close()
    return [there, metadata]


def standard_restores_what_it_is_saving(ocp, path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path / "ckpt", small_tree())
        return checkpointer.restore(path / "ckpt", abstract(small_tree(), first_device()))


def standard_one_after_the_other(ocp, path):
    with ocp.StandardCheckpointer() as checkpointer:
        for n in range(3):
            checkpointer.save(path / f"{n}", {"a": jnp.full(4, float(n))})
        checkpointer.save(path / "ckpt", small_tree())
    return sorted(p.name for p in path.iterdir())


def standard_save_args(ocp, path):
    args = {"a": ocp.SaveArgs(dtype=np.dtype(np.int32)), "b": {"c": ocp.SaveArgs()}}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path / "ckpt", small_tree(), save_args=args, force=True)


def standard_args(ocp, path):
    checkpointer = ocp.Checkpointer(ocp.StandardCheckpointHandler())
    checkpointer.save(path / "ckpt", args=ocp.args.StandardSave(small_tree()))
    return (path / "ckpt").exists()


def standard_async(ocp, path):
    options = ocp.AsyncOptions(timeout_secs=60)
    with ocp.AsyncCheckpointer(
        ocp.StandardCheckpointHandler(), async_options=options
    ) as checkpointer:
        checkpointer.save(path / "ckpt", args=ocp.args.StandardSave(small_tree()))


def standard_async_of_old_code(ocp, path):
    checkpointer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(), timeout_secs=60)
    checkpointer.save(path / "ckpt", small_tree())
    checkpointer.wait_until_finished()
    return (path / "ckpt").exists()


def standard_calls_back(ocp, path):
    called = []
    options = ocp.options.AsyncOptions(post_finalization_callback=lambda: called.append(1))
    with ocp.StandardCheckpointer(
        async_options=options,
        file_options=ocp.options.FileOptions(),
        multiprocessing_options=ocp.options.MultiprocessingOptions(primary_host=0),
    ) as checkpointer:
        checkpointer.save(path / "ckpt", small_tree())
    return called


def item(ocp, path):
    return ocp.PyTreeCheckpointer().restore(next(path.rglob("ckpt")))


def item_by_target(ocp, path):
    target = abstract(small_tree(), first_device())
    return ocp.StandardCheckpointer().restore(next(path.rglob("ckpt")), target)


def cast_item(ocp, path):
    """The number by a template: without one Orbax forgets its dtype."""
    template = ocp.PyTreeCheckpointer().metadata(path / "ckpt").item_metadata.tree
    template = {"x": template["x"], "y": template["y"], "n": 0, "s": "", "none": None}
    return ocp.PyTreeCheckpointer().restore(path / "ckpt", template)


def optax_state(ocp, path):
    params = {"w": S((3, 2), jnp.float32, sharding=first_device())}
    opt = jax.eval_shape(optax.adam(1e-3).init, params)
    opt = jax.tree.map(lambda x: S(x.shape, x.dtype, sharding=first_device()), opt)
    return ocp.StandardCheckpointer().restore(
        path / "ckpt", {"params": params, "opt": opt, "step": 0}
    )


def sharded(ocp, path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path / "ckpt", sharded_tree())


def other_sharding(ocp, path):
    target = {
        "w": S((8, 4), jnp.float32, sharding=NamedSharding(mesh(), PartitionSpec(None, "data"))),
        "key": S((), jax.random.key(0).dtype, sharding=first_device()),
    }
    return ocp.StandardCheckpointer().restore(path / "ckpt", target)


def json_value(ocp, path):
    checkpointer = ocp.Checkpointer(ocp.JsonCheckpointHandler())
    checkpointer.save(path / "ckpt", {"n": [1, 2.5, None], "s": "ü"})
    checkpointer.save(path / "ckpt", args=ocp.args.JsonSave({"n": [1, True]}), force=True)


def json_read(ocp, path):
    return ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(path / "ckpt")


def composite(ocp, path):
    checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler("state", "ema", "meta"))
    checkpointer.save(
        path / "ckpt",
        ocp.args.Composite(
            state=ocp.args.StandardSave(small_tree()),
            ema=ocp.args.PyTreeSave({"w": jnp.ones((2, 3), jnp.bfloat16)}),
            meta=ocp.args.JsonSave({"note": "x"}),
        ),
        custom_metadata={"seed": 3},
    )
    files = {str(p.relative_to(path)) for p in (path / "ckpt").iterdir()}
    handlers = json.loads((path / "ckpt/_CHECKPOINT_METADATA").read_text())["item_handlers"]
    return [sorted(files), sorted(handlers), handlers["meta"]]


def composite_read(ocp, path):
    checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    args = ocp.args.Composite(
        state=ocp.args.StandardRestore(abstract(small_tree(), first_device())),
        ema=ocp.args.PyTreeRestore(),
        meta=ocp.args.JsonRestore(),
    )
    return dict(checkpointer.restore(path / "ckpt", args=args).items())


def v1(ocp, path):
    ocp.v1.save(path / "ckpt", {"old": jnp.ones(2)})
    ocp.v1.save(path / "ckpt", small_tree(), overwrite=True, custom_metadata={"seed": 3})
    return json.loads((path / "ckpt/_CHECKPOINT_METADATA").read_text())["custom_metadata"]


def v1_async(ocp, path):
    response = ocp.v1.save_async(path / "ckpt", small_tree())
    result = response.result(timeout=60)
    return [result, response.result(), (path / "ckpt").exists()]


def v1_older_names(ocp, path):
    ocp.v1.save_pytree(path / "other", small_tree())
    ocp.v1.save_pytree_async(path / "ckpt", small_tree()).result()


def v1_read(ocp, path):
    target = abstract(small_tree(), first_device())
    return [ocp.v1.load(path / "ckpt"), ocp.v1.load(path / "ckpt", target)]


def v1_named(ocp, path):
    ocp.v1.save(path / "ckpt", small_tree(), checkpointable_name="model")


def v1_named_read(ocp, path):
    return ocp.v1.load(path / "ckpt", checkpointable_name="model")


ITEMS = (
    *((f, item) for n, f in list(globals().items()) if n.startswith("pytree_")),
    (pytree, item_by_target),
    (pytree_force_replaces, item_by_target),
    *((f, item) for n, f in list(globals().items()) if n.startswith("standard_")),
    (standard, item_by_target),
    (save_args, cast_item),
    (of_optax, optax_state),
    (sharded, other_sharding),
    (json_value, json_read),
    (composite, composite_read),
    (v1, v1_read),
    (v1_async, v1_read),
    (v1_older_names, v1_read),
    (v1_named, v1_named_read),
)


def both_ways(code: Callable[..., Any], read: Callable[..., Any], tmp_path: Path) -> None:
    """Saves with each library, then reads each result with each."""
    for ocp in (orbax, compat):
        (tmp_path / ocp.__name__).mkdir()
    theirs, ours = (code(ocp, tmp_path / ocp.__name__) for ocp in (orbax, compat))
    assert_same(ours, theirs)
    want = read(orbax, tmp_path / orbax.__name__)
    for writer in (orbax, compat):
        for reader in (orbax, compat):
            assert_same(as_arrays(read(reader, tmp_path / writer.__name__)), as_arrays(want))


def as_arrays(tree: Any) -> Any:
    """Without a template a leaf that was saved from numpy is a `jax.Array` to templax."""
    return jax.tree.map(
        lambda x: jax.device_put(x, first_device()) if isinstance(x, np.ndarray) else x, tree
    )


@pytest.mark.parametrize(("code", "read"), ITEMS, ids=lambda f: f.__name__)
def test_each_restores_what_the_other_saves(code, read, tmp_path):
    """One changed import: the same tree on disk, whoever saves and whoever restores."""
    both_ways(code, read, tmp_path)


# Runs: each saves below `path / "run"`, and says what the manager said meanwhile.


def state(step: int) -> dict[str, Any]:
    return {"w": jnp.full(4, float(step)), "step": step}


def told(manager: Any) -> list[Any]:
    return [list(manager.all_steps()), manager.latest_step(), manager.best_step()]


def run(ocp: Any, path: Path, steps: Any, metrics: Any = None, **options: Any) -> list[Any]:
    """Saves some steps; what was said after each, and at the end."""
    said = []
    options = ocp.CheckpointManagerOptions(**options)
    with ocp.CheckpointManager(path / "run", options=options) as manager:
        for step in steps:
            more = {} if metrics is None else {"metrics": metrics(step)}
            due = manager.should_save(step)
            saved = manager.save(step, args=ocp.args.StandardSave(state(step)), **more)
            said += [due, saved, told(manager)]
        manager.wait_until_finished()
        said.append(told(manager))
    return said


def run_default(ocp, path):
    return run(ocp, path, range(4))


def run_keeps_the_newest(ocp, path):
    return run(ocp, path, range(6), max_to_keep=2)


def run_keeps_none(ocp, path):
    return run(ocp, path, range(3), max_to_keep=0)


def run_keeps_multiples(ocp, path):
    return run(ocp, path, range(1, 9), max_to_keep=1, keep_period=3)


def run_keeps_by_time(ocp, path):
    return run(ocp, path, range(4), max_to_keep=1, keep_time_interval=timedelta(hours=1))


def run_at_intervals(ocp, path):
    return run(ocp, path, range(3, 14), save_interval_steps=5, save_on_steps=[4, 12])


def run_where_a_function_says(ocp, path):
    return run(ocp, path, range(8), should_save_fn=lambda step, last: step - (last or 0) >= 3)


def run_twice_the_same_step(ocp, path):
    return run(ocp, path, [3, 3, 2, 4])


LOSS = [3.0, 1.0, 2.0, 9.0, 0.5, 1.0]


def run_keeps_the_best(ocp, path):
    options = {"best_fn": lambda m: m["loss"], "best_mode": "min", "max_to_keep": 2}
    return run(ocp, path, range(6), lambda step: {"loss": LOSS[step]}, **options)


def run_keeps_the_best_by_default(ocp, path):
    options = {"best_fn": lambda m: m["loss"], "max_to_keep": 2, "keep_period": 5}
    return run(ocp, path, range(6), lambda step: {"loss": LOSS[step]}, **options)


def run_without_metrics_stays(ocp, path):
    options = {"best_fn": lambda m: m["loss"], "best_mode": "min", "max_to_keep": 1}
    return run(ocp, path, range(6), lambda s: {"loss": LOSS[s]} if s % 3 else None, **options)


def run_without_metrics_goes(ocp, path):
    options = {"best_fn": lambda m: m["loss"], "keep_checkpoints_without_metrics": False}
    options |= {"max_to_keep": 1}
    return run(ocp, path, range(6), lambda s: {"loss": LOSS[s]} if s % 3 else None, **options)


def run_whose_metrics_nothing_compares(ocp, path):
    said = run(ocp, path, range(3), lambda step: {"loss": LOSS[step]}, max_to_keep=2)
    return [*said, ocp.CheckpointManager(path / "run").metrics(2)]


def run_that_is_synchronous(ocp, path):
    said = run(ocp, path, range(3), enable_async_checkpointing=False, max_to_keep=2)
    return [*said, sorted(p.name for p in (path / "run").iterdir())]


def run_with_prefix(ocp, path):
    return run(ocp, path, (7, 12), step_prefix="ckpt", step_format_fixed_length=6)


def run_that_is_read_only(ocp, path):
    run(ocp, path, range(2))
    return run(ocp, path, range(2, 4), read_only=True)


def run_begun_by_orbax(ocp, path):
    """Continued by a manager of its own, as after a crash."""
    run(orbax, path, range(3), max_to_keep=3)
    return run(ocp, path, range(2, 6), max_to_keep=3)


def run_begun_by_compat(ocp, path):
    run(compat, path, range(3), max_to_keep=3)
    return run(ocp, path, range(2, 6), max_to_keep=3)


def run_with_best_begun_by_the_other(ocp, path):
    options = {"best_fn": lambda m: m["loss"], "best_mode": "min", "max_to_keep": 2}
    other = compat if ocp is orbax else orbax
    run(other, path, range(3), lambda step: {"loss": LOSS[step]}, **options)
    return run(ocp, path, range(3, 6), lambda step: {"loss": LOSS[step]}, **options)


def run_forced(ocp, path):
    options = ocp.CheckpointManagerOptions(save_interval_steps=10)
    with ocp.CheckpointManager(path / "run", options=options) as manager:
        args = ocp.args.StandardSave(state(0))
        flags = [manager.save(0, args=args), manager.save(3, args=args)]
        flags += [manager.save(3, args=args, force=True), manager.save(10, args=args)]
        return [flags, told(manager)]


def run_deletes(ocp, path):
    run(ocp, path, range(4))
    with ocp.CheckpointManager(path / "run") as manager:
        manager.delete(3)
        manager.delete(1)
        missing = []
        try:
            manager.delete(7)
        except FileNotFoundError:
            missing.append(7)
        again = manager.save(3, args=ocp.args.StandardSave(state(3)))
        return [missing, again, told(manager)]


def run_tells_metadata(ocp, path):
    options = ocp.CheckpointManagerOptions(best_fn=lambda m: m["loss"])
    directory = path / "run"
    with ocp.CheckpointManager(directory, options=options, metadata={"v": [1]}) as manager:
        manager.save(
            1,
            args=ocp.args.StandardSave(state(1)),
            metrics={"loss": 0.5},
            custom_metadata={"lr": 0.1},
        )
        manager.save(2, args=ocp.args.StandardSave(state(2)))
        manager.wait_until_finished()
        metadata = manager.metadata(1)
        said = [manager.metrics(1), manager.metrics(2), metadata.metrics, metadata.custom_metadata]
        tree = metadata.item_metadata.tree
        said += [list(tree["w"].shape), manager.directory == directory, manager.directory.name]
    manager = ocp.CheckpointManager(directory, metadata={"v": "ignored: it is there"})
    files = sorted(str(f.relative_to(directory)) for f in directory.glob("*/*/metrics"))
    return [*said, manager.metadata().custom_metadata, files]


def run_by_old_spelling(ocp, path):
    manager = ocp.CheckpointManager(
        path / "run", ocp.PyTreeCheckpointer(), ocp.CheckpointManagerOptions(max_to_keep=2)
    )
    args = jax.tree.map(lambda _: ocp.SaveArgs(), state(0))
    flags = [manager.save(s, state(s), save_kwargs={"save_args": args}) for s in range(3)]
    return [flags, told(manager), manager.restore(2, items=state(0))]


def run_by_handler(ocp, path):
    with ocp.CheckpointManager(
        path / "run", item_handlers=ocp.StandardCheckpointHandler()
    ) as manager:
        return [manager.save(1, args=ocp.args.StandardSave(state(1))), told(manager)]


def run_restores_what_it_is_saving(ocp, path):
    with ocp.CheckpointManager(path / "run") as manager:
        manager.save(1, args=ocp.args.PyTreeSave(state(1)))
        return [manager.restore(1, args=ocp.args.PyTreeRestore(state(0))), told(manager)]


RUNS = [code for name, code in list(globals().items()) if name.startswith("run_")]


@pytest.mark.parametrize("code", RUNS, ids=lambda f: f.__name__)
def test_runs_go_the_same_way(code, tmp_path):
    """What is said on the way, which steps stay; and each lists and restores what stays."""
    options = {}
    if code is run_with_prefix:
        options = {"step_prefix": "ckpt", "step_format_fixed_length": 6}

    def read(ocp: Any, path: Path) -> list[Any]:
        manager = ocp.CheckpointManager(
            path / "run", options=ocp.CheckpointManagerOptions(**options)
        )
        steps = list(manager.all_steps())
        target = jax.tree.map(np.asarray, state(0)) | {"step": 0}
        args = ocp.args.StandardRestore(target)
        return [steps, *(manager.restore(step, args=args) for step in steps)]

    both_ways(code, read, tmp_path)
    names = [
        {p.name for p in (tmp_path / n / "run").iterdir()} for n in sorted(os.listdir(tmp_path))
    ]
    assert names[0] == names[1]


def several(ocp, path):
    said = []
    with ocp.CheckpointManager(
        path / "run",
        item_names=("state", "ema", "meta"),
        options=ocp.CheckpointManagerOptions(max_to_keep=2, best_fn=lambda m: m["acc"]),
    ) as manager:
        for step in range(3):
            saved = manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state(step)),
                    ema=ocp.args.PyTreeSave(small_tree()),
                    meta=ocp.args.JsonSave({"step": step}),
                ),
                metrics={"acc": step / 3},
            )
            said += [saved, told(manager)]
        manager.wait_until_finished()
        said.append(sorted(dict(manager.restore(2).items())))
    step = path / "run/2"
    return [*said, sorted(p.name for p in step.iterdir()), (step / "metrics/metrics").read_text()]


def some_of_several(ocp, path):
    """A step may have other items than the one before."""
    with ocp.CheckpointManager(path / "run", item_names=("state", "ema", "meta")) as manager:
        for step in (1, 2):
            items = {"state": ocp.args.StandardSave(state(step))}
            if step == 2:
                items["ema"] = ocp.args.StandardSave(small_tree())
                items["meta"] = ocp.args.JsonSave([step])
            manager.save(step, args=ocp.args.Composite(**items))
        return told(manager)


def several_by_old_spelling(ocp, path):
    checkpointers = {
        "state": ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler()),
        "ema": ocp.PyTreeCheckpointer(),
        "meta": ocp.Checkpointer(ocp.JsonCheckpointHandler()),
    }
    manager = ocp.CheckpointManager(path / "run", checkpointers)
    args = jax.tree.map(lambda _: ocp.SaveArgs(), state(0))
    items = {"state": state(2), "ema": small_tree(), "meta": {"x": 1}}
    saved = manager.save(2, items, save_kwargs={"state": {"save_args": args}})
    manager.wait_until_finished()
    return [saved, told(manager), manager.restore(2, items={"meta": None})["meta"]]


def several_read(ocp, path):
    with ocp.CheckpointManager(path / "run", item_names=("state", "ema", "meta")) as manager:
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(jax.tree.map(np.asarray, state(0)) | {"step": 0}),
            ema=ocp.args.StandardRestore(abstract(small_tree(), first_device())),
            meta=ocp.args.JsonRestore(),
        )
        return [list(manager.all_steps()), dict(manager.restore(2, args=args).items())]


@pytest.mark.parametrize(
    "code", [several, some_of_several, several_by_old_spelling], ids=lambda f: f.__name__
)
def test_each_restores_the_items_that_the_other_saves(code, tmp_path):
    """Several trees and JSON values in one step, under the same names."""
    both_ways(code, several_read, tmp_path)
