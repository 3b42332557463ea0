"""Exchanges checkpoints with stock Orbax, both ways, and prints what came back.

    python -m benchmarks.interop --python 0.6.4=PATH --python 0.12.8=PATH

PATH is a Python that has that Orbax; it needs no templax. templax saves every tree of `trees`; each
Orbax restores them by each of its calls, on one and on eight CPU devices, and so it does with what
it saved itself, which is the measure. Then templax restores what each Orbax saved. Values, types,
dtypes, shapes and shardings are compared. Exit status 1: something was lost.
"""

from __future__ import annotations

import argparse
import collections
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # what JAX reads when it is imported
    os.environ.update(JAX_PLATFORMS="cpu", JAX_ENABLE_X64="1")
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

from . import job, orbax_peer
from .exchange import Peer, restored, write
from .save import OURS, OURS_ZSTD
from .trees import JOB
from .verdicts import Notes, Tried, cell, judged, judged_back, markdown

FILES = {OURS: "raw", OURS_ZSTD: "zstd"}
FAMILIES = {
    "PyTree": ("pytree", "pytree+item", "metadata"),
    "Standard": ("standard", "standard+template"),
    "Manager": ("manager", "manager+template", "manager, no args", "manager, saving on"),
    "v1": ("v1", "v1+template"),
}


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
            reference = job.ORBAX if name.endswith(JOB) else newest.directory
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
            orbax = dict.fromkeys([peer.directory, peers[-1].directory, job.ORBAX])
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
