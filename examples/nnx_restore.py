"""Restore a Flax NNX model from a checkpoint that Orbax wrote.

`nnx.eval_shape` makes the model without allocating its parameters; its state is the template.
Names and shapes come from the model, so a layer that has none in the checkpoint can be initialised
by the model itself: see the second half.

Run it with `python examples/nnx_restore.py`; it needs flax and orbax-checkpoint.
"""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import nnx

import templax as tx


class Encoder(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(8, 32, rngs=rngs)
        self.out = nnx.Linear(32, 16, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(nnx.relu(self.hidden(x)))


class Classifier(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.encoder = Encoder(rngs)
        self.head = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(nnx.relu(self.encoder(x)))


x = jnp.ones((1, 8))

with tempfile.TemporaryDirectory() as directory:
    path = Path(directory) / "ckpt"

    # The checkpoint, as a training script would write it.
    trained = Encoder(nnx.Rngs(0))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, nnx.state(trained))

    # The whole encoder: abstract model in, restored model out.
    graphdef, template = nnx.split(nnx.eval_shape(lambda: Encoder(nnx.Rngs(0))))
    encoder = nnx.merge(graphdef, tx.restore(path, template))
    print("same output as the trained encoder:", jnp.array_equal(encoder(x), trained(x)))

    # A classifier around it: its head is not in the checkpoint, so the model initialises it.
    def make() -> Classifier:
        return Classifier(nnx.Rngs(1))

    graphdef, template = nnx.split(nnx.eval_shape(make))
    fresh = tx.Recipe(lambda: nnx.state(make()))
    state = tx.restore(path, template, rename={"": "encoder"}, missing=fresh)
    classifier = nnx.merge(graphdef, state)
    print("same encoder:", jnp.array_equal(classifier.encoder(x), trained(x)))
    print("same head as a new model:", jnp.array_equal(classifier.head.kernel, make().head.kernel))
