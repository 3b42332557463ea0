"""Hypothesis strategies: trees with unusual names, arrays of random bits, shardings, chunk grids.

Only the functions that need Hypothesis or JAX import them.

Example:
    >>> import tempfile
    >>> from pathlib import Path
    >>> from hypothesis import given, settings
    >>> import templax as tx
    >>> from templax.testing import strategies
    >>> @settings(max_examples=3, derandomize=True, deadline=None)
    ... @given(tree=strategies.trees())
    ... def check_that_a_save_restores(tree):
    ...     with tempfile.TemporaryDirectory() as directory:
    ...         path = Path(directory, "ckpt")
    ...         tx.save(path, tree)
    ...         restored = tx.restore(path, tree)
    ...     assert tx.fingerprint(restored) == tx.fingerprint(tree)
    >>> check_that_a_save_restores()
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np

from .._core.arguments import PyTree
from .._core.boxes import Box, Shape
from .._core.dtypes import class_of, parse_dtype

if TYPE_CHECKING:
    from hypothesis import strategies as st

    Strategy = st.SearchStrategy[Any]


DTYPES: tuple[str, ...] = (
    "float32",
    "bfloat16",
    "float16",
    "float8_e4m3fn",
    "float8_e5m2",
    "int8",
    "int16",
    "int32",
    "uint8",
    "uint16",
    "uint32",
    "int4",
    "bool",
    "complex64",
)
"""Dtypes that a `jax.Array` can have while `jax_enable_x64` is off."""


class Pair(NamedTuple):
    """A NamedTuple node of `trees`."""

    left: Any
    right: Any


@dataclasses.dataclass
class Block:
    """A dataclass node of `trees`, registered with JAX when a tree is drawn."""

    kernel: Any
    bias: Any


@functools.cache
def _register() -> None:
    import jax

    jax.tree_util.register_dataclass(Block, data_fields=["kernel", "bias"], meta_fields=[])


def values(shape: Shape, dtype: np.dtype, seed: int) -> np.ndarray:
    """An array of random bits. Floats can be any NaN, subnormal or infinity.

    The same arguments give the same array. Unlike the strategies, this is an ordinary function.

    >>> values((2, 3), np.dtype("bfloat16"), 0).dtype
    dtype(bfloat16)
    """
    rng = np.random.default_rng(seed)
    if class_of(dtype) == "bool":
        return rng.integers(0, 2, shape).astype(dtype)
    if class_of(dtype) == "int":
        info = ml_dtypes.iinfo(dtype)
        low, high = int(info.min), int(info.max)
        return rng.integers(low, high, shape, np.uint64 if low == 0 else np.int64, True).astype(
            dtype
        )
    count = math.prod(shape)
    return rng.integers(0, 256, count * dtype.itemsize, np.uint8).view(dtype).reshape(shape)


def shapes(max_side: int = 6, max_rank: int = 3) -> Strategy:
    """Shapes, including those of 0-d and empty arrays.

    Args:
        max_side: Largest size of a dimension, in elements.
        max_rank: Largest number of dimensions.
    """
    from hypothesis import strategies as st

    sides = st.sampled_from([0, 1, 2, 3, 4, 5, 6, 8, 16]).filter(lambda n: n <= max_side)
    return st.lists(sides, max_size=max_rank).map(tuple)


def arrays(dtypes: Sequence[str] = DTYPES, max_side: int = 6, max_rank: int = 3) -> Strategy:
    """Numpy arrays of random bits, of any of `dtypes`.

    Args:
        dtypes: Names as in numpy and ml_dtypes.
        max_side: Largest size of a dimension, in elements.
        max_rank: Largest number of dimensions.
    """
    from hypothesis import strategies as st

    return st.builds(
        values,
        shapes(max_side, max_rank),
        st.sampled_from(list(dtypes)).map(parse_dtype),
        st.integers(0, 2**32 - 1),
    )


def keys() -> Strategy:
    """Keys of dicts: words, some of them with `/`, `.`, spaces or letters outside ASCII."""
    from hypothesis import strategies as st

    plain = st.sampled_from(["params", "kernel", "bias", "layers_0", "layers_1", "Dense_0", "w"])
    odd = st.text("aB0_-/. é漢", min_size=1, max_size=5).filter(lambda k: k.strip(".") != "")
    return st.one_of(plain, odd)


def trees(leaves: Strategy | None = None, max_leaves: int = 8) -> Strategy:
    """Nested dicts, lists, tuples, NamedTuples and dataclasses; the root is a dict.

    There is at least one leaf, and no two leaves have the same name. The keys of a dict are either
    all strings or all ints.

    Args:
        leaves: Strategy for the leaves; `arrays()` by default.
        max_leaves: The approximate maximum number of leaves.
    """
    from hypothesis import strategies as st

    _register()

    def extend(inner: Strategy) -> Strategy:
        return st.one_of(
            st.dictionaries(keys(), inner, min_size=1, max_size=3),
            st.dictionaries(st.integers(0, 20), inner, min_size=1, max_size=3),
            st.lists(inner, min_size=1, max_size=3),
            st.lists(inner, min_size=1, max_size=3).map(tuple),
            st.builds(Pair, inner, inner),
            st.builds(Block, inner, inner),
        )

    inner = st.recursive(arrays() if leaves is None else leaves, extend, max_leaves=max_leaves)
    roots = st.dictionaries(keys(), inner, min_size=1, max_size=3)
    return roots.filter(lambda tree: _are_unique(names(tree)))


def _are_unique(found: Sequence[str]) -> bool:
    return len(set(found)) == len(found) > 0


def children(node: PyTree) -> Mapping[Any, PyTree] | None:
    """The children of a node of `trees` by key, index or field; None for a leaf."""
    if isinstance(node, dict):
        return node
    if isinstance(node, Pair):
        return node._asdict()
    if isinstance(node, Block):
        return {"kernel": node.kernel, "bias": node.bias}
    if isinstance(node, (list, tuple)):
        return dict(enumerate(node))
    return None


def walk(node: PyTree, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], PyTree]]:
    """Yields the path and the value of every node and leaf of a tree of `trees`, root first."""
    yield path, node
    for key, child in (children(node) or {}).items():
        yield from walk(child, (*path, key))


def names(tree: PyTree) -> list[str]:
    """The name of every leaf, computed independently of templax's own code for that."""
    return [".".join(map(str, path)) for path, node in walk(tree) if children(node) is None]


def replace_leaf(tree: PyTree, path: tuple[Any, ...], new: PyTree) -> PyTree:
    """Returns a tree with the node at `path` replaced."""
    if not path:
        return new
    inside = children(tree)
    assert inside is not None
    head = path[0]
    changed = {k: replace_leaf(v, path[1:], new) if k == head else v for k, v in inside.items()}
    if isinstance(tree, (Pair, Block)):
        return type(tree)(**changed)
    return changed if isinstance(tree, dict) else type(tree)(changed.values())


@dataclasses.dataclass(frozen=True)
class Perturbation:
    """A template with a single mistake.

    Attributes:
        template: The modified tree.
        problem: What was changed: "shape", "dtype", "kind", "drop", "add" or "rename".
        expected: The mismatches to be reported, and no others, as pairs of problem and name.
    """

    template: PyTree
    problem: str
    expected: frozenset[tuple[str, str]]


def perturbations(template: PyTree) -> Strategy:
    """Templates that differ from `template` in one way that must be reported.

    Args:
        template: A tree from `trees` with leaves of type `jax.ShapeDtypeStruct`.
    """
    from hypothesis import strategies as st

    return st.composite(_draw_perturbation)(template)


def _draw_perturbation(draw: Any, template: PyTree) -> Perturbation:
    import jax
    from hypothesis import strategies as st

    everything = list(walk(template))
    leaves = [(path, node) for path, node in everything if children(node) is None]
    what = draw(st.sampled_from(["shape", "dtype", "kind", "drop", "add", "rename"]))
    if what in ("shape", "dtype", "kind"):
        path, leaf = draw(st.sampled_from(leaves))
        if what == "shape":
            grown = draw(st.sampled_from(["longer", "deeper"]))
            shape = (*leaf.shape, 1)
            if grown == "longer" and leaf.shape:
                axis = draw(st.integers(0, len(leaf.shape) - 1))
                shape = tuple(n + (i == axis) for i, n in enumerate(leaf.shape))
            new: Any = jax.ShapeDtypeStruct(shape, leaf.dtype)
        elif what == "dtype":
            # No cast policy allows casts to or from bool.
            other = "bool" if class_of(np.dtype(leaf.dtype)) != "bool" else "float32"
            new = jax.ShapeDtypeStruct(leaf.shape, parse_dtype(other))
        else:
            new = str
        return Perturbation(
            replace_leaf(template, path, new), what, frozenset({(what, ".".join(map(str, path)))})
        )
    dicts = [(path, node) for path, node in everything if isinstance(node, dict)]
    path, node = draw(st.sampled_from(dicts))
    key = draw(st.sampled_from(sorted(node, key=str)))
    prefix = "".join(f"{step}." for step in path)
    fresh = 99 if isinstance(key, int) else "another"
    below = _names_below(node[key])

    def rename_below(head: Any) -> set[str]:
        return {f"{prefix}{head}{'.' if name else ''}{name}" for name in below}

    missing, extra = set[str](), set[str]()
    changed = dict(node)
    if what == "add":
        changed[fresh] = jax.ShapeDtypeStruct((7,), np.float32)
        missing = {f"{prefix}{fresh}"}
    else:
        changed = {k: v for k, v in node.items() if k != key}
        extra = rename_below(key)
        if what == "rename":
            changed[fresh] = node[key]
            missing = rename_below(fresh)
    expected = {("missing", n) for n in missing} | {("extra", n) for n in extra}
    return Perturbation(replace_leaf(template, path, changed), what, frozenset(expected))


def _names_below(node: PyTree) -> list[str]:
    return [".".join(map(str, path)) for path, leaf in walk(node) if children(leaf) is None]


def shardings(shape: Shape) -> Strategy:
    """Shardings of an array of `shape` over the local devices, including None for the default.

    Every sharding divides the array evenly.
    """
    import jax
    from hypothesis import strategies as st

    return st.composite(_draw_sharding)(shape, tuple(jax.local_devices()))


def _draw_sharding(draw: Any, shape: Shape, devices: tuple[Any, ...]) -> Any:
    from hypothesis import strategies as st
    from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

    what = draw(st.sampled_from(["none", "single", "named", "named", "named"]))
    if what == "none":
        return None
    if what == "single":
        return SingleDeviceSharding(draw(st.sampled_from(devices)))
    n = len(devices)
    a = draw(st.sampled_from([k for k in range(1, n + 1) if n % k == 0]))
    order = draw(st.sampled_from([devices, devices[::-1]]))
    mesh = Mesh(np.array(order).reshape(a, n // a), ("data", "model"))
    free = ["data", "model"]
    spec: list[Any] = []
    for side in shape:
        options: list[Any] = [None, *(axis for axis in free if side % mesh.shape[axis] == 0)]
        if len(free) == 2 and side % n == 0:
            options.append(("data", "model"))
        axis = draw(st.sampled_from(options))
        spec.append(axis)
        free = [f for f in free if f != axis and not (isinstance(axis, tuple) and f in axis)]
    return NamedSharding(mesh, PartitionSpec(*spec))


def boxes(shape: Shape) -> Strategy:
    """Boxes within `shape` that contain at least one element.

    A box is a half-open range `(start, stop)` per dimension. No size in `shape` may be 0.
    """
    from hypothesis import strategies as st

    def side(n: int) -> Strategy:
        return (
            st.tuples(st.integers(0, n), st.integers(0, n))
            .map(sorted)
            .map(tuple)
            .filter(lambda ab: ab[0] < ab[1])
        )

    return st.tuples(*map(side, shape))


def grids(shape: Shape) -> Strategy:
    """Regular chunk grids: lists of boxes that tile `shape` and may extend past its edge."""
    from hypothesis import strategies as st

    return st.tuples(*(st.integers(1, max(1, n)) for n in shape)).map(
        lambda chunk: grid(shape, chunk)
    )


def grid(shape: Shape, chunk: Shape) -> list[Box]:
    """Boxes of size `chunk` that tile `shape`. The last ones may extend past its edge.

    >>> grid((3,), (2,))
    [((0, 2),), ((2, 4),)]
    """
    found: list[Box] = [()]
    for n, c in zip(shape, chunk, strict=True):
        found = [(*box, (start, start + c)) for box in found for start in range(0, n, c)]
    return found
