"""Saves trees with a job of several processes, which share the eight devices.

Both templax and the installed Orbax save: a reference for judging Orbax's restores must come from
such a job, too, because its checkpoints name devices that a single process doesn't have.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .environment import make_environment

PROCESSES = 2
ORBAX = "orbax-job"
"""The directory of Orbax's checkpoints."""


def run_job(root: Path, names: Sequence[str]) -> None:
    """Saves some of the trees in `trees.json` with a job of `PROCESSES` processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [str(root), json.dumps(names), str(port), str(PROCESSES)]
    children = [
        subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.job", *arguments, str(index)],
            stdout=subprocess.DEVNULL,  # the libraries print to it
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                **make_environment(8 // PROCESSES),
            },
        )
        for index in range(PROCESSES)
    ]
    try:
        codes = [child.wait(timeout=300) for child in children]
        if any(codes):
            raise RuntimeError("A process of the job failed")
    finally:
        for child in children:
            child.kill()


def main(root: Path, names: Sequence[str], port: str, count: int, index: int) -> None:
    import jax
    import numpy as np

    jax.distributed.initialize(f"127.0.0.1:{port}", count, index)

    # Only now: nothing may touch the devices before the processes know of each other.
    from . import orbax_peer
    from .save import save_layouts

    nodes = json.loads((root / "trees.json").read_text())
    values = np.load(root / "values.npz")

    def make_leaf(node: Mapping[str, Any]) -> Any:
        if node["kind"] != "jax":
            return orbax_peer.make_leaf(node, values)
        data = values[node["values"]].view(orbax_peer.to_dtype(node["dtype"]))
        data = data.reshape(node["shape"])
        sharding = orbax_peer.make_sharding(node.get("mesh"))
        return jax.make_array_from_callback(data.shape, sharding, data.__getitem__)

    for name in names:
        tree = orbax_peer.build_tree(nodes[name], make_leaf)
        save_layouts(root, name, tree)
        for layout, file in (("item", "item"), ("item", "v1/pytree"), ("manager", "manager")):
            orbax_peer.SAVES[layout](str(root / ORBAX / name / file), tree)
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3], *map(int, sys.argv[4:]))
