"""A mapping applied and inverted gives the bytes back; what has no inverse says why."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given

import templax as tx
from drawn_rules import drawn_rules
from helpers import count_examples

INVERTIBLE = ("plain", "plain", "stack", "unstack", "flip", "repeat", "pad")


def assert_inverse(
    directory: Path,
    stored: dict[str, Any],
    mapping: tx.Mapping,
    settled: bool = True,
    take: Sequence[str] = (),
) -> tx.Mapping:
    """Applies a mapping and its inverse, and compares the bytes. Returns the inverse."""
    path = directory / "stored"
    tx.save(path, stored)
    inverse = mapping.inverse(of=path if settled else None, take=take)
    inverse = tx.Mapping.from_json(json.loads(json.dumps(inverse.to_json())))
    view = tx.open(tx.view(path, mapping))
    made = tx.restore(view, {name: np.empty(e.shape, e.dtype) for name, e in view.leaves.items()})
    tx.save(directory / "made", made)
    back = tx.view(directory / "made", inverse)
    template = {name: np.empty(v.shape, v.dtype) for name, v in stored.items()}
    if settled:  # the sizes do not need a template
        assert {name: e.shape for name, e in tx.open(back).leaves.items()} == {
            name: values.shape for name, values in stored.items()
        }
    restored = tx.restore(back, template)
    for name, values in stored.items():
        assert restored[name].dtype == values.dtype
        assert restored[name].tobytes() == values.tobytes(), name
    assert restored.keys() == stored.keys()
    return inverse


@pytest.mark.slow
@count_examples(80)
@given(rule=drawn_rules(INVERTIBLE))
def test_the_bytes_of_a_drawn_rule_come_back(rule, tmp_path_factory):
    directory = tmp_path_factory.mktemp("inverse")
    assume(not pads_twice(rule))
    assert_inverse(directory, rule.stored, tx.Mapping(rule.rules), take=[*rule.rules])


def pads_twice(rule: Any) -> bool:
    """Whether a rule pads two axes of one dimension."""
    (part,) = rule.rules.values()
    return any(sum(axis in part.pad for axis in dim) > 1 for dim in part.axes.right)


def test_two_padded_axes_of_a_dimension_have_no_inverse():
    mapping = tx.Mapping({"y": tx.From("x", "a b -> (a b)", pad=["a", "b"], a=3, b=4)})
    with pytest.raises(tx.MappingError, match="`y`: it pads `a` and `b` of one dimension"):
        mapping.inverse()


@pytest.mark.slow
@count_examples(40)
@given(rule=drawn_rules(tuple(kind for kind in INVERTIBLE if kind != "stack")))
def test_a_template_settles_what_the_rules_do_not_tell(rule, tmp_path_factory):
    directory = tmp_path_factory.mktemp("inverse")
    assume(not pads_twice(rule))
    assert_inverse(
        directory, rule.stored, tx.Mapping(rule.rules), settled=False, take=[*rule.rules]
    )


QKV = {
    f"{name}.kernel": tx.From("qkv.weight", "(n h k) d -> d h k", select={"n": i}, n=3, k=2)
    for i, name in enumerate("qkv")
}


def count(*shape: int, start: int = 0, dtype: Any = np.float32) -> np.ndarray:
    return np.arange(start, start + int(np.prod(shape)), dtype=dtype).reshape(shape)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "siblings of a select": (QKV, {"qkv.weight": count(18, 4)}),
    "siblings of a select in a family": (
        {
            "l.{i}.even": tx.From("l.{i}.w", "(n two) d -> d n", select={"two": 0}, two=2),
            "l.{i}.odd": tx.From("l.{i}.w", "(n two) d -> n d", select={"two": 1}, two=2),
        },
        {f"l.{i}.w": count(6, 2, start=i) for i in range(3)},
    ),
    "siblings of a slice, unlike the other in their axes' names": (
        {
            "q": tx.From("qkv", "f d -> d f", slice={"f": (0, 4)}),
            "kv": tx.From("qkv", "d f -> d f", slice={"d": (4, 7)}),
        },
        {"qkv": count(7, 3)},
    ),
    "siblings that overlap": (
        {
            "a": tx.From("w", "f -> f", slice={"f": (0, 3)}),
            "b": tx.From("w", "f -> f", slice={"f": (2, 5)}),
            "c": tx.From("w", "f -> f", slice={"f": (3, 7)}),
        },
        {"w": count(7)},
    ),
    "slices of composite axes": (
        {
            "cls": tx.From("pos", "1 n d -> n d", slice={"n": (0, 1)}),
            "grid": tx.From("pos", "1 (h w) d -> h w d", slice={"(h w)": (1, 7)}, h=2),
        },
        {"pos": count(1, 7, 3)},
    ),
    "a slice within groups": (
        {
            "a": tx.From("w", "(h f) d -> (h f) d", slice={"f": (0, 2)}, h=2),
            "b": tx.From("w", "(h f) d -> d h f", slice={"f": (2, 3)}, h=2),
        },
        {"w": count(6, 2)},
    ),
    "a concat": (
        {"kv": tx.Concat(["k", tx.From("v", "f d -> d f")], "d [f]")},
        {"k": count(2, 3), "v": count(4, 2, start=9)},
    ),
    "a concat within groups": (
        {
            "kv": tx.Concat(
                [tx.From("k", "(h f) r -> (h f) r", h=2), tx.From("v", "a b c -> (a b) c")],
                "(h [f]) r",
            )
        },
        {"k": count(6, 3), "v": count(2, 2, 3, start=50)},
    ),
    "a concat by position, of repeats, composites and padding": (
        {
            "w": tx.Concat(
                [
                    tx.From("a", "d -> n d", n=1),
                    tx.From("b", "d -> d r", r=1),
                    tx.From("c", "(h k) d -> (h k) d", h=2, flip="h"),
                    tx.From("e", "x d -> x d", pad="x", x=5),
                ],
                "[n] d",
            )
        },
        {"a": count(1), "b": count(1, start=5), "c": count(4, 1), "e": count(3, 1)},
    ),
    "halves that are exchanged": (
        {
            "w": tx.Concat(
                [
                    tx.From("a", "f -> f", slice={"f": (2, 4)}),
                    tx.From("a", "f -> f", slice={"f": (0, 2)}),
                ],
                "[f]",
            )
        },
        {"a": count(4)},
    ),
    "tied weights, strided stacks, renamed families": (
        {
            "embed": "tok",
            "head.{p}": tx.From("tok", "(p v) d -> d v", p=["x", "y"]),
            "again.{(g c)}": tx.From("l.{(g c)}.w", c=2),
            "l.{c}.w": tx.From("l.{(g c)}.w", "d -> g d", c=2),
            "norm.{i:02}": "ln_{i+1}",
            "rest.{...}": "old.{...}",
        },
        {
            "tok": count(4, 3),
            **{f"l.{i}.w": count(3, start=i) for i in range(6)},
            "ln_1": count(2),
            "ln_2": count(3),
            "old.a.b": count(4),
            "old.c": count(5),
        },
    ),
    "ranges of what is unstacked": (
        {
            "low.{i}": tx.From("w", "i d -> d", slice={"i": (0, 2)}),
            "high.{i}": tx.From("w", "i d -> d", slice={"i": (2, 5)}),
        },
        {"w": count(5, 2)},
    ),
    "names": (
        {"mlp": tx.From("{p}.w", "f d -> d (p f)", p=["up", "gate"])},
        {"up.w": count(2, 3), "gate.w": count(2, 3, start=6)},
    ),
}


TAKEN = {
    "siblings that overlap": ["a", "c"],
    "tied weights, strided stacks, renamed families": ["embed", "l.{c}.w"],
}
"""Which rules are taken where several hold the same elements."""


@pytest.mark.parametrize("case", CASES)
def test_the_bytes_come_back(case: str, tmp_path: Path) -> None:
    rules, stored = CASES[case]
    assert_inverse(tmp_path, stored, tx.Mapping(rules, rest="keep"), take=TAKEN.get(case, ()))


def test_an_inverse_keeps_what_no_rule_names(tmp_path: Path) -> None:
    mapping = tx.Mapping({"a": tx.From("b", "h k -> k h")}, rest="keep")
    stored = {"b": count(2, 3), "c": count(2)}
    assert assert_inverse(tmp_path, stored, mapping, settled=False).inverse() == mapping


def test_an_inverse_is_a_mapping_that_can_be_read(tmp_path: Path) -> None:
    rules = {
        "w": tx.Concat(["a", tx.From("b", "f d -> d f")], "d [f]"),
        "v": tx.From("c", "v d -> d v", pad="v", v=8),
        "u": tx.From("c", "v d -> d v", pad="v", v=8),
    }
    stored = {"a": count(2, 3), "b": count(4, 2), "c": count(5, 2)}
    tx.save(tmp_path / "ckpt", stored)
    assert tx.Mapping(rules).inverse(of=tx.open(tmp_path / "ckpt"), take="v") == tx.Mapping(
        {
            "a": tx.From("w", "d f -> d f", slice={"f": (0, 3)}, f=7),
            "b": tx.From("w", "d f -> f d", slice={"f": (3, 7)}, f=7),
            "c": tx.From("v", "d v -> v d", crop="v", v=5),
        },
        drop=["u"],
    )


NONE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "`a.{i}`: it unstacks `i` in reverse": ({"a.{i}": tx.From("b", "i d -> d", flip="i")}, {}),
    "drop='x.*': what is dropped can't be had back": ({}, {"drop": "x.*"}),
    "`a`: scale= has no inverse, as values are rounded": ({"a": tx.From("b", scale=2)}, {}),
    "`a`: add= has no inverse, as values are rounded": (
        {"a": tx.Concat([tx.From("b", "d -> d", add=1)], "[d]")},
        {},
    ),
    "`a`: crop= has no inverse, as elements are left out": (
        {"a": tx.From("b", "d -> d", crop="d")},
        {},
    ),
    "`a`: `a` is not all of `b`: the rest is lost, so write rules for it": (
        {"a": tx.From("b", "(n d) -> d", select={"n": 1}, n=2)},
        {},
    ),
    "`q`: `q` and `v` are not all of `w`: the rest is lost": (
        {
            "q": tx.From("w", "f -> f", slice={"f": (0, 2)}, f=7),
            "v": tx.From("w", "f -> f", slice={"f": (3, 7)}, f=7),
        },
        {},
    ),
    "`q`: only shapes tell whether `q` and `k` are all of `w`: pass of= the checkpoint that the"
    " mapping is for, or give the size of `n`": (
        {
            "q": tx.From("w", "n f -> f", select={"n": 0}),
            "k": tx.From("w", "n f -> f", select={"n": 1}),
        },
        {},
    ),
    "`w`: only shapes tell where its parts begin: pass of=": (
        {"w": tx.Concat(["a", "b"], "[f]")},
        {},
    ),
    "`q`: it cuts `w` along n and f, and parts are joined along one axis only": (
        {"q": tx.From("w", "n f -> f", select={"n": 0}, slice={"f": (0, 2)})},
        {},
    ),
    "`c.{j}`: another rule takes `b.{i}`, which differs from `b.{j}`": (
        {"a.{i}": "b.{i}", "c.{j}": "b.{j}"},
        {},
    ),
    "`q`: write the axes of `w` alike in all rules that take a part of it": (
        {
            "q": tx.From("w", "n (a b) -> a b", select={"n": 0}, n=2),
            "k": tx.From("w", "n f -> f", select={"n": 1}, n=2),
        },
        {},
    ),
    "`w`: `e` stacks leaves inside a Concat: name each of them as a part of its own": (
        {
            "w": tx.Concat(
                [tx.From("a.{e}", "d -> e d", e=["x", "y"]), tx.From("b", "d -> e d", e=1)], "[e] d"
            )
        },
        {},
    ),
}


TIED = tx.Mapping({"embed": "wte", "head": tx.From("wte", "v d -> d v")})


def test_an_inverse_of_tied_weights_wants_to_know_which_is_taken(tmp_path: Path) -> None:
    tx.save(tmp_path / "ckpt", {"wte": count(4, 3)})
    for of in (None, tmp_path / "ckpt"):
        with pytest.raises(tx.MappingError) as caught:
            TIED.inverse(of)
        assert caught.value.problems == (
            "`embed`: `embed`, `head` hold copies of `wte`, which may differ by now: pass"
            ' take=["embed"] to take this one and leave the others out',
        )


@pytest.mark.parametrize("take", ["embed", "head", ["head"], ("head", "embed")])
def test_of_weights_that_were_tied_the_one_that_is_named_is_taken(
    take: Any, tmp_path: Path
) -> None:
    embed, head = count(4, 3), count(3, 4, start=90)  # trained apart
    tx.save(tmp_path / "ckpt", {"embed": embed, "head": head})
    back = tx.view(tmp_path / "ckpt", TIED.inverse(take=take))
    expected = embed if take == "embed" else head.T
    made = tx.restore(back, {"wte": np.empty((4, 3), np.float32)})["wte"]
    np.testing.assert_array_equal(made, expected)
    other = "head" if expected is embed else "embed"
    assert back.mapping.drop == (other,)


@pytest.mark.parametrize("apart", [False, True])
def test_both_choices_tell_whether_weights_are_still_tied(apart: bool, tmp_path: Path) -> None:
    embed = count(4, 3)
    tx.save(tmp_path / "ckpt", {"embed": embed, "head": embed.T + (count(3, 4) == 5) * apart})
    views = [tx.view(tmp_path / "ckpt", TIED.inverse(take=name)) for name in ("embed", "head")]
    found = tx.diff(*views)
    assert found.identical != apart
    assert [leaf.name for leaf in found.leaves if leaf.differences] == ["wte"] * apart


def test_an_inverse_of_a_family_of_tied_weights_can_not_leave_out_a_rest() -> None:
    mapping = tx.Mapping({"c.{...}": "b.{...}", "a.{...}": "b.{...}"})
    with pytest.raises(tx.MappingError, match=r"`a.{...}`: its source fills other leaves as well"):
        mapping.inverse(take="c.{...}")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            {"y": tx.From("x", "k -> h k", h=4)},
            "`y`: `y` holds copies of `x` along `h`, which may differ by now: pass"
            ' take=["y"] to take the first copy and leave the others out',
        ),
        (
            {"y": tx.Concat(["x", tx.From("x", "d -> d")], "[d]")},
            "`y`: only shapes tell where its parts begin",
        ),
        (
            {"a": tx.Concat(["x", "z"], "[d]"), "b": "x"},
            "`a`: only shapes tell where its parts begin",
        ),
    ],
)
def test_an_inverse_of_copies_in_one_leaf_wants_to_know_it_too(
    rules: dict[str, Any], message: str
) -> None:
    with pytest.raises(tx.MappingError) as caught:
        tx.Mapping(rules).inverse()
    assert caught.value.problems[0].startswith(message)


def test_copies_that_a_concat_holds_are_found_with_shapes(tmp_path: Path) -> None:
    tx.save(tmp_path / "ckpt", {"x": count(2), "z": count(3)})
    mapping = tx.Mapping({"y": tx.Concat(["x", "z", "x"], "[d]")})
    message = r'`y` holds copies of `x`, .* take=\["y"\] to take the first copy'
    with pytest.raises(tx.MappingError, match=message):
        mapping.inverse(tmp_path / "ckpt")
    back = mapping.inverse(tmp_path / "ckpt", take="y")
    assert dict(back.rules["x"].slice) == {("d",): (0, 2)}
    both = tx.Mapping({"y": tx.Concat(["x", "z"], "[d]"), "w": "x"})
    with pytest.raises(tx.MappingError, match=r'`y`, `w` hold copies of `x`, .* take=\["y"\]'):
        both.inverse(tmp_path / "ckpt")
    assert both.inverse(tmp_path / "ckpt", take="w").rules["x"] == tx.From("w")


def test_an_unknown_rule_to_take_is_refused() -> None:
    with pytest.raises(
        tx.MappingError, match="take= names 'wte', but the mapping has no rule for it"
    ):
        TIED.inverse(take=["embed", "wte"])


@pytest.mark.parametrize("message", NONE)
def test_what_has_no_inverse_says_why(message: str) -> None:
    rules, options = NONE[message]
    with pytest.raises(tx.MappingError) as caught:
        tx.Mapping(rules, **options).inverse()
    assert any(problem.startswith(message) for problem in caught.value.problems), caught.value


def test_all_rules_that_have_no_inverse_are_named() -> None:
    rules = {"a": tx.From("b", scale=2), "c": "d", "e": tx.From("f", "d -> d", crop="d")}
    with pytest.raises(tx.MappingError) as caught:
        tx.Mapping(rules, drop=["x"]).inverse()
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "drop='x'",
        "`a`",
        "`e`",
    ]


def test_a_checkpoint_that_the_mapping_is_not_for_is_named(tmp_path: Path) -> None:
    tx.save(tmp_path / "ckpt", {"x": count(2)})
    with pytest.raises(tx.MappingError, match="the checkpoint has no `b`") as caught:
        tx.Mapping({"a": "b"}).inverse(of=tmp_path / "ckpt")
    assert str(tmp_path / "ckpt") in caught.value.__notes__[0]
