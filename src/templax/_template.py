"""What is wanted: one target per template leaf. No JAX here, so a template can come from JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import numpy as np

from ._boxes import Box, Shape, whole
from ._catalog import Catalog
from ._dtypes import parse
from ._errors import Damaged, Mismatch, UnknownFormat
from ._names import Path, below, join

TargetKind = Literal["array", "scalar", "string", "key", "skip", "static"]


class Target(msgspec.Struct, frozen=True, gc=False):
    """One leaf of a template.

    Attributes:
        name, path: As of a `LeafEntry`.
        shape: In elements. Of a typed PRNG key: of its uint32 key data.
        dtype: Wanted. Of a Python number the widest of its kind, of a string `np.dtype(str)`.
        kind: "scalar" is a Python number; "skip" is `...`; "static" is no data (a function, say):
            both come back as they are.
        key_impl: Of a key, the PRNG implementation.
        boxes: The distinct boxes of the leaf that this process must hold.
        host: The result stays a numpy array or Python value.
        transient: The result is a copy of the host memory it is read into: it is on an accelerator.
        concrete: The template leaf holds a value, which `missing="keep"` can keep.
        optional: A Python value of an Equinox module: kept if the checkpoint lacks it, since
            Equinox users save arrays only.
        problems: Why the template itself can't be met: a sharding that does not divide, or a dtype
            that no `jax.Array` holds (without what was found: the match knows it).
        sharding: For people and JSON: mesh axes and the axes of each dimension.
        placement: Opaque, for `_place`.
    """

    name: str
    path: Path
    shape: Shape
    dtype: np.dtype
    kind: TargetKind = "array"
    key_impl: str | None = None
    boxes: tuple[Box, ...] = ()
    host: bool = False
    concrete: bool = False
    optional: bool = False
    problems: tuple[Mismatch, ...] = ()
    sharding: Sharding | None = None
    placement: Any = None
    transient: bool = False

    @property
    def has_data(self) -> bool:
        return self.kind not in ("skip", "static")

    @property
    def dtype_name(self) -> str:
        if self.kind == "key":
            return f"key<{self.key_impl}>"
        if self.kind == "scalar":
            return PYTHON_NAMES[self.dtype.kind]
        return "str" if self.kind == "string" else self.dtype.name

    @property
    def user_shape(self) -> Shape:
        return self.shape[:-1] if self.kind == "key" else self.shape


PYTHON_NAMES = {"i": "int", "f": "float", "b": "bool", "c": "complex"}
"""Python's number types by numpy kind."""

PYTHON_DTYPES = {
    int: np.dtype("i8"),
    float: np.dtype("f8"),
    bool: np.dtype("?"),
    complex: np.dtype("c16"),
}


@dataclass(frozen=True, slots=True)
class Template:
    """What is wanted: every target in the order of the pytree, and the tree for `_place`."""

    targets: tuple[Target, ...]
    treedef: Any = field(default=None, repr=False, compare=False)


class Sharding(msgspec.Struct, frozen=True):
    """A `NamedSharding` as data.

    Attributes:
        mesh: Axis name → size, in mesh order.
        spec: Per dimension: None, an axis name, or several.
        memory_kind: As JAX names it, or None for the device's default.
    """

    mesh: dict[str, int]
    spec: tuple[str | tuple[str, ...] | None, ...]
    memory_kind: str | None = None

    def __str__(self) -> str:
        parts = [repr(tuple(s) if isinstance(s, (list, tuple)) else s) for s in self.spec]
        return f"P({', '.join(parts)})"


def sharding_problem(name: str, shape: Shape, sharding: Sharding) -> Mismatch | None:
    """Why a `NamedSharding` can't hold an array of `shape`, or None if it can."""
    if len(sharding.spec) > len(shape):
        return Mismatch(
            "sharding",
            name,
            f"at most {len(shape)} dimensions in its sharding",
            f"sharding {sharding}",
        )
    for i, (axes, n) in enumerate(zip(sharding.spec, shape, strict=False)):
        names = [] if axes is None else [axes] if isinstance(axes, str) else list(axes)
        parts = math.prod(sharding.mesh.get(axis, 1) for axis in names)
        if n % parts:
            axis = ", ".join(f"`{a}`" for a in names)
            plural = "axis" if len(names) == 1 else "axes"
            return Mismatch(
                "sharding",
                name,
                f"dimension {i} divisible by {parts} (mesh {plural} {axis})",
                f"{n}, sharding {sharding}",
            )
    return None


# JSON: what `templax template` and `save_template` write, `templax check` reads.


class _Leaf(msgspec.Struct, omit_defaults=True):
    path: list[str | int]
    shape: list[int]
    dtype: str
    kind: TargetKind = "array"
    key_impl: str | None = None
    host: bool = False
    optional: bool = False
    sharding: Sharding | None = None


class _File(msgspec.Struct):
    templax_template: int
    leaves: list[_Leaf]


VERSION = 1

_NO_DATA: dict[str, np.dtype] = {
    "string": np.dtype(str),
    "skip": np.dtype("V0"),
    "static": np.dtype("V0"),
}
"""Kinds of leaves whose dtype says nothing."""


def dump(template: Template) -> bytes:
    """A template as JSON: per leaf its key path, shape, dtype, kind and sharding."""
    leaves = [
        _Leaf(
            path=list(t.path),
            shape=list(t.shape),
            dtype=t.kind if t.kind in _NO_DATA else t.dtype.name,
            kind=t.kind,
            key_impl=t.key_impl,
            host=t.host,
            optional=t.optional,
            sharding=t.sharding,
        )
        for t in template.targets
    ]
    # One leaf per line: a template is kept under version control and read in diffs.
    lines = b",\n  ".join(map(msgspec.json.encode, leaves))
    body = b"\n  " + lines + b"\n " if leaves else b""
    return b'{"templax_template": %d,\n "leaves": [%s]}\n' % (VERSION, body)


def load(data: bytes, file: str | None = None) -> Template:
    """The template in a JSON file that `dump` made. It can be checked, not restored into.

    Args:
        data: The file's bytes.
        file: Its path, for errors.

    Raises:
        UnknownFormat: It is no template file, or one of a later version.
        Damaged: A leaf's dtype or shape is impossible.
    """
    try:
        content = msgspec.json.decode(data, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnknownFormat(
            f"Expected a template file, {error}",
            file=file,
            hint="`templax template CHECKPOINT` and `tx.save_template` write one",
        ) from error
    if content.templax_template != VERSION:
        raise UnknownFormat(
            f"Expected template version {VERSION}, got {content.templax_template}", file=file
        )
    targets = []
    for leaf in content.leaves:
        path, shape = tuple(leaf.path), tuple(leaf.shape)
        name = join(path)
        if any(n < 0 for n in shape):
            raise Damaged(f"Expected sizes of at least 0, got {shape}", leaf=name, file=file)
        try:
            dtype = _NO_DATA[leaf.kind] if leaf.kind in _NO_DATA else parse(leaf.dtype)
        except TypeError as error:
            raise Damaged(f"Expected a dtype, got `{leaf.dtype}`", leaf=name, file=file) from error
        if leaf.kind == "scalar" and dtype not in PYTHON_DTYPES.values():
            what = f"Expected the dtype of a Python number, got `{leaf.dtype}`"
            raise Damaged(what, leaf=name, file=file)
        problem = None
        if leaf.sharding is not None:
            if any(n < 1 for n in leaf.sharding.mesh.values()):
                what = f"Expected mesh axes of at least 1 device, got {leaf.sharding.mesh}"
                raise Damaged(what, leaf=name, file=file)
            # Of a key the sharding is that of its user's shape.
            problem = sharding_problem(
                name, shape[:-1] if leaf.kind == "key" else shape, leaf.sharding
            )
        targets.append(
            Target(
                name=name,
                path=path,
                shape=shape,
                dtype=dtype,
                kind=leaf.kind,
                key_impl=leaf.key_impl,
                boxes=(whole(shape),),
                host=leaf.host,
                optional=leaf.optional,
                sharding=leaf.sharding,
                problems=() if problem is None else (problem,),
            )
        )
    return Template(tuple(targets))


def from_catalog(catalog: Catalog, at: str = "") -> Template:
    """The template that a checkpoint fits exactly: its own leaves, or those under `at`."""
    targets = []
    for entry in catalog.entries:
        path = below(entry.path, at)
        if path is None:
            continue
        python = entry.kind == "scalar" and entry.dtype in PYTHON_DTYPES.values()
        targets.append(
            Target(
                name=join(path),
                path=path,
                shape=entry.shape,
                dtype=entry.dtype,
                kind="array" if entry.kind == "scalar" and not python else entry.kind,
                key_impl=entry.key_impl,
                boxes=(whole(entry.shape),),
            )
        )
    return Template(tuple(targets))
