"""What saves to a bucket: templax, and a plain upload of as many bytes.

Each is opened for a tree, untimed, and returns the call that is timed, which takes a path in the
bucket.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import obstore

from tests.stores.server import Bucket

from ..workloads import PyTree, count_bytes

MIB = 1024 * 1024

CONCURRENCY = (4, 8, 16)
PART_BYTES = (8 * MIB, 16 * MIB, 32 * MIB)

SaveThere = Callable[[str], object]

OpenSaver = Callable[[PyTree, Bucket, list[str]], SaveThere]
"""Tree, bucket, and a list for notes about the run → the timed call."""


def open_templax(tree: PyTree, bucket: Bucket, notes: list[str]) -> SaveThere:
    import templax as tx

    return lambda path: tx.save(f"{bucket.url}/{path}", tree)


def open_templax_in_little_memory(tree: PyTree, bucket: Bucket, notes: list[str]) -> SaveThere:
    import templax as tx

    return lambda path: tx.save(f"{bucket.url}/{path}", tree, memory=64 * MIB)


def open_put(tree: PyTree, bucket: Bucket, notes: list[str]) -> SaveThere:
    """Uploads as many bytes in parts side by side, in the best of several ways."""
    import numpy as np

    data = np.random.default_rng(0).bytes(count_bytes(tree))
    store = bucket.open_store()

    def put(path: str, concurrency: int, part: int) -> None:
        obstore.put(
            store, path, data, use_multipart=True, chunk_size=part, max_concurrency=concurrency
        )

    times: dict[tuple[int, int], float] = {}
    for way in itertools.product(CONCURRENCY, PART_BYTES):
        begin = time.perf_counter()
        put("trial", *way)
        times[way] = time.perf_counter() - begin
        obstore.delete(store, "trial")
    best = min(times, key=lambda way: times[way])
    notes.append(
        f"limit-put: {best[0]} parts at a time, of {best[1] // MIB} MiB each: the fastest of"
        f" {len(times)} ways, {times[best]:.2f} to {max(times.values()):.2f} s"
    )
    return lambda path: put(path, *best)


SAVERS: dict[str, OpenSaver] = {
    "templax": open_templax,
    "templax-64-MiB": open_templax_in_little_memory,
    "limit-put": open_put,
}
