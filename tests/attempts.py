"""What the scripts of these tests have in common: calls that are attempted, one after another, and
what came of each on every process.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np

import templax as tx

SETUP = """
import json, logging, signal, threading, time
import jax.numpy as jnp
import numpy as np
import templax as tx
import templax.compat.orbax as ocp
from jax._src import distributed
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from templax._hosts import agreement, pairing, presence
from templax._save import writer

last = count - 1
mesh = Mesh(np.array(jax.devices()), ("x",))
rows, everywhere = NamedSharding(mesh, P("x")), NamedSharding(mesh, P())

def array(step, shape=(24, 4), sharding=rows):
    values = np.full(shape, step, np.float32)
    return jax.make_array_from_callback(shape, sharding, lambda box: values[box])

def tree(step, **named):
    return {"w": array(step, **named), "step": step}

want = {"w": jax.ShapeDtypeStruct((24, 4), np.float32, sharding=rows), "step": 0}

def read(tree):
    steps = {float(x) for s in tree["w"].addressable_shards for x in np.ravel(s.data)}
    return sorted(steps | {float(tree["step"])})

def attempt(name, call):
    begin = time.monotonic()
    try:
        result = call()
        if isinstance(result, tx.Saved):
            result = None
        said = [name, "ok", result]
    except BaseException as error:
        said = [name, type(error).__name__, str(error)]
    print(json.dumps([*said, time.monotonic() - begin]))

def meet(name):
    distributed.global_state.client.wait_at_barrier(name, 60_000)

def fail_writing(who, what="No space is left"):
    def full(self, *rest):
        raise tx.SaveError(what, file="x")
    real = writer.Writer._write
    if index == who:
        writer.Writer._write = full
    def mend():
        writer.Writer._write = real
    return mend
"""
"""Defines `tree(step)`, all of whose values are the number of the step, `want`, its template,
`read(tree)`, the values of a restored one on this process, and `attempt(name, call)`.
"""


class Attempt(NamedTuple):
    """What came of a call on one process.

    Attributes:
        kind: "ok", or the name of the exception.
        result: What the call returned, or the text of the exception.
        seconds: How long it took.
    """

    kind: str
    result: Any
    seconds: float


def read_attempts(outputs: list[Any], *, alive: bool = True) -> list[dict[str, Attempt]]:
    """The attempts of each process by their names.

    Args:
        outputs: The processes.
        alive: Whether all must have ended without an error.
    """
    told: list[dict[str, Attempt]] = []
    for output in outputs:
        if alive:
            assert output.code == 0, output.err[-3000:]
        lines = [json.loads(line) for line in output.out.splitlines() if line.startswith("[")]
        told.append({name: Attempt(*rest) for name, *rest in lines})
    return told


def check_run(path: Any, steps: list[int]) -> None:
    """Whether a run has these steps, each whole, and of the values of one step."""
    manager = tx.Manager(path)
    assert manager.steps() == steps
    for step in steps:
        check_values(manager.path(step), step, item=True)


def check_values(path: Any, step: int, *, item: bool = False) -> None:
    """Whether a checkpoint is whole, and all its values are those of a step."""
    assert tx.verify(path).ok
    want = {"w": np.zeros((24, 4), np.float32), "step": 0}
    got = tx.restore(f"{path}/default" if item else path, want)
    assert got["step"] == step
    assert set(got["w"].ravel().tolist()) == {step}


def check_failed(attempt: Attempt, *texts: str, within_s: float, kind: str = "SaveError") -> None:
    """Whether a call raised an error of this kind in time that has all these texts."""
    assert attempt.kind == kind, attempt
    for text in texts:
        assert text in attempt.result, attempt
    assert attempt.seconds < within_s, attempt
