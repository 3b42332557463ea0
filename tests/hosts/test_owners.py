"""Which process writes which box: each box once, as all compute without communication."""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from templax._boxes import Box, from_index, shape_of, slices
from templax._owners import all_boxes, is_local, written_boxes
from templax.testing import strategies


def _do_tile(boxes: list[Box], shape: tuple[int, ...]) -> bool:
    times = np.zeros(shape, int)
    for box in boxes:
        times[slices(box)] += 1
    return bool((times == 1).all())


@given(strategies.arrays(), st.data())
def test_one_process_writes_each_box_once(array: np.ndarray, data: st.DataObject) -> None:
    leaf = jax.device_put(array, data.draw(strategies.shardings(array.shape)))
    written = written_boxes(leaf, 0, everywhere=True)
    assert [box for box, _ in written] == [
        from_index(shard.index, leaf.shape)
        for shard in leaf.addressable_shards
        if shard.replica_id == 0
    ]
    assert {(box, 0) for box, _ in written} == set(all_boxes(leaf))
    assert not array.size or _do_tile([box for box, _ in written], array.shape)
    for box, values in written:
        assert values.shape == shape_of(box)
        assert np.asarray(values).tobytes() == array[slices(box)].tobytes()


def test_a_leaf_that_is_not_a_jax_array_is_one_box() -> None:
    for leaf in (np.ones((2, 3)), np.float32(1), 2.5):
        ((box, values),) = written_boxes(leaf, 0, everywhere=True)
        assert values is leaf
        assert all_boxes(leaf) == ((box, 0),)
        assert written_boxes(leaf, 1, everywhere=True) == []
        assert written_boxes(leaf, 1, everywhere=False) == []
        assert is_local(leaf)


LEAVES = """
import json, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P, SingleDeviceSharding
from templax._boxes import from_index
from templax._owners import all_boxes, is_local, written_boxes

devices = np.array(jax.devices())
flat, back = Mesh(devices, ("x",)), Mesh(devices[::-1], ("x",))
grid = Mesh(devices.reshape(2, -1), ("a", "b"))
across = Mesh(devices.reshape(2, -1).T, ("a", "b"))
of_0, of_1 = (Mesh(devices[[2 * i, 2 * i + 1]], ("x",)) for i in (0, 1))
shardings = {
    "split": NamedSharding(flat, P("x")),
    "split back": NamedSharding(back, P("x")),
    "replicated": NamedSharding(flat, P()),
    "replicated back": NamedSharding(back, P()),
    "rows": NamedSharding(grid, P("a")),
    "rows across": NamedSharding(across, P("a")),
    "columns": NamedSharding(grid, P(None, "b")),
    "blocks": NamedSharding(across, P("b", "a")),
    "on process 0": NamedSharding(of_0, P("x")),
    "on process 1": NamedSharding(of_1, P("x")),
    "on one device of 1": SingleDeviceSharding(devices[2]),
}
value = np.arange(8 * 24, dtype=np.int32).reshape(8, 24)
leaves = {
    name: jax.make_array_from_callback(value.shape, sharding, lambda i: value[i], dtype=value.dtype)
    for name, sharding in shardings.items()
}
leaves["own"] = jax.device_put(value + index, jax.local_devices()[1])
leaves["own split"] = jax.device_put(
    value + index, NamedSharding(Mesh(np.array(jax.local_devices()), ("x",)), P("x"))
)
leaves["numpy"] = value + index
local_to_0 = {"on process 0", "own", "own split", "numpy"}
for name, leaf in leaves.items():
    if index == 0:
        assert is_local(leaf) == (name in local_to_0), name
    written = written_boxes(leaf, index, everywhere=name in local_to_0)
    first = [
        from_index(shard.index, leaf.shape)
        for shard in getattr(leaf, "addressable_shards", [])
        if shard.replica_id == 0
    ]
    print(json.dumps([name, {
        "written": [[box, np.asarray(values).tolist()] for box, values in written],
        "first": first,
        "all": all_boxes(leaf),
        "local": is_local(leaf),
    }]))
"""


def _box(found: Any) -> Box:
    return tuple((start, stop) for start, stop in found)


@pytest.mark.parametrize("n", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_every_box_is_written_by_one_process(run: Any, n: int) -> None:
    outputs = run(n, LEAVES)
    assert [output.code for output in outputs] == [0] * n, outputs[0].err
    told = [dict(json.loads(line) for line in output.out.splitlines()) for output in outputs]
    value = np.arange(8 * 24, dtype=np.int32).reshape(8, 24)
    for name in told[0]:
        seen = [process[name] for process in told]
        planned = {_box(box): writer for box, writer in seen[0]["all"]}
        written = [(_box(box), i, a) for i, s in enumerate(seen) for box, a in s["written"]]
        assert {box: writer for box, writer, _ in written} == planned, name
        assert _do_tile([box for box, _, _ in written], value.shape), name
        for box, _, values in written:
            assert np.array_equal(values, value[slices(box)]), name  # of process 0, if each has one
        for process in seen:
            if not process["local"]:
                assert process["all"] == seen[0]["all"], name
                assert [_box(b) for b, _ in process["written"]] == [*map(_box, process["first"])]
        if name.startswith(("own", "numpy", "on process 0")):
            assert set(planned.values()) == {0}, name
        if name.startswith("on") and name.endswith("1"):
            assert set(planned.values()) == {1}, name
    assert len({writer for _, writer in told[0]["split"]["all"]}) == n
