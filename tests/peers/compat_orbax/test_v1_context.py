"""Contexts and option groups of the v1 API, under Orbax and under `templax.compat.orbax`."""

import contextlib
import threading

import numpy as np
import orbax.checkpoint as orbax
import pytest

import templax.compat.orbax as compat
from side_by_side import assert_same, quiet

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("collect_garbage"),
]
LIBRARIES = pytest.mark.parametrize("ocp", [orbax.v1, compat.v1], ids=["orbax", "templax"])


def current(ocp):
    """The context that a call would obey now."""
    if ocp is compat.v1:
        from templax.compat.orbax.experimental.v1.context import get_context
    else:
        from orbax.checkpoint.experimental.v1._src.context.context import get_context
    return get_context()


@LIBRARIES
def test_groups_are_attributes_under_both_names(ocp):
    """Each group is at its name and, as before, at that of the argument."""
    with quiet():
        context = ocp.Context(
            async_options=ocp.options.AsyncOptions(timeout_secs=600),
            checkpoint_layout="safetensors",
        )
    context.array.saving.storage_options.dtype = np.float16
    context.deletion.gcs_deletion_options = ocp.options.DeletionOptions.GcsDeletionOptions()
    assert context.asynchronous.timeout_secs == context.async_options.timeout_secs == 600
    assert context.array_options.saving.storage_options.dtype is np.float16
    assert context.checkpoint_layout is ocp.options.CheckpointLayout.SAFETENSORS
    for group in [
        "pytree",
        "multiprocessing",
        "file",
        "checkpointables",
        "pathways",
        "memory",
        "safetensors",
    ]:
        assert getattr(context, group) is getattr(context, f"{group}_options")
    assert context.multiprocessing.primary_host == 0
    assert context.atomicity.mode == "auto"


@LIBRARIES
def test_a_context_copies_its_parent(ocp):
    """Changes to either do not reach the other; without a parent, the options are the defaults."""
    parent = ocp.Context()
    parent.pytree.loading.partial_load = True
    child = ocp.Context(parent)
    child.array.loading.use_load_and_broadcast = True
    parent.pytree.loading.partial_load = False
    assert child.pytree.loading.partial_load
    assert not parent.array.loading.use_load_and_broadcast
    assert not ocp.Context().pytree.loading.partial_load


@LIBRARIES
def test_an_active_context_is_frozen(ocp):
    """Its options can be set before and after its block, and those of another at any time."""
    outer, inner = ocp.Context(), ocp.Context()
    with outer as entered:
        assert entered is outer
        with inner, pytest.raises(RuntimeError, match="mutate options of an active context"):
            outer.array.saving.storage_options.dtype = np.float16
        inner.pytree.loading.partial_load = True
        assert current(ocp) is outer
        with pytest.raises(RuntimeError):
            outer.checkpoint_layout = "safetensors"
    outer.checkpoint_layout = "safetensors"
    with pytest.raises(ValueError, match="elsewhere"):
        outer.checkpoint_layout = "elsewhere"


@LIBRARIES
def test_a_context_is_of_its_thread(ocp):
    """Another thread sees the defaults; with templax it may enter the same context meanwhile."""
    context, seen = ocp.Context(), []
    context.pytree.loading.partial_load = True

    def look():
        seen.append(current(ocp).pytree.loading.partial_load)
        with context if ocp is compat.v1 else contextlib.nullcontext():
            seen.append(current(ocp).pytree.loading.partial_load)

    with context:
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert current(ocp) is context
    assert seen == [False, ocp is compat.v1]


@pytest.mark.parametrize(
    ("group", "option", "value", "hint"),
    [
        ("array.loading", "enable_padding_and_truncation", True, "jnp.pad"),
        ("array.loading", "raise_array_data_missing_error", False, "never filled with zeros"),
        ("deletion.gcs_deletion_options", "todelete_full_path", "trash", "deleted, not moved"),
        ("memory", "serialization_status_callback", print, "on_progress"),
        ("file", "made_up", 1, "no option has this name"),
    ],
)
def test_options_that_would_change_a_result_are_refused(group, option, value, hint):
    """By name, when they are set; the value that changes nothing is accepted."""
    options = compat.v1.Context()
    for name in group.split("."):
        options = getattr(options, name)
    with pytest.raises(NotImplementedError, match=f"does not map `.*{option}`; hint: .*{hint}"):
        setattr(options, option, value)
    if hasattr(options, option):
        setattr(options, option, getattr(options, option))
        with pytest.raises(NotImplementedError, match=option):
            type(options)(**{option: value})


def test_some_processes_alone_are_refused(tmp_path):
    """All processes of a job take part in a call, so that a subset would wait for ever."""
    context = compat.v1.Context()
    context.multiprocessing.active_processes = {0, 1}
    with context, pytest.raises(NotImplementedError, match="active_processes"):
        compat.v1.save(tmp_path / "ckpt", {"w": 1})
    context.multiprocessing.active_processes = {0}
    with context:
        compat.v1.save(tmp_path / "ckpt", {"w": 1})


def save_as_asked(ocp, path):
    """Leaves in the dtypes that the options ask for: one for all, and others by key."""
    context = ocp.Context()
    context.array.saving.storage_options.dtype = np.float16

    def scoped(keys, value):
        options = ocp.options.ArrayOptions.Saving.StorageOptions
        return options(dtype=np.int8) if keys[0].key == "small" else None

    context.array.saving.scoped_storage_options_creator = scoped
    tree = {"small": np.arange(3), "large": np.arange(3.0), "n": 1.5}
    with context:
        ocp.save(path / "ckpt", tree)
    return ocp.load(path / "ckpt")


def test_storage_options_cast(tmp_path):
    for name in ("theirs", "ours"):
        (tmp_path / name).mkdir()
    ours = save_as_asked(compat.v1, tmp_path / "ours")
    assert_same(ours, save_as_asked(orbax.v1, tmp_path / "theirs"))
    assert ours["small"].dtype == np.int8


@LIBRARIES
def test_partial_load(ocp, tmp_path):
    """Leaves that the abstract tree lacks are left out; without the option they are an error."""
    ocp.save(tmp_path / "ckpt", {"a": np.ones(2), "b": 2})
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        assert ocp.load(tmp_path / "ckpt", {"b": 0}) == {"b": 2}
    with pytest.raises(ValueError, match="a"):
        ocp.load(tmp_path / "ckpt", {"b": 0})


def test_a_callback_after_a_save_in_the_background(tmp_path):
    """Both the context's and those of the response are called once the checkpoint is there."""
    seen, context = [], compat.v1.Context()
    path = tmp_path / "ckpt"
    context.asynchronous.post_finalization_callback = lambda: seen.append(path.exists())
    with context:
        response = compat.v1.save_async(path, {"w": np.ones(1000)})
    response.on_complete(lambda value: seen.append(value))
    response.result()
    response.on_complete(lambda value: seen.append("late"))
    assert sorted(map(str, seen)) == ["None", "True", "late"]
