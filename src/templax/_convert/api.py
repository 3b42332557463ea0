"""`convert`: a checkpoint of any format as one of another, without a template."""

from __future__ import annotations

import bisect
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from .._audit.diff import check_subtree
from .._catalog.catalog import Catalog
from .._catalog.fingerprint import combine_fingerprints
from .._catalog.written import Leaf
from .._core.names import Rename
from .._core.progress import Progress
from .._core.text import format_value
from .._restore.options import CompareOptions
from .._restore.prepare import check_rename_used
from .._save.destination import check_destination
from .._views.merged_source import MergedSource
from ..errors import Corrupted, SaveError, UsageError
from ..formats.registry import Checkpoint, open_checkpoint
from ..storage.local import Local
from ..storage.open import is_remote, spell_path
from ..storage.source import Source
from .leftovers import identify_source
from .options import make_options
from .read import LeafReader
from .read_back import compare_with_written
from .result import Converted, LeafCast
from .select import Selection, select_leaves
from .target import Target, plan_files

if TYPE_CHECKING:
    from ..storage.stores import Store


def convert(
    src: Checkpoint,
    dst: str | os.PathLike[str],
    *,
    to: Literal["orbax", "safetensors", "msgpack", "npz"] | None = None,
    at: str = "",
    rename: Rename | None = None,
    skip: Iterable[str] = (),
    flat: bool = False,
    cast: Any = None,
    compression: str | None = None,
    chunk_size: int | None = None,
    shard_size: int | None = None,
    overwrite: bool = False,
    verify: bool = True,
    memory: int | None = None,
    threads: int | None = None,
    on_progress: Progress | None = None,
    storage: Store | None = None,
) -> Converted:
    """Writes a checkpoint of any format that templax reads as one of another format.

    The values are streamed: a few blocks of about 8 MiB are in memory at a time, whatever the size
    of the checkpoint. Only a chunk that must be decoded whole takes more: one that is compressed
    otherwise than with zstd, or that is in Fortran order. Neither a template nor JAX is needed.

    All checksums that the source has are compared. Once everything is written, and before it
    becomes visible, it is opened and read back, and the crc32c of each leaf is compared with that
    of the values that were read from the source. `dst` holds the whole new checkpoint, or what it
    held before. If the process is killed, repeating the call resumes it: chunks that are already
    on the disk are not written again, but they are read back with the others. An error or an
    interrupt removes what was written.

    Args:
        src: A checkpoint, in any form that `open` takes.
        dst: A local path that does not exist yet, or an empty directory. Parents are created. Or
            a URL of an object store, to which only "orbax" is written; there a conversion that is
            killed begins anew.
        to: The format to write: "orbax", "safetensors", "msgpack" (Flax) or "npz", as in `save`.
            By default that of the file that `dst` names: a path that ends in `.safetensors`,
            `.msgpack` or `.npz` is a single file; any other one is a directory.
        at: Convert only this subtree, as in `restore`.
        rename: What becomes of the names below `at`: a mapping of prefixes or a function, as in
            `restore`.
        skip: Names of leaves or subtrees, or patterns as in `restore`, that are left out, such as
            what the format can't store. Names are those after `rename`.
        flat: Whether each name is a single key. By default a name such as `a.b` in a file without
            nesting becomes a leaf `b` in a dict `a`, as `open` shows it. Only for Orbax: a
            safetensors file has no nesting.
        cast: The dtype of all floating-point arrays; or a mapping of names of leaves or subtrees,
            or patterns as in `restore`, to dtypes, of which the first that matches decides. None
            leaves them as they are.
        compression: Only for Orbax: None, `"zstd"` or `"zstd:LEVEL"`, as in `save`.
        chunk_size: Only for Orbax: most bytes of a chunk, where the shape can be divided that
            finely. Default: 4 MiB.
        shard_size: Only for safetensors: bytes of data from which a tree is divided among several
            files. Default: 5 GB.
        overwrite: Replaces an existing checkpoint, atomically.
        verify: Whether to read back what was written. The result says so.
        memory: Bytes that all threads together may have in flight; default 256 MiB. With larger
            blocks, fewer threads work. A single larger block is taken on its own.
        threads: Workers that read, decode and write. Default: the cores of this process, at most 8.
        on_progress: Called as `on_progress(done, total)` with the bytes written and read back so
            far, and in all, at most ten times a second. An exception in it ends the conversion.
        storage: How to reach the object store of `dst`; see `save`.

    Returns:
        A `Converted`: what was written, cast, and not carried over. `print` shows it.

    Raises:
        SaveError: The format can't store some leaves (the message names them; no file was made);
            `dst` is in or around `src`; another process is converting to it; the disk is full or
            failed; or what was read back differs.
        AlreadyExists: Something exists at `dst`.
        CheckpointError: `src` can't be opened, or a leaf of it can't be read or differs from its
            checksum or its recorded fingerprint.
        SourceError: The storage failed, or `src` changed meanwhile.
        UsageError: An argument is invalid, or names nothing.

    Example:
        >>> import os, tempfile
        >>> import numpy as np, templax as tx
        >>> run = tempfile.mkdtemp()
        >>> ckpt, model = os.path.join(run, "ckpt"), os.path.join(run, "model")
        >>> saved = tx.save(ckpt, {"params": {"w": np.ones((8, 6), np.float32)}, "step": 1})
        >>> done = tx.convert(ckpt, model, to="safetensors", at="params", cast="bfloat16")
        >>> done.leaves, done.casts[0].written, done.verified
        (1, 'bfloat16', True)
        >>> tx.open(model).leaves["w"]
        LeafEntry('w', bfloat16(8, 6), array)
    """
    begin = time.perf_counter()
    options = make_options(
        dst,
        to=to,
        overwrite=overwrite,
        flat=flat,
        cast=cast,
        compression=compression,
        chunk_size=chunk_size,
        shard_size=shard_size,
        memory=memory,
        threads=threads,
        on_progress=on_progress,
        storage=storage,
    )
    save = options.save
    if not isinstance(verify, bool):
        raise UsageError(f"Expected verify=True or False, got {format_value(verify)}")
    CompareOptions(at=at, rename=rename)
    is_list = isinstance(skip, Iterable) and not isinstance(skip, str)
    skipped = list(skip) if is_list else []
    if not is_list or not all(isinstance(name, str) for name in skipped):
        raise UsageError(f"Expected skip= a list of names (str), got {format_value(skip)}")
    catalog = open_checkpoint(src)
    check_subtree(catalog, "at", at)
    if isinstance(rename, Mapping):
        check_rename_used(rename, catalog, at)
    _check_apart(catalog, options.path)
    chosen = select_leaves(
        catalog,
        to=save.format,
        at=at,
        rename=rename,
        skip=skipped,
        casts=options.casts,
        flat=flat,
    )
    reader = LeafReader(catalog, chosen.entries)
    if save.format == "msgpack":
        reader.hold_numbers(chosen.leaves)
    item = plan_files(chosen, options)
    check_destination(options.path, storage, replaces=overwrite and not save.single)
    with Target(chosen, options, item, reader, identify_source(catalog)) as target:
        meter = _Meter(item.writer.total, verify, on_progress)
        target.write(meter.report_written)
        crcs = target.finish()
        _compare_with_recorded(catalog, chosen, item.leaves, crcs)
        if verify:
            compare_with_written(
                target.preview(),
                item.leaves,
                chosen.empties,
                crcs,
                save.threads,
                save.memory,
                meter.report_read,
            )
        path, not_removed = target.commit()
    return Converted(
        source=catalog.url,
        source_format=catalog.format,
        path=path,
        format=save.format,
        leaves=len(item.leaves),
        value_bytes=sum(leaf.nbytes for leaf in item.leaves),
        nbytes=target.nbytes,
        fingerprint=combine_fingerprints(
            (leaf.name, leaf.dtype_name, leaf.user_shape, crc)
            for leaf, crc in zip(item.leaves, crcs, strict=True)
        ),
        verified=verify,
        casts=_list_casts(chosen, reader, item.first_rows),
        lost={what: tuple(dict.fromkeys(names)) for what, names in chosen.lost.items()},
        filled=tuple(reader.find_filled()),
        shared=tuple(map(tuple, reader.find_shared())),
        resumed_bytes=target.resumed_bytes,
        restarted=target.restarted,
        not_removed=not_removed,
        seconds=time.perf_counter() - begin,
    )


class _Meter:
    """Adds up what is written and what is read back, for a callback."""

    def __init__(self, nbytes: int, verify: bool, progress: Progress | None):
        self._written, self._progress = nbytes, progress
        self._total = 2 * nbytes if verify else nbytes

    def report_written(self, done: int, _: int) -> None:
        if self._progress is not None:
            self._progress(done, self._total)

    def report_read(self, done: int, _: int) -> None:
        if self._progress is not None:
            self._progress(self._written + done, self._total)


def _check_apart(catalog: Catalog, path: str) -> None:
    """Refuses a destination that is the source, in it, or around it; or one of several."""
    whole = catalog.source
    for source in whole.parts if isinstance(whole, MergedSource) else (whole,):
        if isinstance(source, Local) or is_remote(source.url):
            _check_apart_from(source, path)


def _check_apart_from(local: Source, path: str) -> None:
    source, target = (spell_path(each) for each in (local.url, path))
    for inner, outer in ((source, target), (target, source)):
        if inner == outer or inner.startswith(outer.rstrip(os.sep) + os.sep):
            where = "the source itself" if source == target else "a path in it or around it"
            raise SaveError(
                f"Expected a destination apart from the source, {local.url}, got {where}",
                file=path,
                hint="convert to another path, then move that",
            )


def _compare_with_recorded(
    catalog: Catalog, chosen: Selection, leaves: Sequence[Leaf], crcs: Sequence[int]
) -> None:
    """Compares the values that were read with the fingerprints that the source records.

    Raises:
        Corrupted: A leaf that was not cast differs.
    """
    recorded = {} if catalog.fingerprints is None else catalog.fingerprints()
    for leaf, crc in zip(leaves, crcs, strict=True):
        entry = chosen.entries[leaf.name]
        known = recorded.get(entry.name)
        if known is not None and leaf.dtype == entry.dtype and known != crc:
            raise Corrupted(
                f"Expected values of the recorded fingerprint {known:08x}, got {crc:08x}",
                leaf=entry.name,
                file=catalog.url,
            )


def _list_casts(
    chosen: Selection, reader: LeafReader, rows: Mapping[int, str]
) -> tuple[LeafCast, ...]:
    """The leaves that were cast, in the order of the source.

    Args:
        chosen: What was written.
        reader: Knows how many values of each block overflowed.
        rows: See `Item.first_rows`.
    """
    overflows, firsts = dict.fromkeys(chosen.entries, 0), sorted(rows)
    for row, count in reader.overflows.items():
        overflows[rows[firsts[bisect.bisect_right(firsts, row) - 1]]] += count
    return tuple(
        LeafCast(
            leaf.name,
            chosen.entries[leaf.name].dtype_name,
            leaf.dtype_name,
            overflows[leaf.name],
        )
        for leaf in chosen.leaves
        if leaf.dtype != chosen.entries[leaf.name].dtype
    )
