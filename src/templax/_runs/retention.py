"""The rule for which steps of a run stay, and its application to a set of steps. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .._core.arguments import check_int
from ..errors import UsageError

KeepSteps = Callable[[list[int]], Iterable[int]]
"""Gets the numbers of the committed steps, ascending, and returns those of the steps that stay."""


@dataclass(frozen=True, slots=True)
class Keep:
    """Which steps of a run stay after another one was saved. The others are deleted.

    A step stays if at least one of the rules `last`, `every` and `best` keeps it. The latest step
    always stays.

    Attributes:
        last: How many of the latest steps stay.
        every: Steps whose number is a multiple of this, or of one of several numbers, stay,
            including step 0.
        best: How many of the best steps by `metric` stay; the later one if several tie. Steps
            without the metric, or where it is NaN or not a number, do not count. A step
            whose metrics are unreadable stays. A manager deletes nothing while no step has the
            metric, and warns.
        metric: A name in the `metrics=` that steps are saved with.
        mode: Whether the lowest ("min") or the highest ("max") value is best.

    Raises:
        UsageError: There is no rule, a number is below 1, or only one of `best` and `metric` is
            given.

    Example:
        >>> import templax as tx
        >>> tx.Keep(last=3, every=[300, 1000])
        Keep(last=3, every=(300, 1000), best=None, metric=None, mode='min')
    """

    last: int | None = None
    every: int | Iterable[int] | None = None
    best: int | None = None
    metric: str | None = None
    mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        for name in ("last", "best"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, check_int(name, value))
        object.__setattr__(self, "every", _check_every(self.every))
        if self.last is None and self.every is None and self.best is None:
            raise UsageError("Expected a rule, last=, every= or best=, got none")
        if (self.best is None) != (self.metric is None):
            given, lacking = ("best", "metric") if self.metric is None else ("metric", "best")
            raise UsageError(f"Expected {lacking}= with {given}=, got none")
        if not (self.metric is None or isinstance(self.metric, str)):
            raise UsageError(f"Expected metric= a name (str), got {self.metric!r}")
        check_mode(self.mode)


def _check_every(every: Any) -> int | tuple[int, ...] | None:
    """The numbers whose multiples stay; a single one by itself."""
    if every is None:
        return None
    if not isinstance(every, Iterable) or isinstance(every, (str, bytes)):
        return check_int("every", every)
    numbers = tuple(check_int("every", number) for number in every)
    if not numbers:
        raise UsageError("Expected every= a number or several, got none")
    first, *others = numbers
    return numbers if others else first


def as_keep(keep: Keep | KeepSteps | int | None) -> Keep | KeepSteps | None:
    """A caller's `keep=` as a rule. A number stands for that many of the latest steps."""
    if keep is None or isinstance(keep, Keep):
        return keep
    if callable(keep) and not isinstance(keep, type):
        return keep
    if not hasattr(keep, "__index__"):
        raise UsageError(
            f"Expected keep= a number of steps, a templax.Keep or a function, got {keep!r}"
        )
    return Keep(last=check_int("keep", keep))


def select_kept(steps: Mapping[int, Mapping[str, Any]], keep: Keep | KeepSteps) -> dict[int, str]:
    """The steps that stay, ascending, each with the reason in words.

    Args:
        steps: The committed steps: number → metrics.
        keep: The rule.

    Raises:
        UsageError: The rule is a function that failed, or returned something else than steps.
    """
    order = sorted(steps)
    reasons: dict[int, list[str]] = {step: [] for step in order}
    for step in order[-1:]:
        reasons[step].append("the latest")
    if not isinstance(keep, Keep):
        for step in _call_rule(keep, order):
            reasons[step].append("chosen by keep=")
        return {step: ", ".join(each) for step, each in reasons.items() if each}
    if keep.last is not None:
        for step in order[-keep.last :]:
            reasons[step].append(f"last {keep.last}")
    for every in (keep.every,) if isinstance(keep.every, int) else keep.every or ():
        for step in order:
            if step % every == 0:
                reasons[step].append(f"every {every}")
    if keep.best is not None and keep.metric is not None:
        for step in rank_steps(steps, keep.metric, keep.mode)[: keep.best]:
            reasons[step].append(f"best {keep.best} by {keep.metric}")
    return {step: ", ".join(each) for step, each in reasons.items() if each}


def _call_rule(keep: KeepSteps, steps: list[int]) -> set[int]:
    """What a caller's function keeps, which must be steps that it got: a mistake deletes others."""
    try:
        kept = {check_int("step", step, minimum=0) for step in keep(list(steps))}
    except Exception as error:
        raise UsageError(
            f"Expected keep= to return the steps that stay, got {type(error).__name__}: {error}"
        ) from error
    unknown = sorted(kept - set(steps))
    if unknown:
        raise UsageError(
            f"Expected keep= to return some of the steps that it got, got {unknown[0]} as well"
        )
    return kept


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
