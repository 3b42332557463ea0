"""Saves trees by a job of several processes, each with its share of the eight devices.

By templax, and by the Orbax beside it: what such a save says of its devices no single process has.
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

PROCESSES = 2
ORBAX = "orbax-job"
"""Where Orbax's saves are."""


def run(root: Path, names: Sequence[str]) -> None:
    """Saves those trees of `trees.json`, by processes of their own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [str(root), json.dumps(names), str(port), str(PROCESSES)]
    children = [
        subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.job", *arguments, str(index)],
            stdout=subprocess.DEVNULL,  # its libraries print there
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                "JAX_PLATFORMS": "cpu",
                "JAX_ENABLE_X64": "1",
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={8 // PROCESSES}",
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

    from . import orbax_peer
    from .save import save

    nodes = json.loads((root / "trees.json").read_text())
    values = np.load(root / "values.npz")

    def leaf(node: Mapping[str, Any]) -> Any:
        if node["kind"] != "jax":
            return orbax_peer.concrete(node, values)
        data = values[node["values"]].view(orbax_peer.dtype_of(node["dtype"]))
        data = data.reshape(node["shape"])
        return jax.make_array_from_callback(
            data.shape, orbax_peer.sharding_of(node), data.__getitem__
        )

    for name in names:
        tree = orbax_peer.built(nodes[name], leaf)
        save(root, name, tree)
        for layout, file in (("item", "item"), ("item", "v1/pytree"), ("manager", "manager")):
            orbax_peer.SAVES[layout](str(root / ORBAX / name / file), tree)
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3], *map(int, sys.argv[4:]))
