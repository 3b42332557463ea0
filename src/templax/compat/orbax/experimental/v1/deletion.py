"""Orbax's v1 functions that delete."""

from __future__ import annotations

import json
import os
import re

import templax as tx

from ....._hosts.agreement import Hosts, open_call
from ....._runs.run_storage import open_run
from .....formats.orbax.directory import list_items
from .....formats.orbax.step_metadata import read_step_metadata
from .....storage.disk import DISK
from .....storage.leftovers import (
    absolute_path,
    delete_tree,
    sync_names,
    temporary_path,
)
from .....storage.marks import STEP_METADATA
from .....storage.open import is_remote, open_source
from ...saver import PathLike
from ...unmapped import make_unmapped_error
from .checkpointable import RESERVED
from .layout import InvalidLayoutError, Layout, find_layout
from .response import AsyncResponse, run_in_thread


def delete(
    path: PathLike, *, checkpointable_name: str | None = None, missing_ok: bool = False
) -> bool:
    """Deletes a checkpoint, or one of its checkpointables. All processes of a job call it.

    Args:
        path: A checkpoint; not a directory of checkpoints, nor a part of one.
        checkpointable_name: The checkpointable to delete; None for the whole checkpoint.
        missing_ok: Whether to return False, rather than raise, if it does not exist.

    Returns:
        Whether something was deleted.

    Raises:
        FileNotFoundError: It does not exist.
        InvalidLayoutError: The path holds something other than a checkpoint.
        UsageError: The name can't be that of a checkpointable; or it is the last one.
        SaveError: Another process restores the checkpoint; or the storage refused.
        NotImplementedError: It is safetensors, or one checkpointable in an object store.

    Example:
        >>> import os, tempfile, numpy as np
        >>> from templax.compat.orbax import v1 as ocp
        >>> path = os.path.join(tempfile.mkdtemp(), "ckpt")
        >>> ocp.save_checkpointables(path, {"params": {"w": np.ones(3)}, "opt": {"n": 1}})
        >>> ocp.delete(path, checkpointable_name="opt"), list(ocp.load_checkpointables(path))
        (True, ['params'])
        >>> ocp.delete(path), ocp.delete(path, missing_ok=True)
        (True, False)
    """
    return delete_async(
        path, checkpointable_name=checkpointable_name, missing_ok=missing_ok
    ).result()


def delete_async(
    path: PathLike, *, checkpointable_name: str | None = None, missing_ok: bool = False
) -> AsyncResponse[bool]:
    """Like `delete`, but returns once the checkpoint is found; it is deleted in the background."""
    spelt = os.fspath(path)
    target = spelt if is_remote(spelt) else absolute_path(spelt)
    hosts = open_call("deleting", target)

    def examine() -> bytes:
        return b"found" if _find(target, checkpointable_name, missing_ok) else b""

    with hosts.report_errors():
        _check_name(checkpointable_name)
    found = hosts.join(make_reply=examine) == b"found"
    return run_in_thread(lambda: _delete_together(hosts, target, checkpointable_name, found))


def _delete_together(hosts: Hosts, target: str, name: str | None, found: bool) -> bool:
    with hosts:
        if found and hosts.index == 0:
            if name is None:
                _delete_checkpoint(target)
            else:
                _delete_item(target, name)
        hosts.agree("deleting")
    return found


def _check_name(name: str | None) -> None:
    if name is None:
        return
    if not name or name in RESERVED or name in (".", "..") or re.search(r"[/\\\0]", name):
        raise tx.UsageError(f"Invalid checkpointable name: {name!r}.")


def _find(target: str, name: str | None, missing_ok: bool) -> bool:
    """Whether there is something to delete."""
    source = open_source(target)
    if source.stat("") is None:
        if missing_ok:
            return False
        raise tx.NotFound("Checkpoint does not exist", file=target)
    layout = find_layout(target)
    if layout.kind == "Safetensors":
        raise NotImplementedError(
            "Orbax does not delete safetensors; hint: remove the files yourself"
        )
    if not _is_surely_checkpoint(layout):
        raise InvalidLayoutError(
            "Expected a checkpoint, found a directory without one", file=target
        )
    if name is None:
        return True
    if is_remote(target):
        raise make_unmapped_error(
            f"checkpointable_name of {target}", "delete the whole checkpoint of an object store"
        )
    if name not in layout.directories or layout.is_direct:
        if missing_ok:
            return False
        raise tx.NotFound(f"There is no checkpointable `{name}`", file=target)
    if set(layout.names) <= {name}:
        raise tx.UsageError(f"`{name}` is the only checkpointable; hint: delete(path)")
    return True


def _is_surely_checkpoint(layout: Layout) -> bool:
    """Whether a directory is a checkpoint for certain: Orbax takes almost any for an older one."""
    if layout.kind != "V0" or layout.about or layout.is_tree:
        return True
    kinds = list_items(open_source(layout.path)).values()
    return "pytree" in kinds and "other" not in kinds


def _delete_checkpoint(target: str) -> None:
    parent, _, name = target.rstrip("/").rpartition("/")
    if not open_run(parent or "/").delete(name):
        raise tx.SaveError(
            "Another process restores this checkpoint", file=target, hint="delete it later"
        )


def _delete_item(target: str, name: str) -> None:
    """Takes an item out of the checkpoint in one step, and then deletes it."""
    removed = temporary_path(target)
    about = read_step_metadata(open_source(target))
    DISK.rename(f"{target}/{name}", removed)
    handlers = about.get("item_handlers")
    if isinstance(handlers, dict) and name in handlers:
        handlers.pop(name)
        rewritten = f"{removed}/{STEP_METADATA}"
        with open(rewritten, "w") as file:
            json.dump(about, file)
            file.flush()
            os.fsync(file.fileno())
        DISK.rename(rewritten, f"{target}/{STEP_METADATA}")
    sync_names(target, DISK)
    delete_tree(removed, DISK)
