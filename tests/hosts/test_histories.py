"""Whatever happens to a process in a save, no step mixes values, all processes agree, and the job
goes on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from helpers import is_thorough
from histories import LAST, Job, check_history, find_committed

FAULTS = [
    "skip",
    "bad argument",
    "unsavable",
    "differs",
    "full",
    "late",
    "look",
    "leave",
    "another step",
    "another path",
    "interrupt before the meeting",
    "interrupt in the meeting",
    "interrupt after the meeting",
    "interrupt while staging",
    "interrupt while writing",
    "interrupt before the commit",
    "interrupt while committing",
]


KILLS = [
    "kill before the meeting",
    "kill while staging",
    "kill while writing",
    "kill before the commit",
    "kill while committing",
]

RESTORE_FAULTS = ["skip", "late", "another shape"]


def make_histories(count: int) -> st.SearchStrategy[tuple[str, list[Any]]]:
    """Histories of a job: for each call what it does, who is hit by what, and whether it waits.

    Process 0 is not killed: JAX ends the others with it. In one history of about eight, one of the
    last two calls kills a process.
    """
    who = st.integers(0, count - 1)
    save = st.tuples(
        st.just("save"), st.none() | st.tuples(who, st.sampled_from(FAULTS)), st.booleans()
    )
    restore = st.tuples(
        st.just("restore"),
        st.none() | st.tuples(who, st.sampled_from(RESTORE_FAULTS)),
        st.just(True),
    )
    kill = st.tuples(
        st.just("save"), st.tuples(st.integers(1, count - 1), st.sampled_from(KILLS)), st.just(True)
    )
    calls = st.lists(st.one_of(save, save, save, restore), min_size=1, max_size=5)
    rare = st.integers(0, 7).flatmap(
        lambda n: st.just([]) if n else st.tuples(kill, save).map(list)
    )
    return st.tuples(
        st.sampled_from(["save", "manager", "compat"]),
        st.tuples(calls, rare).map(lambda parts: [*parts[0], *parts[1]]),
    )


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int, str, Any], None]]:
    jobs: dict[int, Job] = {}
    numbers = itertools.count()

    def call(count: int, api: str, calls: Any) -> None:
        if count not in jobs or jobs[count].ended:
            jobs[count] = Job(count)
        root = tmp_path_factory.mktemp("history") / f"run-{next(numbers)}x"
        Path(root).mkdir()
        ops = [
            {
                "kind": kind,
                "step": 10 * n,
                "wait": wait,
                "who": hit[0] if hit else -1,
                "fault": hit[1] if hit else None,
            }
            for n, (kind, hit, wait) in enumerate(calls, 1)
            if kind == "save" or api != "save"
        ]
        history = {"api": api, "root": str(root), "ops": ops, "last": LAST}
        answers = jobs[count].live(history)
        try:
            check_history(history, answers, find_committed(str(root), api))
        except AssertionError as error:
            if not jobs[count].ended:
                jobs[count].end()  # the next history must not suffer from this one
            raise AssertionError(f"{history}\n{answers}") from error

    yield call
    for job in jobs.values():
        if not job.ended:
            job.end()


@pytest.mark.parametrize(
    ("count", "examples"),
    [
        (2, 3),
        pytest.param(2, 300 if is_thorough() else 50, marks=pytest.mark.slow),
        pytest.param(3, 100 if is_thorough() else 15, marks=pytest.mark.slow),
    ],
)
def test_no_history_of_faults_mixes_steps_or_divides_the_job(
    live: Callable[[int, str, Any], None], count: int, examples: int
) -> None:
    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],  # it takes minutes to shrink a history
        suppress_health_check=list(HealthCheck),
    )
    @given(history=make_histories(count))
    def live_through(history: tuple[str, list[Any]]) -> None:
        live(count, *history)

    live_through()
