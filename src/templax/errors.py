"""The exceptions that templax raises on purpose, and their hierarchy.

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
├── UsageError (ValueError)                an invalid argument, such as cast="loose"
└── MissingPackage (ImportError)           a package that this call needs is not installed

CastWarning (UserWarning)                  leaves were cast; one warning per call

`TemplateError` holds a `Match`, so both are defined in `_match.result`. `templax` exports all of
these classes.

Messages contain names from files, so they are escaped: they have no control characters, and a
single line except in a `TemplateError` and a `MappingError`. Attributes such as `leaf` and `file`
are not escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

from ._escape import escape_text

__all__ = [
    "AlreadyExists",
    "CastWarning",
    "CheckpointError",
    "Corrupted",
    "MappingError",
    "Mismatch",
    "MissingPackage",
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

_MAX_SHOWN = 20
"""Maximum number of problems in the text of a `MappingError`."""

NOT_READ = "one that templax does not read"
"""What a mismatch found where the checkpoint has a leaf that templax does not read."""

Problem = Literal["missing", "extra", "shape", "dtype", "kind", "sharding", "ambiguous"]


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One way in which a checkpoint does not fit a template.

    Attributes:
        problem: The kind of difference.
        name: Name of the leaf, which is its key path joined by `.`, as in the template. For
            "extra", as in the checkpoint after `at` and `rename` were applied.
        expected: What the template asks for, such as `(4096, 512)` or `bfloat16`.
        found: What the checkpoint holds, in the same form.
        hint: What to write instead, or None. A hint is only given after it was tried.
        note: Another helpful fact, such as the nearest name, or None.
    """

    problem: Problem
    name: str
    expected: str
    found: str
    hint: str | None = None
    note: str | None = None

    @property
    def fact(self) -> str:
        """The message without the hint."""
        match self.problem:
            case "dtype" if self.expected == self.found:  # it fits, but no `jax.Array` holds it
                text = f"Expected a dtype that a jax.Array holds, got `{self.found}`"
            case "shape" | "dtype":
                text = f"Expected {self.problem} `{self.expected}`, got `{self.found}`"
            case "missing":
                text = f"Expected a leaf, found {self.found}"
            case "extra":
                found = self.found if self.found == NOT_READ else f"`{self.found}`"
                text = f"Expected no leaf, found {found}"
            case _:
                text = f"Expected {self.expected}, got {self.found}"
        text = f"{text} - at `{self.name}`" if self.name else f"{text} - at the leaf itself"
        return escape_text(f"{text}; {self.note}" if self.note else text)

    def __str__(self) -> str:
        return escape_text(f"{self.fact}; hint: {self.hint}") if self.hint else self.fact


class TemplaxError(Exception):
    """Base class of all errors that templax raises on purpose."""

    def __init__(self, *arguments: object):
        super().__init__(*[escape_text(a) if isinstance(a, str) else a for a in arguments])


class CheckpointError(TemplaxError):
    """The checkpoint cannot be read.

    Attributes:
        what: What is wrong, without the location.
        leaf: Name of the leaf concerned, or None if the error does not concern a single leaf.
        file: Path of the file concerned, or None if unknown.
        start, stop: Half-open byte range in `file`, or None.
        hint: What to do about it, or None.
        box: The elements of the leaf concerned, as one half-open index range per dimension, or
            None.
        stored_as: In a view, the name that the leaf, or the part of it concerned, is stored under,
            or None.

    Example:
        >>> error = CheckpointError("Expected 4 bytes, got 3", file="d/0", start=8, stop=12)
        >>> print(error)
        Expected 4 bytes, got 3 - file `d/0`, bytes 8-12
        >>> error.what, error.start
        ('Expected 4 bytes, got 3', 8)
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
        stored_as: str | None = None,
    ):
        places = []
        if leaf is not None:
            places.append(f"at `{leaf}`")
        if stored_as not in (None, leaf):
            places.append(f"stored as `{stored_as}`")
        if box:
            places.append(f"elements [{', '.join(f'{a}:{b}' for a, b in box)}]")
        if file is not None:
            places.append(f"file `{file}`")
        if start is not None and stop is not None:
            places.append(f"bytes {start}-{stop}")
        text = f"{what} - {', '.join(places)}" if places else what
        super().__init__(f"{text}; hint: {hint}" if hint else text)
        self.what, self.leaf, self.file = escape_text(what), leaf, file
        self.start, self.stop, self.hint, self.box = start, stop, hint, box
        self.stored_as = stored_as

    def locate(
        self,
        *,
        leaf: str | None = None,
        file: str | None = None,
        start: int | None = None,
        stop: int | None = None,
        box: tuple[tuple[int, int], ...] | None = None,
        stored_as: str | None = None,
    ) -> Self:
        """Returns a copy of the error with a more precise location.

        For a stage that catches the error and knows more, such as the leaf. What the error already
        specifies is kept.
        """
        return type(self)(
            self.what,
            leaf=self.leaf if self.leaf is not None else leaf,
            file=self.file if self.file is not None else file,
            start=self.start if self.start is not None else start,
            stop=self.stop if self.stop is not None else stop,
            hint=self.hint,
            box=self.box if self.box is not None else box,
            stored_as=self.stored_as if self.stored_as is not None else stored_as,
        )


class NotFound(CheckpointError, FileNotFoundError):
    """Nothing exists at the path."""

    __str__ = Exception.__str__


class UnknownFormat(CheckpointError, ValueError):
    """The path does not hold a checkpoint that templax reads. The message says what it holds."""


class Unsupported(CheckpointError):
    """The checkpoint uses a codec, dtype or storage option that templax does not read."""


class Uncommitted(CheckpointError):
    """The save that wrote this directory never finished."""


class Unverified(CheckpointError):
    """Some bytes have no checksum, which `verify="required"` asks for. Nothing was read."""


class Corrupted(CheckpointError):
    """Bytes are missing, cut short or altered. Nothing was restored."""


class SourceError(TemplaxError, OSError):
    """The storage failed, or a file changed while it was read."""

    __str__ = Exception.__str__


class SaveError(TemplaxError):
    """A checkpoint could not be saved.

    No partial checkpoint is visible, and an existing checkpoint at the path is unchanged.

    Attributes:
        what: What is wrong, without the location.
        leaf: Name of the leaf concerned, or None.
        file: Path of the file or directory concerned, or None.
        hint: What to do about it, or None.
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
        self.what, self.leaf, self.file, self.hint = escape_text(what), leaf, file, hint


class AlreadyExists(SaveError, FileExistsError):
    """Something exists at the path, and `overwrite=True` was not given."""

    __str__ = Exception.__str__


class MappingError(TemplaxError, ValueError):
    """A mapping that is not valid, or does not fit its trees. Raised before any array data is read.

    Each problem begins with the rule that has it and ends with what to write instead.

    Attributes:
        problems: All of them, one line each. The text shows the first 20.

    Example:
        >>> print(MappingError(["`w`: `h` is on the left only: give select={'h': 0}"]))
        `w`: `h` is on the left only: give select={'h': 0}
    """

    def __init__(self, problems: str | Sequence[str]):
        listed = (problems,) if isinstance(problems, str) else problems
        self.problems = tuple(map(escape_text, listed))
        super().__init__(self.problems)

    def __str__(self) -> str:
        lines = list(self.problems[:_MAX_SHOWN])
        if len(self.problems) > _MAX_SHOWN:
            lines.append(f"and {len(self.problems) - _MAX_SHOWN:,} more problems")
        return "\n".join(lines)


class UsageError(TemplaxError, ValueError):
    """An invalid argument."""


class MissingPackage(TemplaxError, ImportError):
    """A package that this call needs is not installed: templax works without it otherwise.

    Attributes:
        name: The package, such as "jax".
        hint: The command that installs it.
    """

    def __init__(self, what: str, *, name: str | None = None, hint: str | None = None):
        super().__init__(f"{what}; hint: {hint}" if hint else what)
        self.name, self.hint = name, hint


class CastWarning(UserWarning):
    """Leaves were cast to the template's dtype. A call issues one warning for all its leaves."""
