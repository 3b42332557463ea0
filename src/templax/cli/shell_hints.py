"""A report in the command's own words: hints are arguments of `restore`, a shell has options."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import replace

from .._match.result import Match

MOST_RENAMES = 6
"""Renames that a hint spells out; `--json` has them all."""

_AT = re.compile(r'at=("(?:[^"\\]|\\.)*")')

_PLACES = re.compile(rf"{_AT.pattern}(?: or {_AT.pattern})*")

_CHOICE = re.compile(r'(extra|cast)="(\w+)"')


def without_values(match: Match) -> Match:
    """The match of `missing="keep"` with a template of a file: none of its leaves has a value."""
    note = "a template file holds no values, so whether restore would keep one is not known"
    return replace(
        match,
        mismatches=tuple(
            replace(m, note=note) if m.problem == "missing" else m for m in match.mismatches
        ),
    )


def report(match: Match) -> str:
    """`str(match)` with every hint as an option of `templax check`, where there is one."""
    summary = match.summary
    for hint in {m.hint for m in match.mismatches if m.hint is not None}:
        if summary is not None:
            summary = summary.replace(f"; hint: {hint}", f"; hint: {as_option(hint, match.rename)}")
    mismatches = tuple(
        m if m.hint is None else replace(m, hint=as_option(m.hint, match.rename))
        for m in match.mismatches
    )
    text = str(replace(match, summary=summary, mismatches=mismatches))
    return text.replace("(`error.mismatches` has them all)", "(`--json` has them all)")


def as_option(hint: str, rename: Mapping[str, str] | None = None) -> str:
    r"""A hint as an option for a POSIX shell; as it is if no option says the same.

    Args:
        hint: Of a `Mismatch`.
        rename: Of its `Match`, which has the whole mapping where the hint shortens it.

    >>> as_option('at="params"'), as_option('at="a" or at="b c"'), as_option('extra="ignore"')
    ('--at params', "--at a or --at 'b c'", '--extra ignore')
    >>> as_option('rename={"old": "new"}', {"old": "new"})
    '--rename old=new'
    """
    if _PLACES.fullmatch(hint):
        return " or ".join(f"--at {shlex.quote(json.loads(at))}" for at in _AT.findall(hint))
    choice = _CHOICE.fullmatch(hint)
    if choice:
        return f"--{choice[1]} {choice[2]}"
    if not hint.startswith("rename="):
        return hint
    # `--rename` takes no function, and cuts OLD=NEW at the first `=`.
    if not hint.startswith("rename={") or not rename or any("=" in old for old in rename):
        return f"in Python, {hint}"
    options = [f"--rename {_quoted(f'{old}={new}')}" for old, new in rename.items()]
    if len(options) <= MOST_RENAMES:
        return " ".join(options)
    return f"{' '.join(options[:3])} ... ({len(options)} in all, as `rename` in `--json`)"


def _quoted(text: str) -> str:
    """For any POSIX shell, and zsh, which takes a leading `=` for the path of a command."""
    quoted = shlex.quote(text)
    return f"'{text}'" if quoted.startswith("=") else quoted
