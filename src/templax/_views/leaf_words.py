"""What the names of leaves say, in words that libraries share. Pure.

`model.layers.3.self_attn.q_proj.weight` and `layers_3.attention.query.kernel` both mean the weight
of "block", "attn", "q". A name that is not known stands for itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .._core.names import normalize
from .._match.meaning import find_role, is_average, list_moments

_PHRASES: Mapping[str, str] = {
    "": "model transformer module params batchstats self backbone bert gpt2 vit llama roberta"
    " net network dense densegeneral linear lin",
    "proj": "projection",
    "block": "layers layer h blocks block encoderblock decoderblock transformerblocks resblocks"
    " encoderlayer decoderlayer resnetblock bottleneckresnetblock basicblock bottleneck",
    "attn": "attention selfattn selfattention mha multiheadattention multiheaddotproductattention"
    " attentionblock",
    "cross attn": "crossattn crossattention encdecattention encoderattn",
    "q": "qproj query wq queryproj qlin toq",
    "k": "kproj key wk keyproj klin tok",
    "v": "vproj value wv valueproj vlin tov",
    "qkv": "qkvproj cattn inproj wqkv querykeyvalue inprojweight",
    "kv": "kvproj wkv keyvalue tokv",
    "out": "o oproj outproj output wo toout cproj outlin",
    "mlp": "ffn feedforward ff ffwd mlpblock densereludense",
    "mlp out": "down downproj fc2 linear2 lin2 denseh4hto h fcout w2 wdown dense4htoh",
    "mlp in": "up upproj cfc fc1 wi intermediate linear1 lin1 fcin densehto4h w3 wup",
    "mlp gateup": "gateup gateupproj gateandup gateandupproj wgateup w13",
    "mlp gate": "gate gateproj w1 wgate",
    "norm": "layernorm ln rmsnorm batchnorm bn groupnorm gn",
    "norm first": "inputlayernorm attentionnorm attnnorm layernormbefore selfattnlayernorm"
    " preattentionnorm preattnnorm salayernorm",
    "norm second": "postattentionlayernorm ffnnorm mlpnorm layernormafter"
    " premlpnorm outputlayernorm",
    "norm last": "finallayernorm",
    "norm final": "lnf normf finalnorm normfinal encodernorm layernormf finalln",
    "cross norm": "encoderattnlayernorm",
    "embed": "embedding embeddings",
    "embed token": "wte embedtokens wordembeddings tokembeddings tokenembedding tokenembedder embed"
    " shared tokembed tokenembed wordembed",
    "embed pos": "wpe positionembeddings positionembedding posembed posembedding embedpositions"
    " positionalembedding posemb",
    "embed type": "tokentypeembeddings typeembed typeembedding segmentembedding",
    "embed patch": "patchembeddings patchembed patchembedding patchify",
    "cls": "clstoken classtoken",
    "head": "lmhead classifier logits unembed outputlayer",
    "moe": "blocksparsemoe sparsemoe moeblock experts expert",
    "conv shortcut": "convproj downsampleconv shortcutconv",
    "norm shortcut": "normproj",
    "shortcut": "downsample",
    "conv": "conv",
    "pooler": "pooler",
}
"""Words → the elements that mean them, without `_`, numbers and case."""

_WORDS: Mapping[str, Sequence[str]] = {
    name: words.split() for words, names in _PHRASES.items() for name in names.split()
} | {word: [word] for word in ("attn", "mlp", "norm", "q", "k", "v", "qkv", "kv", "out", "head")}
"""Elements → the words that they mean."""

_EXCLUSIVE: tuple[frozenset[str], ...] = tuple(
    map(
        frozenset,
        (
            ("q", "k", "v", "qkv", "kv", "out"),
            ("in", "out", "gate", "gateup"),
            ("encoder", "decoder"),
            ("first", "second", "final"),
            ("token", "pos", "type", "patch"),
            ("attn", "mlp", "embed", "head", "cls", "conv"),
            ("norm", "conv"),
        ),
    )
)
"""Words of which no two name the same leaf."""

_OWN_ROLES = frozenset(("embedding", "kernel", "weight", "scale", "gamma", "w", "weights"))
"""Names of the main array of a layer."""

_LIGHT = frozenset(("encoder", "decoder", "embed", "cross"))
"""Words that many names have, or leave out."""

_ROLE_NAMES = {"weight": "weight", "scale": "weight", "bias": "bias", "mean": "mean", "var": "var"}

_UNNAMED = 0.2
"""How much a name has in common with one that says nothing."""

_SPLIT = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+|\d+")

_MAX_PARTS = 4
"""How many words, as `_` or an upper case letter divides them, are looked up as one."""

_JOINTS = re.compile(r"[/,]")

_SPECIFIC = frozenset(
    (
        *(
            "q",
            "k",
            "v",
            "qkv",
            "kv",
            "in",
            "gate",
            "gateup",
            "token",
            "pos",
            "type",
            "patch",
            "cls",
            "head",
        ),
        *("first", "second", "final", "shortcut", "pooler"),
    )
)
"""Words beside which the number of an element says nothing more."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a name says.

    Attributes:
        role: Of the leaf in its layer: "weight", "bias", "mean", "var".
        realm: What the leaf is a copy of, or moments of: `mu`, `average`.
        words: What its layer is called.
        last: The last element, as it is.
    """

    role: str
    realm: tuple[str, ...]
    words: frozenset[str]
    last: str

    @property
    def numbers(self) -> frozenset[str]:
        """Its words that are places among siblings: `#0`, `#1`."""
        return frozenset(word for word in self.words if word[0] == "#")


@dataclass(frozen=True, slots=True)
class Ordinal:
    """The place of a numbered layer among its siblings: the second of two is `Ordinal(1, 2)`."""

    rank: int
    count: int


def read_name(
    elements: Sequence[str], ordinals: Mapping[int, Ordinal], numbered: frozenset[int]
) -> Meaning:
    """Reads the elements of a name.

    Args:
        elements: Of the name.
        ordinals: Position of an element that ends in a number which tells layers of a block apart.
        numbered: Positions of the elements whose number counts blocks.
    """
    parts: list[tuple[str, int | None]] = []
    for i, element in enumerate(elements):
        *before, end = _JOINTS.split(element)  # `layers/0/q` is one element to its own library
        parts += [*((part, None) for part in before), (end, i)]
    if len(parts) > 1 and parts[-1][0] == "value":
        del parts[-1]  # the level below each variable of NNX
    path = tuple(part for part, _ in parts)
    last = path[-1] if path else ""
    role = _ROLE_NAMES.get(find_role((last,)) or "")
    inner = parts if role is None and last.casefold() != "embedding" else parts[:-1]
    words: list[str] = []
    for part, i in inner:
        number = None if i is None else ordinals.get(i)
        named = _read_element(part)
        words += named
        if number is not None and number.count > 1 and not _SPECIFIC & {*named}:
            words.append(f"#{number.rank}")
    if last.casefold() == "embedding":
        words.append("embed")
    is_optimizer = any("opt" in element.casefold() for element in path)
    # `v` is a moment in an optimizer, and the values in an attention.
    realm = tuple(m for m in list_moments(path) if is_optimizer or len(m) > 1)
    realm += ("average",) if is_average(path) else ()
    settled = _settle({*words}, [*ordinals.values()], bool(numbered) or "block" in words)
    return Meaning(role or "weight", realm, frozenset(settled), last)


def _read_element(element: str) -> Sequence[str]:
    """The words of an element."""
    if element.isdecimal():
        return []
    plain = normalize(element)
    for key in (plain, plain.rstrip("0123456789")):
        if key in _WORDS:
            return _WORDS[key]
    parts = [part.casefold() for part in _SPLIT.findall(element) if not part.isdecimal()]
    found: list[str] = []
    at = 0
    while at < len(parts):
        # The longest words first: `post_attention_layernorm` is not a norm of the attention.
        lengths = range(min(_MAX_PARTS, len(parts) - at), 1, -1)
        n = next((n for n in lengths if "".join(parts[at : at + n]) in _WORDS), 1)
        word = "".join(parts[at : at + n])
        found += _WORDS.get(word, [word])
        at += n
    return found


def _settle(words: set[str], ordinals: Sequence[Ordinal], in_block: bool) -> set[str]:
    """The words, with what their context says: the second norm of a block, the last layer, ...

    Args:
        words: Of a name.
        ordinals: Of its elements.
        in_block: Whether it is one of a block.
    """
    if "norm" in words:
        if not words & {"embed", "q", "k", "shortcut", "conv"}:
            _settle_norm(words, ordinals, in_block)
        return words - {"proj", "fc", "last"}
    if in_block and "attn" not in words and words & {"in", "out", "gate", "gateup"}:
        words.add("mlp")
    elif not in_block and words in ({"fc"}, {"out"}):
        return {"head"}
    if "attn" in words and "proj" in words and not words & {"q", "k", "v", "qkv", "kv"}:
        words.add("out")
    if "attn" in words and "qkv" not in words:
        words.discard("in")
    if "mlp" in words and words & {"#0", "#1"} and any(o.count == 2 for o in ordinals):
        words.add("in" if "#0" in words else "out")
        words -= {"#0", "#1"}
    return words - {"proj", "fc", "last"}


def _settle_norm(words: set[str], ordinals: Sequence[Ordinal], in_block: bool) -> None:
    """Says which norm it is: the first or second of a block, that of its memory, or the final."""
    count = max((o.count for o in ordinals), default=1)
    if words & {"first", "second", "final"}:
        pass
    elif not in_block:
        if not any(word[0] == "#" for word in words):
            words.add("final")
    elif "cross" in words or (count == 3 and "decoder" in words and "#1" in words):
        words.add("cross")
        words -= {"attn", "out", "#1"}
    elif "attn" in words or (count in (2, 3) and "#0" in words):
        words.add("first")
    elif words & {"mlp", "out", "last"} or "#1" in words or (count == 3 and "#2" in words):
        words.add("second")
    if words & {"first", "second", "final"}:
        words -= {"attn", "mlp", "out", "in", "#0", "#1", "#2"}


def compare_meanings(a: Meaning, b: Meaning) -> float:
    """How much two names have in common, from 0 to 1; 0 if they can't mean the same."""
    if a.role != b.role or a.realm != b.realm:
        return 0.0
    for group in _EXCLUSIVE:
        mine, other = a.words & group, b.words & group
        if mine and other and mine.isdisjoint(other):
            return 0.0
    if "attn" in a.words & b.words and ("cross" in a.words) != ("cross" in b.words):
        return 0.0
    if a.numbers and b.numbers and a.numbers.isdisjoint(b.numbers):
        return 0.0
    common = _weigh(a.words & b.words)
    total = _weigh(a.words) + _weigh(b.words)
    if total and not common:
        # A name without words of its own, such as `Dense_0`, may be anything but a norm.
        unnamed = not (a.words and b.words) and "norm" not in a.words | b.words
        return _UNNAMED if unnamed else 0.0
    # The leaf's own name weighs a little, so that equal names win over equal meanings.
    own = 0.5 if a.last == b.last else 0.25 if {a.last, b.last} <= _OWN_ROLES else 0.0
    return (2 * common + 2 * own) / (total + 1.0)


def _weigh(words: frozenset[str]) -> float:
    return sum(0.25 if word in _LIGHT else 0.5 if word[0] == "#" else 1.0 for word in words)
