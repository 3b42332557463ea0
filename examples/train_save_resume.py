"""Train, save every few steps, stop, and resume at the latest step.

`train` is the loop of a program that may be preempted: it is written once, and starting the program
again continues the run. `manager.restore(..., missing=...)` gives the state of the latest step, or
the initial one if nothing was saved yet. Saves run in the background while training continues.

Run it with `python examples/train_save_resume.py`; it needs optax.
"""

import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import optax

import templax as tx

optimizer = optax.adam(0.1)
x = jax.random.normal(jax.random.key(1), (64, 8))
y = x @ jnp.arange(8.0)


def init(key: jax.Array) -> dict[str, Any]:
    params = {"w": jax.random.normal(key, (8,)), "b": jnp.zeros(())}
    return {"params": params, "opt_state": optimizer.init(params), "step": jnp.zeros((), int)}


@jax.jit
def update(state: dict[str, Any]) -> tuple[dict[str, Any], jax.Array]:
    def loss_of(params: dict[str, jax.Array]) -> jax.Array:
        return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)

    loss, grads = jax.value_and_grad(loss_of)(state["params"])
    updates, opt_state = optimizer.update(grads, state["opt_state"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    return {"params": params, "opt_state": opt_state, "step": state["step"] + 1}, loss


def train(directory: str, until: int) -> dict[str, Any]:
    # The 2 latest steps are kept, and the one with the smallest loss of all.
    keep = tx.Keep(last=2, best=1, metric="loss")
    with tx.Manager(directory, keep=keep) as manager:
        key = jax.random.key(0)
        state = manager.restore(tx.template_of(init, key), missing=tx.Recipe(init, key))
        print(f"starting at step {state['step']}")
        for step in range(int(state["step"]) + 1, until + 1):
            state, loss = update(state)
            if step % 10 == 0:
                manager.save(step, state, metrics={"loss": float(loss)})
    print(f"stopped at step {state['step']} with loss {loss:.3f}; saved steps: {manager.steps()}")
    return state


with tempfile.TemporaryDirectory() as run:
    train(run, until=35)  # as if preempted: the steps after 30 are lost
    resumed = train(run, until=60)

with tempfile.TemporaryDirectory() as run:
    uninterrupted = train(run, until=60)

same = jax.tree.map(jnp.array_equal, resumed, uninterrupted)
print("same state as without the interruption:", all(jax.tree.leaves(same)))
