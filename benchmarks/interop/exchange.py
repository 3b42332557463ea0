"""The two ways of an exchange: templax saves and Orbax restores, and the other way round."""

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

from . import job, orbax_peer
from .save import save
from .trees import JOB, node_of, trees
from .verdicts import Answer

PEER = Path(__file__).with_name("orbax_peer.py")
DEVICES = (1, 8)


@dataclass
class Peer:
    """One Orbax.

    Attributes:
        packages: What it ran with, and their versions.
        saved: (tree, layout) → how its own save went.
        restored: (directory, tree, call, devices) → what came back.
    """

    version: str
    python: str
    packages: dict[str, str] = field(default_factory=dict)
    saved: dict[tuple[str, str], Answer] = field(default_factory=dict)
    restored: dict[tuple[str, str, str, int], Answer] = field(default_factory=dict)

    @property
    def directory(self) -> str:
        return f"orbax-{self.version}"

    def save(self, root: Path) -> None:
        for answer in self._asked(root, 8, "save", "values.npz", self.directory):
            self.saved[answer["tree"], answer["layout"]] = answer

    def restore(
        self, root: Path, directories: Sequence[str], counts: Sequence[int] = DEVICES
    ) -> None:
        for devices in counts:
            for answer in self._asked(root, devices, "restore", *directories):
                key = answer["directory"], answer["tree"], answer["call"], devices
                self.restored[key] = answer

    def _asked(self, root: Path, devices: int, mode: str, *arguments: str) -> Iterator[Answer]:
        environment = {
            **{name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ},
            "JAX_PLATFORMS": "cpu",
            "JAX_ENABLE_X64": "1",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        }
        command = [self.python, str(PEER), mode, "trees.json", *arguments]
        done = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"Orbax {self.version} ended with {done.returncode}:\n{done.stderr[-3000:]}")
        # Said with a path, an error would be another for each tree.
        places = rf"{re.escape(str(root))}/(templax|orbax)[^/]*/[^/]*/"
        about, *answers = map(json.loads, re.sub(places, "", done.stdout).splitlines())
        if (about["orbax"], about["devices"]) != (self.version, devices):
            sys.exit(f"Expected Orbax {self.version} and {devices} devices, got {about}")
        self.packages = about["packages"]
        yield from answers


def write(root: Path, only: Sequence[str] = ()) -> dict[str, Any]:
    """Saves every tree with templax, and what processes without templax need to judge it.

    Returns:
        Name → node, of the trees that were asked for.
    """
    values: dict[str, np.ndarray] = {}
    nodes = {}
    for name, make in trees().items():
        if not only or name in only:
            tree = make()
            nodes[name] = node_of(tree, values)
            if not name.endswith(JOB):
                save(root, name, tree)
    (root / "trees.json").write_text(json.dumps(nodes))
    np.savez(root / "values.npz", allow_pickle=False, **values)
    if jobs := [name for name in nodes if name.endswith(JOB)]:
        job.run(root, jobs)
    return nodes


def restored(path: Path, node: Mapping[str, Any], how: str) -> list[list[Any]]:
    if how == "manager":
        with tx.Manager(path) as manager:
            step = orbax_peer.STEP
            found = [manager.steps(), manager.best("loss"), manager.metrics(step)]
            if found != [[step], step, orbax_peer.METRICS]:
                raise LookupError(f"steps, best and metrics are {found}")
            return orbax_peer.described(node, manager.restore(orbax_peer.template(node)))
    if how == "template":
        return orbax_peer.described(node, tx.restore(path, orbax_peer.template(node)))
    catalog = tx.open(path / str(orbax_peer.STEP) if how == "step" else path)
    return orbax_peer.described(node, tx.restore(catalog, catalog.template()))
