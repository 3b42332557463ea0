"""The target for mapping files: names with placeholders, axes, expressions."""

from __future__ import annotations

import json
import math
import random
from contextlib import suppress

import templax as tx

from .documents import _directory
from .inspection import check_line
from .mutators import mutate_json
from .targets import Wrong, add_target

_RULES = {
    "embed": "model.embed.weight",
    "layers.{i}.norm": {"from": "model.layers.{i}.norm.weight", "scale": 0.5, "add": "1"},
    "layers.{i}.q": {
        "from": "h.{i}.attn.weight",
        "axes": "d (three h k) -> d h k",
        "select": {"three": 0},
        "scale": "k**-0.5 / (h + 1)",
        "k": 64,
    },
    "mlp": {"from": "h.{i:02}.{p}.{e+1}", "axes": "f d -> i d (p f) e", "p": ["w1", "w10", "w"]},
    "blocks.{c}.w": {"from": "layers.{(g c)}.w", "axes": "... -> g ...", "c": 4},
    "head": {"from": "lm.w", "axes": "(v w) d -> d v w", "pad": {"v": -1}, "crop": ["w"],
             "flip": ["d"], "slice": {"(v w)": [1, 13]}, "v": 3},
    "kv.{j}": {"concat": [{"from": "k.{j}"}, {"from": "v.{j}", "axes": "x y -> y x"}],
               "axes": "(d [f])"},
    "opt.{...}.v": "opt.0.{...}.v",
    "$drop": ["*.inv_freq", "a.{i}.{{b}}"],
    "$rest": "keep",
}  # fmt: skip

_TOKENS = (
    "{i}", "{i+1}", "{i:02}", "{(g c)}", "{...}", "{{", "}}", "{", "}", ".", "i", "0", "12", "...",
    "(", ")", "[", "]", "->", "1", " ", "_", "**", "*", "/", "-", "+", "9", "1e308", "h", "é",
)  # fmt: skip

_NAMES = ("", "a", "0", "model.layers.3.norm.weight", "h.07.w10.2", "1" * 5000, ".".join("1" * 99))


def _seeds() -> list[bytes]:
    alone = [{key: rule} for key, rule in _RULES.items()]
    return [json.dumps(document).encode() for document in (_RULES, *alone)]


def _mutate(data: bytes, rng: random.Random) -> bytes:
    """Changes the structure, or the text of a name, of axes or of an expression."""
    if rng.random() < 0.5:
        return mutate_json(data, rng)
    text = data.decode("utf-8", "surrogateescape")
    for _ in range(rng.choice((1, 1, 2, 5))):
        start = rng.randrange(len(text) + 1)
        stop = start + rng.choice((0, 0, 1, 1, 3))
        text = text[:start] + rng.choice(_TOKENS) * rng.choice((1, 1, 1, 30)) + text[stop:]
    return text.encode("utf-8", "surrogateescape")


@add_target(
    "mapping-json",
    seeds=_seeds,
    mutate=_mutate,
    tokens=[*(token.encode() for token in _TOKENS), b'"from"', b'"axes"', b'"concat"', b'"select"'],
)
def read_mapping(data: bytes) -> None:
    """A mapping file: what is accepted is written alike, and its names match what they make."""
    path = _directory() / "map.json"
    path.write_bytes(data)
    try:
        mapping = tx.Mapping.load(path)
    except tx.MappingError as error:
        for line in str(error).split("\n"):
            check_line(line)
        raise
    for line in str(mapping).split("\n"):
        check_line(line)
    if tx.Mapping.from_json(json.loads(json.dumps(mapping.to_json()))) != mapping:
        raise Wrong("the JSON form of a mapping is another mapping")
    for target, rule in mapping.rules.items():
        parts = rule.parts if isinstance(rule, tx.Concat) else (rule,)
        for part in parts:
            _match_names(part)
            for expression in (part.scale, part.add):
                if expression is not None:
                    with suppress(ValueError):
                        value = expression.evaluate(dict.fromkeys(expression.names, 3))
                        if not math.isfinite(value):
                            raise Wrong(f"{expression.text} is {value}, of {target}")


def _match_names(part: tx.From) -> None:
    pattern = part.source
    for name in (*_NAMES, pattern.text):
        found = pattern.match(name, part.names, part.sizes)
        if found is not None and pattern.format(found, part.sizes) != name:
            raise Wrong(f"{pattern.text} matches {name[:200]}, but makes another of {found}")
