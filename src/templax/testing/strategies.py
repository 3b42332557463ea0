"""Hypothesis strategies: trees with odd names, arrays of every bit pattern, shardings, box grids.

Hypothesis and JAX are imported by the functions that need them.
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
"""What a `jax.Array` holds while `jax_enable_x64` is off."""


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
    """An array of random bits: of floats every NaN, subnormal and infinity may occur.

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
    """Shapes, 0-d and empty ones among them."""
    from hypothesis import strategies as st

    sides = st.sampled_from([0, 1, 2, 3, 4, 5, 6, 8, 16]).filter(lambda n: n <= max_side)
    return st.lists(sides, max_size=max_rank).map(tuple)


def arrays(dtypes: Sequence[str] = DTYPES, max_side: int = 6, max_rank: int = 3) -> Strategy:
    """Numpy arrays of any of `dtypes` with random bits."""
    from hypothesis import strategies as st

    return st.builds(
        values,
        shapes(max_side, max_rank),
        st.sampled_from(list(dtypes)).map(parse_dtype),
        st.integers(0, 2**32 - 1),
    )


def keys() -> Strategy:
    """Keys of dicts: words, and words with `/`, `.`, spaces or letters beyond ASCII."""
    from hypothesis import strategies as st

    plain = st.sampled_from(["params", "kernel", "bias", "layers_0", "layers_1", "Dense_0", "w"])
    odd = st.text("aB0_-/. é漢", min_size=1, max_size=5).filter(lambda k: k.strip(".") != "")
    return st.one_of(plain, odd)


def trees(leaves: Strategy | None = None, max_leaves: int = 8) -> Strategy:
    """Dicts of nested dicts, lists, tuples, NamedTuples and dataclasses with at least one leaf.

    Keys of a dict are all strings or all ints. No two leaves have the same name.

    Args:
        leaves: What the leaves are. Default: `arrays()`.
        max_leaves: About how many there are at most.
    """
    from hypothesis import strategies as st

    _register()

    def nodes(inner: Strategy) -> Strategy:
        return st.one_of(
            st.dictionaries(keys(), inner, min_size=1, max_size=3),
            st.dictionaries(st.integers(0, 20), inner, min_size=1, max_size=3),
            st.lists(inner, min_size=1, max_size=3),
            st.lists(inner, min_size=1, max_size=3).map(tuple),
            st.builds(Pair, inner, inner),
            st.builds(Block, inner, inner),
        )

    inner = st.recursive(arrays() if leaves is None else leaves, nodes, max_leaves=max_leaves)
    roots = st.dictionaries(keys(), inner, min_size=1, max_size=3)
    return roots.filter(lambda tree: _unambiguous(names(tree)))


def _unambiguous(found: Sequence[str]) -> bool:
    return len(set(found)) == len(found) > 0


def children(node: PyTree) -> Mapping[Any, PyTree] | None:
    """What a node of `trees` holds, by key, index or field; None of a leaf."""
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
    """Every node and leaf of a tree of `trees` with its path, the root first."""
    yield path, node
    for key, child in (children(node) or {}).items():
        yield from walk(child, (*path, key))


def names(tree: PyTree) -> list[str]:
    """The name of every leaf, independent of how templax makes it."""
    return [".".join(map(str, path)) for path, node in walk(tree) if children(node) is None]


def replace_leaf(tree: PyTree, path: tuple[Any, ...], new: PyTree) -> PyTree:
    """The tree with another node at `path`."""
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
    """A template with one thing wrong.

    Attributes:
        template: The tree.
        problem: What was done to it: "shape", "dtype", "kind", "drop", "add", "rename".
        expected: What must be reported: pairs of problem and name, nothing else.
    """

    template: PyTree
    problem: str
    expected: frozenset[tuple[str, str]]


def perturbations(template: PyTree) -> Strategy:
    """One change, which must be seen, to a template of `jax.ShapeDtypeStruct`s from `trees`."""
    from hypothesis import strategies as st

    return st.composite(_perturb)(template)


def _perturb(draw: Any, template: PyTree) -> Perturbation:
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
            # No policy casts to or from bool, nor a float to an int.
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
    below = _below(node[key])

    def under(head: Any) -> set[str]:
        return {f"{prefix}{head}{'.' if name else ''}{name}" for name in below}

    missing, extra = set[str](), set[str]()
    changed = dict(node)
    if what == "add":
        changed[fresh] = jax.ShapeDtypeStruct((7,), np.float32)
        missing = {f"{prefix}{fresh}"}
    else:
        changed = {k: v for k, v in node.items() if k != key}
        extra = under(key)
        if what == "rename":
            changed[fresh] = node[key]
            missing = under(fresh)
    expected = {("missing", n) for n in missing} | {("extra", n) for n in extra}
    return Perturbation(replace_leaf(template, path, changed), what, frozenset(expected))


def _below(node: PyTree) -> list[str]:
    return [".".join(map(str, path)) for path, leaf in walk(node) if children(leaf) is None]


def shardings(shape: Shape) -> Strategy:
    """Shardings of an array of `shape` over the local devices; None (the default) among them."""
    import jax
    from hypothesis import strategies as st

    return st.composite(_sharding)(shape, tuple(jax.local_devices()))


def _sharding(draw: Any, shape: Shape, devices: tuple[Any, ...]) -> Any:
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
    """Boxes within `shape` that hold at least one element; there must be one."""
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
    """Regular chunk grids: lists of boxes that tile `shape`; those at an edge may reach past it."""
    from hypothesis import strategies as st

    return st.tuples(*(st.integers(1, max(1, n)) for n in shape)).map(
        lambda chunk: grid(shape, chunk)
    )


def grid(shape: Shape, chunk: Shape) -> list[Box]:
    """Boxes of size `chunk` that tile `shape`.

    >>> grid((3,), (2,))
    [((0, 2),), ((2, 4),)]
    """
    found: list[Box] = [()]
    for n, c in zip(shape, chunk, strict=True):
        found = [(*box, (start, start + c)) for box in found for start in range(0, n, c)]
    return found
