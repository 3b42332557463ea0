"""The leaves of a tree to save, and the snapshot of their values in host memory.

What concerns `jax.Array`s is in `jax_leaves`, which is imported if the program has loaded JAX.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import numpy as np

from .._catalog.written import Leaf, hold_array, refuse_leaves
from .._core.arguments import PyTree
from .._core.boxes import Box
from .._core.dtypes import PYTHON_DTYPES, is_known
from .._core.memory import ALIGN, allocate_aligned
from .._core.names import Path, join_path, join_paths
from .._core.optional import is_jax_loaded
from .._core.text import is_unicode
from .._template.plain_tree import flatten_plain
from ..errors import UsageError

Empty = tuple[Path, str]
"""The key path of a container without leaves, and Orbax's name for its kind."""

_SMALL_BYTES = 1024 * 1024
"""Values up to this size are copied at once; larger ones are split among threads."""

_BLOCK_BYTES = 16 * 1024 * 1024
"""The unit in which threads copy large values."""

_ARENA_BYTES = 256 * 1024 * 1024
"""The size of the allocations that copies share."""


def collect_leaves(tree: PyTree, *, replicas: bool = False) -> tuple[list[Leaf], list[Empty]]:
    """The leaves of a tree, and its containers that have no leaves.

    Nothing is copied: arrays on CPU are viewed in place; arrays on other devices are fetched when
    the callable of a piece is called.

    Args:
        tree: A pytree of `jax.Array`s (including typed PRNG keys), NumPy arrays and scalars, Python
            numbers and strings. Functions and types are left out: templates supply them. What
            modules of Flax NNX share is one leaf, under the first of its names.
        replicas: Whether a leaf of which this process has all counts as its own, even if it is
            another process that saves it.

    Raises:
        SaveError: Leaves hold no values that can be saved, or share a name. The message names them.
        UsageError: `tree` is not a pytree.
    """
    is_empty = _is_empty
    if is_jax_loaded():
        from .jax_leaves import (
            allow_transfers,
            flatten_with_paths,
            make_empty_test,
            make_jax_leaf,
        )

        is_empty = make_empty_test(_is_empty)
    else:
        allow_transfers, flatten_with_paths = nullcontext, _flatten_plain
        make_jax_leaf = None
    try:
        found = flatten_with_paths(tree, is_empty)
    except (TypeError, ValueError) as error:  # such as a dict with keys 0 and "0", for JAX to sort
        raise UsageError(f"Expected a pytree to save: {error}") from error
    leaves: list[Leaf] = []
    empties: list[Empty] = []
    wrong: list[str] = []
    names: set[str] = set()
    pending: list[Any] = []
    with allow_transfers():  # saving is what the caller asked for
        for (path, value), name in zip(found, join_paths([path for path, _ in found]), strict=True):
            if is_empty(value):
                empties.append((path, _empty_kind(value)))
                continue
            if callable(value):
                continue
            if name in names:
                wrong.append(f"two leaves are named `{name}`")
                continue
            names.add(name)
            leaf = _make_leaf(name, path, value, replicas, make_jax_leaf)
            if isinstance(leaf, str):
                wrong.append(f"`{name}` {leaf}")
                continue
            leaves.append(leaf)
            if leaf.value_type == "jax.Array" and (leaf.transient or not leaf.pieces):
                pending.append(value)  # others have been waited for when they were viewed
        every = [*names, *(join_path(path) for path, _ in empties)]
        if not is_unicode("".join(every)):
            wrong += [
                f"`{name}` is a name that is not valid Unicode"
                for name in every
                if not is_unicode(name)
            ]
        refuse_leaves(wrong)
        if pending:
            from .jax_leaves import await_arrays

            await_arrays(pending)  # a failed computation raises here, before a file is made
    return leaves, empties


def _flatten_plain(tree: PyTree, is_leaf: Callable[[Any], bool]) -> list[tuple[Path, Any]]:
    return flatten_plain(tree, is_leaf)[0]


def _is_empty(value: Any) -> bool:
    """Whether a value is a container without leaves."""
    return value is None or (isinstance(value, (dict, list, tuple)) and not value)


def _empty_kind(value: Any) -> str:
    """Orbax's name for a container without leaves; a class of the caller's is as a NamedTuple."""
    if value is None:
        return "None"
    if isinstance(value, list):
        return "List"
    if isinstance(value, Mapping):
        return "Dict"
    is_tuple = isinstance(value, tuple) and not hasattr(value, "_fields")
    return "Tuple" if is_tuple else "NamedTuple"


def _make_leaf(
    name: str,
    path: Path,
    value: Any,
    replicas: bool,
    make_jax_leaf: Callable[[str, Path, Any, bool], Leaf | str | None] | None,
) -> Leaf | str:
    """A leaf, or the reason why it cannot be saved, in words that follow its name."""
    if type(value) is np.ndarray:  # the common case
        return _make_numpy_leaf(name, path, value, "np.ndarray")
    if make_jax_leaf is not None and not isinstance(value, np.ndarray):
        leaf = make_jax_leaf(name, path, value, replicas)
        if leaf is not None:
            return leaf
    if isinstance(value, str):
        return _make_text_leaf(name, path, value)
    if isinstance(value, np.ma.MaskedArray):
        return "is a masked array, whose mask would be lost"
    if isinstance(value, (np.ndarray, np.generic)):
        scalar = isinstance(value, np.generic)
        return _make_numpy_leaf(name, path, np.asarray(value), "scalar" if scalar else "np.ndarray")
    number = next((t for t in (bool, int, float, complex) if isinstance(value, t)), None)
    if number is not None:
        try:
            array = np.asarray(value, PYTHON_DTYPES[number])
        except OverflowError:
            return f"is an int that int64 can't hold: {str(value)[:40]}"
        leaf = _make_numpy_leaf(name, path, array, "scalar")
        if isinstance(leaf, Leaf):
            leaf.is_python = True
        return leaf
    if value is ...:
        return "is `...`, which was never restored"
    as_array: Callable[[], Any] | None = getattr(value, "__jax_array__", None)
    if as_array is not None:
        return _make_leaf(name, path, as_array(), replicas, make_jax_leaf)
    if isinstance(value, (bytes, bytearray)):
        return "holds bytes: save np.frombuffer(value, np.uint8)"
    return f"is a {type(value).__module__}.{type(value).__qualname__}, which holds no array"


def _make_text_leaf(name: str, path: Path, value: str) -> Leaf | str:
    try:
        value.encode()
    except UnicodeEncodeError:
        return "is a string that is not valid Unicode"
    return Leaf(name, path, "string", (), np.dtype(str), text=str.__str__(value))


def _make_numpy_leaf(name: str, path: Path, value: np.ndarray, value_type: Any) -> Leaf | str:
    native = _find_native(value.dtype)
    if native is None:
        return f"is a numpy array of dtype {value.dtype}"
    array = np.asarray(value, native)
    return Leaf(name, path, value_type, array.shape, native, pieces=hold_array(array))


@functools.cache
def _find_native(dtype: np.dtype) -> np.dtype | None:
    """The dtype in native byte order, or None if it can't be saved."""
    native = dtype.newbyteorder("=")
    return native if is_known(native) else None


def copy_values(leaves: Sequence[Leaf], threads: int) -> None:
    """Gives the leaves values of their own, which later changes to the tree do not affect.

    A `jax.Array` on CPU need not be copied: JAX does not reuse its memory while NumPy has a view of
    it. Values fetched from a device are copies already. The remaining copies share arenas, each
    freed once all leaves in it are written: the first touch of fresh memory takes longer than the
    copy, and is fastest for large allocations.
    """
    on_cpu = any(leaf.value_type == "jax.Array" and not leaf.transient for leaf in leaves)
    views_suffice = False
    if on_cpu:
        from .jax_leaves import views_hold_memory

        views_suffice = views_hold_memory()
    leaves = [
        leaf
        for leaf in leaves
        if leaf.transient or leaf.value_type != "jax.Array" or not views_suffice
    ]
    total = sum(-(-leaf.nbytes // ALIGN) * ALIGN for leaf in leaves)
    arena, used = allocate_aligned(0), 0
    with ThreadPoolExecutor(threads, thread_name_prefix="templax-copy") as pool:
        copies: list[Future[None]] = []
        for leaf in leaves:
            pieces: list[tuple[Box, Callable[[], np.ndarray]]] = []
            for box, fetch in leaf.pieces:
                values = fetch()
                if not leaf.transient:
                    size = -(-values.nbytes // ALIGN) * ALIGN
                    if used + size > len(arena):
                        arena, used = allocate_aligned(max(size, min(total, _ARENA_BYTES))), 0
                    copied = np.ndarray(values.shape, values.dtype, arena, used)
                    used, total = used + size, total - size
                    if size > _SMALL_BYTES:
                        copies += [
                            pool.submit(np.copyto, *pair) for pair in _split_blocks(copied, values)
                        ]
                    else:
                        np.copyto(copied, values)
                    values = copied
                pieces.append((box, functools.partial(np.asarray, values)))
            leaf.pieces, leaf.transient = tuple(pieces), False
        for copy in copies:
            copy.result()


def _split_blocks(to: np.ndarray, values: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of destination and source views, which threads can copy in parallel."""
    if not values.flags.c_contiguous:
        yield to, values
        return
    to, values = to.reshape(-1).view(np.uint8), values.reshape(-1).view(np.uint8)
    for i in range(0, len(values), _BLOCK_BYTES):
        yield to[i : i + _BLOCK_BYTES], values[i : i + _BLOCK_BYTES]
