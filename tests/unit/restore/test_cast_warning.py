"""The warning of a restore that casts."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import templax as tx
from helpers import CHECKPOINT_LIKE_URL as URL
from helpers import checkpoint_like, f32

A = jax.ShapeDtypeStruct


def collect_warnings(checkpoint: Any, template: Any, **options: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tx.restore(checkpoint_like(checkpoint), template, **options)
    assert all(w.category is tx.CastWarning for w in caught)
    assert all(w.filename == __file__ for w in caught)
    return [re.sub(r"\d+\.\d{3} s", "T s", str(w.message).replace(URL, "CKPT")) for w in caught]


def test_one_warning_counts_the_casts_of_a_restore() -> None:
    checkpoint = {"a": f32(1000), "b": f32(500), "c": A((3,), jnp.int8), "same": f32(7)}
    template = {
        "a": A((1000,), jnp.bfloat16),
        "b": A((500,), jnp.bfloat16),
        "c": A((3,), jnp.int32),
        "same": f32(7),
    }
    assert collect_warnings(checkpoint, template) == [
        "3 of 4 leaves of CKPT were cast: float32 to bfloat16 (2: `a`, `b`),"
        ' int8 to int32 (1: `c`); 6,003 bytes, T s; cast="exact" refuses this'
    ]


def test_each_call_warns_once() -> None:
    for _ in range(2):
        said = collect_warnings({"a": f32(2)}, {"a": A((2,), jnp.float16)})
        assert len(said) == 1
        assert said[0].endswith(
            'cast: float32 to float16 (1: `a`); 8 bytes, T s; cast="exact" refuses this'
        )


@pytest.mark.parametrize(
    ("checkpoint", "template", "options"),
    [
        ({"a": f32(2)}, {"a": f32(2)}, {}),
        ({"n": 3}, {"n": int}, {}),
        ({"n": 3}, {"n": A((), jnp.int32)}, {}),
        ({"x": 0.5}, {"x": float}, {}),
        ({"a": f32(2), "skip": f32(2)}, {"a": f32(2), "skip": ...}, {}),
        ({"a": f32(2), "b": f32(2)}, {"a": f32(2)}, {"extra": "ignore"}),
        ({"a": f32(2)}, {"a": f32(2), "kept": np.ones(2, np.float16)}, {"missing": "keep"}),
        ({"k": jax.random.key(1)}, {"k": jax.random.key(0)}, {}),
    ],
)
def test_no_warning_without_a_cast(checkpoint: Any, template: Any, options: Any) -> None:
    assert collect_warnings(checkpoint, template, **options) == []


def test_no_warning_if_the_restore_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(tx.TemplateError):
            tx.restore(
                checkpoint_like({"a": f32(2), "b": f32(2)}),
                {"a": A((2,), jnp.float16), "b": f32(3)},
            )
        tx.check(checkpoint_like({"a": f32(2)}), {"a": A((2,), jnp.float16)})


def test_check_lists_the_casts_without_a_warning() -> None:
    match = tx.check(
        checkpoint_like({"a": f32(2), "b": f32(2)}), {"a": A((2,), jnp.float16), "b": f32(2)}
    )
    assert [(c.name, c.stored, c.wanted, c.nbytes) for c in match.casts] == [
        ("a", "float32", "float16", 8)
    ]


def test_the_warning_for_a_single_leaf_is_in_the_singular() -> None:
    """The dtypes are those of the Python float and of the array."""
    assert [
        s.split(";")[0] for s in collect_warnings({"x": 0.5}, {"x": A((), ml_dtypes.bfloat16)})
    ] == ["1 of 1 leaf of CKPT was cast: float64 to bfloat16 (1: `x`)"]


@pytest.mark.parametrize("debug", ["debug_nans", "debug_infs"])
def test_stored_nans_are_cast_while_jax_looks_for_nans(tmp_path: Path, debug: str) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, a=np.array([np.nan, np.inf, 1], np.float32))
    for template in (A((3,), jnp.float16), np.zeros(3, np.float16)):
        with getattr(jax, debug)(True), pytest.warns(tx.CastWarning):
            got = np.asarray(tx.restore(path, {"a": template})["a"])
        np.testing.assert_array_equal(got, [np.nan, np.inf, 1])
