"""Pictures of shardings on eight devices, compared with what JAX says of these shardings."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import defaultdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AbstractMesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

import templax as tx
from helpers import count_examples
from templax.testing import strategies

SHAPES = st.lists(st.sampled_from([1, 2, 3, 4, 8, 16]), max_size=4).map(tuple)


def find_devices(sharding: Any, shape: tuple[int, ...]) -> dict[Any, set[int]]:
    """The numbers of the devices that hold each box, as JAX says."""
    found: defaultdict[Any, set[int]] = defaultdict(set)
    for device, index in sharding.devices_indices_map(shape).items():
        box = tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))
        found[box].add(device.id)
    return dict(found)


def read_rectangles(svg: str) -> list[tuple[float, float, float, float]]:
    """The left, top, width and height of each cell of an SVG."""
    root = ET.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    found = [each.attrib for each in root.iter() if each.tag.endswith("}rect")]
    cells = [each for each in found if each.get("stroke") == "#444"]
    return [tuple(float(each[n]) for n in ("x", "y", "width", "height")) for each in cells]  # pyright: ignore[reportReturnType]


@count_examples(60)
@given(SHAPES, st.data())
def test_each_box_lists_the_devices_that_jax_says_hold_it(
    shape: tuple[int, ...], data: st.DataObject
) -> None:
    sharding = data.draw(strategies.shardings(shape))
    if sharding is None:
        sharding = SingleDeviceSharding(jax.devices()[3])
    leaf = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
    picture = tx.draw_sharding({"w": leaf}, "w")
    assert {area.box: set(area.holders) for area in picture.areas} == find_devices(sharding, shape)
    # All are in the text: at most eight parts in a dimension, and at most four slices.
    slices = str(picture).count("┌")
    if slices <= 4 and "⋮" not in str(picture):
        for area in picture.areas:
            assert area.label in str(picture)


@count_examples(60)
@given(SHAPES, st.data())
def test_the_cells_of_the_svg_are_the_boxes_side_by_side(
    shape: tuple[int, ...], data: st.DataObject
) -> None:
    sharding = data.draw(strategies.shardings(shape).filter(bool))
    picture = tx.draw_sharding(jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding))
    rectangles = read_rectangles(picture.to_svg())
    if "⋮" in picture.to_svg():
        return
    assert len(rectangles) == len(picture.areas)
    columns = {round(x, 1) for x, *_ in rectangles}
    if len(picture.areas) > 1:  # in proportion: none is wider or higher than another
        assert len({(w, h) for *_, w, h in rectangles}) <= 4  # they are rounded to a tenth
        assert len(columns) * len({round(y, 1) for _, y, *_ in rectangles}) == len(rectangles)


@count_examples(30)
@given(SHAPES, st.data())
def test_a_topology_is_drawn_as_the_mesh_of_its_devices(
    shape: tuple[int, ...], data: st.DataObject
) -> None:
    axes = data.draw(st.sampled_from([{"x": 8}, {"x": 4, "y": 2}, {"x": 2, "y": 2, "z": 2}]))
    free, spec = dict(axes), []
    for size in shape:
        fitting = [None, *(name for name, n in free.items() if size % n == 0)]
        spec.append(data.draw(st.sampled_from(fitting)))
        free.pop(spec[-1], None)
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(*axes.values()), tuple(axes))
    want = find_devices(NamedSharding(mesh, P(*spec)), shape)
    topology = tx.Topology(hosts=4, devices_per_host=2, mesh=axes)
    abstract = NamedSharding(AbstractMesh(tuple(axes.values()), tuple(axes)), P(*spec))
    leaf = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=abstract)
    for picture in (
        tx.draw_sharding(leaf),
        tx.draw_sharding(leaf, topology=topology),
        tx.draw_sharding(shape, topology=topology, spec=P(*spec)),
    ):
        assert {area.box: set(area.holders) for area in picture.areas} == want


def test_an_array_a_device_and_typed_keys_are_drawn() -> None:
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("x",))
    array = jax.device_put(jnp.zeros((16, 3)), NamedSharding(mesh, P("x")))
    assert len(tx.draw_sharding(array).areas) == 8
    keys = jax.device_put(jax.random.split(jax.random.key(0), 8), NamedSharding(mesh, P("x")))
    picture = tx.draw_sharding({"rng": keys}, "rng")
    assert picture.shape == (8,)
    assert [area.holders for area in picture.areas] == [(i,) for i in range(8)]
    template = {"w": np.zeros((4, 4))}
    assert [area.label for area in tx.draw_sharding(template).areas] == ["0"]


def test_a_sharding_that_does_not_divide_its_leaf_is_refused_as_jax_refuses_it() -> None:
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("x",))
    leaf = jax.ShapeDtypeStruct((16, 3), jnp.float32)
    topology = tx.Topology(hosts=1, devices_per_host=8, mesh={"x": 8})
    message = re.escape("Expected dimension 0 divisible by 8 (mesh axis `x`), got 100")
    with pytest.raises(tx.UsageError, match=message):
        tx.draw_sharding((100, 4), topology=topology, spec=("x",))
    other = jax.ShapeDtypeStruct((16, 3), jnp.float32, sharding=NamedSharding(mesh, P("x")))
    with pytest.raises(tx.UsageError, match="Expected a sharding over the mesh"):
        tx.draw_sharding(other, topology=tx.Topology(hosts=1, devices_per_host=8, mesh={"y": 8}))
    with pytest.raises(tx.UsageError, match=r"axes of \{'x': 8\}, got \('x', 'x'\)"):
        tx.draw_sharding((8, 8), topology=topology, spec=("x", "x"))
    with pytest.raises(tx.UsageError, match="Expected a topology for spec="):
        tx.draw_sharding(leaf, spec=("x",))
