"""The targets of template leaves whose results stay on the host. No JAX."""

from __future__ import annotations

import functools
import operator
from typing import Any

import numpy as np

from .._catalog.abstract_tree import KeysWithoutJax
from .._core.boxes import Shape, full_box
from .._core.dtypes import PYTHON_DTYPES, class_of
from .._core.names import Path, join_path
from .._core.optional import require_jax
from ..errors import Mismatch
from .placement import Placement
from .template import Target


def make_host_target(path: Path, leaf: Any) -> Target | None:
    """The target of a leaf that asks for no `jax.Array`; None if it asks for one.

    Args:
        path: Its key path.
        leaf: Anything that a pytree holds.

    Raises:
        MissingPackage: The leaf stands for typed PRNG keys, in a template that
            `Catalog.template` made where JAX is not installed.
    """
    name = join_path(path)
    make = functools.partial(Target, name, path, (), placement=Placement(leaf))
    if leaf is ...:
        return make(np.dtype("V0"), "skip")
    if leaf is str or isinstance(leaf, str):
        return make(np.dtype(str), "string", host=True, concrete=leaf is not str)
    number = _number_type(leaf)
    if number is not None:
        concrete = not isinstance(leaf, type)
        return make(PYTHON_DTYPES[number], "scalar", host=True, concrete=concrete, boxes=((),))
    if is_numpy(leaf):
        return _make_numpy_target(name, path, leaf)
    if isinstance(leaf, KeysWithoutJax):
        what = f"`{name}` holds typed PRNG keys, whose restore"
        require_jax(what, "put `...` there to skip them")
    if asks_for_array(leaf):
        return None
    return make(np.dtype("V0"), "static")


def asks_for_array(leaf: Any) -> bool:
    """Whether a leaf, other than a number, has the shape and dtype of an array."""
    return is_numpy(leaf) or (hasattr(leaf, "shape") and hasattr(leaf, "dtype"))


def is_numpy(leaf: Any) -> bool:
    """Whether a leaf is a numpy array or scalar, or the type of a scalar."""
    if isinstance(leaf, type):
        return issubclass(leaf, np.generic)
    return isinstance(leaf, (np.ndarray, np.generic))


def find_kind_problem(name: str, dtype: np.dtype) -> tuple[Mismatch, ...]:
    """Why no array of numbers has this dtype; empty if one can have it."""
    if class_of(dtype) != "other":
        return ()
    what = f"a template leaf of dtype {dtype}"
    return (Mismatch("kind", name, "an array of numbers", what),)


def _make_numpy_target(name: str, path: Path, leaf: Any) -> Target:
    shape: Shape = () if isinstance(leaf, type) else tuple(map(operator.index, leaf.shape))
    dtype = np.dtype(leaf if isinstance(leaf, type) else leaf.dtype).newbyteorder("=")
    return Target(
        name,
        path,
        shape,
        dtype,
        boxes=(full_box(shape),),
        host=True,
        concrete=not isinstance(leaf, type),
        problems=find_kind_problem(name, dtype),
        placement=Placement(leaf),
    )


def _number_type(leaf: Any) -> type | None:
    """The type of a Python number: `int` for 3 and for `int` itself; None for other leaves."""
    if isinstance(leaf, type):
        return leaf if leaf in PYTHON_DTYPES else None
    if isinstance(leaf, np.generic):
        return None
    # bool comes first, since True is an instance of int.
    return next((t for t in (bool, int, float, complex) if isinstance(leaf, t)), None)
