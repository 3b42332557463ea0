"""Handlers of a program's own in a job of several processes."""

import json
import os

import orbax.checkpoint as orbax
import pytest

HANDLER = """
import asyncio, json, os
from dataclasses import dataclass
import numpy as np
import templax as tx
import templax.compat.orbax as ocp

calls = []
me = jax.process_index()

class Handler(ocp.AsyncCheckpointHandler):
    def save(self, directory, args):
        raise NotImplementedError

    async def async_save(self, directory, args):
        calls.append("async_save")
        assert directory.is_dir()
        if args.fails == f"at once on {me}":
            raise LookupError("no such state")
        async def write():
            (directory / f"process_{me}.json").write_text(json.dumps([me]))
            if args.fails == f"later on {me}":
                raise LookupError("no such state")
        return [ocp.future.CommitFutureAwaitingContractedSignals(write())]

    def restore(self, directory, args):
        calls.append("restore")
        return json.loads((directory / f"process_{me}.json").read_text())

    def finalize(self, directory):
        written = sorted(p.name for p in directory.iterdir())
        calls.append(["finalize", [n for n in written if n.startswith("process_")]])
        (directory / "all.json").write_text("[]")

@ocp.args.register_with_handler(Handler, for_save=True)
@dataclass
class Save(ocp.args.CheckpointArgs):
    fails: str = ""

@ocp.args.register_with_handler(Handler, for_restore=True)
@dataclass
class Restore(ocp.args.CheckpointArgs):
    pass
"""

SAVE = (
    HANDLER
    + """
checkpointer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
tree = ocp.args.StandardSave({"w": np.arange(8)})
checkpointer.save(args[0], ocp.args.Composite(data=Save(), state=tree))
checkpointer.wait_until_finished()
got = checkpointer.restore(args[0], ocp.args.Composite(data=Restore()))
print(json.dumps([calls, got.data]))
"""
)

FAIL = (
    HANDLER
    + """
checkpointer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
try:
    checkpointer.save(args[0], ocp.args.Composite(data=Save(args[1])))
    checkpointer.wait_until_finished()
    said = "saved"
except Exception as error:
    said = f"{type(error).__name__}: {error}"
print(json.dumps([said, os.path.exists(args[0])]))
"""
)


LATE = """
import time
from templax._save.foreign_items import ForeignItems

begin = ForeignItems.begin
if jax.process_index() == 1:
    ForeignItems.begin = lambda self, sink: (time.sleep(1.0), begin(self, sink))
"""


def test_every_process_writes_and_process_0_finalizes(run, tmp_path):
    """Once all have written: each restores what it wrote itself."""
    path = tmp_path / "ckpt"
    first, second = run(2, SAVE, str(path))
    assert first.code == second.code == 0, first.err + second.err
    finalized = ["finalize", ["process_0.json", "process_1.json"]]
    assert json.loads(first.out) == [["async_save", finalized, "restore"], [0]]
    assert json.loads(second.out) == [["async_save", "restore"], [1]]
    assert sorted(os.listdir(path / "data")) == [
        "all.json",
        "commit_success.txt",
        "process_0.json",
        "process_1.json",
    ]
    restored = orbax.StandardCheckpointer().restore(path / "state")
    assert restored["w"].tolist() == list(range(8))


@pytest.mark.parametrize("fails", ["at once on 0", "at once on 1", "later on 0", "later on 1"])
def test_all_fail_where_the_handler_of_one_does(fails, run, tmp_path):
    """And nothing is left."""
    check_nothing_is_left(run(2, FAIL, str(tmp_path / "run" / "ckpt"), fails), fails, tmp_path)


@pytest.mark.slow
def test_a_late_process_does_not_make_the_directory_of_a_failed_save_again(run, tmp_path):
    results = run(2, LATE + FAIL, str(tmp_path / "run" / "ckpt"), "later on 0")
    check_nothing_is_left(results, "later on 0", tmp_path)


def check_nothing_is_left(results, fails, tmp_path):
    for index, result in enumerate(results):
        assert result.code == 0, result.err
        said, exists = json.loads(result.out)
        if fails.endswith(str(index)):
            assert said == "LookupError: no such state"
        else:
            assert "no such state" in said
        assert not exists
    # Of the directory above, which the save made, at most an empty one.
    assert [name for _, _, files in os.walk(tmp_path) for name in files] == []
    assert set(os.listdir(tmp_path)) <= {"run"}
    assert not (tmp_path / "run").exists() or os.listdir(tmp_path / "run") == []
