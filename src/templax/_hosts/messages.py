"""The messages that the processes of a job exchange during a save, and the errors they agree on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from ..errors import AlreadyExists, SaveError

_MAX_NAMED = 8
"""An error names at most this many processes."""


class RemoteError(msgspec.Struct, frozen=True, array_like=True):
    """An error in the form in which one process sends it to another.

    Attributes:
        what, leaf, file, hint: See `SaveError`.
        exists: Whether the error is an `AlreadyExists`.
    """

    what: str
    leaf: str | None = None
    file: str | None = None
    hint: str | None = None
    exists: bool = False

    @classmethod
    def from_exception(cls, error: BaseException) -> RemoteError:
        """Keeps the parts of a `SaveError`; any other exception becomes text."""
        if not isinstance(error, SaveError):
            return cls(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
        exists = isinstance(error, AlreadyExists)
        return cls(error.what, error.leaf, error.file, error.hint, exists)

    def to_exception(self) -> SaveError:
        """The exception that the receiver raises."""
        kind = AlreadyExists if self.exists else SaveError
        return kind(self.what, leaf=self.leaf, file=self.file, hint=self.hint)


class Message(msgspec.Struct, frozen=True, array_like=True):
    """What a process sends at one step of a save; also the verdict on the step.

    Attributes:
        path: Where the sender saves.
        doing: What the sender does in this step, such as "writing"; empty if it gave up instead.
        size: Bytes of the value that the sender stored before it sent this message.
        error: Why the sender failed or, in a verdict, why the whole save failed.
    """

    path: str
    doing: str
    size: int = 0
    error: RemoteError | None = None


def describe_failure(
    messages: Mapping[int, Message],
    lost: Sequence[tuple[int, float]],
    *,
    count: int,
    path: str,
    doing: str,
) -> RemoteError | None:
    """The one error that stands for all processes that failed or were lost; None if none did.

    An `AlreadyExists` is passed on as it is if nothing else went wrong, since it concerns the path
    and not a process.

    Args:
        messages: The messages received at this step, by process.
        lost: Processes that are considered lost, each with the limit in seconds that it exceeded.
        count: Number of processes in the job.
        path: Where the save goes.
        doing: What the processes do in this step; empty if the failure was between two steps.
    """
    errors = {i: message.error for i, message in sorted(messages.items()) if message.error}
    if errors and not lost and all(error.exists for error in errors.values()):
        return next(iter(errors.values()))
    during = f" while {doing}" if doing else ""
    if len(errors) == 1 and not lost:
        ((index, error),) = errors.items()
        text = f"Process {index} of {count} failed{during}: {error.what}"
        return RemoteError(text, error.leaf, error.file or path, error.hint)
    texts = [
        *(
            f"process {i} of {count} failed{during}: {error.to_exception()}"
            for i, error in errors.items()
        ),
        *(f"process {i} of {count} did not answer within {s:g} s{during}" for i, s in lost),
    ]
    if not texts:
        return None
    rest = len(texts) - _MAX_NAMED
    text = "; ".join([*texts[:_MAX_NAMED], *([f"and {rest} more processes"] if rest > 0 else [])])
    hint = "the logs of these processes say why" if lost else None
    return RemoteError(text[0].upper() + text[1:], file=path, hint=hint)


def describe_disagreement(messages: Mapping[int, Message], path: str) -> RemoteError | None:
    """The error for processes at different saves, or at different steps of one; None if all agree.

    Args:
        messages: The messages received at this step, by process.
        path: Where process 0 saves.
    """
    for fact, expectation in (("path", "to save to"), ("doing", "to be")):
        processes: dict[str, list[int]] = {}
        for index, message in sorted(messages.items()):
            processes.setdefault(getattr(message, fact), []).append(index)
        if len(processes) > 1:
            expected, got, *_ = processes  # process 0 comes first: the others are held to it
            others = ", ".join(map(str, processes[got][:_MAX_NAMED]))
            return RemoteError(
                f"Expected every process {expectation} `{expected}`, got `{got}` on process"
                f" {others}",
                file=path,
                hint="make the same saves in the same order on every process",
            )
    return None
