"""Opens files that `flax.serialization.to_bytes` and `flax.training.checkpoints` wrote."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

import numpy as np

from ..._catalog.catalog import Catalog
from ..._catalog.entry import Chunk, LeafEntry
from ..._catalog.regions import Region
from ..._core.gc_pause import pause_gc
from ..._core.names import Path, join_path
from ...errors import CheckpointError, Corrupted, Unsupported
from ...storage.source import Source, root_size
from .msgpack import PLACEHOLDER, Empty, Leaf, Value, locate_value, make_specs_error, read_msgpack
from .scan import holds_flax_arrays, read_between_arrays

_AROUND = Region("", 0, None, "index", "msgpack around the arrays")

_EVIDENCE = "msgpack with arrays of Flax"

_MAX_LEAVES, _LEAF_BYTES = 1 << 13, 64
"""Maximum number of leaves in a file: a fixed allowance, and one more per this many bytes. An array
takes about 20, apart from its name and its values."""

_STEP = re.compile(r"checkpoint_([0-9]{1,18})")

_TEMPORARY = "checkpoint_tmp"
"""The file that `flax.training.checkpoints` writes, and renames when it is whole."""

_ARRAYS = "_gda"
"""What the name of a directory ends in that holds the arrays of several processes."""

_ARRAY_PLACEHOLDER = "//GDAPlaceholder:"
"""What a string begins with that stands for one of them."""


class FlaxMsgpack:
    """A file with the state dict of a tree in msgpack, arrays as extensions of Flax's own.

    Arrays are read lazily: opening reads only what is between them. From stores that do not map
    files, arrays of less than 64 KiB may be read as well, and at most the whole file.
    """

    name = "flax"

    def detect(self, source: Source) -> str | None:
        return _EVIDENCE if holds_flax_arrays(source, "", root_size(source)) else None

    @pause_gc()
    def open(self, source: Source) -> Catalog:
        """Opens a file. Leaves are in the order of the file; a list has the names `0`, `1`, ...

        Python's numbers are scalars of 64 bits, None and empty dicts are recorded without a leaf,
        and raw bytes are an array of uint8.

        Raises:
            Corrupted: The msgpack is unreadable, or contradicts itself.
            Unsupported: A value or dtype that templax does not read, or an array that is not in
                the file; the error names it.
        """
        size = root_size(source)
        maximum = _MAX_LEAVES + size // _LEAF_BYTES
        leaves = read_msgpack(_read(source, size), keep=False)
        if len(leaves) > maximum:
            what = f"templax reads {maximum} leaves in {size} bytes, got {len(leaves)}"
            raise Unsupported(what)
        entries: list[LeafEntry] = []
        empties: dict[Path, str] = {}
        for path, leaf in leaves.items():
            if isinstance(leaf, Empty):
                empties[path] = leaf.name
                continue
            name = join_path(path)
            if isinstance(leaf, Value):
                entry = LeafEntry(name, path, leaf.shape, leaf.dtype, leaf.kind, handle=leaf)
            else:
                outside = _find_outside(source, path, leaf)
                if outside is not None:
                    raise outside
                entry = LeafEntry(name, path, (), np.dtype(str), "string", value=leaf)
            entries.append(entry)
        base = _basename(source)
        step = _STEP.fullmatch(base)
        unfinished = f"`{base}` is the temporary file of a save of Flax that never finished"
        return Catalog(
            url=source.url,
            format=self.name,
            evidence=_EVIDENCE,
            entries=tuple(entries),
            source=source,
            locator=_locate,
            metadata={} if step is None else {"step": int(step[1])},
            empties=empties,
            uncommitted=unfinished if base == _TEMPORARY else None,
            regions=functools.partial(iter, (_AROUND,)),
        )


class FlaxArrays:
    """A directory of the arrays that several processes saved beside a Flax msgpack file.

    `flax.training.checkpoints.save_checkpoint_multiprocess` writes it. Alone, it is a part of a
    tree, which would look like a tree of its own.
    """

    name = "flax"

    def detect(self, source: Source) -> str | None:
        base = _basename(source)
        main = base.removesuffix(_ARRAYS)
        if main in ("", base):
            return None
        info, beside = source.stat(""), source.at("..").stat(main)
        is_part = info is not None and info.is_dir and beside is not None and not beside.is_dir
        return f"the file `{main}` beside it" if is_part else None

    def open(self, source: Source) -> Catalog:
        main = _basename(source).removesuffix(_ARRAYS)
        raise _unread_arrays_error(f"{source.url} holds arrays of the file `{main}` beside it")


def _find_outside(source: Source, path: Path, leaf: Leaf) -> CheckpointError | None:
    """The error for a string that stands for an array outside the file; None for other strings."""
    specs = make_specs_error(path, leaf, source.at("..").url)
    if specs is not None:
        return specs
    text, leaf_name = str(leaf), join_path(path)
    if text.startswith(PLACEHOLDER):
        what = "Expected the array in the file, Orbax stored it in the directory of the file"
        return Unsupported(f"{what}: `{text[:200]}`", leaf=leaf_name)
    if text.startswith(_ARRAY_PLACEHOLDER):
        directory = f"{_basename(source)}{_ARRAYS}"
        what = f"Expected the array in the file, it is in the directory `{directory}`"
        return _unread_arrays_error(what, leaf_name)
    return None


def _unread_arrays_error(what: str, leaf: str | None = None) -> Unsupported:
    return Unsupported(
        f"{what}, as `flax.training.checkpoints` saves the arrays of several processes, which"
        " templax does not read",
        leaf=leaf,
    )


@pause_gc()
def _locate(
    entries: Iterable[LeafEntry], damages: list[Corrupted] | None = None
) -> dict[str, tuple[Chunk, ...]]:
    return {
        entry.name: locate_value(entry.handle, "", inline=False) if entry.handle is not None else ()
        for entry in entries
    }


def _basename(source: Source) -> str:
    return source.url.rstrip("/").rpartition("/")[2]


def _read(source: Source, size: int) -> memoryview:
    data = source.view("", 0, size) if source.maps and size else None
    return read_between_arrays(source, size) if data is None else data
