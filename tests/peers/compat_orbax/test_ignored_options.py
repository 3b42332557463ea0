"""Options that change what Orbax does: they do the same here, or are refused by name."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as orbax
import pytest
from orbax.checkpoint import type_handlers

import templax.compat.orbax as compat
from templax.compat.orbax import v1

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("collect_garbage"),
]
RICH = SimpleNamespace(support_rich_types=True)
PLAIN = SimpleNamespace(support_rich_types=False)


class OwnHandler(compat.PyTreeCheckpointHandler):
    def restore(self, directory, *args, **kwargs):
        return "mine"


@pytest.mark.parametrize(
    "handler", [compat.PyTreeCheckpointHandler, compat.handlers.BasePyTreeCheckpointHandler]
)
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("type_handler_registry", object()),
        ("type_handler_registry", SimpleNamespace(_type_registry=[(None, OwnHandler())])),
        ("handler_impl", OwnHandler()),
    ],
)
def test_options_of_handlers_that_change_a_result_are_refused(handler, option, value):
    with pytest.raises(NotImplementedError, match=option):
        handler(**{option: value})


def test_options_of_handlers_that_change_nothing_are_accepted(tmp_path):
    handler = compat.PyTreeCheckpointHandler(
        type_handler_registry=type_handlers.create_type_handler_registry(
            (int, type_handlers.ScalarHandler())
        ),
        handler_impl=compat.handlers.BasePyTreeCheckpointHandler(),
        pytree_metadata_options=PLAIN,
    )
    checkpointer = compat.Checkpointer(handler)
    checkpointer.save(tmp_path / "c", {"n": 7})
    assert checkpointer.restore(tmp_path / "c") == {"n": 7}


def test_rich_types_have_no_effect_and_the_log_says_so(caplog):
    compat.PyTreeCheckpointHandler(pytree_metadata_options=PLAIN)
    v1.Context().pytree.saving.pytree_metadata_options = PLAIN
    assert caplog.text == ""
    compat.PyTreeCheckpointHandler(pytree_metadata_options=RICH)
    v1.Context().pytree.saving.pytree_metadata_options = RICH
    first, second = caplog.messages
    assert first.startswith("PyTreeCheckpointHandler: support_rich_types has no effect")
    assert second.startswith("PyTreeOptions.Saving: support_rich_types has no effect")


@pytest.mark.parametrize(
    "option", [{"leaf_handler_registry": object()}, {"partial_save_mode": True}]
)
def test_options_of_the_v1_handler_of_trees_are_refused(option):
    with pytest.raises(NotImplementedError, match=next(iter(option))):
        v1.handlers.PyTreeHandler(**option)


def make_slow_args(ocp, seconds):
    """Args of a handler that writes for that long after its call."""
    pool = ThreadPoolExecutor(1)

    class SlowHandler(ocp.AsyncCheckpointHandler):
        async def async_save(self, directory, args):
            return [pool.submit(time.sleep, seconds)]

        def save(self, directory, args):
            time.sleep(seconds)

        def restore(self, directory, args):
            return "restored"

    @ocp.args.register_with_handler(SlowHandler, for_save=True, for_restore=True)
    @dataclass
    class SlowArgs(ocp.args.CheckpointArgs):
        pass

    return SlowHandler(), SlowArgs()


def save_slowly(ocp, way, path, seconds):
    handler, args = make_slow_args(ocp, seconds)
    limit = ocp.AsyncOptions(timeout_secs=1)
    if way == "manager":
        options = ocp.CheckpointManagerOptions(async_options=limit)
        saver = ocp.CheckpointManager(path, options=options)
        saver.save(1, args=args)
        return saver, path / "1"
    if way == "checkpointer of manager":
        given = ocp.AsyncCheckpointer(handler, timeout_secs=1)
        saver = ocp.CheckpointManager(path, given)
        saver.save(1, args=args)
        return saver, path / "1"
    options = {"timeout_secs": 1} if way == "timeout_secs" else {"async_options": limit}
    saver = ocp.AsyncCheckpointer(handler, **options)
    saver.save(path / "c", args=args)
    return saver, path / "c"


@pytest.mark.parametrize(
    "way", ["timeout_secs", "async_options", "manager", "checkpointer of manager"]
)
@pytest.mark.parametrize("ocp", [orbax, compat], ids=["theirs", "ours"])
def test_a_handler_that_writes_for_too_long_fails_the_save(ocp, way, tmp_path):
    saver, path = save_slowly(ocp, way, tmp_path, 1.5)
    with pytest.raises(TimeoutError):
        saver.wait_until_finished()
    assert not path.exists()


@pytest.mark.parametrize(
    ("peer", "beside"),
    [(orbax, False), (compat, False), (compat, True)],
    ids=["theirs", "ours", "ours beside one that waits"],
)
def test_the_time_limit_of_a_checkpointer_holds_in_a_manager(peer, beside, tmp_path):
    """Of Orbax's own checkpointers, too. One that waits has no say."""
    handler, args = make_slow_args(peer, 1.5)
    given = peer.AsyncCheckpointer(handler, timeout_secs=1)
    manager = compat.CheckpointManager(tmp_path, given)
    if beside:
        waiting = peer.Checkpointer(peer.PyTreeCheckpointHandler())
        manager = compat.CheckpointManager(tmp_path, {"slow": given, "tree": waiting})
        args = peer.args.Composite(slow=args, tree=peer.args.PyTreeSave({"w": 1}))
    manager.save(1, args=args)
    with pytest.raises(TimeoutError):
        manager.wait_until_finished()
    assert not (tmp_path / "1").exists()


def test_handlers_have_as_much_time_as_with_orbax():
    assert compat.AsyncOptions().timeout_secs == orbax.AsyncOptions().timeout_secs


def test_a_handler_that_ends_in_time_is_saved(tmp_path):
    saver, path = save_slowly(compat, "async_options", tmp_path, 0.01)
    saver.wait_until_finished()
    assert path.exists()


def test_a_timeout_of_no_time_is_refused():
    with pytest.raises(ValueError, match="timeout_secs"):
        compat.AsyncCheckpointer(compat.StandardCheckpointHandler(), timeout_secs=-1)


@pytest.mark.parametrize("ocp", [orbax, compat], ids=["theirs", "ours"])
def test_numbers_only_name_leaves_in_an_item_with_transforms(ocp, tmp_path):
    checkpointer = ocp.PyTreeCheckpointer()
    checkpointer.save(tmp_path / "c", {"p": {"w": jnp.arange(4.0)}})
    restored = checkpointer.restore(
        tmp_path / "c",
        item={"q": {"w": 0}},
        restore_args={"q": {"w": ocp.RestoreArgs()}},
        transforms={r"q/(.*)": ocp.Transform(original_key=r"p/\1")},
    )
    np.testing.assert_array_equal(restored["q"]["w"], [0, 1, 2, 3])
