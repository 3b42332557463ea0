"""Two processes that share an array and save its steps in one run."""

import json

import jax.numpy as jnp
import pytest

import templax as tx
from templax._runs.locks import WriterLock

TRAIN = """
import json
import numpy as np
import templax as tx
from jax.sharding import NamedSharding, PartitionSpec as P

mesh = jax.make_mesh((4,), ("x",))
sharding = NamedSharding(mesh, P("x"))

def array(step):
    return jax.make_array_from_callback(
        (8, 4), sharding, lambda box: np.full((8, 4), step, np.float32)[box]
    )

said = []
with tx.Manager(args[0], keep=tx.Keep(last=1, best=1, metric="loss")) as manager:
    for step in range(4):
        try:
            manager.save(step, {"w": array(step)}, metrics={"loss": [3.0, 1.0, 4.0, 5.0][step]})
        except tx.SaveError as error:
            said.append(str(error))
            break
if not said:
    want = {"w": jax.ShapeDtypeStruct((8, 4), np.float32, sharding=sharding)}
    got = manager.restore(want, 3)["w"]
    said.append(all(bool((np.asarray(s.data) == 3).all()) for s in got.addressable_shards))
print(json.dumps(said))
"""


@pytest.mark.slow
def test_all_processes_save_a_step_and_one_of_them_prunes(run, tmp_path):
    first, second = run(2, TRAIN, str(tmp_path / "run"))
    assert first.code == second.code == 0, first.err + second.err
    assert json.loads(first.out) == json.loads(second.out) == [True]
    manager = tx.Manager(tmp_path / "run")
    assert manager.steps() == [1, 3]
    assert manager.restore({"w": jnp.zeros((8, 4))})["w"][5, 2] == 3


@pytest.mark.slow
def test_a_run_that_another_manager_saves_to_is_refused_on_all_processes(run, tmp_path):
    lock = WriterLock(str(tmp_path))
    lock.acquire()
    for index, output in enumerate(run(2, TRAIN, str(tmp_path))):
        assert output.code == 0, output.err
        (said,) = json.loads(output.out)
        assert "Expected to be the only one that saves to" in said
        assert said.startswith("Process 0 of 2 failed") == (index == 1)
    lock.release()
    assert tx.Manager(tmp_path).steps() == []


READ = """
import json
import numpy as np
import templax as tx
from jax.sharding import NamedSharding, PartitionSpec as P

mesh = jax.make_mesh((4,), ("x",))
sharding = NamedSharding(mesh, P("x"))
want = {"w": jax.ShapeDtypeStruct((64, 64), np.float32, sharding=sharding)}

def array(step):
    return jax.make_array_from_callback(
        (64, 64), sharding, lambda box: np.full((64, 64), step, np.float32)[box]
    )

def values(tree):
    return sorted({float(x) for s in tree["w"].addressable_shards for x in np.ravel(s.data)})

said = []
"""

OWN = (
    READ
    + """
with tx.Manager(args[0]) as manager:
    for step in range(4):
        manager.save(step, {"w": array(step)})
        if index == step % 2:  # the other one goes on to its next save
            said.append([manager.latest(), values(manager.restore(want, alone=True))])
print(json.dumps(said))
"""
)


@pytest.mark.slow
def test_a_process_that_reads_waits_for_its_save_though_the_other_does_not(run, tmp_path):
    first, second = run(2, OWN, str(tmp_path / "run"))
    assert first.code == second.code == 0, first.err + second.err
    assert json.loads(first.out) == [[0, [0.0]], [2, [2.0]]]
    assert json.loads(second.out) == [[1, [1.0]], [3, [3.0]]]


BELOW = (
    READ
    + """
with tx.Manager(args[0]) as manager:
    manager.save(5, {"w": array(5)}, wait=True)
    try:
        manager.save(3, {"w": array(3)})
    except tx.SaveError as error:
        said.append(str(error))
    manager.save(6, {"w": array(6)})
    said.append(manager.steps())
print(json.dumps(said))
"""
)


@pytest.mark.slow
def test_a_step_below_the_latest_is_refused_on_all_processes(run, tmp_path):
    for index, output in enumerate(run(2, BELOW, str(tmp_path / "run"))):
        assert output.code == 0, output.err
        error, steps = json.loads(output.out)
        assert "xpected a step after 5, the latest in" in error
        assert error.startswith("Process 0 of 2 failed") == (index == 1)
        assert steps == [5, 6]


WHOLE = (
    READ
    + """
from pathlib import Path
from jax.experimental import multihost_utils
from templax._restore import api
real = api.run_plan

def run_plan(plan, *args, **options):
    if index == 1 and plan.match.url.endswith("/3/default"):
        raise tx.Corrupted("Expected the bytes of this process, found others", leaf="w")
    return real(plan, *args, **options)

api.run_plan = run_plan
with tx.Manager(args[0]) as manager:
    for step in range(5):
        manager.save(step, {"w": array(step)}, wait=True)
    if index == 0:
        (file,) = Path(args[0], "4/default/ocdbt.process_0/d").iterdir()
        file.unlink()
    multihost_utils.sync_global_devices("torn")
    got = manager.restore(want, fallback=True)
    said += [values(got), tx.last_restore().step, len(tx.last_restore().skipped_steps)]
    try:
        manager.restore({"w": jax.ShapeDtypeStruct((65, 64), np.float32)}, fallback=True)
    except (tx.TemplateError, tx.SourceError) as error:
        said.append(type(error).__name__)
    empty = tx.Manager(args[0] + "-new")
    init = tx.Recipe(lambda: {"w": jax.numpy.zeros((64, 64))})
    said.append(values(empty.restore(want, fallback=True, missing=init)))
    try:  # only process 1 fails to open what is given as missing=
        empty.restore(want, fallback=True, missing=args[0] + "-none" if index else init)
    except (tx.NotFound, tx.SourceError) as error:
        said.append(type(error).__name__)
    manager.restore(want, fallback=True)
    manager.save(3, {"w": array(3)}, wait=True)  # replaces what process 1 could not read
    from templax._runs import resume
    real_restore = resume.StepRestore._restore_step
    met = []
    def restore_step(self, *args):
        if index == 1 and not met:
            met.append(args)
            raise resume._StepGoneError
        return real_restore(self, *args)
    resume.StepRestore._restore_step = restore_step
    said.append(values(manager.restore(want, 0, fallback=True)))
    said.append(list(tx.last_restore().skipped_steps))
print(json.dumps(said))
"""
)


@pytest.mark.slow
def test_all_processes_restore_the_same_step_that_is_whole_for_each(run, tmp_path):
    """Step 4 lacks a file; the part of step 3 that process 1 reads is damaged."""
    outputs = run(2, WHOLE, str(tmp_path / "run"))
    said = [json.loads(output.out) for output in outputs if output.code == 0]
    assert len(said) == 2, outputs[0].err + outputs[1].err
    assert [each[:3] for each in said] == [[[2.0], 2, 2]] * 2
    assert all(each[3] in ("TemplateError", "SourceError") for each in said)
    assert [each[4] for each in said] == [[0.0]] * 2
    assert [each[5] for each in said] == ["NotFound", "NotFound"]
    # What one process saw deleted, none of them takes, and all list the steps again.
    assert [each[6:] for each in said] == [[[0.0], []]] * 2
