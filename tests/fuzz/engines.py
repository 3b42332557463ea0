"""Two engines that run a target: atheris, guided by coverage, and hypothesis, which runs anywhere.

Both continue after a failure: one input is kept per cause, and failures are counted at the end.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import pkgutil
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .targets import Failure, Judge, Target

UNCOVERED = ("templax.demo", "templax.compat", "templax.__main__", "templax.testing")
"""Modules that read no checkpoints themselves: not instrumented, because they import a lot."""


@dataclass
class Tally:
    """What an engine did with a target.

    Attributes:
        executions: Inputs that were run.
        seconds: Time that this took.
        slowest: Seconds of the slowest input.
        failures: Kind → its text, one for each cause.
    """

    target: str
    engine: str
    executions: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Executions per minute."""
        return 60 * self.executions / self.seconds if self.seconds else 0.0


class Recorder:
    """Runs inputs, counts them, and keeps the first input of each failure in a directory."""

    def __init__(self, target: Target, engine: str, directory: Path):
        self.tally = Tally(target.name, engine)
        self._judge = Judge(target)
        self._directory = directory
        self._begin = self._written = time.monotonic()

    def run(self, data: bytes) -> Failure | None:
        failure = self._judge.try_input(data)
        self.tally.executions += 1
        if failure is not None and failure.kind not in self.tally.failures:
            self.tally.failures[failure.kind] = failure.text
            self._directory.mkdir(parents=True, exist_ok=True)
            stem = self._directory / f"{self.tally.target}-{failure.digest}"
            stem.write_bytes(data)
            stem.with_suffix(".txt").write_text(
                f"{failure.kind}\n{failure.text}", "utf-8", "backslashreplace"
            )
        return failure

    def write(self, path: Path, *, every_s: float = 0.0) -> None:
        """Writes the tally to a file, at most once every `every_s` seconds."""
        now = time.monotonic()
        if now - self._written >= every_s:
            self._written = now
            self.tally.seconds = now - self._begin
            self.tally.slowest = self._judge.seconds
            path.with_suffix(".part").write_text(json.dumps(asdict(self.tally)))
            os.replace(path.with_suffix(".part"), path)


def run_hypothesis(target: Target, recorder: Recorder, tally: Path, seconds: float) -> None:
    """Mutates seeds as hypothesis draws them, until the time is up."""
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from hypothesis import strategies as st

    inputs = target.inputs()
    deadline = time.monotonic() + seconds

    @st.composite
    def mutated(draw: st.DrawFn) -> bytes:
        data = draw(st.sampled_from(inputs))
        rng = random.Random(draw(st.integers(0, 2**64 - 1)))
        for _ in range(draw(st.sampled_from((1, 1, 2, 4, 8)))):
            data = target.mutate(data, rng)
        return data[: target.max_bytes]

    for number in range(1 << 30):

        @seed(number + int.from_bytes(os.urandom(4), "little"))
        @settings(
            max_examples=1000,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.one_of(mutated(), mutated(), mutated(), st.binary(max_size=64)))
        def batch(data: bytes) -> None:
            if time.monotonic() < deadline:
                recorder.run(data)
                recorder.write(tally, every_s=2)

        batch()
        if time.monotonic() >= deadline:
            recorder.write(tally)
            return


def run_atheris(
    target: Target, recorder: Recorder, tally: Path, seconds: float, grown: Path, seed: int
) -> None:
    """Lets libFuzzer choose inputs by coverage. Never returns: libFuzzer ends the process.

    Args:
        grown: Where inputs that reach new code are kept, to begin with next time.
        seed: The seed of its random choices; 0 for a new one each time.
    """
    import atheris

    def run(data: bytes) -> None:
        recorder.run(data)
        recorder.write(tally, every_s=2)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.5:
            return atheris.Mutate(data, max_size)
        for _ in range(rng.choice((1, 1, 2, 4))):
            data = target.mutate(data, rng)
        return data[:max_size]

    with tempfile.TemporaryDirectory() as temporary:
        seeds = Path(temporary, "seeds")
        seeds.mkdir()
        for data in target.inputs():
            (seeds / hashlib.sha1(data).hexdigest()).write_bytes(data)
        grown.mkdir(parents=True, exist_ok=True)
        options = [
            "fuzz",
            f"-seed={seed}",
            f"-max_total_time={int(seconds)}",
            f"-max_len={target.max_bytes}",
            "-timeout=60",
            "-rss_limit_mb=4096",
            "-verbosity=0",
            "-len_control=20",
            f"-artifact_prefix={recorder._directory}/{target.name}-",
        ]
        recorder._directory.mkdir(parents=True, exist_ok=True)
        if target.tokens:
            tokens = Path(temporary, "tokens")
            tokens.write_text("".join(f'"{_escape(token)}"\n' for token in target.tokens))
            options.append(f"-dict={tokens}")
        atheris.Setup([*options, str(grown), str(seeds)], run, custom_mutator=mutate)
        atheris.Fuzz()


def _escape(token: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in token)


def instrument() -> None:
    """Imports templax so that atheris sees which of its code an input reaches."""
    import atheris

    with atheris.instrument_imports(include=["templax"], enable_loader_override=False):
        for name in _list_modules():
            importlib.import_module(name)


def _list_modules() -> Iterator[str]:
    import importlib.util

    found = importlib.util.find_spec("templax")
    assert found is not None
    for module in pkgutil.walk_packages(found.submodule_search_locations, "templax."):
        if not module.name.startswith(UNCOVERED):
            yield module.name


def has_atheris() -> bool:
    """Whether atheris is installed."""
    from importlib.util import find_spec

    return find_spec("atheris") is not None
