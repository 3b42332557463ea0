"""Mappings as JSON: an object for each rule. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from ..errors import MappingError
from .rules import Concat, From, Rule

DROP, REST = "$drop", "$rest"
"""The keys beside the rules for what is `drop=` and `rest=` in Python."""

MAX_RULES = 100_000


def encode_rules(rules: Mapping[str, Rule]) -> dict[str, Any]:
    """The rules as values that JSON has."""
    return {target: _encode_rule(rule) for target, rule in rules.items()}


def _encode_rule(rule: Rule) -> dict[str, Any]:
    if isinstance(rule, Concat):
        return {"concat": [_encode_rule(part) for part in rule.parts], "axes": rule.axes.text}
    axes = {} if rule.axes is None else {"axes": rule.axes.text}
    return {"from": rule.source.text, **axes, **rule.list_options()}


def format_document(document: Mapping[str, Any]) -> bytes:
    """The file of a mapping."""
    # A rule per line, because mappings are kept under version control and read in diffs.
    rows = [
        f"{json.dumps(key)}: {json.dumps(row, allow_nan=False)}" for key, row in document.items()
    ]
    body = ",\n  ".join(rows)
    return f"{{\n  {body}\n}}\n".encode() if rows else b"{}\n"


def decode_rules(
    document: object,
) -> tuple[dict[str, str | Rule], dict[str, Any], list[str]]:
    """Reads a JSON document.

    Returns:
        The rules, the arguments `drop=` and `rest=` that it has, and the problems of rules that
        can't be read. What is wrong with a rule that can is left to `Mapping`.

    Raises:
        MappingError: It is not an object, or has too many rules.
    """
    if not isinstance(document, dict):
        raise MappingError(
            f"Expected a JSON object with a rule for each target, got {type(document).__name__}"
        )
    if len(document) > MAX_RULES + 2:
        raise MappingError(f"Expected at most {MAX_RULES:,} rules, got {len(document):,}")
    rules: dict[str, str | Rule] = {}
    options: dict[str, Any] = {}
    problems: list[str] = []
    for target, rule in document.items():
        if target in (DROP, REST):
            options[target[1:]] = rule
            continue
        try:
            rules[target] = _decode_rule(rule)
        except (ValueError, TypeError) as error:
            problems.append(f"`{target!s:.200}`: {error}")
    return rules, options, problems


def _decode_rule(rule: Any) -> str | Rule:
    if isinstance(rule, str):
        return rule
    if not isinstance(rule, dict):
        raise ValueError(
            f"Expected a name or an object with `from` or `concat`, got {type(rule).__name__}"
        )
    if "concat" in rule:
        unknown = sorted(set(rule) - {"concat", "axes"})
        if unknown or "axes" not in rule:
            raise ValueError("Expected an object with `concat` and `axes`, got " + _list_keys(rule))
        parts = rule["concat"]
        if not isinstance(parts, list):
            raise ValueError(f"Expected a list of rules in `concat`, got {type(parts).__name__}")
        return Concat([_decode_part(part) for part in parts], rule["axes"])
    return _decode_part(rule)


def _decode_part(rule: Any) -> From:
    if isinstance(rule, str):
        return From(rule)
    if not isinstance(rule, dict) or "from" not in rule:
        found = _list_keys(rule) if isinstance(rule, dict) else type(rule).__name__
        raise ValueError(f"Expected a name or an object with `from`, got {found}")
    options = {key: value for key, value in rule.items() if key not in ("from", "axes")}
    pad = options.get("pad")
    for axis, value in pad.items() if isinstance(pad, dict) else ():
        # Python reads `Infinity`, which is not JSON, and takes a number such as 1e999 for it.
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(
                f'pad= `{axis!s:.80}`: Expected a number that float64 can hold, or "inf" or "-inf",'
                f" got {value}"
            )
    return From(rule["from"], rule.get("axes"), **options)


def _list_keys(rule: dict[str, Any]) -> str:
    return "one with " + (", ".join(f"`{key:.80}`" for key in list(rule)[:8]) or "nothing")
