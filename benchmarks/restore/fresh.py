"""A restore as the whole life of a process.

    python -m benchmarks.restore.fresh DIR SCALE WORKLOAD LIBRARY [check]

Prints the lines of /proc that only the process itself can read. Whoever starts it takes the time.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ..jobs import Job
from ..workloads import WORKLOADS
from .libraries import LIBRARIES


def main(directory: str, scale: str, name: str, library: str, check: str = "") -> None:
    peer, workload = LIBRARIES[library], WORKLOADS[name]
    path = Path(directory, f"{name}.{peer.kind(workload)}")
    job = Job(path, workload, float(scale), peer.uncast)
    tree = peer.open(job)()

    import jax

    jax.block_until_ready(tree)
    facts = Path("/proc/self/status").read_text(), Path("/proc/self/io").read_text()
    if check and not peer.limit:
        from ..measure.compare import Wrong, compare

        try:
            compare(Path(directory), tree, job)
        except Wrong as error:
            sys.exit(f"wrong: {error}")
    print("\n".join(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
