"""JAX. One save from its snapshot to its commit, by one process or by all of a job."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from ._boxes import Shape, whole
from ._collector import paused
from ._errors import SaveError, UsageError
from ._fingerprint import Fingerprint, fingerprint_of
from ._hosts import hosts
from ._layout import NONE, Leaf, Places, chunk_shape
from ._parts import ALIGN
from ._snapshot import copied, leaves_of
from ._write import Writer
from .formats import _index, _ocdbt
from .formats._ocdbt_write import DataFile
from .formats._orbax_root import COMMITTED, examine
from .formats._orbax_save import (
    JSON,
    STANDARD,
    commit_files,
    database,
    index_file,
    tree_files,
)
from .sources import Sink, SinkFile, Source, Staging, open_source, open_staging
from .sources._staging import remove, stale

PyTree = Any
Progress = Callable[[int, int], None]
Url = str | os.PathLike[str] | Sink


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a save, checked.

    Attributes:
        level: Of zstd; None for raw chunks.
        item: Name of the item in a step; "" if the checkpoint is the item itself.
        metrics: Of a step.
        after: Called once it is committed, in the thread that did it.
    """

    metadata: Mapping[str, Any]
    overwrite: bool
    level: int | None
    memory: int
    threads: int
    on_progress: Progress | None
    item: str = ""
    metrics: Mapping[str, float] | None = None
    after: Callable[[], None] | None = None


class Saved:
    """A save: what it wrote, or the handle of one that goes on.

    Attributes:
        path: Of the checkpoint.
        leaves: Leaves of the tree that have values.
    """

    def __init__(self, path: str, leaves: int):
        self.path, self.leaves = path, leaves
        self._nbytes = 0
        self._stages: dict[str, float] = {}
        self._fingerprint: Fingerprint | None = None
        self._error: BaseException | None = None
        self._seen = False
        self._ended = threading.Event()

    def __repr__(self) -> str:
        if not self.done():
            return f"Saved({self.path!r}, {self.leaves:,} leaves, not finished)"
        if self._error is not None:
            return f"Saved({self.path!r}, failed)"
        return f"Saved({self.path!r}, {self.leaves:,} leaves, {self._nbytes:,} bytes)"

    def done(self) -> bool:
        """Whether the save has ended, well or not."""
        return self._ended.is_set()

    def wait(self, timeout: float | None = None) -> Saved:
        """Returns itself once the checkpoint is there.

        Args:
            timeout: Seconds after which to give up waiting.

        Raises:
            SaveError: It failed; nothing is at `path` that was not there before.
            TimeoutError: It goes on.
        """
        if not self._ended.wait(timeout):
            raise TimeoutError(f"{self.path} is still being saved after {timeout} s")
        self._seen = True
        if self._error is not None:
            raise self._error
        return self

    def _result(self, value: Any) -> Any:
        if not self.done():
            raise UsageError("Expected a save that has ended: call wait() first")
        return self.wait() and value

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        self._result(None)
        return self._nbytes

    @property
    def stages(self) -> Mapping[str, float]:
        """Seconds of wall clock: `snapshot`, `write`, `commit`; `encode` are those of all threads
        together that were spent on checksums and compression while writing.
        """
        self._result(None)
        return self._stages

    @property
    def seconds(self) -> float:
        """Wall clock from the call to the commit."""
        self._result(None)
        return sum(s for name, s in self._stages.items() if name != "encode")

    @property
    def fingerprint(self) -> Fingerprint:
        """Of the tree, as `templax.fingerprint` would give it."""
        self._result(None)
        assert self._fingerprint is not None
        return self._fingerprint


class _Share(msgspec.Struct):
    """What one process wrote: of each data file path and bytes, and rows of `Places`."""

    files: list[tuple[str, int]]
    rows: bytes
    columns: list[bytes]


class Job:
    """One save. Made in the caller's thread, by which the values are safe; `run` does the rest."""

    def __init__(
        self,
        url: Url,
        tree: PyTree,
        request: Request,
        *,
        background: bool,
    ):
        begin = time.perf_counter()
        self._request, self._background = request, background
        self._begun_ns = time.time_ns()
        self._prefix = f"{request.item}/" if request.item else ""
        self._sink: Sink | None = None
        self.saved = Saved(str(url.path if isinstance(url, Sink) else os.fspath(url)), 0)
        self._hosts = hosts(self.saved.path)
        try:
            with paused():
                self._leaves, self._empties = leaves_of(tree)
                self._chunks = [_chunk_shape(leaf) for leaf in self._leaves]
            self._sink = self._begin(url)
            if background:
                copied(self._leaves, request.threads)
            with paused():
                self._write()
        except BaseException as error:
            self.give_up(error)
            raise
        self.saved.path, self.saved.leaves = self._sink.path, len(self._leaves)
        self._snapshot_s = time.perf_counter() - begin

    def _begin(self, url: Url) -> Sink:
        """Where this process writes. Process 0 makes it, and tells the others which it is."""
        job, request = self._hosts, self._request
        if job.index == 0 and request.overwrite and not isinstance(url, Sink):
            _refuse_other(open_source(url))
        if job.count == 1:
            return open_staging(url, overwrite=request.overwrite)
        mine = {
            i: leaf.owners[0][1] for i, leaf in enumerate(self._leaves) if len(leaf.owners) == 1
        }
        if job.index == 0:
            sink = open_staging(url, overwrite=request.overwrite)
            self._sink = sink
            if not isinstance(sink, Staging):
                raise SaveError(
                    "Several processes can't save to a sink of your own", file=sink.path
                )
            facts = sink.path, sink.directory, self._digest(), list(mine.items())
            job.tell_all("beginning to save", msgspec.msgpack.encode(facts))
            return sink
        told = msgspec.msgpack.decode(
            job.tell_all("beginning to save"), type=tuple[str, str, str, list[tuple[int, int]]]
        )
        path, directory, digest, owners = told
        if digest != self._digest():
            raise SaveError(
                "Expected the tree that process 0 saves, got other leaves, shapes, dtypes or"
                f" shardings on process {job.index}",
                file=path,
            )
        for i, owner in owners:
            # An array that is here alone looks like one that every process has a copy of.
            leaf = self._leaves[i]
            leaf.tile, leaf.owners = leaf.shape, ((whole(leaf.shape), owner),)
        return Staging.join(path, directory)

    def _digest(self) -> str:
        """Of what all processes must agree on."""
        facts = [
            (leaf.name, leaf.value_type, leaf.dtype_name, leaf.shape, chunk)
            for leaf, chunk in zip(self._leaves, self._chunks, strict=True)
        ]
        return hashlib.sha256(msgspec.msgpack.encode((facts, self._request.level))).hexdigest()

    def _write(self) -> None:
        """Starts the threads that write."""
        assert self._sink is not None
        job, request = self._hosts, self._request
        name = f"d/{secrets.token_hex(16)}"
        self._data = name if job.count == 1 else f"ocdbt.process_{job.index}/{name}"
        self._file: SinkFile = self._sink.create(self._prefix + self._data)
        self._places = Places(self._leaves, self._chunks)
        self._writer = Writer(
            self._leaves,
            self._chunks,
            self._places,
            self._file,
            process=job.index,
            level=request.level,
            threads=request.threads,
            memory=request.memory,
            forget=self._background,
        )

    def run(self) -> None:
        """Writes and commits; what comes of it is in `saved`. Raises what is no `Exception`."""
        saved = self.saved
        try:
            with self._hosts:
                self._run()
            if self._request.after is not None:
                self._request.after()
        except BaseException as error:
            self.give_up(error)
            if not isinstance(error, Exception):
                raise
        finally:
            self._leaves = []
            saved._ended.set()

    def give_up(self, error: BaseException) -> None:
        """Leaves nothing behind, and tells who waits, here and on other processes."""
        if self._sink is not None:
            self._sink.discard()
        self._hosts.fail(error)
        self._hosts.close()
        self.saved._error = error
        self.saved._ended.set()

    def _run(self) -> None:
        assert self._sink is not None
        begin = time.perf_counter()
        self._writer.wait(self._request.on_progress)
        written = time.perf_counter()
        if self._hosts.count == 1:
            facts = self._finish([(self._data, self._writer.end)])
        else:
            facts = self._finish_together()
        ended = time.perf_counter()
        self.saved._nbytes, crcs = facts
        self.saved._fingerprint = fingerprint_of(
            (leaf.name, leaf.dtype_name, leaf.user_shape, crc)
            for leaf, crc in zip(self._leaves, crcs, strict=True)
        )
        self.saved._stages = {
            "snapshot": self._snapshot_s,
            "encode": self._writer.encode_s,
            "write": written - begin,
            "commit": ended - written,
        }

    def _finish_together(self) -> tuple[int, list[int]]:
        """Process 0 commits once all have written their share."""
        job, sink, places = self._hosts, self._sink, self._places
        assert sink is not None
        self._file.close()
        if job.index > 0:
            sink.commit()  # what it wrote is on the disk
        rows = np.flatnonzero(places.file != NONE)
        columns = [column[rows].tobytes() for column in places.columns]
        share = _Share([(self._data, self._writer.end)], rows.astype("<u8").tobytes(), columns)
        shares = job.gather("writing", msgspec.msgpack.encode(share))
        done = b""
        if job.index == 0:
            # The nodes of the database go to a file of their own, the first.
            name = f"d/{secrets.token_hex(16)}"
            self._file = sink.create(self._prefix + name)
            files = [(name, 0)]
            for data in shares:
                share = msgspec.msgpack.decode(data, type=_Share)
                rows = np.frombuffer(share.rows, "<u8").astype(np.int64)
                for column, part in zip(places.columns, share.columns, strict=True):
                    column[rows] = np.frombuffer(part, column.dtype)
                places.file[rows] = len(files)
                files += share.files
            lost = np.flatnonzero(places.file == NONE)
            if len(lost):
                i = int(np.searchsorted(places.first, lost[0], side="right")) - 1
                raise SaveError("No process has the values", leaf=self._leaves[i].name)
            done = msgspec.msgpack.encode(self._finish(files))
        return msgspec.msgpack.decode(job.tell_all("committing", done), type=tuple[int, list[int]])

    def _finish(self, files: list[tuple[str, int]]) -> tuple[int, list[int]]:
        """Writes all that is no array, and commits.

        Args:
            files: Path and bytes of the data files; the nodes of the database go to the first.

        Returns:
            Bytes of all files, and the crc32c of each leaf.
        """
        assert self._sink is not None
        with paused():
            total, crcs = self._describe(files)
        self._sink.commit()
        if isinstance(self._sink, Staging):
            for left in stale(self._sink.path):
                with suppress(SaveError):  # it is in nobody's way
                    remove(left)
        return total, crcs

    def _describe(self, files: list[tuple[str, int]]) -> tuple[int, list[int]]:
        assert self._sink is not None
        leaves, chunks, places = self._leaves, self._chunks, self._places
        level, metrics = self._request.level, self._request.metrics
        (name, end), *others = files
        nodes_at = -(-end // ALIGN) * ALIGN
        data_files = [DataFile(path, path.find("/d/") + 1) for path, _ in files]
        nodes, manifest = database(leaves, chunks, places, data_files, nodes_at, level)
        self._file.write(nodes, nodes_at)
        self._file.close()
        files = [(name, nodes_at + len(nodes)), *others]
        small = tree_files(leaves, chunks, self._empties) | {_ocdbt.MANIFEST: manifest}
        ended_ns = time.time_ns()
        about = {"custom_metadata": self._request.metadata, "metrics": metrics}
        if not self._request.item:
            small |= commit_files(STANDARD, self._begun_ns, ended_ns, about)
        crcs = places.fingerprints(leaves, chunks)
        small[_index.FILE] = index_file(
            leaves, chunks, places, files, small, self._empties, level is not None, crcs
        )
        done = f"Checkpoint commit was successful to {self._sink.path}".encode()
        small[COMMITTED] = done
        written = {self._prefix + name: data for name, data in small.items()}
        if self._request.item:
            handlers = {self._request.item: STANDARD}
            if metrics is not None:
                handlers["metrics"] = JSON
                written["metrics/metrics"] = json.dumps(dict(metrics)).encode()
            written |= commit_files(handlers, self._begun_ns, ended_ns, about)
            written[COMMITTED] = done
        for name, data in written.items():
            self._sink.put(name, data)
        total = sum(size for _, size in files) + sum(map(len, written.values()))
        return total, crcs.tolist()


def _refuse_other(source: Source) -> None:
    """Refuses to replace a directory that is no single checkpoint: a run, or a home."""
    if next(source.children(), None) is None:
        return
    root = examine(source)
    if root is None or root.what not in ("item", "items"):
        what = f"{len(root.steps)} steps" if root is not None and root.steps else "other files"
        raise SaveError(
            f"overwrite=True replaces a checkpoint, found {what}",
            file=source.url,
            hint="save under another name",
        )


def _chunk_shape(leaf: Leaf) -> Shape:
    if leaf.value_type == "string":
        return ()
    tile = leaf.shape if leaf.tile is None else leaf.tile
    return chunk_shape(tile, leaf.dtype.itemsize, padded=tile == leaf.shape)
