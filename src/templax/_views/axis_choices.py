"""Which of several axes that fit a pair of families is taken, and what is said about it. Pure.

PyTorch's weights are (outputs, inputs), Flax's kernels (inputs, outputs). The shape of a square one
does not tell which it is; its neighbours and names do, but never for certain. So what is taken for
transposed is always noted, and so is what is taken as it is, unless much speaks for that.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

from .._core.text import list_names
from .._match.meaning import find_leaf_word, find_role, split_joined
from .axis_guesses import Guess
from .paired import Found

_LIKE_OTHERS = "like the others"
_LIKE_MOST = "like most of the others"
_SAME_NAME = "as its name is the same"
_BY_NAME = "as the names suggest"

_TREE = "tree"

Votes = defaultdict[Hashable, Counter[bool | str | None]]
"""By what leaves have in common: how many of those whose shapes tell are transposed, how many are
not, and how many have certain axes."""


def choose_axes(
    found: Sequence[Found], replicas: int | None
) -> tuple[list[Guess], list[str], list[str]]:
    """The axes of each pair, the targets that may be transposed, and what to say about these.

    Args:
        found: The pairs.
        replicas: If not None, every source has a leading axis of this size.
    """
    votes: Votes = defaultdict(Counter)
    for one in found:
        turns = {guess.turned for guess in one.guesses}
        if len(turns) == 1 and _is_telling(one, replicas):
            for circle in _list_circles(one):
                votes[circle][one.guesses[0].turned] += 1
                if len(one.guesses) == 1:
                    votes[circle][one.guesses[0].text] += 1
    choices: list[Guess] = []
    square: defaultdict[str, list[Found]] = defaultdict(list)
    for one in found:
        guess, why = _choose(one, votes)
        choices.append(guess)
        if why is not None:
            how = "taken as transposed" if guess.turned else "taken as it is"
            square[f"{how}, {why}"].append(one)
    notes = [
        f"can't tell by its shape whether it is transposed ({how}):"
        f" {list_names(list(dict.fromkeys(one.pairings[0].target for one in group)))}"
        for how, group in square.items()
    ]
    names = [
        leaf.name
        for group in square.values()
        for one in group
        for leaf in one.target.members.values()
    ]
    return choices, names, notes


def _choose(one: Found, votes: Votes) -> tuple[Guess, str | None]:
    """The axes of a pair, and what they were chosen by, if that is not certain."""
    if len({guess.turned for guess in one.guesses}) == 1:
        return _choose_layout(one, one.guesses, votes)
    turned, by_turn = _choose_turn(one, votes)
    fitting = [guess for guess in one.guesses if guess.turned == turned]
    guess, by_layout = _choose_layout(one, fitting, votes)
    return guess, by_turn or by_layout


def _choose_layout(one: Found, guesses: Sequence[Guess], votes: Votes) -> tuple[Guess, str | None]:
    """One of several axes that differ in what the source is taken for, such as PyTorch's."""
    if len(guesses) == 1:
        return guesses[0], None
    counts = [votes[_TREE][guess.text] for guess in guesses]
    if any(counts):
        best = guesses[counts.index(max(counts))]
        return best, None if sum(map(bool, counts)) == 1 else _LIKE_MOST
    # The axes that make Flax's layout of PyTorch's come first, those of the inverse last.
    is_from_torch = _list_last(one)[0] == "weight"
    return guesses[0 if is_from_torch else -1], _BY_NAME


def _choose_turn(one: Found, votes: Votes) -> tuple[bool, str | None]:
    """Whether a pair is taken for transposed, and by what, if that is not certain."""
    if one.target.meaning.role != "weight" or _is_scale(one):
        return False, None
    *near, tree = _list_circles(one)
    is_straight_for_all = not votes[tree][True] and _is_only_moved(one)
    source, target = _list_last(one)
    # An embedding that is the last layer, too, is (outputs, inputs) as PyTorch's weights are.
    by_name = (one.tied or source == "weight") != (target == "weight")
    if one.tied:
        return by_name, _BY_NAME
    if _is_table(one):
        return False, None if is_straight_for_all else _BY_NAME
    for circle in near:
        counted = votes[circle]
        if counted[True] != counted[False]:
            turned = counted[True] > counted[False]
            is_unanimous = not min(counted[True], counted[False])
            is_sure = is_unanimous and not turned and not by_name
            return turned, None if is_sure else _LIKE_OTHERS if is_unanimous else _LIKE_MOST
    if is_straight_for_all:
        return False, None
    if all(pairing.target == pairing.source for pairing in one.pairings):
        return False, _SAME_NAME
    counted = votes[tree]
    if counted[True] != counted[False]:
        is_unanimous = not min(counted[True], counted[False])
        return counted[True] > counted[False], _LIKE_OTHERS if is_unanimous else _LIKE_MOST
    return by_name, _BY_NAME


def _list_circles(one: Found) -> list[Hashable]:
    """What a pair shares with others, the nearest first: a fused leaf, the last names, the tree."""
    return [("of", id(one.source)), ("of", id(one.target)), _list_last(one), _TREE]


def _is_telling(one: Found, replicas: int | None) -> bool:
    """Whether a pair shows how both trees store the weights of layers."""
    if one.target.meaning.role != "weight" or one.tied or _is_table(one):
        return False
    if _is_scale(one) or "norm" in _find_words(one):
        return False
    first = one.pairings[0]
    target, source = first.pairs[0]
    before = len(first.unstacked) + (replicas is not None)
    inner = source.shape[before:], target.shape[len(first.stacked) :]
    return all(sum(n != 1 for n in shape) > 1 for shape in inner)


def _is_table(one: Found) -> bool:
    """Whether a pair is an embedding, or the like, which all libraries store alike."""
    words = _find_words(one)
    if not words & {"embed", "pos", "cls"} or words & {"patch", "head"}:
        return False
    return "kernel" not in _list_last(one)


def _is_scale(one: Found) -> bool:
    """Whether a pair is the scale of a norm, whose axes may be layers, but never inputs."""
    return "scale" in {find_role((last,)) for last in _list_last(one)}


def _find_words(one: Found) -> frozenset[str]:
    return one.target.meaning.words | one.source.meaning.words


def _is_only_moved(one: Found) -> bool:
    """Whether the layer and its leaf have the same names on both sides."""
    return all(
        split_joined(pairing.source)[-2:] == split_joined(pairing.target)[-2:]
        for pairing in one.pairings
    )


def _list_last(one: Found) -> tuple[str, str]:
    return find_leaf_word(one.source.meaning.last), find_leaf_word(one.target.meaning.last)
