"""Names with placeholders: which names they match, and which names they make."""

from __future__ import annotations

import pickle
import time

import hypothesis.strategies as st
import pytest
from hypothesis import given

from mapping_strategies import literals
from templax._views.names import NamePattern, parse_name

NAMES = {"p": ("gate_proj", "up_proj"), "q": ("w1", "w10", "w")}
SIZES = {"c": 4, "d": 3}


def match(pattern: str, name: str) -> dict[str, int | str] | None:
    return parse_name(pattern).match(name, NAMES, SIZES)


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("embed.w", "embed.w", {}),
        ("embed.w", "embed.w2", None),
        ("embed.w", "embed", None),
        ("", "", {}),
        ("", "a", None),
        ("layers.{i}.w", "layers.0.w", {"i": 0}),
        ("layers.{i}.w", "layers.12.w", {"i": 12}),
        ("layers.{i}.w", "layers.012.w", None),
        ("layers.{i}.w", "layers.00.w", None),
        ("layers.{i}.w", "layers.-1.w", None),
        ("layers.{i}.w", "layers.+1.w", None),
        ("layers.{i}.w", "layers.1_0.w", None),
        ("layers.{i}.w", "layers..w", None),
        ("layers.{i}.w", "layers.x.w", None),
        ("layers.{i}.w", "layers.١.w", None),
        ("layers.{i}.w", "layers.1.w\n", None),
        ("layers.{i}", "layers.3", {"i": 3}),
        ("{i}.w", "3.w", {"i": 3}),
        ("layers_{i}.norm{n}", "layers_3.norm1", {"i": 3, "n": 1}),
        ("layers.{i+1}", "layers.1", {"i": 0}),
        ("layers.{i+1}", "layers.0", None),
        ("layers.{i-1}", "layers.0", {"i": 1}),
        ("layers.{i:02}", "layers.07", {"i": 7}),
        ("layers.{i:02}", "layers.7", None),
        ("layers.{i:02}", "layers.107", {"i": 107}),
        ("layers.{i:02}", "layers.007", None),
        ("layers.{i:02}", "layers.00", {"i": 0}),
        ("layers.{i+1:02}", "layers.08", {"i": 7}),
        ("layers.{i+1:02}", "layers.00", None),
        ("m.{p}.w", "m.up_proj.w", {"p": "up_proj"}),
        ("m.{p}.w", "m.down_proj.w", None),
        ("m.{p}.w", "m.0.w", None),
        ("m.{q}", "m.w10", {"q": "w10"}),
        ("m.{q}0", "m.w10", {"q": "w1"}),
        ("{p}{q}", "up_projw1", {"p": "up_proj", "q": "w1"}),
        ("{p}.{p}", "up_proj.up_proj", {"p": "up_proj"}),
        ("{p}.{p}", "up_proj.gate_proj", None),
        ("{i}.{i}", "3.3", {"i": 3}),
        ("{i}.{i}", "3.4", None),
        ("{i}.{i+1}.{i:02}", "3.4.03", {"i": 3}),
        ("{i}.{i+1}.{i:02}", "3.4.04", None),
        ("layers.{(g c)}.w", "layers.11.w", {"g": 2, "c": 3}),
        ("{(g c d)}", "29", {"g": 2, "c": 1, "d": 2}),
        ("{(g c)+1}", "12", {"g": 2, "c": 3}),
        ("{c}.{(g c)}", "3.11", {"g": 2, "c": 3}),
        ("{c}.{(g c)}", "2.11", None),
        ("a.{...}", "a.b", {"...": "b"}),
        ("a.{...}", "a.b.c", {"...": "b.c"}),
        ("a.{...}", "a", None),
        ("a.{...}", "a.", None),
        ("a.{...}.w", "a.b.c.w", {"...": "b.c"}),
        ("a.{...}.w", "a.w", None),
        ("a.{...}.w", "a..w", None),
        ("{...}", "a.b", {"...": "a.b"}),
        ("{...}", "a\nb", {"...": "a\nb"}),
        ("{...}.{i}.w", "a.0.1.w", {"...": "a.0", "i": 1}),
        ("{i}.{...}.{i}", "1.x.1", {"i": 1, "...": "x"}),
        ("a{{b}}", "a{b}", {}),
        ("{{{i}}}", "{3}", {"i": 3}),
        ("a/~/b,{i}", "a/~/b,3", {"i": 3}),
        ("a.(b)*[c]", "a.(b)*[c]", {}),
        ("{i}.(b)*[c]", "1.(b)*[c]", {"i": 1}),
    ],
)
def test_a_pattern_matches_what_it_says(
    pattern: str, name: str, expected: dict[str, int | str] | None
) -> None:
    found = match(pattern, name)
    assert found == expected
    if found is not None:
        assert parse_name(pattern).format(found, SIZES) == name


def test_placeholders_are_listed_once_in_order() -> None:
    pattern = parse_name("a.{j}.{(g c)}.{i+1}.{j}.{...}")
    assert pattern.placeholders == ("j", "g", "c", "i")
    assert pattern.has_rest
    assert not parse_name("{i}").has_rest


def test_patterns_are_equal_by_their_text() -> None:
    assert {parse_name("a.{i}"), parse_name("a.{i}"), parse_name("a.{j}")} == {
        parse_name("a.{j}"),
        parse_name("a.{i}"),
    }
    pattern = parse_name("a.{i}")
    pattern.match("a.1", {}, {})
    again: NamePattern = pickle.loads(pickle.dumps(pattern))  # noqa: S301
    assert again == pattern
    assert again.match("a.1", {}, {}) == {"i": 1}
    with pytest.raises(AttributeError):
        pattern.text = "b"  # type: ignore[misc]


def test_the_names_given_count_not_those_of_an_earlier_call() -> None:
    pattern = parse_name("a.{p}")
    assert pattern.match("a.x", {"p": ["x"]}, {}) == {"p": "x"}
    assert pattern.match("a.x", {"p": ["y"]}, {}) is None
    assert pattern.match("a.x", {}, {}) is None
    assert pattern.match("a.1", {}, {}) == {"p": 1}


@pytest.mark.parametrize(
    ("more", "less"),
    [
        ("a.w", "{...}"),
        ("a.{i}", "a.{...}"),
        ("a.{...}.w", "a.{...}"),
        ("a.{...}.{i}", "{...}.{i}"),
    ],
)
def test_a_more_specific_pattern_wins(more: str, less: str) -> None:
    assert parse_name(more).specificity > parse_name(less).specificity


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.{i", r"single `\{` at character 3: write `\{\{`"),
        ("a.i}", r"single `\}` at character 4: write `\}\}`"),
        ("a.{}", r"has `\{\}`: write a placeholder as"),
        ("a.{i j}", "write a placeholder as"),
        ("a.{i:2}", "write a placeholder as"),
        ("a.{i*2}", "`i\\*2` in braces, which is not a name"),
        ("a.{i+x}", "write a placeholder as"),
        ("a.{()}", "has no name"),
        ("a.{(g g)}", "a name twice"),
        ("a.{i:00}", "width of 0"),
        ("a.{i:099}", "width of 99"),
        ("a.{1}", "`1` in braces, which is not a name: begin it with a letter"),
        ("a.{_i}", "call it `i`"),
        ("a.{scale}", "name of an option"),
        ("{...}.{...}", "twice"),
        ("a{...}", "whole elements"),
        ("{...}a", "whole elements"),
        ("{i}{...}", "whole elements"),
        (".".join("{i}" for _ in range(17)), "more than 16 placeholders"),
        ("a" * 65537, "longer than 65,536"),
        (3, "Expected a name as text, got 3"),
    ],
)
def test_an_invalid_name_is_refused_with_what_to_write(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_name(text)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("{i}{j}", {}),
        ("{i}0", {}),
        ("{i}{p}", {"p": ("0", "x")}),
        ("{p}{q}{r}", dict.fromkeys("pqr", tuple("x" * n for n in range(1, 9)))),
    ],
)
def test_what_can_be_read_in_several_ways_is_ambiguous(
    text: str, names: dict[str, tuple[str, ...]]
) -> None:
    assert parse_name(text).find_ambiguity(names) is not None


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("{i}.{j}", {}),
        ("0{i}", {}),
        ("{p}{q}", {"p": ("a", "b"), "q": ("0", "1")}),
        ("{i}{p}", {"p": ("a", "b")}),
        ("{p}{i}", {"p": ("a", "b")}),
        ("{...}.{i}", {}),
    ],
)
def test_what_can_be_read_in_one_way_is_not_ambiguous(
    text: str, names: dict[str, tuple[str, ...]]
) -> None:
    assert parse_name(text).find_ambiguity(names) is None


@pytest.mark.parametrize(
    ("text", "binding"),
    [
        ("{i-1}", {"i": 0}),
        ("{i}", {"i": -1}),
        ("{i}", {"i": "x"}),
        ("{(g c)}", {"g": 0, "c": 4}),
        ("{i:02}", {"i": "x"}),
    ],
)
def test_what_no_name_has_is_not_formatted(text: str, binding: dict[str, int | str]) -> None:
    if text == "{i}" and binding["i"] == "x":  # a name given for `i`
        assert parse_name(text).format(binding, SIZES) == "x"
        return
    with pytest.raises(ValueError, match="`"):
        parse_name(text).format(binding, SIZES)


numbers = st.integers(0, 10**6) | st.integers(0, 3)


@st.composite
def bound_patterns(draw: st.DrawFn) -> tuple[str, dict[str, int | str]]:
    """A pattern that can be read in one way, and what its placeholders stand for."""
    text, binding = "", {}
    forms = ["{i}", "{i+3}", "{i:04}", "{j+1:02}", "{(g c)}", "{p}", "{...}"]
    for form in draw(st.lists(st.sampled_from(forms), max_size=5)):
        if form == "{...}" and form in text:
            continue
        text += (draw(literals) + "." if text or form != "{...}" else "") + form + "."
    values: dict[str, int | str] = {"i": draw(numbers), "j": draw(numbers), "g": draw(numbers)}
    values |= {"c": draw(st.integers(0, 3)), "p": draw(st.sampled_from(NAMES["p"]))}
    values["..."] = draw(st.text(min_size=1, max_size=9))
    text += draw(literals)
    pattern = parse_name(text)
    used = {*pattern.placeholders, *(["..."] if pattern.has_rest else [])}
    binding = {name: value for name, value in values.items() if name in used}
    return text, binding


@given(bound_patterns())
def test_match_and_format_are_inverse(case: tuple[str, dict[str, int | str]]) -> None:
    text, binding = case
    pattern = parse_name(text)
    name = pattern.format(binding, SIZES)
    found = pattern.match(name, NAMES, SIZES)
    assert found is not None
    assert pattern.format(found, SIZES) == name
    if not pattern.has_rest:
        assert found == binding


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_text_is_a_pattern_or_refused(text: str, name: str) -> None:
    try:
        pattern = parse_name(text)
    except ValueError:
        return
    found = pattern.match(name, {}, dict.fromkeys(pattern.placeholders, 3))
    assert found is None or pattern.format(found, dict.fromkeys(pattern.placeholders, 3)) == name


HOSTILE = [
    ("{a}.{b}.{c}.{d}.x", "1" * 65_000),
    ("{...}.{a}.{b}.{c}.x", ".".join("1" * 32_000)),
    ("{...}.{a}.x", "." * 65_000),
    ("{...}.x.y", ".x" * 32_000),
    (".".join(f"{{a{i}}}" for i in range(15)), ".".join("1" for _ in range(32_000))),
    ("{p}{q}{r}{s}z", "x" * 65_000),
    ("{p}.{...}.{q}.z", "x." * 32_000),
    ("x" * 60_000 + ".{...}", "x" * 65_000),
]


@pytest.mark.parametrize("case", range(len(HOSTILE)))
def test_a_hostile_name_takes_linear_time(case: int) -> None:
    text, name = HOSTILE[case]
    pattern = parse_name(text)
    names = {p: ("x", "xx", "xxx", "xxxx") for p in pattern.placeholders if p in "pqrs"}
    if names:
        assert pattern.find_ambiguity(names) is None
    begin = time.process_time()
    for _ in range(4):
        pattern.match(name, names, {})
    assert time.process_time() - begin < 1


def test_a_number_that_no_index_reaches_is_not_matched() -> None:
    assert match("a.{i}", "a." + "9" * 18) == {"i": 10**18 - 1}
    assert match("a.{i}", "a." + "9" * 19) is None
    assert match("a.{i}", "a." + "9" * 5_000) is None


@pytest.mark.slow
def test_many_names_and_patterns_are_matched_in_well_below_a_second() -> None:
    modules = [f"self_attn.m{n}_proj" for n in range(10)]
    modules += [f"mlp.experts.{{e}}.m{n}" for n in range(10)]
    modules += [f"norm{n}" for n in range(10)]
    patterns = [parse_name(f"model.layers.{{i}}.{module}.weight") for module in modules]
    names = [p.format({"i": i, "e": 3}, {}) for i in range(667) for p in patterns]
    begin = time.process_time()
    found = sum(p.match(name, {}, {}) is not None for p in patterns for name in names)
    assert time.process_time() - begin < 2  # 0.4 s where nothing else runs
    assert found == len(names) == 20_010
