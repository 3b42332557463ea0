"""Code for Orbax that two processes of a job run, with one changed import."""

import json

import numpy as np
import orbax.checkpoint as orbax

TRAIN = """
import json
import numpy as np
import templax as tx
import templax.compat.orbax as ocp
from jax.sharding import NamedSharding, PartitionSpec as P

mesh = jax.make_mesh((4,), ("x",))
sharding = NamedSharding(mesh, P("x"))

def array(step):
    return jax.make_array_from_callback(
        (8, 4), sharding, lambda box: np.full((8, 4), step, np.float32)[box]
    )

said = []
options = ocp.CheckpointManagerOptions(best_fn=lambda m: m["loss"], best_mode="min", max_to_keep=2)
with ocp.CheckpointManager(args[0], options=options, item_names=("state", "meta")) as manager:
    for step in range(6):
        items = ocp.args.Composite(
            state=ocp.args.StandardSave({"w": array(step)}), meta=ocp.args.JsonSave([step])
        )
        loss = [3.0, 1.0, 2.0, 5.0, 9.0, 1.5][step]
        said.append(manager.save(step, args=items, metrics={"loss": loss}))
        said.append([manager.all_steps(), manager.best_step()])
    manager.wait_until_finished()
    want = {"w": jax.ShapeDtypeStruct((8, 4), np.float32, sharding=sharding)}
    args_ = ocp.args.Composite(state=ocp.args.StandardRestore(want))
    got = manager.restore(1, args=args_)["state"]["w"]
    said.append(all(bool((np.asarray(s.data) == 1).all()) for s in got.addressable_shards))
    manager.delete(1)
    said.append(manager.all_steps())
    try:
        manager.save(5, args=items, force=True)
    except tx.TemplaxError as error:
        said.append("Step 5 already exists" in str(error))
print(json.dumps(said))
"""


def test_a_manager_answers_the_same_on_all_processes(run, tmp_path):
    """Also where the step that was just saved is the one to delete."""
    first, second = run(2, TRAIN, str(tmp_path / "run"))
    assert first.code == second.code == 0, first.err + second.err
    said = json.loads(first.out)
    assert said == json.loads(second.out)
    assert said[::2][:6] == [True] * 6
    assert said[1::2][:6] == [
        [[0], 0],
        [[0, 1], 1],
        [[1, 2], 1],
        [[1, 2], 1],
        [[1, 2], 1],
        [[1, 5], 1],
    ]
    assert said[12:] == [True, [5], True]
    manager = orbax.CheckpointManager(tmp_path / "run", item_names=("state", "meta"))
    target = {"w": np.zeros((8, 4), np.float32)}
    items = {"state": orbax.args.StandardRestore(target), "meta": orbax.args.JsonRestore()}
    restored = manager.restore(5, args=orbax.args.Composite(**items))
    assert (restored["state"]["w"] == 5).all()
    assert restored["meta"] == [5]


V1_TRAIN = """
import json
import numpy as np
from templax.compat.orbax import v1 as ocp
from jax.sharding import NamedSharding, PartitionSpec as P

mesh = jax.make_mesh((4,), ("x",))
sharding = NamedSharding(mesh, P("x"))

def array(step):
    return jax.make_array_from_callback(
        (8, 4), sharding, lambda box: np.full((8, 4), step, np.float32)[box]
    )

said = []
policies = ocp.training.preservation_policies
kept = policies.BestN(get_metric_fn=lambda m: m["loss"], reverse=True, n=2)
with ocp.training.Checkpointer(
    args[0], preservation_policy=kept, custom_metadata={"seed": 3}
) as checkpointer:
    for step in range(4):
        loss = [3.0, 1.0, 2.0, 5.0][step]
        saved = checkpointer.save(step, {"w": array(step)}, metrics={"loss": loss})
        said.append([saved, [each.step for each in checkpointer.checkpoints]])
    said.append(checkpointer.save(1, {"w": array(7)}, overwrite=True, force=True))
    found = checkpointer.metadata(1)
    said.append([found.metadata["w"].sharding == sharding, found.step])
    got = checkpointer.load(1, found)["w"]
    said.append(all(bool((np.asarray(s.data) == 7).all()) for s in got.addressable_shards))
    said.append(checkpointer.root_metadata().custom_metadata)
    try:
        checkpointer.save(1, {"w": array(8)})
    except ocp.training.errors.StepAlreadyExistsError:
        said.append("exists")
print(json.dumps(said))
"""


def test_a_checkpointer_of_v1_answers_the_same_on_all_processes(run, tmp_path):
    """Policies, steps that are replaced, and metadata as a template."""
    first, second = run(2, V1_TRAIN, str(tmp_path / "run"))
    assert first.code == second.code == 0, first.err + second.err
    said = json.loads(first.out)
    assert said == json.loads(second.out)
    assert said[:4] == [[True, [0]], [True, [0, 1]], [True, [1, 2]], [True, [1, 2]]]
    assert said[4:] == [True, [True, 1], True, {"seed": 3}, "exists"]
