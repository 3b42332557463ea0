"""JAX. A deterministic function as a checkpoint: its leaves are computed, not read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.extend.core as jec
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from ._boxes import whole
from ._catalog import Catalog, Chunk, Extent, LeafEntry
from ._names import join
from ._pytree import Traced, element
from ._template import PYTHON_DTYPES
from .sources import Memory

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
    that, is computed, operation by operation as a plain call would, so the bytes are those of
    `fn(*args, **kwargs)`. A function that can't be traced (it looks at values) is called instead.

    Args:
        fn: Deterministic; returns any pytree.
        *args, **kwargs: For `fn`.

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
        self._call = Traced(fn, args, kwargs)
        name = getattr(fn, "__qualname__", None) or type(fn).__name__
        self.url = f"Recipe({name})"

    def __repr__(self) -> str:
        return self.url

    def catalog(self) -> Catalog:
        """The leaves that the call would return. Computes none of them."""
        try:
            closed = jax.make_jaxpr(self._call)(*self._call.inputs)
        except _LOOKS_AT_VALUES:
            closed = None
            values = self._call(*self._call.inputs)
            avals: Sequence[Any] = values
        else:
            values = None
            avals = closed.out_avals
        tree = self._call.assemble([_Output(i, aval) for i, aval in enumerate(avals)])
        entries = []
        for keys, leaf in jtu.tree_flatten_with_path(tree)[0]:
            entry = _entry(tuple(map(element, keys)), leaf)
            if entry is not None:
                entries.append(entry)

        def locate(wanted: Iterable[LeafEntry]) -> dict[str, tuple[Chunk, ...]]:
            wanted = list(wanted)
            outputs = sorted({e.handle for e in wanted if isinstance(e.handle, int)})
            if closed is None:
                assert values is not None
                computed = {i: values[i] for i in outputs}
            else:
                needed = only(closed, outputs)
                results = jec.jaxpr_as_fun(needed)(*self._call.inputs)
                computed = dict(zip(outputs, results, strict=True))
            return {e.name: (_chunk(e, computed),) for e in wanted if e.kind != "string"}

        return Catalog(
            url=self.url,
            format="recipe",
            evidence="a function, called for what is asked of it",
            entries=tuple(entries),
            source=Memory({}),
            locator=locate,
        )


class _Output:
    """A leaf: the `index`-th array that the call returns."""

    def __init__(self, index: int, aval: Any):
        self.index, self.aval = index, aval


def _entry(path: tuple[str | int, ...], leaf: Any) -> LeafEntry | None:
    name = join(path)
    if isinstance(leaf, str):
        return LeafEntry(name, path, (), np.dtype(str), "string", value=leaf)
    for python in (bool, int, float, complex):
        if isinstance(leaf, python):
            dtype = PYTHON_DTYPES[python]
            value = np.asarray(leaf)
            # An int of more than 64 bits is no number that a template leaf could ask for.
            return (
                LeafEntry(name, path, (), dtype, "scalar", handle=value)
                if value.dtype == dtype
                else None
            )
    if not isinstance(leaf, _Output):
        return None  # a function or other static value: no data
    aval = leaf.aval
    if jnp.issubdtype(aval.dtype, jax.dtypes.prng_key):
        impls: list[str] = []
        data = jax.eval_shape(
            lambda k: (impls.append(str(jax.random.key_impl(k))), jax.random.key_data(k))[1],
            jax.ShapeDtypeStruct(aval.shape, aval.dtype),
        )
        return LeafEntry(
            name,
            path,
            data.shape,
            np.dtype(data.dtype),
            "key",
            key_impl=impls[0],
            handle=leaf.index,
        )
    return LeafEntry(name, path, tuple(aval.shape), np.dtype(aval.dtype), handle=leaf.index)


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
    debug_info = (
        jaxpr.debug_info.with_unknown_names()
        if hasattr(jaxpr.debug_info, "with_unknown_names")
        else None
    )
    jaxpr = jaxpr.replace(
        outvars=outvars, eqns=kept, **({"debug_info": debug_info} if debug_info else {})
    )
    return closed.replace(jaxpr=jaxpr)


def _chunk(entry: LeafEntry, computed: dict[int, Any]) -> Chunk:
    value = entry.handle if isinstance(entry.handle, np.ndarray) else computed[entry.handle]
    if entry.kind == "key":
        value = jax.random.key_data(value)
    host = np.ascontiguousarray(np.asarray(value)).reshape(-1).view(np.uint8)
    return Chunk(Extent("", 0, host.nbytes, inline=memoryview(host)), whole(entry.shape))
