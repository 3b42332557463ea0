"""Opens files that `flax.serialization.to_bytes` and `flax.training.checkpoints` wrote."""

from __future__ import annotations

import re

from ..._catalog.catalog import Catalog, explain_refusal
from ..._core.gc_pause import pause_gc
from ..._core.names import Path, join_path
from ...errors import Unsupported
from ...storage.source import Source, root_size
from ..file_names import ARRAYS
from .msgpack import PLACEHOLDER, read_msgpack
from .scan import holds_flax_arrays, read_between_arrays
from .specs import ARRAY_PLACEHOLDER, FORMAT, Spec, check_place
from .state import make_catalog

_EVIDENCE = "msgpack with arrays of Flax"

_MAX_LEAVES, _LEAF_BYTES = 1 << 15, 64
"""Maximum number of leaves in a file: a fixed allowance, and one more per this many bytes. An array
takes about 20, apart from its name and its values."""

_STEP = re.compile(r"checkpoint_([0-9]{1,18})")

_TEMPORARY = "checkpoint_tmp"
"""The file that `flax.training.checkpoints` writes, and renames when it is whole."""


class FlaxMsgpack:
    """A file with the state dict of a tree in msgpack, arrays as extensions of Flax's own.

    Arrays are read lazily: opening reads only what is between them. From stores that do not map
    files, arrays of less than 64 KiB may be read as well, and at most the whole file. Arrays that
    the file only refers to are read from the directories beside it.
    """

    name = "flax"

    def detect(self, source: Source) -> str | None:
        return _EVIDENCE if holds_flax_arrays(source, "", root_size(source)) else None

    @pause_gc()
    def open(self, source: Source) -> Catalog:
        """Opens a file. Leaves are in the order of the file; a list has the names `0`, `1`, ...

        Python's numbers are scalars of 64 bits, None and empty dicts are recorded without a leaf,
        and raw bytes are an array of uint8. Values and arrays of a dtype that templax does not read
        are listed in `unread` of the catalog.

        Raises:
            Corrupted: The msgpack is unreadable, or contradicts itself.
            Unsupported: An array that Orbax stored elsewhere, or nothing that templax reads; the
                error names it.
        """
        size = root_size(source)
        maximum = max_leaves(size)
        unread: dict[Path, Unsupported] = {}
        leaves = read_msgpack(_read(source, size), keep=False, unread=unread)
        if len(leaves) + len(unread) > maximum:
            count = len(leaves) + len(unread)
            what = f"templax reads {maximum} leaves in {size} bytes, got {count}"
            raise Unsupported(what)
        if unread and not leaves:
            path, error = next(iter(unread.items()))
            raise error.locate(leaf=join_path(path))
        base = _basename(source)
        outside = f"{base}{ARRAYS}"
        for path, leaf in leaves.items():
            if isinstance(leaf, str):
                leaves[path] = _resolve(leaf, join_path(path), outside)
        step = _STEP.fullmatch(base)
        unfinished = f"`{base}` is the temporary file of a save of Flax that never finished"
        specs = [leaf for leaf in leaves.values() if isinstance(leaf, Spec)]
        from_t5x = any(spec.shape is not None for spec in specs)
        return make_catalog(
            source.at("..") if specs else source,
            base if specs else "",
            leaves,
            url=source.url,
            format=FORMAT if from_t5x else self.name,
            evidence="its TensorStore specs" if from_t5x else _EVIDENCE,
            metadata={} if step is None else {"step": int(step[1])},
            unread={join_path(path): explain_refusal(error) for path, error in unread.items()},
            uncommitted=unfinished if base == _TEMPORARY else None,
        )


def max_leaves(size: int) -> int:
    """Most leaves that templax reads in a file of `size` bytes."""
    return _MAX_LEAVES + size // _LEAF_BYTES


def _resolve(leaf: str, name: str, directory: str) -> str | Spec:
    """A string, or a reference if it stands for an array in `directory`.

    Raises:
        Corrupted: The array would be outside of the directory.
        Unsupported: It is one of Orbax, which is in the directory of the file.
    """
    if leaf.startswith(PLACEHOLDER):
        what = "Expected the array in the file, Orbax stored it in the directory of the file"
        raise Unsupported(f"{what}: `{leaf[:200]}`", leaf=name)
    if not leaf.startswith(ARRAY_PLACEHOLDER):
        return leaf
    inside = leaf.removeprefix(ARRAY_PLACEHOLDER)  # empty if the array is the whole tree
    return Spec(check_place(f"{directory}/{inside}" if inside else directory, name))


def _basename(source: Source) -> str:
    return source.url.rstrip("/").rpartition("/")[2]


def _read(source: Source, size: int) -> memoryview:
    data = source.view("", 0, size) if source.maps and size else None
    return read_between_arrays(source, size) if data is None else data
