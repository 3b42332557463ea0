"""Opens what `torch.save` wrote before PyTorch 1.6: pickles, and after them the storages.

In this order (see `torch/serialization.py`, `_legacy_save`): pickles of a magic number, of a
version, of facts about the machine, of the object, and of a list of the keys of the storages; then,
for each key, the number of elements as 8 bytes, and the elements.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from ..._catalog.catalog import Catalog
from ..._catalog.regions import Region
from ..._core.gc_pause import pause_gc
from ...errors import Corrupted, Unsupported
from ...storage.signatures import MAX_METADATA, is_old_pytorch, read_head, read_root
from ...storage.source import Source, root_size
from .tree import Tree
from .unpickler import Pickle, Truncated, read_pickle
from .zip_file import locate_tensors

_PROTOCOL = 1001

_WINDOW = 1 << 20
"""Bytes that are read first to find the pickles; four times as many if these are longer."""

_EVIDENCE = "pickles of PyTorch before 1.6"


class TorchLegacy:
    """A file of `torch.save` before 1.6, or with `_use_new_zipfile_serialization=False`."""

    name = "torch-legacy"

    def detect(self, source: Source) -> str | None:
        return _EVIDENCE if is_old_pytorch(read_root(source)) else None

    @pause_gc()
    def open(self, source: Source) -> Catalog:
        """Opens a file. Leaves are in the order of the pickle, and keys are split at dots.

        What templax does not read is listed in `unread` of the catalog.

        Raises:
            Corrupted: A pickle is unreadable, or contradicts the storages.
            Unsupported: It holds no tensors, but something else that templax does not read; or
                big-endian tensors. The error names it.
        """
        size = root_size(source)
        pickles = _read_pickles(source, size)
        _check_machine(pickles[1].value, pickles[2].value)
        tree = Tree(pickles[3].stop, size)
        tree.add(pickles[3].value)
        tree.require_tensors()
        for i, pickle in enumerate(pickles):
            pickle.require_listed(tree.refused if i == 3 else ())
        starts = dict(_find_storages(source, size, pickles, tree.refusal))
        return Catalog(
            url=source.url,
            format=self.name,
            evidence=_EVIDENCE,
            entries=tuple(tree.entries),
            source=source,
            locator=functools.partial(locate_tensors, starts),
            metadata=tree.metadata,
            empties=tree.empties,
            unread=tree.not_read,
            regions=functools.partial(_describe_file, pickles[4].stop, starts),
        )


def _describe_file(stop: int, starts: dict[str, int]) -> Iterator[Region]:
    """The bytes that are not of storages: the pickles, and the size in front of each storage."""
    yield Region("", 0, stop, "index", "pickles")
    for start in starts.values():
        yield Region("", start - 8, start, "index", "sizes of storages")
    yield Region("", 0, None, "gap", "in a storage, but in no tensor")


def _read_pickles(source: Source, size: int) -> list[Pickle]:
    """The five pickles at the beginning of a file."""
    window = _WINDOW
    while True:
        data = read_head(source, "", size, window)
        pickles: list[Pickle] = []
        try:
            for _ in range(5):
                pickles.append(read_pickle(data, pickles[-1].stop if pickles else 0))
            return pickles
        except Truncated:
            if len(data) == size:
                raise
            if window >= MAX_METADATA:
                raise Corrupted(f"Expected pickles of at most {MAX_METADATA} bytes") from None
            window *= 4


def _check_machine(protocol: Any, facts: Any) -> None:
    if protocol != _PROTOCOL:
        raise Unsupported(f"templax reads only version {_PROTOCOL} of old PyTorch files")
    if type(facts) is not dict or facts.get("little_endian") is not True:
        raise Unsupported("templax reads no big-endian PyTorch files")


def _find_storages(
    source: Source, size: int, pickles: list[Pickle], refusal: Unsupported | None
) -> Iterator[tuple[str, int]]:
    """Key → where the elements of each storage begin.

    Raises:
        Corrupted: The storages contradict the pickles.
        Unsupported: One is of a kind that templax does not read, and `refusal` says which: nobody
            can say where the next one begins.
    """
    keys, at = pickles[4].value, pickles[4].stop
    storages = dict(pickles[3].storages)
    if type(keys) is not list:
        raise Corrupted("Expected a list of the keys of the storages, got another value")
    for key in keys:
        storage = storages.pop(key, None) if type(key) is str else None
        if storage is None:
            if refusal is not None:
                raise refusal
            got = repr(key[:80]) if type(key) is str else "another value"
            raise Corrupted(f"Expected the key of a storage once, got {got}")
        numel = int.from_bytes(source.read("", at, at + 8), "little")
        itemsize = 1 if storage.dtype is None else storage.dtype.itemsize
        if numel * itemsize != storage.nbytes:
            raise Corrupted(
                f"Expected {storage.nbytes // itemsize} elements of storage `{key[:80]}`, got"
                f" {numel}"
            )
        yield key, at + 8
        at += 8 + storage.nbytes
        if at > size:
            raise Corrupted(f"Expected a file of at least {at} bytes, got {size}")
    if storages:
        raise Corrupted(f"Expected storage `{next(iter(storages))[:80]}` in the file, found none")
    if at != size:
        raise Corrupted(f"Expected a file of {at} bytes, got {size}")
