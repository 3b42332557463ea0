"""The file `templax.index`: position and checksum of every byte of a checkpoint saved by templax.

templax opens a checkpoint from this one file (see `indexed_item`). Orbax's own files beside it give
the same positions, without checksums. `docs/reference/on-disk-format.md` specifies every byte.
"""

from __future__ import annotations

import functools

import msgspec
import numpy as np

from ..._catalog.entry import Kind
from ..._catalog.written import NO_FILE
from ..._codecs.crc32c import crc32c
from ...errors import Corrupted, Unsupported
from ..file_names import INDEX_FILE, MANIFEST
from ..ocdbt.paths import confine_path

_MAGIC = b"\x8etemplax"

_VERSION = 1

_HEAD_BYTES = 24

_MAX_FILES = 1 << 14
"""How many files an index may list beyond one per chunk: each process of a save writes a few."""

KINDS: tuple[Kind, ...] = ("array", "scalar", "string", "key")

REMOVAL_HINT = f"delete `{INDEX_FILE}` to read the checkpoint as Orbax does, without checksums"


class Index(msgspec.Struct, omit_defaults=True):
    """The body of the file, a msgpack map.

    Columns are little-endian. Those of leaves have as many rows as `paths`; those of chunks have as
    many as the sum of `counts`, with the chunks of a leaf in C order of its grid.

    Attributes:
        files: Path below the checkpoint and length of each data file.
        others: Path → length and crc32c of every other file, except the index itself and
            `commit_success.txt`.
        paths: Key path of each leaf; ints are indices of lists and tuples.
        kinds: u8, indices into `KINDS`.
        dtypes, dtype: Table of dtype names as in numpy and ml_dtypes ("str" for strings), and each
            leaf's index into it, u16.
        shapes, shape, chunk: Table of shapes, and each leaf's indices of its own shape and of the
            shape of its chunks, u32. For a typed key, both are of its key data.
        codecs: u8: 0 raw, 1 zstd.
        counts: u32, number of chunks of each leaf.
        file, offset, nbytes, crc32c: For each chunk, the number of its file (u32), its first byte
            (u64), its length (u64) and the crc32c of its bytes (u32). For a raw chunk at the edge,
            length and crc32c exclude the padding.
        fingerprint: u32, crc32c of each leaf's bytes in C order, however it is chunked.
        texts: Strings, by leaf name.
        impls: PRNG implementations of typed keys, by leaf name.
        shardings, sharding: Table of shardings as Orbax serialises them, and each leaf's index into
            it (u32, `NO_FILE` for none).
        empties: Key paths without a leaf, and what is recorded there: `None`, `Dict`, `List`, ...
    """

    files: list[tuple[str, int]]
    others: dict[str, tuple[int, int]]
    paths: list[tuple[str | int, ...]]
    kinds: bytes
    dtypes: list[str]
    dtype: bytes
    shapes: list[tuple[int, ...]]
    shape: bytes
    chunk: bytes
    codecs: bytes
    counts: bytes
    file: bytes
    offset: bytes
    nbytes: bytes
    crc32c: bytes
    fingerprint: bytes
    texts: dict[str, str] = {}
    impls: dict[str, str] = {}
    shardings: list[str] = []
    sharding: bytes = b""
    empties: list[tuple[tuple[str | int, ...], str]] = []


def file_crc(file: str, data: bytes | memoryview) -> int:
    """The checksum recorded for one of `Index.others`.

    This is the crc32c of the file, except for the manifest, whose last four bytes are left out.
    They are the manifest's own crc32c; including them yields the same constant for every manifest.
    """
    return crc32c(data[:-4] if file == MANIFEST else data)


def encode_index(index: Index) -> bytes:
    """The content of the file: magic, version, length of the body, body, crc32c of all of these."""
    body = msgspec.msgpack.encode(index)
    head = _MAGIC + _VERSION.to_bytes(8, "little") + len(body).to_bytes(8, "little")
    return b"".join([head, body, crc32c(body, crc32c(head)).to_bytes(4, "little")])


def decode_index(data: memoryview) -> Index:
    """Reads the content of the file.

    Raises:
        Corrupted: It is truncated or altered.
        Unsupported: It has a later version.
    """
    if len(data) < _HEAD_BYTES + 4 or data[:8] != _MAGIC:
        raise Corrupted("Expected an index of templax, got other bytes", hint=REMOVAL_HINT)
    length = int.from_bytes(data[16:24], "little")
    if length != len(data) - _HEAD_BYTES - 4:
        raise Corrupted(
            f"Expected an index of {length + _HEAD_BYTES + 4} bytes, got {len(data)}",
            hint=REMOVAL_HINT,
        )
    want, got = int.from_bytes(data[-4:], "little"), crc32c(data[:-4])
    if want != got:
        raise Corrupted(f"Expected crc32c `{want:08x}`, got `{got:08x}`", hint=REMOVAL_HINT)
    version = int.from_bytes(data[8:16], "little")
    if version != _VERSION:
        raise Unsupported(
            f"templax reads version {_VERSION} of its index, got {version}", hint=REMOVAL_HINT
        )
    try:
        return msgspec.msgpack.decode(data[_HEAD_BYTES:-4], type=Index)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupted(f"The index is unreadable: {error}", hint=REMOVAL_HINT) from error


class Columns:
    """The columns of an index as numbers.

    Raises:
        Corrupted: Columns contradict each other or the lengths of the data files.
    """

    def __init__(self, index: Index):
        n = len(index.paths)
        self.index = index
        for path in (*(path for path, _ in index.files), *index.others):
            confine_path(path.encode())
        if not all(0 <= size < 2**63 for _, size in index.files):
            raise Corrupted("Expected sizes of files, got other numbers", hint=REMOVAL_HINT)
        self.kinds = _decode_column(index.kinds, "u1", n)
        self.codecs = _decode_column(index.codecs, "u1", n)
        self.dtypes = _decode_column(index.dtype, "<u2", n, len(index.dtypes))
        self.shapes = _decode_column(index.shape, "<u4", n, len(index.shapes))
        self.chunks = _decode_column(index.chunk, "<u4", n, len(index.shapes))
        self.counts = _decode_column(index.counts, "<u4", n)
        self.fingerprints = _decode_column(index.fingerprint, "<u4", n)
        self.shardings = (
            _decode_column(index.sharding, "<u4", n) if index.sharding else [NO_FILE] * n
        )
        total = sum(self.counts)
        if len(index.others) + len(index.files) > _MAX_FILES + total:  # `verify` looks at each
            raise Unsupported(
                f"templax reads indexes of up to {_MAX_FILES + total} files in {total} chunks, got"
                f" {len(index.others) + len(index.files)}"
            )
        if max(self.kinds, default=0) >= len(KINDS) or max(self.codecs, default=0) > 1:
            raise Corrupted("Expected known kinds and codecs, got others", hint=REMOVAL_HINT)
        chunks = [
            np.frombuffer(_check_length(data, np.dtype(type).itemsize * total), type)
            for data, type in (
                (index.file, "<u4"),
                (index.offset, "<u8"),
                (index.nbytes, "<u8"),
                (index.crc32c, "<u4"),
            )
        ]
        file, offset, nbytes, crc = chunks
        sizes = np.array([size for _, size in index.files], np.uint64)
        if total:
            known = int(file.max()) < len(sizes)
            if (
                not known
                or not nbytes.all()
                or (offset > sizes[file]).any()
                or (nbytes > sizes[file] - offset).any()
            ):
                raise Corrupted(
                    "Expected chunks within the data files, got others", hint=REMOVAL_HINT
                )

        self.chunk_arrays = file, offset.astype(np.int64), nbytes.astype(np.int64), crc

    @functools.cached_property
    def chunk_rows(self) -> tuple[list[int], list[int], list[int], list[int]]:
        """File number, offset, length and crc32c of each chunk, as lists."""
        file, offset, nbytes, crc = [column.tolist() for column in self.chunk_arrays]
        return file, offset, nbytes, crc

    @functools.cached_property
    def first_chunk(self) -> list[int]:
        """The row of each leaf's first chunk."""
        counts = np.array(self.counts, np.int64)
        return (np.cumsum(counts) - counts).tolist()


def _check_length(data: bytes, nbytes: int) -> bytes:
    if len(data) != nbytes:
        raise Corrupted(f"Expected a column of {nbytes} bytes, got {len(data)}", hint=REMOVAL_HINT)
    return data


def _decode_column(data: bytes, type: str, n: int, below: int | None = None) -> list[int]:
    numbers = np.frombuffer(_check_length(data, n * np.dtype(type).itemsize), type)
    if below is not None and n and int(numbers.max()) >= below:
        raise Corrupted(
            f"Expected numbers below {below}, got {int(numbers.max())}", hint=REMOVAL_HINT
        )
    return numbers.tolist()
