"""Makes the template of a tree, with JAX only where a leaf asks for it."""

from __future__ import annotations

import operator
from typing import Any

from .._core.arguments import PyTree
from .._core.names import join_path
from .._core.optional import is_jax_loaded, require_jax
from ..errors import UsageError
from .host_leaves import make_host_target
from .plain_tree import flatten_plain
from .template import Target, Template


def make_template(tree: PyTree | Template, shardings: PyTree = None) -> Template:
    """Makes the template of a pytree.

    A program that has not loaded JAX has no leaves of it. Its tree needs JAX only if a leaf other
    than a numpy array asks for an array, or if there are `shardings`.

    Args:
        tree: See `restore` for the leaves that it may have. A template is returned as it is.
        shardings: See `restore`.

    Raises:
        UsageError: See `from_pytree.as_template`.
        MissingPackage: It needs JAX, which is not installed.
    """
    if isinstance(tree, Template):
        return tree
    if not is_jax_loaded():
        if shardings is not None:
            require_jax("shardings=")
        else:
            made = _make_plain_template(tree)
            if made is not None:
                return made
    from .from_pytree import as_template

    return as_template(tree, shardings)


def _make_plain_template(tree: PyTree) -> Template | None:
    """The template of a tree without anything of JAX; None if JAX, which is installed, makes it."""
    try:
        keyed, structure = flatten_plain(tree)
    except ValueError as error:
        raise UsageError(f"Expected a pytree as template: {error}") from error
    targets: list[Target] = []
    for path, leaf in keyed:
        name = join_path(path)
        target = make_host_target(name, path, leaf)
        if target is None:
            _require_jax_for(name, leaf)
            return None
        targets.append(target)
    return Template(tuple(targets), structure)


def _require_jax_for(name: str, leaf: Any) -> None:
    try:
        _ = [operator.index(n) for n in leaf.shape]
    except TypeError as error:
        raise UsageError(f"Expected a shape, got {leaf.shape!r} - at `{name}`") from error
    kind = f"{type(leaf).__module__}.{type(leaf).__qualname__}"
    require_jax(f"A jax.Array for the template's `{name}`, a {kind},", "ask for a numpy array")
