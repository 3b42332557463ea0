"""Templates as JSON files, which `save_template` writes and `templax check` reads."""

from __future__ import annotations

import json

import msgspec
import numpy as np

from .._catalog.abstract_tree import find_unread_paths
from .._catalog.catalog import Catalog
from .._core.boxes import fits_address_space, format_shape, full_box
from .._core.dtypes import PYTHON_DTYPES, UNNAMED_BYTE, parse_dtype
from .._core.json_text import decode_json
from .._core.names import check_depths, join_path, strip_prefix
from ..errors import CheckpointError, Corrupted, UnknownFormat, Unsupported, UsageError
from .sharding import Sharding, find_sharding_problem
from .template import Target, TargetKind, Template


class _Leaf(msgspec.Struct, omit_defaults=True):
    path: list[str | int]
    shape: list[int]
    dtype: str
    kind: TargetKind = "array"
    key_impl: str | None = None
    host: bool = False
    optional: bool = False
    sharding: Sharding | None = None
    aliases: list[str] = []


class _File(msgspec.Struct):
    templax_template: int
    leaves: list[_Leaf]


VERSION = 1

_MAX_DEVICES = 2**31

_NO_DATA: dict[str, np.dtype] = {
    "string": np.dtype(str),
    "skip": np.dtype("V0"),
    "static": np.dtype("V0"),
}
"""Kinds of leaves without a numeric dtype. The file repeats the kind in place of the dtype."""


def dump_template(template: Template) -> bytes:
    """Encodes a template as JSON: the key path, shape, dtype, kind and sharding of each leaf.

    Raises:
        UsageError: `load_template` would refuse the file, for example a tree that is too deep.
    """
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
            aliases=list(t.aliases),
        )
        for t in template.targets
    ]
    # One leaf per line, because templates are kept under version control and read in diffs.
    try:
        lines = b",\n  ".join(map(msgspec.json.encode, leaves))
    except UnicodeEncodeError as error:
        raise UsageError(f"Expected names that UTF-8 can encode, got {error.object!r}") from error
    body = b"\n  " + lines + b"\n " if leaves else b""
    text = (b'{"templax_template": %d,\n "leaves": [%s]}\n' % (VERSION, body)).decode()
    # Names come from files, and this may be printed on a terminal.
    escaped = (c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)
    data = (text if text.replace("\n", "").isprintable() else "".join(escaped)).encode()
    try:
        load_template(data)
    except CheckpointError as error:
        raise UsageError(f"This template could not be read again: {error}") from error
    return data


def load_template(data: bytes, file: str | None = None) -> Template:
    """Decodes a template file that `dump_template` made.

    The template can be checked against a checkpoint and planned with, but not restored into: the
    file stores neither the structure of the pytree nor devices.

    Args:
        data: The file's bytes.
        file: Its path, for error messages.

    Raises:
        UnknownFormat: The file is not a template, or was written by a later version.
        Corrupted: The shape, dtype or mesh of a leaf is invalid.
        Unsupported: Its key paths are too deep.
    """
    try:
        content = msgspec.json.decode(data, type=_File)
        decode_json(data)  # refuses a key that occurs twice
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise UnknownFormat(
            f"Expected a template file, {error}",
            file=file,
            hint="`templax template CHECKPOINT` and `tx.save_template` write one",
        ) from error
    if content.templax_template != VERSION:
        raise UnknownFormat(
            f"Expected template version {VERSION}, got {content.templax_template}", file=file
        )
    try:
        check_depths([tuple(leaf.path) for leaf in content.leaves])
    except Unsupported as error:
        raise error.locate(file=file) from error
    targets = []
    for leaf in content.leaves:
        path, shape = tuple(leaf.path), tuple(leaf.shape)
        name = join_path(path)
        if any(n < 0 for n in shape):
            what = f"Expected sizes of at least 0, got {format_shape(shape)}"
            raise Corrupted(what, leaf=name, file=file)
        try:
            dtype = _NO_DATA[leaf.kind] if leaf.kind in _NO_DATA else parse_dtype(leaf.dtype)
        except TypeError as error:
            raise Corrupted(
                f"Expected a dtype, got `{leaf.dtype[:80]}`", leaf=name, file=file
            ) from error
        if leaf.kind == "scalar" and dtype not in PYTHON_DTYPES.values():
            what = f"Expected the dtype of a Python number, got `{leaf.dtype}`"
            raise Corrupted(what, leaf=name, file=file)
        if not fits_address_space(shape, max(dtype.itemsize, 1)):
            what = f"Expected a shape that memory can hold, got {format_shape(shape)}"
            raise Corrupted(what, leaf=name, file=file)
        if leaf.kind == "key" and not shape:
            what = "Expected the shape of a key's data, got ()"
            raise Corrupted(what, leaf=name, file=file)
        problem = None
        if leaf.sharding is not None:
            what = _find_impossible(leaf.sharding)
            if what is not None:
                raise Corrupted(what, leaf=name, file=file)
            # The sharding of a key is that of the shape that the user sees.
            problem = find_sharding_problem(
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
                boxes=(full_box(shape),),
                host=leaf.host,
                optional=leaf.optional,
                sharding=leaf.sharding,
                problems=() if problem is None else (problem,),
                aliases=tuple(leaf.aliases),
            )
        )
    return Template(tuple(targets))


def _find_impossible(sharding: Sharding) -> str | None:
    """Why a sharding is impossible on any mesh; None if it is not."""
    if any(n < 1 for n in sharding.mesh.values()):
        return f"Expected mesh axes of at least 1 device, got {sharding.mesh}"
    devices = 1
    for n in sharding.mesh.values():
        devices *= n
        if devices > _MAX_DEVICES:
            return f"Expected a mesh of at most {_MAX_DEVICES} devices, got more"
    axes = [a for dim in sharding.spec for a in ((dim,) if isinstance(dim, str) else dim or ())]
    if len(set(axes)) < len(axes):
        return "Expected each mesh axis in one dimension, got one in several"
    return None


def template_from_catalog(catalog: Catalog, at: str = "") -> Template:
    """Makes the template that a checkpoint matches exactly. It skips what templax does not read.

    Args:
        catalog: The checkpoint.
        at: Only the leaves of this subtree, with their names relative to it.
    """
    targets = []
    for entry in catalog.entries:
        path = strip_prefix(entry.path, at)
        if path is None:
            continue
        python = entry.kind == "scalar" and entry.dtype in PYTHON_DTYPES.values()
        targets.append(
            Target(
                name=join_path(path),
                path=path,
                shape=entry.shape,
                dtype=np.dtype(np.uint8) if entry.dtype == UNNAMED_BYTE else entry.dtype,
                kind="array" if entry.kind == "scalar" and not python else entry.kind,
                key_impl=entry.key_impl,
                boxes=(full_box(entry.shape),),
            )
        )
    for path in find_unread_paths(catalog.unread, [entry.path for entry in catalog.entries]):
        path = strip_prefix(path, at)
        if path is not None:
            targets.append(Target(join_path(path), path, (), np.dtype("V0"), "skip"))
    return Template(tuple(targets))
