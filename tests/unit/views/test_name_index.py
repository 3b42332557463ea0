"""Which names a pattern may match: every one that it does match, and few others."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

import templax as tx
from templax._catalog.entry import LeafEntry
from templax._core.names import matches_pattern
from templax._views.name_index import NameIndex
from templax._views.names import NamePattern, parse_name
from templax._views.resolve import resolve_mapping

elements = st.sampled_from(["a", "b", "ab", "0", "1", "10", "w", "w1", "*", "[a]", "\0", ""])
names = st.lists(elements, min_size=1, max_size=4).map(".".join)
many = st.lists(names, unique=True, min_size=60, max_size=120)
fields = st.sampled_from(["{i}", "{p}", "{p}{i}", "w{i}", "{i:02}", "{(g c)}"])
patterns = st.lists(elements | fields | st.just("{...}"), min_size=1, max_size=4)
GIVEN: Any = {"p": ["a", "w", "ab"]}
SIZES = {"c": 2}


@pytest.mark.slow
@given(many, st.data())
def test_no_name_that_a_pattern_matches_is_left_out(found: list[str], data: st.DataObject) -> None:
    index = NameIndex(found)
    for _ in range(10):
        try:
            pattern = parse_name(".".join(data.draw(patterns)))
        except ValueError:  # `{...}` twice
            continue
        candidates = index.list_candidates(pattern)
        wanted = [name for name in found if pattern.match(name, GIVEN, SIZES) is not None]
        assert [name for name in candidates if name in wanted] == wanted
        assert set(candidates) <= set(found)
        assert len(candidates) == len(set(candidates))


globs = st.lists(elements | st.sampled_from(["*", "?", "[ab]", "w*", "*1", "[!a]"]), max_size=4)


@given(many, globs.map(".".join))
def test_a_glob_finds_what_it_matches_in_order(found: list[str], pattern: str) -> None:
    wanted = [name for name in found if matches_pattern(name, pattern)]
    assert NameIndex(found).match_glob(pattern) == wanted


NAMES = [f"layers.{i}.expert_{n}.{w}" for i in range(3) for n in range(200) for w in "ab"]


@pytest.mark.parametrize(
    ("pattern", "most"),
    [
        ("layers.2.expert_7.a", 1),
        ("layers.{i}.expert_7.a", 3),
        ("layers.{i}.expert_7.{p}", 6),
        ("{...}.expert_7.{p}", 6),
        ("layers.1.{p}.{q}", 400),
    ],
)
def test_few_names_are_tried(pattern: str, most: int) -> None:
    index = NameIndex(NAMES)
    for _ in range(5):  # it takes some tries until names are indexed by their elements
        found = index.list_candidates(parse_name(pattern))
    assert len(found) == most


class Matched:
    """A count of how often names are matched with patterns."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.count = 0
        match = NamePattern.match

        def count(*args: Any) -> Any:
            self.count += 1
            return match(*args)

        monkeypatch.setattr(NamePattern, "match", count)


@pytest.mark.parametrize("end", ["w{n}", "w{n}.{{p}}"])
def test_rules_that_differ_in_their_ends_try_their_own_leaves_only(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules, stored = {}, []
    for n in range(300):
        tail = end.format(n=n)
        rules[f"y.{{i}}.{tail}"] = tx.From(
            f"x.{{i}}.{tail}", **({"p": ["a", "b"]} if "{p}" in tail else {})
        )
        for name in (f"x.{i}.{tail}".replace("{p}", "b") for i in range(2)):
            stored.append(LeafEntry(name, tuple(name.split(".")), (4,), np.dtype("float32")))
    matched = Matched(monkeypatch)
    assert len(resolve_mapping(tx.Mapping(rules), stored, None).entries) == 600
    assert matched.count <= 8 * 600
