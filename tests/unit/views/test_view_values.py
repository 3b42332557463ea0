"""Leaves of views hold what numpy makes of whole arrays, in whole and box by box."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import templax as tx
from drawn_rules import drawn_rules
from helpers import count_examples
from templax._match.result import Match, Pair
from templax._plan.build import build_plan
from templax._restore.execute import read_batch
from templax._template.template import Target, Template


def draw_box(draw: Any, shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    return tuple(tuple(sorted(draw(st.tuples(*[st.integers(0, n)] * 2)))) for n in shape)


def read_boxes(catalog: tx.Catalog, name: str, boxes: list[Any]) -> list[np.ndarray]:
    """Boxes of a leaf, as one process of several would read them."""
    entry = catalog.leaves[name]
    target = Target(name, entry.path, entry.shape, entry.dtype, boxes=tuple(boxes), transient=True)
    match = Match("", Template(()), pairs=(Pair(target, entry),))
    plan = build_plan(match, [catalog.locate([entry])], verify="required")
    return [array for batch in plan.batches for array in read_batch(batch, plan, catalog.source)]


@count_examples(120)
@given(rule=drawn_rules(), form=st.sampled_from(["raw", "zstd"]), data=st.data())
def test_a_view_is_what_numpy_makes_of_whole_arrays(rule, form, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("view") / "ckpt"
    tx.save(path, rule.stored, compression="zstd" if form == "zstd" else None)
    catalog = tx.open(tx.view(path, tx.Mapping(rule.rules)))
    assert {name: entry.shape for name, entry in catalog.leaves.items()} == {
        name: values.shape for name, values in rule.made.items()
    }
    template = {name: np.empty(v.shape, v.dtype) for name, v in rule.made.items()}
    restored = tx.restore(catalog, template)
    for name, values in rule.made.items():
        np.testing.assert_array_equal(restored[name], values)
        boxes = [draw_box(data.draw, values.shape) for _ in range(3)]
        for box, read in zip(boxes, read_boxes(catalog, name, boxes), strict=True):
            np.testing.assert_array_equal(read, values[tuple(slice(*r) for r in box)])


def test_stacks_are_joined_one_after_the_other(tmp_path):
    stored = {f"a.{i}": np.full(2, i) for i in range(2)} | {
        f"b.{i}": np.full(2, 2 + i) for i in (0, 1)
    }
    tx.save(tmp_path / "ckpt", stored)
    stacks = [tx.From("a.{i}", "d -> i d"), tx.From("b.{i}", "d -> i d")]
    view = tx.view(tmp_path / "ckpt", tx.Mapping({"w": tx.Concat(stacks, "[i] d")}))
    restored = tx.restore(view, {"w": np.empty((4, 2), int)})
    np.testing.assert_array_equal(restored["w"][:, 0], [0, 1, 2, 3])


def test_a_part_of_a_concat_may_be_composite(tmp_path):
    tx.save(tmp_path / "ckpt", {"a": np.arange(8.0).reshape(2, 2, 2), "b": np.ones((1, 2))})
    parts = [tx.From("b"), tx.From("a", "h w d -> (h w) d")]
    view = tx.view(tmp_path / "ckpt", tx.Mapping({"w": tx.Concat(parts, "[n] d")}))
    restored = tx.restore(view, {"w": np.empty((5, 2))})
    np.testing.assert_array_equal(restored["w"][1:], np.arange(8.0).reshape(4, 2))
    np.testing.assert_array_equal(restored["w"][0], [1, 1])
