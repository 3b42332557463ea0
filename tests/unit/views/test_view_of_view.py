"""A view of a view, compared with the view of a file that has what the inner one shows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import templax as tx
from drawn_rules import drawn_rules
from helpers import count_examples

A = np.arange(24, dtype=np.float32).reshape(4, 6)


def restore_all(checkpoint: Any) -> dict[str, np.ndarray]:
    opened = tx.open(checkpoint)
    return tx.restore(
        opened, {name: np.empty(e.shape, e.dtype) for name, e in opened.leaves.items()}
    )


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert found[name].dtype == values.dtype
        assert found[name].tobytes() == values.tobytes(), name


@st.composite
def rearrangements(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[str, dict[str, Any]]:
    """Axes that split, cut, reverse, reorder and merge the dimensions of a shape."""
    names = iter("abcdefghklmnopqrstuvw")
    left: list[str] = []
    axes: list[str] = []
    options: dict[str, Any] = {"slice": {}, "flip": []}
    for n in shape:
        factor = draw(st.sampled_from([k for k in range(1, n + 1) if n % k == 0] or [1]))
        one, other = next(names), next(names)
        if 1 < factor < n:
            left.append(f"({one} {other})")
            axes += [one, other]
            options[one] = factor
        else:
            left.append(one)
            axes.append(one)
            if n > 2 and draw(st.integers(0, 3)) == 0:
                start = draw(st.integers(0, n - 2))
                options["slice"][one] = (start, draw(st.integers(start + 1, n)))
    options["flip"] = [axis for axis in axes if draw(st.integers(0, 4)) == 0]
    right: list[list[str]] = []
    for axis in draw(st.permutations(axes)):
        if right and draw(st.booleans()):
            right[-1].append(axis)
        else:
            right.append([axis])
    text = " ".join(dim[0] if len(dim) == 1 else f"({' '.join(dim)})" for dim in right)
    return f"{' '.join(left)} -> {text}", options


@pytest.mark.slow
@count_examples(150)
@given(rule=drawn_rules(), data=st.data())
def test_two_mappings_are_one_after_the_other(
    rule: Any, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("views")
    tx.save(directory / "stored", rule.stored)
    inner = tx.view(directory / "stored", tx.Mapping(rule.rules))
    made = restore_all(inner)
    assume(all(math.prod(values.shape) for values in made.values()))
    tx.save(directory / "made", made)
    rules: dict[str, Any] = {}
    for i, (name, values) in enumerate(made.items()):
        axes, options = data.draw(rearrangements(values.shape))
        rules[f"x{i}"] = tx.From(name, axes, **options)
    mapping = tx.Mapping(rules)
    assert_same(
        restore_all(tx.view(inner, mapping)), restore_all(tx.view(directory / "made", mapping))
    )


@pytest.mark.slow
@count_examples(80)
@given(rule=drawn_rules(("plain", "plain", "stack", "unstack", "flip", "repeat")))
def test_a_mapping_and_its_inverse_show_what_is_stored(
    rule: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("views") / "stored"
    tx.save(path, rule.stored)
    mapping = tx.Mapping(rule.rules)
    back = mapping.inverse(path, take=[*rule.rules])
    assert_same(restore_all(tx.view(tx.view(path, mapping), back)), rule.stored)


def make_stored(tmp_path: Path) -> Path:
    layers = {f"h.{i}.w": A + 100 * i for i in range(3)}
    tx.save(tmp_path / "stored", {**layers, "e": A, "n": 3})
    return tmp_path / "stored"


PER_LAYER = tx.Mapping(
    {
        "layers.{i}.kernel": tx.From("h.{i}.w", "(h k) d -> d h k", h=2),
        "table": tx.From("e", "v d -> v d", pad={"v": -1}, v=6),
        "step": "n",
    }
)
SCANNED = tx.Mapping(
    {
        "layers.kernel": tx.From("layers.{i}.kernel", "... -> i ..."),
        "turned": tx.From("table", "v d -> d v"),
        "joined": tx.Concat(
            [tx.From("table", "v d -> v d", slice={"v": (3, 6)}), "table"], "[v] d"
        ),
    },
    rest="keep",
)


def make_expected() -> dict[str, np.ndarray]:
    table = np.pad(A, ((0, 2), (0, 0)), constant_values=-1)
    layers = [(A + 100 * i).reshape(2, 2, 6).transpose(2, 0, 1) for i in range(3)]
    return {
        "layers.kernel": np.stack(layers),
        "turned": table.T,
        "joined": np.concatenate([table[3:], table]),
    }


def test_layers_of_another_library_are_stacked_by_a_mapping_of_its_own(tmp_path: Path) -> None:
    path = make_stored(tmp_path)
    view = tx.view(tx.view(path, PER_LAYER), SCANNED)
    expected = make_expected()
    template = {name: np.empty(v.shape, v.dtype) for name, v in expected.items()} | {"step": 0}
    made = tx.restore(view, template)
    assert made.pop("step") == 3
    assert_same(made, expected)
    assert "layers.0.kernel to layers.2.kernel" in str(tx.open(view))
    assert tx.verify(view).ok
    assert tx.account_bytes(view).nbytes == tx.account_bytes(path).nbytes
    third = tx.view(
        view, tx.Mapping({"again": tx.From("layers.kernel", "i d h k -> i (h k) d")}, rest="keep")
    )
    again = tx.restore(third, {"again": np.empty((3, 4, 6), np.float32)}, extra="ignore")
    np.testing.assert_array_equal(again["again"], np.stack([A + 100 * i for i in range(3)]))


@pytest.mark.parametrize("to", ["safetensors", "npz", "orbax"])
def test_a_view_of_a_view_is_converted_and_compared(to: Any, tmp_path: Path) -> None:
    view = tx.view(tx.view(make_stored(tmp_path), PER_LAYER), SCANNED)
    tx.convert(view, tmp_path / "made", to=to)
    made = restore_all(tmp_path / "made")
    assert int(made.pop("step")) == 3
    assert_same(made, make_expected())
    assert tx.diff(view, tmp_path / "made").identical


def test_a_view_of_a_view_reads_what_is_asked_for_only(tmp_path: Path) -> None:
    path = tmp_path / "stored.safetensors"
    rows = {f"h.{i}.w": np.zeros((64, 64), np.float32) for i in range(8)}
    tx.save(path, rows)
    inner = tx.view(path, tx.Mapping({"w": tx.From("h.{i}.w", "a b -> i b a")}))
    view = tx.view(inner, tx.Mapping({"l.{i}": tx.From("w", "i b a -> a b")}))
    plan = tx.plan(view, {"l.3": np.empty((64, 64), np.float32)}, extra="ignore")
    assert plan.read_bytes == 64 * 64 * 4


def test_damage_is_named_by_the_leaf_that_is_stored(tmp_path: Path) -> None:
    path = tmp_path / "stored.safetensors"
    tx.save(path, {"w": A})
    data = bytearray(path.read_bytes())
    data[data.index(A.tobytes())] ^= 1
    path.write_bytes(data)
    turned, back = (tx.Mapping({a: tx.From(b, "a b -> b a")}) for a, b in (("k", "w"), ("y", "k")))
    for outer, shape in ((back, (4, 6)), (tx.Mapping({"y": "k"}), (6, 4))):
        view = tx.view(tx.view(path, turned), outer)
        with pytest.raises(tx.Corrupted, match="at `y`, stored as `w`"):
            tx.restore(view, {"y": np.empty(shape, np.float32)})
        assert [damage.leaf for damage in tx.verify(view).damages] == ["w"]


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("inner_scales", [True, False])
def test_values_are_scaled_by_either_mapping(
    inner_scales: bool, dtype: Any, tmp_path: Path
) -> None:
    tx.save(tmp_path / "stored", {"w": A.astype(dtype)})
    option = {"scale": 0.3, "add": 1}
    inner = tx.Mapping({"k": tx.From("w", "a b -> b a", **(option if inner_scales else {}))})
    outer = tx.Mapping(
        {"y": tx.From("k", "(b c) a -> a c b", c=2, **({} if inner_scales else option))}
    )
    made = restore_all(tx.view(tx.view(tmp_path / "stored", inner), outer))["y"]
    values = A.astype(dtype).astype(np.float32) * np.float32(0.3) + np.float32(1)
    want = values.astype(dtype).T.reshape(3, 2, 4).transpose(2, 1, 0)
    assert made.tobytes() == want.tobytes()


@pytest.mark.filterwarnings("ignore::templax.CastWarning")
def test_what_the_inner_mapping_computes_is_rounded_once(tmp_path: Path) -> None:
    """To the dtype of the template, as in a single mapping, not first to the stored one."""
    tx.save(tmp_path / "stored", {"w": A.astype(ml_dtypes.bfloat16)})
    one = tx.view(tmp_path / "stored", tx.Mapping({"y": tx.From("w", "a b -> b a", scale=0.3)}))
    outer = tx.Mapping({"y": tx.From("y", "b a -> a b")})
    single = tx.restore(one, {"y": np.empty((6, 4), np.float32)})["y"]
    made = tx.restore(tx.view(one, outer), {"y": np.empty((4, 6), np.float32)})["y"]
    np.testing.assert_array_equal(single, A.T * np.float32(0.3))
    np.testing.assert_array_equal(made, A * np.float32(0.3))


def test_values_are_not_scaled_twice(tmp_path: Path) -> None:
    tx.save(tmp_path / "stored", {"w": A})
    inner = tx.view(tmp_path / "stored", tx.Mapping({"k": tx.From("w", "a b -> b a", scale=2)}))
    view = tx.view(inner, tx.Mapping({"y": tx.From("k", "b a -> a b", add=1)}))
    with pytest.raises(tx.Unsupported) as caught:
        tx.restore(view, {"y": np.empty((4, 6), np.float32)})
    assert str(caught.value) == (
        "templax computes a leaf once, got scale= or add= of `k`, which the view that is shown"
        " computes already: write one mapping - at `y`"
    )


def test_sizes_that_do_not_divide_each_other_are_refused_if_there_are_many(
    tmp_path: Path,
) -> None:
    tx.save(tmp_path / "stored", {"w": np.zeros((1000, 1001), np.float32)})
    turned = tx.view(tmp_path / "stored", tx.Mapping({"k": tx.From("w", "a b -> (b a)")}))
    whole = tx.view(turned, tx.Mapping({"y": tx.From("k", "(b a) -> a b", b=1001)}))
    assert restore_all(whole)["y"].shape == (1000, 1001)
    odd = tx.view(turned, tx.Mapping({"y": tx.From("k", "(a b) -> b a", a=1000)}))
    with pytest.raises(tx.Unsupported, match="`k` through both mappings, as it is split into"):
        restore_all(odd)
