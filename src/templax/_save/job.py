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
from ..formats.orbax.directory import COMMITTED, describe_extra_content, find_enclosing_item
from ..formats.orbax.write import JSON, STANDARD, Files, encode_commit_files
from ..storage.disk import save_error
from ..storage.open import open_source, open_staging
from ..storage.signatures import MAX_METADATA
from ..storage.sink import Sink
from ..storage.source import Source
from ..storage.staging import Staging
from .item import Item, Json, Share
from .options import SaveOptions, Url
from .result import Saved
from .snapshot import copy_values


class Job:
    """One save: `begin` in the caller's thread, then `run`; `give_up` if either is interrupted.

    Args:
        url: Where to.
        request: How.
    """

    def __init__(self, url: Url, request: SaveOptions):
        self._url, self._request, self._background = url, request, False
        self._begun_ns = time.time_ns()
        self._sink: Sink | None = None
        self._items: list[Item] = []
        self._handlers: dict[str, str] = {}
        self._documents: Files = {}
        if not isinstance(url, (str, os.PathLike, Sink)):
            raise UsageError(f"Expected a path to save to, got {url!r}")
        self.saved = Saved(str(url.path if isinstance(url, Sink) else os.fspath(url)), 0)
        self._hosts = join_job(self.saved.path)

    def begin(self, items: Mapping[str, PyTree | Json], *, background: bool) -> None:
        """Looks at the values, and begins to write them.

        Args:
            items: Name → tree or `Json`; a name of "" is the checkpoint itself, and then the only
                one.
            background: Whether the values have to be safe when this returns.
        """
        begin = time.perf_counter()
        self._background = background
        with pause_gc():
            for name, item in self._with_metrics(items).items():
                self._add(name, item)
        self._sink = self._stage()
        if background:
            leaves = [leaf for item in self._items for leaf in item.leaves]
            copy_values(leaves, self._request.threads)
        with pause_gc():
            self._open()
        self.saved.path = self._sink.path
        self.saved.leaves = sum(len(item.leaves) for item in self._items)
        self._snapshot_s = time.perf_counter() - begin

    def _with_metrics(self, items: Mapping[str, Any]) -> dict[str, Any]:
        metrics = self._request.metrics
        return dict(items) | ({} if metrics is None else {"metrics": Json(metrics, "metrics")})

    def _add(self, name: str, item: PyTree | Json) -> None:
        if isinstance(item, Json):
            directory = f"{name}/" if name else ""
            self._documents[directory + item.file] = item.encoded(name)
            self._handlers[name] = JSON
        else:
            self._items.append(Item(name, item))
            self._handlers[name] = STANDARD

    def _stage(self) -> Sink:
        """Where this process writes. Process 0 makes it, and tells the others which it is."""
        job, url, request = self._hosts, self._url, self._request
        if job.index == 0 and not isinstance(url, Sink):
            _refuse_other(open_source(url), replaces=request.overwrite)
        if job.count == 1:
            return open_staging(url, overwrite=request.overwrite)
        alone = [item.alone for item in self._items]
        if job.index == 0:
            sink = open_staging(url, overwrite=request.overwrite)
            self._sink = sink
            if not isinstance(sink, Staging):
                raise SaveError(
                    "Several processes can't save to a sink of your own", file=sink.path
                )
            facts = sink.path, sink.directory, self._digest(), alone
            job.tell_all("beginning to save", msgspec.msgpack.encode(facts))
            return sink
        path, directory, digest, alone = msgspec.msgpack.decode(
            job.tell_all("beginning to save"),
            type=tuple[str, str, str, list[list[tuple[int, int]]]],
        )
        if digest != self._digest():
            raise SaveError(
                "Expected the tree that process 0 saves, got other leaves, shapes, dtypes or"
                f" shardings on process {job.index}",
                file=path,
            )
        for item, numbers in zip(self._items, alone, strict=True):
            item.disown(numbers)
        return Staging.join(path, directory)

    def _digest(self) -> str:
        """Of what all processes must agree on."""
        facts = self._handlers, [item.facts for item in self._items], self._request.level
        return hashlib.sha256(msgspec.msgpack.encode(facts)).hexdigest()

    def _open(self) -> None:
        """Makes the data files, and starts the threads that write the first."""
        assert self._sink is not None
        job, request = self._hosts, self._request
        for item in self._items:
            item.open(
                self._sink,
                process=job.index,
                alone=job.count == 1,
                level=request.level,
                threads=request.threads,
                memory=request.memory,
                forget=self._background,
            )
        for item in self._items[:1]:
            item.writer.start()

    def run(self) -> None:
        """Writes and commits; what comes of it is in `saved`. Raises what is no `Exception`."""
        saved = self.saved
        try:
            with self._hosts:
                self._run()
        except BaseException as error:
            self.give_up(error)
            if not isinstance(error, Exception):
                raise
        else:
            self._tell()
        finally:
            self._items = []
            saved._ended.set()

    def _tell(self) -> None:
        """Calls what is to be called once all is there; its failure leaves it there."""
        try:
            if self._request.after is not None:
                self._request.after()
        except BaseException as error:
            self.saved._error = error
            if not isinstance(error, Exception):
                raise

    def give_up(self, error: BaseException) -> None:
        """Leaves nothing behind, no thread either, and tells who waits, here and on other
        processes. Idempotent.
        """
        if self._sink is not None:
            self._sink.discard()
        for item in self._items:
            item.stop()
        self._hosts.fail(error)
        self._hosts.close()
        _let_go(error)
        self.saved._error = error
        self.saved._ended.set()

    def _run(self) -> None:
        begin = time.perf_counter()
        self._write()
        written = time.perf_counter()
        if self._hosts.count == 1:
            total, crcs = self._finish([item.files for item in self._items])
        else:
            total, crcs = self._finish_together()
        ended = time.perf_counter()
        self.saved._nbytes = total
        self.saved._fingerprint = self._fingerprint(crcs)
        self.saved._stages = {
            "snapshot": self._snapshot_s,
            "encode": sum(item.writer.encode_s for item in self._items),
            "write": written - begin,
            "commit": ended - written,
        }

    def _write(self) -> None:
        """Returns when the data files are written: one after the other, each by all threads."""
        progress, done = self._request.on_progress, 0
        total = sum(item.writer.total for item in self._items)

        def report(at: int, _: int) -> None:
            assert progress is not None
            progress(done + at, total)

        for number, item in enumerate(self._items):
            if number > 0:
                item.writer.start()
            item.writer.wait(None if progress is None else report)
            done += item.writer.total

    def _fingerprint(self, crcs: list[list[int]]) -> Fingerprint:
        """Of the tree; of several, of the tree of them."""
        several = len(self._items) > 1
        return combine_fingerprints(
            (
                join_path((item.name, *leaf.path)) if several else leaf.name,
                leaf.dtype_name,
                leaf.user_shape,
                crc,
            )
            for item, some in zip(self._items, crcs, strict=True)
            for leaf, crc in zip(item.leaves, some, strict=True)
        )

    def _finish_together(self) -> tuple[int, list[list[int]]]:
        """Process 0 commits once all have written their share."""
        job, sink = self._hosts, self._sink
        assert sink is not None
        mine = [item.share() for item in self._items]
        if job.index > 0:
            sink.commit()  # what it wrote is on the disk
        told = job.gather("writing", msgspec.msgpack.encode(mine))
        done = b""
        if job.index == 0:
            shares = [msgspec.msgpack.decode(data, type=list[Share]) for data in told]
            files = [
                item.join(sink, [share[number] for share in shares])
                for number, item in enumerate(self._items)
            ]
            done = msgspec.msgpack.encode(self._finish(files))
        done = job.tell_all("committing", done)
        return msgspec.msgpack.decode(done, type=tuple[int, list[list[int]]])

    def _finish(self, files: list[list[tuple[str, int]]]) -> tuple[int, list[list[int]]]:
        """Writes all that is no array, and commits.

        Args:
            files: Of each item: path and bytes of the data files.

        Returns:
            Bytes of all files, and of each item the crc32c of each leaf.
        """
        assert self._sink is not None
        with pause_gc():
            facts = self._describe(files)
        self._sink.commit()
        return facts

    def _describe(self, files: list[list[tuple[str, int]]]) -> tuple[int, list[list[int]]]:
        assert self._sink is not None
        about = {
            "custom_metadata": self._request.metadata,
            "metrics": self._request.metrics,
        }
        whole = self._handlers.get("")  # of an item that is the checkpoint itself
        commit = encode_commit_files(whole or self._handlers, self._begun_ns, time.time_ns(), about)
        small = dict(self._documents)
        total, crcs = 0, list[list[int]]()
        for item, parts in zip(self._items, files, strict=True):
            described, nbytes, found = item.describe(parts, commit if whole else {})
            small |= described
            total += nbytes
            crcs.append(found)
        small |= commit
        done = f"Checkpoint commit was successful to {self._sink.path}".encode()
        for name in self._handlers:
            small[f"{name}/{COMMITTED}" if name else COMMITTED] = done
        small[COMMITTED] = small.pop(COMMITTED, done)  # the last of all
        for name, data in small.items():
            if len(data) > MAX_METADATA:
                raise SaveError(
                    f"Expected at most {MAX_METADATA:,} bytes of `{name}`, which a restore would"
                    f" refuse, got {len(data):,}",
                    file=self._sink.path,
                )
            self._sink.put(name, data)
        return total + sum(map(len, small.values())), crcs


def _let_go(error: BaseException) -> None:
    """Frees what the frames of an error hold, which may be kept for long: open files, and the copy
    of a tree.
    """
    cause: BaseException | None = error
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__


def _refuse_other(source: Source, *, replaces: bool) -> None:
    """Refuses a place inside an item; and to replace a directory that is more than one save: a run,
    a home, a collection.
    """
    try:
        around = find_enclosing_item(source)
        replaces = replaces and next(source.children(), None) is not None
        found = describe_extra_content(source) if replaces else None
    except SourceError as error:
        cause = error.__cause__
        if isinstance(cause, OSError):
            raise save_error("look at what is there", source.url, cause) from error
        raise SaveError(f"can't look at what is there: {error}", file=source.url) from error
    if around is not None:
        what = f"Expected a place of its own, got one inside {around}"
        raise SaveError(what, file=source.url)
    if found is not None:
        raise SaveError(
            f"overwrite=True replaces one checkpoint, found {found}",
            file=source.url,
            hint="save under another name",
        )
