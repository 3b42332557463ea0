"""One restore as a whole process.

    python -m benchmarks.restore.fresh DIR SCALE WORKLOAD LIBRARY [check]

Prints what /proc says about the process. The parent measures the time.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ..workloads import WORKLOADS
from .libraries import LIBRARIES


def main(directory: str, scale: str, name: str, library: str, check: str = "") -> None:
    peer = LIBRARIES[library]
    job = peer.make_job(Path(directory), WORKLOADS[name], float(scale))
    tree = peer.open(job)()

    import jax

    jax.block_until_ready(tree)
    facts = Path("/proc/self/status").read_text(), Path("/proc/self/io").read_text()
    if check and not peer.limit:
        from ..measure.compare import WrongResult, compare_result  # not in timed samples

        try:
            compare_result(Path(directory), tree, job)
        except WrongResult as error:
            sys.exit(f"wrong: {error}")
    print("\n".join(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
