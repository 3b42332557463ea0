"""The text and the SVG of pictures: what they show, and how large they get."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import templax as tx
from helpers import CORPUS
from templax._core.boxes import intersect
from templax._core.chunk_grid import iter_cells

ONE_HOST = tx.Topology(hosts=1, devices_per_host=8, mesh={"a": 2, "b": 2, "c": 2})

SLICES = """\
float32 (4, 8, 6, 3), P('a', ('b', 'c')) over a=2 × b=2 × c=2
  each cell lists the devices that hold it
  down: dimension 0; to the right: 1; not divided: 2 of size 6, 3 of size 3

        0:2   2:4   4:6   6:8
      ┌─────┬─────┬─────┬─────┐
  0:2 │ 0   │ 1   │ 2   │ 3   │
      ├─────┼─────┼─────┼─────┤
  2:4 │ 4   │ 5   │ 6   │ 7   │
      └─────┴─────┴─────┴─────┘"""

CUBE = """\
float32 (2, 2, 4), P('c', 'b', 'a') over a=2 × b=2 × c=2
  each cell lists the devices that hold it
  down: dimension 1; to the right: 2; a table for each part of 0

  dimension 0: 0:1
        0:2   2:4
      ┌─────┬─────┐
  0:1 │ 0   │ 4   │
      ├─────┼─────┤
  1:2 │ 2   │ 6   │
      └─────┴─────┘

  dimension 0: 1:2
        0:2   2:4
      ┌─────┬─────┐
  0:1 │ 1   │ 5   │
      ├─────┼─────┤
  1:2 │ 3   │ 7   │
      └─────┴─────┘"""


@pytest.mark.parametrize(
    ("shape", "spec", "want"),
    [((4, 8, 6, 3), ("a", ("b", "c")), SLICES), ((2, 2, 4), ("c", "b", "a"), CUBE)],
)
def test_the_text_shows_each_part_with_its_devices(
    shape: tuple[int, ...], spec: tuple[str, ...], want: str
) -> None:
    assert str(tx.draw_sharding(shape, topology=ONE_HOST, spec=spec)) == want


def test_two_thousand_devices_fit_on_a_screen_and_in_a_small_svg() -> None:
    topology = tx.Topology(hosts=512, devices_per_host=4, mesh={"data": 64, "model": 32})
    for shape, spec in [
        ((8192, 4096), ("data", "model")),
        ((8192, 4096), (("data", "model"),)),
        ((64, 32, 8), ("data", None, None)),
        ((2048,), (("model", "data"),)),
        ((8, 8), ()),
    ]:
        picture = tx.draw_sharding(shape, topology=topology, spec=spec)
        assert sum(len(area.holders) for area in picture.areas) == 2048
        text = str(picture)
        assert max(map(len, text.split("\n"))) <= 100
        assert text.count("\n") < 50
        assert len(picture.to_svg()) < 300_000
        last = picture.areas[-1].label
        assert last in text, spec
    picture = tx.draw_sharding((8, 8), topology=topology, spec=("data",) * 0)
    assert "0-2047 hosts 0-511" in str(picture)


def test_many_slices_are_abbreviated() -> None:
    topology = tx.Topology(hosts=1, devices_per_host=64, mesh={"a": 16, "b": 2, "c": 2})
    text = str(tx.draw_sharding((16, 2, 2), topology=topology, spec=("a", "b", "c")))
    shown = [line.strip() for line in text.split("\n") if line.startswith("  dimension")]
    assert shown == [f"dimension 0: {i}:{i + 1}" for i in (0, 1, 14, 15)]
    assert "\n  ⋮\n" in text


def test_a_restore_that_reads_more_than_it_needs_is_seen_at_a_glance(tmp_path: Path) -> None:
    path = tmp_path / "ckpt"
    tx.save(path, {"w": jnp.zeros((2048, 1024)), "step": 3})
    topology = tx.Topology(hosts=2, devices_per_host=2, mesh={"data": 2, "model": 2})
    template = tx.open(path).template()
    rows = tx.draw_sharding(template, "w", topology=topology, spec=("data",), checkpoint=path)
    assert [area.note for area in rows.areas] == [
        "host 0; 1 chunk, 100.0%",
        "host 1; 1 chunk, 100.0%",
    ]
    assert rows.chunks == (((0, 1024), (0, 1024)), ((1024, 2048), (0, 1024)))
    columns = tx.draw_sharding(
        template, "w", topology=topology, spec=(None, "model"), checkpoint=path
    )
    assert [area.note for area in columns.areas] == ["hosts 0-1; 2 chunks, 50.0%"] * 2
    assert "each cell lists the devices" in str(columns)
    root = ET.fromstring(columns.to_svg())
    dashed = [e for e in root.iter() if e.get("stroke-dasharray")]
    cells = [e for e in root.iter() if e.get("stroke") == "#444"]
    assert (len(dashed), len(cells)) == (2, 2)
    width = sum(float(e.attrib["width"]) for e in cells)
    assert {float(e.attrib["width"]) for e in dashed} == {width}
    height = sum(float(e.attrib["height"]) for e in dashed)
    assert {float(e.attrib["height"]) for e in cells} == {height}


@pytest.mark.parametrize(
    "case", ["orbax-0.12.8-multi2p", "orbax-0.12.8-default", "orbax-0.12.8-zarr3"]
)
def test_the_files_of_a_leaf_are_those_of_its_chunks(case: str) -> None:
    catalog = tx.open(CORPUS / case / "ckpt")
    for entry in catalog.entries:
        if entry.kind == "string":
            continue
        picture = tx.draw_chunks(catalog, entry.name)
        chunks = catalog.locate([entry])[entry.name]
        stored = (catalog.chunk_shapes or dict)().get(entry.name, entry.shape)
        files = list(dict.fromkeys(chunk.extent.key for chunk in chunks))
        # Each chunk is a cell of the grid in the metadata, in the file that it is located in.
        files_of = {}
        for _, cell in iter_cells(entry.shape, stored):
            holding = [c.extent.key for c in chunks if intersect(c.box, cell) is not None]
            files_of[cell[: len(picture.shape)]] = [files.index(key) for key in holding]
        assert {area.box: list(area.holders) for area in picture.areas} == files_of
        lines = [line for line in picture.lines if line.startswith("  file ")]
        assert [line.split(": ")[1].split(", ")[0] for line in lines] == files
        assert str(picture)
        ET.fromstring(picture.to_svg())


HOSTILE = '</text><script>alert("1")</script>&amp;\x1b[2J\n\u202e'


def test_a_name_from_a_file_can_forge_neither_lines_nor_elements(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tx.save(path, {HOSTILE: np.zeros((4, 4), np.float32)}, format="safetensors")
    (name,) = tx.open(path).leaves
    topology = tx.Topology(hosts=1, devices_per_host=2, mesh={HOSTILE: 2})
    sharded = tx.draw_sharding(
        tx.open(path).template(), name, topology=topology, spec=(HOSTILE,), checkpoint=path
    )
    for picture in (tx.draw_chunks(path, name), sharded):
        for text in (str(picture), picture.to_svg()):
            assert all(c.isprintable() or c == "\n" for c in text)
        assert str(picture).split("\n")[0].startswith("`</text><script>")
        assert repr(picture).isprintable()
        kinds = {e.tag.rpartition("}")[2] for e in ET.fromstring(picture.to_svg()).iter()}
        assert kinds == {"svg", "rect", "text", "title"}


def test_leaves_that_are_not_there_or_not_named_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ckpt"
    tx.save(path, {"w": np.zeros(3), "b": np.zeros(3), "name": "x"})
    with pytest.raises(tx.UsageError, match="as the checkpoint has 2: `b`, `w`"):
        tx.draw_chunks(path)
    with pytest.raises(tx.NotFound, match="Expected a leaf, found none - at `v`"):
        tx.draw_chunks(path, "v")
    with pytest.raises(tx.UsageError, match="Expected an array, got a string - at `name`"):
        tx.draw_chunks(path, "name")
    with pytest.raises(tx.UsageError, match="as the template has 2: `b`, `w`"):
        tx.draw_sharding({"w": np.zeros(3), "b": np.zeros(3)})
    with pytest.raises(
        tx.UsageError, match="Expected the name of an array of the template, got `v`"
    ):
        tx.draw_sharding({"w": np.zeros(3)}, "v")
    with pytest.raises(tx.UsageError, match=r"Expected shape \(3,\) of the checkpoint, got \(4,\)"):
        tx.draw_sharding({"w": np.zeros(4)}, "w", checkpoint=path)
    assert tx.draw_sharding({"b": np.zeros(3)}, checkpoint=path, at="").shape == (3,)
