"""JAX. Pytree and shardings → Template, and the templates that people start from."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.experimental.layout import Format
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from ._boxes import Box, Shape, from_index, whole
from ._catalog import Catalog, LeafEntry
from ._dtypes import class_of
from ._errors import Damaged, Mismatch, UsageError
from ._names import Path, join
from ._template import PYTHON_DTYPES, Sharding, Target, Template, sharding_problem

PyTree = Any


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a finished leaf goes.

    Attributes:
        leaf: The template's own leaf: what `...`, statics and kept values come back as.
        sharding: Of the result; None is JAX's default device, uncommitted.
        devices: Of a sharding that boxes can be read for: each local device and the index of its
            box in `Target.boxes`.
        layout: A memory layout asked for by a `Format`, or None.
    """

    leaf: Any
    sharding: jax.sharding.Sharding | None = None
    devices: tuple[tuple[Any, int], ...] = ()
    layout: Any = None


def as_template(tree: PyTree, shardings: PyTree = None) -> Template:
    """The template of a pytree.

    Args:
        tree: Leaves as `restore` documents them.
        shardings: A prefix of `tree` with shardings or devices, which override those of `tree`;
            None leaves them.

    Raises:
        UsageError: `shardings` is no prefix of `tree`, or holds something else.
    """
    keyed, treedef = jtu.tree_flatten_with_path(tree)
    overrides: Sequence[Any] = [None] * len(keyed)
    if shardings is not None:
        overrides = _spread(shardings, tree, "shardings")
    modules = _equinox_modules(tree)
    boxes: dict[Any, tuple[tuple[Box, ...], tuple[tuple[Any, int], ...]]] = {}
    targets = []
    for (keys, leaf), override in zip(keyed, overrides, strict=True):
        path = tuple(map(element, keys))
        target = _target(path, leaf, override, boxes)
        if modules and target.concrete and target.kind in ("scalar", "string"):
            optional = any(keys[:n] in modules for n in range(len(keys)))
            target = replace(target, optional=optional)
        targets.append(target)
    return Template(tuple(targets), treedef)


def element(key: Any) -> str | int:
    """One step of a JAX key path: an index of a sequence as int, all else by its spelling."""
    match key:
        case jtu.SequenceKey(idx=index):
            return index
        case jtu.GetAttrKey(name=name):
            return name
        case jtu.DictKey(key=k) | jtu.FlattenedIndexKey(key=k):
            return str(k)
        case _:
            return str(key)


def _equinox_modules(tree: PyTree) -> set[tuple[Any, ...]]:
    equinox = sys.modules.get("equinox")
    if equinox is None:
        return set()
    found, prefixes = [((), tree)], set()
    while found:
        above, node = found.pop()
        keyed, _ = jtu.tree_flatten_with_path(
            node, is_leaf=lambda x, node=node: x is not node and isinstance(x, equinox.Module)
        )
        if isinstance(node, equinox.Module):
            prefixes.add(above)
            continue  # what is inside is inside a module
        found += [(above + k, x) for k, x in keyed if isinstance(x, equinox.Module)]
    return prefixes


def _spread(prefix: PyTree, tree: PyTree, what: str) -> list[Any]:
    """The value of a prefix pytree for each leaf of `tree`."""

    def is_leaf(x: Any) -> bool:
        return x is None or isinstance(x, PartitionSpec)

    try:
        full = jax.tree.broadcast(prefix, tree, is_leaf=is_leaf)
    except ValueError as error:
        raise UsageError(f"`{what}` is no prefix of the template: {error}") from error
    return jtu.tree_leaves(full, is_leaf=is_leaf)


def _target(path: Path, leaf: Any, override: Any, boxes: dict[Any, Any]) -> Target:
    name = join(path)
    if leaf is ...:
        return Target(name, path, (), np.dtype("V0"), "skip", placement=Placement(leaf))
    if isinstance(leaf, type) and leaf in PYTHON_DTYPES:
        return Target(
            name,
            path,
            (),
            PYTHON_DTYPES[leaf],
            "scalar",
            host=True,
            boxes=((),),
            placement=Placement(leaf),
        )
    if isinstance(leaf, str) or leaf is str:
        return Target(
            name,
            path,
            (),
            np.dtype(str),
            "string",
            host=True,
            concrete=leaf is not str,
            placement=Placement(leaf),
        )
    if isinstance(leaf, (bool, int, float, complex)) and not isinstance(leaf, np.generic):
        dtype = next(d for python, d in _BY_TYPE if isinstance(leaf, python))
        return Target(
            name,
            path,
            (),
            dtype,
            "scalar",
            host=True,
            concrete=True,
            boxes=((),),
            placement=Placement(leaf),
        )
    if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
        return Target(name, path, (), np.dtype("V0"), "static", placement=Placement(leaf))
    return _array_target(name, path, leaf, override, boxes)


# bool first: it is an int, too.
_BY_TYPE = sorted(PYTHON_DTYPES.items(), key=lambda item: item[0] is not bool)


def _array_target(name: str, path: Path, leaf: Any, override: Any, boxes: dict[Any, Any]) -> Target:
    shape = tuple(int(n) for n in leaf.shape)
    host = isinstance(leaf, (np.ndarray, np.generic)) and override is None
    concrete = isinstance(leaf, (np.ndarray, np.generic, jax.Array)) and not isinstance(
        leaf, jax.core.Tracer
    )
    sharding, layout = (None, None) if host else _wanted_sharding(leaf, override)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        impls: list[str] = []
        data = jax.eval_shape(
            lambda k: (impls.append(str(jax.random.key_impl(k))), jax.random.key_data(k))[1],
            jax.ShapeDtypeStruct(shape, leaf.dtype),
        )
        return Target(
            name,
            path,
            data.shape,
            np.dtype(data.dtype),
            "key",
            key_impl=impls[0],
            boxes=(whole(data.shape),),
            concrete=concrete,
            sharding=_sharding_data(sharding),
            problem=_problem(name, shape, sharding),
            placement=Placement(leaf, sharding),
        )
    dtype = np.dtype(leaf.dtype)
    problem = _problem(name, shape, sharding)
    if class_of(dtype) == "other":
        problem = Mismatch("kind", name, "an array of numbers", f"a template leaf of dtype {dtype}")
    elif not host and jax.dtypes.canonicalize_dtype(dtype) != dtype:
        most = jax.dtypes.canonicalize_dtype(dtype)
        problem = Mismatch(
            "dtype",
            name,
            dtype.name,
            f"{most}",
            note="a jax.Array holds no 64-bit numbers while jax_enable_x64 is off",
        )
    local: tuple[Box, ...] = (whole(shape),)
    devices: tuple[tuple[Any, int], ...] = ()
    if sharding is not None and problem is None:
        local, devices = _local_boxes(sharding, shape, boxes)
    return Target(
        name,
        path,
        shape,
        dtype,
        boxes=local,
        host=host,
        concrete=concrete,
        problem=problem,
        sharding=_sharding_data(sharding),
        placement=Placement(leaf, sharding, devices, layout),
    )


def _wanted_sharding(leaf: Any, override: Any) -> tuple[jax.sharding.Sharding | None, Any]:
    wanted, layout = override, None
    if wanted is None:
        wanted = getattr(leaf, "sharding", None)
        if isinstance(leaf, jax.Array):
            if not getattr(leaf, "committed", True):
                wanted = None
        else:
            layout = getattr(getattr(leaf, "format", None), "layout", None)
    if isinstance(wanted, jax.Device):
        wanted = SingleDeviceSharding(wanted)
    elif isinstance(wanted, Format):
        wanted, layout = wanted.sharding, wanted.layout
    if wanted is not None and not isinstance(wanted, jax.sharding.Sharding):
        raise UsageError(f"Expected a jax.sharding.Sharding or a device, got {wanted!r}")
    if isinstance(wanted, NamedSharding) and isinstance(wanted.mesh, AbstractMesh):
        mesh = jax.sharding.get_mesh()
        if mesh.shape == wanted.mesh.shape:
            wanted = NamedSharding(mesh, wanted.spec, memory_kind=wanted.memory_kind)
    return wanted, layout


def _sharding_data(sharding: jax.sharding.Sharding | None) -> Sharding | None:
    if not isinstance(sharding, NamedSharding):
        return None
    spec = tuple(
        s
        if s is None or isinstance(s, str)
        else None
        if s is PartitionSpec.UNCONSTRAINED
        else tuple(s)
        for s in sharding.spec
    )
    return Sharding({str(a): n for a, n in sharding.mesh.shape.items()}, spec, sharding.memory_kind)


def _problem(name: str, shape: Shape, sharding: jax.sharding.Sharding | None) -> Mismatch | None:
    data = _sharding_data(sharding)
    if sharding is None:
        return None
    if data is not None:
        if isinstance(sharding.mesh, AbstractMesh):  # pyright: ignore[reportAttributeAccessIssue]
            return Mismatch(
                "sharding",
                name,
                "a mesh of devices",
                f"an AbstractMesh, sharding {data}",
                note="no mesh of its shape is set: `with jax.set_mesh(mesh):`",
            )
        problem = sharding_problem(name, shape, data)
        if problem is not None:
            return problem
    try:
        sharding.shard_shape(shape)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        return Mismatch("sharding", name, f"a sharding for shape {shape}", f"{sharding}: {reason}")
    return None


def _local_boxes(
    sharding: jax.sharding.Sharding, shape: Shape, cache: dict[Any, Any]
) -> tuple[tuple[Box, ...], tuple[tuple[Any, int], ...]]:
    """The distinct boxes of this process, and which local device holds which."""
    key = (sharding, shape)
    if key not in cache:
        order: dict[Box, int] = {}
        devices = []
        for device, index in sharding.addressable_devices_indices_map(shape).items():
            box = whole(shape) if index is None else from_index(index, shape)
            devices.append((device, order.setdefault(box, len(order))))
        cache[key] = tuple(order), tuple(devices)
    return cache[key]


# Templates that people start from.


def template_of(
    init: Callable[..., PyTree] | PyTree,
    *args: Any,
    mesh: Mesh | None = None,
    specs: PyTree | Callable[[str, Any], PartitionSpec | None] = None,
    **kwargs: Any,
) -> PyTree:
    """The abstract tree that a function would return, or that a tree of arrays has.

    No array is made: the function is traced as by `jax.eval_shape`, but Python numbers among its
    arguments stay Python numbers, and what it returns beside arrays (functions, numbers, strings)
    comes back as it is, so initialisers of Flax, NNX and Equinox all work as they stand.

    Args:
        init: A function, or a pytree of arrays. An object that is both is a pytree.
        *args, **kwargs: For the function.
        mesh: With `specs`: every array leaf gets `NamedSharding(mesh, spec)`. Without `specs`:
            replicated over the mesh. Default: the mesh set by `jax.set_mesh`.
        specs: A `PartitionSpec`, a prefix of the tree with such (None leaves a leaf without
            sharding), or a function of a leaf's name and its `ShapeDtypeStruct`.

    Returns:
        The tree with `jax.ShapeDtypeStruct` leaves. Arrays of a given tree keep a sharding that
        they are committed to.

    Raises:
        UsageError: `specs` is no prefix of the tree, or there is no mesh for it.

    Example:
        >>> import jax, jax.numpy as jnp, templax as tx
        >>> tx.template_of(lambda key: {"w": jax.random.normal(key, (2, 3))}, jax.random.key(0))
        {'w': ShapeDtypeStruct(shape=(2, 3), dtype=float32)}
    """
    if callable(init) and jtu.all_leaves([init]):
        tree = Traced(init, args, kwargs).abstract()
    elif args or kwargs:
        raise UsageError(f"Expected a function to call with arguments, got {type(init).__name__}")
    else:
        tree = jtu.tree_map(_abstract, init)
    if specs is None and mesh is None:
        return tree
    mesh = mesh if mesh is not None else jax.sharding.get_mesh()
    if mesh.empty:
        raise UsageError("`specs` need a mesh; hint: pass mesh=, or call inside jax.set_mesh(mesh)")
    keyed, treedef = jtu.tree_flatten_with_path(tree)
    if callable(specs):
        leaf_specs: list[Any] = [specs(join(tuple(map(element, k))), leaf) for k, leaf in keyed]
    else:
        leaf_specs = _spread(PartitionSpec() if specs is None else specs, tree, "specs")
    leaves = []
    for (_, leaf), spec in zip(keyed, leaf_specs, strict=True):
        if isinstance(leaf, jax.ShapeDtypeStruct) and spec is not None:
            leaf = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))
        leaves.append(leaf)
    return jtu.tree_unflatten(treedef, leaves)


def _abstract(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array):
        sharding = leaf.sharding if leaf.committed else None
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    if isinstance(leaf, np.ndarray):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return leaf


class Traced:
    """A call that can be looked at without being made.

    Arrays among the arguments are traced; all else is passed as it is. Leaves of the result that
    are no arrays are remembered at tracing and put back.
    """

    def __init__(self, fn: Callable[..., PyTree], args: tuple[Any, ...], kwargs: dict[str, Any]):
        leaves, self._treedef = jtu.tree_flatten((args, kwargs))
        self._fn, self._leaves = fn, leaves
        self._dynamic = [
            i for i, x in enumerate(leaves) if hasattr(x, "shape") and hasattr(x, "dtype")
        ]
        self.inputs = [leaves[i] for i in self._dynamic]
        self.statics: dict[int, Any] = {}
        self.treedef: Any = None

    def __call__(self, *inputs: Any) -> list[Any]:
        """The array leaves of the result, in order."""
        leaves = list(self._leaves)
        for i, x in zip(self._dynamic, inputs, strict=True):
            leaves[i] = x
        args, kwargs = jtu.tree_unflatten(self._treedef, leaves)
        out, self.treedef = jtu.tree_flatten(self._fn(*args, **kwargs))
        self.statics = {
            i: x
            for i, x in enumerate(out)
            if not isinstance(x, (jax.Array, np.ndarray, np.generic))
        }
        return [x for i, x in enumerate(out) if i not in self.statics]

    def assemble(self, arrays: Sequence[Any]) -> PyTree:
        """The tree of the result from its array leaves. Only after a call."""
        rest = iter(arrays)
        n = len(arrays) + len(self.statics)
        return jtu.tree_unflatten(
            self.treedef, [self.statics[i] if i in self.statics else next(rest) for i in range(n)]
        )

    def abstract(self) -> PyTree:
        return self.assemble(jax.eval_shape(self, *self.inputs))


def catalog_template(catalog: Catalog) -> PyTree:
    """See `Catalog.template`."""
    items: list[tuple[Path, Any]] = [(e.path, abstract_leaf(e)) for e in catalog.entries]
    items += [(path, _EMPTY[what]()) for path, what in catalog.empties.items() if what in _EMPTY]
    root: dict[Any, Any] = {}
    for path, leaf in items:
        node = root
        for step in ("", *path[:-1]) if path else ():
            node = node.setdefault(step, _Node())
            if not isinstance(node, _Node):
                raise _clash(path)
        last = path[-1] if path else ""
        if last in node:
            raise _clash(path)
        node[last] = leaf
    return _nested(root.get("", {}), 0)


class _Node(dict[Any, Any]):
    """A subtree being built, told from the empty dict of a template."""


_EMPTY: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "Dict": dict,
    "List": list,
    "Tuple": tuple,
    "NamedTuple": tuple,
}

_DEEPEST = 300


def _clash(path: Path) -> Damaged:
    return Damaged(f"Expected one leaf or one subtree at `{join(path)}`, found several")


def _nested(node: Any, depth: int) -> Any:
    if not isinstance(node, _Node):
        return node
    if depth > _DEEPEST:
        raise Damaged(f"Expected a tree of at most {_DEEPEST} levels")
    built = {k: _nested(v, depth + 1) for k, v in node.items()}
    if all(isinstance(k, int) for k in built) and set(built) == set(range(len(built))):
        return [built[i] for i in range(len(built))]
    return {str(k): v for k, v in built.items()}


def abstract_leaf(entry: LeafEntry) -> Any:
    """The template leaf that a stored leaf fits exactly."""
    if entry.kind == "string":
        return str
    if entry.kind == "key":
        try:
            dtype = jax.eval_shape(lambda: jax.random.key(0, impl=entry.key_impl)).dtype
        except ValueError as error:
            raise Damaged(
                f"Expected a PRNG that JAX knows, got `{entry.key_impl}`", leaf=entry.name
            ) from error
        return jax.ShapeDtypeStruct(entry.user_shape, dtype)
    if entry.kind == "scalar":
        for python, dtype in PYTHON_DTYPES.items():
            if entry.dtype == dtype:
                return python
    if jax.dtypes.canonicalize_dtype(entry.dtype) != entry.dtype:
        return np.broadcast_to(np.zeros((), entry.dtype), entry.shape)
    return jax.ShapeDtypeStruct(entry.shape, entry.dtype)
