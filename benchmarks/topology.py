"""What it takes to plan a restore for the hosts of a job: `python -m benchmarks.topology`.

Plans a restore of Llama 3.1 405B with the moments of Adam, 126 layers unstacked, on jobs of several
sizes. No array has any bytes: the data files are holes. The checkpoints are

- `hosts`, as 256 hosts of 4 devices save it, each its shards of a mesh of 32 × 32;
- `whole`, as one process saves it, each leaf a contiguous range of one file;
- `orbax`, as `hosts`, without the index of templax: everything is found in Orbax's own database.

Each row is a process of its own. Measured is all of it: Python, the imports, the template, opening
the checkpoint, the plan and its text.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HIDDEN, INNER, HEAD, VOCABULARY = 16384, 53248, 128, 128256
QUERIES, KEYS = 128, 8

LAYER = {
    "attn.q": (HIDDEN, QUERIES * HEAD),
    "attn.k": (HIDDEN, KEYS * HEAD),
    "attn.v": (HIDDEN, KEYS * HEAD),
    "attn.o": (QUERIES * HEAD, HIDDEN),
    "mlp.gate": (HIDDEN, INNER),
    "mlp.up": (HIDDEN, INNER),
    "mlp.down": (INNER, HIDDEN),
    "attn_norm": (HIDDEN,),
    "mlp_norm": (HIDDEN,),
}

ROWS_BY_MODEL = ("embed", "attn.o", "mlp.down")
"""Leaves whose rows are divided along the mesh axis `model`; of the others, the columns are."""

SAVED = {"data": 32, "model": 32}
SAVED_DEVICES = 4
"""The mesh of the job that saved the checkpoint, and the devices of each of its hosts."""

MODEL, DEVICES = 32, 4
"""Of the job that restores it: the size of the mesh axis `model`, and the devices of a host."""


def list_shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Shape of each parameter by its name."""
    shapes: dict[str, tuple[int, ...]] = {"embed": (VOCABULARY, HIDDEN)}
    for i in range(layers):
        shapes |= {f"layers.{i}.{name}": shape for name, shape in LAYER.items()}
    return shapes | {"norm": (HIDDEN,), "head": (HIDDEN, VOCABULARY)}


def list_axes(name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    """The mesh axis that divides each dimension of a parameter: none if it is no matrix."""
    if len(shape) < 2:
        return ()
    return ("model", "data") if name.endswith(ROWS_BY_MODEL) else ("data", "model")


def make_state(layers: int) -> dict[str, Any]:
    """The state of a training, to be traced: bfloat16 parameters, float32 moments, the step."""
    import jax.numpy as jnp

    shapes = list_shapes(layers)

    def nest(dtype: Any) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        for name, shape in shapes.items():
            *parents, last = name.split(".")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = jnp.zeros(shape, dtype)
        return tree

    moments = {name: nest(jnp.float32) for name in ("mu", "nu")}
    return {"params": nest(jnp.bfloat16), "opt": moments, "step": jnp.zeros((), jnp.int32)}


def write_checkpoint(path: Path, kind: str, layers: int) -> None:
    """Writes the metadata of a checkpoint, and holes in place of its data."""
    import ml_dtypes
    import numpy as np

    from templax._catalog.written import ChunkTable, Leaf
    from templax._core.chunk_grid import chunk_shape, grid_shape
    from templax.formats.file_names import INDEX_FILE, MANIFEST
    from templax.formats.ocdbt.write import DataFile
    from templax.formats.orbax.write import build_database, encode_index_file, encode_tree_files

    leaves: list[Leaf] = []
    tiles: list[tuple[int, ...]] = []
    trees = [(("params",), ml_dtypes.bfloat16), (("opt", "mu"), "f4"), (("opt", "nu"), "f4")]
    for prefix, dtype in trees:
        for name, shape in list_shapes(layers).items():
            axes = list_axes(name, shape) if kind != "whole" else ()
            steps = [SAVED[axis] for axis in axes] or [1] * len(shape)
            tiles.append(tuple(n // step for n, step in zip(shape, steps, strict=True)))
            path_ = (*prefix, *name.split("."))
            leaves.append(Leaf(".".join(path_), path_, "jax.Array", shape, np.dtype(dtype)))
    leaves.append(Leaf("step", ("step",), "jax.Array", (), np.dtype("i4")))
    tiles.append(())
    sizes = [leaf.dtype.itemsize for leaf in leaves]
    most = 1 << 62 if kind == "orbax" else None  # Orbax writes each shard as a chunk
    chunks = [
        chunk_shape(tile, size, most, padded=False) for tile, size in zip(tiles, sizes, strict=True)
    ]
    table = ChunkTable(leaves, chunks)
    hosts = SAVED["data"] * SAVED["model"] // SAVED_DEVICES if kind != "whole" else 1
    ends = np.zeros(hosts, np.int64)
    for i, (leaf, tile, chunk) in enumerate(zip(leaves, tiles, chunks, strict=True)):
        rows = slice(table.first_chunk[i], table.first_chunk[i + 1])
        grid = grid_shape(leaf.shape, chunk)
        cells = np.indices(grid).reshape(len(grid), math.prod(grid))
        owner = np.zeros(cells.shape[1], np.int64)
        if tile != leaf.shape:
            at = {
                axis: cell * c // t
                for axis, cell, c, t in zip(
                    list_axes(leaf.name, leaf.shape), cells, chunk, tile, strict=True
                )
            }
            owner = (at["data"] * SAVED["model"] + at["model"]) // SAVED_DEVICES
        nbytes = int(np.prod(chunk, dtype=np.int64)) * leaf.dtype.itemsize
        order = np.argsort(owner, kind="stable")
        counts = np.bincount(owner, minlength=hosts)
        within = np.empty_like(owner)
        within[order] = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        table.file[rows], table.nbytes[rows] = owner + (kind == "orbax"), nbytes
        table.offset[rows] = ends[owner] + within * nbytes
        ends += -(-counts * nbytes // 4096) * 4096
    files = [f"ocdbt.process_{host}/d/{host:032x}" for host in range(hosts)]
    ends = ends.tolist()
    nodes = b""
    if kind == "orbax":  # the nodes of the database are in a file of their own
        files, ends = [f"d/{0:032x}", *files], [0, *ends]
    for file in files:
        (path / file).parent.mkdir(parents=True)
    small = encode_tree_files(leaves, chunks, ())
    if kind == "orbax":
        data_files = [DataFile(file, file.find("/d/") + 1) for file in files]
        nodes, small[MANIFEST] = build_database(leaves, chunks, table, data_files, 0, None)
    for file, end in zip(files, ends, strict=True):
        with (path / file).open("wb") as opened:
            opened.truncate(end)
            if file == files[0]:
                opened.seek(end)
                opened.write(nodes)
    if kind != "orbax":
        crcs = np.zeros(len(leaves), "<u4")
        listed = list(zip(files, ends, strict=True))
        small[INDEX_FILE] = encode_index_file(leaves, chunks, table, listed, small, (), False, crcs)
    for name, data in small.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)


def plan_hosts(path: str, hosts: int, layers: int, *, shown: bool) -> None:
    """Plans one job, in this process, and prints how long each step took."""
    begin = time.perf_counter()
    import functools

    from jax.sharding import AbstractMesh
    from jax.sharding import PartitionSpec as P

    import templax as tx

    def choose_spec(name: str, leaf: Any) -> P:
        return P(*list_axes(name, leaf.shape))

    took = {"import": time.perf_counter() - begin}
    begin = time.perf_counter()
    sizes = {"data": hosts * DEVICES // MODEL, "model": MODEL}
    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes))
    state = functools.partial(make_state, layers)
    template = tx.template_of(state, mesh=mesh, specs=choose_spec)
    took["template"] = time.perf_counter() - begin
    begin = time.perf_counter()
    catalog = tx.open(path)
    took["open"] = time.perf_counter() - begin
    begin = time.perf_counter()
    topology = tx.Topology(hosts=hosts, devices_per_host=DEVICES, mesh=sizes)
    plan = tx.plan(catalog, template, topology=topology)
    took["plan"] = time.perf_counter() - begin
    begin = time.perf_counter()
    text = str(plan)
    took["text"] = time.perf_counter() - begin
    if shown:
        print(text, file=sys.stderr)
    status = Path("/proc/self/status").read_text()
    took["peak MiB"] = int(status.split("VmHWM:")[1].split()[0]) / 1024
    print(json.dumps(took))


def measure(path: Path, hosts: int, layers: int, shown: bool) -> None:
    """Prints a row of the table: the whole process of `plan_hosts`."""
    arguments = [str(path), str(hosts), "--layers", str(layers), *["--show"] * shown]
    command = [sys.executable, "-m", "benchmarks.topology", "--plan", *arguments]
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        took = json.loads(process.stdout.read())
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - begin
    cells = [
        f"{hosts:,}",
        path.name,
        f"{seconds:.1f}",
        f"{used.ru_utime + used.ru_stime:.1f}",
        f"{took['peak MiB']:,.0f}",
        *(f"{took[step]:.1f}" for step in ("import", "template", "open", "plan")),
    ]
    print("|", " | ".join(cells), "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.topology", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--hosts", default="8,32,128,512", metavar="N,...")
    parser.add_argument("--kinds", default="hosts,whole,orbax", metavar="NAME,...")
    parser.add_argument("--layers", type=int, default=126)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--dir", help="where the metadata is written; kept, and used again")
    parser.add_argument("--show", action="store_true", help="print each plan")
    parser.add_argument("--plan", nargs=2, metavar=("PATH", "HOSTS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if options.plan is not None:
        path, hosts = options.plan
        plan_hosts(path, int(hosts), options.layers, shown=options.show)
        return
    with tempfile.TemporaryDirectory(prefix="templax-bench-") as scratch:
        root = Path(options.dir or scratch)
        kinds = options.kinds.split(",")
        for kind in kinds:
            if not (root / kind).exists():
                (root / kind).mkdir(parents=True)
                write_checkpoint(root / kind, kind, options.layers)
        print("| Hosts | Checkpoint | Seconds | CPU s | MiB | import | template | open | plan |")
        print("|---:|---|" + "---:|" * 7)
        for _ in range(options.rounds):
            for kind in kinds:
                for hosts in map(int, options.hosts.split(",")):
                    measure(root / kind, hosts, options.layers, options.show)


if __name__ == "__main__":
    main()
