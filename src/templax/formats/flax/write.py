"""The layout of a Flax msgpack file that a save writes. No I/O, no JAX.

It is what `flax.serialization.to_bytes` writes: maps with keys of text, in the order of the tree;
lists, tuples and objects are such maps, too. Arrays are extensions of type 1, numpy's numbers of
type 3, Python's complex numbers of type 2. Arrays of more than 2**30 bytes are divided into flat
pieces.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
import numpy as np

from ..._catalog.written import Leaf
from ..._core.boxes import MAX_RANK, fits_address_space
from ..._core.dtypes import DTYPES, name_of
from ..._core.names import MAX_DEPTH, Path, join_path
from ...errors import SaveError
from ...storage.memory import Memory
from ..layout import Layout
from .file import max_leaves
from .keys import max_values
from .msgpack import CHUNKED, MAX_PIECES, PLACEHOLDER
from .scan import holds_flax_arrays
from .specs import ARRAY_PLACEHOLDER

PIECE_BYTES = 1 << 30
"""Most bytes of an array that are written as one extension: `MAX_CHUNK_SIZE` of Flax."""

_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3

Node = Leaf | dict[str, "Node"] | None
"""A leaf, what is below a key path, or None."""

_encode = msgspec.msgpack.Encoder().encode


_MARKED = f"is at or below {CHUNKED!r}, which is Flax's mark of an array in pieces"


def find_unwritable_leaves(
    leaves: Iterable[Leaf], empties: Iterable[tuple[Path, str]]
) -> Iterator[str]:
    """What a file cannot store, as phrases that begin with the name of a leaf or node."""
    for leaf in leaves:
        if leaf.key_impl is not None:
            what = "is a typed PRNG key, which Flax cannot store: save jax.random.key_data"
        elif leaf.text is not None and _stands_for_array(leaf.path, leaf.text):
            what = "is a string by which Orbax, Flax or T5X stand for an array in another file"
        elif leaf.text is None and DTYPES.get(name_of(leaf.dtype)) != leaf.dtype:
            what = f"has dtype {name_of(leaf.dtype)}, which templax does not read from msgpack"
        elif len(leaf.path) > MAX_DEPTH:
            what = f"has more than {MAX_DEPTH} levels"
        elif len(leaf.shape) > MAX_RANK or not fits_address_space(leaf.shape, leaf.dtype.itemsize):
            what = "has a shape that templax does not read"
        elif CHUNKED in leaf.path:
            what = _MARKED
        else:
            continue
        yield f"`{leaf.name[:200]}` {what}"
    for path, _ in empties:
        if CHUNKED in path:
            yield f"`{join_path(path)[:200]}` {_MARKED}"


def _stands_for_array(path: Path, text: str) -> bool:
    return text.startswith((PLACEHOLDER, ARRAY_PLACEHOLDER)) or path[-2:] == ("kvstore", "driver")


def nest(leaves: Iterable[Leaf], empties: Iterable[tuple[Path, str]]) -> Node:
    """The tree of key paths, as Flax's `to_state_dict` makes it. Empty containers are empty maps.

    Raises:
        SaveError: Children of a node class of the caller's share a key.
    """
    root: dict[str, Node] = {}

    def put(path: Path, node: Node) -> None:
        *parents, last = ("", *map(str, path))
        into: Any = root
        for element in parents:
            into = into.setdefault(element, {})
            if not isinstance(into, dict):
                break
        if not isinstance(into, dict) or last in into:
            raise SaveError("Expected one value at a key path, got two", leaf=join_path(path))
        into[last] = node

    for leaf in leaves:
        put(leaf.path, leaf)
    for path, kind in empties:
        put(path, None if kind == "None" else {})
    return root.get("", {})


class _Encoder:
    """Walks through a tree and notes where everything comes to lie."""

    def __init__(self) -> None:
        self.all, self.leaves, self.starts = list[Leaf](), list[Leaf](), list[int]()
        self.heads, self.jumps = list[tuple[int, bytes]](), list[tuple[int, bytes]]()
        self.size = self.values = self.pieces = 0
        self._text = bytearray()

    def add(self, node: Node) -> None:
        self.values += 1
        if node is None:
            self._text += b"\xc0"
        elif isinstance(node, Leaf):
            self._add_leaf(node)
        else:
            self._text += _encode_length(len(node), 0x80, 0xDE)
            for key, child in node.items():
                self.values += 1
                self._text += _encode(key)
                self.add(child)

    def _add_leaf(self, leaf: Leaf) -> None:
        self.all.append(leaf)
        if leaf.text is not None:
            self._text += _encode(leaf.text)
        elif leaf.is_python:
            self._text += encode_number(leaf)
        elif leaf.nbytes > PIECE_BYTES and leaf.value_type != "scalar":
            self._add_pieces(leaf)
        else:
            code = _SCALAR if leaf.value_type == "scalar" else _ARRAY
            self._text += encode_array_head(leaf.shape, leaf.dtype, code)
            self._add_bytes(leaf)

    def _add_bytes(self, leaf: Leaf) -> None:
        self.heads.append((self.size, bytes(self._text)))
        self.size += len(self._text)
        self._text.clear()
        self.leaves.append(leaf)
        self.starts.append(self.size)
        self.size += leaf.nbytes

    def _add_pieces(self, leaf: Leaf) -> None:
        """Adds an array in flat pieces, of which each but the first is interrupted by its head."""
        step = max(1, PIECE_BYTES // leaf.dtype.itemsize)
        sizes = {str(i): n for i, n in enumerate(leaf.shape)}
        total = leaf.nbytes // leaf.dtype.itemsize
        counts = [min(step, total - first) for first in range(0, total, step)]
        self._text += _encode_length(3, 0x80, 0xDE)
        for value in (CHUNKED, True, "shape", sizes, "chunks"):
            self._text += _encode(value)
        self._text += _encode_length(len(counts), 0x80, 0xDE)
        heads = [
            _encode(str(i)) + encode_array_head((n,), leaf.dtype, _ARRAY)
            for i, n in enumerate(counts)
        ]
        self._text += heads[0]
        start = self.size + len(self._text)
        self._add_bytes(leaf)
        nbytes = step * leaf.dtype.itemsize
        self.jumps += [(start + i * nbytes, head) for i, head in enumerate(heads) if i]
        self.values += 5 + 2 * (len(sizes) + len(counts))
        self.pieces += len(counts) * len(leaf.shape)

    def finish(self) -> Layout:
        if self._text:
            self.heads.append((self.size, bytes(self._text)))
            self.size += len(self._text)
        return Layout(
            leaves=self.leaves,
            starts=self.starts,
            heads=self.heads,
            size=self.size,
            jumps=self.jumps,
        )


def lay_out(tree: Node) -> tuple[list[Leaf], Layout, str | None]:
    """The order of all leaves in the file, where everything lies in it, and why templax would
    refuse to read it, or None.
    """
    encoder = _Encoder()
    encoder.add(tree)
    layout = encoder.finish()
    size = layout.size + sum(len(head) for _, head in layout.jumps)
    begin = b"".join(head for _, head in layout.heads[:1])
    problem = None
    if not holds_flax_arrays(Memory({"": begin + bytes(512)}), "", len(begin) + 512):
        what = "an array or number of numpy near its beginning"
        return encoder.all, layout, f"a file of Flax is recognised by {what}, and here is none"
    if len(encoder.all) > max_leaves(size):
        problem = f"{len(encoder.all):,} leaves in {size:,} bytes, more than {max_leaves(size):,}"
    elif encoder.values > max_values(size):
        problem = f"{encoder.values:,} values in {size:,} bytes, more than {max_values(size):,}"
    elif encoder.pieces > MAX_PIECES:
        problem = f"{encoder.pieces:,} dimensions of pieces of arrays, more than {MAX_PIECES:,}"
    return encoder.all, layout, problem and f"templax would not read {problem}"


def encode_number(leaf: Leaf) -> bytes:
    """A number of Python, as msgpack itself or Flax stores it."""
    value: Any = read_number(leaf)
    if isinstance(value, complex):
        return _encode(msgspec.msgpack.Ext(_COMPLEX, _encode((value.real, value.imag))))
    return _encode(value)


def read_number(leaf: Leaf) -> Any:
    """The value of a leaf that is a number of Python."""
    ((_, fetch),) = leaf.pieces
    return fetch().item()


@functools.lru_cache(4096)
def encode_array_head(shape: tuple[int, ...], dtype: np.dtype, code: int) -> bytes:
    """What precedes the bytes of an array or number of numpy: the extension's head, its shape, the
    name of its dtype, and the head of the bytes.
    """
    nbytes = dtype.itemsize
    for n in shape:
        nbytes *= n
    inner = b"\x93" + _encode(shape) + _encode(name_of(dtype)) + _encode_size(nbytes, 0xC4)
    size = len(inner) + nbytes
    fixed = {1: 0xD4, 2: 0xD5, 4: 0xD6, 8: 0xD7, 16: 0xD8}.get(size)
    outer = _encode_size(size, 0xC7) if fixed is None else bytes((fixed,))
    return outer + bytes((code,)) + inner


def _encode_size(size: int, first: int) -> bytes:
    """A size in 1, 2 or 4 bytes, after the first of three consecutive codes for these."""
    width = 0 if size < 1 << 8 else 1 if size < 1 << 16 else 2
    return bytes((first + width,)) + size.to_bytes(1 << width, "big")


def _encode_length(length: int, small: int, large: int) -> bytes:
    """The head of a map of `length` entries."""
    if length < 16:
        return bytes((small | length,))
    width = 0 if length < 1 << 16 else 1
    return bytes((large + width,)) + length.to_bytes(2 << width, "big")


def sort_like(node: Node, tree: Any) -> Node:
    """Puts keys in the order of the caller's tree. JAX sorts those of dicts, and `nest` puts empty
    containers last; Flax does neither.

    Args:
        node: What `nest` gives.
        tree: The tree that was flattened.
    """
    if not isinstance(node, dict):
        return node
    children: dict[str, Any]
    if isinstance(tree, Mapping):
        children = {str(key): child for key, child in tree.items()}
    elif isinstance(tree, (list, tuple)):
        names = getattr(tree, "_fields", range(len(tree)))
        children = {str(name): child for name, child in zip(names, tree, strict=False)}
    elif dataclasses.is_dataclass(tree):
        children = {each.name: getattr(tree, each.name, None) for each in dataclasses.fields(tree)}
    else:
        children = {key: getattr(tree, key, None) for key in node}
    keys = dict.fromkeys((*(key for key in children if key in node), *node))
    return {key: sort_like(node[key], children.get(key)) for key in keys}
