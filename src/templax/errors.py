"""The errors that templax raises on purpose.

TemplaxError
├── TemplateError (ValueError)             the checkpoint does not fit the template
├── CheckpointError                        the checkpoint cannot be read
│   ├── NotFound (FileNotFoundError)       nothing exists at the path
│   ├── UnknownFormat (ValueError)         not a checkpoint that templax reads
│   ├── Unsupported                        a feature that templax does not read
│   ├── Uncommitted                        a save that never finished
│   ├── Unverified                         bytes without a checksum, under verify="required"
│   └── Corrupted                          bytes missing, cut short or altered
├── SourceError (OSError)                  the storage failed, or a file changed while it was read
├── SaveError                              nothing was saved; an existing checkpoint is untouched
│   └── AlreadyExists (FileExistsError)    the path is taken
└── UsageError (ValueError)                an invalid argument, such as cast="loose"

CastWarning (UserWarning)                  one per call: the leaves that were cast

`TemplateError` carries a `Match`, so it is defined beside it, in `_match.result`; `templax` exports
all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "AlreadyExists",
    "CastWarning",
    "CheckpointError",
    "Corrupted",
    "Mismatch",
    "NotFound",
    "SaveError",
    "SourceError",
    "TemplaxError",
    "Uncommitted",
    "UnknownFormat",
    "Unsupported",
    "Unverified",
    "UsageError",
]

Problem = Literal["missing", "extra", "shape", "dtype", "kind", "sharding", "ambiguous"]


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One way in which a checkpoint does not fit a template.

    Attributes:
        problem: What kind of difference it is.
        name: The leaf's name: its key path joined by `.`, as the template spells it
            (for `extra`: as the checkpoint spells it after `at` and `rename`).
        expected: What the template asks for, such as `(4096, 512)` or `bfloat16`.
        found: What the checkpoint holds, in the same words.
        hint: What to write instead, or None. Every hint was tried before it is given.
        note: A fact that helps, such as the nearest name, or None.
    """

    problem: Problem
    name: str
    expected: str
    found: str
    hint: str | None = None
    note: str | None = None

    @property
    def fact(self) -> str:
        """The sentence without its hint."""
        match self.problem:
            case "shape" | "dtype":
                text = f"Expected {self.problem} `{self.expected}`, got `{self.found}`"
            case "missing":
                text = f"Expected a leaf, found {self.found}"
            case "extra":
                text = f"Expected no leaf, found `{self.found}`"
            case _:
                text = f"Expected {self.expected}, got {self.found}"
        text = f"{text} - at `{self.name}`" if self.name else f"{text} - at the leaf itself"
        return f"{text}; {self.note}" if self.note else text

    def __str__(self) -> str:
        return f"{self.fact}; hint: {self.hint}" if self.hint else self.fact


class TemplaxError(Exception):
    """The base class of all errors that templax raises on purpose."""


class CheckpointError(TemplaxError):
    """The checkpoint cannot be read.

    Attributes:
        what: What is wrong, without where.
        leaf: Name of the leaf concerned, or None if the error does not concern a single leaf.
        file: Path of the file concerned, if known.
        start, stop: Half-open byte range in `file`, or None.
        hint: What to do, or None.
        box: Half-open index range per dimension of the elements concerned, or None.
    """

    def __init__(
        self,
        what: str,
        *,
        leaf: str | None = None,
        file: str | None = None,
        start: int | None = None,
        stop: int | None = None,
        hint: str | None = None,
        box: tuple[tuple[int, int], ...] | None = None,
    ):
        places = []
        if leaf is not None:
            places.append(f"at `{leaf}`")
        if box:
            places.append(f"elements [{', '.join(f'{a}:{b}' for a, b in box)}]")
        if file is not None:
            places.append(f"file `{file}`")
        if start is not None and stop is not None:
            places.append(f"bytes {start}-{stop}")
        text = f"{what} - {', '.join(places)}" if places else what
        super().__init__(f"{text}; hint: {hint}" if hint else text)
        self.what, self.leaf, self.file = what, leaf, file
        self.start, self.stop, self.hint, self.box = start, stop, hint, box

    def locate(
        self,
        *,
        leaf: str | None = None,
        file: str | None = None,
        start: int | None = None,
        stop: int | None = None,
        box: tuple[tuple[int, int], ...] | None = None,
    ) -> CheckpointError:
        """A copy of the error with the places that only an outer stage knows filled in."""
        return type(self)(
            self.what,
            leaf=self.leaf if self.leaf is not None else leaf,
            file=self.file if self.file is not None else file,
            start=self.start if self.start is not None else start,
            stop=self.stop if self.stop is not None else stop,
            hint=self.hint,
            box=self.box if self.box is not None else box,
        )


class NotFound(CheckpointError, FileNotFoundError):
    """Nothing exists at the path."""

    __str__ = Exception.__str__


class UnknownFormat(CheckpointError, ValueError):
    """The path does not hold a checkpoint that templax reads; the text says what it does hold."""


class Unsupported(CheckpointError):
    """The checkpoint uses a codec, dtype or storage option that templax does not read."""


class Uncommitted(CheckpointError):
    """The save that wrote this directory never finished."""


class Unverified(CheckpointError):
    """Under `verify="required"`, some bytes have no checksum. Nothing was read."""


class Corrupted(CheckpointError):
    """Bytes are missing, cut short or altered. Nothing was restored."""


class SourceError(TemplaxError, OSError):
    """The storage failed, or a file changed while it was read."""

    __str__ = Exception.__str__


class SaveError(TemplaxError):
    """A checkpoint could not be saved. Nothing is half-written; an existing one is untouched.

    Attributes:
        what: What is wrong.
        leaf: Name of the leaf concerned, or None.
        file: Path of the file or directory concerned, or None.
        hint: What to do, or None.
    """

    def __init__(
        self,
        what: str,
        *,
        leaf: str | None = None,
        file: str | None = None,
        hint: str | None = None,
    ):
        places = [] if leaf is None else [f"at `{leaf}`"]
        places += [] if file is None else [f"file `{file}`"]
        text = f"{what} - {', '.join(places)}" if places else what
        super().__init__(f"{text}; hint: {hint}" if hint else text)
        self.what, self.leaf, self.file, self.hint = what, leaf, file, hint


class AlreadyExists(SaveError, FileExistsError):
    """The path is taken, and `overwrite=True` was not given."""

    __str__ = Exception.__str__


class UsageError(TemplaxError, ValueError):
    """An invalid argument."""


class CastWarning(UserWarning):
    """Leaves were cast to the template's dtype. Each call issues one warning for all of them."""
