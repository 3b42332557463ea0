"""JAX. How a tree is restored: by a template, restore args, placeholders and transforms."""

from __future__ import annotations

from typing import Any

import jax

import templax as tx

from ..._core.arguments import PyTree
from .leaf_templates import (
    STRUCTURE_ERROR,
    apply_restore_args,
    has_unplaced_arrays,
    is_leaf_args,
    make_template,
    use_saved_numpy,
)
from .metadata.tree import unwrap_tree
from .own_tree import find_numpy_leaves, make_own_template


def restore_tree(
    directory: str,
    item: PyTree,
    restore_args: PyTree = None,
    *,
    partial: bool = False,
    as_stored: bool = False,
    numpy_as_saved: bool = False,
) -> PyTree:
    """Restores the tree at a path.

    Args:
        directory: The path.
        item: The template, or None for the checkpoint's own tree; metadata of a checkpoint is one.
            A tree of restore args, which Orbax takes in its place and ignores, is obeyed.
        restore_args: A tree of args that override its leaves, or None.
        partial: Whether leaves that the template lacks are left unread.
        as_stored: See `apply_restore_args`.
        numpy_as_saved: Whether abstract arrays of `item` without a sharding become NumPy arrays
            where those were saved. Otherwise they become JAX's.

    Raises:
        TemplateError: The checkpoint does not fit the template; lists every leaf.
    """
    if restore_args is None and _holds_leaf_args(item):
        item, restore_args = None, item
    template = None if unwrap_tree(item) is None else make_template(item)
    takes_saved = numpy_as_saved and has_unplaced_arrays(template)
    checkpoint: Any = directory
    if template is None or restore_args is not None or takes_saved:
        checkpoint = tx.open(directory)
    if template is None:
        template = make_own_template(checkpoint)
    elif takes_saved:
        template = use_saved_numpy(template, find_numpy_leaves(checkpoint))
    if restore_args is not None:
        template = apply_restore_args(
            template, restore_args, checkpoint.leaves, partial=partial, as_stored=as_stored
        )
    try:
        return tx.restore(checkpoint, template, extra="ignore" if partial else "error")
    except tx.TemplateError as error:
        if any(mismatch.problem in ("missing", "extra") for mismatch in error.mismatches):
            raise tx.TemplateError(error.match, f"{STRUCTURE_ERROR}:\n{error}") from error
        raise


def _holds_leaf_args(item: PyTree) -> bool:
    leaves = jax.tree.leaves(item)
    return bool(leaves) and all(map(is_leaf_args, leaves))
