"""Trees of Flax, Optax and Equinox that Orbax saves and templax restores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from helpers import save_with_orbax


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Dense(8)(x))
        return nn.Dense(4)(x)


@pytest.fixture(scope="session")
def mlp() -> MLP:
    """A Linen module that takes three features."""
    return MLP()


@pytest.fixture(scope="session")
def variables(mlp: MLP) -> Any:
    """The variables of `mlp`."""
    return mlp.init(jax.random.key(0), jnp.ones((1, 3)))


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Any], Path]:
    """Saves a tree under a name, `saved(name, tree)`, unless that name was saved before."""
    directory = tmp_path_factory.mktemp("checkpoints")
    paths: dict[str, Path] = {}

    def save(name: str, tree: Any) -> Path:
        if name not in paths:
            paths[name] = save_with_orbax(directory / name, tree)
        return paths[name]

    return save
