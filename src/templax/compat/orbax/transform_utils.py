"""JAX. Orbax's `transform_utils`: makes trees from other trees by rules on the names of leaves."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax

import templax as tx

from ..._core.arguments import PyTree
from ..._core.text import list_names
from .leaf_args import MOST_NAMED, PLACEHOLDER
from .metadata.value import leaf_kind
from .tree import from_flat_dict, merge_trees, to_flat_dict
from .unmapped import make_getattr

__all__ = [
    "RestoreTransform",
    "Transform",
    "apply_transformations",
    "intersect_trees",
    "merge_trees",
]

_log = logging.getLogger("templax")


@dataclass
class Transform:
    """What becomes of the leaves whose names a pattern matches.

    Without any of these, the leaf of the same name is taken.

    Attributes:
        original_key: The name in the original tree, with `/` between keys. It may refer to groups
            of the pattern: `r"\\1old\\2"`.
        use_fallback: Takes the leaf of the tree that is not the default one.
        value_fn: Computes the new leaf from the original one.
        multi_value_fn: Computes it from its name and the whole original tree.

    Raises:
        UsageError: Two of them contradict each other.

    Example:
        >>> from templax.compat import orbax as ocp
        >>> rules = {r"(.*)new(.*)": ocp.Transform(original_key=r"\\1old\\2")}
        >>> ocp.apply_transformations({"old": 1, "b": 2}, rules, {"new": 0, "b": 0})
        {'b': 2, 'new': 1}
    """

    original_key: Any = None
    use_fallback: bool = False
    value_fn: Callable[..., Any] | None = None
    multi_value_fn: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        given = {
            "original_key": self.original_key is not None,
            "use_fallback": self.use_fallback,
            "value_fn": self.value_fn is not None,
            "multi_value_fn": self.multi_value_fn is not None,
        }
        named = [name for name, is_given in given.items() if is_given]
        if len(named) > 1 and named != ["original_key", "value_fn"]:
            raise tx.UsageError(f"Expected one of {' and '.join(named)}, got both")


@dataclass
class RestoreTransform(Transform):
    """A `Transform` of what is restored.

    Attributes:
        multi_value_fn: Is also given the restore args of the new leaf.
        multi_value_fn_input_args: Pattern of names in the checkpoint → the restore args of these
            leaves, which `multi_value_fn` needs. Nothing else of the checkpoint is read for it.
    """

    multi_value_fn_input_args: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.multi_value_fn_input_args is not None and self.multi_value_fn is None:
            raise tx.UsageError("Expected multi_value_fn= with multi_value_fn_input_args=")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a leaf of the new tree comes from.

    Attributes:
        key: Its name in the new tree.
        original: The name of a leaf of the original tree, or None.
        transform: The rule, or None for a leaf that no rule mentions.
    """

    key: str
    original: str | None = None
    transform: Any = None


def find_sources(
    original: Mapping[str, Any],
    transforms: Mapping[str, Any],
    new: Mapping[str, Any],
    default: bool,
) -> Iterator[Source]:
    """Yields where each leaf of the new tree comes from; with neither origin nor rule, it stays.

    Args:
        original: Name → leaf of the original tree.
        transforms: Pattern → rule. Of several that match, the last counts.
        new: Name → leaf of the new tree.
        default: Whether leaves that no rule mentions come from the original tree, if it has them.

    Raises:
        UsageError: A rule asks for a leaf that the original tree lacks.
    """
    for key in new:
        matches = [(re.fullmatch(pattern, key), rule) for pattern, rule in transforms.items()]
        matches = [(match, rule) for match, rule in matches if match is not None]
        if not matches:
            yield Source(key, key if default and key in original else None)
            continue
        # A fallback to the new tree changes nothing, so that an earlier rule still counts.
        acting = [(m, rule) for m, rule in matches if not (rule.use_fallback and default)]
        match, rule = (acting or matches)[-1]
        if rule.multi_value_fn is not None or (rule.use_fallback and default):
            yield Source(key, None, rule)
        else:
            renamed = rule.original_key
            if not isinstance(renamed, (str, type(None))):
                renamed = "/".join(renamed)
            name = key if renamed is None else match.expand(renamed)
            if name not in original:
                raise tx.UsageError(
                    f"Expected `{name}` in the original tree, as the rule for `{key}` says, found"
                    " none"
                )
            yield Source(key, name, rule)


def apply_transformations(
    original_tree: PyTree,
    transformations: PyTree,
    new_tree: PyTree,
    default_to_original: bool | None = True,
) -> PyTree:
    """Makes a tree with the structure of `new_tree` from leaves of `original_tree`.

    Args:
        original_tree: Where the leaves come from.
        transformations: A tree of `Transform`s. The names of its leaves, with `/` between keys, are
            regular expressions for names in `new_tree`.
        new_tree: The wanted structure. Its own leaves stay where neither a transform nor the
            original tree says anything, and where `use_fallback` does; the former are logged.
        default_to_original: Whether leaves that no transform mentions come from `original_tree`. If
            not, they come from `new_tree`, and `use_fallback` means the original.

    Raises:
        UsageError: A transform asks for a leaf that `original_tree` lacks.
    """
    if not jax.tree.leaves(new_tree) and not new_tree:
        return {}
    default = bool(default_to_original)
    original, new = to_flat_dict(original_tree, "/"), to_flat_dict(new_tree, "/")
    rules = to_flat_dict(transformations, "/", is_leaf=is_transform)
    made = dict(new)
    kept: list[str] = []
    for source in find_sources(original, rules, new, default):
        rule = source.transform
        if source.original is not None:
            value = original[source.original]
            function = None if rule is None else rule.value_fn
            made[source.key] = value if function is None else function(value)
        elif rule is not None and rule.multi_value_fn is not None:
            made[source.key] = rule.multi_value_fn(source.key, original_tree)
        elif rule is None and default:
            kept.append(source.key)
    log_kept(kept)
    return from_flat_dict(made, new_tree, "/")


def is_transform(x: Any) -> bool:
    """Whether an object is a `Transform`, whosever class it is of."""
    return hasattr(x, "use_fallback") and hasattr(x, "multi_value_fn")


def log_kept(names: list[str]) -> None:
    """Logs which leaves neither a transform nor the original tree gives."""
    if names:
        text = "no transform and no original leaf for %s: kept as in the new tree"
        _log.warning(text, list_names(names, MOST_NAMED))


def is_abstract(leaf: Any) -> bool:
    """Whether a leaf of a template has no value that could stay."""
    abstract = isinstance(leaf, (jax.ShapeDtypeStruct, type)) or leaf is PLACEHOLDER
    return abstract or leaf_kind(leaf) is not None


def intersect_trees(*trees: PyTree, target: PyTree = None) -> PyTree:
    """One tree of the leaves that all have; those of the last count.

    Args:
        *trees: The trees.
        target: A tree of the wanted structure. None makes nested dicts.

    Example:
        >>> from templax.compat import orbax as ocp
        >>> ocp.transform_utils.intersect_trees({"a": 1, "b": 2}, {"b": 3, "c": 4})
        {'b': 3}
    """
    flat = [to_flat_dict(tree) for tree in trees]
    common = set.intersection(*map(set[Any], flat))
    return from_flat_dict({name: x for name, x in flat[-1].items() if name in common}, target)


__getattr__ = make_getattr("transform_utils.")
