"""The same code saves under Orbax and under `templax.compat.orbax`; each restores both results."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training import orbax_utils
from jax.sharding import NamedSharding, PartitionSpec

import templax as tx
import templax.compat.orbax as compat
from helpers import abstract, mark_slow
from side_by_side import (
    assert_interchangeable,
    assert_same,
    first_device,
    make_mesh,
    rich_tree,
    sharded_tree,
    small_tree,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("collect_garbage"),
]
S = jax.ShapeDtypeStruct


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
    """As in the guides of Flax; these save args are those of Orbax."""
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
    """Through a template, without which Orbax does not keep the dtype of the number."""
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
        "w": S(
            (8, 4), jnp.float32, sharding=NamedSharding(make_mesh(), PartitionSpec(None, "data"))
        ),
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
)


QUICK_ITEMS = ITEMS[::2]
MORE_ITEMS = mark_slow(*(item for item in ITEMS if item not in QUICK_ITEMS))


@pytest.mark.parametrize(("code", "read"), [*QUICK_ITEMS, *MORE_ITEMS], ids=lambda f: f.__name__)
def test_saves_are_interchangeable(code, read, tmp_path):
    """After one changed import, the same tree is saved and restored."""
    assert_interchangeable(code, read, tmp_path)


@pytest.mark.parametrize("call", ["wait_until_finished", "check_for_errors", "close", "save"])
def test_a_checkpointer_raises_what_failed_in_the_background(
    call, tmp_path, monkeypatch, fail_next_save
):
    """Once; nothing is left behind, and the next save succeeds."""
    fail_next_save()
    checkpointer = compat.StandardCheckpointer()
    checkpointer.save(tmp_path / "ckpt", small_tree())
    checkpointer._pending._saved._outcome.wait_for_end()
    arguments = [tmp_path / "other", small_tree()] if call == "save" else []
    with pytest.raises(tx.SaveError, match=r"^No space is left$"):
        getattr(checkpointer, call)(*arguments)
    assert not list(tmp_path.iterdir())
    checkpointer.check_for_errors()
    checkpointer.save(tmp_path / "ckpt", small_tree())
    checkpointer.close()
    assert_same(compat.StandardCheckpointer().restore(tmp_path / "ckpt"), small_tree())


def test_an_error_of_a_callback_is_raised_like_one_of_the_save(tmp_path):
    """Although the checkpoint is complete by then."""

    def broken() -> None:
        raise RuntimeError("mine")

    options = compat.AsyncOptions(post_finalization_callback=broken)
    checkpointer = compat.StandardCheckpointer(async_options=options)
    checkpointer.save(tmp_path / "ckpt", small_tree())
    with pytest.raises(RuntimeError, match="mine"):
        checkpointer.wait_until_finished()
    assert (tmp_path / "ckpt").exists()
