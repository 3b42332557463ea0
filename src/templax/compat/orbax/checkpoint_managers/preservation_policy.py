"""Orbax's preservation policies: which steps of a run are kept once another is saved.

A policy gets the steps in the order of their saves, and decides for each whether it stays.
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
    """The interface of all policies; your own needs no base class.

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
    """Keeps every step."""

    def should_preserve(self, checkpoints: Steps, *, context: PreservationContext) -> list[bool]:
        """See `PreservationPolicy`."""
        return [True] * len(checkpoints)


@dataclass
class LatestN:
    """Keeps the last `n` steps, or all if `n` is None.

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
    """Keeps the first step, and each one saved at least this long after the last one kept."""

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
    """Keeps steps at an interval.

    Attributes:
        interval_steps: The interval, not 0.
        exact_interval: Whether to keep the multiples of the interval. If not, the first step is
            kept, and each one at least this far from the last one kept.
        max_to_keep: The most of them to keep, the latest ones; None keeps all.
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
    """Keeps the step closest to each multiple of the interval, and the last step.

    Attributes:
        interval_steps: The interval, not 0.
        max_to_keep: The most of them to keep, the latest ones; None keeps all.
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
    """Keeps the steps of these numbers."""

    steps: InitVar[Sequence[int]]
    _numbers: frozenset[int] = field(init=False)

    def __post_init__(self, steps: Sequence[int]) -> None:
        self._numbers = frozenset(steps)

    def should_preserve(self, checkpoints: Steps, *, context: PreservationContext) -> list[bool]:
        """See `PreservationPolicy`."""
        return [each.step in self._numbers for each in checkpoints]


@dataclass
class AnyPreservationPolicy:
    """Keeps a step if any of its policies does."""

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
    """Keeps the best steps.

    Attributes:
        get_metric_fn: Computes the number to compare from a step's metrics.
        reverse: Whether low numbers are better than high ones.
        n: How many to keep; None keeps all. Of equal ones the later is kept; NaN is never best.
        keep_checkpoints_without_metrics: Whether to keep steps without metrics as well.
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
    """Keeps the first step saved within this time before now, and all that follow it."""

    duration: datetime.timedelta

    def should_preserve(self, checkpoints: Steps, *, context: PreservationContext) -> list[bool]:
        """See `PreservationPolicy`."""
        now = datetime.datetime.now(tz=datetime.UTC)
        stays: list[bool] = []
        for each in checkpoints:
            stays.append(bool(stays and stays[-1]) or now - each.time <= self.duration)
        return stays


def rank_values(values: dict[int, float], *, reverse: bool) -> list[int]:
    """Ranks keys by their numbers, the highest first, or with `reverse` the lowest.

    Of equal ones the later comes first. Keys of NaN are left out.
    """
    numbers = {key: value for key, value in values.items() if value == value}
    return sorted(numbers, key=lambda key: (numbers[key] if reverse else -numbers[key], -key))


def ask_policy(
    policy: PreservationPolicy, checkpoints: Steps, context: PreservationContext
) -> list[bool]:
    """Asks a policy, which may be the caller's own, which steps stay.

    Raises:
        UsageError: It does not answer for each step. A guess could delete the wrong ones.
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
    """Limits the steps that stay to the last `n`."""
    chosen = [i for i, each in enumerate(stays) if each]
    dropped = set() if n is None else set(chosen[: max(0, len(chosen) - n)])
    return [each and i not in dropped for i, each in enumerate(stays)]
