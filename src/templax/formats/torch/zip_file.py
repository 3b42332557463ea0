"""Opens what `torch.save` writes since PyTorch 1.6: a zip of a pickle and of storages.

The archive has one directory. In it, `data.pkl` is the pickle, and `data/KEY` the bytes of the
storage `KEY`, stored as they are (see `torch/serialization.py`, `_save`).
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from ..._catalog.catalog import Catalog
from ..._catalog.entry import Chunk, LeafEntry
from ..._catalog.regions import Region
from ..._core.gc_pause import pause_gc
from ...errors import Corrupted, Unsupported
from ...storage.signatures import (
    MAX_METADATA,
    PYTORCH,
    ZIP,
    is_old_pytorch,
    read_root,
    recognise_root,
)
from ...storage.source import Source, root_size
from ..zip_members import (
    Member,
    check_members,
    describe_archive,
    list_members,
    list_names,
    refuse_method,
)
from .extents import Pieces, cover_tensor
from .objects import Tensor
from .tree import Tree
from .unpickler import Pickle, read_pickle

_PICKLE = "data.pkl"

SAVE_AGAIN = "`torch.save({}, new_path)` writes a file that templax reads"


class TorchZip:
    """A file of `torch.save`."""

    name = "torch"

    def detect(self, source: Source) -> str | None:
        known = recognise_root(source)
        if known == ZIP:  # TorchScript, and `zip -r` of what was unpacked, begin with others
            found = _holds_pickle(list_names(source))
        else:
            found = known == PYTORCH and not is_old_pytorch(read_root(source))
        return "a zip with a pickle of PyTorch" if found else None

    @pause_gc()
    def open(self, source: Source) -> Catalog:
        """Opens a file. Leaves are in the order of the pickle, and keys are split at dots.

        What templax does not read is listed in `unread` of the catalog.

        Raises:
            Corrupted: The archive or its pickle is unreadable, or contradicts itself.
            Unsupported: It holds no tensors, but something else that templax does not read;
                big-endian tensors, or a program of TorchScript. The error names it.
        """
        archive = read_archive(source)
        tree = Tree(archive.nbytes, root_size(source))
        tree.add(archive.pickle.value)
        tree.require_tensors()
        archive.pickle.require_listed(tree.refused)
        names = {
            archive.starts[entry.handle.storage.key]: entry.name
            for entry in reversed(tree.entries)
            if isinstance(entry.handle, Tensor) and entry.nbytes
        }
        # `torch.serialization.set_crc32_options(False)` leaves 0 in place of every checksum.
        summed = [
            member._replace(name=names.get(member.start, ""))
            for member in archive.members
            if member.crc32
        ]
        return Catalog(
            url=source.url,
            format=self.name,
            evidence="a zip with a pickle of PyTorch",
            entries=tuple(tree.entries),
            source=source,
            locator=functools.partial(locate_tensors, archive.starts),
            metadata=tree.metadata,
            empties=tree.empties,
            unread=tree.not_read,
            audit=functools.partial(check_members, source, summed),
            audits_values=all(member.crc32 for member in archive.members if member.nbytes),
            regions=functools.partial(_describe_file, source, archive),
        )


def _holds_pickle(names: Collection[str]) -> bool:
    """Whether the directory of an archive has the pickle that PyTorch writes, and its version."""
    roots = {name.removesuffix(_PICKLE) for name in names if name.partition("/")[2] == _PICKLE}
    return any(f"{root}version" in names for root in roots)


def _describe_file(source: Source, archive: Archive) -> Iterator[Region]:
    """The bytes that hold no values of tensors."""
    yield from describe_archive(source)
    storages = set(archive.starts.values())
    for member in archive.members:
        start, stop = member.start, member.stop
        if member.start in storages and member.nbytes:
            yield Region("", start, stop, "gap", "in a storage, but in no tensor")
        elif "/data/" in member.name:
            yield Region("", start, stop, "gap", "a storage that the pickle does not name")
        else:
            yield Region("", start, stop, "index", "pickle and other records of PyTorch")


class Archive(NamedTuple):
    """A file of `torch.save`, read except for its storages.

    Attributes:
        pickle: What it holds.
        nbytes: Size of the pickle.
        starts: Key of a storage → where its bytes begin.
        members: The members of the zip.
    """

    pickle: Pickle
    nbytes: int
    starts: dict[str, int]
    members: list[Member]


_MAX_KEPT = 1 << 12
"""Most bytes of a pickle that is kept: enough for one tensor."""


def read_archive(source: Source, known: dict[bytes, Pickle] | None = None) -> Archive:
    """Reads the directory and the pickle of the archive at the root of a source.

    Args:
        source: The archive is its root.
        known: Small pickles that were read, by their bytes: tensors of one shape have equal ones.
            New ones are added.
    """
    members = list_members(source)
    for member in members:  # PyTorch can't read them either
        refusal = member.refusal
        if refusal is None and member.method not in ("", "deflate"):
            refusal = refuse_method(member.method)
        if refusal is not None:
            raise refusal.locate(leaf=member.name)
    found = {member.name: member for member in members}
    pickles = [m for m in members if m.name.partition("/")[2] == _PICKLE]
    if len(pickles) != 1:
        raise Corrupted(f"Expected one `{_PICKLE}` in the archive, got {len(pickles)}")
    root = pickles[0].name.removesuffix(_PICKLE)
    if f"{root}constants.pkl" in found or any(name.startswith(f"{root}code/") for name in found):
        raise Unsupported(
            "templax reads no programs of TorchScript",
            hint=SAVE_AGAIN.format("torch.jit.load(path).state_dict()"),
        )
    order = found.get(f"{root}byteorder")
    if order is not None and _read_member(source, order, 16) != b"little":
        raise Unsupported("templax reads no big-endian PyTorch files")
    data = _read_member(source, pickles[0], MAX_METADATA)
    pickle = None if known is None else known.get(data)
    if pickle is None:
        pickle = read_pickle(data)
        if known is not None and len(data) <= _MAX_KEPT:
            known[data] = pickle
    starts: dict[str, int] = {}
    for key, storage in pickle.storages.items():
        member = found.get(f"{root}data/{key}")
        if member is None:
            raise Corrupted(f"Expected the storage `{key[:80]}` in the archive, found none")
        if member.method:
            raise Unsupported(
                f"templax reads no deflated storages, got `{key[:80]}`",
                hint=SAVE_AGAIN.format("torch.load(path)"),
            )
        if member.nbytes != storage.nbytes:
            raise Corrupted(
                f"Expected {storage.nbytes} bytes of storage `{key[:80]}`, got {member.nbytes}"
            )
        starts[key] = member.start
    return Archive(pickle, len(data), starts, members)


def _read_member(source: Source, member: Member, maximum: int) -> bytes:
    if member.method:
        raise Unsupported(
            "templax reads no deflated PyTorch files",
            leaf=member.name,
            hint=SAVE_AGAIN.format("torch.load(path)"),
        )
    if member.nbytes > maximum:
        raise Corrupted(
            f"Expected at most {maximum} bytes of `{member.name[:80]}`, got {member.nbytes}"
        )
    return bytes(source.read("", member.start, member.stop))


@pause_gc()
def locate_tensors(
    starts: dict[str, int],
    entries: Iterable[LeafEntry],
    damages: list[Corrupted] | None = None,
) -> dict[str, tuple[Chunk, ...]]:
    """The chunks of leaves, given where the storages begin."""
    pieces = Pieces()
    located: dict[str, tuple[Chunk, ...]] = {}
    for entry in entries:
        handle = entry.handle
        if isinstance(handle, Tensor):
            try:
                located[entry.name] = pieces.locate(handle, "", starts[handle.storage.key])
            except Unsupported as error:
                if damages is None:
                    raise error.locate(leaf=entry.name) from None
                start = starts[handle.storage.key]
                located[entry.name] = (cover_tensor(handle, "", start),)
        else:
            located[entry.name] = handle or ()
    return located
