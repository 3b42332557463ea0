"""Ready-made mappings, for what often happens to a tree: each function returns a `Mapping`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from ._core.arguments import check_int
from ._views.mapping import Mapping
from ._views.rules import From
from .errors import UsageError

__all__ = [
    "add_replicas",
    "linen_to_nnx",
    "move_subtree",
    "nnx_to_linen",
    "stack_layers",
    "take_replica",
    "unstack_layers",
]

_MAX_AXIS = 16


def stack_layers(
    source: str, target: str, *, under: str | Sequence[str] = "", axis: int = 0
) -> Mapping:
    """From layers in a loop to layers in a scan: leaves of all layers are stacked.

    Args:
        source: The subtree of a layer, with `{i}` for its number, such as `"layers_{i}"`.
        target: The subtree of the stack, such as `"layers"`.
        under: The subtree, or subtrees, in which they are: `"params"`, or
            `["params", "opt_state.0.mu", "opt_state.0.nu"]`.
        axis: The axis of each stacked leaf that counts layers.

    Raises:
        MappingError: `source` has no `{i}`, or a name is not valid.
        UsageError: `axis` is negative, or not an integer.

    Example:
        >>> import templax.mappings
        >>> print(templax.mappings.stack_layers("layers_{i}", "layers", under="params"))
        target               from                     axes
        params.layers.{...}  params.layers_{i}.{...}  ... -> i ...
        keep the rest
    """
    before = _list_axes(axis)
    return _map_subtrees(source, target, f"{before}... -> {before}i ...", under)


def unstack_layers(
    source: str, target: str, *, under: str | Sequence[str] = "", axis: int = 0
) -> Mapping:
    """From layers in a scan to layers in a loop: each layer takes its index of every leaf.

    Args:
        source: The subtree of the stack, such as `"layers"`.
        target: The subtree of a layer, with `{i}` for its number, such as `"layers_{i}"`.
        under: The subtree, or subtrees, in which they are; see `stack_layers`.
        axis: The axis of each stacked leaf that counts layers.

    Raises:
        MappingError: `target` has no `{i}`, or a name is not valid.
        UsageError: `axis` is negative, or not an integer.

    Example:
        >>> import templax.mappings
        >>> print(templax.mappings.unstack_layers("layers", "layers_{i}", under="params"))
        target                   from                 axes
        params.layers_{i}.{...}  params.layers.{...}  i ... -> ...
        keep the rest
    """
    before = _list_axes(axis)
    return _map_subtrees(source, target, f"{before}i ... -> {before}...", under)


def take_replica(index: int = 0, *, under: str | Sequence[str] = "") -> Mapping:
    """From a replicated tree, each leaf of which has a first axis of devices, to one replica.

    `flax.jax_utils.replicate` makes such trees, and `jax.pmap` returns them.

    Args:
        index: Which replica.
        under: The subtree, or subtrees, that are replicated. The rest is taken as it is.

    Raises:
        UsageError: `index` is negative, or not an integer.

    Example:
        >>> import templax.mappings
        >>> print(templax.mappings.take_replica())
        target  from   axes
        {...}   {...}  replica ... -> ..., select={'replica': 0}
    """
    check_int("index", index, 0)
    rules = {
        f"{prefix}{{...}}": From(
            f"{prefix}{{...}}", "replica ... -> ...", select={"replica": index}
        )
        for prefix in _list_prefixes(under)
    }
    return Mapping(rules, rest=_choose_rest(under))


def add_replicas(count: int, *, under: str | Sequence[str] = "") -> Mapping:
    """From a tree to a replicated one: each leaf is repeated along a new first axis.

    Args:
        count: Number of replicas.
        under: The subtree, or subtrees, to replicate. The rest is taken as it is.

    Raises:
        UsageError: `count` is not a positive integer.

    Example:
        >>> import templax.mappings
        >>> print(templax.mappings.add_replicas(8, under="params"))
        target        from          axes
        params.{...}  params.{...}  ... -> replica ..., replica=8
        keep the rest
    """
    check_int("count", count, 1)
    rules = {
        f"{prefix}{{...}}": From(f"{prefix}{{...}}", "... -> replica ...", replica=count)
        for prefix in _list_prefixes(under)
    }
    return Mapping(rules, rest=_choose_rest(under))


def move_subtree(source: str, target: str) -> Mapping:
    """From a tree to one in which a subtree is elsewhere, and everything else where it was.

    An optimizer that was wrapped since is such a tree: in the state of
    `optax.chain(optax.clip(1.0), optax.adam(1e-3))`, `opt_state.1.0` is what `opt_state.0` is in
    that of `optax.adam(1e-3)`.

    Args:
        source: The subtree, by the name of its root.
        target: Where it is to be.

    Raises:
        MappingError: A name is not valid.

    Example:
        >>> import templax.mappings
        >>> print(templax.mappings.move_subtree("opt_state.0", "opt_state.1.0"))
        target               from               axes
        opt_state.1.0.{...}  opt_state.0.{...}
        keep the rest
    """
    return Mapping({f"{target}.{{...}}": f"{source}.{{...}}"}, rest="keep")


def linen_to_nnx(*, batch_stats: Sequence[str] = (), value: bool = False) -> Mapping:
    """From the variables of a Flax Linen module to the state of an NNX module of the same names.

    Linen has collections, `params.dense.kernel` and `batch_stats.norm.mean`; NNX has the variables
    of a layer beside one another: `dense.kernel`, `norm.mean`. Layers that are called otherwise
    take `rename=` of `restore`, or a mapping of their own.

    Args:
        batch_stats: Names of the variables in the collection `batch_stats`: `("mean", "var")` for a
            model with BatchNorm.
        value: Whether names of the NNX state end in `.value`, as in checkpoints of older versions
            of Flax.

    Example:
        >>> import templax.mappings
        >>> print(templax.mappings.linen_to_nnx(batch_stats=("mean", "var")))
        target      from                    axes
        {...}       params.{...}
        {...}.mean  batch_stats.{...}.mean
        {...}.var   batch_stats.{...}.var
    """
    return Mapping({nnx: linen for linen, nnx in _pair_variables(batch_stats, value)})


def nnx_to_linen(*, batch_stats: Sequence[str] = (), value: bool = False) -> Mapping:
    """From the state of a Flax NNX module to the variables of a Linen module of the same names.

    Args:
        batch_stats, value: See `linen_to_nnx`.

    Example:
        >>> import templax.mappings
        >>> print(templax.mappings.nnx_to_linen(value=True))
        target        from         axes
        params.{...}  {...}.value
    """
    return Mapping(dict(_pair_variables(batch_stats, value)))


def _map_subtrees(source: str, target: str, axes: str, under: str | Sequence[str]) -> Mapping:
    """The mapping of a subtree to another one, in each of some subtrees."""
    rules = {
        f"{prefix}{target}.{{...}}": From(f"{prefix}{source}.{{...}}", axes)
        for prefix in _list_prefixes(under)
    }
    return Mapping(rules, rest="keep")


def _pair_variables(batch_stats: Sequence[str], value: bool) -> Iterator[tuple[str, str]]:
    """The names of variables in Linen and in NNX."""
    suffix = ".value" if value else ""
    yield "params.{...}", f"{{...}}{suffix}"
    for name in batch_stats:
        yield f"batch_stats.{{...}}.{name}", f"{{...}}.{name}{suffix}"


def _list_axes(axis: int) -> str:
    """The axes in front of one, spelled."""
    if check_int("axis", axis, 0) > _MAX_AXIS:
        raise UsageError(f"Expected axis= an integer of at most {_MAX_AXIS}, got {axis}")
    return "".join(f"a{k} " for k in range(axis))


def _list_prefixes(under: str | Sequence[str]) -> list[str]:
    roots = [under] if isinstance(under, str) else list(under)
    return [f"{root}." if root else "" for root in roots]


def _choose_rest(under: str | Sequence[str]) -> Literal["error", "keep"]:
    return "keep" if under else "error"
