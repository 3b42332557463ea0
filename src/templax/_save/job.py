"""JAX. One save from its snapshot to its commit, by one process or by all of a job."""

from __future__ import annotations

import hashlib
import os
import time
import traceback
from collections.abc import Mapping
from typing import Any

import msgspec

from .._catalog.fingerprint import Fingerprint, combine_fingerprints
from .._core.arguments import PyTree
from .._core.gc_pause import pause_gc
from .._core.names import join_path
from .._hosts.agreement import join_job
from ..errors import SaveError, SourceError, UsageError
from ..formats.orbax.directory import COMMITTED
from ..formats.orbax.extra_content import describe_extra_content, find_enclosing_item
from ..formats.orbax.write import JSON, STANDARD, Files, encode_commit_files
from ..storage.disk import save_error
from ..storage.open import open_source, open_staging
from ..storage.signatures import MAX_METADATA
from ..storage.sink import Sink
from ..storage.source import Source
from ..storage.staging import Staging
from .item import Item, Json, Share
from .options import SaveOptions, Url
from .result import Outcome
from .snapshot import copy_values


class Job:
    """One save: `begin` in the caller's thread, then `run`; `abort` if either is interrupted.

    Args:
        url: The path to save to, or a sink.
        options: How to save.

    Attributes:
        outcome: What becomes of the save.
    """

    def __init__(self, url: Url, options: SaveOptions):
        self._url, self._options, self._background = url, options, False
        self._begun_ns = time.time_ns()
        self._sink: Sink | None = None
        self._items: list[Item] = []
        self._handlers: dict[str, str] = {}
        self._documents: Files = {}
        if not isinstance(url, (str, os.PathLike, Sink)):
            raise UsageError(f"Expected a path to save to, got {url!r}")
        self.outcome = Outcome(str(url.path if isinstance(url, Sink) else os.fspath(url)))
        self._hosts = join_job(self.outcome.path)

    def begin(self, items: Mapping[str, PyTree | Json], *, background: bool) -> None:
        """Collects the leaves, stages the checkpoint and starts the first writer.

        Args:
            items: Name → tree or `Json`. The name "" stands for the checkpoint itself, and must be
                the only one.
            background: Whether the values must be safe from later changes when this returns.
        """
        begin = time.perf_counter()
        self._background = background
        with pause_gc():
            for name, item in self._add_metrics(items).items():
                self._add_item(name, item)
        self._sink = self._open_sink()
        if background:
            leaves = [leaf for item in self._items for leaf in item.leaves]
            copy_values(leaves, self._options.threads)
        with pause_gc():
            self._open_items()
        self.outcome.path = self._sink.path
        self.outcome.leaves = sum(len(item.leaves) for item in self._items)
        self._snapshot_s = time.perf_counter() - begin

    def _add_metrics(self, items: Mapping[str, Any]) -> dict[str, Any]:
        metrics = self._options.metrics
        return dict(items) | ({} if metrics is None else {"metrics": Json(metrics, "metrics")})

    def _add_item(self, name: str, item: PyTree | Json) -> None:
        if isinstance(item, Json):
            directory = f"{name}/" if name else ""
            self._documents[directory + item.file] = item.encode(name)
            self._handlers[name] = JSON
        else:
            self._items.append(Item(name, item))
            self._handlers[name] = STANDARD

    def _open_sink(self) -> Sink:
        """The sink of this process. Process 0 makes it and tells the others its path."""
        job, url, options = self._hosts, self._url, self._options
        if job.index == 0 and not isinstance(url, Sink):
            _check_destination(open_source(url), replaces=options.overwrite)
        if job.count == 1:
            return open_staging(url, overwrite=options.overwrite)
        owners = [item.single_owners for item in self._items]
        if job.index == 0:
            sink = open_staging(url, overwrite=options.overwrite)
            self._sink = sink
            if not isinstance(sink, Staging):
                raise SaveError(
                    "Several processes can't save to a sink of your own", file=sink.path
                )
            facts = sink.path, sink.directory, self._hash_facts(), owners
            job.tell_all("beginning to save", msgspec.msgpack.encode(facts))
            return sink
        path, directory, digest, owners = msgspec.msgpack.decode(
            job.tell_all("beginning to save"),
            type=tuple[str, str, str, list[list[tuple[int, int]]]],
        )
        if digest != self._hash_facts():
            raise SaveError(
                "Expected the tree that process 0 saves, got other leaves, shapes, dtypes or"
                f" shardings on process {job.index}",
                file=path,
            )
        for item, single_owners in zip(self._items, owners, strict=True):
            item.set_owners(single_owners)
        return Staging.join(path, directory)

    def _hash_facts(self) -> str:
        """A hash of everything that all processes must agree on."""
        facts = self._handlers, [item.facts for item in self._items], self._options.level
        return hashlib.sha256(msgspec.msgpack.encode(facts)).hexdigest()

    def _open_items(self) -> None:
        """Makes the data files, and starts the threads that write the first of them."""
        assert self._sink is not None
        job, options = self._hosts, self._options
        for item in self._items:
            item.open(
                self._sink,
                process=job.index,
                only_process=job.count == 1,
                level=options.level,
                threads=options.threads,
                memory=options.memory,
                forget=self._background,
            )
        for item in self._items[:1]:
            item.writer.start()

    def run(self) -> None:
        """Writes and commits, and leaves the result or the error in `outcome`.

        Re-raises BaseExceptions such as KeyboardInterrupt.
        """
        try:
            with self._hosts:
                self._write_and_commit()
        except BaseException as error:
            self.abort(error)
            if not isinstance(error, Exception):
                raise
        else:
            self._run_callback()
        finally:
            self._items = []
            self.outcome.end()

    def _run_callback(self) -> None:
        """Calls `SaveOptions.after`. The checkpoint stays committed if that fails."""
        try:
            if self._options.after is not None:
                self._options.after()
        except BaseException as error:
            self.outcome.error = error
            if not isinstance(error, Exception):
                raise

    def abort(self, error: BaseException) -> None:
        """Discards what was written, stops the threads, and passes the error to all that wait for
        this save, in this process and in the others. Idempotent.
        """
        if self._sink is not None:
            self._sink.discard()
        for item in self._items:
            item.stop()
        self._hosts.fail(error)
        self._hosts.close()
        _clear_tracebacks(error)
        self.outcome.error = error
        self.outcome.end()

    def _write_and_commit(self) -> None:
        begin = time.perf_counter()
        self._write_data_files()
        written = time.perf_counter()
        if self._hosts.count == 1:
            total, crcs = self._commit([item.data_files for item in self._items])
        else:
            total, crcs = self._commit_together()
        ended = time.perf_counter()
        self.outcome.nbytes = total
        self.outcome.fingerprint = self._combine_fingerprints(crcs)
        self.outcome.stages = {
            "snapshot": self._snapshot_s,
            "encode": sum(item.writer.encode_s for item in self._items),
            "write": written - begin,
            "commit": ended - written,
        }

    def _write_data_files(self) -> None:
        """Writes the data files, one after the other, each with all threads."""
        progress, done = self._options.on_progress, 0
        total = sum(item.writer.total for item in self._items)

        def report(written: int, _: int) -> None:
            assert progress is not None
            progress(done + written, total)

        for number, item in enumerate(self._items):
            if number > 0:
                item.writer.start()
            item.writer.wait(None if progress is None else report)
            done += item.writer.total

    def _combine_fingerprints(self, crcs: list[list[int]]) -> Fingerprint:
        """The fingerprint of the tree; of several items, that of the dict of their trees."""
        several = len(self._items) > 1
        return combine_fingerprints(
            (
                join_path((item.name, *leaf.path)) if several else leaf.name,
                leaf.dtype_name,
                leaf.user_shape,
                crc,
            )
            for item, leaf_crcs in zip(self._items, crcs, strict=True)
            for leaf, crc in zip(item.leaves, leaf_crcs, strict=True)
        )

    def _commit_together(self) -> tuple[int, list[list[int]]]:
        """Process 0 commits once all have written their share. Returns the same as `_commit`."""
        job, sink = self._hosts, self._sink
        assert sink is not None
        own_shares = [item.finish_share() for item in self._items]
        if job.index > 0:
            sink.commit()  # brings this process's data files to the disk
        gathered = job.gather("writing", msgspec.msgpack.encode(own_shares))
        committed = b""
        if job.index == 0:
            shares = [msgspec.msgpack.decode(data, type=list[Share]) for data in gathered]
            files = [
                item.merge_shares(sink, [share[number] for share in shares])
                for number, item in enumerate(self._items)
            ]
            committed = msgspec.msgpack.encode(self._commit(files))
        committed = job.tell_all("committing", committed)
        return msgspec.msgpack.decode(committed, type=tuple[int, list[list[int]]])

    def _commit(self, files: list[list[tuple[str, int]]]) -> tuple[int, list[list[int]]]:
        """Writes the remaining files, and commits.

        Args:
            files: For each item, the path and size of each data file.

        Returns:
            Bytes of all files; and for each item, the crc32c of each leaf.
        """
        assert self._sink is not None
        with pause_gc():
            nbytes, crcs = self._write_small_files(files)
        self._sink.commit()
        return nbytes, crcs

    def _write_small_files(self, files: list[list[tuple[str, int]]]) -> tuple[int, list[list[int]]]:
        """Writes everything except the arrays. See `_commit` for arguments and result."""
        assert self._sink is not None
        about = {
            "custom_metadata": self._options.metadata,
            "metrics": self._options.metrics,
        }
        whole = self._handlers.get("")  # set if the only item is the checkpoint itself
        commit = encode_commit_files(whole or self._handlers, self._begun_ns, time.time_ns(), about)
        small = dict(self._documents)
        total, crcs = 0, list[list[int]]()
        for item, parts in zip(self._items, files, strict=True):
            described, nbytes, leaf_crcs = item.describe(parts, commit if whole else {})
            small |= described
            total += nbytes
            crcs.append(leaf_crcs)
        small |= commit
        marker = f"Checkpoint commit was successful to {self._sink.path}".encode()
        for name in self._handlers:
            small[f"{name}/{COMMITTED}" if name else COMMITTED] = marker
        small[COMMITTED] = small.pop(COMMITTED, marker)  # written after all other files
        for name, data in small.items():
            if len(data) > MAX_METADATA:
                raise SaveError(
                    f"Expected at most {MAX_METADATA:,} bytes of `{name}`, which a restore would"
                    f" refuse, got {len(data):,}",
                    file=self._sink.path,
                )
            self._sink.put(name, data)
        return total + sum(map(len, small.values())), crcs


def _clear_tracebacks(error: BaseException) -> None:
    """Frees the locals in the frames of an error, which may be kept for a long time: open files,
    and the copy of a tree.
    """
    cause: BaseException | None = error
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__


def _check_destination(source: Source, *, replaces: bool) -> None:
    """Refuses to save inside an item, and to replace a directory that holds more than one
    checkpoint: a run, a home directory, a collection.

    Raises:
        SaveError: The destination is refused, or cannot be examined.
    """
    try:
        around = find_enclosing_item(source)
        replaces = replaces and next(source.children(), None) is not None
        found = describe_extra_content(source) if replaces else None
    except SourceError as error:
        cause = error.__cause__
        if isinstance(cause, OSError):
            raise save_error("examine the destination", source.url, cause) from error
        raise SaveError(f"can't examine the destination: {error}", file=source.url) from error
    if around is not None:
        what = f"Expected a place of its own, got one inside {around}"
        raise SaveError(what, file=source.url)
    if found is not None:
        raise SaveError(
            f"overwrite=True replaces one checkpoint, found {found}",
            file=source.url,
            hint="save under another name",
        )
