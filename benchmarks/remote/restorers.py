"""The libraries that restore from a bucket, and plain requests for the same bytes.

Each is opened for a job, untimed, and returns the call that is timed. The name of `job.path` is the
path in the bucket.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import obstore

from tests.stores.server import ACCESS_KEY, REGION, SECRET_KEY, Bucket

from ..jobs import Job, Restore
from ..workloads import PyTree, name_leaves

MIB = 1024 * 1024

CONCURRENCY = (8, 16, 32, 64)
PIECE_BYTES = (4 * MIB, 8 * MIB, 16 * MIB)

_TRIALS = 1
"""How often `limit-get` tries each way before the rounds."""


@dataclass(frozen=True)
class Restorer:
    """How a library restores from a bucket.

    Attributes:
        open: Imports what it needs and returns the timed call.
        kind: The kind of file that it reads, a key of `files.WRITERS`.
        limit: Returns no tree to compare.
    """

    open: Callable[[Job, Bucket], Restore]
    kind: str = "templax"
    limit: bool = False


def open_templax(job: Job, bucket: Bucket, **options: Any) -> Restore:
    import templax as tx

    return lambda: tx.restore(f"{bucket.url}/{job.path.name}", job.template, **options)


def open_templax_in_little_memory(job: Job, bucket: Bucket) -> Restore:
    return open_templax(job, bucket, memory=64 * MIB)


def open_orbax(job: Job, bucket: Bucket) -> Restore:
    """Orbax itself, which is told that the arrays of a local checkpoint are in the bucket.

    Its own way to S3 needs libraries that reach Amazon's only. So it reads its metadata from the
    local file, in no time, which is in its favour.
    """
    import orbax.checkpoint as ocp
    from orbax.checkpoint._src.serialization import tensorstore_utils

    place = _place_in_bucket(job, bucket)
    checkpointer = ocp.PyTreeCheckpointer()

    def restore() -> PyTree:
        with (
            mock.patch.object(tensorstore_utils, "_use_gcs_driver", return_value=True),
            mock.patch.object(
                tensorstore_utils.gcs_utils, "get_kvstore_for_gcs", return_value=place
            ),
        ):
            args = ocp.checkpoint_utils.construct_restore_args(job.template)
            return checkpointer.restore(job.path, item=job.template, restore_args=args)

    return restore


def _place_in_bucket(job: Job, bucket: Bucket) -> dict[str, Any]:
    """What TensorStore calls the place of a checkpoint."""
    place: dict[str, Any] = {"driver": "gcs", "bucket": bucket.name, "path": f"{job.path.name}/"}
    if bucket.server.scheme == "s3":
        place |= {
            "driver": "s3",
            "endpoint": bucket.server.url,
            "aws_region": REGION,
            "aws_credentials": {"type": "environment"},
        }
    return place


def open_tensorstore(job: Job, bucket: Bucket) -> Restore:
    """Reads the arrays as Orbax 0.12 does from remote stores, all at once, and places them."""
    import jax
    import tensorstore as ts

    store = {
        "driver": "ocdbt",
        "base": _place_in_bucket(job, bucket),
        "cache_pool": "cache_pool#ocdbt",
        "experimental_read_coalescing_threshold_bytes": 1_000_000,
        "experimental_read_coalescing_merged_bytes": 500_000_000_000,
        "experimental_read_coalescing_interval": "1ms",
    }
    pools = {"cache_pool#ocdbt": {"total_bytes_limit": 100_000_000}}
    options = {"recheck_cached_data": False, "recheck_cached_metadata": False}
    templates = name_leaves(job.template)

    def restore() -> PyTree:
        context = ts.Context({"file_io_concurrency": {"limit": 128}, **pools})
        specs = [
            {"driver": "zarr", "kvstore": {**store, "path": f"{name}/"}, **options}
            for name in templates
        ]
        opened = [ts.open(ts.Spec(spec), open=True, context=context) for spec in specs]
        reads = [array.result().read() for array in opened]
        values = [read.result() for read in reads]
        leaves = jax.device_put(values, [t.sharding for t in templates.values()])
        return jax.tree.unflatten(jax.tree.structure(job.template), leaves)

    return restore


def open_download(job: Job, bucket: Bucket) -> Restore:
    """Downloads the file in one request of obstore, then loads it."""
    from safetensors.flax import load_file

    store = bucket.open_store()

    def restore() -> PyTree:
        with _make_scratch() as path:
            with path.open("wb") as file:
                for chunk in obstore.get(store, job.path.name).stream(min_chunk_size=MIB):
                    file.write(chunk)
            return load_file(path)

    return restore


def open_boto3_download(job: Job, bucket: Bucket) -> Restore:
    """Downloads the file with boto3, in ten threads and pieces of 8 MiB, then loads it."""
    import boto3
    from safetensors.flax import load_file

    client = boto3.client(
        "s3",
        endpoint_url=bucket.server.url,
        region_name=REGION,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
    )

    def restore() -> PyTree:
        with _make_scratch() as path:
            client.download_file(bucket.name, job.path.name, str(path))
            return load_file(path)

    return restore


@contextmanager
def _make_scratch() -> Iterator[Path]:
    """A file in memory: the fastest disk that a download can have."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        assert shutil.disk_usage(directory).free > 2**30
        yield Path(directory, "model.safetensors")


def open_get(job: Job, bucket: Bucket) -> Restore:
    """Fetches all bytes of all files in ranges side by side, in the best of several ways."""
    store, prefix = bucket.open_store(), f"{job.path.name}/"
    sizes = {found["path"]: found["size"] for page in obstore.list(store, prefix) for found in page}

    def get_all(concurrency: int, piece: int) -> None:
        ranges = [
            (path, start, min(start + piece, size))
            for path, size in sizes.items()
            for start in range(0, size, piece)
        ]
        asyncio.run(_get_ranges(store, ranges, concurrency))

    times: dict[tuple[int, int], float] = {}
    for _ in range(_TRIALS):
        for way in itertools.product(CONCURRENCY, PIECE_BYTES):
            begin = time.perf_counter()
            get_all(*way)
            times[way] = min(times.get(way, float("inf")), time.perf_counter() - begin)
    best = min(times, key=lambda way: times[way])
    job.notes.append(
        f"limit-get: {best[0]} requests at a time, for {best[1] // MIB} MiB each: the fastest of"
        f" {len(times)} ways, {times[best]:.2f} to {max(times.values()):.2f} s"
    )
    return lambda: get_all(*best)


async def _get_ranges(store: Any, ranges: list[tuple[str, int, int]], concurrency: int) -> None:
    waiting = iter(ranges)

    async def get() -> None:
        for path, start, stop in waiting:
            found = await obstore.get_async(store, path, options={"range": (start, stop)})
            async for _ in found.stream(min_chunk_size=MIB):
                pass

    await asyncio.gather(*[get() for _ in range(concurrency)])


RESTORERS: dict[str, Restorer] = {
    "templax": Restorer(open_templax),
    "templax-64-MiB": Restorer(open_templax_in_little_memory),
    "tensorstore": Restorer(open_tensorstore),
    "orbax": Restorer(open_orbax),
    "templax-orbax": Restorer(open_templax, kind="orbax"),
    "tensorstore-orbax": Restorer(open_tensorstore, kind="orbax"),
    "orbax-orbax": Restorer(open_orbax, kind="orbax"),
    "obstore-safetensors": Restorer(open_download, kind="safetensors"),
    "boto3-safetensors": Restorer(open_boto3_download, kind="safetensors"),
    "limit-get": Restorer(open_get, limit=True),
}
