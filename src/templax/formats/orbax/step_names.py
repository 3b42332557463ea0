"""The names of the directories of steps: their numbers, prefixes and padding. No I/O."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import msgspec

from ...storage.marks import TEMPORARY
from ...storage.source import Source

PARTIAL_SAVE = ".partial_save"
"""The name of a session of Orbax's partial saves ends like this until it is finalized."""

T5X_TEMPORARY = re.compile(r"(checkpoint_[0-9]+)\.tmp-[0-9]+")
"""The name of a directory to which T5X writes, before it renames it."""

STEP_NAME = re.compile(
    r"(?P<prefix>(?:.+[_-]|epoch|step|ckpt|checkpoint|iter)?)(?P<number>[0-9]{1,18})"
)


class Step(msgspec.Struct, frozen=True, gc=False):
    """One step in a directory of steps.

    Attributes:
        step: Number of the step.
        key: Name of its directory, such as `10` or `ckpt_00000010`.
        problem: Why the save is not finished; None if it seems to be.
    """

    step: int
    key: str
    problem: str | None = None

    @property
    def committed(self) -> bool:
        return self.problem is None


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """Sorts `ckpt2` before `ckpt10`."""
    parts = re.split(r"(\d{1,18})", name)
    return [(0, int(p), p) if i % 2 else (1, 0, p) for i, p in enumerate(parts)]


def step_name(step: int, found: Sequence[Step]) -> str:
    """The name for a new step, with the prefix and padding that most of `found` have.

    >>> step_name(30, [Step(7, "ckpt_007"), Step(20, "ckpt_020")]), step_name(30, [Step(20, "20")])
    ('ckpt_030', '30')
    """
    named = [s.key for s in found if not is_temporary(s.key)]
    if not named:
        return str(step)
    counts = Counter(map(step_prefix, named))
    prefix = max(map(step_prefix, reversed(named)), key=lambda p: counts[p])
    # Only a leading zero tells the width: 100 may come from padding to two digits or to three.
    numbers = [key[len(prefix) :] for key in named if step_prefix(key) == prefix]
    width = max((len(n) for n in numbers if n.startswith("0") and len(n) > 1), default=0)
    return f"{prefix}{step:0{width}d}"


def step_prefix(key: str) -> str:
    """The part of a step's name before the number, including the `_` or `-`.

    >>> step_prefix("ckpt_00000010"), step_prefix("epoch-12"), step_prefix("10")
    ('ckpt_', 'epoch-', '')
    """
    match = STEP_NAME.fullmatch(final_name(key))
    return match["prefix"] if match is not None else ""


def list_prefixes(steps: Sequence[Step]) -> list[str]:
    """What the names of the committed steps have before their numbers.

    If there are several, these are not the steps of one run.
    """
    return list(dict.fromkeys(step_prefix(step.key) for step in steps if step.committed))


def step_number(source: Source) -> int | None:
    """The step number in the name of a directory; None if it isn't the name of a step."""
    match = STEP_NAME.fullmatch(basename(source))
    return int(match["number"]) if match else None


def basename(source: Source) -> str:
    """The last component of a source's URL."""
    return source.url.rstrip("/").rpartition("/")[2]


def is_temporary(name: str) -> bool:
    """Whether a save that is to become a checkpoint of another name is, or was, written here."""
    is_t5x = T5X_TEMPORARY.fullmatch(name.rstrip("/")) is not None
    return is_t5x or TEMPORARY in name or name.endswith(PARTIAL_SAVE)


def final_name(name: str) -> str:
    """The name of the step that a directory of this name is, or is to become."""
    found = T5X_TEMPORARY.fullmatch(name.rstrip("/"))
    return found[1] if found else name.partition(TEMPORARY)[0].removesuffix(PARTIAL_SAVE)
