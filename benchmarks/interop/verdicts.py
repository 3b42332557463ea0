"""What came back, judged: against what was saved, and against what Orbax makes of its own files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .trees import leaves_of

Answer = Mapping[str, Any]
"""Of `orbax_peer`: `ok` with rows, as `described` there gives them; or `error` and `where`."""

Row = Sequence[Any]
KNOWN = dict.fromkeys(
    ("type list instead of tuple", "type list instead of NoneType"),
    "an empty tuple comes back as a list, as tuples with leaves do:"
    " Orbax 0.6 restores nothing of a tree that has one by its name",
)
"""What differs on purpose, and why."""

_REASON_CHARS = 180


@dataclass(frozen=True)
class Verdict:
    """Of one call on one checkpoint.

    Attributes:
        kind: `ok`; `more` is ok where that Orbax can't even save such a tree; `known` differs for a
            reason. `own`: that Orbax fails on its own checkpoint, too; `newest`: and on one of the
            newest Orbax; `kind`: it can't save such a tree. `FAIL`: it does better on its own.
        reason: What was raised or differs.
        where: In whose code.
    """

    kind: Literal["ok", "more", "known", "own", "newest", "kind", "FAIL"]
    reason: str = ""
    where: str = ""


def judged(
    node: Mapping[str, Any],
    call: str,
    ours: Answer,
    own: Answer | None,
    newest: Answer | None = None,
    saved: Answer | None = None,
) -> Verdict:
    """A checkpoint of templax, as one call of Orbax restored it.

    Args:
        own: The same call on the tree as saved by that Orbax; None: it can't save it.
        newest: On the tree as saved by the newest.
        saved: How that Orbax's own save went.
    """
    problem = trouble(node, call, ours, own or newest)
    if not problem:
        return Verdict("ok" if own is not None else "more")
    for difference, reason in KNOWN.items():
        if problem.startswith(difference):
            return Verdict("known", reason)
    where = str(ours.get("where", ""))
    if own is None and newest is not None and not trouble(node, call, newest):
        return Verdict("FAIL", problem, where)
    if own is None:
        return Verdict("kind", str((saved or {}).get("error", problem)), where)
    if trouble(node, call, own):
        return Verdict("own", problem, where)
    if newest is not None and trouble(node, call, newest, own):
        return Verdict("newest", problem, where)
    return Verdict("FAIL", problem, where)


def judged_back(node: Mapping[str, Any], call: str, ours: Answer, own: Answer | None) -> Verdict:
    """A checkpoint of Orbax as templax restored it, and as that Orbax did."""
    problem = trouble(node, call, ours)
    if not problem:
        return Verdict("ok")
    alike = own is not None and trouble(node, call, own)
    return Verdict("own" if alike else "FAIL", problem, str(ours.get("where", "")))


def trouble(node: Mapping[str, Any], call: str, answer: Answer, model: Answer | None = None) -> str:
    """How an answer differs from the tree, and from `model` in types and shardings; or ""."""
    if "error" in answer:
        return str(answer["error"])
    rows = {row[0]: row for row in answer["ok"]}
    for path, leaf in leaves_of(node):
        if path not in rows:
            return f"nothing at `{path}`"
        if problem := _values(leaf, rows[path], only_described=call == "metadata"):
            return f"{problem} at `{path}`"
    if model is None or "error" in model:
        return ""
    for row in model["ok"]:
        if row[0] in rows and (problem := _differs(row, rows[row[0]])):
            return f"{problem} at `{row[0]}`"
    return ""


def _values(leaf: Mapping[str, Any], row: Row, *, only_described: bool) -> str:
    _, what, dtype, shape, digest, _ = row
    if leaf["kind"] == "python":
        if only_described:
            return ""
        text = leaf["value"]
        number = {"int": "int64", "float": "float64"}.get(leaf["type"], leaf["type"])
        same = digest == text or (dtype.startswith(number) and digest == leaf["digest"])
        return "" if same else f"{what} {digest[:40]} instead of {text[:40]}"
    if leaf["kind"] == "key":
        same = only_described or digest == leaf["digest"]
        return "" if same else f"other key data, as {what} {dtype}{shape}"
    if "scalar" in leaf and what in ("int", "float", "bool"):
        return "" if digest == leaf["value"] else f"{digest} instead of {leaf['value']}"
    if (dtype, shape) != (leaf["dtype"], leaf["shape"]):
        return f"{dtype}{shape} instead of {leaf['dtype']}{leaf['shape']}"
    return "" if only_described or digest == leaf["digest"] else "other values"


def _differs(model: Row, row: Row) -> str:
    for i, what in ((1, "type"), (2, "dtype"), (5, "sharding")):
        if model[i] != row[i]:
            return f"{what} {row[i]} instead of {model[i]}"
    return ""


@dataclass
class Notes:
    """Footnotes: each reason once, by number."""

    numbers: dict[str, int] = field(default_factory=dict)

    def mark(self, text: str) -> str:
        return f"[{self.numbers.setdefault(_short(text), len(self.numbers) + 1)}]"

    def lines(self) -> Iterable[str]:
        return (f"{number}. {text}" for text, number in self.numbers.items())


@dataclass(frozen=True)
class Tried:
    """One call: its name, on which files, on how many devices, and what came of it."""

    call: str
    files: str
    devices: int
    verdict: Verdict


_MEANING = {
    "own": "as with what this Orbax saved itself",
    "newest": "as with what Orbax {newest} saved",
    "kind": "this Orbax can't save it",
    "known": "on purpose",
    "FAIL": "**with what templax saved alone**",
}


def cell(tried: Sequence[Tried], newest: str, notes: Notes) -> str:
    """Of a table: `ok`, and where it isn't."""
    if not tried:
        return ""
    bad: dict[str, list[Tried]] = {}
    for one in tried:
        verdict = one.verdict
        if verdict.kind not in ("ok", "more"):
            where = f" ({verdict.where})" if verdict.kind == "FAIL" and verdict.where else ""
            meaning = _MEANING[verdict.kind].format(newest=newest)
            mark = notes.mark(f"{meaning}: {verdict.reason}{where}")
            bold = "**FAIL** " if verdict.kind == "FAIL" else ""
            bad.setdefault(bold + mark, []).append(one)
    ok = "ok+" if any(one.verdict.kind == "more" for one in tried) else "ok"
    if not bad:
        return ok
    if len(bad) == 1 and all(len(these) == len(tried) for these in bad.values()):
        return next(iter(bad))
    parts = [f"{_named(these, tried)} {mark}" for mark, these in bad.items()]
    good = sum(map(len, bad.values())) < len(tried)
    return "; ".join([ok, *parts] if good else parts)


def _named(some: Sequence[Tried], tried: Sequence[Tried]) -> str:
    """Which calls those are, said with no more than it takes."""
    names = []
    for call in dict.fromkeys(one.call for one in some):
        of_call = [one for one in tried if one.call == call]
        mine = [one for one in some if one.call == call]
        name = f"`{call}`"
        for attribute, text in (("files", "{}"), ("devices", "on {}")):
            there = {getattr(one, attribute) for one in mine}
            if there != {getattr(one, attribute) for one in of_call}:
                name += f" {text.format('/'.join(map(str, sorted(there))))}"
        names.append(name)
    return ", ".join(names)


def _short(text: str) -> str:
    text = re.sub(r" \[source locations=.*|\.? Tensorstore KvStore: .*|, ParamInfo=.*", "", text)
    text = re.sub(r"(item|standard|files|zarr3|manager|v1)\.orbax-checkpoint-tmp\S*", "…", text)
    text = re.sub(r"(Error (opening|reading)) \S+", r"\1 …", text)
    text = re.sub(r" at 0x[0-9a-f]+", "", text).replace("|", "\\|")
    return text if len(text) <= _REASON_CHARS else f"{text[:_REASON_CHARS]}…"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
