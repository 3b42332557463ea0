"""What process 0 makes of the calls that the other processes offer."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import NamedTuple

import numpy as np

from .messages import Call, RemoteError, describe_failure, group_processes, name_processes

Identity = tuple[str, str, int | None]


class Offer(NamedTuple):
    """A call that a process other than 0 makes.

    Attributes:
        number: Counts the offers of the process.
        call: The call.
    """

    number: int
    call: Call


class Judgement(NamedTuple):
    """What process 0 makes of the offers.

    Attributes:
        past: The error of each process that is behind. The others go on waiting for it.
        ahead: The processes that are ahead: their offers stay, until process 0 comes to them.
        error: Why the call fails on all others; None if it does not.
        at_once: Whether nothing is gained by waiting for more offers.
    """

    past: Mapping[int, RemoteError]
    ahead: frozenset[int] = frozenset()
    error: RemoteError | None = None
    at_once: bool = False


def judge_offers(
    own: Call,
    offers: Mapping[int, Offer],
    count: int,
    refused: Mapping[int, Container[Identity]],
    own_failures: Mapping[Identity, RemoteError],
) -> Judgement:
    """Compares the call of process 0 with the offers of the others.

    - A process is behind if it is at a lower step of the same path, or at a call in which process 0
      failed before: that call fails there, at once.
    - A process is ahead if it is at a higher step, or was refused this very call before: the call
      fails on process 0 and on all that came to it, at once. The process ahead waits for them.
    - Any other difference fails the call on all.

    Args:
        own: The call of process 0.
        offers: By process, the offers that were not answered yet.
        count: Number of processes in the job.
        refused: By process, the calls that process 0 refused it.
        own_failures: The calls in which process 0 failed, each with the error.
    """
    past: dict[int, RemoteError] = {}
    ahead: dict[int, str] = {}
    failed: dict[int, RemoteError] = {}
    present: dict[int, Call] = {0: own}
    for index, (_, call) in sorted(offers.items()):
        where = _compare(own, call, refused.get(index, ()), own_failures.keys())
        if where == 0 and call.error is not None and call.number < own.number:
            where = -1  # it failed in an earlier try of this call
        if where < 0:
            past[index] = own_failures.get(call.identity) or _describe_behind(call, own, count)
        elif where > 0:
            ahead[index] = str(call)
        elif call.error is not None:
            failed[index] = call.error
        else:
            present[index] = call
    error, at_once = None, False
    if failed:
        error = describe_failure(failed, {}, count=count, path=own.path, doing=own.doing)
    elif ahead:
        (call, indices), *_ = group_processes(ahead).items()
        error, at_once = _describe_ahead(own, call, name_processes(indices), count), True
    else:
        error = _find_difference(present, count)
    return Judgement(past, frozenset(ahead), error, at_once)


def _compare(
    own: Call, other: Call, refused: Container[Identity], failures: Container[Identity]
) -> int:
    """-1 if the other call is behind, 1 if it is ahead, 0 if it is this one or can't be ordered."""
    if own.identity == other.identity:
        return 0
    if (own.doing, own.series) == (other.doing, other.series):
        if own.step is None or other.step is None:
            return 0
        return -1 if other.step < own.step else 1
    was_here = own.identity in refused
    was_there = other.identity in failures
    return was_here - was_there


def _describe_behind(call: Call, own: Call, count: int) -> RemoteError:
    return RemoteError(
        f"Process 0 of {count} is ahead: it is {own}, this process is {call}",
        places={
            "file": call.path,
            "hint": "this process left out, or failed in, what came between;"
            " the next call that all make together goes through",
        },
    )


def _describe_ahead(own: Call, call: str, who: str, count: int) -> RemoteError:
    return RemoteError(
        f"{who[0].upper()}{who[1:]} of {count} is ahead: it is {call}, not {own}",
        places={
            "file": own.path,
            "hint": "it left this call out, or failed in it; it waits there for the others",
        },
    )


def _find_difference(calls: Mapping[int, Call], count: int) -> RemoteError | None:
    """The error for calls that are not the same, or that follow a failure; None if all is well."""
    own = calls[0]
    names = group_processes({i: str(call) for i, call in calls.items()})
    if len({call.identity for call in calls.values()}) > 1:
        expected, got, *_ = names
        return RemoteError(
            f"Expected every process to be {expected}, got {name_processes(names[got])} {got}",
            places={
                "file": own.path,
                "hint": "make the same calls in the same order on every process",
            },
        )
    for fact in own.facts:
        groups = group_processes({i: call.facts.get(fact, "none") for i, call in calls.items()})
        if len(groups) > 1:
            expected, got, *_ = groups
            return RemoteError(
                f"Expected the same {fact} on every process, got {expected} on process 0 and {got}"
                f" on {name_processes(groups[got])}, {own}",
                places={"file": own.path},
            )
    earlier = {i: call.earlier for i, call in calls.items() if call.earlier is not None}
    if earlier:
        error = next(iter(earlier.values()))
        text = error.what
        if len(earlier) < count:
            text += f" - {name_processes(list(earlier))} of {count} had not heard of it yet"
        return RemoteError(text, error.kind, error.places, earlier=True)
    return None


def find_different_leaf(
    own: Call, other: Call, index: int, name_leaf: Callable[[int], str]
) -> RemoteError | None:
    """The error for a process with another tree than process 0; None if they are alike.

    Args:
        own, other: The calls of process 0 and of the other process.
        index: The index of the other process.
        name_leaf: The name of a leaf of process 0 by its index.
    """
    if own.leaves == other.leaves:
        return None
    mine, theirs = (np.frombuffer(call.leaves, "<u4") for call in (own, other))
    what = f"Expected the tree of process 0, got another on process {index}"
    place = {"file": own.path}
    common = min(len(mine), len(theirs))
    differing = np.flatnonzero(mine[:common] != theirs[:common])
    if len(mine) != len(theirs):
        what += f", with {len(theirs):,} leaves instead of {len(mine):,}"
    if len(differing):
        place["leaf"] = name_leaf(int(differing[0]))
        what += "; the first leaf with another name, shape, dtype or sharding is this one"
    return RemoteError(what, places=place)


def find_different_value(own: Call, other: Call) -> int | None:
    """The index of the first leaf of which two processes hold different values, or None."""
    mine, theirs = (np.frombuffer(call.values, "<u4").reshape(-1, 2) for call in (own, other))
    _, a, b = np.intersect1d(mine[:, 0], theirs[:, 0], return_indices=True)
    differing = np.flatnonzero(mine[a, 1] != theirs[b, 1])
    return int(mine[a[differing[0]], 0]) if len(differing) else None


def describe_different_values(leaf: str, index: int, path: str) -> RemoteError:
    """The error for a leaf of which every process holds a copy, and one holds another."""
    return RemoteError(
        f"Expected the same value on every process, got another on process {index} than on"
        " process 0",
        places={
            "leaf": leaf,
            "file": path,
            "hint": "make it an array that is sharded over the processes, or save it from each"
            " process to a path of its own with alone=True",
        },
    )
