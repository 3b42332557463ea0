"""What a directory holds: a checkpoint of Orbax's v1 API, of the older one, or of safetensors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .....errors import CheckpointError
from .....formats.orbax.directory import (
    STEP_METADATA,
    TREE,
    V1_MARK,
    list_names,
)
from .....formats.orbax.step_metadata import read_step_metadata
from .....formats.orbax.step_names import basename, is_temporary
from .....storage.open import open_source
from .....storage.source import Source
from .checkpointable import AUTO, RESERVED, STATE
from .context import get_context
from .options import CheckpointLayout

_SUFFIX = ".safetensors"


class InvalidLayoutError(CheckpointError, ValueError):
    """The path does not hold a checkpoint of the layout that the context names."""


@dataclass
class Layout:
    """A checkpoint as its file names and its metadata describe it.

    Attributes:
        path: Its path.
        kind: "V1", "V0" or "Safetensors".
        about: The content of `_CHECKPOINT_METADATA`; empty if there is none.
        directories: The names of the directories in it.
        is_tree: Whether it is a tree itself, without a name.
    """

    path: str
    kind: Literal["V1", "V0", "Safetensors"]
    about: Mapping[str, Any] = field(default_factory=dict)
    directories: list[str] = field(default_factory=list)
    is_tree: bool = False

    @property
    def is_direct(self) -> bool:
        """Whether the checkpoint is a single item without a name."""
        return self.is_tree or isinstance(self.about.get("item_handlers"), str)

    @property
    def names(self) -> list[str]:
        """The names of checkpointables, `state` first."""
        found = sorted(set(self.directories) - RESERVED)
        return sorted(found, key=lambda name: name != STATE)

    def check_named(self) -> None:
        """Refuses a checkpoint whose items have no names.

        Raises:
            InvalidLayoutError: It is a single item of the older API.
            NotImplementedError: It is safetensors.
        """
        if self.kind == "Safetensors":
            raise NotImplementedError("safetensors has no checkpointables; hint: load, metadata")
        if self.kind == "V0" and self.is_direct:
            raise InvalidLayoutError(
                f"Checkpoint at {self.path} is a flat (direct) checkpoint with no named"
                " checkpointables",
                hint="load, metadata",
            )

    def saved_by(self, name: str | None) -> str | None:
        """The handler that saved a checkpointable, if the checkpoint names it."""
        handlers = self.about.get("item_handlers")
        if name is None:
            return handlers if isinstance(handlers, str) else None
        found = handlers.get(name) if isinstance(handlers, Mapping) else None
        return found if isinstance(found, str) else None

    def find_tree(self, name: str | None) -> str | None:
        """The name of the tree that a caller asks for; None if it is the checkpoint itself.

        Args:
            name: As the caller gave it: a name, "AUTO", or None.

        Raises:
            InvalidLayoutError: The checkpoint has no tree of this name.
        """
        if self.kind == "Safetensors":
            return None
        if name == AUTO:
            for each in self.names:
                if _is_tree(open_source(f"{self.path}/{each}")):
                    return each
            if self.kind == "V0" and self.is_tree:
                return None
            raise InvalidLayoutError(
                "Failed to load checkpoint using AUTO resolution mode. No valid PyTree"
                " checkpointable found",
                file=self.path,
            )
        problem = self._find_problem(name)
        if problem is not None:
            raise InvalidLayoutError(
                f"Failed to interpret path {self.path} as a {self.kind} Orbax PyTree. {problem}"
            )
        if name is None and isinstance(self.about.get("item_handlers"), Mapping):
            raise InvalidLayoutError(
                f"Checkpoint at {self.path} is a composite checkpoint with named checkpointables",
                hint="load(path, checkpointable_name=...)",
            )
        return name

    def _find_problem(self, name: str | None) -> str | None:
        if name is None and self.kind == "V1":
            return "checkpointable_name=None is for checkpoints of the older API"
        if _is_tree(open_source(self.path if name is None else f"{self.path}/{name}")):
            return None
        text = f"There is no tree {'without a name' if name is None else f'`{name}`'}, found"
        trees = [f"`{n}`" for n in self.names if _is_tree(open_source(f"{self.path}/{n}"))]
        if self.is_tree:
            trees.append("one without a name (checkpointable_name=None)")
        return f"{text} {', '.join(trees) or 'none'}"


def find_layout(path: str) -> Layout:
    """Finds the checkpoint at a path, in the layout that the context names.

    Raises:
        InvalidLayoutError: The path holds something else.
    """
    asked = get_context().checkpoint_layout
    kinds = [asked]
    if asked is CheckpointLayout.AUTO:
        kinds = [CheckpointLayout.SAFETENSORS, CheckpointLayout.ORBAX]
    problem = ""
    for kind in kinds:
        examine = _examine_orbax if kind is CheckpointLayout.ORBAX else _examine_safetensors
        found = examine(path)
        if isinstance(found, Layout):
            return found
        problem = found
    raise InvalidLayoutError(
        f"Could not recognize the checkpoint at {path} as a valid"
        f" {kinds[-1].value.capitalize()} checkpoint: {problem}",
        hint="context.checkpoint_layout names another layout; templax.restore reads any format",
    )


def is_orbax_checkpoint(path: Any) -> bool:
    """Whether a path holds a checkpoint of Orbax, or of templax, which writes the same layout.

    Like Orbax's own function, this takes a directory for a checkpoint of the older API unless
    something in it shows that it is not.

    Example:
        >>> import os, tempfile, numpy as np
        >>> from templax.compat.orbax import v1 as ocp
        >>> path = os.path.join(tempfile.mkdtemp(), "ckpt")
        >>> ocp.save(path, {"w": np.ones(3)})
        >>> ocp.is_orbax_checkpoint(path), ocp.is_orbax_checkpoint(path + "/state")
        (True, False)
    """
    spelt = os.fspath(path)
    return any(isinstance(_examine_orbax(spelt, kind), Layout) for kind in ("V1", "V0"))


def _is_tree(source: Source) -> bool:
    return source.stat(TREE) is not None


def _examine_orbax(path: str, kind: Literal["V1", "V0"] | None = None) -> Layout | str:
    """Returns the checkpoint of Orbax at a path, or the reason why there is none.

    Args:
        path: The path.
        kind: The API that must have written it; None to decide by the marker file.
    """
    source = open_source(path)
    root = source.stat("")
    if root is None:
        return f"Checkpoint path {path} does not exist"
    if not root.is_dir:
        return f"Checkpoint path {path} is not a directory"
    if is_temporary(basename(source)):
        return f"Found incomplete checkpoint at {path}"
    names = list_names(source)
    marked, described = V1_MARK in names, STEP_METADATA in names
    kind = kind or ("V1" if marked else "V0")
    if kind == "V1" and not (marked and described):
        return f"it lacks `{STEP_METADATA if marked else V1_MARK}`"
    directories = sorted(name.rstrip("/") for name in names if name.endswith("/"))
    about = read_step_metadata(source) if described else {}
    found = Layout(path, kind, about, directories, TREE in names)
    if kind == "V1":
        return found
    if source.at("..").stat(STEP_METADATA) is not None:
        return f"it is a part of the checkpoint {source.at('..').url}; load that one"
    if not described and not found.is_tree:
        steps = [name for name in directories if source.stat(f"{name}/{STEP_METADATA}")]
        if steps:
            return f"it holds checkpoints; load one of {', '.join(steps)}"
    return found


def _examine_safetensors(path: str) -> Layout | str:
    """Returns the safetensors checkpoint at a path, or the reason why there is none."""
    source = open_source(path)
    root = source.stat("")
    if root is None:
        return f"{path} does not exist"
    if root.is_dir and not any(name.endswith(_SUFFIX) for name in list_names(source)):
        return f"the directory {path} has no file that ends in `{_SUFFIX}`"
    if not root.is_dir and not path.endswith(_SUFFIX):
        return f"the name of {path} does not end in `{_SUFFIX}`"
    return Layout(path, "Safetensors")
