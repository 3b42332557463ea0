"""Which steps a manager saves and keeps: the policies of its options, and what they are told."""

from __future__ import annotations

import datetime
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import templax as tx

from ...formats.orbax.step_metadata import read_metrics
from ...storage.local import Local
from .checkpoint_managers.policy_checkpoint_info import PolicyCheckpointInfo
from .checkpoint_managers.preservation_policy import (
    AnyPreservationPolicy,
    BestN,
    EveryNSeconds,
    EveryNSteps,
    LatestN,
    PreservationContext,
    PreservationPolicy,
    ask_policy,
    rank_values,
)
from .checkpoint_managers.save_decision_policy import (
    AnySavePolicy,
    ContinuousCheckpointingPolicy,
    DecisionContext,
    FixedIntervalPolicy,
    InitialSavePolicy,
    PreemptionCheckpointingPolicy,
    SaveDecisionPolicy,
    SpecificStepsPolicy,
)
from .options import CheckpointManagerOptions
from .path.step import Metadata

_log = logging.getLogger("templax")

_UNREAD: Any = object()


class StepInfo:
    """A step as policies see it; its files are read when a policy asks for what they hold.

    Args:
        step: The step number.
        path: The path of the step.
        time: The time of its save; by default that of its commit.
        metrics: Its metrics, or None if it has none; by default those that were saved with it.

    Attributes:
        unreadable: Whether a policy asked for its metrics, which can't be read.
    """

    def __init__(
        self,
        step: int,
        path: str,
        *,
        time: datetime.datetime | None = None,
        metrics: Any = _UNREAD,
    ):
        self.step, self.path, self.unreadable = step, path, False
        self._time, self._metrics = time, metrics

    def __repr__(self) -> str:
        return f"StepInfo({self.step})"

    @property
    def time(self) -> datetime.datetime:
        """The time of the save, in UTC."""
        if self._time is None:
            try:
                self._time = Metadata(self.step, Path(self.path)).commit_timestamp
            except FileNotFoundError:  # another program has just deleted it
                self._time = datetime.datetime.fromtimestamp(0, tz=datetime.UTC)
        return self._time

    @time.setter
    def time(self, value: datetime.datetime) -> None:
        self._time = value

    @property
    def metrics(self) -> Any:
        """The metrics that the step was saved with, or None."""
        if self._metrics is _UNREAD:
            try:
                self._metrics = read_metrics(Local(self.path)) or None
            except tx.CheckpointError as error:
                self._metrics, self.unreadable = None, True
                root = os.path.dirname(self.path)
                text = "step %d of %s stays and is not the best, as its metrics are unreadable: %s"
                _log.warning(text, self.step, root, error)
        return self._metrics

    @metrics.setter
    def metrics(self, value: Any) -> None:
        self._metrics = value


class StepInfos:
    """The steps of a run as policies see them, each made once.

    Args:
        root: The directory of the run.
    """

    def __init__(self, root: str):
        self._root = root
        self._known: dict[tuple[int, str], StepInfo] = {}

    def look_up(self, found: Mapping[int, str]) -> list[StepInfo]:
        """These steps, ascending.

        Args:
            found: Number → name of each step that there is. Any other step is forgotten.
        """
        names, known = sorted(found.items()), self._known
        self._known = {name: known.get(name) or self._make(*name) for name in names}
        return list(self._known.values())

    def _make(self, step: int, key: str) -> StepInfo:
        return StepInfo(step, os.path.join(self._root, key))

    def add(self, key: str, info: StepInfo) -> None:
        """Adds a step that is saved now, under its name."""
        self._known[info.step, key] = info

    def forget(self) -> None:
        """Lets the files of all steps be read again."""
        self._known = {}


@dataclass
class _FunctionPolicy:
    """Asks a `should_save_fn`."""

    should_save_fn: Callable[[int, int | None], bool]

    def should_save(
        self,
        step: PolicyCheckpointInfo,
        previous_steps: Sequence[PolicyCheckpointInfo],
        *,
        context: DecisionContext,
    ) -> bool:
        latest = previous_steps[-1].step if previous_steps else None
        return bool(self.should_save_fn(step.step, latest))


def make_save_policy(options: CheckpointManagerOptions) -> SaveDecisionPolicy:
    """The policy in the options, or the one that their other fields amount to."""
    if options.save_decision_policy is not None:
        return options.save_decision_policy
    if options.should_save_fn is not None:
        return AnySavePolicy(
            [_FunctionPolicy(options.should_save_fn), PreemptionCheckpointingPolicy()]
        )
    return AnySavePolicy(
        [
            InitialSavePolicy(),
            SpecificStepsPolicy(options.save_on_steps or ()),
            FixedIntervalPolicy(options.save_interval_steps),
            PreemptionCheckpointingPolicy(),
        ]
    )


def saves_continuously(policy: Any) -> bool:
    """Whether a policy, of Orbax itself or not, saves as often as it can."""
    if hasattr(policy, "policies"):
        return any(map(saves_continuously, policy.policies))
    return type(policy).__name__ == ContinuousCheckpointingPolicy.__name__


def make_preservation_policy(options: CheckpointManagerOptions) -> PreservationPolicy:
    """The policy in the options, or the one that their other fields amount to.

    Raises:
        UsageError: They have a policy as well as fields that it replaces.
    """
    instead = ("max_to_keep", "keep_period", "keep_time_interval")
    if options.preservation_policy is not None:
        both = [name for name in instead if getattr(options, name)]
        if both:
            raise tx.UsageError(
                f"Expected preservation_policy= or {both[0]}=, got both; hint:"
                " AnyPreservationPolicy combines several policies"
            )
        return options.preservation_policy
    policies: list[PreservationPolicy] = [LatestN(options.max_to_keep)]
    if options.best_fn is not None:
        policies = [
            BestN(
                get_metric_fn=options.best_fn,
                reverse=options.best_mode == "min",
                n=options.max_to_keep,
                keep_checkpoints_without_metrics=options.keep_checkpoints_without_metrics,
            )
        ]
    if options.keep_period is not None:
        policies.append(EveryNSteps(options.keep_period))
    if options.keep_time_interval is not None:
        policies.append(EveryNSeconds(options.keep_time_interval.total_seconds()))
    return AnyPreservationPolicy(policies)


def find_best(options: CheckpointManagerOptions, steps: Iterable[StepInfo]) -> int | None:
    """The best step by `best_fn`, the later one if several tie; None if none has metrics.

    A step whose metrics are unreadable is left out.
    """
    assert options.best_fn is not None
    values = {
        each.step: float(options.best_fn(each.metrics))
        for each in steps
        if each.metrics is not None
    }
    return next(iter(rank_values(values, reverse=options.best_mode == "min")), None)


def select_replaced(policy: PreservationPolicy, steps: Sequence[StepInfo]) -> set[int]:
    """The numbers of the steps to delete; those whose metrics are unreadable stay.

    Args:
        policy: Which steps stay.
        steps: The steps in ascending order, followed by the one that is saved now.
    """
    stays = ask_policy(policy, steps, PreservationContext())
    return {
        each.step for each, stay in zip(steps, stays, strict=True) if not (stay or each.unreadable)
    }
