"""Every target: its seeds, the inputs that failed once, and some mutations of these."""

import random
from pathlib import Path

import pytest

from fuzz.registry import TARGETS
from fuzz.targets import Judge
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
