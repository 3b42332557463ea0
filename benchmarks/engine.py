"""Figures of the engine that have no peer: `python -m benchmarks.engine [SHARE]`.

Opens a catalog of a million chunks (seconds, peak resident set), and restores leaves with and
without checking their crc32c, in raw chunks, in zstd chunks, and in raw chunks with a checksum per
block as `save` writes them (ratios of pairs, median and quartiles). SHARE scales the sizes.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from .measure.sample import read_status
from .report.outcomes import summarize

if TYPE_CHECKING:
    from templax.formats import Chunk

CHUNKS = 1_000_000
LEAVES = 64
SIDE = 2048
"""Each restored leaf is a square of so many float32."""

ROUNDS = 9
BLOCK = 4 * 1024 * 1024
MIB = 1 << 20


def measure_open(directory: Path, chunks: int = CHUNKS) -> None:
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
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = read_status("VmRSS")
    begin = time.perf_counter()
    catalog = tx.open(directory)
    seconds, peak = time.perf_counter() - begin, read_status("VmHWM") - before
    what = f"{100 * rows:,} chunks of {len(catalog.entries)} leaves"
    print(f"open: {what}: {seconds:.2f} s, {peak / MIB:.0f} MiB")


def measure_verify(directory: Path, leaves: int = LEAVES) -> None:
    """Restores the same leaves with and without `verify`, in turns."""
    import jax
    import numpy as np

    import templax as tx
    from templax.formats import Catalog, LeafEntry
    from templax.storage import Local

    shape = (SIDE, SIDE)
    template = {f"l{i}": jax.ShapeDtypeStruct(shape, np.float32) for i in range(leaves)}
    entries = tuple(LeafEntry(name, (name,), shape, np.dtype("f4")) for name in template)
    for kind in ("raw", "zstd", "blocks"):
        chunks = dict(zip(template, _write_chunks(directory, kind, leaves), strict=True))

        def locate(
            entries: Iterable[LeafEntry],
            damages: list[tx.Corrupted] | None = None,
            chunks: dict[str, Chunk] = chunks,
        ) -> dict[str, tuple[Chunk, ...]]:
            return {entry.name: (chunks[entry.name],) for entry in entries}

        catalog = Catalog(kind, "made", "made here", entries, Local(directory), locate)
        ratios = []
        for i in range(ROUNDS + 1):
            seconds = {}
            for verify in ("available", "off") if i % 2 else ("off", "available"):
                gc.collect()
                begin = time.perf_counter()
                tree = jax.block_until_ready(tx.restore(catalog, template, verify=verify))
                seconds[verify] = time.perf_counter() - begin
                del tree
            ratios.append(seconds["available"] / seconds["off"])
        found = summarize(ratios[1:])  # the first round warms up
        print(
            f"verify, {kind}: {found.median:.2f} [{found.q1:.2f}-{found.q3:.2f}]"
            " of the restore without"
        )


def _write_chunks(directory: Path, kind: str, leaves: int) -> list[Chunk]:
    """Writes one file with a chunk per leaf, checked by a trailing crc32c or, "blocks", by many."""
    import numpy as np
    import zstandard

    from templax._codecs.crc32c import crc32c
    from templax._core.boxes import full_box
    from templax.formats import Chunk, Extent

    codecs = {"raw": ("crc32c",), "zstd": ("crc32c", "zstd"), "blocks": ()}[kind]
    chunks = []
    with (directory / kind).open("wb") as file:
        for i in range(leaves):
            data = np.random.default_rng(i).standard_normal((SIDE, SIDE), np.float32).tobytes()
            data = zstandard.compress(data, 1) if kind == "zstd" else data
            start, sums = file.tell(), ()
            if codecs:
                data += crc32c(data).to_bytes(4, "little")
            else:
                sums = tuple(crc32c(data[i : i + BLOCK]) for i in range(0, len(data), BLOCK))
            file.write(data)
            extent = Extent(kind, start, file.tell())
            chunks.append(Chunk(extent, full_box((SIDE, SIDE)), codecs, "C", True, sums, BLOCK))
    return chunks


def main() -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    share = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    with tempfile.TemporaryDirectory(prefix="templax-bench-") as scratch:
        (Path(scratch) / "many").mkdir()
        measure_open(Path(scratch) / "many", max(100, int(CHUNKS * share)))
        measure_verify(Path(scratch), max(1, int(LEAVES * share)))


if __name__ == "__main__":
    main()
