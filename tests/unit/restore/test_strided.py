"""Copies between strided arrays are those of numpy, whatever the order of their dimensions."""

from __future__ import annotations

import functools
import itertools

import ml_dtypes
import numpy as np
import pytest

from templax._core.dtypes import cast_into
from templax._restore.strided import TILE_ROWS, compute_step, copy_strided, fill_strided

DTYPES = ("u1", "u2", "u4", "u8", "c16", ml_dtypes.bfloat16)

SHAPES = [
    (TILE_ROWS + 40, 300),  # tiles of all sizes
    (3, 700, 301),  # rows that end within a cache line
    (9000, 40),  # columns of several tiles
    (300, 20, 3, 4),  # rows along several dimensions
    (40, 33),
    (2000, 64),
    (5, 6, 7),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_transposed_arrays_are_copied_and_nothing_beside_them_is_touched(shape, dtype):
    values = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    for order in itertools.permutations(range(len(shape))):
        turned = values.transpose(order)
        memory = np.zeros((*turned.shape[:-1], turned.shape[-1] + 9), dtype)
        copy_strided(memory[..., 4:-5], turned)
        np.testing.assert_array_equal(memory[..., 4:-5], turned)
        assert not memory[..., :4].any()
        assert not memory[..., -5:].any()


def test_reversed_and_repeated_elements_are_copied():
    values = np.arange(600, dtype=np.uint16).reshape(20, 30)
    for view in (values[::-1], values[:, ::-1], np.broadcast_to(values[0], (7, 30))):
        out = np.zeros(view.shape, view.dtype)
        copy_strided(out, view)
        np.testing.assert_array_equal(out, view)


def test_an_unaligned_array_is_copied():
    memory = np.zeros(1 + 2 * 64 * 300, np.uint8)[1:]
    values = np.ndarray((64, 300), np.uint16, memory)
    values[...] = np.arange(64 * 300).reshape(64, 300)
    out = np.zeros((300, 64), np.uint16)
    copy_strided(out, values.T)
    np.testing.assert_array_equal(out, values.T)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_transposed_arrays_are_cast_and_computed(order):
    values = np.random.default_rng(0).standard_normal((70, 60, 50)).astype(ml_dtypes.bfloat16)
    turned = values.transpose(order)
    step = functools.partial(compute_step, scale=0.3, add=-1.0)
    for fill, dtype in itertools.product((cast_into, step), (np.float32, ml_dtypes.float8_e4m3fn)):
        out, expected = np.zeros(turned.shape, dtype), np.zeros(turned.shape, dtype)
        fill_strided(out, turned, fill)
        fill(expected, np.ascontiguousarray(turned))
        assert out.tobytes() == expected.tobytes()


def test_an_array_without_elements_is_filled():
    fill_strided(np.zeros((3, 0), np.float32), np.zeros((0, 3), np.float16).T, cast_into)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize(("scale", "add"), [(0.3, None), (None, 1.0), (3.0**-0.5, 0.1)])
def test_the_affine_step_is_two_float32_roundings_and_one_cast(scale, add, dtype):
    values = np.random.default_rng(0).standard_normal(5000).astype(ml_dtypes.bfloat16)
    out = np.empty(values.shape, dtype)
    compute_step(out, values, scale, add)
    expected = values.astype(np.float32)
    if scale is not None:
        expected = expected * np.float32(scale)
    if add is not None:
        expected = expected + np.float32(add)
    assert out.tobytes() == expected.astype(dtype).tobytes()


def test_the_affine_step_of_float64_is_in_float64():
    values = np.array([1 / 3, 1e300, 1e-300])
    out = np.empty(3)
    compute_step(out, values, 1.5, 0.1)
    assert out.tobytes() == (values * 1.5 + 0.1).tobytes()
