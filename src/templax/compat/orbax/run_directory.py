"""The directory of a run: its committed steps, its own metadata, and what killed saves left."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, cast

import templax as tx

from ..._core.text import quote_text
from ...formats.orbax import directory
from ...formats.orbax.sidecars import read_json
from ...formats.orbax.step_names import step_prefix
from ...storage.leftovers import (
    TEMPORARY,
    delete_checkpoint,
    is_abandoned,
    move_checkpoint,
    remove_directory,
)
from ...storage.local import Local
from ...storage.open import open_source
from ...storage.staging import Staging
from .path.step import Metadata, NameFormat
from .saver import PathLike

_ROOT_METADATA = "_ROOT_METADATA"

_OLD_ROOT_METADATA = "metadata"
"""The file in which older versions of Orbax have the metadata itself."""

_BROADCAST = "single_host_load_and_broadcast"

_log = logging.getLogger("templax")


@dataclass(frozen=True)
class LatestStep:
    """The step that a manager saved last, or is saving.

    Attributes:
        key: The name of its directory.
        replaced: The steps that are deleted once it is committed. They are not listed any more.
    """

    step: int
    key: str
    metrics: Any
    replaced: frozenset[int] = frozenset()


NO_STEP = LatestStep(-1, "", None)


def find_root(path: PathLike) -> str:
    """The absolute path of the directory of a run.

    Raises:
        UsageError: It is a URL of an object store.
    """
    source = open_source(path)
    if not isinstance(source, Local):
        raise tx.UsageError(
            f"Expected a local directory, got {source.url}; hint:"
            f" templax.Manager({quote_text(source.url)}) works in object stores"
        )
    # Made absolute now, so that a later chdir does not change the directory that is saved to.
    return os.path.abspath(source.url)


def find_committed(root: str, prefix: str) -> dict[int, str]:
    """Number → name of each committed step of a run; other runs may lie in the directory.

    Args:
        root: The directory to list.
        prefix: The part before the number in the names of the run's steps.
    """
    steps = directory.list_steps(open_source(root))
    return {s.step: s.key for s in steps if s.committed and step_prefix(s.key) == prefix}


def find_named(root: str, names: NameFormat[Metadata]) -> dict[int, str]:
    """Number → path below the run of each committed step that a name format finds, ascending.

    Args:
        root: The directory to list.
        names: The format, of Orbax itself or not.
    """
    if not os.path.isdir(root):
        return {}
    if is_dataclass(names) and getattr(names, _BROADCAST, False):
        # Process 0 lists the steps for all. Orbax's own format would wait for the others.
        names = cast("NameFormat[Metadata]", replace(names, **{_BROADCAST: False}))
    found: dict[int, str] = {}
    for each in names.find_all(root):
        path = os.fspath(each.path)
        if directory.uncommitted_reason(Local(path)) is None:
            found.setdefault(each.step, os.path.relpath(path, root))
    return dict(sorted(found.items()))


def write_root_metadata(root: str, metadata: Mapping[str, Any]) -> None:
    """Writes the metadata of a run, unless an earlier manager has written some."""
    text = json.dumps({"internal_metadata": {}, "custom_metadata": metadata})
    path = os.path.join(root, "metadata")
    with suppress(tx.AlreadyExists), Staging(path, overwrite=False) as staging:
        staging.put(_ROOT_METADATA, text.encode())
        staging.commit()


def read_root_metadata(root: str) -> Any:
    """The metadata of a run, or None if no manager has written any.

    Raises:
        Corrupted: The file is damaged.
        SourceError: It can't be read.
    """
    source = Local(os.path.join(root, "metadata"))
    if source.stat(_ROOT_METADATA) is not None:
        return read_json(source, _ROOT_METADATA, dict[str, Any]).get("custom_metadata") or {}
    if source.stat(_OLD_ROOT_METADATA) is not None:
        return read_json(source, _OLD_ROOT_METADATA, dict[str, Any])
    return None


def remove_leftovers(root: str) -> None:
    """Removes what killed saves left behind, and logs it."""
    for info in Local(root).children():
        path = os.path.join(root, info.key.rstrip("/"))
        try:
            if TEMPORARY in info.key and is_abandoned(path):
                remove_directory(path)
                _log.info("removed %s, which a killed save left behind", path)
        except (OSError, tx.SaveError) as error:  # it does no harm
            _log.warning("%s of an unfinished save was not removed: %s", path, error)


def refuse_existing(root: str, found: Mapping[int, str], step: int) -> None:
    """Refuses to save a step that exists.

    Args:
        root: The directory of the run.
        found: Number → name of the steps that there are.
        step: The new step.
    """
    if step in found:
        path = os.path.join(root, found[step])
        raise tx.AlreadyExists(
            f"Step {step} already exists", file=path, hint=f"delete({step}), then save it"
        )


def delete_step(root: str, key: str, subdirectory: str | None) -> bool:
    """Deletes a step, or moves it.

    Args:
        root: The directory of the run.
        key: The name of the step.
        subdirectory: The directory in `root` that it is moved to; None to delete it.

    Returns:
        Whether it is gone. False if somebody is reading it.

    Raises:
        SaveError: The file system refused.
    """
    path = os.path.join(root, key)
    if subdirectory is None:
        return delete_checkpoint(path)
    return move_checkpoint(path, os.path.join(root, subdirectory))


def delete_steps(root: str, steps: Mapping[int, str], subdirectory: str | None) -> None:
    """Deletes steps, except those that somebody is reading. An error is logged.

    The new step is saved, and training must not end because an old one remains: the next save tries
    to delete it again.

    Args:
        root: The directory of the run.
        steps: Number → name of each.
        subdirectory: See `delete_step`.
    """
    try:
        for step, key in steps.items():
            if not delete_step(root, key, subdirectory):
                _log.info("step %d of %s is being read, and stays for now", step, root)
    except tx.TemplaxError as error:
        _log.warning("steps of %s were not deleted: %s", root, error)
