"""What is wrong with a rule is said when its mapping is made, all at once, with what to write."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import templax as tx

From, Concat = tx.From, tx.Concat


def problems(rules: Any, **options: Any) -> tuple[str, ...]:
    with pytest.raises(tx.MappingError) as caught:
        tx.Mapping(rules, **options)
    return caught.value.problems


WRONG: list[tuple[str, Any, str]] = [
    # Placeholders of one name.
    ("w", "a.{i}", "`{i}` is in the source's name only: .* stack along it .* `... -> i ...`"),
    ("w.{i}", "a", "`{i}` is in the target's name only: .* unstack it .* `i ... -> ...`"),
    ("w", From("a.{i}", "f d -> d f"), "`i` must be an axis of the right side of `f d -> d f`"),
    ("w", From("a.{i}", "i f -> f", select={"i": 0}), "`i` must be an axis of the right side"),
    ("w.{i}", From("a", "f d -> d f"), "`i` must be an axis of the left side of `f d -> d f`"),
    ("w.{i}", From("a", "i f -> f i"), "`i` must be an axis of the left side"),
    ("w.{i}", From("a", "i f -> f", select={"i": 0}), "neither of the right nor selected"),
    ("w.{i}", From("a.{i}", "i f -> f i"), "`i` is a placeholder of both names and an axis"),
    ("a.{...}", "b", "`{...}` is in `a.{...}` only: write it in both names"),
    ("a", From("b.{...}", "f -> f"), "`{...}` is in `b.{...}` only"),
    # Axes of one side.
    ("w", From("a", "h k -> k"), "`h` is on the left of `h k -> k` only: .* select={'h': 0}"),
    ("w", From("a", "k -> h k"), "`h` is on the right of `k -> h k` only: .* h=4, to repeat"),
    ("w", From("a", "h k -> k h", select={"h": 0}), "remove it from the right of `h k -> k h`"),
    # Options.
    ("w", From("a", "h k -> k h", select={"x": 0}), "select= has `x`, .*left side only: leave it"),
    ("w", From("a", "h k -> k h", slice={"x": (0, 1)}), "slice= has `x`, .* give one of `h`, `k`"),
    ("w", From("a", "h k -> k h", slice={"(h k)": (0, 1)}), r"slice= has `\(h k\)`"),
    ("w", From("a", "(h k w) -> h k w", slice={"(h w)": (0, 1)}), r"slice= has `\(h w\)`"),
    ("w", From("a", "(a h w) -> a h w", slice={"(h w)": (0, 1)}), r"or a whole group in paren"),
    ("w", From("a.{i}", "d -> i d", flip="i"), "flip= has `i`, along which leaves are stacked"),
    (
        "w",
        From("a", "h -> k h", slice={"k": (0, 1)}, k=2),
        "slice= has `k`, which is not an axis",
    ),
    (
        "w",
        From("a", "(h k) -> h k", slice={"(h k)": (0, 4), "k": (0, 2)}),
        "slice= cuts `k` twice: give one range",
    ),
    ("w", From("a", "h k -> k", slice={"h": (0, 1)}, select={"h": 0}), "in slice= and select="),
    ("w", From("a", "h k -> k h", flip="x"), "flip= has `x`, which is not an axis: give one of"),
    ("w", From("a", "h k -> k", flip="h", select={"h": 0}), "in flip= and select="),
    ("w", From("a", "h k -> k h", pad="x"), "pad= has `x`, which is not an axis of both sides"),
    ("w", From("a", "h k -> k", pad="h", select={"h": 0}), "pad= has `h`, .* give one of `k`"),
    ("w", From("a", "h k -> k h", crop="x"), "crop= has `x`, which is not an axis of both sides"),
    ("w", From("a", "h k -> k h", x=3), "x= has `x`, which is not an axis: give one of `h`, `k`"),
    ("w", From("a", x=3), "x= has `x`, which is not an axis: leave it out"),
    ("w.{i}", From("a.{i}", i=3), "i= has `i`, which is not an axis"),
    ("w", From("a", "h k -> k h", scale="x**2"), "scale= has `x`, which is not an axis"),
    ("w", From("a", add="h"), "add= has `h`, which is not an axis: leave it out"),
    ("w", From("a", select={"h": 0}), "select= is given without axes: name them"),
    ("w", From("a", slice={"h": (0, 1)}), "slice= is given without axes"),
    ("w", From("a", flip="h"), "flip= is given without axes"),
    ("w", From("a", pad="h"), "pad= is given without axes"),
    ("w", From("a", crop="h"), "crop= is given without axes"),
    # Names and sizes of placeholders.
    ("w", From("a", "p d -> d p", p=["x", "y"]), "p= gives names, but no name has `{p}`"),
    ("w", From("a.{p+1}", "d -> p d", p=["x"]), r"`{p\+1}` is an integer, but p= gives names"),
    ("w", From("a.{(p c)}", "d -> p c d", p=["x"], c=2), r"`{\(p c\)}` is an integer"),
    ("w.{p:02}", From("a", "p d -> d", p=["x"]), "`{p:02}` is an integer, but p= gives names"),
    ("w.{c}", From("a.{(g c)}", "d -> g d"), r"`{\(g c\)}` needs the size of `c`: .* c=4"),
    ("w.{(g c)}", From("a.{c}", "g d -> d"), r"`{\(g c\)}` needs the size of `c`"),
    ("w", From("a.{i}{j}", "d -> i j d"), "`a.{i}{j}` does not tell where the integer of `{i}`"),
    ("w.{i}0", "a.{i}", "`w.{i}0` does not tell where"),
    # Parts.
    ("w", Concat(["a", From("b", "x y -> y x z", z=2)], "d [f]"), "part 2: the right side of"),
    ("w", Concat(["a", From("b", "x -> ... x")], "d [f]"), r"part 2: .*`x -> ... x`"),
    ("w", Concat(["a", From("b", "x y -> (y x)")], "(d [f]) r"), r"part 2: .*does not have the ax"),
    ("w", Concat(["a", From("b", "x y -> (x y)")], "[d] ..."), r"part 2: .*does not have the ax"),
    ("w", Concat(["a", From("b", "d -> 1 d")], "[n] d"), "part 2: .*does not have the ax"),
    ("w", Concat(["a", "b.{i}"], "d [f]"), "part 2: `{i}` is in the source's name only"),
    ("w.{i}", Concat(["a.{i}", "b"], "d [f]"), "part 2: `{i}` is in the target's name only"),
    ("w.{...}", Concat(["a.{...}", "b"], "d [f]"), "part 2: `{...}` is in `w.{...}` only"),
    ("w", Concat(["a", From("b", flip="x")], "d [f]"), "part 2: flip= has `x`, .* `d`, `f`"),
    (
        "w.{p}",
        Concat([From("a.{p}", p=["x", "y"]), From("b.{p}", p=["y", "x"])], "d [f]"),
        "parts do not agree on the names of `p`: give p= in each",
    ),
    ("w.{p}", Concat([From("a.{p}", p=["x"]), "b.{p}"], "[f]"), "parts do not agree on the names"),
    (
        "w.{(g c)}",
        Concat([From("a.{g}.{c}", c=2), From("b.{(g c)}", c=3)], "[f]"),
        "parts do not agree on the size of `c`",
    ),
    # What can't be parsed.
    ("w.{", "a", "`w.{` has a single `{`"),
    ("w", "a.{", "`a.{` has a single `{`"),
    ("w", From("a", "h k"), "has no arrow"),
    ("w", From("a", "h -> h", scale="__import__"), "scale= `__import__` has"),
    ("w", From("a", "h -> h", add="1/0"), "add= `1/0` divides by zero"),
    ("w", Concat(["a", From("b", "h")], "[f]"), "part 2: `h` has no arrow"),
    ("w", Concat(["a"], "h 2"), "`h 2` has no brackets"),
    ("w", Concat(["a"], "h f"), "`h f` has no brackets"),
    ("w", Concat([], "[f]"), "Expected a list of 1 to 1,000 sources"),
    ("w", Concat("ab", "[f]"), "Expected a list of 1 to 1,000 sources"),
    ("w", Concat(["a", 3], "[f]"), "part 2: Expected a name or a From, got int"),  # type: ignore[list-item]
    ("w", 3, "Expected a name, a From or a Concat, got 3"),
    ("w", 10**5000, "Expected a name, a From or a Concat, got a value of type int"),
    ("w", From(3), "Expected a name as text, got 3"),  # type: ignore[arg-type]
    ("$w", "a", r"names with `\$` in front"),
]


@pytest.mark.parametrize("case", range(len(WRONG)))
def test_a_wrong_rule_is_refused_by_its_name_with_what_to_write(case: int) -> None:
    target, rule, message = WRONG[case]
    found = problems({target: rule})
    pattern = message.replace("{", r"\{").replace("}", r"\}")
    with pytest.raises(tx.MappingError, match=pattern):
        raise tx.MappingError(found)
    assert len(found) == 1, found
    assert found[0].startswith(f"`{target}`: ")


def _bad_options() -> list[Any]:
    bad: dict[str, list[Any]] = {
        "select": [3, {"h": -1}, {"h": 1.0}, {"h": True}, {"h": 1 << 63}, {"h": 10**5000}, {3: 0}],
        "slice": [
            {"h": 3},
            {"h": (1,)},
            {"h": (2, 2)},
            {"h": (-1, 2)},
            {"h": "01"},
            {"": (0, 1)},
            {"h -> k": (0, 1)},
            {"h": (0, 1), "(h)": (0, 1)},
            {3: (0, 1)},
        ],
        "flip": [3, ["h", "h"], ["h", 3], {"h": 0}, "h k", "(h k)"],
        "crop": [3, ["h", "h"], "h k"],
        "pad": [
            3,
            ["h", 3],
            {"h": math.nan},
            {"h": 1 << 64},
            {"h": None},
            {"h": True},
            {"h": ["inf"]},
            *({"h": word} for word in ("0", "nan", "Infinity", "+inf", " inf", "INF", "-Inf", "")),
        ],
        "scale": ["", "h(", True, math.inf, 10**400],
        "add": [[], "h;k"],
        "h": [0, -1, 2.0, True, None, "hk", [], [""], ["a", "a"], [3], 1 << 63, [10**5000]],
        "axes": ["h k -> k h"],
        "from": [3],
        "concat": [["a"]],
        "_h": [3],
        "h ": [3],
    }
    return [pytest.param(o, v, id=f"{o}-{i}") for o, vs in bad.items() for i, v in enumerate(vs)]


@pytest.mark.parametrize(("option", "value"), _bad_options())
def test_an_invalid_argument_is_refused_by_the_mapping_that_gets_it(
    option: str, value: Any
) -> None:
    rule = From("a", "h k -> k h", **{option: value})
    assert rule.problems
    (*_, last) = problems({"w": rule})
    assert last.startswith("`w`: ")
    assert option.strip() in last or "axis" in last
    part = problems({"w": Concat(["b", rule], "h [k]")})
    assert part[-1].startswith("`w`: part 2: ")


def test_all_problems_of_all_rules_are_in_one_error() -> None:
    found = problems(
        {
            "a": From("x", "h k -> k j", flip="z"),
            "b.{i}": "y",
            "ok": "y",
            "c": Concat(["x.{i}", From("y", "q")], "d [f"),
        },
        drop=["{", "*.w"],
        rest="drop",
    )
    starts = [text.partition(":")[0] for text in found]
    assert starts[:-1] == ["`a`", "`a`", "`a`", "`b.{i}`", "`c`", "`c`", "drop='{'"]
    assert found[-1] == 'Expected rest="error" or rest="keep", got \'drop\''
    with pytest.raises(tx.MappingError) as caught:
        tx.Mapping({f"w{n}": From("a", "h") for n in range(30)})
    lines = str(caught.value).splitlines()
    assert len(caught.value.problems) == 30
    assert len(lines) == 21
    assert lines[-1] == "and 10 more problems"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop": 3}, "Expected drop= a pattern or a list of patterns, got 3"),
        ({"drop": ["a", 3]}, "Expected drop="),
        ({"drop": "a.{i"}, "drop='a.{i': `a.{i` has a single"),
        ({"drop": "*.{i}"}, "has both a placeholder and `*` or `?`"),
        ({"drop": "{i}{j}"}, "does not tell where"),
        ({"rest": "drop"}, 'rest="keep"'),
        ({"rest": None}, 'rest="keep"'),
    ],
)
def test_invalid_arguments_of_a_mapping_are_refused(options: Any, message: str) -> None:
    (found,) = problems({"a": "b"}, **options)
    assert message in found


def test_a_mapping_has_a_rule_for_each_of_a_limited_number_of_targets() -> None:
    assert "Expected a dict" in problems([("a", "b")])[0]
    assert "at most 100,000" in problems({str(n): "a" for n in range(100_001)})[0]


def test_messages_have_no_control_characters() -> None:
    (found,) = problems({"w\n`x`: fine\x1b[2J": From("a", "h")})
    assert found.isprintable()
    assert str(tx.MappingError(["a\nb", "c"])) == "a\\nb\nc"


RIGHT: list[Callable[[], Any]] = [
    lambda: ("w", "a"),
    lambda: ("w.{i}", "a.{i}"),
    lambda: ("w.{...}", "a.b.{...}"),
    lambda: ("", "a"),
    lambda: ("w", From("a.{i}", "f d -> i d f", i=3)),
    lambda: ("w", From("a.{i}.{e}", "f d -> i e d f")),
    lambda: ("w.{i}", From("a", "i f d -> d f")),
    lambda: ("w.{c}", From("a.{(g c)}", "f d -> g d f", c=4)),
    lambda: ("w.{(g c)}", From("a.{c}", "g f -> f", c=4)),
    lambda: ("w", From("a", "(h two k) d -> (h k two) d", two=2)),
    lambda: ("w", From("a", "d (three h k) -> d h k", select={"three": 0}, k=64)),
    lambda: ("w", From("a", "(h w) d -> h w d", slice={"(h w)": (1, 13)}, h=3)),
    lambda: ("w", From("a", "h k -> k h", slice={"h": (0, 1), "k": (1, 2)})),
    lambda: ("w", From("a", "k -> h k", h=4)),
    lambda: ("w", From("a", "r ... -> ...", select={"r": 0})),
    lambda: ("w", From("a", "v d -> d v", pad="v", crop="v")),
    lambda: ("w", From("a.{i}", "k -> i k", scale="i**-0.5", add=-1)),
    lambda: ("w", From("a.{p}", "f d -> d (p f)", p=["gate", "up"])),
    lambda: ("w.{p}", From("a", "d (p f) -> f d", p=["gate", "up"])),
    lambda: ("w.{p}", From("a.{p}", p=["gate", "up"])),
    lambda: ("w", From("a.{i}{p}", "d -> i p d", p=["a", "b"])),
    lambda: ("w.{i}", Concat(["a.{i}", From("b.{i}", "f d -> d f")], "d [f]")),
    lambda: ("w", Concat([From("a", "(h x) r -> h x r"), "b"], "(h [f]) r")),
    lambda: ("w", Concat([From("a", "(h f) r -> (h f) r"), "b"], "(h [f]) r")),
    lambda: ("w", Concat([From("a", "f d -> d 1 f")], "d [f]")),
    lambda: ("w", Concat([From("a.{i}", "d -> i d"), From("b", "d -> i d", i=1)], "[i] d")),
    lambda: ("w", Concat([From("a", "x ... -> x ...")], "[f] ...")),
    lambda: ("w", Concat([From("a", "d -> n d", n=1), "b"], "[n] d")),
    lambda: ("w", Concat([From("a", "h w d -> (h w) d"), "b"], "[n] d")),
    lambda: ("w", Concat([From("a", "x y z -> z (y x)"), "b"], "[n] (d e)")),
]


@pytest.mark.parametrize("case", range(len(RIGHT)))
def test_a_right_rule_is_accepted(case: int) -> None:
    target, rule = RIGHT[case]()
    mapping = tx.Mapping({target: rule})
    assert list(mapping.rules) == list(mapping.targets) == [target]
    assert mapping.targets[target].text == target


def test_a_source_has_its_arguments_in_one_form() -> None:
    rule = From(
        "a.{p}.{i}",
        "(h w) k s -> k h w p i",
        select={"s": np.int64(2)},
        slice={"(h w)": [1, 13], "k": (np.uint8(0), 4)},
        flip="k",
        scale="k**-0.5",
        add=1,
        pad=["k", "h"],
        crop="k",
        h=np.int32(3),
        p=["x", "y"],
    )
    assert rule.source.text == "a.{p}.{i}"
    assert rule.axes is not None
    assert rule.axes.right == (("k",), ("h",), ("w",), ("p",), ("i",))
    assert dict(rule.sizes) == {"h": 3}
    assert type(rule.sizes["h"]) is type(rule.select["s"]) is int
    assert dict(rule.names) == {"p": ("x", "y")}
    assert dict(rule.select) == {"s": 2}
    assert dict(rule.slice) == {("h", "w"): (1, 13), ("k",): (0, 4)}
    assert rule.flip == rule.crop == ("k",)
    assert rule.scale is not None
    assert rule.scale.evaluate({"k": 4}) == 0.5
    assert rule.add is not None
    assert rule.add.evaluate({}) == 1.0
    assert dict(rule.pad) == {"k": 0, "h": 0}
    assert rule.problems == ()
    assert From("a", "v -> v", pad={"v": -math.inf}).pad["v"] == -math.inf
    assert From("a", "v -> v", pad={"v": "-inf"}) == From("a", "v -> v", pad={"v": -math.inf})
    assert From("a", "v -> v", pad="v") == From("a", "v -> v", pad={"v": 0})
    assert From("a") != From("a", scale=2)


def test_rules_can_not_be_changed() -> None:
    sizes = {"h": 3}
    rule = From("a", "h -> h", select=sizes)
    sizes["h"] = 4
    assert rule.select["h"] == 3
    with pytest.raises(TypeError):
        rule.select["h"] = 5  # type: ignore[index]
    with pytest.raises(AttributeError):
        rule.flip = ("h",)  # type: ignore[misc]
    with pytest.raises(TypeError):
        tx.Mapping({"a": "b"}).rules["c"] = From("d")  # type: ignore[index]


def test_a_rule_is_shown_as_it_is_written() -> None:
    rule = From("a.{p}", "h s -> h p", select={"s": 1}, p=["x"], scale=0.5, pad="h")
    text = repr(rule)
    assert text == (
        "From('a.{p}', 'h s -> h p', select={'s': 1}, scale=0.5, pad={'h': 0}, p=['x'])"
    )
    assert repr(From("a", "v -> v", pad={"v": math.inf})) == (
        "From('a', 'v -> v', pad={'v': 'inf'})"
    )
    assert eval(text, {"From": From}) == rule  # noqa: S307
    both = Concat([rule, "b"], "h [p]")
    assert eval(repr(both), {"From": From, "Concat": Concat}) == both  # noqa: S307
    assert hash(both) == hash(eval(repr(both), {"From": From, "Concat": Concat}))  # noqa: S307
