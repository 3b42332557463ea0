"""Saves that never finished, by every name and of every generation, and what Orbax keeps apart."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts
from orbax.checkpoint.experimental import v1

import templax as tx
from helpers import CORPUS, run_cli
from opening import open_local, read_refusal
from templax.errors import Corrupted, NotFound, Uncommitted
from templax.formats.orbax.directory import list_steps, uncommitted_reason
from templax.storage import Local

pytestmark = pytest.mark.usefixtures("own_event_loop")

CASES = [
    "orbax-0.12.8-default",
    "orbax-0.6.4-default",
    "orbax-0.4.4-default",
    "orbax-0.2.3-default",
]


def damage(path):
    """Removes what a save writes last, so that the tree can't be read."""
    shutil.rmtree(next(p for p in sorted(path.iterdir()) if p.is_dir()))
    for name in ("manifest.ocdbt", "_METADATA"):
        (path / name).unlink(missing_ok=True)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "suffix",
    [
        ".orbax-checkpoint-tmp",
        ".orbax-checkpoint-tmp-3",
        ".orbax-checkpoint-tmp-1676543210123456",
        ".orbax-checkpoint-tmp-templax-01234567-0123456789abcdef",
        ".partial_save",
        ".partial_save.orbax-checkpoint-tmp",
    ],
)
def test_a_temporary_name_is_uncommitted_whatever_is_there(case, name, suffix):
    path = case(name, to=f"ckpt{suffix}")
    whole = read_refusal(path, Uncommitted)
    assert f"{path} is not a committed checkpoint: `ckpt{suffix}` " in whole
    assert whole.endswith(
        f'; hint: to read it all the same, restore from tx.open("{path}", uncommitted="allow")'
    )
    assert len(open_local(path, uncommitted="allow").entries) > 5
    damage(path)
    assert read_refusal(path, Uncommitted) == whole.partition("; hint")[0]
    shutil.rmtree(path)
    path.mkdir()
    assert read_refusal(path, Uncommitted) == whole.partition("; hint")[0]
    path.rmdir()
    assert read_refusal(path, NotFound).startswith(f"There is nothing at {path}")


def test_a_step_without_a_commit_time_is_uncommitted_before_its_tree_is_read(case):
    """As a disk mounted by gcsfuse has it, where no directory is renamed."""
    path = case("orbax-0.12.8-manager")
    step = path / "20"
    about = json.loads((step / "_CHECKPOINT_METADATA").read_text())
    (step / "_CHECKPOINT_METADATA").write_text(json.dumps(about | {"commit_timestamp_nsecs": None}))
    (step / "commit_success.txt").unlink()
    (step / "state" / "manifest.ocdbt").unlink()
    shutil.rmtree(step / "state" / "d")
    said = "`_CHECKPOINT_METADATA` has no commit time and there is no `commit_success.txt`"
    for place in (step, step / "state"):
        assert read_refusal(place, Uncommitted) == f"{place} is not a committed checkpoint: {said}"
    assert "hint: to read it" in read_refusal(step / "ema", Uncommitted)
    with pytest.raises(Uncommitted, match="what is there is incomplete: "):
        open_local(step / "state", uncommitted="allow")
    assert [step.committed for step in list_steps(Local(path))] == [True, False]


@pytest.mark.parametrize("name", ["orbax-0.4.4-manager", "orbax-0.2.3-manager"])
def test_an_old_step_without_a_commit_file_is_uncommitted_if_the_others_have_one(case, name):
    """As Orbax before 0.6 left it on an object store."""
    path = case(name)
    assert [step.committed for step in list_steps(Local(path))] == [True, True]
    for place in (path / "10", path / "10" / "state", path / "10" / "ema"):
        (place / "commit_success.txt").write_text("")
    assert [step.committed for step in list_steps(Local(path))] == [True, False]
    said = "there is no `commit_success.txt`, which other steps beside it have"
    for place in (path / "20", path / "20" / "state"):
        assert f"{place} is not a committed checkpoint: {said}" in read_refusal(place, Uncommitted)
    assert len(open_local(path / "10" / "state").entries) > 5
    (path / "20" / "commit_success.txt").write_text("")
    assert len(open_local(path / "20" / "state").entries) > 5


def test_the_lack_of_a_commit_file_alone_proves_nothing(case, tmp_path):
    """Steps of an Orbax that records the time of the commit stay as they are, beside newer ones."""
    path = case("orbax-0.6.4-manager")
    newer = case("orbax-0.12.8-manager", to="newer")
    shutil.copytree(newer / "20", path / "30")
    assert (path / "30" / "commit_success.txt").exists()
    assert [step.committed for step in list_steps(Local(path))] == [True, True, True]


def test_a_step_with_an_unfinished_item_is_uncommitted(case):
    path = case("orbax-0.4.4-manager")
    (path / "20" / "state").rename(path / "20" / "state.orbax-checkpoint-tmp-7")
    said = "`state.orbax-checkpoint-tmp-7` is the temporary directory of a save that never finished"
    assert read_refusal(path / "20", Uncommitted).startswith(
        f"{path}/20 is not a committed checkpoint: {said}"
    )
    assert read_refusal(path / "20" / "ema", Uncommitted).startswith(
        f"{path}/20/ema is not a committed checkpoint: {said}"
    )
    assert [step.problem for step in list_steps(Local(path))] == [None, said]


def test_a_run_whose_last_step_is_being_saved_is_no_unfinished_step(case, tmp_path):
    path = case("orbax-0.12.8-manager", to="seed_0")
    shutil.copytree(path / "20", path / "30.orbax-checkpoint-tmp")
    case("orbax-0.12.8-manager", to="seed_1")
    assert list_steps(Local(tmp_path)) == ()
    assert "latest committed step is 20" in read_refusal(path)


@pytest.mark.parametrize("as_directory", [False, True])
def test_a_checkpoint_whose_deletion_began_is_refused_by_name(case, as_directory):
    path = case("orbax-0.12.8-manager")
    marker = path / "20" / "_CHECKPOINT_DELETION"
    if as_directory:
        marker.mkdir()
    else:
        marker.write_text("")
    said = "`_CHECKPOINT_DELETION` in it says that somebody began to delete it"
    assert said in read_refusal(path / "20", Uncommitted)
    assert said in read_refusal(path / "20" / "state", Uncommitted)
    assert "the latest committed step is 10" in read_refusal(path)
    shutil.rmtree(path / "20" / "state")
    assert said in read_refusal(path / "20", Uncommitted)


@pytest.mark.skipif(not hasattr(v1, "partial"), reason="this Orbax has no partial saves")
def test_partial_saves_are_uncommitted_until_they_are_finalized(tmp_path):
    path = tmp_path / "10"
    v1.partial.save(path, {"a": jnp.ones(3)})
    v1.partial.save(path, {"b": jnp.zeros(2)})
    begun = tmp_path / "10.partial_save"
    said = "`10.partial_save` holds partial saves that were never finalized"
    assert read_refusal(begun, Uncommitted) == f"{begun} is not a committed checkpoint: {said}"
    inside = next(begun.iterdir())
    assert said in read_refusal(inside, Uncommitted)
    assert read_refusal(path, NotFound) == (
        f"There is nothing at {path}; a save of it never committed: `10.partial_save` is beside it"
    )
    assert [(s.step, s.problem) for s in list_steps(Local(tmp_path))] == [(10, said)]
    _, _, unfinished = run_cli("steps", tmp_path).output.partition("Left by saves that never")
    assert "10.partial_save" in unfinished
    with tx.Manager(tmp_path) as manager:
        assert manager.path(10) == str(path)  # not the name of the unfinished one
        assert manager.steps() == []
    v1.partial.finalize(path)
    assert sorted(open_local(path).leaves) == ["a", "b"]


def test_an_index_that_was_not_merged_is_uncommitted():
    path = CORPUS / "orbax-0.12.8-crash_merge" / "ckpt.orbax-checkpoint-tmp"
    assert uncommitted_reason(Local(path)) is not None
    assert "hint" not in read_refusal(path, Uncommitted)


def write_split_database(path, **prefixes):
    """An array in a database whose index and values are in directories of their own."""
    spec = {
        "driver": "zarr",
        "kvstore": {
            "driver": "ocdbt",
            "base": f"file://{path}/",
            "config": {"max_inline_value_bytes": 16},
            **prefixes,
        },
        "path": "w/",
        "metadata": {"compressor": {"id": "zstd"}, "shape": [100], "chunks": [50], "dtype": "<f4"},
        "create": True,
    }
    ts.open(spec).result().write(np.arange(100, dtype=np.float32)).result()


SPLIT = {
    "value_data_prefix": "ocdbt_data/",
    "btree_node_data_prefix": "ocdbt_meta/",
    "version_tree_node_data_prefix": "ocdbt_meta/",
}


def test_a_database_with_its_values_apart_is_read(tmp_path):
    path = tmp_path / "ckpt"
    write_split_database(path, **SPLIT)
    assert {p.name for p in path.iterdir()} == {"ocdbt_data", "ocdbt_meta", "manifest.ocdbt"}
    template = {"w": np.empty(100, np.float32)}
    assert (tx.restore(path, template)["w"] == np.arange(100)).all()
    for part in ("ocdbt_data", "ocdbt_meta"):
        assert read_refusal(path / part) == (
            f'{path}/{part} is a part of the checkpoint {path}; hint: open "{path}"'
        )


@pytest.mark.parametrize("named", [True, False])
def test_an_index_that_is_still_temporary_is_uncommitted(tmp_path, named):
    path = tmp_path / "ckpt"
    write_split_database(
        path,
        **SPLIT
        | {
            "btree_node_data_prefix": "ocdbt_tmp_meta/",
            "version_tree_node_data_prefix": "ocdbt_tmp_meta/",
            "manifest": f"file://{path}/ocdbt_tmp_meta/",
        },
    )
    assert {p.name for p in path.iterdir()} == {"ocdbt_data", "ocdbt_tmp_meta"}
    if named:
        (path / "_METADATA").write_text('{"tree_metadata": {}, "use_ocdbt": true}')
    assert f"{path} is not a committed checkpoint: the index of its arrays is still in the" in (
        read_refusal(path, Uncommitted)
    )


def test_values_without_any_index_are_damage(tmp_path):
    path = tmp_path / "ckpt"
    write_split_database(path, **SPLIT)
    shutil.rmtree(path / "ocdbt_meta")
    (path / "manifest.ocdbt").unlink()
    assert read_refusal(path, Corrupted) == (
        "Expected the index of the arrays, found none - file `manifest.ocdbt`"
    )


def test_templax_steps_tells_which_saves_never_finished(case):
    path = case("orbax-0.12.8-manager")
    shutil.copytree(path / "20", path / "30.orbax-checkpoint-tmp-3")
    (path / "10" / "_CHECKPOINT_DELETION").write_text("")
    output = run_cli("steps", path).output
    assert "began to delete it" in output
    _, _, unfinished = output.partition("Left by saves that never finished")
    assert "30.orbax-checkpoint-tmp-3" in unfinished
    with ocp.CheckpointManager(path) as theirs:
        assert theirs.latest_step() == 20
    assert tx.Manager(path).latest() == 20
