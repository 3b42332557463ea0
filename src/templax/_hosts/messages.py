"""What the processes of a job send each other, and the errors they agree on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from .. import errors
from ..errors import AlreadyExists, CheckpointError, SaveError, TemplaxError

_MAX_NAMED = 8
"""An error names at most this many processes."""

_PLACES = ("leaf", "file", "start", "stop", "hint", "box", "stored_as")

_NUMBER = re.compile(r"(.*?)(\d{1,18})/*")


class RemoteError(msgspec.Struct, frozen=True, array_like=True):
    """An error in the form in which one process sends it to another.

    Attributes:
        what: What is wrong, without the location.
        kind: The name of its class, if that is a `TemplaxError`; else empty.
        places: The location and the hint, as far as its class has them.
        earlier: Whether it is that of an earlier call, which some process had not heard of.
        process: The index of the process that failed; -1 if that is unknown or several failed.
    """

    what: str
    kind: str = ""
    places: dict[str, Any] = {}
    earlier: bool = False
    process: int = -1

    @classmethod
    def from_exception(cls, error: BaseException) -> RemoteError:
        """Keeps the parts of an error of templax; any other exception becomes text."""
        if isinstance(error, (SaveError, CheckpointError)):
            places = {name: getattr(error, name, None) for name in _PLACES}
            known = {name: value for name, value in places.items() if value is not None}
            return cls(error.what, type(error).__name__, known)
        if isinstance(error, TemplaxError):
            return cls(str(error), type(error).__name__)
        return cls(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)

    @property
    def exists(self) -> bool:
        """Whether the error is an `AlreadyExists`."""
        return self.kind == AlreadyExists.__name__

    def to_exception(self, default: type[TemplaxError] = SaveError) -> TemplaxError:
        """The exception that the receiver raises.

        Args:
            default: Its class, if the error is none of those in `errors`.
        """
        kind: Any = getattr(errors, self.kind, default) if self.kind else default
        if issubclass(kind, CheckpointError):
            places = dict(self.places)
            if places.get("box") is not None:
                places["box"] = tuple((a, b) for a, b in places["box"])
            return kind(self.what, **places)
        known = {name: self.places.get(name) for name in ("leaf", "file", "hint")}
        if issubclass(kind, SaveError):
            return kind(self.what, **known)
        text = str(SaveError(self.what, **known))
        return kind(text)


class Call(msgspec.Struct, frozen=True, array_like=True):
    """What a process is about to do together with the others: the first word it says.

    Attributes:
        doing: "saving", "restoring" and so on, as errors say it.
        path: The path concerned: of a checkpoint, or of a run.
        step: The step, or None. Of a checkpoint whose name ends in a number, that number.
        facts: Name → value in words, of everything that must be equal on all processes.
        notes: Name → digest of each argument that may differ: those of process 0 are used.
        leaves: The crc32 of each leaf's name, shape, dtype and sharding, as little-endian uint32.
        values: The index and crc32c of each leaf that every process holds a copy of, as pairs of
            little-endian uint32.
        number: How many calls with this `identity` the process has made before.
        earlier: The error of an earlier save that no caller has seen yet on this process.
        error: Why this process gave up before it met the others.
        in_path: Whether the step is the number at the end of the path, and not one of a run there.
    """

    doing: str
    path: str
    step: int | None = None
    facts: dict[str, str] = {}
    notes: dict[str, str] = {}
    leaves: bytes = b""
    values: bytes = b""
    number: int = 0
    earlier: RemoteError | None = None
    error: RemoteError | None = None
    in_path: bool = False

    @property
    def series(self) -> str:
        """The path, without the number of the step at its end."""
        found = _NUMBER.fullmatch(self.path) if self.in_path else None
        return found[1] if found else self.path

    @property
    def identity(self) -> tuple[str, str, int | None]:
        """Two processes make the same call if this is equal."""
        return self.doing, self.series, self.step

    def __str__(self) -> str:
        if self.step is None or self.in_path:
            return f"{self.doing} `{self.path}`"
        return f"{self.doing} step {self.step} of `{self.path}`"


def read_number(path: str) -> int | None:
    """The number that ends a path and orders checkpoints; None if there is none."""
    found = _NUMBER.fullmatch(path)
    return int(found[2]) if found else None


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """What process 0 answers to an offer, or the process itself if it withdraws the offer.

    Attributes:
        session: The number of the session that begins for all; -1 if there is none.
        error: Why there is none.
        withdrawn: Whether the process that made the offer set the answer, to withdraw its offer.
        reply: What process 0 tells all with which the session begins.
    """

    session: int = -1
    error: RemoteError | None = None
    withdrawn: bool = False
    reply: bytes = b""


class Refusal(msgspec.Struct, frozen=True, array_like=True):
    """A call in which process 0 gave up, for processes that come to it later.

    Attributes:
        identity, number: See `Call`.
        error: What they raise.
    """

    identity: tuple[str, str, int | None]
    number: int
    error: RemoteError


class Message(msgspec.Struct, frozen=True, array_like=True):
    """What a process sends at one step of a session; also the verdict on the step.

    Attributes:
        doing: What the sender does in this step, such as "writing"; empty if it gave up instead.
        size: Bytes of the value that the sender stored before it sent this message.
        error: Why the sender failed or, in a verdict, why the whole session failed.
        choice: A digest of what the sender has chosen, which must be equal on all processes.
    """

    doing: str
    size: int = 0
    error: RemoteError | None = None
    choice: str = ""


def _describe(error: RemoteError) -> str:
    """The error's text with its `places`; a report of mismatches has several lines and none."""
    return error.what if error.kind == "TemplateError" else str(error.to_exception())


def describe_failure(
    failed: Mapping[int, RemoteError],
    absent: Mapping[int, str],
    *,
    count: int,
    path: str,
    doing: str,
) -> RemoteError | None:
    """The one error that stands for all processes that failed or are absent; None if none are.

    An error that all processes have is passed on as it is, and an `AlreadyExists` if nothing else
    went wrong, since these concern the path and not a process.

    Args:
        failed: Why processes failed, by index.
        absent: What is known of those that can't be waited for, such as "left: KeyboardInterrupt".
        count: Number of processes in the job.
        path: What the call is about.
        doing: What the processes do; empty if the failure was between two steps.
    """
    errors = dict(sorted(failed.items()))
    first = next(iter(errors.values()), None)
    if first is not None and not absent:
        same = len(errors) == count > 1 and all(error == first for error in errors.values())
        if same or all(error.exists for error in errors.values()):
            return first
    during = f" while {doing}" if doing else ""
    if len(errors) == 1 and not absent:
        ((index, error),) = errors.items()
        text = f"Process {index} of {count} failed{during}: {error.what}"
        return RemoteError(text, error.kind, {"file": path} | error.places, process=index)
    texts = [
        *(
            f"process {i} of {count} failed{during}: {_describe(error)}"
            for i, error in errors.items()
        ),
        *(f"process {i} of {count} {why}{during}" for i, why in sorted(absent.items())),
    ]
    if not texts:
        return None
    rest = len(texts) - _MAX_NAMED
    text = "; ".join([*texts[:_MAX_NAMED], *([f"and {rest} more processes"] if rest > 0 else [])])
    places = {"file": path}
    if absent:
        places["hint"] = "the logs of these processes say why"
    kinds = {error.kind for error in errors.values()}
    return RemoteError(text[0].upper() + text[1:], kinds.pop() if len(kinds) == 1 else "", places)


def describe_disagreement(messages: Mapping[int, Message], path: str) -> RemoteError | None:
    """The error for processes at different steps of a session; None if all agree.

    Args:
        messages: The messages received at this step, by process.
        path: What the session is about.
    """
    processes = group_processes({i: message.doing for i, message in messages.items()})
    if len(processes) < 2:
        return _describe_other_choice(messages, path)
    expected, got, *_ = processes
    return RemoteError(
        f"Expected every process to be `{expected}`, got `{got}` on"
        f" {name_processes(processes[got])}",
        places={"file": path, "hint": "run the same version of templax on every process"},
    )


def _describe_other_choice(messages: Mapping[int, Message], path: str) -> RemoteError | None:
    processes = group_processes({i: message.choice for i, message in messages.items()})
    if len(processes) < 2:
        return None
    _, got, *_ = processes
    return RemoteError(
        "Expected every process to share the same reads, got another choice on"
        f" {name_processes(processes[got])} than on process 0",
        places={
            "file": path,
            "hint": "restore with the same template and options on every process",
        },
    )


def group_processes(values: Mapping[int, str]) -> dict[str, list[int]]:
    """Value → the processes that have it. That of process 0 comes first: it is the expected one."""
    groups: dict[str, list[int]] = {}
    for index, value in sorted(values.items()):
        groups.setdefault(value, []).append(index)
    return groups


def name_processes(indices: Sequence[int]) -> str:
    """`process 1`, or `processes 1, 3`."""
    listed = ", ".join(map(str, indices[:_MAX_NAMED]))
    rest = len(indices) - _MAX_NAMED
    noun = "process" if len(indices) == 1 else "processes"
    return f"{noun} {listed}" + (f" and {rest} more" if rest > 0 else "")
