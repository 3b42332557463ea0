"""`on_progress=` of `restore`, `run` and `Manager.restore`."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import templax as tx
from helpers import CKPT, abstract, assert_same_tree, checkpoint_of
from templax.storage import Local
from templax.testing import Watched

BIG = {f"w{i}": np.full((1024, 1024), i, np.float32) for i in range(4)}


class Slow(Watched):
    """A store that takes a while for each read of an array."""

    def read(
        self, key: str, start: int = 0, stop: int | None = None, out: memoryview | None = None
    ) -> memoryview:
        if out is not None:
            time.sleep(0.15)
        return super().read(key, start, stop, out)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tx.save(tmp_path / "ckpt", BIG)
    return tmp_path / "ckpt"


def watch() -> tuple[list[tuple[int, int]], Any]:
    calls: list[tuple[int, int]] = []
    return calls, lambda *call: calls.append(call)


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_progress_counts_the_bytes_read_and_is_complete_only_once(
    tmp_path: Path, compression: str | None
) -> None:
    tx.save(tmp_path / "ckpt", BIG, compression=compression)
    catalog = tx.open(Slow(Local(tmp_path / "ckpt")))
    calls, on_progress = watch()
    tree = tx.restore(catalog, abstract(BIG), threads=1, on_progress=on_progress)
    assert_same_tree(tree, BIG, kinds=False)
    total = tx.plan(catalog, abstract(BIG)).read_bytes
    assert {call[1] for call in calls} == {total}
    done = [call[0] for call in calls]
    assert len(done) > 1
    assert done == sorted(done)
    assert done.count(total) == 1
    assert done[-1] == total


def test_a_quick_restore_reports_its_end_only(saved: Path) -> None:
    template = {"w3": jax.ShapeDtypeStruct((1024, 1024), np.float32)}
    calls, on_progress = watch()
    tx.restore(saved, template, extra="ignore", on_progress=on_progress)
    assert calls[-1] == (4 * 1024 * 1024,) * 2


def test_a_plan_reports_each_time_it_is_run(saved: Path) -> None:
    plan = tx.plan(saved, abstract(BIG))
    for _ in range(2):
        calls, on_progress = watch()
        tx.run(plan, on_progress=on_progress)
        assert calls[-1] == (plan.read_bytes, plan.read_bytes)


def test_a_manager_reports_the_bytes_of_its_step(tmp_path: Path) -> None:
    calls, on_progress = watch()
    with tx.Manager(tmp_path / "run") as manager:
        manager.save(1, {"w": np.zeros(100_000, np.uint8)}, wait=True)
        manager.restore({"w": np.ones(100_000, np.uint8)}, on_progress=on_progress)
    assert calls[-1] == (100_000, 100_000)


def test_mapped_bytes_count_where_they_are_compared(saved: Path) -> None:
    counted: dict[str, int] = {}
    for verify in ("available", "off"):
        calls, on_progress = watch()
        options: Any = {"mapped": True, "verify": verify}
        tx.restore(saved, abstract(BIG), on_progress=on_progress, **options)
        done, total = calls[-1]
        assert done == total
        counted[verify] = total
    mapped = tx.plan(saved, abstract(BIG), mapped=True)
    assert counted == {
        "available": mapped.read_bytes + mapped.mapped_bytes,
        "off": mapped.read_bytes,
    }


def test_a_checkpoint_that_is_computed_has_no_bytes_to_read() -> None:
    calls, on_progress = watch()
    tx.restore(checkpoint_of({"w": np.ones(3)}), {"w": np.zeros(3)}, on_progress=on_progress)
    assert calls == [(0, 0)]


def test_the_calls_are_made_by_the_thread_that_restores(saved: Path) -> None:
    threads: set[threading.Thread] = set()
    catalog = tx.open(Slow(Local(saved)))
    tx.restore(
        catalog, abstract(BIG), on_progress=lambda *_: threads.add(threading.current_thread())
    )
    assert threads == {threading.current_thread()}


@pytest.mark.parametrize("stop", [ZeroDivisionError, KeyboardInterrupt])
def test_an_exception_in_it_ends_the_restore(saved: Path, stop: type[BaseException]) -> None:
    def fail(done: int, total: int) -> None:
        raise stop

    before = threading.active_count()
    source = Slow(Local(saved))
    catalog = tx.open(source)
    with pytest.raises(stop):
        tx.restore(catalog, abstract(BIG), threads=1, on_progress=fail)
    assert threading.active_count() == before
    assert_same_tree(tx.restore(catalog, abstract(BIG)), BIG, kinds=False)


def test_damage_is_raised_as_without_it(saved: Path) -> None:
    (data,) = (saved / "d").iterdir()
    stored = bytearray(data.read_bytes())
    stored[6_000_000:6_000_016] = b"damage here only"
    data.write_bytes(stored)
    errors: list[str] = []
    for on_progress in (None, lambda *_: None):
        with pytest.raises(tx.Corrupted) as caught:
            tx.restore(saved, abstract(BIG), on_progress=on_progress)
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


@pytest.mark.parametrize("value", ["bar", 5, True])
def test_something_else_than_a_function_is_refused(saved: Path, value: Any) -> None:
    template = abstract(BIG)
    manager = tx.Manager(saved.parent / "run")
    calls = (
        lambda: tx.restore(saved, template, on_progress=value),
        lambda: tx.run(tx.plan(saved, template), on_progress=value),
        lambda: manager.restore(template, on_progress=value),
        lambda: tx.verify(saved, on_progress=value),
        lambda: tx.save(saved.parent / "new", BIG, on_progress=value),
    )
    for call in calls:
        with pytest.raises(tx.UsageError, match="Expected on_progress= a function of two numbers"):
            call()
    assert [path.name for path in saved.parent.iterdir()] == ["ckpt"]


def test_a_plan_alone_takes_none() -> None:
    with pytest.raises(TypeError, match="on_progress"):
        tx.plan(CKPT, {}, on_progress=print)  # type: ignore[call-arg]
