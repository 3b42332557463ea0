"""The trees that templax and Orbax exchange: one per kind of leaf or layout, each judged alone.

For processes without templax, a tree is also described in plain JSON as a node. Its `kind` is
"dict", "list", "tuple" or "namedtuple", with `items` as pairs of key and node; "none"; or "jax",
"numpy", "key" or "python" for a leaf, with its digest and what `orbax_peer` needs to make it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import NamedSharding

from .orbax_peer import (
    compute_digest,
    format_value,
    is_python_value,
    make_sharding,
    to_dtype,
)

PyTree = Any
DTYPES = (
    *("float32", "bfloat16", "float16", "float64", "complex64", "complex128", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e4m3b11fnuz"),
    *("float8_e4m3", "float8_e3m4", "float8_e8m0fnu", "float4_e2m1fn"),
    *("int4", "uint4", "int2", "uint2"),
)
JOB = "2 processes"
"""Ends the name of a tree that is saved by a job of two processes, with four devices each."""

_LARGE = (1001, 1537)
"""5.9 MiB of float32 in rows whose size divides neither 4 MiB nor 64 bytes."""


class Pair(NamedTuple):
    mu: Any
    nu: Any


class Empty(NamedTuple):
    """Like the state of most optimizers without any."""


def list_trees() -> dict[str, Callable[[], PyTree]]:
    """Name → a function that makes the tree. Needs eight devices and 64-bit types."""
    trees: dict[str, Callable[[], PyTree]] = {}
    for dtype in DTYPES:
        trees[dtype] = lambda dtype=dtype: {"w": put(dtype, (16, 6)), "b": put(dtype, (5,))}
    trees |= {
        "0-d arrays": lambda: {d: put(d, ()) for d in ("float32", "bfloat16", "int32", "bool")},
        "zero-size arrays": lambda: {
            "x": put("float32", (3,)),
            "flat": put("float32", (0,)),
            "wide": put("bfloat16", (0, 4)),
            "tall": put("int32", (3, 0)),
        },
        "numpy arrays": lambda: {
            d: make_random(d, (5, 3)) for d in ("float32", "bfloat16", "int64")
        },
        "numpy scalars": lambda: {"f": np.float32(0.1), "i": np.int64(-7)},
        "numpy bool scalar": lambda: {"b": np.bool_(True)},
        "Python numbers": lambda: {"i": -7, "big": 1 << 40, "f": 0.1, "inf": float("-inf")},
        "Python bool": lambda: {"yes": True, "no": False},
        "Python complex": lambda: {"c": 1.5 - 2j},
        "strings": lambda: {"s": "hello", "utf-8": "grün \N{SNOWMAN}", "empty": ""},
        "None": lambda: {"x": put("float32", (3,)), "none": None},
        "empty dict": lambda: {"x": put("float32", (3,)), "empty": {}},
        "empty list": lambda: {"x": put("float32", (3,)), "empty": []},
        "empty tuple": lambda: {"x": put("float32", (3,)), "empty": ()},
        "empty named tuple": lambda: {"x": put("float32", (3,)), "states": (Empty(), Empty())},
        "no array at all": lambda: {"none": None, "empty": {}},
        "lists, tuples, named tuples": lambda: {
            "layers": [{"w": put("float32", (2, 3))}, {"w": put("float32", (3, 2))}],
            "pair": (put("int8", (4,)), put("int8", (5,))),
            "state": Pair(put("float32", (4,)), [put("bfloat16", (2,))]),
        },
        "eleven of a list": lambda: [put("int32", (2,)) for _ in range(11)],
        "one bare array": lambda: put("float32", (4, 3)),
        "typed keys": lambda: {
            "one": jax.random.key(3),
            "three": jax.random.split(jax.random.key(4), 3),
            "rbg": jax.random.key(5, impl="rbg"),
        },
        "raw keys": lambda: {"key": jax.random.PRNGKey(3)},
        "integer keys": lambda: {1: put("float32", (2,)), 10: put("float32", (3,))},
        "key with a dot": lambda: {"a.b": put("float32", (2,)), "c": {"d": put("int8", (2,))}},
        "key with a slash": lambda: {"a/b": put("float32", (2,))},
        "empty key": lambda: {"": put("float32", (2,)), "a": {"": put("int8", (2,))}},
        "keys of other characters": lambda: {
            "sp ace": put("float32", (2,)),
            "grün\N{SNOWMAN}": put("int8", (2,)),
            "Case": put("float32", (1,)),
            "case": put("float32", (3,)),
            'it\'s "q"': put("float32", (2,)),
            "*?[%20]": put("int8", (3,)),
        },
        "key with a backslash": lambda: {"a\\b": put("float32", (2,)), "c\\": put("int8", (2,))},
        "key of 300 characters": lambda: {"k" * 300: put("float32", (2,))},
        "16 levels": lambda: _nest(16, put("float32", (2,))),
        "500 small leaves": lambda: {
            f"layer_{i}": {"w": put("float32", (i % 7, 3) if i % 7 else ())} for i in range(500)
        },
        "5.9 MiB, rows that do not divide": lambda: {"w": put("float32", _LARGE)},
        "one row of 4.4 MB": lambda: {"w": put("float32", (2, 1_100_000))},
        "8 MiB, rows that divide": lambda: {"w": put("bfloat16", (1024, 4096))},
        "over 8 devices": lambda: {"w": put("float32", (16, 6), (8,), "x")},
        "over 8 devices, axis 1": lambda: {"w": put("bfloat16", (6, 16), (8,), None, "x")},
        "4x2 devices, both axes": lambda: {"w": put("float32", (16, 6), (4, 2), "x", "y")},
        "4x2 devices, one axis": lambda: {"w": put("float32", (16, 6), (4, 2), None, "y")},
        "4x2 devices, two on one": lambda: {"w": put("float32", (16, 6), (4, 2), ("y", "x"))},
        "on each of 8 devices": lambda: {
            "w": put("float32", (5, 3), (8,)),
            "s": put("int32", (), (8,)),
        },
        "5.9 MiB over 4x2 devices": lambda: {"w": put("float32", (1008, 1538), (4, 2), "x", "y")},
        "int4 over 8 devices": lambda: {"w": put("int4", (16, 6), (8,), "x")},
        "several shardings": lambda: {
            "rows": put("float32", (16, 6), (8,), "x"),
            "tile": put("bfloat16", (8, 4), (4, 2), "x", "y"),
            "one": put("int8", (5,)),
            "host": make_random("float32", (7,)),
            "step": 12,
            "key": jax.random.key(6),
        },
    }
    for name in ("over 8 devices", "over 8 devices, axis 1", "4x2 devices, both axes"):
        trees[f"{name}, {JOB}"] = trees[name]
    trees[f"5.9 MiB over 4x2 devices, {JOB}"] = trees["5.9 MiB over 4x2 devices"]
    trees[f"on each of 8 devices, {JOB}"] = trees["on each of 8 devices"]
    return trees


def _nest(levels: int, leaf: Any) -> PyTree:
    return {f"level{levels}": _nest(levels - 1, leaf) if levels > 1 else leaf}


def make_random(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """The same values each time; integers from their whole range."""
    kind = to_dtype(dtype)
    generator = np.random.default_rng(sum(map(ord, dtype)) + sum(shape))
    if dtype == "bool":
        return np.asarray(generator.integers(0, 2, shape), bool)
    if kind.kind in "iu":
        info = np.iinfo(kind)
        return generator.integers(info.min, info.max, shape, kind, endpoint=True)
    if dtype in ("int4", "uint4", "int2", "uint2"):
        info = ml_dtypes.iinfo(kind)
        return np.asarray(generator.integers(int(info.min), int(info.max) + 1, shape)).astype(kind)
    if kind.kind == "c":
        return np.asarray(generator.normal(size=shape) + 1j * generator.normal(size=shape), kind)
    return np.asarray(np.abs(generator.normal(size=shape)) + 0.25).astype(kind)


def put(
    dtype: str, shape: tuple[int, ...], mesh: tuple[int, ...] | None = None, *spec: Any
) -> jax.Array:
    """Random values on the first device, or sharded over a mesh with axes x and y."""
    value = make_random(dtype, shape)
    sharding = make_sharding(None if mesh is None else (mesh, ("x", "y")[: len(mesh)], spec))
    return jax.device_put(value, sharding)


def make_node(tree: PyTree, values: dict[str, np.ndarray]) -> dict[str, Any]:
    """Describes a tree as JSON, and adds the values of its arrays to `values`."""
    if isinstance(tree, dict):
        ints = bool(tree) and all(isinstance(key, int) for key in tree)
        items = [[str(key), make_node(child, values)] for key, child in tree.items()]
        return {"kind": "dict", "items": items, **({"ints": True} if ints else {})}
    if isinstance(tree, tuple) and hasattr(tree, "_asdict"):
        return {**make_node(tree._asdict(), values), "kind": "namedtuple"}
    if isinstance(tree, (list, tuple)):
        items = [[str(i), make_node(child, values)] for i, child in enumerate(tree)]
        return {"kind": type(tree).__name__, "items": items}
    if tree is None:
        return {"kind": "none"}
    if is_python_value(tree):
        node = {"kind": "python", "type": type(tree).__name__, "value": format_value(tree)}
        return (
            node if isinstance(tree, str) else {**node, "digest": compute_digest(np.asarray(tree))}
        )
    return _make_leaf_node(tree, values)


def _make_leaf_node(leaf: Any, values: dict[str, np.ndarray]) -> dict[str, Any]:
    name = f"v{len(values)}"
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = values[name] = np.asarray(jax.random.key_data(leaf))
        shape, impl = list(leaf.shape), str(jax.random.key_impl(leaf))
        return {
            "kind": "key",
            "shape": shape,
            "impl": impl,
            "dtype": str(leaf.dtype),
            "values": name,
            "digest": compute_digest(data),
        }
    array = np.asarray(leaf)
    values[name] = np.frombuffer(array.tobytes(), np.uint8)
    node = {
        "kind": "jax" if isinstance(leaf, jax.Array) else "numpy",
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        "values": name,
        "digest": compute_digest(array),
    }
    if isinstance(leaf, np.generic):
        node |= {"scalar": True, "value": format_value(leaf.item())}
    sharding = getattr(leaf, "sharding", None)
    if isinstance(sharding, NamedSharding):
        mesh = sharding.mesh
        node["mesh"] = [list(mesh.devices.shape), list(mesh.axis_names), list(sharding.spec)]
    return node


def iterate_leaves(
    node: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Path and node of every leaf except None."""
    if "items" in node:
        for key, child in node["items"]:
            yield from iterate_leaves(child, f"{path}/{key}")
    elif node["kind"] != "none":
        yield path, node
