"""Which steps of a run stay: a rule, and what it says of a set of steps. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .._core.arguments import check_int
from ..errors import UsageError


@dataclass(frozen=True, slots=True)
class Keep:
    """Which steps of a run stay when another one was saved; the others are deleted.

    A step stays if one of the rules keeps it. The latest always stays.

    Attributes:
        last: This many of the latest.
        every: Those whose number is a multiple of this; 0 is one.
        best: This many of the best by `metric`; of equal ones the later. A step without that
            metric, or where it is NaN or no number, is never one of them.
        metric: A name in the `metrics=` that steps are saved with.
        mode: Whether the least or the greatest is the best.

    Raises:
        UsageError: No rule, a number below 1, or one of `best` and `metric` without the other.

    Example:
        >>> import templax as tx
        >>> tx.Keep(last=3, every=1000)
        Keep(last=3, every=1000, best=None, metric=None, mode='min')
    """

    last: int | None = None
    every: int | None = None
    best: int | None = None
    metric: str | None = None
    mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        for name in ("last", "every", "best"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, check_int(name, value))
        if self.last is None and self.every is None and self.best is None:
            raise UsageError("Expected a rule, last=, every= or best=, got none")
        if (self.best is None) != (self.metric is None):
            given, lacking = ("best", "metric") if self.metric is None else ("metric", "best")
            raise UsageError(f"Expected {lacking}= with {given}=, got none")
        if not (self.metric is None or isinstance(self.metric, str)):
            raise UsageError(f"Expected metric= a name (str), got {self.metric!r}")
        check_mode(self.mode)


def as_keep(keep: Keep | int | None) -> Keep | None:
    """The rule that a caller gave: a number is so many of the latest."""
    if keep is None or isinstance(keep, Keep):
        return keep
    if not hasattr(keep, "__index__"):
        raise UsageError(f"Expected keep= a number of steps or a templax.Keep, got {keep!r}")
    return Keep(last=check_int("keep", keep))


def select_kept(steps: Mapping[int, Mapping[str, Any]], keep: Keep) -> dict[int, str]:
    """The steps that stay, ascending, and why in words.

    Args:
        steps: The committed ones: number → metrics.
        keep: The rule.
    """
    order = sorted(steps)
    why: dict[int, list[str]] = {step: [] for step in order}
    for step in order[-1:]:
        why[step].append("the latest")
    if keep.last is not None:
        for step in order[-keep.last :]:
            why[step].append(f"last {keep.last}")
    if keep.every is not None:
        for step in order:
            if step % keep.every == 0:
                why[step].append(f"every {keep.every}")
    if keep.best is not None and keep.metric is not None:
        for step in rank_steps(steps, keep.metric, keep.mode)[: keep.best]:
            why[step].append(f"best {keep.best} by {keep.metric}")
    return {step: ", ".join(reasons) for step, reasons in why.items() if reasons}


def rank_steps(
    steps: Mapping[int, Mapping[str, Any]], metric: str, mode: Literal["min", "max"]
) -> list[int]:
    """The steps that have the metric as a number, the best first; of equal ones the later."""
    check_mode(mode)
    sign = 1 if mode == "min" else -1
    values = {step: metrics[metric] for step, metrics in steps.items() if metric in metrics}
    values = {step: value for step, value in values.items() if is_number(value)}
    return sorted(values, key=lambda step: (sign * values[step], -step))


def is_number(value: Any) -> bool:
    """Whether a metric can be compared: a NaN can't, and `true` is no number."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and value == value


def check_mode(mode: str) -> None:
    """Refuses what is neither `"min"` nor `"max"`."""
    if mode not in ("min", "max"):
        raise UsageError(f'Expected mode="min" or "max", got {mode!r}')
