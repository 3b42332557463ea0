"""Exchanges checkpoints with stock Orbax, both ways, and prints what differs.

    python -m benchmarks.interop --python 0.6.4=PATH --python 0.12.8=PATH

PATH is a Python with that version of Orbax; it needs no templax. templax saves many trees, one per
kind of leaf or layout. Each Orbax restores them with each of its calls, on one and on eight CPU
devices, and does the same with its own checkpoints, for comparison. Then templax restores what each
Orbax saved. Values, types, dtypes, shapes and shardings are compared. The exit status is 1 if
something was lost.
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

from .environment import make_environment

if __name__ == "__main__":
    os.environ.update(make_environment(8))  # before anything imports JAX

from . import job, orbax_peer
from .exchange import Peer, restore_with_templax, save_trees
from .save import OURS, OURS_ZSTD
from .table import Notes, Tried, format_cell, format_table
from .trees import JOB
from .verdicts import judge_orbax, judge_templax

FILES = {OURS: "raw", OURS_ZSTD: "zstd"}
FAMILIES = {
    "PyTree": ("pytree", "pytree+item", "metadata"),
    "Standard": ("standard", "standard+template"),
    "Manager": ("manager", "manager+template", "manager, no args", "manager, saving on"),
    "v1": ("v1", "v1+template"),
}

Found = list[tuple[str, str, Tried]]
"""Version of Orbax, name of the tree, and one call."""


def tabulate_orbax_restores(
    nodes: Mapping[str, Any], peers: Sequence[Peer], notes: Notes
) -> tuple[str, Found]:
    """What templax saved, restored by Orbax: a table, and all verdicts."""
    newest = peers[-1]
    columns = [
        (peer, family)
        for peer in peers
        for family, calls in FAMILIES.items()
        if any(key[2] in calls for key in peer.restored)
    ]
    found: Found = []
    rows = []
    for name, node in nodes.items():
        cells = []
        for peer, family in columns:
            tried = []
            reference = job.ORBAX if name.endswith(JOB) else newest.directory
            for (directory, tree, call, devices), ours in peer.restored.items():
                if tree == name and call in FAMILIES[family] and directory in FILES:
                    verdict = judge_orbax(
                        node,
                        call,
                        ours,
                        own=peer.restored.get((peer.directory, name, call, devices)),
                        newest=peer.restored.get((reference, name, call, devices)),
                        saved=peer.saved.get((name, "item")),
                    )
                    tried.append(Tried(call, FILES[directory], devices, verdict))
            found += [(peer.version, name, one) for one in tried]
            cells.append(format_cell(tried, newest.version, notes))
        rows.append([name, *cells])
    head = [f"{peer.version} {family}" for peer, family in columns]
    return format_table(["saved by templax", *head], rows), found


def tabulate_templax_restores(
    root: Path, nodes: Mapping[str, Any], peers: Sequence[Peer], notes: Notes
) -> tuple[str, Found]:
    """What Orbax saved, restored by templax in two ways: a table, and all verdicts."""
    columns = [
        (peer, layout)
        for peer in peers
        for layout in dict.fromkeys(layout for _, layout in peer.saved)
    ]
    found: Found = []
    rows = []
    for name, node in nodes.items():
        if name.endswith(JOB):
            continue  # a peer is a single process, which saves the same as for the tree without JOB
        cells = []
        for peer, layout in columns:
            saved = peer.saved[name, layout]
            if "error" in saved:
                cells.append("– " + notes.add(f"this Orbax can't save it: {saved['error']}"))
                continue
            path = root / peer.directory / name / layout
            own = peer.restored.get((peer.directory, name, "pytree", 8))
            tried = []
            for how in ("manager", "step") if layout == "manager" else ("template", "catalog"):
                answer = orbax_peer.try_call(restore_with_templax, path, node, how)
                verdict = judge_templax(node, how, answer, own)
                tried.append(Tried(how, layout, 8, verdict))
            found += [(peer.version, name, one) for one in tried]
            cells.append(format_cell(tried, peer.version, notes))
        rows.append([name, *cells])
    head = [f"{peer.version} {layout}" for peer, layout in columns]
    return format_table(["restored by templax", *head], rows), found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.interop",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--python",
        metavar="VERSION=PATH",
        action="append",
        required=True,
        type=_parse_peer,
        help="a version of Orbax and a Python that has it; may be repeated",
    )
    parser.add_argument(
        "--only",
        metavar="TREE",
        action="append",
        default=[],
        help="exchange this tree; may be repeated; default: all trees",
    )
    parser.add_argument(
        "--dir", type=Path, help="write checkpoints here and keep them; default: remove them"
    )
    parser.add_argument(
        "--markdown", metavar="FILE", type=Path, help="write the tables for a document"
    )
    options = parser.parse_args(argv)
    peers = sorted(options.python, key=lambda peer: [int(n) for n in peer.version.split(".")])
    with tempfile.TemporaryDirectory(prefix="templax-interop-") as scratch:
        root = (options.dir or Path(scratch)).resolve()
        root.mkdir(parents=True, exist_ok=True)
        nodes = save_trees(root, options.only)
        for peer in peers:
            peer.save(root)
        for peer in peers:
            orbax = dict.fromkeys([peer.directory, peers[-1].directory, job.ORBAX])
            peer.restore(root, [*FILES, *orbax])
        notes = Notes()
        by_orbax, found = tabulate_orbax_restores(nodes, peers, notes)
        by_templax, more = tabulate_templax_restores(root, nodes, peers, notes)
    versions = [
        f"- Orbax {peer.version} with {', '.join(f'{k} {v}' for k, v in peer.packages.items())}"
        for peer in peers
    ]
    text = "\n".join([*versions, "", by_orbax, "", by_templax, "", *notes.list_lines()])
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n")
    _print_summary(found, "Orbax restores what templax saved")
    _print_summary(more, "templax restores what Orbax saved")
    if any(tried.verdict.kind == "FAIL" for *_, tried in found + more):
        sys.exit("Some of what was saved was not restored as it was")


def _print_summary(found: Found, what: str) -> None:
    counts = collections.Counter(tried.verdict.kind for *_, tried in found)
    print(f"\n{what}: {len(found)} calls, {dict(counts)}")
    for version, tree, tried in found:
        if (verdict := tried.verdict).kind == "FAIL":
            call = f"{tried.call} of {tried.files} on {tried.devices}"
            print(f"FAIL {version} | {tree} | {call} | {verdict.reason} | {verdict.where}")


def _parse_peer(text: str) -> Peer:
    version, equals, python = text.partition("=")
    if not equals or not version.replace(".", "").isdecimal():
        raise argparse.ArgumentTypeError(f"Expected VERSION=PATH, got {text!r}")
    return Peer(version, python)


if __name__ == "__main__":
    main()
