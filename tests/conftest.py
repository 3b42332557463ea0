"""Settings that JAX needs before it is imported, hypothesis profiles, and shared fixtures."""

import gc
import os
import sys
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

# Eight devices let one process hold any sharding; a GPU that happens to be there must not be used.
os.environ["JAX_PLATFORMS"] = "cpu"
_FORCE = "--xla_force_host_platform_device_count=8"
if _FORCE not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FORCE}".strip()
# What is compiled here runs once: making it fast would take longer than it saves.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import hypothesis  # noqa: E402
import pytest  # noqa: E402
from _pytest.doctest import DoctestModule  # noqa: E402

pytest.register_assert_rewrite(
    "attempts", "helpers", "mismatches", "opening", "side_by_side", "stored_leaves"
)
from helpers import CKPT, CORPUS  # noqa: E402

# No deadline: the first example of a shape pays for a JAX compilation.
hypothesis.settings.register_profile(
    "default",
    deadline=None,
    max_examples=25,
    suppress_health_check=[
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.function_scoped_fixture,
    ],
)
hypothesis.settings.register_profile(
    "thorough", hypothesis.settings.get_profile("default"), max_examples=1000
)
hypothesis.settings.register_profile(
    "quick", hypothesis.settings.get_profile("default"), max_examples=5
)


def pytest_configure(config: pytest.Config) -> None:
    """Chooses how many examples hypothesis tries; tests are imported later."""
    quick = config.option.markexpr == "not slow"
    profile = "quick" if quick else "default"
    hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", profile))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Starts three workers for two cores: many tests wait for disks, processes or timeouts."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return cores * 3 // 2


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Gives all tests of a file to one worker, which makes what they share; in order of files.

    Those of object stores, which share servers, all go to one. `--dist` can say otherwise.
    """
    if config.option.dist != "load":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "tests/stores" if file.startswith("tests/stores/") else file

    config.option.loadscopereorder = False  # it would put files of few tests, which take long, last
    return Scheduling(config, log)


_LONG = (
    "test_save_errors.py",
    "test_save_killed.py",
    "test_round_trips.py",
    "test_save_orbax.py",
    "test_benchmarks.py",
)
"""The files that take more than a minute in the whole suite; those of object stores do together."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts long files first, and spreads the jobs of several processes over the run.

    A worker of xdist, which takes file after file, should not begin a long one when the others are
    about to end. The jobs mostly wait, so that not all workers should be there at once.
    """
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    jobs = sorted((path for path in files if path.parent.name == "hosts"), key=_is_short)
    rest = [path for path in files if path.parent.name != "hosts"]
    rest.sort(key=lambda path: path.name not in _LONG and path.parent.name != "stores")
    every = max(len(rest) // max(len(jobs), 1), 1)
    order = []
    for number, path in enumerate(rest):
        if number % every == 0 and jobs:
            order.append(jobs.pop(0))
        order.append(path)
    items[:] = [item for path in [*order, *jobs] for item in files[path]]


def _is_short(path: Path) -> bool:
    return path.name != "test_histories.py"


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(
    file_path: Path,
) -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
    """Looks for doctests only in those files of this directory that have some.

    The search, in each class and function of each file, takes longer than the tests of many.
    """
    collectors = yield
    if file_path.suffix == ".py" and b">>> " not in file_path.read_bytes():
        return [each for each in collectors if not isinstance(each, DoctestModule)]
    return collectors


def pytest_collection_finish() -> None:
    """Hides the imported modules from the garbage collector, which many tests call.

    With JAX, Flax and Orbax, they are a million objects, and each call would look at all of them.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collects tests without the garbage collector: what it would look through stays anyway."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.fixture(scope="session")
def corpus() -> Path:
    """The directory of recorded checkpoints."""
    return CORPUS


@pytest.fixture(scope="session")
def ckpt() -> Path:
    """A small checkpoint that Orbax 0.12.8 wrote with its defaults."""
    return CKPT


@pytest.fixture
def no_thread_left() -> Iterator[None]:
    """Fails a test that leaves a thread running."""
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says what tests counted: `record_property("summary", ...)`, from any process of xdist."""
    for report in terminalreporter.getreports("passed"):
        for name, text in report.user_properties:
            if name == "summary":
                terminalreporter.write_line(text)
