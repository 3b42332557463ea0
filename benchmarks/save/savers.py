"""The libraries that save.

A saver is opened for a tree, untimed, and returns the call that is timed.
"""

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
        open: Imports what it needs and returns the timed call; writes nothing.
        kind: The kind of file it writes, which is also the extension.
        restored_by: The library that restores it, for the comparison. Empty for a limit, which
            leaves nothing to restore.
    """

    open: Callable[[PyTree], Save]
    kind: str
    restored_by: str = ""


def _make_saver(kind: str, restored_by: str) -> Saver:
    """A saver that writes a kind of file as `files` does."""

    def open_writer(tree: PyTree) -> Save:
        return lambda path: WRITERS[kind](path, tree)

    return Saver(open_writer, kind, restored_by)


def open_templax_nowait(tree: PyTree) -> Save:
    import templax as tx

    return lambda path: tx.save(path, tree, wait=False).wait


def open_safetensors_synced(tree: PyTree) -> Save:
    """Syncs the file and its directory, to be as durable as the libraries that sync themselves."""

    def save(path: Path) -> None:
        WRITERS["safetensors"](path, tree)
        for synced in (path, path.parent):
            fd = os.open(synced, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)

    return save


def open_orbax_standard(tree: PyTree) -> Save:
    import orbax.checkpoint as ocp

    checkpointer = ocp.StandardCheckpointer()

    def save(path: Path) -> Callable[[], None]:
        checkpointer.save(path, tree)
        return checkpointer.wait_until_finished

    return save


def open_orbax_pytree(tree: PyTree) -> Save:
    import orbax.checkpoint as ocp

    checkpointer = ocp.PyTreeCheckpointer()
    return lambda path: checkpointer.save(path, tree)


def open_orbax_async(tree: PyTree) -> Save:
    import orbax.checkpoint as ocp

    checkpointer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())

    def save(path: Path) -> Callable[[], None]:
        checkpointer.save(path, args=ocp.args.PyTreeSave(tree))
        return checkpointer.wait_until_finished

    return save


SAVERS: dict[str, Saver] = {
    "templax": _make_saver("templax", "templax"),
    "templax-zstd": _make_saver("templax-zstd", "templax"),
    "templax-nowait": Saver(open_templax_nowait, "templax", "templax"),
    "templax-safetensors": _make_saver("safetensors-set", "templax"),
    "orbax-standard": Saver(open_orbax_standard, "orbax", "orbax-standard"),
    "orbax-pytree": Saver(open_orbax_pytree, "orbax", "orbax-pytree"),
    "orbax-async": Saver(open_orbax_async, "orbax", "orbax-pytree"),
    "safetensors": _make_saver("safetensors", "safetensors"),
    "safetensors-synced": Saver(open_safetensors_synced, "safetensors", "safetensors"),
    "npz": _make_saver("npz", "npz"),
    "limit-copy": Saver(limits.open_copy, "memory"),
    "limit-write": Saver(limits.open_write, "raw"),
}
