"""Arrays that a state dict refers to, instead of holding them: in directories beside its file.

T5X writes the spec of TensorStore in place of an array (google-research/t5x, `checkpoints.py`), and
`flax.training.checkpoints` a string in place of one of several processes. The directory is an array
of zarr 2.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from ..._core.boxes import Shape
from ..._core.names import Path, join_path
from ...errors import Corrupted, Unsupported

FORMAT = "t5x"
"""Name of the format of a checkpoint with the specs of T5X."""

_STORES = ("file", "gcs", "gfile")
"""Drivers of the stores to which T5X writes."""

ARRAY_PLACEHOLDER = "//GDAPlaceholder:"
"""What a text begins with that stands for one of these arrays."""

_ELSEWHERE = re.compile(r"(?:/|[A-Za-z]:|[a-z0-9]+://)")
"""What the path of an array begins with if it is not relative to the checkpoint."""


_SHAPE, _NAME = tuple[int, ...] | None, str | None


class Spec(msgspec.Struct, frozen=True, gc=False):
    """A reference to an array.

    Attributes:
        place: Its directory, relative to that of the checkpoint.
        dtype, shape: What the array must have, as far as the reference says.
    """

    place: str
    dtype: str | None = None
    shape: Shape | None = None


def is_spec(tree: dict[Any, Any]) -> bool:
    """Whether a node of a state dict is the spec of an array: each has these keys, with text."""
    store = tree.get("kvstore")
    has_store = isinstance(store, dict) and isinstance(store.get("driver"), str)
    return has_store and isinstance(tree.get("driver"), str)


def parse_spec(tree: dict[Any, Any], path: Path) -> Spec:
    """The reference in a node of a state dict that `is_spec`.

    T5X records paths relative to the checkpoint, so that it can be moved, and ignores the bucket.
    Of any other path, only the last element counts: the array is looked for in the checkpoint.

    Raises:
        Corrupted: It has no path, or one that leads out of the directory.
        Unsupported: The array is not in zarr 2, or in a store that T5X does not know.
    """
    name, store = join_path(path), tree["kvstore"]
    if tree["driver"] != "zarr":
        what = f"templax reads TensorStore specs of driver `zarr`, got `{tree['driver'][:80]}`"
        raise Unsupported(what, leaf=name)
    if store["driver"] not in _STORES:
        what = f"templax reads TensorStore specs of files, got kvstore `{store['driver'][:80]}`"
        raise Unsupported(what, leaf=name)
    place = store.get("path", tree.get("path"))  # of the whole before TensorStore 0.1.14
    if not isinstance(place, str):
        raise Corrupted("Expected the path of an array in a TensorStore spec", leaf=name)
    if _ELSEWHERE.match(place):
        place = place.rstrip("/").rpartition("/")[2]
    about = tree.get("metadata")
    try:
        shape = msgspec.convert(about.get("shape") if isinstance(about, dict) else None, _SHAPE)
        dtype = msgspec.convert(tree.get("dtype"), _NAME)
    except msgspec.ValidationError as error:
        what = f"Expected a shape and a dtype in a TensorStore spec: {error}"
        raise Corrupted(what, leaf=name) from error
    return Spec(check_place(place, name), dtype, shape)


def check_place(place: str, leaf: str) -> str:
    """The path of an array's directory, without a slash at the end.

    Raises:
        Corrupted: It leads out of the directory of the checkpoint.
    """
    found = place.rstrip("/")
    parts = found.split("/")
    if {"\0", "\\"} & {*found} or not {"", ".", ".."}.isdisjoint(parts):
        raise Corrupted(
            f"Expected the path of an array below the checkpoint, got `{place[:200]}`", leaf=leaf
        )
    return found
