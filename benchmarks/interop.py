"""Exchanges checkpoints with stock Orbax, both ways, and prints what came back.

    python -m benchmarks.interop --python 0.6.4=PATH --python 0.12.8=PATH

PATH is a Python that has that Orbax; it needs no templax. templax saves every tree of
`interop_trees`; each Orbax restores them by each of its calls, on one and on eight CPU devices, and
so it does with what it saved itself, which is the measure. Then templax restores what each Orbax
saved. Values, types, dtypes, shapes and shardings are compared. Exit status 1: something was lost.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # what JAX reads when it is imported
    os.environ.update(JAX_PLATFORMS="cpu", JAX_ENABLE_X64="1")
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import numpy as np

import templax as tx

from . import interop_job, orbax_peer
from .interop_table import Answer, Notes, Tried, cell, judged, judged_back, markdown
from .interop_trees import JOB, PyTree, node_of, trees

PEER = Path(__file__).with_name("orbax_peer.py")
OURS, OURS_ZSTD = "templax", "templax-zstd"
FILES = {OURS: "raw", OURS_ZSTD: "zstd"}
FAMILIES = {
    "PyTree": ("pytree", "pytree+item", "metadata"),
    "Standard": ("standard", "standard+template"),
    "Manager": ("manager", "manager+template", "manager, no args", "manager, saving on"),
    "v1": ("v1", "v1+template"),
}
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
        interop_job.run(root, jobs)
    return nodes


def save(root: Path, name: str, tree: PyTree) -> None:
    """Where `orbax_peer` looks for it: an item, compressed or not, one for v1, a step of a run."""
    tx.save(root / OURS / name / "item", tree)
    tx.save(root / OURS_ZSTD / name / "item", tree, compression="zstd")
    tx.save(root / OURS / name / "v1" / "pytree", tree)
    with tx.Manager(root / OURS / name / "manager") as manager:
        manager.save(orbax_peer.STEP, tree, metrics=orbax_peer.METRICS, wait=True)


def to_orbax(nodes: Mapping[str, Any], peers: Sequence[Peer], notes: Notes) -> tuple[str, list]:
    """What templax saved, restored by Orbax: a table, and all verdicts."""
    newest = peers[-1]
    columns = [
        (peer, family)
        for peer in peers
        for family, calls in FAMILIES.items()
        if any(key[2] in calls for key in peer.restored)
    ]
    found: list[tuple[str, str, Tried]] = []
    rows = []
    for name, node in nodes.items():
        cells = []
        for peer, family in columns:
            tried = []
            reference = interop_job.ORBAX if name.endswith(JOB) else newest.directory
            for (directory, tree, call, devices), ours in peer.restored.items():
                if tree == name and call in FAMILIES[family] and directory in FILES:
                    verdict = judged(
                        node,
                        call,
                        ours,
                        peer.restored.get((peer.directory, name, call, devices)),
                        peer.restored.get((reference, name, call, devices)),
                        peer.saved.get((name, "item")),
                    )
                    tried.append(Tried(call, FILES[directory], devices, verdict))
            found += [(peer.version, name, one) for one in tried]
            cells.append(cell(tried, newest.version, notes))
        rows.append([name, *cells])
    head = [f"{peer.version} {family}" for peer, family in columns]
    return markdown(["saved by templax", *head], rows), found


def from_orbax(
    root: Path, nodes: Mapping[str, Any], peers: Sequence[Peer], notes: Notes
) -> tuple[str, list]:
    """What Orbax saved, restored by templax: with a template that is spread, and with its own."""
    columns = [
        (peer, layout)
        for peer in peers
        for layout in dict.fromkeys(layout for _, layout in peer.saved)
    ]
    found: list[tuple[str, str, Tried]] = []
    rows = []
    for name, node in nodes.items():
        if name.endswith(JOB):
            continue  # here it would be the same tree once more
        cells = []
        for peer, layout in columns:
            done = peer.saved[name, layout]
            if "error" in done:
                cells.append("– " + notes.mark(f"this Orbax can't save it: {done['error']}"))
                continue
            path = root / peer.directory / name / layout
            own = peer.restored.get((peer.directory, name, "pytree", 8))
            tried = []
            for how in ("manager", "step") if layout == "manager" else ("template", "catalog"):
                answer = orbax_peer.outcome(restored, path, node, how)
                verdict = judged_back(node, how, answer, own)
                tried.append(Tried(how, layout, 8, verdict))
            found += [(peer.version, name, one) for one in tried]
            cells.append(cell(tried, peer.version, notes))
        rows.append([name, *cells])
    head = [f"{peer.version} {layout}" for peer, layout in columns]
    return markdown(["restored by templax", *head], rows), found


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


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.interop", description=__doc__)
    parser.add_argument(
        "--python", metavar="VERSION=PATH", action="append", required=True, type=_peer
    )
    parser.add_argument("--only", action="append", default=[], help="a tree; default: all")
    parser.add_argument(
        "--dir", type=Path, help="where to write; kept. Default: removed at the end"
    )
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="the tables, for documents")
    options = parser.parse_args(argv)
    peers = sorted(options.python, key=lambda peer: [int(n) for n in peer.version.split(".")])
    with tempfile.TemporaryDirectory(prefix="templax-interop-") as scratch:
        root = (options.dir or Path(scratch)).resolve()
        root.mkdir(parents=True, exist_ok=True)
        nodes = write(root, options.only)
        for peer in peers:
            peer.save(root)
        for peer in peers:
            orbax = dict.fromkeys([peer.directory, peers[-1].directory, interop_job.ORBAX])
            peer.restore(root, [*FILES, *orbax])
        notes = Notes()
        there, found = to_orbax(nodes, peers, notes)
        back, more = from_orbax(root, nodes, peers, notes)
    versions = [
        f"- Orbax {peer.version} with {', '.join(f'{k} {v}' for k, v in peer.packages.items())}"
        for peer in peers
    ]
    text = "\n".join([*versions, "", there, "", back, "", *notes.lines()])
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n")
    _summarise(found, "Orbax restores what templax saved")
    _summarise(more, "templax restores what Orbax saved")
    if any(tried.verdict.kind == "FAIL" for *_, tried in found + more):
        sys.exit("Something that was saved did not come back")


def _summarise(found: Sequence[tuple[str, str, Tried]], what: str) -> None:
    counts = collections.Counter(tried.verdict.kind for *_, tried in found)
    print(f"\n{what}: {len(found)} calls, {dict(counts)}")
    for version, tree, tried in found:
        if (verdict := tried.verdict).kind == "FAIL":
            call = f"{tried.call} of {tried.files} on {tried.devices}"
            print(f"FAIL {version} | {tree} | {call} | {verdict.reason} | {verdict.where}")


def _peer(text: str) -> Peer:
    version, equals, python = text.partition("=")
    if not equals or not version.replace(".", "").isdecimal():
        raise argparse.ArgumentTypeError(f"Expected VERSION=PATH, got {text!r}")
    return Peer(version, python)


if __name__ == "__main__":
    main()
