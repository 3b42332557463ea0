"""What lies in the directory of a run: its steps, and what must not be taken for nothing."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress

from .._core.text import format_size, list_examples, list_names
from ..errors import (
    CheckpointError,
    SaveError,
    SourceError,
    Uncommitted,
    UnknownFormat,
    UsageError,
)
from ..formats.orbax.directory import (
    Step,
    examine_directory,
    is_temporary,
    list_prefixes,
    step_number,
    step_prefix,
)
from ..formats.registry import FORMATS, open_catalog
from ..storage.leftovers import is_abandoned
from ..storage.local import Local
from ..storage.source import ObjectInfo

_MAX_PROBES = 64
"""Most files that are looked at to tell whether a directory holds logs only."""

_MAX_LISTED = 8
"""Most names in an error."""

_WORD = r"(?:checkpoint|ckpt|model|params|state|train_state|weights|latest|last|best|final)s?"

_NUMBERED = re.compile(rf"(?:(?:.*\D)?\d+|{_WORD})", re.IGNORECASE)
"""Names that a step, or the only checkpoint of a run, may have as a directory."""

_NUMBERED_FILE = re.compile(
    rf"(?:(?:[^.]*[^\d.])?\d+(?:\.\d+)?|{_WORD}(?=\.))"
    r"(?:\.(?:bin|ckpt|eqx|flax|gz|h5|hdf5|index|joblib|msgpack|npy|npz|orbax|pickle|pkl|pt|pth"
    r"|safetensors|tar|zip|zst))*",
    re.IGNORECASE,
)
"""Names that a step may have as a file."""

_LOG = re.compile(
    r"events\.out\.tfevents\..*|.*\.(?:csv|gif|html|ipynb|jpg|json|jsonl|log|md|mp4|out|png|py|svg"
    r"|toml|txt|ya?ml)",
    re.IGNORECASE,
)
"""Names of files that are no part of a checkpoint."""


def read_steps(url: str) -> Sequence[Step]:
    """The steps in the directory of a run, committed or not; none if it does not exist.

    Raises:
        UsageError: There is something else: a file, a checkpoint, or checkpoints whose names differ
            by more than their numbers.
        SourceError: The directory can't be read.
    """
    _check_directory(url)
    root = examine_directory(Local(url))
    if root is None:
        return ()
    if root.what == "item" or root.handled:
        raise UsageError(f"Expected a directory of steps, got the checkpoint {url}")
    if len(root.prefixes) > 1:
        listed = list_names([step.key for step in root.steps if step.committed], _MAX_LISTED)
        raise UsageError(
            f"Expected steps whose names differ by their number only, got {listed} in {url};"
            " hint: move those of one name to a directory of their own"
        )
    return root.steps


def find_committed(steps: Sequence[Step]) -> dict[int, str]:
    """Number → directory name of each committed step, ascending."""
    return {step.step: step.key for step in steps if step.committed}


def _check_directory(url: str) -> None:
    """Refuses what is not a directory, and what only looks as if there were nothing."""
    try:
        if not stat.S_ISDIR(os.stat(url).st_mode):
            raise UsageError(f"Expected a directory of steps, got the file {url}")
    except FileNotFoundError as error:
        if os.path.islink(url):
            raise UsageError(
                f"Expected a directory of steps, got the link {url} to {os.readlink(url)}, where"
                " there is nothing"
            ) from error
    except OSError as error:
        raise SourceError(f"can't read `{url}`: {os.strerror(error.errno or 0)}") from error


def refuse_unread(url: str, steps: Sequence[Step]) -> None:
    """Refuses to take a directory without committed steps for an empty one, if it is not.

    Args:
        url: The directory.
        steps: Its steps, none of them committed.

    Raises:
        UnknownFormat: Something in it looks like a step, or opens as a checkpoint.
        Uncommitted: Instead, if that is all saves that never finished.
    """
    found = {step.key: str(step.problem) for step in steps}
    only_unfinished = bool(found)
    for info in Local(url).children():
        key = info.key.rstrip("/")
        what = None if key in found else _describe_checkpoint(Local(url), info)
        if what is not None:
            found[key], only_unfinished = what, False
    if not found:
        return
    examples = [f"`{key}` ({what})" for key, what in sorted(found.items())[:_MAX_LISTED]]
    listed = list_examples(examples, len(found))
    text = f"Expected a committed step, or nothing like one, in {url}, found {listed}"
    if not only_unfinished:
        raise UnknownFormat(text, hint="move it elsewhere, or use another directory")
    hint = "wait for the save that is in progress, or move what it left elsewhere"
    with suppress(SaveError):
        if all(is_abandoned(os.path.join(url, key)) for key in found):
            hint = (
                f"`templax prune {shlex.quote(url)} --leftovers --yes` deletes what dead saves left"
            )
    raise Uncommitted(text, hint=hint)


def find_later(url: str, steps: Sequence[Step], number: int) -> Iterator[str]:
    """What looks like a step later than a number and can't be restored, each with the reason."""
    known, prefixes = {step.key for step in steps}, list_prefixes(steps)
    yield from (
        f"`{step.key}` ({step.problem})"
        for step in steps
        if step.step > number and not step.committed
    )
    for info in Local(url).children():
        key = info.key.rstrip("/")
        found = step_number(Local(os.path.join(url, key)))
        later = found is not None and found > number and step_prefix(key) in prefixes
        if later and key not in known:
            what = _describe_checkpoint(Local(url), info)
            if what is not None:
                yield f"`{key}` ({what})"


def _describe_checkpoint(run: Local, info: ObjectInfo) -> str | None:
    """What a child of a directory is, if it looks like a step or opens as a checkpoint."""
    name = info.key.rstrip("/")
    if name.startswith("."):
        return None
    child = run.at(name)
    if not info.is_dir and all(format.detect(child) is None for format in FORMATS):
        # Not by `open_catalog`: for its error it would search the directories around the run.
        return f"a file of {format_size(info.size)}" if _looks_like_step(child, info) else None
    try:
        catalog = open_catalog(child, uncommitted="allow")
    except UnknownFormat as error:
        root = examine_directory(child)
        if root is not None and root.what == "steps":
            return "a directory of steps"
        if root is not None and root.pytrees:
            return f"checkpoints: {list_names(root.pytrees)}"
        if not _looks_like_step(child, info):
            return None
        return error.what.rpartition(", got ")[2]
    except CheckpointError as error:
        return error.what
    return catalog.uncommitted or f"a checkpoint of the format {catalog.format}"


def _looks_like_step(child: Local, info: ObjectInfo) -> bool:
    name = info.key.rstrip("/")
    if not info.is_dir:
        return _NUMBERED_FILE.fullmatch(name) is not None
    if is_temporary(name):
        return True
    if _NUMBERED.fullmatch(name) is None:
        return False
    files = [f.key.rpartition("/")[2] for f in itertools.islice(child.walk(), _MAX_PROBES)]
    return any(not _LOG.fullmatch(file) for file in files) or (not files and name.isdigit())
