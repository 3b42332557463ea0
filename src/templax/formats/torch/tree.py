"""The leaves of what a pickle stands for: nested dicts, lists and tuples of tensors and numbers."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from ..._catalog.catalog import LEAF_EMPTIES, MAX_EMPTIES, explain_refusal
from ..._catalog.entry import Chunk, Extent, Kind, LeafEntry
from ..._core.boxes import Shape, fits_address_space, format_shape
from ..._core.dtypes import DTYPES, PYTHON_DTYPES
from ..._core.names import MAX_DEPTH, Path, join_path
from ...errors import Unsupported
from .objects import (
    PARAMETER,
    BrokenText,
    Named,
    Parameter,
    Record,
    Refused,
    StateDict,
    Tensor,
    list_parts,
    refuse_key,
)
from .refusals import make_refusal, refuse_text

# A pickle may refer to one object any number of times, in two bytes each. These limits are for the
# tree in which each reference is a node of its own; see the table in docs/explanation/security.md.

_NODES, _NODE_BYTES = 1 << 16, 6
"""Maximum number of nodes of a tree: a fixed allowance, and one more per this many bytes."""

_TEXT, _TEXT_PER_BYTE = 1 << 25, 64
"""Maximum length of all names and strings: a fixed allowance, and this many more per byte."""

_VALUES, _VALUES_PER_BYTE = 1 << 26, 16
"""Maximum size of all values: a fixed allowance, and this many bytes more per byte of the file."""

_NUMBERS: dict[type, tuple[np.dtype, struct.Struct]] = {
    kind: (PYTHON_DTYPES[kind], struct.Struct(layout))
    for kind, layout in ((int, "<q"), (float, "<d"), (bool, "<?"), (complex, "<2d"))
}
"""Python's number type → dtype and layout of its values."""


class Tree:
    """The leaves of an object.

    Args:
        nbytes: Size of the pickle.
        stored: Size of what it was read from, tensors included.

    Attributes:
        entries: The leaves in order. The handle of a tensor is that `Tensor`, and that of any other
            leaf its chunks.
        empties: Path → what there is instead of a leaf.
        metadata: The attribute `_metadata` of each state dict that has one, by its name; and under
            `attributes` those of parameters, by the names of their leaves.
        not_read: Name of a leaf that templax does not read → why, and what to save in its place.
        refusal: The error for the first of them.
        refused: The names of the classes and functions among them, and in those that are not read
            as a whole.

    Raises:
        Unsupported: It is itself something that templax does not read; two leaves have the same
            name; or it repeats objects so often that it is far larger than its file.
    """

    def __init__(self, nbytes: int, stored: int):
        self.entries: list[LeafEntry] = []
        self.empties: dict[Path, str] = {}
        self.metadata: dict[str, Any] = {}
        self.not_read: dict[str, str] = {}
        self.refusal: Unsupported | None = None
        self.refused: set[str] = set()
        self._names: set[str] = set()
        self._seen: dict[int, Any] = {}  # what `_refuse` has looked into
        self._refused_dicts: dict[int, Unsupported] = {}
        self._nodes = _NODES + nbytes // _NODE_BYTES
        self._text = _TEXT + nbytes * _TEXT_PER_BYTE
        self._values = _VALUES + stored * _VALUES_PER_BYTE

    def add(self, value: Any, path: Path = ()) -> None:
        """Adds the leaves of a value at a path."""
        self._add(value, path, _measure(path))

    def require_tensors(self) -> None:
        """Raises `refusal` if something can't be read and the tree has no tensors at all."""
        if self.refusal and not any(isinstance(e.handle, Tensor) for e in self.entries):
            raise self.refusal

    def _add(self, value: Any, path: Path, length: int) -> None:
        """Adds a value whose name has `length` characters, or a few less."""
        self._spend(len(path))
        kind = type(value)
        if kind is Tensor:
            self._add_array(path, length, value.shape, value.dtype, value)
        elif kind is Parameter:
            self._add_parameter(path, length, value)
        elif kind is dict or kind is StateDict:
            self._add_dict(path, length, value)
        elif kind is list or kind is tuple:
            if not value:
                self._add_empty(path, length, "List" if kind is list else "Tuple")
            for i, child in enumerate(value):
                self._add(child, (*path, i), length + 8)
        elif value is None:
            self._add_empty(path, length, "None")
        elif kind in _NUMBERS:
            self._add_number(path, length, value)
        elif kind is str:
            self._add_text(path, length, value)
        elif kind is Named and value.name.startswith("torch."):
            self._add_text(path, length, value.name)  # a dtype, or the layout of most tensors
        elif kind is BrokenText:
            self._refuse(path, length, refuse_text())
        elif kind is bytes:
            chunks = (Chunk(Extent("", 0, 0, value), ((0, len(value)),)),) if value else ()
            self._add_array(path, length, (len(value),), DTYPES["uint8"], chunks)
        elif kind is Refused or kind is Record or kind is Named:
            self._refuse(path, length, make_refusal(value.name), value)
        else:
            what = f"templax reads no leaves of type `{kind.__name__}` in a PyTorch file"
            self._refuse(path, length, Unsupported(what))

    def refuse(self, path: Path, why: Unsupported) -> None:
        """Notes a leaf that templax does not read."""
        self._refuse(path, _measure(path), why)

    def _refuse(self, path: Path, length: int, why: Unsupported, value: Any = None) -> None:
        """Notes a leaf, or a value of several, that templax does not read, and the names in it.

        Raises why, if that is all there is.
        """
        if not path:
            raise why
        pending = [value]
        while pending:
            part = pending.pop()
            if isinstance(part, (Refused, Record)):
                self.refused.add(part.name)
            if id(part) not in self._seen:  # there may be any number of references to it
                parts = list_parts(part)
                if parts:
                    self._seen[id(part)] = part
                    pending += parts
        name = self._claim_name(path, length)
        self.refusal = self.refusal or Unsupported(why.what, leaf=name, hint=why.hint)
        self.not_read[name] = explain_refusal(why)

    def add_array(self, path: Path, shape: Shape, dtype: np.dtype, handle: Any) -> None:
        """Adds an array."""
        self._add_array(path, _measure(path), shape, dtype, handle)

    def _add_array(
        self,
        path: Path,
        length: int,
        shape: Shape,
        dtype: np.dtype,
        handle: Any,
        kind: Kind = "array",
    ) -> None:
        if not fits_address_space(shape, dtype.itemsize):
            what = f"templax reads no arrays of shape {format_shape(shape)}"
            raise Unsupported(what, leaf=join_path(path))
        entry = LeafEntry(self._claim_name(path, length), path, shape, dtype, kind, handle=handle)
        self._values -= entry.nbytes
        if self._values < 0:
            raise Unsupported(
                "templax reads no file whose tensors are far larger than it is, as they are if"
                " many share the same bytes",
                leaf=entry.name,
            )
        self.entries.append(entry)

    def _add_dict(self, path: Path, length: int, items: dict[Any, Any]) -> None:
        if not items:
            self._add_empty(path, length, "Dict")
        refusal = self._refused_dicts.get(id(items))
        if refusal is None:
            wrong = [key for key in items if type(key) is not str and type(key) is not int][:1]
            refusal = refuse_key(wrong[0]) if wrong else None
        if refusal is not None:
            self._refused_dicts[id(items)] = refusal
            self._refuse(path, length, refusal, items)
            return
        for key, child in items.items():
            name = str(key)
            if name.count(".") > MAX_DEPTH:
                raise Unsupported(f"templax reads trees of at most {MAX_DEPTH} levels")
            self._add(child, (*path, *name.split(".")), length + len(name) + 1)
        if isinstance(items, StateDict) and items.metadata is not None:
            name = ".".join((*map(str, path), "_metadata"))
            self.metadata[name] = self._copy_metadata(items.metadata, 0)

    def _add_parameter(self, path: Path, length: int, value: Parameter) -> None:
        """Adds a tensor, and its attributes to the metadata, if these can be shown there."""
        try:
            copied = self._copy_metadata(value.attributes, 0)
        except Unsupported:
            self._refuse(path, length, make_refusal(PARAMETER), value)
        else:
            self._add(value.tensor, path, length)
            self.metadata.setdefault("attributes", {})[join_path(path)] = copied

    def _copy_metadata(self, value: Any, depth: int) -> Any:
        self._spend(depth)
        if value is None or type(value) in (bool, float, str, int):
            if type(value) is str:
                self._spend_text(len(value))
            return value
        if type(value) in (dict, StateDict):
            if any(type(key) is not str for key in value):
                raise Unsupported("templax reads no `_metadata` with keys that are not text")
            self._spend_text(sum(map(len, value)))
            return {key: self._copy_metadata(v, depth + 1) for key, v in value.items()}
        if type(value) in (list, tuple):
            return [self._copy_metadata(v, depth + 1) for v in value]
        raise Unsupported(f"templax reads no `_metadata` with values of `{type(value).__name__}`")

    def _add_number(self, path: Path, length: int, number: complex) -> None:
        dtype, layout = _NUMBERS[type(number)]
        parts = (number.real, number.imag) if type(number) is complex else (number,)
        try:
            data = layout.pack(*parts)
        except struct.error:
            what, hint = "templax reads integers of 64 bits", "save it as text, `str(number)`"
            self._refuse(path, length, Unsupported(what, hint=hint))
            return
        chunk = Chunk(Extent("", 0, 0, data), ())
        self._add_array(path, length, (), dtype, (chunk,), "scalar")

    def _add_text(self, path: Path, length: int, text: str) -> None:
        self._spend_text(len(text))
        name = self._claim_name(path, length)
        self.entries.append(LeafEntry(name, path, (), np.dtype(str), "string", value=text))

    def _add_empty(self, path: Path, length: int, what: str) -> None:
        self._claim_name(path, length)
        if len(self.empties) >= MAX_EMPTIES + LEAF_EMPTIES * len(self.entries):
            raise Unsupported("templax reads no tree of so many empty nodes")
        self.empties[path] = what

    def _claim_name(self, path: Path, length: int) -> str:
        self._spend_text(length)  # before the name is made
        name = join_path(path)
        if name in self._names:
            raise Unsupported(
                "templax splits keys at dots, and here two leaves have the same name",
                leaf=name,
                hint="save them under keys that differ otherwise",
            )
        self._names.add(name)
        return name

    def _spend(self, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise Unsupported(f"templax reads trees of at most {MAX_DEPTH} levels, got more")
        self._nodes -= 1 + depth // 16
        if self._nodes < 0:
            raise Unsupported("templax reads no pickle that refers to the same objects so often")

    def _spend_text(self, length: int) -> None:
        self._text -= length
        if self._text < 0:
            raise Unsupported("templax reads no pickle that refers to the same text so often")


def _measure(path: Path) -> int:
    return sum(len(key) if type(key) is str else 8 for key in path)
