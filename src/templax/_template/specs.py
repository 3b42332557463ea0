"""JAX. The `specs=` of `template_of`: which `PartitionSpec` each array of a tree gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import jax
import jax.tree_util as jtu
import numpy as np
from jax.sharding import PartitionSpec

from .._core.arguments import PyTree
from .._core.names import matches_pattern
from .._core.text import list_names
from .._jax.paths import broadcast_prefix, name_leaf
from ..errors import UsageError
from .flatten import FlatTree

Rules = Sequence[tuple[str, PartitionSpec | None]]
"""Pattern of leaf names → the spec of the arrays that match it; the first that matches counts."""


_ARRAYS = (jax.ShapeDtypeStruct, np.ndarray)
"""Abstract arrays; those of numpy are of 64 bits, which JAX holds only if it is told to."""


def choose_specs(specs: Any, tree: PyTree, flat: FlatTree) -> Sequence[Any]:
    """The spec of each leaf, or None for one that gets no sharding.

    Args:
        specs: See `template_of`.
        tree: The tree, with `jax.ShapeDtypeStruct`s for arrays.
        flat: The same tree, flat.

    Raises:
        UsageError: `specs` is not a prefix of the tree; a rule matches no array, or an array no
            rule; or the function overlooks a variable of NNX.
    """
    if _is_rules(specs):
        return _apply_rules(specs, flat)
    if callable(specs):
        return [
            _call_specs(specs, keys, leaf) if isinstance(leaf, _ARRAYS) else None
            for keys, leaf in flat.keyed
        ]
    spread = broadcast_prefix(PartitionSpec() if specs is None else specs, tree, "specs")
    return flat.select(spread, "spec")


def _is_rules(specs: Any) -> TypeGuard[Rules]:
    """Whether these are pairs of a pattern and a spec, which no prefix of a tree can be."""
    return (
        isinstance(specs, (list, tuple))
        and len(specs) > 0
        and all(isinstance(r, tuple) and len(r) == 2 and isinstance(r[0], str) for r in specs)
    )


def _apply_rules(rules: Rules, flat: FlatTree) -> list[PartitionSpec | None]:
    """The spec of the first rule that each array matches.

    An array without dimensions needs no rule, and is replicated: it has nothing to shard.
    """
    specs: list[PartitionSpec | None] = []
    taken, overtaken = set[int](), dict[int, int]()
    without: list[str] = []
    for keys, leaf in flat.keyed:
        spec = None
        if isinstance(leaf, _ARRAYS):
            names = _find_names(keys)
            matching = [
                i
                for i, (pattern, _) in enumerate(rules)
                if any(matches_pattern(name, pattern) for name in names)
            ]
            if matching:
                spec = rules[matching[0]][1]
                if not leaf.shape and spec is not None:
                    spec = PartitionSpec()
                taken.add(matching[0])
                overtaken |= dict.fromkeys(matching[1:], matching[0])
            elif leaf.shape:
                without.append(names[0])
            else:
                spec = PartitionSpec()
        specs.append(spec)
    problems: list[str] = []
    for i, (pattern, _) in enumerate(rules):
        if i in taken:
            continue
        first = overtaken.get(i)
        if first is not None and pattern == "*":
            continue  # the rule for all others, of which there happen to be none
        why = "" if first is None else f" that no earlier rule takes (`{rules[first][0]}` does)"
        problems.append(f"Expected an array whose name matches `{pattern}`{why}, found none")
    if without:
        problems.append(
            f"Expected a rule for each array, found none for {list_names(without)}; hint: end with"
            ' ("*", PartitionSpec()) to replicate all others'
        )
    if problems:
        raise UsageError("; ".join(problems))
    return specs


def _find_names(keys: tuple[Any, ...]) -> list[str]:
    """The name of a leaf; and of a variable of NNX, the name without its `value`."""
    name = name_leaf(keys)
    variable = name.removesuffix(".value")
    is_variable = variable != name and not isinstance(keys[-1], jtu.DictKey)
    return [name, variable] if is_variable else [name]


def _call_specs(
    specs: Callable[..., Any],
    keys: tuple[Any, ...],
    leaf: jax.ShapeDtypeStruct | np.ndarray,
) -> PartitionSpec | None:
    """Calls a `specs` function, and refuses one that expects an NNX variable without its `value`.

    `name.endswith("kernel")` is false for `dense.kernel.value`, which would be replicated silently.
    """
    name, *variables = _find_names(keys)
    spec = specs(name, leaf)
    for variable in () if shards(spec) else variables:
        try:
            expected = specs(variable, leaf)
        except (LookupError, ValueError):  # it need not know names that no leaf has
            return spec
        if shards(expected):
            raise UsageError(
                f"Expected a spec for `{name}`, got {spec} although `specs` gives {expected} for"
                f" `{variable}`; hint: in `specs`, begin with"
                ' `name = name.removesuffix(".value")`'
            )
    return spec


def shards(spec: PartitionSpec | None) -> bool:
    """Whether a spec puts any dimension on a mesh axis."""
    if not isinstance(spec, PartitionSpec):
        return False
    # Iterating over a spec with unreduced axes raises.
    return any(axes not in (None, ()) for axes in getattr(spec, "partitions", spec))
