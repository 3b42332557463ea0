"""Who saves. A saver is opened for a tree, untimed, and gives the call that is timed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..files import WRITERS
from ..jobs import Save
from ..limits import save as limits
from ..workloads import PyTree


@dataclass(frozen=True)
class Saver:
    """How a peer, or a limit, saves.

    Attributes:
        open: Imports what it needs, writes nothing, gives the timed call.
        kind: What it writes, which is also the end of its name.
        restored_by: The library that restores it, for the comparison. Empty: a limit, which leaves
            nothing to restore.
    """

    open: Callable[[PyTree], Save]
    kind: str
    restored_by: str = ""


def _by_writer(kind: str, restored_by: str) -> Saver:
    def opened(tree: PyTree) -> Save:
        return lambda path: WRITERS[kind](path, tree)

    return Saver(opened, kind, restored_by)


def _templax_nowait(tree: PyTree) -> Save:
    import templax as tx

    return lambda path: tx.save(path, tree, wait=False).wait


def _safetensors_synced(tree: PyTree) -> Save:
    """As durable as those that sync by themselves, its name included."""

    def save(path: Path) -> None:
        WRITERS["safetensors"](path, tree)
        for synced in (path, path.parent):
            fd = os.open(synced, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)

    return save


def _orbax_standard(tree: PyTree) -> Save:
    import orbax.checkpoint as ocp

    checkpointer = ocp.StandardCheckpointer()

    def save(path: Path) -> Callable[[], None]:
        checkpointer.save(path, tree)
        return checkpointer.wait_until_finished

    return save


def _orbax_pytree(tree: PyTree) -> Save:
    import orbax.checkpoint as ocp

    checkpointer = ocp.PyTreeCheckpointer()
    return lambda path: checkpointer.save(path, tree)


def _orbax_async(tree: PyTree) -> Save:
    import orbax.checkpoint as ocp

    checkpointer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())

    def save(path: Path) -> Callable[[], None]:
        checkpointer.save(path, args=ocp.args.PyTreeSave(tree))
        return checkpointer.wait_until_finished

    return save


SAVERS: dict[str, Saver] = {
    "templax": _by_writer("templax", "templax"),
    "templax-zstd": _by_writer("templax-zstd", "templax"),
    "templax-nowait": Saver(_templax_nowait, "templax", "templax"),
    "orbax-standard": Saver(_orbax_standard, "orbax", "orbax-standard"),
    "orbax-pytree": Saver(_orbax_pytree, "orbax", "orbax-pytree"),
    "orbax-async": Saver(_orbax_async, "orbax", "orbax-pytree"),
    "safetensors": _by_writer("safetensors", "safetensors"),
    "safetensors-synced": Saver(_safetensors_synced, "safetensors", "safetensors"),
    "npz": _by_writer("npz", "npz"),
    "limit-copy": Saver(limits.copy, "memory"),
    "limit-write": Saver(limits.write, "raw"),
}
