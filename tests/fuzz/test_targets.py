"""Every target: its seeds, the inputs that failed once, and some mutations of these."""

import random
import time
from pathlib import Path

import pytest

from fuzz import targets
from fuzz.registry import TARGETS
from fuzz.targets import Judge, Target
from helpers import count_examples

SLOW = {"checkpoint": 150, "foreign": 100, "orbax-sidecars": 150, "save": 3}
"""How often targets that take milliseconds are run, instead of 400 times."""

CORPUS = Path(__file__).parent / "corpus"

KEPT = sorted(path.relative_to(CORPUS).as_posix() for path in CORPUS.glob("*/*"))


def test_every_directory_of_the_corpus_is_a_targets():
    assert {path.name for path in CORPUS.iterdir() if path.is_dir()} <= TARGETS.keys()
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < 500_000


@pytest.mark.parametrize("kept", KEPT)
def test_an_input_that_failed_once_is_right(kept):
    name = kept.partition("/")[0]
    failure = Judge(TARGETS[name]).try_input((CORPUS / kept).read_bytes())
    assert failure is None, failure.text


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_their_mutations_are_right(name):
    target = TARGETS[name]
    judge, rng, inputs = Judge(target), random.Random(0), target.inputs()
    count = count_examples(SLOW.get(name, 400)).max_examples
    for _ in range(count):
        data = rng.choice(inputs)
        for _ in range(rng.randrange(4)):
            data = target.mutate(data, rng)
        failure = judge.try_input(data)
        assert failure is None, f"{data!r}\n{failure.text}"


@pytest.mark.parametrize("slow_runs", [1, 2])
def test_an_input_is_slow_if_it_is_slow_again(slow_runs, monkeypatch):
    monkeypatch.setattr(targets, "MAX_SECONDS", 0.05)
    runs: list[bytes] = []

    def run(data: bytes) -> None:
        runs.append(data)
        begin = time.process_time()
        while len(runs) <= slow_runs and time.process_time() < begin + 0.06:
            pass

    failure = Judge(Target("slow", run, list)).try_input(b"x")
    assert len(runs) == 2
    assert (failure is None) == (slow_runs == 1)
