"""JAX. Restores trees by transforms: reads the leaves that they need, then applies them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import templax as tx

from ..._catalog.catalog import Catalog
from ..._core.arguments import PyTree
from ..._core.text import list_names
from .leaf_args import MOST_NAMED, PLACEHOLDER, RestoreArgs
from .leaf_templates import describe_leaf, make_saved_numpy, make_template, take_stored_shapes
from .metadata.tree import unwrap_tree
from .own_tree import find_numpy_leaves, make_own_template
from .transform_utils import Source, find_sources, is_abstract, is_transform, log_kept
from .tree import from_flat_dict, to_flat_dict


@dataclass
class ParamInfo:
    """Where a leaf is stored, for `legacy_transform_fn`.

    Attributes:
        name: The name of the leaf in the checkpoint, its keys joined by dots.
        parent_dir: The directory of the item.
        skip_deserialize: Whether the leaf is not read, but comes from the structure.
    """

    name: str = ""
    parent_dir: Any = None
    skip_deserialize: bool = False


class _Reads:
    """The leaves of a checkpoint to read, possibly one of them in several forms."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.own = make_own_template(catalog)
        self.leaves = to_flat_dict(self.own, "/")
        names = to_flat_dict(self.own)
        self.stored = {"/".join(keys): catalog.leaves[".".join(keys)] for keys in names}
        self._numpy = find_numpy_leaves(catalog)
        self._forms: dict[str, list[Any]] = {}

    def add(self, name: str, leaf: Any, asked: Any) -> tuple[str, int]:
        """Adds a leaf to read; returns its key in what `read` returns.

        Args:
            name: The leaf.
            leaf: The template leaf; None is the stored one.
            asked: Its restore args, or None.
        """
        if leaf is None:
            leaf = self.leaves[name]
        elif self.stored[name].name in self._numpy:
            leaf = make_saved_numpy(leaf)
        form = leaf if asked is None else describe_leaf(leaf, asked, self.stored[name])
        forms = self._forms.setdefault(name, [])
        for number, other in enumerate(forms):
            if _is_same_form(form, other):
                return name, number
        forms.append(form)
        return name, len(forms) - 1

    def read(self) -> dict[tuple[str, int], Any]:
        """Reads all leaves, in one call unless one is wanted in several forms."""
        found: dict[tuple[str, int], Any] = {}
        for number in range(max(map(len, self._forms.values()), default=0)):
            forms = {n: forms[number] for n, forms in self._forms.items() if len(forms) > number}
            wanted = {name: forms.get(name, PLACEHOLDER) for name in self.leaves}
            restored = tx.restore(self.catalog, from_flat_dict(wanted, self.own, "/"))
            flat = to_flat_dict(restored, "/")
            found |= {(name, number): flat[name] for name in forms}
        return found


def _is_same_form(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return one.shape == other.shape and one.dtype == other.dtype
    return bool(one == other)


@dataclass
class _Leaf:
    """How a leaf of the result is made.

    Attributes:
        source: Where it comes from.
        read: Where `_Reads.read` has what it is made of, for a leaf of the checkpoint.
        inputs: The same for each leaf that a function of several needs.
    """

    source: Source
    read: tuple[str, int] | None = None
    inputs: dict[str, tuple[str, int]] = field(default_factory=dict[str, tuple[str, int]])


def restore_transformed(
    directory: str,
    item: PyTree,
    restore_args: PyTree,
    transforms: PyTree,
    default_to_original: bool = True,
) -> PyTree:
    """Restores a tree with the structure of `item`, whose leaves are made as transforms say.

    Args:
        directory: The path of the item.
        item: The wanted structure. Its leaves are templates, and the values of what neither a
            transform nor the checkpoint gives; the names of these are logged.
        restore_args: A tree with args at each leaf of `item`.
        transforms: See `transform_utils.apply_transformations`.
        default_to_original: See there.

    Raises:
        UsageError: `item` or `restore_args` is missing; a function of several leaves does not name
            them; a transform asks for a leaf that the checkpoint lacks; or a leaf of `item` that
            nothing gives has no value.
        TemplateError: A leaf of the checkpoint does not fit.
    """
    if unwrap_tree(item) is None or restore_args is None:
        raise tx.UsageError(
            "Expected item= and restore_args= of the structure of the result with transforms="
        )
    item = make_template(item)
    new = to_flat_dict(item, "/")
    asked = to_flat_dict(unwrap_tree(restore_args), "/")
    rules = to_flat_dict(transforms, "/", is_leaf=is_transform)
    reads = _Reads(tx.open(directory))
    sources = list(find_sources(reads.leaves, rules, new, default_to_original))
    origins = {each.key: reads.stored[each.original] for each in sources if each.original}
    templates = dict(take_stored_shapes(new.items(), asked, origins))
    plan = [_plan_leaf(each, templates[each.key], asked.get(each.key), reads) for each in sources]
    _check_kept(plan, new, default_to_original)
    found = reads.read()
    made = {each.source.key: _make_leaf(each, new, asked, reads, found) for each in plan}
    return from_flat_dict(made, item, "/")


def _plan_leaf(source: Source, leaf: Any, asked: Any, reads: _Reads) -> _Leaf:
    rule = source.transform
    if source.original is not None:
        # A function may change the shape: what it is given is as stored, as far as args allow.
        template = leaf if rule is None or rule.value_fn is None else None
        return _Leaf(source, reads.add(source.original, template, asked))
    if rule is None or rule.multi_value_fn is None:
        return _Leaf(source)
    inputs = getattr(rule, "multi_value_fn_input_args", None)
    if inputs is None:
        raise tx.UsageError(
            f"Expected a RestoreTransform for `{source.key}` whose multi_value_fn_input_args= name"
            " the leaves that its multi_value_fn= needs"
        )
    wanted = {
        name: next(args for pattern, args in inputs.items() if re.fullmatch(pattern, name))
        for name in reads.leaves
        if any(re.fullmatch(pattern, name) for pattern in inputs)
    }
    return _Leaf(source, None, {name: reads.add(name, None, args) for name, args in wanted.items()})


def _check_kept(plan: list[_Leaf], new: Mapping[str, Any], default: bool) -> None:
    """Refuses leaves without a value that nothing gives one, and names those that stay."""
    kept = [e.source for e in plan if e.read is None and not _has_function(e)]
    empty = [source.key for source in kept if is_abstract(new[source.key])]
    if empty:
        raise tx.UsageError(
            "Expected values in item= for the leaves that neither the checkpoint nor a transform"
            f" gives, got none for {list_names(empty, MOST_NAMED)}"
        )
    log_kept([source.key for source in kept if source.transform is None and default])


def _has_function(leaf: _Leaf) -> bool:
    rule = leaf.source.transform
    return rule is not None and rule.multi_value_fn is not None


def _make_leaf(
    leaf: _Leaf,
    new: Mapping[str, Any],
    asked: Mapping[str, Any],
    reads: _Reads,
    found: Mapping[tuple[str, int], Any],
) -> Any:
    key, rule = leaf.source.key, leaf.source.transform
    if leaf.read is not None:
        value = found[leaf.read]
        return value if rule is None or rule.value_fn is None else rule.value_fn(value)
    if not _has_function(leaf):
        return new[key]
    inputs = {name: found[at] for name, at in leaf.inputs.items()}
    tree = from_flat_dict({n: inputs.get(n, PLACEHOLDER) for n in reads.leaves}, reads.own, "/")
    return rule.multi_value_fn(key, tree, asked.get(key, RestoreArgs()))


def restore_by_legacy_function(
    directory: str, item: PyTree, restore_args: PyTree, legacy_transform_fn: Any
) -> PyTree:
    """Restores the tree that a function makes of `item` and of what the checkpoint has.

    Args:
        directory: The path of the item.
        item: The first argument of the function.
        restore_args: A tree with args at each leaf of the result, or None.
        legacy_transform_fn: Called with `item`, the abstract tree of the checkpoint and a tree of
            `ParamInfo`s; returns the last two in the structure of the result. What is not read
            (`skip_deserialize`) stays as in the tree that it returns.

    Raises:
        UsageError: The function names a leaf that the checkpoint lacks.
    """
    reads = _Reads(tx.open(directory))
    named = {keys: ParamInfo(".".join(keys), directory) for keys in to_flat_dict(reads.own)}
    infos = from_flat_dict(named, reads.own)
    structure, infos = legacy_transform_fn(unwrap_tree(item), reads.own, infos)
    by_name = {key.replace("/", "."): key for key in reads.leaves}
    asked = {} if restore_args is None else to_flat_dict(unwrap_tree(restore_args))
    made = to_flat_dict(structure)
    places: dict[Any, tuple[str, int]] = {}
    for keys, info in to_flat_dict(infos, is_leaf=lambda x: hasattr(x, "skip_deserialize")).items():
        if info.skip_deserialize:
            continue
        if info.name not in by_name:
            raise tx.UsageError(f"Expected a leaf of the checkpoint, got `{info.name}`")
        places[keys] = reads.add(by_name[info.name], None, asked.get(keys))
    found = reads.read()
    made |= {keys: found[at] for keys, at in places.items()}
    return from_flat_dict(made, structure)
