"""Judges restores by what was saved, and by what Orbax makes of its own checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .trees import iterate_leaves

Answer = Mapping[str, Any]
"""An answer of `orbax_peer`: `ok` with the rows of its `describe_tree`, or `error` and `where`."""

Row = Sequence[Any]
KNOWN = dict.fromkeys(
    ("type list instead of tuple", "type list instead of NoneType"),
    "an empty tuple comes back as a list, as tuples with leaves do:"
    " Orbax 0.6 can't restore a tree whose metadata calls one a tuple",
)
"""Differences that are intended → the reason."""


@dataclass(frozen=True)
class Verdict:
    """The verdict on one call on one checkpoint.

    Attributes:
        kind: `ok`: equal. `more`: equal, although this Orbax can't save such a tree. `known`: an
            intended difference. The next three excuse a failure: `own`, this Orbax fails on its own
            checkpoint as well; `newest`, it fails on one of the newest Orbax as well; `kind`, it
            can't save such a tree. `FAIL`: it does better on a checkpoint of Orbax.
        reason: What was raised, or what differs.
        where: Where in Orbax it was raised.
    """

    kind: Literal["ok", "more", "known", "own", "newest", "kind", "FAIL"]
    reason: str = ""
    where: str = ""


def judge_orbax(
    node: Mapping[str, Any],
    call: str,
    ours: Answer,
    own: Answer | None,
    newest: Answer | None = None,
    saved: Answer | None = None,
) -> Verdict:
    """Judges how one call of Orbax restored a checkpoint of templax.

    Args:
        node: The tree that was saved.
        call: The name of the call.
        ours: What it returned.
        own: What it returned for the same tree saved by the same Orbax; None if that can't save it.
        newest: What it returned for the same tree saved by the newest Orbax.
        saved: How the save by the same Orbax went.
    """
    problem = find_difference(node, call, ours, own or newest)
    if not problem:
        return Verdict("ok" if own is not None else "more")
    for difference, reason in KNOWN.items():
        if problem.startswith(difference):
            return Verdict("known", reason)
    where = str(ours.get("where", ""))
    if own is None and newest is not None and not find_difference(node, call, newest):
        return Verdict("FAIL", problem, where)
    if own is None:
        return Verdict("kind", str((saved or {}).get("error", problem)), where)
    if find_difference(node, call, own):
        return Verdict("own", problem, where)
    if newest is not None and find_difference(node, call, newest, own):
        return Verdict("newest", problem, where)
    return Verdict("FAIL", problem, where)


def judge_templax(node: Mapping[str, Any], call: str, ours: Answer, own: Answer | None) -> Verdict:
    """Judges how templax restored a checkpoint of Orbax, which itself answers with `own`."""
    problem = find_difference(node, call, ours)
    if not problem:
        return Verdict("ok")
    alike = own is not None and find_difference(node, call, own)
    return Verdict("own" if alike else "FAIL", problem, str(ours.get("where", "")))


def find_difference(
    node: Mapping[str, Any], call: str, answer: Answer, model: Answer | None = None
) -> str:
    """How an answer differs from the tree, and from `model` in types and shardings.

    Returns:
        One line about the first difference; empty if there is none.
    """
    if "error" in answer:
        return str(answer["error"])
    rows = {row[0]: row for row in answer["ok"]}
    for path, leaf in iterate_leaves(node):
        if path not in rows:
            return f"nothing at `{path}`"
        if problem := _compare_values(leaf, rows[path], only_metadata=call == "metadata"):
            return f"{problem} at `{path}`"
    if model is None or "error" in model:
        return ""
    for row in model["ok"]:
        if row[0] in rows and (problem := _compare_types(row, rows[row[0]])):
            return f"{problem} at `{row[0]}`"
    return ""


def _compare_values(leaf: Mapping[str, Any], row: Row, *, only_metadata: bool) -> str:
    _, type_, dtype, shape, digest, _ = row
    if leaf["kind"] == "python":
        if only_metadata:
            return ""
        text = leaf["value"]
        number_dtype = {"int": "int64", "float": "float64"}.get(leaf["type"], leaf["type"])
        same = digest == text or (dtype.startswith(number_dtype) and digest == leaf["digest"])
        return "" if same else f"{type_} {digest[:40]} instead of {text[:40]}"
    if leaf["kind"] == "key":
        same = only_metadata or digest == leaf["digest"]
        return "" if same else f"other key data, as {type_} {dtype}{shape}"
    if "scalar" in leaf and type_ in ("int", "float", "bool"):
        return "" if digest == leaf["value"] else f"{digest} instead of {leaf['value']}"
    if (dtype, shape) != (leaf["dtype"], leaf["shape"]):
        return f"{dtype}{shape} instead of {leaf['dtype']}{leaf['shape']}"
    return "" if only_metadata or digest == leaf["digest"] else "other values"


def _compare_types(model: Row, row: Row) -> str:
    for i, what in ((1, "type"), (2, "dtype"), (5, "sharding")):
        if model[i] != row[i]:
            return f"{what} {row[i]} instead of {model[i]}"
    return ""
