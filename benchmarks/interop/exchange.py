"""Both directions of an exchange: what templax saves Orbax restores, and the other way round."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import templax as tx

from . import orbax_peer
from .environment import make_environment
from .job import run_job
from .save import save_layouts
from .trees import JOB, list_trees, make_node
from .verdicts import Answer

PEER = Path(__file__).with_name("orbax_peer.py")
DEVICES = (1, 8)


@dataclass
class Peer:
    """One version of Orbax, in a Python of its own.

    Attributes:
        packages: The packages that it ran with, and their versions.
        saved: (tree, layout) → how its own save went.
        restored: (directory, tree, call, devices) → what its restore returned.
    """

    version: str
    python: str
    packages: dict[str, str] = field(default_factory=dict)
    saved: dict[tuple[str, str], Answer] = field(default_factory=dict)
    restored: dict[tuple[str, str, str, int], Answer] = field(default_factory=dict)

    @property
    def directory(self) -> str:
        """Where it saves, below the root."""
        return f"orbax-{self.version}"

    def save(self, root: Path) -> None:
        """Saves every tree in every layout."""
        for answer in self._ask(root, 8, "save", "values.npz", self.directory):
            self.saved[answer["tree"], answer["layout"]] = answer

    def restore(
        self, root: Path, directories: Sequence[str], counts: Sequence[int] = DEVICES
    ) -> None:
        """Restores what is in some directories, with each number of devices."""
        for devices in counts:
            for answer in self._ask(root, devices, "restore", *directories):
                key = answer["directory"], answer["tree"], answer["call"], devices
                self.restored[key] = answer

    def _ask(self, root: Path, devices: int, mode: str, *arguments: str) -> Iterator[Answer]:
        environment = {
            **{name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ},
            **make_environment(devices),
        }
        command = [self.python, str(PEER), mode, "trees.json", *arguments]
        done = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"Orbax {self.version} ended with {done.returncode}:\n{done.stderr[-3000:]}")
        # Paths are cut from errors, so that the same error of two trees has the same text.
        places = rf"{re.escape(str(root))}/(templax|orbax)[^/]*/[^/]*/"
        about, *answers = map(json.loads, re.sub(places, "", done.stdout).splitlines())
        if (about["orbax"], about["devices"]) != (self.version, devices):
            sys.exit(f"Expected Orbax {self.version} and {devices} devices, got {about}")
        self.packages = about["packages"]
        yield from answers


def save_trees(root: Path, only: Sequence[str] = ()) -> dict[str, Any]:
    """Saves every tree with templax, and writes what a process without templax needs to judge it.

    Args:
        root: Where to write.
        only: The names of the trees; empty for all of them.

    Returns:
        Name → node of the trees.
    """
    values: dict[str, np.ndarray] = {}
    nodes = {}
    for name, make_tree in list_trees().items():
        if not only or name in only:
            tree = make_tree()
            nodes[name] = make_node(tree, values)
            if not name.endswith(JOB):
                save_layouts(root, name, tree)
    (root / "trees.json").write_text(json.dumps(nodes))
    np.savez(root / "values.npz", allow_pickle=False, **values)
    if names := [name for name in nodes if name.endswith(JOB)]:
        run_job(root, names)
    return nodes


def restore_with_templax(path: Path, node: Mapping[str, Any], how: str) -> list[list[Any]]:
    """Restores what Orbax saved.

    Args:
        path: The checkpoint, or for "manager" and "step" the directory of steps.
        node: The tree.
        how: "template" (spread over all devices), "catalog" (its own template), "manager" or
            "step".

    Returns:
        The rows of `orbax_peer.describe_tree`.
    """
    if how == "manager":
        with tx.Manager(path) as manager:
            step = orbax_peer.STEP
            found = [manager.steps(), manager.best("loss"), manager.metrics(step)]
            if found != [[step], step, orbax_peer.METRICS]:
                raise LookupError(f"steps, best and metrics are {found}")
            restored = manager.restore(orbax_peer.make_template(node))
    elif how == "template":
        restored = tx.restore(path, orbax_peer.make_template(node))
    else:
        catalog = tx.open(path / str(orbax_peer.STEP) if how == "step" else path)
        restored = tx.restore(catalog, catalog.template())
    return orbax_peer.describe_tree(node, restored)
