"""Arguments that are invalid, or that `templax.compat.orbax` does not map."""

import orbax.checkpoint as orbax
import pytest

import templax as tx
import templax.compat.orbax as compat
from side_by_side import first_device, small_tree

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.mark.slow
def test_fallback_sharding_names_the_native_option(at):
    """Which is `shardings=`."""
    args = compat.args.StandardRestore(small_tree(), fallback_sharding=first_device())
    with pytest.raises(NotImplementedError) as caught:
        compat.StandardCheckpointer().restore(at.small_standard, args=args)
    assert str(caught.value) == (
        "templax.compat.orbax does not map `fallback_sharding`; "
        "hint: templax.restore(path, item, shardings=...)"
    )


def test_an_unmapped_name_is_an_attribute_error():
    """So `hasattr` works."""
    with pytest.raises(AttributeError) as caught:
        _ = compat.PyTreeCheckpointerFactory
    assert str(caught.value) == (
        "templax.compat.orbax has no `PyTreeCheckpointerFactory`; "
        "hint: Checkpointer, CheckpointManager and args.StandardSave, args.StandardRestore of "
        "templax.compat.orbax; or templax.save(path, tree) and templax.restore(path, template)"
    )
    assert not hasattr(compat.args, "NothingSave")
    assert not hasattr(compat.v1, "NoContext")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            lambda: compat.CheckpointManagerOptions(todelete_full_path="trash/"),
            "`todelete_full_path`; hint: todelete_subdir=",
        ),
    ],
)
def test_unmapped_options_name_the_native_ones(code, message):
    """Nothing that changes a result is ignored silently."""
    with pytest.raises(NotImplementedError) as caught:
        code()
    assert str(caught.value).startswith(f"templax.compat.orbax does not map {message}")


@pytest.mark.parametrize("ocp", [orbax, compat], ids=["orbax", "compat"])
@pytest.mark.usefixtures("collect_garbage")
def test_invalid_arguments_raise_value_errors(ocp, tmp_path):
    """In both: no args, args of another kind, no tree, invalid options."""
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


def test_args_for_a_restore_are_refused_by_save(tmp_path):
    """The two kinds are easily confused."""
    with pytest.raises(tx.UsageError) as caught:
        compat.Checkpointer(compat.PyTreeCheckpointHandler()).save(
            tmp_path / "ckpt", args=compat.args.StandardRestore({})
        )
    assert str(caught.value) == (
        "Expected args that save, such as StandardSave(tree), got StandardRestore"
    )


@pytest.mark.parametrize("ocp", [orbax, compat], ids=["orbax", "compat"])
def test_options_that_do_not_exist_are_refused(ocp):
    """Those that only tune are accepted."""
    ocp.PyTreeCheckpointHandler(use_ocdbt=False, save_concurrent_gb=1)
    ocp.StandardCheckpointer(save_concurrent_gb=1).close()
    ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler(), timeout_secs=60).close()
    for make in (
        lambda: ocp.PyTreeCheckpointHandler(use_ocbdt=True),
        lambda: ocp.StandardCheckpointer(save_concurent_gb=1),
        lambda: ocp.Checkpointer(ocp.PyTreeCheckpointHandler(), tmeout=1),
        lambda: ocp.JsonCheckpointHandler(file_name="x"),
    ):
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            make()
