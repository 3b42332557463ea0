"""Figures of the engine that have no peer: `python -m benchmarks.engine`.

Opening a catalog of a million chunks (seconds, peak of the resident set), and what checking a
crc32c adds to a restore of raw and of zstd chunks, and of raw ones in blocks as `save` writes them
(paired, median and quartiles).
"""

from __future__ import annotations

import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

CHUNKS = 1_000_000
ROUNDS = 9
BLOCK = 4 * 1024 * 1024


def opening(directory: Path, chunks: int = CHUNKS) -> None:
    """Saves 100 arrays of small chunks as an OCDBT database, and opens it in this process."""
    import numpy as np
    import tensorstore as ts

    import templax as tx

    base = {
        "driver": "ocdbt",
        "base": f"file://{directory}/",
        "config": {"max_inline_value_bytes": 0},
    }
    rows = chunks // 100
    transaction = ts.Transaction()
    for i in range(100):
        spec = {
            "driver": "zarr",
            "kvstore": {**base, "path": f"layer_{i}/"},
            "metadata": {"shape": [rows, 8], "chunks": [1, 8], "dtype": "<f4", "compressor": None},
        }
        array = ts.open(spec, create=True).result()
        values = np.random.default_rng(i).random((rows, 8), np.float32)
        array.with_transaction(transaction).write(values).result()
    transaction.commit_async().result()
    tx.open(directory)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    before = _resident("VmRSS")
    begin = time.perf_counter()
    catalog = tx.open(directory)
    seconds, peak = time.perf_counter() - begin, _resident("VmHWM") - before
    what = f"{100 * rows:,} chunks of {len(catalog.entries)} leaves"
    print(f"open: {what}: {seconds:.2f} s, {peak:.0f} MiB")


def checking(directory: Path, leaves: int = 64, side: int = 2048) -> None:
    """Restores the same leaves with and without `verify`, in turns."""
    import jax
    import numpy as np
    import zstandard

    import templax as tx
    from templax._boxes import whole
    from templax._codecs import crc32c
    from templax.formats import Catalog, Chunk, Extent, LeafEntry
    from templax.sources import Local

    shape = (side, side)
    template = {f"l{i}": jax.ShapeDtypeStruct(shape, np.float32) for i in range(leaves)}
    for kind, codecs in (("raw", ("crc32c",)), ("zstd", ("crc32c", "zstd")), ("blocks", ())):
        chunks: dict[str, tuple[Chunk, ...]] = {}
        with (directory / kind).open("wb") as file:
            for i, name in enumerate(template):
                data = np.random.default_rng(i).standard_normal(shape, np.float32).tobytes()
                data = zstandard.compress(data, 1) if kind == "zstd" else data
                start, sums = file.tell(), ()
                if codecs:
                    data += crc32c(data).to_bytes(4, "little")
                else:
                    sums = tuple(crc32c(data[i : i + BLOCK]) for i in range(0, len(data), BLOCK))
                file.write(data)
                extent = Extent(kind, start, file.tell())
                chunks[name] = (Chunk(extent, whole(shape), codecs, "C", True, sums, BLOCK),)

        def locate(
            entries: Iterable[LeafEntry],
            damages: list[tx.Damaged] | None = None,
            chunks: dict[str, tuple[Chunk, ...]] = chunks,
        ) -> dict[str, tuple[Chunk, ...]]:
            return {entry.name: chunks[entry.name] for entry in entries}

        found = tuple(LeafEntry(name, (name,), shape, np.dtype("f4")) for name in template)
        catalog = Catalog(kind, "made", "made here", found, Local(directory), locate)
        ratios = []
        for i in range(ROUNDS + 1):
            took = {}
            for verify in ("available", "off") if i % 2 else ("off", "available"):
                gc.collect()
                begin = time.perf_counter()
                tree = jax.block_until_ready(tx.restore(catalog, template, verify=verify))
                took[verify] = time.perf_counter() - begin
                del tree
            ratios.append(took["available"] / took["off"])
        low, middle, high = statistics.quantiles(ratios[1:], n=4, method="inclusive")
        print(f"verify, {kind}: {middle:.2f} [{low:.2f}-{high:.2f}] of the restore without")


def _resident(key: str) -> float:
    """A line of /proc/self/status, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024


def main() -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    share = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    with tempfile.TemporaryDirectory(prefix="templax-bench-") as scratch:
        (Path(scratch) / "many").mkdir()
        opening(Path(scratch) / "many", max(100, int(CHUNKS * share)))
        checking(Path(scratch), max(1, int(64 * share)))


if __name__ == "__main__":
    main()
