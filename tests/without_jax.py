"""Programs that run where JAX is not installed. Imports neither JAX nor what imports it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import templax as tx

CORPUS = Path(__file__).parent / "corpus"

_BEGIN = """
import importlib.abc, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("jax", "jaxlib", "flax", "orbax", "equinox", "torch"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
sys.path.append(sys.argv.pop(1))
"""
"""Makes JAX, and what needs it, look as if it were not installed; and finds this module."""


def run_without_jax(code: str, *arguments: object, status: int = 0) -> str:
    """Runs a program in a process of its own; returns what it printed.

    Args:
        code: The program.
        *arguments: Its `sys.argv[1:]`.
        status: The exit status that it must have. If it is 2, its errors are returned too.
    """
    tests = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _BEGIN + code, tests, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stdout + (done.stderr if status == 2 else "")


def run_command(*arguments: object, status: int = 0) -> str:
    """Runs the command `templax`; returns what it printed."""
    code = "from templax.cli import main\nmain(sys.argv[1:])"
    return run_without_jax(code, *arguments, status=status)


def print_error(call: Any) -> None:
    """Prints the error of a call that needs JAX."""
    try:
        call()
    except tx.MissingPackage as error:
        print(error)
    else:
        print("no error")


def make_numpy_template(catalog: tx.Catalog) -> Any:
    """A template that gives Python values and numpy arrays, with JAX and without."""
    python = {"int64": int, "float64": float, "bool": bool, "complex128": complex}
    leaves: dict[str, Any] = {}
    for name, entry in catalog.leaves.items():
        if entry.kind == "string":
            leaves[name] = str
        elif entry.kind == "scalar" and entry.dtype.name in python:
            leaves[name] = python[entry.dtype.name]
        elif entry.kind != "key":
            leaves[name] = np.broadcast_to(np.zeros((), entry.dtype), entry.shape)
    return list(leaves.values()) if catalog.positional else leaves


def describe(leaf: Any) -> Any:
    """The type of a leaf and its bytes, as JSON has them."""
    if not isinstance(leaf, (np.ndarray, np.generic)):
        return repr(leaf)
    digest = hashlib.sha256(leaf.tobytes()).hexdigest()
    return [type(leaf).__name__, leaf.dtype.name, list(leaf.shape), digest]
