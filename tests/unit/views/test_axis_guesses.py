"""Axes that shapes force, tried against numpy by the rules that are made of them."""

from __future__ import annotations

import pytest

from templax._views.axis_guesses import Guess, list_guesses


def guess(source, target, before=(), after=()) -> list[Guess]:
    return list(list_guesses([(source, target)], before, after, {}))


@pytest.mark.parametrize(
    ("source", "target", "text", "sizes"),
    [
        ((4, 3), (3, 4), "f d -> d f", {}),
        ((8, 3), (3, 4, 2), "(h k) d -> d h k", {"k": 2}),
        ((3, 8), (4, 2, 3), "d (h k) -> h k d", {"k": 2}),
        ((3, 8), (3, 4, 2), "d (h k) -> d h k", {"k": 2}),
        ((3, 4, 2), (8, 3), "d h k -> (h k) d", {}),
        ((8,), (4, 2), "(h k) -> h k", {"k": 2}),
        ((6, 3, 5, 7), (5, 7, 3, 6), "o c h w -> h w c o", {}),
        ((6, 3, 5), (5, 3, 6), "o c w -> w c o", {}),
        ((1, 1, 6), (6,), "1 1 a -> a", {}),
        ((6, 3, 2, 2), (12, 6), "o c h w -> (h w c) o", {}),
    ],
)
def test_the_axes_of_other_libraries_are_found(source, target, text, sizes):
    (found,) = guess(source, target)
    assert (found.text, dict(found.sizes)) == (text, sizes)


def test_a_square_leaf_may_be_either():
    assert [(g.text, g.turned) for g in guess((4, 4), (4, 4))] == [
        (None, False),
        ("f d -> d f", True),
    ]
    texts = [g.text for g in guess((4, 4), (4, 2, 2))]
    assert texts == ["(h k) d -> d h k", "d (h k) -> d h k"]


@pytest.mark.parametrize(
    ("source", "target"), [((4, 3), (4, 4)), ((4,), (3,)), ((2, 3, 4), (4, 2, 3)), ((), (2,))]
)
def test_nothing_is_forced_upon_shapes_that_do_not_correspond(source, target):
    assert guess(source, target) == []


def test_all_members_of_a_family_must_fit():
    pairs = [((4, 3), (3, 4)), ((5, 3), (5, 3))]
    assert list(list_guesses(pairs, [], [], {})) == []
    (found,) = list_guesses([((4, 3), (3, 4)), ((4, 5), (5, 4))], [], [], {})
    assert found.text == "f d -> d f"


def test_stacked_and_unstacked_axes_come_first():
    assert guess((4, 3), (3, 4), after=["i"])[0].text == "f d -> i d f"
    assert guess((4, 3), (4, 3), before=["i"])[0].text == "i ... -> ..."
