"""What `save` refuses before it makes a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import templax as tx
from templax._save import job


def make_donated() -> jax.Array:
    x = jnp.ones(4)
    jax.jit(lambda x: x * 2, donate_argnums=0)(x)
    if not x.is_deleted():
        x.delete()
    return x


BAD = {
    "abstract": (lambda: jax.ShapeDtypeStruct((2,), jnp.float32), "abstract"),
    "skipped": (lambda: ..., "never restored"),
    "objects": (lambda: np.array([object()]), "dtype object"),
    "text": (lambda: np.array(["a"]), "dtype <U1"),
    "longdouble": (lambda: np.zeros(2, np.longdouble), "dtype"),
    "huge": (lambda: 2**70, "int64 can't hold"),
    "bytes": (lambda: b"raw", "np.frombuffer"),
    "set": (lambda: {1, 2}, "builtins.set"),
    "donated": (make_donated, "donated"),
    "surrogate": (lambda: "\udc80", "Unicode"),
    "masked": (lambda: np.ma.masked_array([1.0, 2.0], [0, 1]), "mask would be lost"),
}


def test_all_leaves_that_cannot_be_saved_are_named(tmp_path: Path) -> None:
    tree = {"fine": jnp.ones(3)} | {name: make() for name, (make, _) in BAD.items()}
    with pytest.raises(tx.SaveError) as caught:
        tx.save(tmp_path / "ckpt", tree)
    for name, (_, why) in BAD.items():
        assert f"`{name}`" in str(caught.value)
        assert why in str(caught.value)
    assert "fine" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_traced_array_is_refused_by_name(tmp_path: Path) -> None:
    @jax.jit
    def step(x: jax.Array) -> jax.Array:
        tx.save(tmp_path / "ckpt", {"x": x})
        return x

    with pytest.raises(tx.SaveError, match=r"`x` is traced: save outside of jax\.jit"):
        step(jnp.ones(2))


def test_two_leaves_with_the_same_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(tx.SaveError, match=r"two leaves are named `a\.b`"):
        tx.save(tmp_path / "ckpt", {"a": {"b": jnp.ones(1)}, "a.b": jnp.ones(2)})


@pytest.mark.parametrize(
    "wrong",
    [
        {"format": "npz"},
        {"compression": "gzip"},
        {"compression": "zstd:0"},
        {"compression": "zstd:23"},
        {"compression": True},
        {"metadata": {"a": {1, 2}}},
        {"memory": 0},
        {"threads": -1},
    ],
)
def test_invalid_arguments_are_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(tx.UsageError):
        tx.save(tmp_path / "ckpt", {"w": jnp.ones(3)}, **wrong)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("url", [None, 5, ["a"]])
def test_a_value_that_is_not_a_path_is_refused(url: Any) -> None:
    with pytest.raises(tx.UsageError, match="Expected a path"):
        tx.save(url, {"w": np.ones(3)})


def test_text_beyond_the_limit_of_restore_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "MAX_METADATA", 10_000)
    with pytest.raises(tx.SaveError, match="which a restore would refuse"):
        tx.save(tmp_path / "ckpt", {"s": "a" * 10_001})
    assert os.listdir(tmp_path) == []
