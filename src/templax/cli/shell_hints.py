"""Reports for a shell: hints name options of the command line, not arguments of `restore`."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Mapping
from dataclasses import replace

from .._match.match import NOTHING_TO_KEEP
from .._match.result import Match

MAX_RENAMES = 100
"""Renames that a hint spells out; `--json` has them all."""

_AT = re.compile(r'at=("(?:[^"\\]|\\.)*")')

_PLACES = re.compile(rf"{_AT.pattern}(?: or {_AT.pattern})*")

_CHOICE = re.compile(r'(extra|cast)="(\w+)"')


def without_values(match: Match) -> Match:
    """The match with a template file, whose leaves have no values for `missing="keep"` to keep."""
    note = "a template file holds no values, so whether restore would keep one is not known"
    return replace(
        match,
        mismatches=tuple(
            replace(m, note=note) if m.note == NOTHING_TO_KEEP else m for m in match.mismatches
        ),
    )


def format_report(match: Match) -> str:
    """`str(match)` with each hint as an option of `templax check`, where an option exists."""
    summary = match.summary
    for hint in {m.hint for m in match.mismatches if m.hint is not None}:
        if summary is not None:
            option = format_option(hint, match.rename)
            summary = summary.replace(f"; hint: {hint}", f"; hint: {option}")
    mismatches = tuple(
        m if m.hint is None else replace(m, hint=format_option(m.hint, match.rename))
        for m in match.mismatches
    )
    text = str(replace(match, summary=summary, mismatches=mismatches))
    return text.replace("(`error.mismatches` has them all)", "(`--json` has them all)")


def format_option(hint: str, rename: Mapping[str, str] | None = None) -> str:
    r"""A hint as an option for a POSIX shell; unchanged if no option does the same.

    Args:
        hint: Of a `Mismatch`.
        rename: Of its `Match`, which has the whole mapping where the hint shortens it.

    >>> format_option('at="params"'), format_option('at="a" or at="b c"')
    ('--at params', "--at a or --at 'b c'")
    >>> format_option('extra="ignore"')
    '--extra ignore'
    >>> format_option('rename={"old": "new"}', {"old": "new"})
    '--rename old=new'
    """
    if _PLACES.fullmatch(hint):
        places = [ast.literal_eval(at) for at in _AT.findall(hint)]
        if not all(map(str.isprintable, places)):
            return f"in Python, {hint}"
        return " or ".join(f"--at {shlex.quote(at)}" for at in places)
    choice = _CHOICE.fullmatch(hint)
    if choice:
        return f"--{choice[1]} {choice[2]}"
    if hint.startswith("missing="):
        return f"in Python, {hint}"
    if hint.startswith("tx.view("):
        return "--map map.json, which `templax suggest PATH TEMPLATE.json -o map.json` writes"
    if not hint.startswith("rename="):
        return f"in Python, {hint}" if hint.startswith("if the saved model") else hint
    # `--rename` takes no function, and cuts OLD=NEW at the first `=`.
    if not rename or ", at=" in hint or any("=" in old for old in rename):
        return f"in Python, {hint}"
    options = [f"--rename {_quoted(f'{old}={new}')}" for old, new in rename.items()]
    if not all(map(str.isprintable, options)):
        return f"in Python, {hint}"
    if len(options) <= MAX_RENAMES:
        return " ".join(options)
    return f"in Python, rename= with the {len(options)} entries that `--json` has as `rename`"


def _quoted(text: str) -> str:
    """For any POSIX shell, and zsh, which takes a leading `=` for the path of a command."""
    quoted = shlex.quote(text)
    return f"'{text}'" if quoted.startswith("=") else quoted
