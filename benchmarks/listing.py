"""What `templax ls` takes, from the start of the process to its exit, for each format.

    python -m benchmarks.listing --before ../other/src --rounds 10 --leaves 1,20000

Files of each format have float32 leaves of 8 and 32 elements. Each round lists each of them once
with either version of templax, in turns, and starts a Python that only imports numpy. Printed is by
how much the median exceeds that of numpy, in milliseconds: CPU time (user and system), which says
more than the clock on a busy machine, and the time by the clock.

The files of PyTorch are left out where it is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_MODULES = 20
"""Leaves of one layer: a kernel and a bias for each of ten modules."""


def _make_tree(leaves: int) -> dict[str, Any]:
    import numpy as np

    if leaves < _MODULES:
        return {f"w{i}": np.full((4, 8), i, np.float32) for i in range(leaves)}
    names = [f"{part}_{name}" for part in ("attn", "mlp") for name in ("q", "k", "v", "o", "norm")]

    def make(layer: int) -> dict[str, Any]:
        kernel, bias = np.full((4, 8), layer, np.float32), np.full(8, layer, np.float32)
        return {name: {"kernel": kernel.copy(), "bias": bias.copy()} for name in names}

    return {"params": {f"layer_{i}": make(i) for i in range(leaves // _MODULES)}}


def _flatten(tree: dict[str, Any]) -> dict[str, Any]:
    from flax.traverse_util import flatten_dict

    return flatten_dict(tree, sep=".")


def _write_templax(path: Path, tree: dict[str, Any]) -> None:
    import templax as tx

    tx.save(path, tree)


def _write_safetensors(path: Path, tree: dict[str, Any]) -> None:
    import templax as tx

    tx.save(path, tree, format="safetensors")


def _write_orbax(path: Path, tree: dict[str, Any], *, use_ocdbt: bool) -> None:
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=use_ocdbt)) as checkpointer:
        checkpointer.save(path, tree)


def _write_msgpack(path: Path, tree: dict[str, Any]) -> None:
    from flax.serialization import msgpack_serialize

    path.write_bytes(msgpack_serialize(tree))


def _write_npz(path: Path, tree: dict[str, Any]) -> None:
    import numpy as np

    with path.open("wb") as file:
        np.savez(file, **_flatten(tree))


def _write_equinox(path: Path, tree: dict[str, Any]) -> None:
    import equinox

    with path.open("wb") as file:
        equinox.tree_serialise_leaves(file, tree)


def _write_torch(path: Path, tree: dict[str, Any]) -> None:
    import torch

    torch.save({name: torch.from_numpy(leaf) for name, leaf in _flatten(tree).items()}, path)


def _write_dcp(path: Path, tree: dict[str, Any]) -> None:
    import torch
    import torch.distributed.checkpoint as dcp

    leaves = {name: torch.from_numpy(leaf) for name, leaf in _flatten(tree).items()}
    dcp.save(leaves, checkpoint_id=path, no_dist=True)


_WRITERS: dict[str, Callable[[Path, dict[str, Any]], None]] = {
    "templax": _write_templax,
    "safetensors": _write_safetensors,
    "orbax-ocdbt": lambda path, tree: _write_orbax(path, tree, use_ocdbt=True),
    "orbax-files": lambda path, tree: _write_orbax(path, tree, use_ocdbt=False),
    "msgpack": _write_msgpack,
    "npz": _write_npz,
    "equinox": _write_equinox,
    **({"torch": _write_torch, "dcp": _write_dcp} if importlib.util.find_spec("torch") else {}),
}


def _run(source: str | None, scratch: Path, *arguments: str) -> tuple[float, float]:
    """CPU and clock milliseconds of a Python process."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    env["PYTHONPYCACHEPREFIX"] = str(scratch / "pycache")
    if source is not None:
        env["PYTHONPATH"] = source
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], env=env, check=True, stdout=subprocess.DEVNULL)
    clock, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return 1e3 * cpu, 1e3 * clock


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.listing", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--before", metavar="DIR", help="another version of templax, to compare")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--leaves", default="1,20000", metavar="N,...")
    parser.add_argument("--formats", default=",".join(_WRITERS), metavar="NAME,...")
    parser.add_argument("--dir", help="where the files are written")
    options = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    here = str(Path(__file__).resolve().parents[1] / "src")
    versions = {"after": here} if options.before is None else {"before": options.before}
    versions.setdefault("after", here)
    with tempfile.TemporaryDirectory(dir=options.dir) as scratch:
        files: dict[tuple[str, int], Path] = {}
        for leaves in map(int, options.leaves.split(",")):
            for name in options.formats.split(","):
                files[name, leaves] = Path(scratch, f"{name}-{leaves}")
                _WRITERS[name](files[name, leaves], _make_tree(leaves))
        samples: dict[Any, list[tuple[float, float]]] = {}
        for turn in range(options.rounds + 1):  # the first round compiles, and is left out
            numpy = _run(None, Path(scratch), "-c", "import numpy")
            found: dict[Any, tuple[float, float]] = {"numpy": numpy}
            order = list(versions) if turn % 2 else list(versions)[::-1]
            for key, path in files.items():
                for version in order:
                    arguments = ("-m", "templax", "ls", str(path))
                    found[key, version] = _run(versions[version], Path(scratch), *arguments)
            for key, sample in found.items() if turn else ():
                samples.setdefault(key, []).append(sample)
    medians = {
        key: [statistics.median(column) for column in zip(*found, strict=True)]
        for key, found in samples.items()
    }
    base = medians.pop("numpy")
    print(f"python and numpy: {base[0]:.0f} ms of CPU, {base[1]:.0f} ms by the clock\n")
    print(f"| Format | Leaves | {' | '.join(f'{v}: CPU | clock' for v in versions)} |")
    print("|---|---:|" + "---:|---:|" * len(versions))
    for name, leaves in files:
        cells = [
            f"{found - idle:.0f}"
            for version in versions
            for found, idle in zip(medians[(name, leaves), version], base, strict=True)
        ]
        print(f"| {name} | {leaves:,} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
