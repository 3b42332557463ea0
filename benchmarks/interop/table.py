"""Verdicts as a Markdown table with footnotes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .verdicts import Verdict

_REASON_CHARS = 180


@dataclass
class Notes:
    """Footnotes: each reason once, with a number."""

    numbers: dict[str, int] = field(default_factory=dict)

    def add(self, text: str) -> str:
        """The mark of a reason, which may be known already."""
        return f"[{self.numbers.setdefault(_shorten(text), len(self.numbers) + 1)}]"

    def list_lines(self) -> Iterable[str]:
        return (f"{number}. {text}" for text, number in self.numbers.items())


@dataclass(frozen=True)
class Tried:
    """One call: its name, the files and the number of devices, and the verdict on it."""

    call: str
    files: str
    devices: int
    verdict: Verdict


_MEANING = {
    "own": "as with what this Orbax saved itself",
    "newest": "as with what Orbax {newest} saved",
    "kind": "this Orbax can't save it",
    "known": "on purpose",
    "FAIL": "**only with what templax saved**",
}


def format_cell(tried: Sequence[Tried], newest: str, notes: Notes) -> str:
    """A cell of a table: `ok`, or the calls that failed and the marks of their reasons."""
    if not tried:
        return ""
    bad: dict[str, list[Tried]] = {}
    for one in tried:
        verdict = one.verdict
        if verdict.kind not in ("ok", "more"):
            where = f" ({verdict.where})" if verdict.kind == "FAIL" and verdict.where else ""
            meaning = _MEANING[verdict.kind].format(newest=newest)
            mark = notes.add(f"{meaning}: {verdict.reason}{where}")
            bold = "**FAIL** " if verdict.kind == "FAIL" else ""
            bad.setdefault(bold + mark, []).append(one)
    ok = "ok+" if any(one.verdict.kind == "more" for one in tried) else "ok"
    if not bad:
        return ok
    if len(bad) == 1 and all(len(these) == len(tried) for these in bad.values()):
        return next(iter(bad))
    parts = [f"{_name_calls(these, tried)} {mark}" for mark, these in bad.items()]
    good = sum(map(len, bad.values())) < len(tried)
    return "; ".join([ok, *parts] if good else parts)


def _name_calls(some: Sequence[Tried], tried: Sequence[Tried]) -> str:
    """Names some of the calls, with files and devices only where those make a difference."""
    names = []
    for call in dict.fromkeys(one.call for one in some):
        of_call = [one for one in tried if one.call == call]
        failed = [one for one in some if one.call == call]
        name = f"`{call}`"
        for attribute, text in (("files", "{}"), ("devices", "on {}")):
            values = {getattr(one, attribute) for one in failed}
            if values != {getattr(one, attribute) for one in of_call}:
                name += f" {text.format('/'.join(map(str, sorted(values))))}"
        names.append(name)
    return ", ".join(names)


def _shorten(text: str) -> str:
    text = re.sub(r" \[source locations=.*|\.? Tensorstore KvStore: .*|, ParamInfo=.*", "", text)
    text = re.sub(r"(item|standard|files|zarr3|manager|v1)\.orbax-checkpoint-tmp\S*", "…", text)
    text = re.sub(r"(Error (opening|reading)) \S+", r"\1 …", text)
    text = re.sub(r" at 0x[0-9a-f]+", "", text).replace("|", "\\|")
    return text if len(text) <= _REASON_CHARS else f"{text[:_REASON_CHARS]}…"


def format_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
