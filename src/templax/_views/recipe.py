"""JAX. A deterministic function as a checkpoint: its leaves are computed, not read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax.core
import jax.extend.core as jec
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from .._catalog.catalog import Catalog
from .._catalog.entry import Chunk, Extent, LeafEntry
from .._core.boxes import full_box
from .._core.dtypes import class_of
from .._core.names import Path, join_path
from .._jax.paths import path_element
from .._jax.support import key_data_spec
from .._template.trace import Traced
from ..errors import Corrupted, UsageError
from ..storage.memory import Memory

_LOOKS_AT_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
"""What tracing a function raises that needs values, not shapes."""


class Recipe:
    """A call that stands where a checkpoint stands: `restore(Recipe(model.init, key, x), ...)`.

    The function is traced once for names, shapes and dtypes. What a restore asks for, and only
    that, is then computed, operation by operation as a plain call would, so the bytes are those of
    `fn(*args, **kwargs)`. Where that ends: what is inside a `jax.jit` or `jax.lax.scan` is computed
    as a whole; the few functions that JAX merges into their caller when it traces (such as
    `jnp.logaddexp2`) may round otherwise in the last bit; and a function that looks at values can't
    be traced, so it is called, as soon as the recipe is opened.

    Args:
        fn: Deterministic; returns any pytree.
        *args, **kwargs: For `fn`.

    Raises:
        UsageError: `fn` is not a function, or an argument is abstract.

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

    def catalog(self) -> Catalog:
        """The leaves that the call would return."""
        values: Sequence[jax.Array] | None = None
        closed: jec.ClosedJaxpr | None = None
        try:
            closed = jax.make_jaxpr(self._call)()
        except _LOOKS_AT_VALUES:
            values = self._call()
        avals = values if closed is None else closed.out_avals
        tree = self._call.assemble([_Output(i, aval) for i, aval in enumerate(avals or ())])
        keyed, _ = jtu.tree_flatten_with_path(tree)
        entries = [_entry(tuple(map(path_element, keys)), leaf) for keys, leaf in keyed]

        def locate(
            wanted: Iterable[LeafEntry], damages: list[Corrupted] | None = None
        ) -> dict[str, tuple[Chunk, ...]]:
            wanted = list(wanted)
            outputs = sorted({e.handle for e in wanted if isinstance(e.handle, int)})
            if closed is not None:
                with jax.ensure_compile_time_eval():  # a restore inside jit gives constants
                    results = jec.jaxpr_as_fun(only(closed, outputs))()
                computed = dict(zip(outputs, results, strict=True))
            else:
                computed = dict(enumerate(values or ()))
            return {e.name: (_chunk(e, computed),) for e in wanted if e.kind != "string"}

        return Catalog(
            url=self.url,
            format="recipe",
            evidence="a function, called for what is asked of it",
            entries=tuple(entry for entry in entries if entry is not None),
            source=Memory({}),
            locator=locate,
        )


class _Output:
    """A leaf: the `index`-th array that the call returns."""

    def __init__(self, index: int, aval: Any):
        self.index, self.aval = index, aval


def _entry(path: Path, leaf: Any) -> LeafEntry | None:
    """A leaf of the result; None if it is a function or another static value: no data."""
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
        return None  # an int of more than 64 bits, or strings: no template leaf could ask for it
    kind = "array" if isinstance(leaf, np.ndarray) else "scalar"
    return LeafEntry(name, path, value.shape, value.dtype, kind, handle=value)


def only(closed: jec.ClosedJaxpr, outputs: Sequence[int]) -> jec.ClosedJaxpr:
    """The part of a traced function that some of its outputs need, its operations unchanged.

    Effects (a `jax.debug.print`, say) are kept: whether they matter is not ours to say.
    """
    jaxpr = closed.jaxpr
    outvars = [jaxpr.outvars[i] for i in outputs]
    live = {v for v in outvars if isinstance(v, jec.Var)}
    kept = []
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or any(v in live for v in eqn.outvars):
            kept.append(eqn)
            live |= {v for v in eqn.invars if isinstance(v, jec.Var)}
    kept.reverse()
    names = jaxpr.debug_info.with_unknown_names()  # those known are of all outputs
    return closed.replace(jaxpr=jaxpr.replace(outvars=outvars, eqns=kept, debug_info=names))


def _chunk(entry: LeafEntry, computed: dict[int, Any]) -> Chunk:
    value = entry.handle if isinstance(entry.handle, np.ndarray) else computed[entry.handle]
    if entry.kind == "key":
        with jax.ensure_compile_time_eval():
            value = jax.random.key_data(value)
    # A result that is a constant of the traced function is a Python number of no width.
    host = np.ascontiguousarray(np.asarray(value, entry.dtype)).reshape(-1).view(np.uint8)
    extent = Extent("", 0, host.nbytes, inline=memoryview(host))
    return Chunk(extent, full_box(entry.shape), checked=True)
