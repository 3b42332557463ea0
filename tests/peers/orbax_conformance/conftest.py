"""The tree that Orbax's own tests use, saved in every layout that Orbax 0.12.8 writes.

The tests here assert of templax what Orbax's tests (google/orbax, commit 3ff7b24) assert of reading
checkpoints: altered directories, matching, dtypes, structure, sharding, unfinished saves. Where
templax is stricter, they assert the stricter behaviour.
"""

from __future__ import annotations

import logging
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

from helpers import abstract, save_with_orbax

logging.getLogger("absl").setLevel(logging.CRITICAL)


@pytest.fixture(scope="session")
def golden() -> dict[str, Any]:
    return {"a": jnp.arange(8, dtype=jnp.int32), "b": {"c": jnp.array([1, 2, 3], jnp.int32)}}


@pytest.fixture(scope="session")
def golden_template(golden: dict[str, Any]) -> dict[str, Any]:
    return abstract(golden)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory, golden: dict[str, Any]) -> SimpleNamespace:
    """Directories that hold the golden tree, one for each layout; not to be changed."""
    root = tmp_path_factory.mktemp("golden")
    save_with_orbax(root / "v0-direct", golden)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        composite = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
        composite.save(
            root / "v0-composite", args=ocp.args.Composite(state=ocp.args.PyTreeSave(golden))
        )
        ocp.v1.save(root / "v1-composite", golden)
        with ocp.CheckpointManager(root / "manager") as manager:
            for step in (1, 2):
                manager.save(step, args=ocp.args.StandardSave(golden))
    save_with_orbax(root / "files", golden, use_ocdbt=False)
    return SimpleNamespace(root=root, v0=root / "v0-direct", files=root / "files")


@pytest.fixture(params=["v0-direct", "v0-composite", "v1-composite"])
def checkpoint(request: pytest.FixtureRequest, saved: SimpleNamespace, tmp_path: Path) -> Path:
    """A copy to alter, in each layout."""
    shutil.copytree(saved.root / request.param, tmp_path / request.param)
    return tmp_path / request.param
