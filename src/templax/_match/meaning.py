"""What names say about the leaves below them: whether two names mean the same, and which copy.

A leaf loaded under a name of another meaning is wrong without anybody noticing, for its shape fits.
Therefore names that are merely spelled alike (`encoder`, `decoder`) do not mean the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from .._core.names import Path, normalize

MIN_ABBREVIATION = 3
"""A word of fewer letters begins too many others."""

_MOMENTS = frozenset(
    (
        "mu",
        "nu",
        "nu_max",
        "trace",
        "m",
        "v",
        "v_row",
        "v_col",
        "exp_avg",
        "exp_avg_sq",
        "max_exp_avg_sq",
        "exp_inf",
        "momentum",
        "momentum_buffer",
        "velocity",
        "moment",
        "moments",
        "first_moment",
        "second_moment",
        "acc_grads",
        "grad_acc",
        "grads",
        "gradients",
        "accumulator",
        "sum_of_squares",
        "square_avg",
        "mean_square",
        "prev_updates",
        "hessian",
    )
)
"""Optimizers' names for trees with the structure of the parameters that do not hold weights."""

_AVERAGES = frozenset(("ema", "swa", "avg", "average", "averaged", "polyak", "shadow"))
"""Words in the names of averages of the weights."""

_COPIES = frozenset(("target", "old", "new", "copy", "teacher", "student"))
"""Words at the end of the names of other networks of the same structure."""

_ROLES: Mapping[str, str] = {
    **dict.fromkeys(("kernel", "weight", "weights", "w"), "weight"),
    **dict.fromkeys(("scale", "gamma"), "scale"),
    **dict.fromkeys(("bias", "biases", "b", "beta"), "bias"),
    **dict.fromkeys(("mean", "runningmean", "movingmean"), "mean"),
    **dict.fromkeys(("var", "variance", "runningvar", "movingvariance"), "var"),
}
"""What libraries call the same leaf of a layer: its name, without `_` and in lower case, → role."""

_WORDS = re.compile(r"\d+|[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+|[^\w-]")

_JOINTS = re.compile(r"[./,]")


def list_moments(path: Path) -> list[str]:
    """The elements of a path that name moments or gradients of an optimizer: `opt.mu.w` → `mu`."""
    return [str(element) for element in path if str(element).casefold() in _MOMENTS]


def is_average(path: Path) -> bool:
    """Whether a path leads to averages of weights, such as `ema_params`."""
    return any(word in _AVERAGES for element in path for word in _split_words(str(element)))


def find_role(path: Path) -> str | None:
    """A leaf's role in its layer, by its name: "weight" for `kernel` and `w`; None if unknown.

    A "scale" may be the factor of a normalization that another library calls its weight.
    """
    return _ROLES.get(normalize(str(path[-1]))) if path else None


def find_leaf_word(name: str) -> str:
    """What a name calls the leaf in its layer, though it may be a path that was joined by others.

    >>> find_leaf_word("layers/0/q/kernel"), find_leaf_word("fc.kernel.value")
    ('kernel', 'kernel')
    >>> find_leaf_word("layers_0_q_weight"), find_leaf_word("mlp.w_up")
    ('weight', 'w_up')
    """
    *_, last = split_joined(name)
    word = last.rpartition("_")[2]
    return word if _ROLES.get(word) == "weight" else last


def split_joined(name: str) -> list[str]:
    """The elements of a name that is joined by `.`, `/` or `,`, without NNX's `value` at its end.

    >>> split_joined("params/fc.kernel.value")
    ['params', 'fc', 'kernel']
    """
    elements = _JOINTS.split(name)
    return elements[:-1] if len(elements) > 1 and elements[-1] == "value" else elements


def is_norm(path: Path) -> bool:
    """Whether a path leads to a normalization, by its name: `LayerNorm_0`, `ln_1`, `norm2`."""
    if not path:
        return False
    words = _split_words(str(path[-1]))
    return bool(words) and ("norm" in normalize(str(path[-1])) or words[0] in ("ln", "bn", "gn"))


def is_embedding(path: Path) -> bool:
    """Whether a path leads to an embedding, which models share with their last layer."""
    words = [word for element in path for word in _split_words(str(element))]
    return any(word.startswith("emb") or word in ("wte", "shared") for word in words)


def spell_plainly(name: str) -> tuple[str, ...]:
    """A name without differences of case, separators and the padding of numbers.

    >>> spell_plainly("Dense_01.kernel") == spell_plainly("dense-1.Kernel")
    True
    >>> spell_plainly("w_1_2") == spell_plainly("w_12")
    False
    """
    plain: list[str] = []
    for word in _split_words(name):
        if plain and not word.isdecimal() and not plain[-1].isdecimal():
            plain[-1] += word
        else:
            plain.append(word)
    return tuple(plain)


def list_plurals(words: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The plurals of a plainly spelled name, and the names whose plural it may be.

    >>> list_plurals(("dense", "0", "biases"))[2:]
    [('dense', '0', 'biase'), ('dense', '0', 'bias')]
    """
    if not words:
        return []
    *first, last = words
    plurals = [f"{last}s", f"{last}es"] if len(last) >= MIN_ABBREVIATION else []
    singulars = [last.removesuffix(end) for end in ("s", "es") if last.endswith(end)]
    singulars = [word for word in singulars if len(word) >= MIN_ABBREVIATION]
    return [(*first, word) for word in plurals + singulars]


def is_abbreviation(a: str, b: str) -> bool:
    """Whether two names have the same words and numbers, or those of one begin the other's.

    >>> is_abbreviation("enc_0", "Encoder_0"), is_abbreviation("enc_0", "encoder_1")
    (True, False)
    >>> is_abbreviation("net", "net_target"), is_abbreviation("encoder", "decoder")
    (False, False)
    """
    if spell_plainly(a) == spell_plainly(b):
        return True
    if list_moments((a, b)):
        return False
    words, others = _split_words(a), _split_words(b)
    return len(words) == len(others) and all(map(_begins, words, others))


def _begins(a: str, b: str) -> bool:
    short, long = sorted((a, b), key=len)
    if short == long:
        return True
    rest = long[len(short) :]
    begins = len(short) >= MIN_ABBREVIATION and long.startswith(short) and short.isalpha()
    return begins and rest not in _AVERAGES | _COPIES


def _split_words(name: str) -> list[str]:
    """The words and numbers of a name, in lower case: `selfAttn_01` → `self`, `attn`, `1`."""
    found = _WORDS.findall(name)
    # A file may contain a number with thousands of digits, which int() refuses.
    return [
        str(int(word)) if word.isdecimal() and len(word) < 19 else word.casefold() for word in found
    ]
