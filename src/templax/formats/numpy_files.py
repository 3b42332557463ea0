"""Opens arrays in numpy's own formats: `.npy`, and archives of them (`.npz`).

An archive is a zip of `.npy` files, each stored as it is (`np.savez`) or compressed: by deflate
(`np.savez_compressed`), or by bzip2 or lzma, which numpy reads, too. Pickled objects are refused:
nothing is ever loaded by `pickle`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence

from .._catalog.catalog import Catalog, explain_refusal
from .._catalog.entry import Chunk, Extent, LeafEntry
from .._catalog.regions import Region
from .._catalog.strided import divide_chunk
from .._codecs.npy_members import (
    MAX_NPY_HEAD,
    NPY_MAGIC,
    STORED_HEAD,
    MemberStream,
    npy_head_size,
    read_npy_head,
)
from .._core.boxes import full_box
from .._core.gc_pause import pause_gc
from .._core.names import Path, join_path
from ..errors import CheckpointError, Corrupted, Unsupported
from ..storage.signatures import NPY, NPZ, ZIP, recognise_root
from ..storage.source import Source, open_ranges, root_size
from .npz_sums import combine_sums, parse_sums
from .numpy_header import HEAD, ArrayHeader, parse_header
from .zip_members import (
    Member,
    ReadRange,
    check_members,
    describe_archive,
    list_members,
    list_names,
)

_NOT_READ = "members that templax does not read"

_MIN_DIVIDED, _RUN_BYTES = 4 << 20, 128
"""An array in F order of more than `_MIN_DIVIDED` bytes is read and transposed in pieces of that
size, which takes no memory for a second copy. Its columns must be so short that a piece fills at
least `_RUN_BYTES` of each row: writing less at a time is slower than transposing all at once."""


class NumpyArray:
    """A `.npy` file: one array, which is the whole tree."""

    name = "npy"

    def detect(self, source: Source) -> str | None:
        known = recognise_root(source)
        return "the header of an array" if known == NPY else None

    def open(self, source: Source) -> Catalog:
        """Opens a file. The name of its only leaf is empty: the array is the whole tree.

        Raises:
            Corrupted: The header is unreadable, or the file has another size than it says.
            Unsupported: The values are not numbers, or of a dtype that templax does not read.
        """
        size = root_size(source)
        header = read_header(open_ranges(source, "", size), 0, size)
        if header.stop != size:
            raise Corrupted(
                f"Expected a file of {header.stop} bytes, with an array of"
                f" {header.dtype.name}{header.shape}, got {size}"
            )
        handle = (header.start, header.stop, header.order, header.codecs, 0, ())
        entry = LeafEntry("", (), header.shape, header.dtype, handle=handle)
        return Catalog(
            url=source.url,
            format=self.name,
            evidence="the header of an array",
            entries=(entry,),
            source=source,
            locator=locate_arrays,
            regions=functools.partial(iter, (Region("", 0, header.start, "index", "header"),)),
        )


def read_header(read: ReadRange, start: int, stop: int) -> ArrayHeader:
    """Reads the header of the array that begins at byte `start` of the file and ends by `stop`.

    Raises:
        Corrupted, Unsupported: See `parse_header`.
    """
    head = bytes(read(start, min(stop, start + HEAD)))
    if npy_head_size(head) > len(head):
        head = bytes(read(start, min(stop, start + MAX_NPY_HEAD)))
    return parse_header(head)


class NumpyArchive:
    """A `.npz` file: arrays by name. `split_names` says how a name becomes a key path."""

    name = "npz"

    def detect(self, source: Source) -> str | None:
        known = recognise_root(source)
        if known == ZIP:  # the first member may be a directory
            names = list_names(source)
            found = bool(names) and all(name.endswith(".npy") for name in names)
        else:
            found = known == NPZ
        return "a zip of `.npy` files" if found else None

    @pause_gc()
    def open(self, source: Source) -> Catalog:
        """Opens an archive. Leaves are in the order of its directory.

        Members that are not arrays of numbers, or that can't be decoded, are listed in `unread` of
        the catalog.

        Raises:
            Corrupted: The archive or a header is unreadable, or contradicts itself.
            Unsupported: No member is an array of numbers that is read; the error names the first.
        """
        members = list_members(source)
        paths = _split_members(members)
        read = open_ranges(source, "", root_size(source))
        entries, unread = _read_members(read, members, paths)
        return Catalog(
            url=source.url,
            format=self.name,
            evidence="a zip of `.npy` files",
            entries=tuple(entries),
            source=source,
            locator=locate_arrays,
            unread=unread,
            audit=functools.partial(_check_members, source, members, paths),
            audits_values=True,
            fingerprints=_find_fingerprints(entries),
            regions=functools.partial(_describe_archive, source, unread),
        )


def _check_members(
    source: Source, members: Sequence[Member], paths: Sequence[Path]
) -> Iterator[Corrupted]:
    """Compares the checksum of each member, named as a leaf; yields the damage."""
    named = zip(members, paths, strict=True)
    yield from check_members(source, [m._replace(name=join_path(path)) for m, path in named])


def _find_fingerprints(entries: Sequence[LeafEntry]) -> Callable[[], Mapping[str, int]] | None:
    """What gives the crc32c of each array, if the archive has the checksums of all."""
    if not all(entry.handle[-1] for entry in entries if entry.nbytes):
        return None
    return functools.partial(combine_sums, entries)


def _describe_archive(source: Source, unread: Container[str]) -> Iterator[Region]:
    """The bytes that hold no values: between members, and the headers of the arrays in them."""
    yield from describe_archive(source)
    members = list_members(source)
    for member, path in zip(members, _split_members(members), strict=True):
        if join_path(path) in unread:
            yield Region("", member.start, member.stop, "gap", _NOT_READ)
        else:
            yield Region("", member.start, member.stop, "index", "headers of arrays")


def split_names(names: Sequence[str]) -> list[Path]:
    """The key paths of the arrays in an archive.

    A name is split where it has a `/`, or, if it has none, where it has a `.`. Haiku keeps `/` in
    the names of modules and has only two levels, modules and parameters, so names in its spelling
    are split once: at `//`, as AlphaFold writes it, or at the last `/` if there is a `~` between
    two `/` in any name of the archive.

    >>> split_names(["encoder/layer_0/kernel", "opt.mu"])
    [('encoder', 'layer_0', 'kernel'), ('opt', 'mu')]
    >>> split_names(["mlp/~/linear_0/w", "head/linear/b"])
    [('mlp/~/linear_0', 'w'), ('head/linear', 'b')]
    >>> split_names(["evoformer/attention//query_w"])
    [('evoformer/attention', 'query_w')]
    """
    haiku = any("/~/" in f"/{name}" for name in names)

    def split(name: str) -> Path:
        if "//" in name:
            return tuple(name.rsplit("//", 1))
        if "/" in name:
            return tuple(name.rsplit("/", 1) if haiku else name.split("/"))
        return tuple(name.split("."))

    return [split(name) for name in names]


def _split_members(members: Sequence[Member]) -> list[Path]:
    names = [member.name.removesuffix(".npy") for member in members]
    seen = set[str]()
    for name in names:
        if name in seen:
            raise Corrupted("Expected one array of a name, got two", leaf=name)
        seen.add(name)
    paths = split_names(names)
    if any("." in name for name in names):
        named: dict[str, str] = {}
        for name, path in zip(names, paths, strict=True):
            other = named.setdefault(join_path(path), name)
            if other != name:
                raise Unsupported(
                    f"templax splits names at `/` and dots, and then `{other[:80]}` and"
                    f" `{name[:80]}` are the same",
                    leaf=join_path(path),
                    hint="save one of the arrays under another name",
                )
    return paths


def _read_members(
    read: ReadRange, members: Sequence[Member], paths: Sequence[Path]
) -> tuple[list[LeafEntry], dict[str, str]]:
    """The leaves, and the names of the members that templax does not read: name → why."""
    entries: list[LeafEntry] = []
    refused: dict[str, Unsupported] = {}
    for member, path in zip(members, paths, strict=True):
        try:
            entries.append(_read_member(read, member, path))
        except Unsupported as error:
            refused[join_path(path)] = error
    if refused and not entries:
        raise next(iter(refused.values()))
    return entries, {name: explain_refusal(error) for name, error in refused.items()}


def _read_member(read: ReadRange, member: Member, path: Path) -> LeafEntry:
    name = join_path(path)
    try:
        header = _read_member_header(read, member)
        if header.stop != member.nbytes:
            raise Corrupted(
                f"Expected {member.nbytes - header.start} bytes, got"
                f" {header.dtype.name}{header.shape}"
            )
    except CheckpointError as error:
        raise error.locate(leaf=name, start=member.start, stop=member.stop) from error
    start = member.start if member.method else member.start + header.start
    sums = None if member.method else parse_sums(member.extra, member.crc32, header.nbytes)
    codecs = (f"npy-{member.method}", *header.codecs) if member.method else header.codecs
    handle = (start, member.stop, header.order, codecs, *(sums or (0, ())))
    return LeafEntry(name, path, header.shape, header.dtype, handle=handle)


def _read_member_header(read: ReadRange, member: Member) -> ArrayHeader:
    if member.refusal is not None:
        raise member.refusal
    if not member.name.endswith(".npy") and not _begins_array(read, member):
        raise Unsupported("templax reads archives of arrays, got a file of another kind in one")
    if not member.method:
        return read_header(read, member.start, member.stop)
    return parse_header(read_npy_head(_open_head(read, member)))


def _begins_array(read: ReadRange, member: Member) -> bool:
    if member.method:
        head = _open_head(read, member).read(len(NPY_MAGIC))
    else:
        head = bytes(read(member.start, min(member.stop, member.start + len(NPY_MAGIC))))
    return head == NPY_MAGIC


def _open_head(read: ReadRange, member: Member) -> MemberStream:
    stop = min(member.stop, member.start + STORED_HEAD[member.method])
    return MemberStream(read(member.start, stop), member.method, MAX_NPY_HEAD)


@pause_gc()
def locate_arrays(
    entries: Iterable[LeafEntry], damages: list[Corrupted] | None = None
) -> dict[str, tuple[Chunk, ...]]:
    """Locates arrays.

    Their handle is (start, stop, order, codecs, bytes per checksum, checksums).
    """
    located: dict[str, tuple[Chunk, ...]] = {}
    for entry in entries:
        start, stop, order, codecs, block, sums = entry.handle
        chunk = Chunk(
            Extent("", start, stop),
            full_box(entry.shape),
            codecs,
            order,
            checked=len(sums) > 0,
            sums=sums,
            block=block,
        )
        column = entry.nbytes // (entry.shape[-1] or 1) if order == "F" else 0
        if column and _MIN_DIVIDED // column * entry.dtype.itemsize >= _RUN_BYTES:
            chunk = divide_chunk(chunk, entry.dtype, _MIN_DIVIDED)
        located[entry.name] = (chunk,) if entry.nbytes else ()
    return located
