"""JAX. Orbax's v1 `partial`: checkpoints that are saved in parts and then joined."""

from __future__ import annotations

import functools
import os
import time
import uuid
from collections.abc import Mapping
from typing import Any

import jax
import msgspec

import templax as tx

from ....._core.arguments import PyTree
from ....._hosts.agreement import open_call
from ....._jax.paths import path_element
from ....._save.contents import Tree
from ....._save.destination import Destination
from ....._save.result import PendingSave
from .....formats.orbax.directory import COMMITTED, STEP_METADATA, V1_MARK
from .....formats.orbax.sidecars import iter_sharding_texts
from .....formats.orbax.step_metadata import read_custom_metadata
from .....formats.orbax.step_names import PARTIAL_SAVE
from .....storage.disk import DISK
from .....storage.leftovers import absolute_path, delete_tree, sync_names
from .....storage.open import is_remote, open_source
from ...saver import PathLike
from ...unmapped import make_getattr, make_unmapped_error
from . import saving
from .checkpointable import STATE
from .pytree_handler import PyTreeHandler
from .response import AsyncResponse, SaveResponse
from .tree import merge
from .tree_loading import load_tree_on_host

__all__ = ["finalize", "save", "save_async"]

_PENDING = ".pending"
"""Part of the name of each part, which is a checkpoint of its own until they are joined."""

_OWN = frozenset((f"{STATE}/", STEP_METADATA, COMMITTED, V1_MARK))

_latest: dict[str, SaveResponse[None]] = {}
"""Session → its latest save."""


class PartialSaveReplacementError(tx.SaveError):
    """A part has a leaf that an earlier one has saved."""


def save(
    path: PathLike, state: PyTree, *, custom_metadata: Mapping[str, Any] | None = None
) -> None:
    """Saves a part of a tree. `finalize` joins the parts into a checkpoint.

    Args:
        path: The path of the checkpoint, which does not exist yet.
        state: Leaves that no earlier part has.
        custom_metadata: JSON that is stored with the checkpoint, merged with that of the other
            parts. The latest part wins where keys are equal.

    Raises:
        AlreadyExists: Something exists at `path`.
        PartialSaveReplacementError: An earlier part has one of the leaves.
        SaveError: See `templax.save`.

    Example:
        >>> import os, tempfile, numpy as np
        >>> from templax.compat.orbax import v1 as ocp
        >>> path = os.path.join(tempfile.mkdtemp(), "ckpt")
        >>> ocp.partial.save(path, {"layers": [np.ones(3)]})
        >>> ocp.partial.save(path, {"head": np.zeros(2)})
        >>> ocp.partial.finalize(path)
        >>> sorted(ocp.load(path))
        ['head', 'layers']
    """
    _begin(path, state, custom_metadata, wait=True)


def save_async(
    path: PathLike, state: PyTree, *, custom_metadata: Mapping[str, Any] | None = None
) -> AsyncResponse[None]:
    """Like `save`, except that it returns as soon as the values are safe from later changes."""
    return _begin(path, state, custom_metadata, wait=False)


def finalize(path: PathLike) -> None:
    """Joins the parts into a checkpoint, atomically, and removes them.

    Args:
        path: What `save` was given; or the directory of the parts, whose name ends in
            `.partial_save`.

    Raises:
        FileExistsError: Something exists at `path`, or two parts hold foreign files of the same
            name.
        FileNotFoundError: No part was saved.
        SaveError: See `templax.save`.
    """
    final = _spell(path).removesuffix(PARTIAL_SAVE)
    session = final + PARTIAL_SAVE
    if session in _latest:
        PendingSave(_latest.pop(session).saved).find_error()
    with open_call("finalizing", session) as hosts:
        found = hosts.join(make_reply=lambda: msgspec.json.encode(_examine(final, session)))
    parts = msgspec.json.decode(found, type=list[str])
    if not parts:
        return
    metadata, shardings = dict[str, Any](), dict[str, str]()
    for part in parts:
        metadata |= read_custom_metadata(open_source(part))
        shardings |= iter_sharding_texts(open_source(f"{part}/{STATE}"))
    merged = merge(*[load_tree_on_host(f"{part}/{STATE}") for part in parts])
    state = Tree(merged, PyTreeHandler.orbax_name, shardings=shardings, empty_tuples=True)
    saving.begin_save(final, {STATE: state}, False, metadata, wait=True)
    if hosts.index == 0:
        delete_tree(session, DISK)


def _examine(final: str, session: str) -> list[str]:
    """Lists the parts to join. A session that has none becomes an empty directory at once."""
    _refuse_existing(final)
    if not os.path.isdir(session):
        raise tx.NotFound("Expected parts that partial.save has saved, found none", file=session)
    parts = _list_parts(session)
    _refuse_others(parts)
    if not parts:
        os.rename(session, final)
        sync_names(os.path.dirname(final), DISK)
    return parts


def _begin(
    path: PathLike, state: PyTree, metadata: Mapping[str, Any] | None, *, wait: bool
) -> SaveResponse[None]:
    final = _spell(path)
    session = final + PARTIAL_SAVE
    if session in _latest:  # its leaves count as saved
        PendingSave(_latest[session].saved).find_error()
    _refuse_existing(final)
    _refuse_replacing(session, state)
    name = f"{os.path.basename(session)}{_PENDING}_{time.time_ns()}_{uuid.uuid4().hex}"
    decide = functools.partial(Destination, os.path.join(session, name))
    response = saving.begin_save(session, {STATE: state}, False, metadata, wait=wait, decide=decide)
    _latest[session] = response
    return response


def _spell(path: PathLike) -> str:
    spelt = os.fspath(path)
    if is_remote(spelt):
        raise make_unmapped_error(
            f"partial saves to {spelt}", "save the parts to a local directory; or save the whole"
        )
    return absolute_path(spelt)


def _refuse_existing(final: str) -> None:
    if os.path.lexists(final):
        raise tx.AlreadyExists("Finalized checkpoint already exists", file=final)


def _list_parts(session: str) -> list[str]:
    names = os.listdir(session) if os.path.isdir(session) else []
    return [os.path.join(session, name) for name in sorted(names) if _PENDING in name]


def _refuse_replacing(session: str, state: PyTree) -> None:
    """Refuses leaves that an earlier part has, or that lie above or below one of its leaves."""
    named = jax.tree_util.tree_leaves_with_path(state)
    new = {tuple(str(path_element(key)) for key in path) for path, _ in named}
    for part in _list_parts(session):
        entries = tx.open(f"{part}/{STATE}", uncommitted="allow").entries
        saved = {tuple(map(str, entry.path)) for entry in entries}
        for path in sorted(new):
            for other in saved:
                most = min(len(path), len(other))
                if path[:most] == other[:most]:
                    raise PartialSaveReplacementError(
                        "Partial saving currently does not support REPLACEMENT",
                        leaf=".".join(path),
                        file=part,
                    )


def _refuse_others(parts: list[str]) -> None:
    """Refuses parts that hold files which `save` did not write."""
    seen: set[str] = set()
    for part in parts:
        for info in open_source(part).children():
            if info.key in _OWN:
                continue
            if info.key in seen:
                raise tx.AlreadyExists(
                    f"File collision on {info.key} during finalize. Overwriting destination file is"
                    " not allowed.",
                    file=part,
                )
            seen.add(info.key)
    if seen:
        raise tx.SaveError(
            f"Expected parts that hold only what was saved, found {', '.join(sorted(seen))}",
            file=os.path.dirname(parts[0]),
            hint="move it elsewhere first",
        )


__getattr__ = make_getattr("experimental.v1.partial.")
