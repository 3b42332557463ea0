"""The strings of a tree, in `_strings.json`: Orbax looks each up by the JSON pointer `/<name>`.

So a `/` in a name leads into an object, and `~0` and `~1` stand for `~` and `/`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..._core.names import MAX_DEPTH

STRINGS = "_strings.json"


def nest_strings(texts: Mapping[str, str]) -> dict[str, Any]:
    """The content of the file.

    Args:
        texts: Strings by leaf name, for which `find_unplaced_strings` finds no problem.

    >>> nest_strings({"a": "x", "b/c": "y"})
    {'a': 'x', 'b': {'c': 'y'}}
    """
    root: dict[str, Any] = {}
    for name, text in texts.items():
        *outer, last = _split_pointer(name)
        inside = root
        for token in outer:
            inside = inside.setdefault(token, {})
        inside[last] = text
    return root


def find_unplaced_strings(names: Mapping[str, Any]) -> list[str]:
    """Why Orbax could not look up some strings, as sentences that begin with their names."""
    problems: list[str] = []
    odd = [name for name in names if "/" in name or "~" in name]
    if odd:
        places = {tuple(_split_pointer(name)): name for name in names}
        for name in odd:
            tokens = tuple(_split_pointer(name))
            outer = next((p for i in range(1, len(tokens)) if (p := tokens[:i]) in places), None)
            if re.search(r"~(?![01])", name):
                problems.append(f"`{name}` is a string, and has a `~` in its name: rename it")
            elif len(tokens) > MAX_DEPTH:
                problems.append(f"`{name[:40]}…` is a string with over {MAX_DEPTH - 1} `/`")
            elif outer is not None:
                problems.append(f"`{name}` would be stored in the string `{places[outer]}`")
    return problems


def find_string(strings: Mapping[str, Any], name: str) -> str | None:
    """The string of a leaf in the content of the file; None if there is none.

    >>> find_string({"a": "x", "b": {"c": "y"}}, "b/c")
    'y'
    """
    found: Any = strings
    for token in _split_pointer(name):
        found = found.get(token) if isinstance(found, dict) else None
    if not isinstance(found, str):
        found = strings.get(name)  # as templax used to write it
    return found if isinstance(found, str) else None


def _split_pointer(name: str) -> list[str]:
    return [token.replace("~1", "/").replace("~0", "~") for token in name.split("/")]
