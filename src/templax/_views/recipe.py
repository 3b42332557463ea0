"""JAX. Recipes: deterministic functions as checkpoints, whose leaves are computed, not read."""
# ruff: noqa: E402

from __future__ import annotations

from .._core.optional import require_jax

require_jax("templax.Recipe")  # unpickling a recipe imports this module first

import pickle
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax.core
import jax.extend.core as jec
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.sharding import AbstractMesh, NamedSharding

from .._catalog.catalog import Catalog, Locator
from .._catalog.entry import Chunk, Extent, LeafEntry
from .._core.boxes import full_box
from .._core.dtypes import class_of
from .._core.names import Path, join_path
from .._jax.paths import path_element
from .._jax.pickling import dump_with_devices
from .._jax.support import key_data_spec
from .._jax.versions import current_mesh, ensure_on_device, without_names
from .._template.flatten import flatten_tree
from .._template.trace import Traced
from ..errors import Corrupted, UsageError
from ..storage.memory import Memory

_UNTRACEABLE_ERRORS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
"""Errors of tracing a function whose control flow or shapes depend on values."""


class Recipe:
    """A call that can be used as a checkpoint: `restore(Recipe(model.init, key, x), ...)`.

    The function is traced once for names, shapes and dtypes. A restore then computes only the
    leaves that its template asks for, one operation at a time as in a plain call, so their bytes
    are those of `fn(*args, **kwargs)`. There are three limits:

    - The body of a `jax.jit` or `jax.lax.scan` is computed as a whole.
    - The few functions that JAX merges into their caller when tracing, such as `jnp.logaddexp2`,
      may round the last bit differently.
    - A function that depends on values can't be traced. It is called, in full, when the recipe is
      opened.

    In a job of several processes, each one computes on its own what its template asks for. So the
    function must neither use arrays that are sharded over processes nor shard over them itself.

    Args:
        fn: A deterministic function that returns any pytree.
        *args: Its arguments.
        **kwargs: Its keyword arguments.

    Raises:
        UsageError: `fn` is not a function, or an argument is abstract. Whoever opens the recipe
            gets one if several processes would have to compute it together.

    Example:
        >>> import jax, jax.numpy as jnp, templax as tx
        >>> init = lambda key: {"params": {"w": jax.random.normal(key, (2,)), "b": jnp.zeros(2)}}
        >>> recipe = tx.Recipe(init, jax.random.key(0))
        >>> template = tx.template_of(init, jax.random.key(0))
        >>> params = tx.restore(recipe, template["params"], at="params")
        >>> bool((params["w"] == init(jax.random.key(0))["params"]["w"]).all())
        True
    """

    def __init__(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any):
        if not callable(fn):
            raise UsageError(f"Expected a function to call, got {type(fn).__name__}")
        self._call = Traced(fn, args, kwargs)
        if self._call.inputs:
            raise UsageError("Expected arguments with values, got a jax.ShapeDtypeStruct")
        if any(isinstance(x, jax.core.Tracer) for x in jtu.tree_leaves((args, kwargs))):
            raise UsageError("Expected arguments with values, got a traced one")
        name = getattr(fn, "__qualname__", None) or type(fn).__name__
        self.url = f"Recipe({name})"

    def __repr__(self) -> str:
        return self.url

    def __reduce__(self) -> tuple[Any, ...]:
        return _load_recipe, (dump_with_devices(self._call.parts, "recipe"),)

    def catalog(self) -> Catalog:
        """The leaves that the call returns; they are computed when a restore locates them."""
        values: Sequence[jax.Array] | None = None
        closed: jec.ClosedJaxpr | None = None
        try:
            closed = jax.make_jaxpr(self._call)()
        except _UNTRACEABLE_ERRORS:
            values = self._call()
        else:
            if jax.process_count() > 1:
                needed = prune_jaxpr(closed, range(len(closed.jaxpr.outvars)))
                _check_local(self.url, needed)
        avals = values if closed is None else closed.out_avals
        tree = self._call.assemble([_Output(i, aval) for i, aval in enumerate(avals or ())])
        keyed = flatten_tree(tree).keyed
        entries = [_make_entry(tuple(map(path_element, keys)), leaf) for keys, leaf in keyed]

        return Catalog(
            url=self.url,
            format="recipe",
            evidence="a function, called for what is asked of it",
            entries=tuple(entry for entry in entries if entry is not None),
            source=Memory({}),
            locator=_Locator(self, closed, values),
        )


def _load_recipe(parts: bytes) -> Recipe:
    fn, args, kwargs = pickle.loads(parts)  # noqa: S301, a part of what is being loaded
    return Recipe(fn, *args, **kwargs)


class _Locator:
    """Computes leaves.

    Args:
        recipe: The recipe.
        closed: Its function, traced; None if it was called instead.
        values: What that call returned.
    """

    def __init__(
        self, recipe: Recipe, closed: jec.ClosedJaxpr | None, values: Sequence[jax.Array] | None
    ):
        self._recipe, self._closed, self._values = recipe, closed, values

    def __call__(
        self, wanted: Iterable[LeafEntry], damages: list[Corrupted] | None = None
    ) -> dict[str, tuple[Chunk, ...]]:
        wanted = list(wanted)
        outputs = sorted({e.handle for e in wanted if isinstance(e.handle, int)})
        if self._closed is not None:
            # Inside a caller's jit, the results must still be arrays, not tracers.
            with jax.ensure_compile_time_eval():
                results = jec.jaxpr_as_fun(prune_jaxpr(self._closed, outputs))()
            computed = dict(zip(outputs, results, strict=True))
        else:
            computed = dict(enumerate(self._values or ()))
        url = self._recipe.url
        return {e.name: (_make_chunk(e, computed, url),) for e in wanted if e.kind != "string"}

    def __reduce__(self) -> tuple[Any, ...]:
        return _make_locator, (self._recipe,)


def _make_locator(recipe: Recipe) -> Locator:
    return recipe.catalog().locator  # traces the function again, with the same leaves


class _Output:
    """Stands in the result for the `index`-th array that the call returns."""

    def __init__(self, index: int, aval: Any):
        self.index, self.aval = index, aval


def _make_entry(path: Path, leaf: Any) -> LeafEntry | None:
    """The entry of a leaf of the result; None for leaves without data, such as functions."""
    name = join_path(path)
    if isinstance(leaf, _Output):
        shape, dtype = tuple(leaf.aval.shape), leaf.aval.dtype
        if jnp.issubdtype(dtype, jax.dtypes.prng_key):
            shape, dtype, impl = key_data_spec(shape, dtype)
            return LeafEntry(name, path, shape, dtype, "key", impl, handle=leaf.index)
        return LeafEntry(name, path, shape, np.dtype(dtype), handle=leaf.index)
    if isinstance(leaf, str):
        return LeafEntry(name, path, (), np.dtype(str), "string", value=leaf)
    if not isinstance(leaf, (bool, int, float, complex, np.ndarray, np.generic)):
        return None
    value = np.asarray(leaf)
    value = value.astype(value.dtype.newbyteorder("="), copy=False)
    if class_of(value.dtype) == "other":
        return None  # an int of more than 64 bits, or an array of strings: no template holds these
    kind = "array" if isinstance(leaf, np.ndarray) else "scalar"
    return LeafEntry(name, path, value.shape, value.dtype, kind, handle=value)


def prune_jaxpr(closed: jec.ClosedJaxpr, outputs: Sequence[int]) -> jec.ClosedJaxpr:
    """Keeps the operations of a traced function that some of its outputs need, unchanged.

    Operations with effects, such as `jax.debug.print`, are always kept, since the user may rely on
    them.

    Args:
        closed: The traced function.
        outputs: Positions of the outputs to compute.
    """
    jaxpr = closed.jaxpr
    outvars = [jaxpr.outvars[i] for i in outputs]
    needed = {v for v in outvars if isinstance(v, jec.Var)}
    kept = []
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or any(v in needed for v in eqn.outvars):
            kept.append(eqn)
            needed |= {v for v in eqn.invars if isinstance(v, jec.Var)}
    kept.reverse()
    # The names in debug_info are those of all outputs, so they no longer fit.
    names = without_names(jaxpr.debug_info)
    return closed.replace(jaxpr=jaxpr.replace(outvars=outvars, eqns=kept, debug_info=names))


def _check_local(url: str, closed: jec.ClosedJaxpr) -> None:
    """Refuses a traced function that other processes would have to compute with this one.

    A restore computes only what its template asks for, and when this process comes to it. What is
    on other processes, in part, would then wait for them.

    Raises:
        UsageError: It uses such an array, or shards its results over processes.
    """
    used = {v for eqn in closed.jaxpr.eqns for v in eqn.invars if isinstance(v, jec.Var)}
    used |= {v for v in closed.jaxpr.outvars if isinstance(v, jec.Var)}
    for var, constant in zip(closed.jaxpr.constvars, closed.consts, strict=True):
        if (
            var in used
            and isinstance(constant, jax.Array)
            and not _is_whole(ensure_on_device(constant).sharding)
        ):
            raise UsageError(
                f"Expected a function of arrays of which each process has all, {url} uses one of"
                f" shape {constant.shape} with {constant.sharding}"
            )
    pending = [closed.jaxpr]
    while pending:
        for eqn in pending.pop().eqns:
            for value in jtu.tree_leaves(list(eqn.params.values())):
                if isinstance(value, jec.ClosedJaxpr):
                    pending.append(value.jaxpr)
                elif isinstance(value, jec.Jaxpr):
                    pending.append(value)
                elif isinstance(value, jax.sharding.Sharding) and not _is_whole(value):
                    raise UsageError(
                        f"Expected a function that each process can compute alone, {url} shards"
                        f" over processes: {eqn.primitive.name} with {value}; hint: leave that out,"
                        " since the template's shardings place what the function returns"
                    )


def _is_whole(sharding: jax.sharding.Sharding) -> bool:
    """Whether this process has all of an array with this sharding."""
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, AbstractMesh):
        mesh = current_mesh()
        if mesh is None or mesh.shape != sharding.mesh.shape:
            return True
        sharding = NamedSharding(mesh, sharding.spec)
    if sharding.is_fully_addressable:
        return True
    return sharding.is_fully_replicated and bool(sharding.addressable_devices)


def _make_chunk(entry: LeafEntry, computed: dict[int, Any], url: str) -> Chunk:
    """A chunk that holds the computed value of a leaf in memory."""
    value = entry.handle if isinstance(entry.handle, np.ndarray) else computed[entry.handle]
    if isinstance(value, jax.Array) and not _is_whole(ensure_on_device(value).sharding):
        raise UsageError(
            f"Expected a function that each process can compute alone, {url} gives an array with"
            f" {value.sharding} - at `{entry.name}`"
        )
    if entry.kind == "key":
        with jax.ensure_compile_time_eval():
            value = jax.random.key_data(value)
    # A constant of the traced function may be a Python number, so the dtype has to be given.
    host = np.ascontiguousarray(np.asarray(value, entry.dtype)).reshape(-1).view(np.uint8)
    extent = Extent("", 0, host.nbytes, inline=memoryview(host))
    return Chunk(extent, full_box(entry.shape), checked=True)
