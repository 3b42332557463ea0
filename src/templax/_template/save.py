"""Writes a template to a file."""

from __future__ import annotations

import os

from .._core.arguments import PyTree
from ..storage.file import write_file
from ..storage.open import local_path
from .json_file import dump_template
from .make import make_template


def save_template(
    template: PyTree, file: str | os.PathLike[str], *, shardings: PyTree = None
) -> None:
    """Writes a template as JSON, shardings included, for `templax check CHECKPOINT FILE`.

    Args:
        template: See `restore`. Of arrays, only shapes, dtypes and shardings are kept.
        file: A local path; overwritten if it exists.
        shardings: See `restore`.

    Raises:
        SaveError: The file can't be written; one that exists is unchanged.

    Example:
        >>> import jax, jax.numpy as jnp, templax as tx, tempfile, os
        >>> file = os.path.join(tempfile.mkdtemp(), "template.json")
        >>> tx.save_template({"w": jax.ShapeDtypeStruct((2, 3), jnp.bfloat16)}, file)
    """
    path = local_path(file, "writes", "write a local file, then copy that")
    write_file(path, dump_template(make_template(template, shardings)))
