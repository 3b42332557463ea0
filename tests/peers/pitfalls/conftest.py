"""What people who restore JAX checkpoints run into, tried on checkpoints that Orbax wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import pytest

from helpers import read_expected, run_python, save_with_orbax


class Model(nn.Module):
    layers: int = 3

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(self.layers):
            x = nn.Dense(8)(x)
        return x


@pytest.fixture(scope="session")
def model() -> type[Model]:
    """A Linen module; `model(n)` has `n` layers of 8 features."""
    return Model


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Saves a tree with Orbax, `save(tree, name, **options)`, and returns its directory."""

    def save(tree: Any, name: str = "ckpt", **options: Any) -> Path:
        return save_with_orbax(tmp_path / name, tree, **options)

    return save


@pytest.fixture(scope="session")
def sha256_of_big() -> Callable[[str], str]:
    """The recorded digest of the leaf `state.params.big` of a case of the corpus."""

    def digest(case: str) -> str:
        recorded = read_expected(case).items()
        (digest,) = {leaf["sha256"] for path, leaf in recorded if path.endswith("state/params/big")}
        return digest

    return digest


@pytest.fixture(scope="session")
def run_on_one_device() -> Callable[..., str]:
    """Runs a program in a process with one CPU device, and returns what it prints."""

    def run(code: str, *arguments: Any) -> str:
        done = run_python("-c", code, *arguments, timeout_s=600, XLA_FLAGS=None)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
