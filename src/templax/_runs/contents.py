"""What lies in the directory of a run: its steps, and what must not be taken for nothing."""

from __future__ import annotations

import itertools
import os
import re
import shlex
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import suppress

from .._core.text import format_size, list_examples, list_names, quote_text
from .._escape import escape_text
from ..errors import (
    NotFound,
    SaveError,
    SourceError,
    Uncommitted,
    UnknownFormat,
    UsageError,
)
from ..formats.diagnose import list_openable_files, name_contents
from ..formats.foreign import TREES, describe_file
from ..formats.orbax.directory import MAX_PROBES, examine_directory, uncommitted_reason
from ..formats.orbax.format import enter_item
from ..formats.orbax.step_names import (
    Step,
    is_temporary,
    list_prefixes,
    natural_order,
    step_number,
    step_prefix,
)
from ..storage.local import Local
from ..storage.open import name_source
from ..storage.signatures import HDF5, NPZ, PICKLE, SAFETENSORS
from ..storage.source import ObjectInfo, Source, list_ahead
from .run_storage import RunStorage
from .step_facts import find_saved_last

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

_MAX_LOOKED_AT = 256
"""Most files and directories inside the directories of a run that are looked at, as they may hold
any number; those after them are not seen."""

_MAX_LINKS = 40
"""Most links that are followed one after the other, as on Linux."""

_MAX_FILES = 8
"""Most files that are looked at of a directory named like a step inside one of those."""

_SAVED = re.compile(rf"(?:.*[^a-z])?{_WORD}(?![a-z]).*", re.IGNORECASE)
"""Names of files of arrays that say that these are of a model."""

_STEP_NAME = re.compile(rf"(?:{_WORD}|epoch|step|iter(?:ation)?)[_-]?\d+", re.IGNORECASE)
"""Names of directories that are of a step wherever they are."""

_MAY_BE_DATA = frozenset((NPZ, HDF5, PICKLE))
"""Files that as often hold samples or a data set, so that inside a directory their names decide."""

_LOG = re.compile(
    r"events\.out\.tfevents\..*|.*\.(?:csv|gif|html|ipynb|jpg|json|jsonl|log|md|mp4|out|png|py|svg"
    r"|toml|txt|ya?ml)",
    re.IGNORECASE,
)
"""Names of files that do not belong to a checkpoint."""


def read_steps(run: Source) -> Sequence[Step]:
    """The steps in the directory of a run, committed or not; none if it does not exist.

    Raises:
        UsageError: There is something else: a file, a checkpoint, or checkpoints whose names differ
            by more than their numbers.
        SourceError: The directory can't be read.
    """
    list_ahead(run)
    root = examine_directory(run)
    if root is None:
        info = run.stat("")
        if info is not None and not info.is_dir:
            raise UsageError(f"Expected a directory of steps, got the file {run.url}")
        return ()
    if root.what == "item" or root.handled:
        raise UsageError(f"Expected a directory of steps, got the checkpoint {run.url}")
    if len(root.prefixes) > 1:
        listed = list_names([step.key for step in root.steps if step.committed], _MAX_LISTED)
        raise UsageError(
            f"Expected steps whose names differ by their number only, got {listed} in {run.url};"
            " hint: move those of one name to a directory of their own"
        )
    return root.steps


def find_committed(steps: Sequence[Step]) -> dict[int, str]:
    """Number → directory name of each committed step, ascending."""
    return {step.step: step.key for step in steps if step.committed}


def refuse_unread(
    run: Source,
    steps: Sequence[Step],
    storage: RunStorage,
    given: Iterable[str] = (),
) -> None:
    """Refuses to take a directory without committed steps for an empty one, if it is not.

    Args:
        run: The directory.
        steps: Its steps, none of them committed.
        storage: The same directory, for a look at what is unfinished.
        given: Paths of checkpoints that the caller knows of, since a run is to begin with them.

    Raises:
        UnknownFormat: Something in it looks like a step, opens as a checkpoint, or is a file of
            arrays.
        Uncommitted: Instead, if that is all saves that never finished.
        SourceError: Something in it can't be read.
    """
    found = {step.key: str(step.problem) for step in steps}
    for key in found:
        next(iter(run.at(key).children()), None)  # an error, if it can't be read
    other = dict(list_unread(run, found))
    only_unfinished = bool(found) and not other
    found |= other
    for path in given:
        found.pop(_find_name_in(run, path), None)
    if not found:
        return
    keys = sorted(found, key=natural_order)[:_MAX_LISTED]
    examples = [f"`{key}` ({found[key]})" for key in keys]
    listed = list_examples(examples, len(found))
    text = f"Expected a committed step, or nothing like one, in {run.url}, found {listed}"
    if not only_unfinished:
        files = [info for info in run.children() if info.key in found]
        opened = list_openable_files(run, files)
        first = f"to restore from it, open {quote_text(opened[0])}; otherwise " if opened else ""
        hint = f"{first}move it elsewhere, or use another directory"
        raise UnknownFormat(text, hint=hint)
    hint = "wait for the save that is in progress, or move what it left elsewhere"
    with suppress(SaveError):
        if len(storage.find_abandoned(found, watch=False)) == len(found):
            command = f"templax prune {shlex.quote(run.url)} --leftovers --yes"
            hint = f"`{command}` deletes what dead saves left"
    raise Uncommitted(text, hint=hint)


def _find_name_in(run: Source, path: str) -> str:
    """The name in the directory of a run that a path begins with; "" if it is elsewhere."""
    outer, inner = (name_source(each).replace(os.sep, "/") for each in (run.url, path))
    name = inner.removeprefix(f"{outer.rstrip('/')}/").partition("/")[0]
    return name if inner.startswith(f"{outer.rstrip('/')}/") else ""


def find_untaken(run: Source, steps: Sequence[Step], number: int) -> Iterator[str]:
    """What is not taken where a step is restored as the latest, each with the reason.

    That is what looks like a later step and can't be restored, another directory of the same step,
    and a step that was saved after it.
    """
    return map(escape_text, _find_untaken(run, steps, number))


def _find_untaken(run: Source, steps: Sequence[Step], number: int) -> Iterator[str]:
    known, prefixes = {step.key for step in steps}, list_prefixes(steps)
    yield from (
        f"`{step.key}` ({step.problem})"
        for step in steps
        if step.step > number and not step.committed
    )
    yield from _find_unread_later(run, known, prefixes, number)
    committed = find_committed(steps)
    for other in find_repeated(steps).get(number, ()):
        if other != committed[number]:
            yield f"`{other}` (the same step as `{committed[number]}`)"
    last = find_saved_last(run, committed)
    if last not in (None, number):
        yield f"`{committed[last]}` (saved after `{committed[number]}`, though its number is lower)"


def _find_unread_later(
    run: Source, known: Container[str], prefixes: Sequence[str], number: int
) -> Iterator[str]:
    def is_later(name: str) -> bool:
        found = step_number(run.at(name))
        return found is not None and found > number and step_prefix(name) in prefixes

    for key, what in list_unread(run, known, is_later):
        yield f"`{key}` ({what})"


def find_repeated(steps: Sequence[Step]) -> dict[int, list[str]]:
    """Number → names of the directories, of each committed step that has several."""
    names: dict[int, list[str]] = {}
    for step in steps:
        if step.committed:
            names.setdefault(step.step, []).append(step.key)
    return {step: keys for step, keys in names.items() if len(keys) > 1}


def choose_tree(step: Source, item: str | None) -> str | None:
    """The name of the item that holds the tree of a step; None if the step has no such item.

    Args:
        step: The directory of the step.
        item: The name of the item, if the caller gave one.

    Raises:
        NotFound: The step has trees, and none of that name.
        SourceError: The item is a link that leads out of the step.
        UsageError: The step has several trees, and no name was given.
    """
    root = examine_directory(step)
    trees = root.pytrees if root is not None and root.what == "items" else []
    if item is None:
        if len(trees) > 1 and "default" not in trees:
            raise UsageError(
                f"Expected a step with one tree, found {list_names(trees)} in {step.url};"
                f" hint: templax.Manager(..., item={quote_text(trees[0])})"
            )
        item = "default" if "default" in trees else next(iter(trees), "")
    if not trees:
        return None
    if item in trees:
        enter_item(step, item)  # raises if it is a link that leads out of the step
        return item
    is_json = root is not None and root.items.get(item) == "json"
    raise NotFound(
        f"Expected a tree, got the JSON item `{item}`; the trees are {list_names(trees)}"
        if is_json
        else f"Expected the item `{item}`, found {list_names(trees)}",
        file=step.url,
        hint=f"manager.json(step, {quote_text(item)}) reads it" if is_json else None,
    )


def list_unread(
    run: Source, known: Container[str], wanted: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[str, str]]:
    """Name and description of what looks like a step or is a checkpoint.

    Args:
        run: The directory.
        known: Names that are left out.
        wanted: Which of the other names to look at.
    """
    listed: set[str] = set()
    budget = iter(range(_MAX_LOOKED_AT))
    for info in run.children():
        name = info.key.rstrip("/")
        listed.add(name)
        if name not in known and not name.startswith(".") and wanted(name):
            child = run.at(name)
            if info.is_dir:
                what = _describe_directory(child, info) or _describe_below(child, budget)
            else:
                try:
                    what = _describe_file(child, info)
                except SourceError as error:  # a socket
                    what = str(error)
            if what is not None:
                yield name, what
    for name in _list_links(run):
        looks_so = _NUMBERED.fullmatch(name) or _NUMBERED_FILE.fullmatch(name)
        if name not in listed and looks_so and wanted(name):
            target = os.readlink(os.path.join(run.url, name))
            yield name, f"a link to {target}, where there is nothing"


def find_linked(run: Source, staying: Iterable[str]) -> dict[str, str]:
    """What links that stay need of a run: name of a step or a link in it → the link.

    Args:
        run: The directory.
        staying: Names of directories of steps that stay, some of which may be links.
    """
    names, found = set(_list_links(run)), dict[str, str]()
    root = os.path.realpath(run.url) if names else ""
    for link in names.intersection(staying):
        path, followed = os.path.join(root, link), 0
        while os.path.islink(path) and followed < _MAX_LINKS:
            # The directory is resolved, the name in it is not: it may be another link in the run.
            path = os.path.join(os.path.dirname(path), os.readlink(path))
            parent, name = os.path.split(path.rstrip(os.sep))
            path = os.path.join(os.path.realpath(parent), name)
            followed += 1
            if path.startswith(root + os.sep):
                found.setdefault(path[len(root) + 1 :].split(os.sep)[0], link)
    return {name: link for name, link in found.items() if name != link}


def _list_links(run: Source) -> list[str]:
    """The names of the links in a directory; an object store has none."""
    if not isinstance(run, Local):
        return []
    try:
        with os.scandir(run.url) as listing:
            return sorted(entry.name for entry in listing if entry.is_symlink())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SourceError(f"can't read `{run.url}`: {os.strerror(error.errno or 0)}") from error


def _describe_directory(child: Source, info: ObjectInfo) -> str | None:
    """What a directory is, if it looks like a step or holds a checkpoint."""
    root = examine_directory(child)
    if root is not None and root.what == "steps":
        return "a directory of steps"
    if root is not None and root.what == "items" and len(root.pytrees) > 1:
        return f"checkpoints: {list_names(root.pytrees)}"
    if root is not None and (root.what == "item" or root.pytrees):
        return uncommitted_reason(child) or f"a checkpoint: {root.evidence}"
    if not _looks_like_step(child, info):
        return None
    children = list(child.children())
    return f"a directory of {name_contents(child, children)}" if children else "an empty directory"


def _describe_below(child: Source, budget: Iterator[int]) -> str | None:
    """What lies in a directory, if that is a checkpoint that somebody has put there.

    Only what a file holds counts, and of files that may hold anything their names as well: in a
    directory of samples or plots, a number in a name does not mean a step.

    Args:
        child: The directory.
        budget: One for each file and directory that may still be looked at.
    """
    for _, info in zip(budget, child.children(), strict=False):
        name = info.key.rstrip("/")
        if name.startswith("."):
            continue
        files = [info]
        if info.is_dir:
            if _NUMBERED.fullmatch(name) is None:
                continue
            walked = zip(range(_MAX_FILES), budget, child.walk(info.key), strict=False)
            files = [file for _, _, file in walked]
        for file in files:
            what = _recognise_tree(child.at(file.key), file)
            if what in _MAY_BE_DATA:
                base = file.key.rpartition("/")[2]
                named = _SAVED.fullmatch(base) or (info.is_dir and _STEP_NAME.fullmatch(name))
                what = what if named else None
            if what is not None:
                return f"a directory that holds `{file.key}`, {what}"
    return None


def _describe_file(child: Source, info: ObjectInfo) -> str | None:
    """What a file is, if it looks like a step or holds the arrays of a tree."""
    what = _recognise_tree(child, info)
    if what is not None and what != PICKLE:
        return what
    return f"a file of {format_size(info.size)}" if _looks_like_step(child, info) else None


def _recognise_tree(child: Source, info: ObjectInfo) -> str | None:
    """What a file is, if it holds, or as a pickle may hold, the arrays of a tree."""
    what = describe_file(child, "", info.size)
    if what is not None and what[0] == SAFETENSORS:
        return "a checkpoint"
    return what[0] if what is not None and what[0] in {*TREES, PICKLE} else None


def _looks_like_step(child: Source, info: ObjectInfo) -> bool:
    name = info.key.rstrip("/")
    if not info.is_dir:
        return _NUMBERED_FILE.fullmatch(name) is not None
    if is_temporary(name):
        return True
    if _NUMBERED.fullmatch(name) is None:
        return False
    files = [f.key.rpartition("/")[2] for f in itertools.islice(child.walk(), MAX_PROBES)]
    return any(not _LOG.fullmatch(file) for file in files) or (not files and name.isdigit())
