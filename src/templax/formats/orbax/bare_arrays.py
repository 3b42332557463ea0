"""Opens directories of zarr arrays, at any depth, without files of Orbax or a group around them.

TensorStore writes such a tree: it never writes groups.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ..._catalog.catalog import Catalog
from ..._core.text import list_names
from ...errors import SourceError
from ...storage.signatures import GGUF, SAFETENSORS
from ...storage.source import Source
from ..file_names import INDEX_FILE, MANIFEST
from ..foreign import TREES, describe_file
from ..protocol import MixedDirectory
from ..zarr.container import Container, list_files
from ..zarr_contents import list_nodes, list_outside, open_tree
from .directory import MAX_PROBES, TREE

_MARKS = (TREE, MANIFEST, INDEX_FILE)
"""Files of which each checkpoint of Orbax with its metadata has one."""

_CHECKPOINTS = frozenset((GGUF, SAFETENSORS, *TREES))
"""Kinds of files that are a checkpoint each."""

_MAX_LISTED = 6
"""Most names in an error."""


def open_bare_arrays(source: Source, about: Mapping[str, Any], uncommitted: str | None) -> Catalog:
    """The catalog of the arrays, of which those in directories are levels of the tree.

    Args:
        source: The directory.
        about: Facts known from the directories around it; go into `Catalog.metadata`.
        uncommitted: Goes into `Catalog.uncommitted`.

    Raises:
        Corrupted, Unsupported: See `ZarrTree.open`.
        MixedDirectory: The directory holds other checkpoints, too.
    """
    files = list_files(source)
    others = describe_others(source, files)
    if others is not None:
        error = MixedDirectory(f"{source.url} holds {others}")
        error.url = source.url
        raise error
    format = "orbax" if about or uncommitted else "zarr"  # as a step, Orbax may have written it
    evidence = "arrays without files of Orbax and without a group"
    tree = open_tree(source, format, evidence, files)
    return dataclasses.replace(tree, metadata={**about, **tree.metadata}, uncommitted=uncommitted)


def describe_others(source: Source, files: Container) -> str | None:
    """What a directory of arrays holds, in words, if there are other checkpoints in it.

    Such as groups, checkpoints of Orbax, and files. Reads the heads of a few files.

    Args:
        source: The directory.
        files: The files in it.
    """
    sizes = {key: extent.nbytes for key, extent in files.objects.items()}
    nodes = sorted(list_nodes(sizes))
    groups = [node for node, below in itertools.pairwise(nodes) if below.startswith(node)]
    keys = [key for key in sizes if key.rpartition("/")[2] in _MARKS]
    for key in list_outside(sizes, nodes)[:MAX_PROBES]:
        with suppress(SourceError):
            what = describe_file(source, key, sizes[key])
            if what is not None and what[0] in _CHECKPOINTS:
                keys.append(key)
    names = sorted({key.partition("/")[0] for key in (*groups, *keys)})
    return f"arrays, and other checkpoints in {list_names(names, _MAX_LISTED)}" if names else None
