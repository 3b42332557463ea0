"""A training that is killed goes on with another number of hosts and devices, as if it had always
had them.

The program is `examples/elastic_training.py`. What its losses are compared with never used templax
to read: Orbax reads the step on one device, and `jax.make_array_from_callback` places the values.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import templax as tx

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import elastic_training  # noqa: E402

LOSS = re.compile(r"step (\d+) loss (\S+)")

UNINTERRUPTED = """
import json, numpy as np
sys.path.insert(0, args[0])
import elastic_training as program, templax as tx
values = np.load(args[1])
mesh = jax.make_mesh((jax.device_count(),), ("devices",))
template = tx.template_of(program.begin, jax.random.key(0), mesh=mesh, specs=program.specs)
leaves, structure = jax.tree.flatten(template)
placed = [
    jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda i, x=values[f"arr_{n}"]: x[i])
    for n, leaf in enumerate(leaves)
]
state = structure.unflatten(placed)
shardings = structure.unflatten([leaf.sharding for leaf in leaves])
update = jax.jit(program.update, donate_argnums=0, out_shardings=(shardings, None))
losses = {}
for step in range(int(state["step"]) + 1, int(args[2]) + 1):
    state, loss = update(state, program.make_batch(step, mesh))
    losses[step] = repr(float(loss))
print(json.dumps(losses))
"""


def train(
    capsys: pytest.CaptureFixture[str], path: Path, *job: int, kill_at: int | None = None
) -> tuple[int, dict[int, str]]:
    """Runs a job of the example: until which step, of how many hosts and devices of each.

    Returns:
        The step after which it began, and the loss of each step as it was printed.
    """
    capsys.readouterr()
    elastic_training.run_job(str(path), *job, kill_at=kill_at)
    out = capsys.readouterr().out
    assert ("killed" in out) == (kill_at is not None), out
    begun = re.search(r"begins after step (\d+)", out)
    assert begun, out
    return int(begun[1]), {int(step): loss for step, loss in LOSS.findall(out)}


def read_with_orbax(path: Path) -> list[np.ndarray]:
    """The leaves of a step as numpy arrays."""
    template = tx.template_of(elastic_training.begin, jax.random.key(0))
    kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), template)
    reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    return jax.tree.leaves(
        reader.restore(path, args=ocp.args.PyTreeRestore(item=template, restore_args=kinds))
    )


@pytest.mark.slow
def test_a_killed_training_goes_on_as_an_uninterrupted_one_on_any_number_of_devices(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    begun, first = train(capsys, path, 1000, 4, 1, kill_at=12)
    assert begun == 0
    assert list(first) == list(range(1, 13))
    begun, again = train(capsys, path, 1000, 4, 1, kill_at=17)
    assert begun in (5, 10)  # 10, if the kill left time for the save in the background
    repeated = range(begun + 1, 13)
    assert [again[step] for step in repeated] == [first[step] for step in repeated]
    for until, hosts, devices in [(20, 2, 1), (25, 1, 1), (30, 4, 2)]:
        latest = tx.Manager(path).latest()
        values = read_with_orbax(Path(tx.Manager(path).path(latest), "default"))
        np.savez(tmp_path / "values.npz", *values)
        begun, losses = train(capsys, path, until, hosts, devices)
        assert begun == latest
        assert list(losses) == list(range(latest + 1, until + 1))
        flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        arguments = (str(EXAMPLES), str(tmp_path / "values.npz"), str(until))
        for output in run(hosts, UNINTERRUPTED, *arguments, env=flags):
            assert output.code == 0, output.err
            want = json.loads(output.out.splitlines()[-1])
            assert {str(step): loss for step, loss in losses.items()} == want, (hosts, devices)
