"""A process of a job that restores the same as the others, at the commands of its parent."""

from __future__ import annotations

import gc
import math
import os
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ..measure.processes import make_xla_flags
from ..measure.sample import read_status, trim_heap

LEAVES = 8


def make_shape(mib: int) -> tuple[int, int]:
    """The shape of each of the leaves, which are of bfloat16 and have `mib` MiB together."""
    return mib * (1 << 20) // LEAVES // 2 // 4096, 4096


def serve_job(
    pipe: Connection, index: int, count: int, port: int, mib: int, env: dict[str, str]
) -> None:
    """Joins a job, then answers `(url, case, mode)` with seconds and figures until "stop"."""
    os.environ |= env
    os.environ["XLA_FLAGS"] = make_xla_flags(1)
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Gloo prints there
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    import templax as tx
    from templax._restore.reshard import make_move

    jax.distributed.initialize(f"127.0.0.1:{port}", count, index)
    mesh = jax.make_mesh((count,), ("x",))
    specs = {"columns": P(None, "x"), "replicas": P()}
    hashes: dict[Any, Any] = {}
    pipe.send(("ready",))
    while (message := pipe.recv()) != "stop":
        url, case, mode = message
        sharding = NamedSharding(mesh, specs[case])
        leaf = jax.ShapeDtypeStruct(make_shape(mib), jnp.bfloat16, sharding=sharding)
        template = {f"layer_{i}": leaf for i in range(LEAVES)}
        jax.clear_caches()  # a program restores once, so it pays for what XLA compiles
        make_move.cache_clear()
        plan = tx.plan(url, template, share_reads=mode)
        wanted = LEAVES * math.prod(sharding.shard_shape(leaf.shape)) * 2
        gc.collect()
        trim_heap()
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        rss = read_status("VmRSS")
        begin, cpu = time.perf_counter(), time.process_time()
        tree = jax.block_until_ready(tx.restore(url, template, share_reads=mode))
        took = time.perf_counter() - begin, time.process_time() - cpu
        peak = read_status("VmHWM") - rss
        stats = tx.last_restore()
        assert stats is not None
        found = [
            hash(np.asarray(shard.data).tobytes())
            for name in sorted(tree)
            for shard in tree[name].addressable_shards
        ]
        if hashes.setdefault(case, found) != found:
            pipe.send(("wrong", f"{case} with {mode} differs"))
            return
        figures = stats.read_bytes, stats.received_bytes, peak, wanted + plan.peak_bytes
        pipe.send(("done", *took, *figures, len(stats.shared)))
        del tree, plan
