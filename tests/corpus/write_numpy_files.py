"""Writes the cases `npz-deflated`, `npy-fortran` and `equinox-*` with numpy and Equinox.

Run with numpy 2.4.6, ml_dtypes 0.6.0, JAX 0.10.2 and Equinox 0.13.8.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

HERE = Path(__file__).parent


class Model(eqx.Module):
    mlp: eqx.nn.MLP
    scale: jax.Array
    steps: int
    rate: float
    frozen: bool
    activation: Any = eqx.field(default=jax.nn.relu)
    size: int = eqx.field(static=True, default=4)


def make_model() -> Model:
    mlp = eqx.nn.MLP(2, 3, 4, 1, key=jax.random.key(0))
    return Model(mlp, jnp.arange(3, dtype=jnp.bfloat16), 7, 0.5, True)


def record(case: str, how: str, leaves: dict[str, Any]) -> Path:
    directory = HERE / case
    directory.mkdir(exist_ok=True)
    arrays = {name: np.asarray(leaf) for name, leaf in leaves.items()}
    expected = {
        name: {
            "dtype": array.dtype.name,
            "kind": "array",
            "sha256": hashlib.sha256(array.tobytes()).hexdigest(),
            "shape": list(array.shape),
        }
        for name, array in arrays.items()
    }
    (directory / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True))
    (directory / "HOW.json").write_text(json.dumps({"how": how}, indent=1))
    return directory


def main() -> None:
    rng = np.random.default_rng(0)
    leaves = {
        "mlp/~/linear_0/w": rng.normal(size=(4, 6)).astype("f4"),
        "mlp/~/linear_0/b": np.zeros(6, "f4"),
        "mlp/~/linear_1/w": np.asfortranarray(rng.normal(size=(6, 5, 2))),
        "head/w": rng.normal(size=9).astype(ml_dtypes.bfloat16),
        "head/scale": np.arange(5).astype(ml_dtypes.float8_e5m2),
        "head/mask": np.array([True, False]),
        "head/step": np.int64(12),
        "head/phase": np.array([1 + 2j], "c8"),
        "head/empty": np.zeros((0, 3), "u2"),
    }
    directory = record("npz-deflated", "np.savez_compressed", leaves)
    np.savez_compressed(directory / "params.npz", **leaves)
    array = np.asfortranarray(rng.normal(size=(3, 7)).astype("f2"))
    np.save(record("npy-fortran", "np.save", {"": array}) / "array.npy", array)
    model = make_model()
    kept = [leaf for leaf in jax.tree.leaves(model) if eqx.is_array_like(leaf)]
    for case, line in (("equinox-plain", b""), ("equinox-header", b'{"in_size": 2}\n')):
        how = "eqx.tree_serialise_leaves" + (" after a line of JSON" if line else "")
        directory = record(case, how, {str(i): leaf for i, leaf in enumerate(kept)})
        with (directory / "model.eqx").open("wb") as file:
            file.write(line)
            eqx.tree_serialise_leaves(file, model)


if __name__ == "__main__":
    main()
