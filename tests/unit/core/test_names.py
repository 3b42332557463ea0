"""Names of leaves: prefixes and renames apply to whole keys, whatever the keys contain."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from helpers import count_examples
from templax._core.names import (
    Path,
    apply_rename,
    check_names,
    find_nearest,
    join_path,
    normalize,
    prefixes,
    strip_prefix,
)
from templax.errors import Unsupported, UsageError
from templax.testing import strategies

MANY = count_examples(80)
ELEMENT = st.one_of(strategies.keys(), st.text(max_size=4), st.integers(0, 12))
PATHS = st.lists(ELEMENT, max_size=5).map(tuple)
PLAIN = st.lists(
    st.one_of(st.sampled_from(["a", "b", "w", "layers_0", "Dense_0"]), st.integers(0, 3)),
    max_size=4,
).map(tuple)
"""Keys without dots, so that a name shows where the keys end."""


@MANY
@given(PATHS, PATHS)
def test_a_name_is_its_elements_joined(head: Path, tail: Path) -> None:
    if head and tail:
        assert join_path(head + tail) == f"{join_path(head)}.{join_path(tail)}"
    assert join_path(head) == ".".join(str(element) for element in head)


@MANY
@given(PLAIN)
def test_an_index_and_a_key_of_the_same_spelling_are_equal(path: Path) -> None:
    assert join_path(path) == join_path(tuple(map(str, path)))


def test_names_of_unusual_keys() -> None:
    assert join_path(()) == ""
    assert join_path(("",)) == ""
    assert join_path(("", "")) == "."
    assert join_path(("a.b", "c/d", "é 漢")) == "a.b.c/d.é 漢"


@MANY
@given(PATHS, PATHS)
def test_below_strips_the_prefix(head: Path, tail: Path) -> None:
    """With empty keys or dots in keys, the first border that spells the prefix counts."""
    path = head + tail
    got = strip_prefix(path, join_path(head))
    assert got is not None
    if join_path(head):
        first = next(i for i in range(1, len(path) + 1) if join_path(path[:i]) == join_path(head))
        assert got == path[first:]
    else:
        assert got == path


@MANY
@given(PLAIN, PLAIN)
def test_below_of_plain_keys_is_the_rest(head: Path, tail: Path) -> None:
    assert strip_prefix(head + tail, join_path(head)) == tail
    assert strip_prefix(head, "") == head


@MANY
@given(PATHS, st.one_of(st.text("ab.w_0", max_size=6), PATHS.map(join_path)))
def test_below_is_none_unless_a_border_spells_the_prefix(path: Path, prefix: str) -> None:
    spelled = {"", *(join_path(path[:i]) for i in range(1, len(path) + 1))}
    assert (strip_prefix(path, prefix) is None) == (prefix not in spelled)


@MANY
@given(PLAIN, PLAIN, PLAIN)
def test_below_applied_twice_is_below_both_prefixes(a: Path, b: Path, rest: Path) -> None:
    once = strip_prefix(a + b + rest, join_path(a))
    assert once is not None
    assert strip_prefix(once, join_path(b)) == strip_prefix(a + b + rest, join_path(a + b)) == rest


@pytest.mark.parametrize(
    ("path", "prefix", "rest"),
    [
        (("params", "w"), "param", None),
        (("params", "w"), "params.", None),
        (("params", "w"), ".params", None),
        (("params", "w"), "params.w", ()),
        (("params", "w"), "params.w.x", None),
        (("a.b", "c"), "a", None),
        (("a.b", "c"), "a.b", ("c",)),
        (("layers", 1, "w"), "layers.1", ("w",)),
        (("layers", 10, "w"), "layers.1", None),
        ((), "a", None),
        (("é", "w"), "é", ("w",)),
    ],
)
def test_below_stops_at_borders_of_keys(path: Path, prefix: str, rest: Path | None) -> None:
    assert strip_prefix(path, prefix) == rest


@given(PATHS)
def test_an_empty_rename_changes_nothing(path: Path) -> None:
    assert apply_rename(path, None) is path
    assert apply_rename(path, {}) is path
    assert apply_rename(path, lambda name: name) is path


@MANY
@given(PLAIN, PLAIN, PLAIN)
def test_rename_replaces_a_prefix_and_keeps_the_rest(old: Path, new: Path, rest: Path) -> None:
    assume(join_path(old + rest) != join_path(new + rest))
    got = apply_rename(old + rest, {join_path(old): join_path(new)})
    assert join_path(got) == join_path(new + rest)
    assert got[len(new) :] == rest


@MANY
@given(PATHS, st.dictionaries(PATHS.map(join_path), st.sampled_from(["x", "y.z", ""]), max_size=3))
def test_the_longest_prefix_is_applied_once(path: Path, rename: dict[str, str]) -> None:
    for i in range(len(path), -1, -1):
        if join_path(path[:i]) in rename:
            new = rename[join_path(path[:i])]
            assert join_path(apply_rename(path, rename)) == join_path(
                (*(new.split(".") if new else ()), *path[i:])
            )
            break
    else:
        assert apply_rename(path, rename) == path


@MANY
@given(PLAIN, PLAIN)
def test_below_reverses_wrapping(path: Path, prefix: Path) -> None:
    """`rename={"": "params"}` and `at="params"` are inverses."""
    wrapped = apply_rename(path, {"": join_path(prefix)})
    assert strip_prefix(wrapped, join_path(prefix)) == path


def test_two_names_can_be_swapped() -> None:
    swap = {"a": "b", "b": "a"}
    assert [join_path(apply_rename(p, swap)) for p in [("a", "w"), ("b", "w"), ("ab", "w")]] == [
        "b.w",
        "a.w",
        "ab.w",
    ]


def test_a_function_renames_the_whole_name() -> None:
    assert apply_rename(("a", 0, "w"), str.upper) == ("A", "0", "W")
    assert apply_rename(("a", "w"), lambda name: "") == ()


@pytest.mark.parametrize("bad", [None, 3, ("a",), b"a"])
def test_a_rename_function_that_returns_no_name_is_refused_with_its_argument(bad: object) -> None:
    with pytest.raises(UsageError) as caught:
        apply_rename(("a", "w"), lambda name: bad)  # type: ignore[return-value, arg-type]
    assert str(caught.value) == f"Expected a name (str) from rename('a.w'), got {bad!r}"


@MANY
@given(PATHS)
def test_prefixes_are_the_subtrees_around_a_leaf(path: Path) -> None:
    found = prefixes(path)
    assert len(found) == len(path)
    if path:
        assert found[-1] == join_path(path)
    for inner, outer in zip(found[1:], found, strict=False):
        assert inner.startswith(f"{outer}.")
    assert all(strip_prefix(path, prefix) is not None for prefix in found)


NAMES = st.text("abDens_-0123", min_size=1, max_size=10)


@MANY
@given(NAMES, st.lists(NAMES, unique=True, max_size=6), st.randoms())
def test_nearest_does_not_depend_on_the_order_of_candidates(
    name: str, candidates: list[str], random: object
) -> None:
    got = find_nearest(name, candidates)
    assert got is None or got in candidates
    shuffled = list(candidates)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert find_nearest(name, shuffled) == got


@MANY
@given(NAMES, st.lists(NAMES, unique=True, max_size=6))
def test_nearest_never_changes_a_number(name: str, candidates: list[str]) -> None:
    got = find_nearest(name, candidates)

    def numbers(text: str) -> list[str]:
        return "".join(c if c.isdigit() else " " for c in text).split()

    assert got is None or numbers(got) == numbers(name)


@MANY
@given(NAMES, st.lists(NAMES, unique=True, max_size=6))
def test_nearest_of_an_existing_name_is_itself_or_nothing(name: str, candidates: list[str]) -> None:
    """Only another spelling of the same name can make it ambiguous."""
    others = [c for c in candidates if c != name]
    twins = [c for c in others if normalize(c) == normalize(name)]
    assert find_nearest(name, [*others, name]) == (None if twins else name)


@MANY
@given(NAMES)
def test_case_is_ignored(name: str) -> None:
    for other in (name.upper(), name.lower(), name.swapcase()):
        assert normalize(other) == normalize(name)
        if other != name:
            assert find_nearest(name, [other]) == other
    assert normalize(normalize(name)) == normalize(name)


@pytest.mark.parametrize(
    ("name", "candidates", "near"),
    [
        ("Dense_0", ["dense_0", "Dense_1"], "dense_0"),
        ("Dense_0", ["dense_0", "DENSE_0"], None),
        ("layers_3", ["layers_2", "layers_4"], None),
        ("layers_3.kernel", ["layers_3.kernels"], "layers_3.kernels"),
        ("kernel", ["bias"], None),
        ("scale", ["scales", "scaled"], None),
        ("w", [], None),
        ("batch_norm.mean", ["BatchNorm.mean"], "BatchNorm.mean"),
    ],
)
def test_nearest_names_one_or_none(name: str, candidates: list[str], near: str | None) -> None:
    assert find_nearest(name, candidates) == near


def test_names_too_long_to_compare_are_similar_to_none():
    assert find_nearest("x" * 2000, ["x" * 2000]) is None
    assert find_nearest("kernel", [f"kernel{'x' * i}" for i in range(1000)] * 10) is None


def test_a_mapping_renames_the_longest_prefix_of_a_path_of_numbers_and_names():
    path = ("a", 0, "b.c", 12)
    assert apply_rename(path, {"a": "x", "a.0.b.c": "y.z"}) == ("y", "z", 12)
    assert apply_rename(path, {"a.0.b": "no", "": "top"}) == ("top", *path)
    assert apply_rename((), {"": "top"}) == ("top",)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a"] * 66, "templax reads trees in which 64 leaves have the name of another, got 65"),
        (["a", "b\ud800"], r"templax reads names that are text, got 'b\ud800'"),
    ],
)
def test_names_that_no_tree_has_are_refused(names: list[str], message: str) -> None:
    check_names(["é", *["a"] * 65])
    with pytest.raises(Unsupported) as caught:
        check_names(names)
    assert str(caught.value) == message
