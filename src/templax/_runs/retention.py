"""The rule for which steps of a run stay, and its application to a set of steps. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .._core.arguments import check_int
from ..errors import UsageError


@dataclass(frozen=True, slots=True)
class Keep:
    """Which steps of a run stay after another one was saved. The others are deleted.

    A step stays if at least one of the rules `last`, `every` and `best` keeps it. The latest step
    always stays.

    Attributes:
        last: How many of the latest steps stay.
        every: Steps whose number is a multiple of this stay, including step 0.
        best: How many of the best steps by `metric` stay; the later one if several tie. Steps
            without the metric, or where it is NaN or not a number, do not count.
        metric: A name in the `metrics=` that steps are saved with.
        mode: Whether the lowest ("min") or the highest ("max") value is best.

    Raises:
        UsageError: There is no rule, a number is below 1, or only one of `best` and `metric` is
            given.

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
    """A caller's `keep=` as a rule. A number stands for that many of the latest steps."""
    if keep is None or isinstance(keep, Keep):
        return keep
    if not hasattr(keep, "__index__"):
        raise UsageError(f"Expected keep= a number of steps or a templax.Keep, got {keep!r}")
    return Keep(last=check_int("keep", keep))


def select_kept(steps: Mapping[int, Mapping[str, Any]], keep: Keep) -> dict[int, str]:
    """The steps that stay, ascending, each with the reason in words.

    Args:
        steps: The committed steps: number → metrics.
        keep: The rule.
    """
    order = sorted(steps)
    reasons: dict[int, list[str]] = {step: [] for step in order}
    for step in order[-1:]:
        reasons[step].append("the latest")
    if keep.last is not None:
        for step in order[-keep.last :]:
            reasons[step].append(f"last {keep.last}")
    if keep.every is not None:
        for step in order:
            if step % keep.every == 0:
                reasons[step].append(f"every {keep.every}")
    if keep.best is not None and keep.metric is not None:
        for step in rank_steps(steps, keep.metric, keep.mode)[: keep.best]:
            reasons[step].append(f"best {keep.best} by {keep.metric}")
    return {step: ", ".join(each) for step, each in reasons.items() if each}


def rank_steps(
    steps: Mapping[int, Mapping[str, Any]], metric: str, mode: Literal["min", "max"]
) -> list[int]:
    """The steps that have the metric as a number, best first; of equal ones the later first."""
    check_mode(mode)
    sign = 1 if mode == "min" else -1
    values = {step: metrics[metric] for step, metrics in steps.items() if metric in metrics}
    values = {step: value for step, value in values.items() if is_number(value)}
    return sorted(values, key=lambda step: (sign * values[step], -step))


def is_number(value: Any) -> bool:
    """Whether a metric can be compared. NaN cannot, and a bool is not a number."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and value == value  # NaN is not equal to itself


def check_mode(mode: str) -> None:
    """Refuses a mode other than `"min"` and `"max"`."""
    if mode not in ("min", "max"):
        raise UsageError(f'Expected mode="min" or "max", got {mode!r}')
