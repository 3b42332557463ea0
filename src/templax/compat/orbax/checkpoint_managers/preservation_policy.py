"""Orbax's preservation policies: which steps of a run stay after another one was saved.

A policy gets the steps in the order in which they were saved and answers for each whether it stays.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass, field
from typing import Any, Protocol

import templax as tx

from .policy_checkpoint_info import PolicyCheckpointInfo

__all__ = [
    "AnyPreservationPolicy",
    "BestN",
    "CustomSteps",
    "EveryNSeconds",
    "EveryNSteps",
    "EveryNStepsClosest",
    "LatestDuration",
    "LatestN",
    "PreservationContext",
    "PreservationPolicy",
    "PreserveAll",
]

Steps = Sequence[PolicyCheckpointInfo]


@dataclass(kw_only=True)
class PreservationContext:
    """What else a policy is told: nothing so far."""


class PreservationPolicy(Protocol):
    """What every policy does; one of your own needs no base class.

    Example:
        >>> class EvenSteps:
        ...     def should_preserve(self, checkpoints, *, context):
        ...         return [each.step % 2 == 0 for each in checkpoints]
    """

    def should_preserve(
        self, checkpoints: Steps, *, context: PreservationContext
    ) -> Sequence[bool]:
        """Whether each step stays.

        Args:
            checkpoints: The steps in the order of their saves; the last one was just saved.
            context: Nothing so far.
        """
        ...


@dataclass
class PreserveAll:
    """Every step stays."""

    def should_preserve(self, checkpoints: Steps, *, context: PreservationContext) -> list[bool]:
        """See `PreservationPolicy`."""
        return [True] * len(checkpoints)


@dataclass
class LatestN:
    """The last `n` steps stay; all if `n` is None.

    Example:
        >>> from templax.compat import orbax as ocp
        >>> policy = ocp.checkpoint_managers.LatestN(3)
        >>> ocp.CheckpointManagerOptions(preservation_policy=policy).max_to_keep is None
        True
    """

    n: int | None = None

    def should_preserve(self, checkpoints: Steps, *, context: PreservationContext) -> list[bool]:
        """See `PreservationPolicy`."""
        first = 0 if self.n is None else max(0, len(checkpoints) - self.n)
        return [i >= first for i in range(len(checkpoints))]


@dataclass
class EveryNSeconds:
    """The first step stays, and each one that was saved this long after the last that stays."""

    interval_secs: float

    def should_preserve(self, checkpoints: Steps, *, context: PreservationContext) -> list[bool]:
        """See `PreservationPolicy`."""
        interval = datetime.timedelta(seconds=self.interval_secs)
        stays: list[bool] = []
        last: datetime.datetime | None = None
        for each in checkpoints:
            time = each.time
            stays.append(last is None or time - last >= interval)
            last = time if stays[-1] else last
        return stays


@dataclass
class EveryNSteps:
    """Steps at this interval stay.

    Attributes:
        interval_steps: The interval, not 0.
        exact_interval: Whether multiples of the interval stay. If not, the first step stays, and
            each one at least this far from the last that stays.
        max_to_keep: How many of them stay at most, the latest; None for all.
    """

    interval_steps: int
    exact_interval: bool = True
    max_to_keep: int | None = None

    def should_preserve(self, checkpoints: Steps, *, context: PreservationContext) -> list[bool]:
        """See `PreservationPolicy`."""
        _check_interval(self.interval_steps)
        stays: list[bool] = []
        last: int | None = None
        for each in checkpoints:
            if self.exact_interval:
                stays.append(each.step % self.interval_steps == 0)
            else:
                stays.append(last is None or each.step - last >= self.interval_steps)
                last = each.step if stays[-1] else last
        return _keep_latest(stays, self.max_to_keep)


@dataclass
class EveryNStepsClosest:
    """Of the steps around each multiple of the interval, the closest stays; and the last step.

    Attributes:
        interval_steps: The interval, not 0.
        max_to_keep: How many of them stay at most, the latest; None for all.
    """

    interval_steps: int
    max_to_keep: int | None = None

    def should_preserve(self, checkpoints: Steps, *, context: PreservationContext) -> list[bool]:
        """See `PreservationPolicy`."""
        _check_interval(self.interval_steps)
        closest: dict[int, tuple[int, int]] = {}
        for i, each in enumerate(checkpoints):
            multiple = round(each.step / self.interval_steps)
            distance = abs(each.step - multiple * self.interval_steps)
            # Of two that are equally close, the later one.
            if multiple not in closest or distance <= closest[multiple][0]:
                closest[multiple] = distance, i
        chosen = {i for _, i in closest.values()} | {len(checkpoints) - 1}
        return _keep_latest([i in chosen for i in range(len(checkpoints))], self.max_to_keep)


@dataclass
class CustomSteps:
    """The steps of these numbers stay."""

    steps: InitVar[Sequence[int]]
    _numbers: frozenset[int] = field(init=False)

    def __post_init__(self, steps: Sequence[int]) -> None:
        self._numbers = frozenset(steps)

    def should_preserve(self, checkpoints: Steps, *, context: PreservationContext) -> list[bool]:
        """See `PreservationPolicy`."""
        return [each.step in self._numbers for each in checkpoints]


@dataclass
class AnyPreservationPolicy:
    """A step stays if one of several policies keeps it."""

    policies: Sequence[PreservationPolicy]

    def should_preserve(self, checkpoints: Steps, *, context: PreservationContext) -> list[bool]:
        """See `PreservationPolicy`."""
        stays = [False] * len(checkpoints)
        for policy in self.policies:
            if all(stays):  # the others might read files to answer
                break
            answer = ask_policy(policy, checkpoints, context)
            stays = [a or b for a, b in zip(stays, answer, strict=True)]
        return stays


@dataclass(kw_only=True)
class BestN:
    """The best steps stay.

    Attributes:
        get_metric_fn: Computes the number to compare from a step's metrics.
        reverse: Whether low numbers are better than high ones.
        n: How many stay; None for all. The later one stays if several tie. NaN is never the best.
        keep_checkpoints_without_metrics: Whether steps without metrics stay as well.
    """

    get_metric_fn: Callable[[Any], float]
    reverse: bool = False
    n: int | None = None
    keep_checkpoints_without_metrics: bool = True

    def should_preserve(self, checkpoints: Steps, *, context: PreservationContext) -> list[bool]:
        """See `PreservationPolicy`."""
        if self.n is None or len(checkpoints) <= self.n:
            return [True] * len(checkpoints)
        if self.n == 0:
            return [False] * len(checkpoints)
        metrics = [each.metrics for each in checkpoints]
        values = {i: float(self.get_metric_fn(m)) for i, m in enumerate(metrics) if m is not None}
        best = set(rank_values(values, reverse=self.reverse)[: self.n])
        spared = self.keep_checkpoints_without_metrics
        return [i in best or (spared and m is None) for i, m in enumerate(metrics)]


@dataclass
class LatestDuration:
    """Steps stay from the first one on that was saved within this time before now."""

    duration: datetime.timedelta

    def should_preserve(self, checkpoints: Steps, *, context: PreservationContext) -> list[bool]:
        """See `PreservationPolicy`."""
        now = datetime.datetime.now(tz=datetime.UTC)
        stays: list[bool] = []
        for each in checkpoints:
            stays.append(bool(stays and stays[-1]) or now - each.time <= self.duration)
        return stays


def rank_values(values: dict[int, float], *, reverse: bool) -> list[int]:
    """The keys of numbers, best first: the highest, or with `reverse` the lowest.

    Of equal ones the later comes first. Those of NaN are left out.
    """
    numbers = {key: value for key, value in values.items() if value == value}
    return sorted(numbers, key=lambda key: (numbers[key] if reverse else -numbers[key], -key))


def ask_policy(
    policy: PreservationPolicy, checkpoints: Steps, context: PreservationContext
) -> list[bool]:
    """What a policy answers, one of the caller's own included.

    Raises:
        UsageError: It does not answer for each step. To guess would delete the wrong ones.
    """
    answer = [bool(stays) for stays in policy.should_preserve(checkpoints, context=context)]
    if len(answer) != len(checkpoints):
        raise tx.UsageError(
            f"Expected {policy!r} to answer for {len(checkpoints)} steps, got {len(answer)} answers"
        )
    return answer


def _check_interval(interval: int) -> None:
    if interval == 0:
        raise tx.UsageError("Expected interval_steps= other than 0")


def _keep_latest(stays: list[bool], n: int | None) -> list[bool]:
    """The same answers, but True for the last `n` at most."""
    chosen = [i for i, each in enumerate(stays) if each]
    dropped = set() if n is None else set(chosen[: max(0, len(chosen) - n)])
    return [each and i not in dropped for i, each in enumerate(stays)]
