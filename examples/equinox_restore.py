"""Restore an Equinox model, from a checkpoint of its own and from weights that PyTorch named.

`eqx.filter_eval_shape` makes the abstract model. Its arrays are restored; activation functions
and sizes, which no checkpoint stores, stay as the template has them.

Run it with `python examples/equinox_restore.py`; it needs equinox and safetensors.
"""

import tempfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

import templax as tx


def make(key: jax.Array) -> eqx.nn.MLP:
    return eqx.nn.MLP(in_size=8, out_size=10, width_size=32, depth=1, key=key)


x = jnp.ones(8)
template = eqx.filter_eval_shape(make, jax.random.key(0))

with tempfile.TemporaryDirectory() as directory:
    # A checkpoint of the model itself.
    trained = make(jax.random.key(0))
    tx.save(Path(directory) / "ckpt", trained)

    model = tx.restore(Path(directory) / "ckpt", template)
    print(f"restored an {type(model).__name__} with activation {model.activation.__name__}")
    print("same output as the trained model:", jnp.array_equal(model(x), trained(x)))

    # The weights of torch.nn.Sequential(Linear(8, 32), ReLU(), Linear(32, 10)) under the names that
    # PyTorch gives them. Both libraries store a weight as (out, in), so nothing is transposed.
    weights = {
        "0.weight": np.full((32, 8), 0.1, np.float32),
        "0.bias": np.zeros(32, np.float32),
        "2.weight": np.full((10, 32), 0.1, np.float32),
        "2.bias": np.ones(10, np.float32),
    }
    file = Path(directory) / "model.safetensors"
    save_file(weights, file)

    # `check` compares names, shapes and dtypes only; the report says what to change.
    names = {"0": "layers.0", "2": "layers.1"}
    print(tx.check(file, template))
    print(tx.check(file, template, rename=names))

    model = tx.restore(file, template, rename=names)
    print("output with the weights of PyTorch:", model(x)[:2])
