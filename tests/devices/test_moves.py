"""The moves of leaves that several processes read together, on eight devices of one process."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from templax._plan.moves import DeviceMesh, find_moves, make_layout
from templax._restore.reshard import make_move

SHAPE = (16, 24)
CASES = [
    ((8,), P_from, P_to)
    for P_from, P_to in [
        (("x",), (None, "x")),
        (("x",), ()),
        ((None, "x"), ("x",)),
    ]
] + [
    ((4, 2), P_from, P_to)
    for P_from, P_to in [
        ((("x", "y"),), (None, ("x", "y"))),
        ((("x", "y"),), (None, "y")),
        ((("y", "x"),), (None, "x")),
        (("x", "y"), (("x", "y"),)),
        ((None, ("x", "y")), (None, "x")),
    ]
]


@pytest.mark.parametrize(
    ("sizes", "held", "wanted"),
    [
        *CASES[1:2],
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [CASES[0], *CASES[2:]]),
    ],
)
def test_an_array_that_was_moved_is_the_one_that_was_wanted(
    sizes: Any, held: Any, wanted: Any
) -> None:
    mesh = jax.make_mesh(sizes, ("x", "y")[: len(sizes)])
    shape = {str(axis): n for axis, n in mesh.shape.items()}
    devices = DeviceMesh(shape, tuple(range(8)))
    start, final = (make_layout(spec, 2, shape) for spec in (held, wanted))
    moves = find_moves(start, final, SHAPE, devices)
    assert moves
    before = NamedSharding(mesh, PartitionSpec(*held))
    after = NamedSharding(mesh, PartitionSpec(*wanted))
    for dtype in (jnp.float32, jnp.bfloat16, jnp.int8, bool, jnp.float8_e4m3fn):
        values = jnp.asarray(np.arange(16 * 24).reshape(SHAPE) % 120, dtype)
        moved = make_move(before, after, moves)(jax.device_put(values, before))
        assert moved.sharding == after
        assert moved.dtype == values.dtype
        for shard, index in itertools.zip_longest(
            moved.addressable_shards, after.addressable_devices_indices_map(SHAPE).values()
        ):
            bits = np.asarray(shard.data).tobytes()
            assert bits == np.asarray(values)[index].tobytes()
