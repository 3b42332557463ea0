"""Kinds of templates × checkpoints × kinds of mismatches: the template is never ignored.

Each cell restores the recorded bytes through a matching template, and refuses a template that was
changed in one place: with that problem at that leaf and no other, without reading an array.
"""

from __future__ import annotations

import functools
import hashlib
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest
from flax import nnx
from flax.core import freeze
from jax.sharding import NamedSharding, PartitionSpec

import templax as tx
from helpers import CORPUS, list_mismatches, mark_slow, read_expected
from templax.storage import Local
from templax.testing import Watched

FLAVOURS = {
    case.name: ("ckpt/20/state", "state/") if case.name.endswith("-manager") else ("ckpt", "")
    for case in sorted(CORPUS.glob("orbax-*"))
    if "crash" not in case.name
}
NEW = "templax_new"

Items = list[tuple[tuple[str | int, ...], Any]]
"""Paths and leaves of a template that has no containers yet."""


def nested(items: Items) -> Any:
    """Dicts and lists."""
    root: dict[Any, Any] = {}
    for path, leaf in items:
        node = root
        for step in path[:-1]:
            node = node.setdefault(step, {})
        node[path[-1]] = leaf
    return _lists(root, list)


def _lists(node: Any, sequence: Callable[[list[Any]], Any]) -> Any:
    if type(node) is not dict:
        return node
    built = {key: _lists(child, sequence) for key, child in node.items()}
    if built and all(isinstance(key, int) for key in built):
        return sequence([built[i] for i in range(len(built))])
    return built


def flat(items: Items) -> Any:
    """One dict, keyed by whole names."""
    return {".".join(map(str, path)): leaf for path, leaf in items}


def frozen(items: Items) -> Any:
    return freeze(nested(items))


def tuples(items: Items) -> Any:
    return jax.tree.map(
        lambda x: tuple(x) if isinstance(x, list) else x,
        nested(items),
        is_leaf=lambda x: isinstance(x, list),
    )


def attributes(items: Items) -> Any:
    """Objects of a registered class, whose keys are attribute names."""
    return _objects(nested(items))


class Node:
    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)


jtu.register_pytree_with_keys(
    Node,
    lambda n: (
        [(jtu.GetAttrKey(k), v) for k, v in sorted(vars(n).items())],
        tuple(sorted(vars(n))),
    ),
    lambda names, children: Node(**dict(zip(names, children, strict=True))),
)


def _objects(node: Any) -> Any:
    if isinstance(node, dict):
        return Node(**{str(key): _objects(child) for key, child in node.items()})
    return [_objects(child) for child in node] if isinstance(node, list) else node


def named_tuples(items: Items) -> Any:
    return _named(nested(items))


def _named(node: Any) -> Any:
    if isinstance(node, list):
        return [_named(child) for child in node]
    if not isinstance(node, dict):
        return node
    children = {key: _named(child) for key, child in node.items()}
    if not children or not all(str(key).isidentifier() for key in children):
        return children
    return namedtuple("Named", children)(**children)


def _fields(node: Any, make: Callable[[dict[str, Any]], Any]) -> Any:
    """Objects where keys can be names of attributes, dicts elsewhere."""
    if isinstance(node, list):
        return [_fields(child, make) for child in node]
    if not isinstance(node, dict):
        return node
    children = {str(key): _fields(child, make) for key, child in node.items()}
    if not children or not all(key.isidentifier() for key in children):
        return children
    return make(children)


def _class(base: type, fields: tuple[str, ...]) -> type:
    return type("Fields", (base,), {"__annotations__": dict.fromkeys(fields, Any)})


@functools.cache
def _equinox_class(fields: tuple[str, ...]) -> type:
    return _class(eqx.Module, fields)


@functools.cache
def _flax_class(fields: tuple[str, ...]) -> type:
    return flax.struct.dataclass(_class(object, fields))


def equinox_modules(items: Items) -> Any:
    return _fields(nested(items), lambda children: _equinox_class(tuple(children))(**children))


def flax_structs(items: Items) -> Any:
    return _fields(nested(items), lambda children: _flax_class(tuple(children))(**children))


def boxes(items: Items) -> Any:
    """Each leaf in an `nn.Partitioned`, which adds a level."""
    return nested([(path, nn.Partitioned(leaf, names=())) for path, leaf in items])


def states(items: Items) -> Any:
    """An `nnx.State` of variables, which add a level."""
    root: dict[Any, Any] = {}
    for path, leaf in items:
        node = root
        for step in path[:-1]:
            node = node.setdefault(step, {})
        variable = nnx.Param(leaf)
        # Before Flax 0.11 a variable is no pytree, and a state holds something else.
        is_tree = jax.tree.structure(variable) != jax.tree.structure(0)
        node[path[-1]] = variable if is_tree else variable.to_state()
    return nnx.State(root)


LEVEL = {boxes: ".value", states: ".value"}
"""What some containers append to the names of leaves; the restore uses `rename` for them."""

CONTAINERS = [
    nested,
    flat,
    frozen,
    tuples,
    attributes,
    named_tuples,
    equinox_modules,
    flax_structs,
    boxes,
    states,
]


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def _is_key(leaf: Any) -> bool:
    return _is_array(leaf) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def abstract(leaf: Any) -> Any:
    return leaf


def sharded(leaf: Any) -> Any:
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    axes = ["data" if n % 4 == 0 else None for n in leaf.shape[:1]] + [
        "model" if n % 2 == 0 else None for n in leaf.shape[1:2]
    ]
    sharding = NamedSharding(_mesh(), PartitionSpec(*axes))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def concrete(leaf: Any) -> Any:
    if _is_key(leaf):
        data = jax.eval_shape(jax.random.key_data, leaf)
        impl = {"key<fry>": "threefry2x32", "key<rbg>": "rbg"}[str(leaf.dtype)]
        return jax.random.wrap_key_data(jnp.zeros(data.shape, data.dtype), impl=impl)
    return jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf


def numpy(leaf: Any) -> Any:
    return np.zeros(leaf.shape, leaf.dtype) if _is_array(leaf) and not _is_key(leaf) else leaf


def values(leaf: Any) -> Any:
    """Python values where the checkpoint has numbers and strings."""
    return leaf() if isinstance(leaf, type) else leaf


LEAVES = [abstract, sharded, concrete, numpy, values]


def _mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((4, 2), ("data", "model"))


def _find_leaf(items: Items, wanted: Callable[[Any], bool]) -> int | None:
    """A leaf that is not in a list, so its removal does not rename others."""
    found = [
        i
        for i, (path, leaf) in enumerate(items)
        if wanted(leaf) and not any(isinstance(step, int) for step in path)
    ]
    return found[len(found) // 2] if found else None


def _replace(items: Items, i: int, leaf: Any) -> Items:
    return [*items[:i], (items[i][0], leaf), *items[i + 1 :]]


def _like(leaf: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    if isinstance(leaf, np.ndarray):
        return np.zeros(shape, dtype)
    return jax.ShapeDtypeStruct(shape, dtype)


def wrong_shape(items: Items) -> tuple[Items, int] | None:
    i = _find_leaf(items, lambda x: _is_array(x) and not _is_key(x) and x.shape)
    if i is None:
        return None
    leaf = items[i][1]
    return _replace(items, i, _like(leaf, (*leaf.shape[:-1], leaf.shape[-1] + 1), leaf.dtype)), i


def wrong_rank(items: Items) -> tuple[Items, int] | None:
    i = _find_leaf(items, lambda x: _is_array(x) and not _is_key(x))
    if i is None:
        return None
    leaf = items[i][1]
    return _replace(items, i, _like(leaf, (1, *leaf.shape), leaf.dtype)), i


def lower_rank(items: Items) -> tuple[Items, int] | None:
    i = _find_leaf(items, lambda x: _is_array(x) and not _is_key(x) and len(x.shape) > 1)
    if i is None:
        return None
    leaf = items[i][1]
    return _replace(items, i, _like(leaf, (int(np.prod(leaf.shape)),), leaf.dtype)), i


def wrong_dtype(items: Items) -> tuple[Items, int] | None:
    i = _find_leaf(items, lambda x: _is_array(x) and not _is_key(x))
    if i is None:
        return None
    leaf = items[i][1]
    return _replace(items, i, _like(leaf, leaf.shape, bool if leaf.dtype != bool else "int8")), i


def wrong_kind(items: Items) -> tuple[Items, int] | None:
    i = _find_leaf(items, _is_array)
    return None if i is None else (_replace(items, i, str), i)


def wrong_sharding(items: Items) -> tuple[Items, int] | None:
    i = _find_leaf(items, lambda x: _is_array(x) and not _is_key(x) and x.shape and x.shape[0] % 3)
    if i is None:
        return None
    leaf = items[i][1]
    three = jax.sharding.Mesh(np.array(jax.devices()[:3]), ("data",))
    bad = NamedSharding(three, PartitionSpec("data"))
    return _replace(items, i, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=bad)), i


def missing(items: Items) -> tuple[Items, int] | None:
    added = [*items, ((NEW,), jax.ShapeDtypeStruct((3,), jnp.float32))]
    return added, len(added) - 1


def extra(items: Items) -> tuple[Items, int] | None:
    i = _find_leaf(items, lambda x: True)
    return None if i is None else ([*items[:i], *items[i + 1 :]], -1 - i)


def ambiguous(items: Items) -> tuple[Items, int] | None:
    i = _find_leaf(items, _is_array)
    if i is None or len(items[i][0]) < 2:
        return None
    path, leaf = items[i]
    return [*items, ((".".join(map(str, path)),), leaf)], i


PERTURBED = {
    wrong_shape: "shape",
    wrong_rank: "shape",
    lower_rank: "shape",
    wrong_dtype: "dtype",
    wrong_kind: "kind",
    wrong_sharding: "sharding",
    missing: "missing",
    extra: "extra",
    ambiguous: "ambiguous",
}


def _digest(leaf: Any) -> str:
    value = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    return hashlib.sha256(np.asarray(value).tobytes()).hexdigest()


def _read_recorded(flavour: str) -> dict[str, Any]:
    prefix = FLAVOURS[flavour][1]
    recorded = read_expected(flavour).items()
    return {k[len(prefix) :]: v for k, v in recorded if k.startswith(prefix)}


WHOLE = "orbax-0.12.8-default"
"""The quick tests cover this one with each kind of leaf, and `ONCE` with abstract leaves."""

ONCE = {name for name in FLAVOURS if name.startswith("orbax-0.12.8-") or "0.2.3" in name}

CELLS = [(flavour, leaves) for flavour in FLAVOURS for leaves in LEAVES]
QUICK = [cell for cell in CELLS if cell[0] == WHOLE or (cell[0] in ONCE and cell[1] is abstract)]


@pytest.mark.parametrize(
    ("flavour", "leaf_kind"),
    [*QUICK, *mark_slow(*(cell for cell in CELLS if cell not in QUICK))],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_template_is_followed_or_refused(flavour: str, leaf_kind: Callable[[Any], Any]) -> None:
    """Every container × every change, for one checkpoint and one kind of leaf."""
    url = CORPUS / flavour / FLAVOURS[flavour][0]
    watched = Watched(Local(url))
    catalog = tx.open(watched)
    keyed = jtu.tree_flatten_with_path(catalog.template())[0]
    items: Items = [(entry.path, leaf_kind(leaf)) for entry, leaf in _pair_entries(catalog, keyed)]
    recorded = _read_recorded(flavour)
    opening, arrays = list(watched.reads), _arrays(catalog)
    assert not any(_overlap(read, array) for read in opening for array in arrays)
    cells = 0
    for build in CONTAINERS:
        level = LEVEL.get(build, "")
        rename = (lambda name: f"{name}.value") if level else None
        template = build(items)
        restored = tx.restore(catalog, template, rename=rename)
        assert jax.tree.structure(restored) == jax.tree.structure(template), build.__name__
        _assert_recorded(items, build, template, restored, recorded)
        for perturb, problem in PERTURBED.items():
            made = perturb(items)
            if made is None or (build is flat and perturb is ambiguous):
                continue  # there is no such leaf, or a dict would hold a key twice
            changed, i = made
            path = items[-1 - i][0] if i < 0 else changed[i][0]
            watched.reads.clear()
            with pytest.raises(tx.TemplateError) as caught:
                tx.restore(catalog, build(changed), rename=rename)
            found = list_mismatches(caught.value)
            cell = build.__name__, perturb.__name__
            assert found == [(problem, ".".join(map(str, path)) + level)], cell
            assert watched.reads == [], "something was read before the error"
            cells += 1
    assert cells >= 45


def _name(keys: Any) -> str:
    return ".".join(str(getattr(k, "idx", getattr(k, "key", getattr(k, "name", k)))) for k in keys)


def _pair_entries(catalog: tx.Catalog, keyed: Any) -> list[tuple[Any, Any]]:
    """Entries with their leaves of the template."""
    leaves = {_name(keys): leaf for keys, leaf in keyed}
    return [(entry, leaves[entry.name]) for entry in catalog.entries]


def _overlap(a: tuple[str, int, int], b: tuple[str, int, int]) -> bool:
    return a[0] == b[0] and a[1] < b[2] and b[1] < a[2]


def _arrays(catalog: tx.Catalog) -> set[tuple[str, int, int]]:
    """The byte ranges of arrays: key, start, stop."""
    located = catalog.locate([e for e in catalog.entries if e.kind == "array"])
    return {
        (c.extent.key, c.extent.start, c.extent.stop)
        for chunks in located.values()
        for c in chunks
        if c.extent.inline is None
    }


def _assert_recorded(items: Items, build: Any, template: Any, restored: Any, recorded: Any) -> None:
    wanted = jtu.tree_flatten_with_path(template)[0]
    got = jax.tree.leaves(restored)
    names = {_name(keys): (leaf, x) for (keys, leaf), x in zip(wanted, got, strict=True)}
    for path, _ in items:
        leaf, value = names[".".join(map(str, path)) + LEVEL.get(build, "")]
        want = recorded["/".join(map(str, path))]
        if want["kind"] == "array":
            assert _digest(value) == want["sha256"], (build.__name__, path)
            assert value.dtype == leaf.dtype
            assert isinstance(value, np.ndarray) == isinstance(leaf, np.ndarray)
            if getattr(leaf, "sharding", None) is not None and not isinstance(leaf, jax.Array):
                assert value.sharding == leaf.sharding
        else:
            assert value == want["value"]
            assert _is_array(leaf) or type(value) is (
                leaf if isinstance(leaf, type) else type(leaf)
            )
