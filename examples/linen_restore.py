"""Restore the parameters of a Flax Linen model from a checkpoint that Orbax wrote.

A training script saved a whole `TrainState` with Orbax. For inference only its parameters are
wanted: `at="params"` restores that subtree, and the optimizer state is not read.

Run it with `python examples/linen_restore.py`; it needs flax, optax and orbax-checkpoint.
"""

import tempfile
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
from flax.training.train_state import TrainState

import templax as tx


class Classifier(nn.Module):
    width: int = 32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Dense(self.width)(x))
        return nn.Dense(10)(x)


model = Classifier()
x = jnp.ones((1, 8))

with tempfile.TemporaryDirectory() as directory:
    path = Path(directory) / "ckpt"

    # The checkpoint, as the training script would write it.
    params = model.init(jax.random.key(0), x)["params"]
    trained = TrainState.create(apply_fn=model.apply, params=params, tx=optax.adam(1e-3))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, trained)

    # The template: what this program needs, as shapes and dtypes. Nothing is computed.
    template = tx.template_of(model.init, jax.random.key(0), x)["params"]

    restored = tx.restore(path, template, at="params")
    same = jnp.array_equal(
        model.apply({"params": restored}, x), trained.apply_fn({"params": trained.params}, x)
    )
    print("restored", jax.tree.map(jnp.shape, restored))
    print("same output as the trained model:", same)

    # A checkpoint that does not fit is refused before any array is read, with every difference.
    wider = tx.template_of(Classifier(width=64).init, jax.random.key(0), x)["params"]
    try:
        tx.restore(path, wider, at="params")
    except tx.TemplateError as error:
        print(error)
