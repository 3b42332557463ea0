"""The same code saves under Orbax and under `templax.compat.orbax`; each restores both results.

Where they differ, both sides are asserted, as in `test_template_differences.py`.
"""

import gc
import json
import logging
import math
import os
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as orbax
import pytest
from flax.training import orbax_utils
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import checkpoint_manager

import templax as tx
import templax.compat.orbax as compat
from templax import _saving
from templax._run_locks import reading
from templax.compat._orbax_options import Facts
from templax.sources import Staging
from templax.sources._leftovers import temporary

from .test_template_differences import (
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


def run_beside_another(ocp, path):
    """Steps with a prefix are those of another run, and stay."""
    run(ocp, path, range(4), step_prefix="eval")
    said = run(ocp, path, range(2, 6), max_to_keep=1)
    said += run(ocp, path, range(3, 6), max_to_keep=3, step_prefix="eval")
    return [*said, sorted(p.name for p in (path / "run").iterdir())]


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


@hypothesis.given(st.data())
def test_which_steps_stay_is_as_orbaxs_policies_have_it(data):
    """Of any steps, metrics and times, by any of the options together."""
    numbers = data.draw(st.lists(st.integers(0, 40), unique=True, min_size=1, max_size=12))
    losses = st.none() | st.integers(0, 4).map(float)
    facts = {
        step: Facts(None if (loss := data.draw(losses)) is None else {"loss": loss}, seconds)
        for step, seconds in zip(sorted(numbers), range(0, 10_000, 700), strict=False)
    }
    chosen = {
        "max_to_keep": data.draw(st.none() | st.integers(0, 5)),
        "keep_period": data.draw(st.none() | st.integers(1, 9)),
        "keep_time_interval": data.draw(
            st.none() | st.integers(1, 4000).map(lambda s: timedelta(seconds=s))
        ),
        "best_fn": data.draw(st.sampled_from([None, lambda metrics: metrics["loss"]])),
        "best_mode": data.draw(st.sampled_from(["min", "max"])),
        "keep_checkpoints_without_metrics": data.draw(st.booleans()),
    }
    policy = checkpoint_manager._get_default_preservation_policy(
        orbax.CheckpointManagerOptions(**chosen)
    )
    infos = [
        checkpoint_manager.CheckpointInfo(
            step, datetime.fromtimestamp(each.saved, tz=UTC), each.metrics
        )
        for step, each in facts.items()
    ]
    kept = policy.should_preserve(infos, context=None)
    theirs = {info.step for info, stays in zip(infos, kept, strict=True) if stays}
    assert compat.CheckpointManagerOptions(**chosen).stays(facts) == theirs


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


# What fails in the background is raised by the next call.


def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next save fails once it is written."""
    describe = _saving.Job._describe

    def full(job: Any, files: Any) -> Any:
        monkeypatch.setattr(_saving.Job, "_describe", describe)
        raise tx.SaveError("No space is left")

    monkeypatch.setattr(_saving.Job, "_describe", full)


def ended(saver: Any) -> None:
    saver._saved._ended.wait()


@pytest.mark.parametrize("call", ["wait_until_finished", "check_for_errors", "close", "save"])
def test_a_checkpointer_raises_what_failed_in_the_background(call, tmp_path, monkeypatch):
    """Once; nothing is left behind, and the next save works."""
    failing(monkeypatch)
    checkpointer = compat.StandardCheckpointer()
    checkpointer.save(tmp_path / "ckpt", small_tree())
    ended(checkpointer)
    arguments = [tmp_path / "other", small_tree()] if call == "save" else []
    with pytest.raises(tx.SaveError, match=r"^No space is left$"):
        getattr(checkpointer, call)(*arguments)
    assert not list(tmp_path.iterdir())
    checkpointer.check_for_errors()
    checkpointer.save(tmp_path / "ckpt", small_tree())
    checkpointer.close()
    assert_same(compat.StandardCheckpointer().restore(tmp_path / "ckpt"), small_tree())


@pytest.mark.parametrize(
    "call", ["wait_until_finished", "check_for_errors", "close", "save", "restore", "delete"]
)
def test_a_manager_raises_what_failed_in_the_background(call, tmp_path, monkeypatch):
    """Once; the step is no longer listed, those that were to go with it are; it can be saved."""
    options = compat.CheckpointManagerOptions(max_to_keep=1)
    manager = compat.CheckpointManager(tmp_path, options=options)
    manager.save(1, args=compat.args.StandardSave(state(1)))
    manager.wait_until_finished()
    failing(monkeypatch)
    manager.save(2, args=compat.args.StandardSave(state(2)))
    ended(manager)
    assert manager.all_steps() == [1]
    arguments = {"save": [3, None, None, None, False, compat.args.StandardSave(state(3))]}
    arguments |= {"restore": [1], "delete": [1]}
    with pytest.raises(tx.SaveError, match=r"^No space is left$"):
        getattr(manager, call)(*arguments.get(call, []))
    manager.check_for_errors()
    assert [p.name for p in tmp_path.iterdir()] == ["1"]
    assert manager.should_save(2)
    assert manager.save(2, args=compat.args.StandardSave(state(2)))
    manager.close()
    assert manager.all_steps() == [2]


def test_a_manager_lists_what_it_saves_before_it_is_there(tmp_path, monkeypatch):
    """And no longer what will go: the program sees the run as it will be."""
    go, describe = threading.Event(), _saving.Job._describe

    def wait(job: Any, files: Any) -> Any:
        assert go.wait(60)
        return describe(job, files)

    options = compat.CheckpointManagerOptions(max_to_keep=1, best_fn=lambda m: m["acc"])
    with compat.CheckpointManager(tmp_path, options=options) as manager:
        manager.save(1, args=compat.args.StandardSave(state(1)), metrics={"acc": 0.5})
        manager.wait_until_finished()
        monkeypatch.setattr(_saving.Job, "_describe", wait)
        manager.save(2, args=compat.args.StandardSave(state(2)), metrics={"acc": 0.75})
        assert manager.is_saving_in_progress()
        assert (manager.all_steps(), manager.latest_step(), manager.best_step()) == ([2], 2, 2)
        assert manager.metrics(2) == {"acc": 0.75}
        assert not manager.should_save(2)
        assert [p.name for p in tmp_path.iterdir() if p.name.isdigit()] == ["1"]
        go.set()
    assert [p.name for p in tmp_path.iterdir()] == ["2"]


@pytest.mark.parametrize("wait", [True, False])
def test_v1_raises_what_failed(wait, tmp_path, monkeypatch):
    """`result` does, every time."""
    failing(monkeypatch)
    if wait:
        with pytest.raises(tx.SaveError, match="No space"):
            compat.v1.save(tmp_path / "ckpt", small_tree())
        return
    response = compat.v1.save_async(tmp_path / "ckpt", small_tree())
    for _ in range(2):
        with pytest.raises(tx.SaveError, match="No space"):
            response.result(timeout=60)


def test_a_callback_that_fails_is_raised_like_a_save(tmp_path):
    """Though the checkpoint is there by then."""

    def broken() -> None:
        raise RuntimeError("mine")

    options = compat.AsyncOptions(post_finalization_callback=broken)
    checkpointer = compat.StandardCheckpointer(async_options=options)
    checkpointer.save(tmp_path / "ckpt", small_tree())
    with pytest.raises(RuntimeError, match="mine"):
        checkpointer.wait_until_finished()
    assert (tmp_path / "ckpt").exists()


# What isn't mapped, or means nothing.


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            lambda: compat.args.StandardSave({}, custom_metadata={"a": 1}).content(),
            "`custom_metadata of an item`; hint: that of save(), for the whole checkpoint",
        ),
        (
            lambda: compat.args.PyTreeSave({}, custom_metadata={"a": 1}).content(),
            "`custom_metadata of an item`; hint: that of save(), for the whole checkpoint",
        ),
        (
            lambda: compat.JsonCheckpointHandler("mine.json"),
            "`filename`; hint: leave it out: Orbax's own is `metadata`",
        ),
        (
            lambda: compat.CheckpointManager("run", handler_registry=1),
            "`handler_registry`; hint: args= of save and restore name what each item is",
        ),
        *(
            (lambda name=name: compat.CheckpointManagerOptions(**{name: object()}), f"`{name}`;")
            for name in (
                "step_name_format",
                "save_decision_policy",
                "preservation_policy",
                "todelete_subdir",
                "todelete_full_path",
            )
        ),
    ],
)
def test_what_is_not_mapped_names_the_native_way(code, message):
    """Nothing that changes a result is ignored in silence."""
    with pytest.raises(NotImplementedError) as caught:
        code()
    assert str(caught.value).startswith(f"templax.compat.orbax does not map {message}")


@BOTH
def test_what_means_nothing_is_a_value_error(ocp, tmp_path):
    """In both: no args, args of another kind, no tree, options without sense."""
    tree, manager = small_tree(), ocp.CheckpointManager(tmp_path / "one")
    for arguments in ([1], [1, tree], [1, ocp.args.StandardSave(tree)]):
        with pytest.raises(ValueError):
            manager.save(*arguments)
    named = ocp.CheckpointManager(tmp_path / "named", item_names=("state",))
    with pytest.raises(ValueError):
        named.save(1, args=ocp.args.StandardSave(tree))
    by_name = ocp.CheckpointManager(tmp_path / "by_name", {"state": ocp.PyTreeCheckpointer()})
    with pytest.raises(ValueError):
        by_name.save(1, {"other": tree})
    with pytest.raises(ValueError):
        ocp.StandardCheckpointer().save(tmp_path / "none", None)
    with pytest.raises(ValueError):
        ocp.CheckpointManagerOptions(best_mode="best")
    with pytest.raises(ValueError):
        ocp.CheckpointManagerOptions(max_to_keep=-1)
    args = {"a": ocp.SaveArgs()}
    with pytest.raises(ValueError):
        ocp.PyTreeCheckpointer().save(tmp_path / "structure", tree, save_args=args)


def test_args_that_restore_do_not_save(tmp_path):
    """The kinds are easily mistaken."""
    with pytest.raises(tx.UsageError) as caught:
        compat.Checkpointer(compat.PyTreeCheckpointHandler()).save(
            tmp_path / "ckpt", args=compat.args.StandardRestore({})
        )
    assert str(caught.value) == (
        "Expected args that save, such as StandardSave(tree), got StandardRestore"
    )


# Where they differ: both sides, as `docs/orbax_differences.md` has them.


def weights() -> dict[str, Any]:
    return {"w": jax.random.normal(jax.random.key(0), (64, 64))}


def test_differs_existing_directory(tmp_path):
    """Both refuse, and leave it as it is. Orbax by a `ValueError`, templax by a
    `FileExistsError`."""
    for n, (ocp, error) in enumerate([(orbax, ValueError), (compat, tx.Exists)]):
        path = tmp_path / str(n)
        ocp.PyTreeCheckpointer().save(path, {"old": 1})
        for save in (
            ocp.PyTreeCheckpointer().save,
            ocp.StandardCheckpointer().save,
            ocp.v1.save,
        ):
            with pytest.raises(error, match=r"already exists|not empty"):
                save(path, small_tree())
        assert ocp.PyTreeCheckpointer().restore(path) == {"old": 1}
    assert issubclass(tx.Exists, FileExistsError)


def test_differs_empty_directory(tmp_path):
    """Orbax refuses an empty directory, too; templax saves into it."""
    for name in ("theirs", "ours"):
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="already exists"):
        orbax.PyTreeCheckpointer().save(tmp_path / "theirs", small_tree())
    compat.PyTreeCheckpointer().save(tmp_path / "ours", small_tree())
    assert_same(compat.PyTreeCheckpointer().restore(tmp_path / "ours"), small_tree())


def test_differs_force_that_fails(tmp_path):
    """`force=True` where the new tree can't be saved: Orbax has deleted the old one by then;
    templax swaps them once the new one is there."""
    for name, ocp in (("theirs", orbax), ("ours", compat)):
        ocp.PyTreeCheckpointer().save(tmp_path / name, {"old": 1})
        with pytest.raises((ValueError, tx.SaveError)):
            ocp.PyTreeCheckpointer().save(tmp_path / name, {"new": object()}, force=True)
    assert not (tmp_path / "theirs").exists()
    assert compat.PyTreeCheckpointer().restore(tmp_path / "ours") == {"old": 1}


def test_differs_force_on_something_else(tmp_path):
    """`force=True` on a directory that is no single checkpoint, such as a run or a home: Orbax
    deletes all of it; templax refuses."""
    for name, ocp in (("theirs", orbax), ("ours", compat)):
        run(compat, tmp_path / name, (1, 2))
        home = tmp_path / name / "home"
        home.mkdir()
        (home / "thesis.tex").write_text("five years")
        if ocp is orbax:
            for path in (tmp_path / name / "run", home):
                ocp.PyTreeCheckpointer().save(path, small_tree(), force=True)
            assert not (home / "thesis.tex").exists()
            assert not (tmp_path / name / "run/1").exists()
            continue
        for path, found in ((tmp_path / name / "run", "2 steps"), (home, "other files")):
            with pytest.raises(tx.SaveError, match=f"replaces one checkpoint, found {found}"):
                ocp.PyTreeCheckpointer().save(path, small_tree(), force=True)
        assert (home / "thesis.tex").exists()
        assert (tmp_path / name / "run/1").exists()


def test_differs_what_a_failed_save_leaves(tmp_path):
    """Orbax leaves its temporary directory; templax nothing."""
    for name, ocp in (("theirs", orbax), ("ours", compat)):
        (tmp_path / name).mkdir()
        with pytest.raises((ValueError, tx.SaveError)):
            ocp.PyTreeCheckpointer().save(tmp_path / name / "ckpt", {"x": object()})
    assert os.listdir(tmp_path / "theirs") == ["ckpt.orbax-checkpoint-tmp"]
    assert os.listdir(tmp_path / "ours") == []


def test_differs_leaves_that_cannot_be_saved(tmp_path):
    """Orbax names one, templax all."""
    tree = {"a": object(), "b": {"c": S((2,), jnp.float32)}, "d": jnp.ones(2)}
    with pytest.raises(ValueError, match="TypeHandler lookup failed") as theirs:
        orbax.PyTreeCheckpointer().save(tmp_path / "theirs", tree)
    assert "key='a'" in str(theirs.value)
    assert "key='c'" not in str(theirs.value)
    with pytest.raises(tx.SaveError) as ours:
        compat.PyTreeCheckpointer().save(tmp_path / "ours", tree)
    assert str(ours.value) == (
        "This tree can't be saved: `a` is a builtins.object, which holds no array; "
        "`b.c` is abstract: it has a shape and a dtype, but no values"
    )


def test_differs_arrays_without_elements(tmp_path):
    """Orbax refuses to save one; templax saves it, and both restore it."""
    tree = {"x": np.zeros((0, 3), np.float32), "y": jnp.ones(2)}
    with pytest.raises(ValueError, match="Cannot save arrays with zero size"):
        orbax.PyTreeCheckpointer().save(tmp_path / "theirs", tree)
    compat.PyTreeCheckpointer().save(tmp_path / "ours", tree)
    assert_same(compat.StandardCheckpointer().restore(tmp_path / "ours", tree), tree)
    assert_same(orbax.StandardCheckpointer().restore(tmp_path / "ours", tree), tree)


def test_differs_functions_in_a_tree(tmp_path):
    """As in a Flax `TrainState` of old: Orbax refuses; templax leaves them to the template."""
    tree = {"apply": len, "w": jnp.ones(2)}
    with pytest.raises(ValueError, match="TypeHandler lookup failed"):
        orbax.PyTreeCheckpointer().save(tmp_path / "theirs", tree)
    compat.PyTreeCheckpointer().save(tmp_path / "ours", tree)
    restored = compat.PyTreeCheckpointer().restore(tmp_path / "ours", tree)
    assert restored["apply"] is len
    assert_same(orbax.PyTreeCheckpointer().restore(tmp_path / "ours"), {"w": jnp.ones(2)})


def test_differs_standard_and_bare_arrays(tmp_path):
    """`StandardSave` of one array: Orbax refuses; templax saves it."""
    with pytest.raises(ValueError, match="does not support single arrays"):
        orbax.StandardCheckpointer().save(tmp_path / "theirs", jnp.ones(3))
    with compat.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "ours", jnp.ones(3))
    for ocp in (orbax, compat):
        assert_same(ocp.PyTreeCheckpointer().restore(tmp_path / "ours"), jnp.ones(3))


def test_differs_complex_numbers(tmp_path):
    """A Python complex number: Orbax refuses; templax saves it."""
    with pytest.raises(ValueError, match="Unsupported type"):
        orbax.StandardCheckpointer().save(tmp_path / "theirs", {"z": 1 + 2j})
    with compat.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "ours", {"z": 1 + 2j})
    assert compat.StandardCheckpointer().restore(tmp_path / "ours", {"z": 0j}) == {"z": 1 + 2j}
    assert orbax.StandardCheckpointer().restore(tmp_path / "ours")["z"] == 1 + 2j


def test_differs_saving_dotted_keys(tmp_path):
    """`{"a.b": x, "a": {"b": y}}`: Orbax saves one of the two; templax refuses."""
    tree = {"a.b": jnp.ones(2), "a": {"b": jnp.zeros(2)}}
    orbax.PyTreeCheckpointer().save(tmp_path / "theirs", tree)
    restored = orbax.PyTreeCheckpointer().restore(tmp_path / "theirs")
    assert restored["a.b"].tolist() == restored["a"]["b"].tolist()
    with pytest.raises(tx.SaveError, match=r"two leaves are named `a\.b`"):
        compat.PyTreeCheckpointer().save(tmp_path / "ours", tree)


def test_differs_flipped_bit_in_what_it_saved(tmp_path):
    """What templax saves has checksums: `Damaged`, with leaf and file. Orbax takes the weights,
    whoever saved them."""
    path = tmp_path / "ckpt"
    compat.PyTreeCheckpointer().save(path, weights())
    (file,) = (path / "d").iterdir()
    altered = bytearray(file.read_bytes())
    altered[5000] ^= 1
    file.write_bytes(altered)
    theirs = orbax.PyTreeCheckpointer().restore(path)
    assert np.asarray(theirs["w"]).tobytes() != np.asarray(weights()["w"]).tobytes()
    with pytest.raises(tx.Damaged) as caught:
        compat.PyTreeCheckpointer().restore(path)
    assert (caught.value.leaf, caught.value.file) == ("w", f"d/{file.name}")


def test_differs_compression(tmp_path):
    """Orbax compresses by default; templax writes raw bytes, that can be mapped."""
    tree = {"w": jnp.zeros((512, 512))}
    for name, ocp in (("theirs", orbax), ("ours", compat)):
        ocp.PyTreeCheckpointer(use_compression=True).save(tmp_path / name, tree)

    def nbytes(name: str) -> int:
        return sum(f.stat().st_size for f in (tmp_path / name).rglob("*") if f.is_file())

    assert nbytes("theirs") < 50_000
    assert 1024 * 1024 < nbytes("ours") < 1024 * 1024 + 50_000
    tx.save(tmp_path / "small", tree, compression="zstd")
    assert nbytes("small") < 50_000


def test_differs_cast_of_a_key(tmp_path):
    """`SaveArgs(dtype=)` for a typed key: Orbax saves what can't be restored; templax does not
    cast keys."""
    tree = {"key": jax.random.key(7)}
    for name, ocp in (("theirs", orbax), ("ours", compat)):
        args = {"key": ocp.SaveArgs(dtype=np.dtype(np.float32))}
        ocp.PyTreeCheckpointer().save(tmp_path / name, tree, save_args=args)
    with pytest.raises(TypeError, match="invalid PRNG key data"):
        orbax.PyTreeCheckpointer().restore(tmp_path / "theirs")
    for ocp in (orbax, compat):
        assert_same(ocp.PyTreeCheckpointer().restore(tmp_path / "ours"), tree)


def test_differs_dtype_of_save_args(tmp_path):
    """Orbax wants `np.dtype` objects; templax takes what names a dtype."""

    def run(ocp: Any, name: str) -> None:
        args = {"w": ocp.SaveArgs(dtype=jnp.bfloat16)}
        ocp.PyTreeCheckpointer().save(tmp_path / name, weights(), save_args=args)

    with pytest.raises(AttributeError, match="itemsize"):
        run(orbax, "theirs")
    run(compat, "ours")
    assert orbax.PyTreeCheckpointer().restore(tmp_path / "ours")["w"].dtype == jnp.bfloat16


def test_differs_aggregate(tmp_path):
    """`SaveArgs(aggregate=True)` by `StandardSave`: Orbax refuses it; templax ignores it."""
    args = {"w": orbax.SaveArgs(aggregate=True)}
    with pytest.raises(ValueError, match="Unsupported option `aggregate`"):
        orbax.StandardCheckpointer().save(tmp_path / "theirs", weights(), save_args=args)
    args = {"w": compat.SaveArgs(aggregate=True)}
    with compat.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "ours", weights(), save_args=args)
    assert_same(orbax.StandardCheckpointer().restore(tmp_path / "ours"), weights())


def test_differs_saving_to_a_relative_path(tmp_path, monkeypatch):
    """Orbax wants absolute paths; templax takes any, and stays there when the directory changes."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="should be absolute"):
        orbax.PyTreeCheckpointer().save("theirs", small_tree())
    compat.PyTreeCheckpointer().save("ours", small_tree())
    manager = compat.CheckpointManager("run")
    monkeypatch.chdir("/")
    manager.save(1, args=compat.args.StandardSave(small_tree()))
    manager.close()
    assert {"ours", "run"} <= set(os.listdir(tmp_path))


def test_differs_json_that_is_none(tmp_path):
    """In the background: Orbax says so when it is waited for; templax at the call, and saves
    nothing of the step."""

    def save(ocp: Any, path: Path) -> Any:
        manager = ocp.CheckpointManager(path, item_names=("state", "meta"))
        items = {"state": ocp.args.StandardSave(state(1)), "meta": ocp.args.JsonSave({"x": {1}})}
        manager.save(1, args=ocp.args.Composite(**items))
        return manager

    theirs = save(orbax, tmp_path / "theirs")
    with pytest.raises(TypeError, match="not JSON serializable"):
        theirs.wait_until_finished()
    with pytest.raises(tx.SaveError, match="as item `meta`: Object of type set is not JSON"):
        save(compat, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_differs_existing_step(tmp_path):
    """Both refuse, and the step stays. Orbax by a `ValueError`, templax by a `FileExistsError`."""
    for name, ocp, error in (("theirs", orbax, ValueError), ("ours", compat, tx.Exists)):
        run(ocp, tmp_path / name, (1, 2))
        with ocp.CheckpointManager(tmp_path / name / "run") as manager:
            args = ocp.args.StandardSave(small_tree())
            assert not manager.save(2, args=args)
            with pytest.raises(error, match=r"step 2 already exists|Step 2 is there already"):
                manager.save(2, args=args, force=True)
            assert manager.restore(2)["step"] == 2


def test_differs_lower_step_by_force(tmp_path):
    """After 10 and 12, 3 by force: to Orbax the newest is the one saved last, until the run is
    opened again; to templax the highest. The one just saved stays in both."""
    told = {}
    for name, ocp in (("theirs", orbax), ("ours", compat)):
        options = ocp.CheckpointManagerOptions(max_to_keep=2)
        with ocp.CheckpointManager(tmp_path / name, options=options) as manager:
            for step in (10, 12, 3):
                manager.save(step, args=ocp.args.StandardSave(state(step)), force=True)
            manager.wait_until_finished()
            told[name] = sorted(manager.all_steps()), manager.latest_step()
    assert told == {"theirs": ([3, 12], 3), "ours": ([3, 12], 12)}
    assert orbax.CheckpointManager(tmp_path / "theirs").latest_step() == 12


def test_differs_steps_of_another_name(tmp_path):
    """A run of `ckpt_000007`, continued without `step_prefix`: Orbax sees no step; templax finds
    and restores them until there are others. Both begin anew, and delete none of them."""
    for name, ocp in (("theirs", orbax), ("ours", compat)):
        run_with_prefix(ocp, tmp_path / name)
        options = ocp.CheckpointManagerOptions(max_to_keep=1)
        with ocp.CheckpointManager(tmp_path / name / "run", options=options) as manager:
            assert list(manager.all_steps()) == ([] if ocp is orbax else [7, 12])
            for step in (12, 20):
                assert manager.save(step, args=ocp.args.StandardSave(state(step)))
            assert list(manager.all_steps()) == [20]
        assert set(os.listdir(tmp_path / name / "run")) == {"20", "ckpt_000007", "ckpt_000012"}


def test_differs_steps_of_other_programs(tmp_path):
    """Orbax's manager knows the steps of when it was made; templax's lists the directory."""
    theirs, ours = (ocp.CheckpointManager(tmp_path / "run") for ocp in (orbax, compat))
    run(compat, tmp_path, (1, 2))
    assert (list(theirs.all_steps()), theirs.latest_step()) == ([], None)
    theirs.reload()
    assert list(theirs.all_steps()) == [1, 2]
    assert (ours.all_steps(), ours.latest_step()) == ([1, 2], 2)


def test_differs_step_that_is_being_restored(tmp_path):
    """Orbax deletes a step while templax, in another program, restores it; templax leaves it for
    the next time."""
    for name, ocp in (("theirs", orbax), ("ours", compat)):
        run(compat, tmp_path / name, (1,))
        options = ocp.CheckpointManagerOptions(max_to_keep=1)
        with ocp.CheckpointManager(tmp_path / name / "run", options=options) as manager:
            with reading(str(tmp_path / name / "run/1")):
                manager.save(2, args=ocp.args.StandardSave(state(2)))
                manager.wait_until_finished()
            there = sorted(os.listdir(tmp_path / name / "run"))
            assert there == (["2"] if ocp is orbax else ["1", "2"])
            manager.save(3, args=ocp.args.StandardSave(state(3)))
        assert os.listdir(tmp_path / name / "run") == ["3"]


def test_differs_metric_that_is_nan(tmp_path):
    """A NaN is the best or not to Orbax, as sorting has it; to templax it never is."""
    best = {}
    for name, ocp in (("theirs", orbax), ("ours", compat)):
        options = ocp.CheckpointManagerOptions(best_fn=lambda m: m["loss"], best_mode="min")
        with ocp.CheckpointManager(tmp_path / name, options=options) as manager:
            for step, loss in enumerate([2.0, 1.0, math.nan]):
                args = ocp.args.StandardSave(state(step))
                manager.save(step, args=args, metrics={"loss": loss})
            best[name] = manager.best_step()
    assert best == {"theirs": 2, "ours": 1}


def test_differs_cleaning_up(tmp_path):
    """`cleanup_tmp_directories=True`: Orbax deletes all temporary directories, also that of a save
    that goes on; templax those that nobody writes to."""
    for name, ocp in (("theirs", orbax), ("ours", compat)):
        run = tmp_path / name
        now, old = (run / f"{n}.orbax-checkpoint-tmp" for n in (1, 2))
        left = Path(temporary(str(run / "3")))
        for directory in (now, old, left):
            directory.mkdir(parents=True)
        os.utime(old, (0, 0))
        live = Staging(run / "4", overwrite=False)
        options = ocp.CheckpointManagerOptions(cleanup_tmp_directories=True)
        manager = ocp.CheckpointManager(run, options=options)
        manager.save(5, args=ocp.args.StandardSave(state(5)))
        manager.close()
        stays = set() if ocp is orbax else {now, Path(live.directory)}
        assert set(run.iterdir()) == stays | {run / "5"}
        live.discard()


def test_differs_files_that_they_write(tmp_path):
    """The same files and directories, but for what each has of its own."""
    for name, ocp in (("theirs", orbax), ("ours", compat)):
        several(ocp, tmp_path / name)
    theirs, ours = (
        {
            str(f.relative_to(tmp_path / name / "run/2"))
            for f in (tmp_path / name / "run/2").rglob("*")
            if f.is_file() and "/d/" not in str(f)
        }
        for name in ("theirs", "ours")
    )
    trees = ("state", "ema")
    assert theirs - ours == {f"{tree}/ocdbt.process_0/manifest.ocdbt" for tree in trees}
    assert ours - theirs == {f"{tree}/templax.index" for tree in trees}
