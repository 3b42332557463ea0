"""Orbax's `metadata.value`: describes a stored leaf without reading it."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..unmapped import make_getattr

__all__ = ["ArrayMetadata", "Metadata", "ScalarMetadata", "StorageMetadata", "StringMetadata"]


@dataclass(frozen=True)
class StorageMetadata:
    """How an array is stored.

    Attributes:
        chunk_shape: The shape of the parts that are read whole.
        write_shape: The shape of the parts that one process wrote; None if it is not recorded, as
            in what templax saved.
    """

    chunk_shape: tuple[int, ...] | None
    write_shape: tuple[int, ...] | None = None


@dataclass(eq=False)
class Metadata:
    """One leaf of a checkpoint.

    Two are equal if they describe equal values; names and directories are not compared.

    Attributes:
        name: The path of the leaf, its keys joined by dots.
        directory: The directory of the item.
    """

    name: str
    directory: Path | None

    def _facts(self) -> tuple[Any, ...]:
        return ()

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._facts() == other._facts()

    __hash__ = None  # pyright: ignore[reportAssignmentType]


@dataclass(eq=False)
class ArrayMetadata(Metadata):
    """An array.

    Attributes:
        shape: In elements. That of the keys for typed PRNG keys.
        sharding: The sharding that the array was saved with; `to_jax_sharding()` makes it for the
            devices of this process. None if none is recorded.
        dtype: As stored. A dtype of JAX for typed PRNG keys.
        storage: How it is stored.
    """

    shape: tuple[int, ...]
    sharding: Any
    dtype: Any
    storage: StorageMetadata | None = None

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return int(np.prod(self.shape))

    def _facts(self) -> tuple[Any, ...]:
        return tuple(self.shape), self.sharding, self.dtype, self.storage


@dataclass(eq=False)
class ScalarMetadata(ArrayMetadata):
    """A Python number.

    Attributes:
        dtype: That of the number: int64, float64 or bool for those of Python.
    """

    shape: tuple[int, ...] = ()
    sharding: Any = None
    dtype: Any = None

    def _facts(self) -> tuple[Any, ...]:
        return (self.dtype,)


@dataclass(eq=False)
class StringMetadata(Metadata):
    """A string."""


_KINDS: dict[str, Literal["scalar", "array", "string"]] = {
    "ScalarMetadata": "scalar",
    "ArrayMetadata": "array",
    "StringMetadata": "string",
}


def leaf_kind(leaf: Any) -> Literal["scalar", "array", "string"] | None:
    """The kind of leaf that an object is the metadata of; None for any other object.

    Orbax's own classes are recognized by their names.
    """
    return _find_kind(type(leaf))


@functools.lru_cache(maxsize=256)  # once for each type, not for each of a million leaves
def _find_kind(kind: type) -> Literal["scalar", "array", "string"] | None:
    return next((_KINDS[c.__name__] for c in kind.__mro__ if c.__name__ in _KINDS), None)


__getattr__ = make_getattr("metadata.value.")
