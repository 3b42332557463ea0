"""Checkpoints that Orbax saved, and saves that fail in the background."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import orbax.checkpoint as orbax
import pytest

import templax as tx
from side_by_side import quiet, rich_tree, sharded_tree, small_tree
from templax._save import job as job_module

logging.getLogger("absl").setLevel(logging.CRITICAL)


@pytest.fixture(scope="session")
def at(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Directories that Orbax saved: one tree each, and three runs; not to be changed."""
    root = tmp_path_factory.mktemp("saved")
    pytree, standard = orbax.PyTreeCheckpointer(), orbax.StandardCheckpointer()
    files = orbax.PyTreeCheckpointer(use_ocdbt=False)
    with quiet():
        for name, tree in (
            ("small", small_tree()),
            ("rich", rich_tree()),
            ("sharded", sharded_tree()),
        ):
            pytree.save(root / f"{name}-pytree", tree)
            standard.save(root / f"{name}-standard", tree)
            standard.wait_until_finished()
            orbax.v1.save(root / f"{name}-v1", tree)
        files.save(root / "files", small_tree())
        with orbax.CheckpointManager(root / "manager") as manager:
            for step in (1, 3, 12):
                manager.save(step, args=orbax.args.StandardSave({"a": jnp.full(4, float(step))}))
        with orbax.CheckpointManager(root / "items", item_names=("state", "meta")) as manager:
            manager.save(
                7,
                args=orbax.args.Composite(
                    state=orbax.args.StandardSave(small_tree()),
                    meta=orbax.args.JsonSave({"note": "x", "n": [1, 2]}),
                ),
            )
        options = orbax.CheckpointManagerOptions(step_prefix="ckpt", step_format_fixed_length=8)
        with orbax.CheckpointManager(root / "prefixed", options=options) as manager:
            manager.save(3, args=orbax.args.StandardSave({"a": jnp.arange(4.0)}))
    names = {p.name.replace("-", "_"): p for p in root.iterdir()}
    return SimpleNamespace(root=root, **names)


@pytest.fixture(scope="module", autouse=True)
def collect_garbage_of_module() -> Iterator[None]:
    """A call that fails in Orbax leaves coroutines and futures, which complain when collected.

    They are collected while the modules here ignore `PytestUnraisableExceptionWarning`.
    """
    yield
    gc.collect()


@pytest.fixture
def collect_garbage() -> Iterator[None]:
    """The same after each test, for those that save with Orbax; also ignores its warnings."""
    with quiet():
        yield
        gc.collect()


@pytest.fixture
def fail_next_save(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes the next save of templax fail once it has written."""

    def fail() -> None:
        describe = job_module.Job._write_small_files

        def full(job: Any, files: Any) -> Any:
            monkeypatch.setattr(job_module.Job, "_write_small_files", describe)
            raise tx.SaveError("No space is left")

        monkeypatch.setattr(job_module.Job, "_write_small_files", full)

    return fail
