"""JAX. Saving in order: snapshot, layout, write, commit."""

from __future__ import annotations

import atexit
import json
import os
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ._api import count
from ._collector import paused
from ._errors import SaveError, UsageError
from ._execute import MAX_THREADS, cores
from ._fingerprint import Fingerprint, fingerprint_of
from ._layout import Leaf, Places, chunk_shape
from ._plan import MEMORY_BYTES
from ._snapshot import Empty, copied, leaves_of
from ._write import Writer
from .formats import _index, _ocdbt
from .formats._ocdbt_write import DataFile
from .formats._orbax_root import COMMITTED
from .formats._orbax_save import (
    JSON,
    STANDARD,
    commit_files,
    database,
    index_file,
    tree_files,
)
from .sources import Sink, open_staging

PyTree = Any
Progress = Callable[[int, int], None]

_ZSTD_LEVEL = 1
_COMPRESSION = re.compile(r"zstd(?::(?P<level>[0-9]{1,2}))?")


def save(
    url: str | os.PathLike[str],
    tree: PyTree,
    *,
    format: Literal["orbax"] = "orbax",
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    wait: bool = True,
    compression: str | None = None,
    memory: int | None = None,
    threads: int | None = None,
    on_progress: Progress | None = None,
) -> Saved:
    """Saves a pytree: as a checkpoint that is wholly there or not at all.

    Every Orbax since 0.6 restores it. By default its arrays lie raw and aligned in one file, so
    that `restore` reads them straight to where they will stay, or maps them; each chunk has a
    checksum, which `restore` checks. Killed at any instant, what was at `url` before is still
    there, or the new checkpoint is; nothing in between is ever visible under that name.

    Args:
        url: A local path that does not exist yet, or an empty directory. Parents are made.
        tree: Any pytree of arrays (typed PRNG keys too), numbers, strings and None. Functions in it
            are left out: the template that restores it supplies them.
        format: The layout; "orbax" is the only one.
        metadata: JSON that goes with it; Orbax calls it `custom_metadata`.
        overwrite: Replaces a checkpoint that is there, in one step.
        wait: False returns as soon as the values are safe in memory of their own: the arrays may be
            donated or overwritten while they are written. It takes as much memory as the tree.
        compression: None, `"zstd"` or `"zstd:LEVEL"` (1 to 22; 1 if not said): fewer bytes, more
            cycles at each restore, nothing to map.
        memory: Host bytes that are fetched from devices and not yet written; default 2 GiB. A leaf
            that is larger is fetched alone.
        threads: Workers. Default: the cores of this process, at most 8.
        on_progress: Called with bytes written and bytes in all, at most ten times a second; with
            `wait=False` from another thread.

    Returns:
        What was written, once it is; with `wait=False` the handle of a save that goes on. The next
        save, and the end of the process, wait for it.

    Raises:
        SaveError: A leaf that can't be saved, by its name and before a file is made; the disk is
            full or failed; or a save with `wait=False` failed that nobody waited for. What was at
            `url` is untouched, and nothing is left beside it.
        Exists: Something is at `url`.
        UsageError: An argument that means nothing.

    Example:
        >>> import jax.numpy as jnp, os, tempfile, templax as tx
        >>> path = os.path.join(tempfile.mkdtemp(), "ckpt")
        >>> saved = tx.save(path, {"w": jnp.ones((2, 3)), "step": 7}, metadata={"run": "a"})
        >>> saved.leaves, saved.fingerprint == tx.fingerprint({"step": 7, "w": jnp.ones((2, 3))})
        (2, True)
        >>> tx.restore(path, {"w": jnp.zeros((2, 3)), "step": 0})["step"]
        7
    """
    request = _request(format, metadata, overwrite, compression, memory, threads, on_progress)
    return start(url, tree, request, wait=wait)


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


def _request(
    format: str,
    metadata: Mapping[str, Any] | None,
    overwrite: bool,
    compression: str | None,
    memory: int | None,
    threads: int | None,
    on_progress: Progress | None,
) -> Request:
    if format != "orbax":
        raise UsageError(f'Expected format="orbax", got {format!r}')
    level = None
    if compression is not None:
        found = _COMPRESSION.fullmatch(compression) if isinstance(compression, str) else None
        level = int(found["level"] or _ZSTD_LEVEL) if found else 0
        if not 1 <= level <= 22:
            raise UsageError(
                f'Expected compression=None, "zstd" or "zstd:1" to "zstd:22", got {compression!r}'
            )
    try:
        metadata = json.loads(json.dumps({} if metadata is None else dict(metadata)))
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"Expected metadata= a mapping of JSON values: {error}") from error
    return Request(
        metadata or {},
        overwrite,
        level,
        MEMORY_BYTES if memory is None else count("memory", memory),
        min(MAX_THREADS, cores()) if threads is None else count("threads", threads),
        on_progress,
    )


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


_running: Saved | None = None
_failed: list[Saved] = []
_turn = threading.Lock()


def start(url: str | os.PathLike[str], tree: PyTree, request: Request, *, wait: bool) -> Saved:
    """Saves a tree, or begins to."""
    global _running
    with _turn:
        if _running is not None:
            _running._ended.wait()
            _running = None
        _raise_unseen()
        begin = time.perf_counter()
        with paused():
            leaves, empties = leaves_of(tree)
        sink = open_staging(url, overwrite=request.overwrite)
        try:
            if not wait:
                copied(leaves, request.threads)
            with paused():
                job = _Job(
                    sink, leaves, empties, request, time.perf_counter() - begin, forget=not wait
                )
        except BaseException:
            sink.discard()
            raise
        if not wait:
            _running = job.saved
            threading.Thread(target=job.run, name="templax-save").start()
            return job.saved
    job.run()
    return job.saved.wait()


def _raise_unseen() -> None:
    """Raises what failed in the background since somebody last waited."""
    while _failed:
        saved = _failed.pop(0)
        if not saved._seen:
            saved._seen = True
            assert saved._error is not None
            raise SaveError(
                f"An earlier save failed: {saved._error}", file=saved.path
            ) from saved._error


@atexit.register
def _report_unseen() -> None:
    for saved in _failed:
        if not saved._seen:
            sys.stderr.write(f"templax: {saved.path} was NOT saved: {saved._error}\n")


class _Job:
    """One save from its snapshot to its end."""

    def __init__(
        self,
        sink: Sink,
        leaves: Sequence[Leaf],
        empties: Sequence[Empty],
        request: Request,
        snapshot_s: float,
        *,
        forget: bool,
    ):
        self.saved = Saved(sink.path, len(leaves))
        self._sink, self._leaves, self._empties, self._request = sink, leaves, empties, request
        self._snapshot_s = snapshot_s
        self._begun_ns = time.time_ns()
        self._chunks = [
            () if leaf.value_type == "string" else _chunk_shape(leaf) for leaf in leaves
        ]
        self._places = Places(leaves, self._chunks)
        self._prefix = f"{request.item}/" if request.item else ""
        self._data = DataFile(f"d/{secrets.token_hex(16)}")
        self._file = sink.create(self._prefix + self._data.path)
        self._background = forget
        self._writer = Writer(
            leaves,
            self._chunks,
            self._places,
            self._file,
            0,
            process=0,
            level=request.level,
            threads=request.threads,
            memory=request.memory,
            forget=forget,
        )

    def run(self) -> None:
        """Writes and commits; leaves what comes of it in `saved`."""
        saved = self.saved
        try:
            try:
                self._run()
            except BaseException:
                self._sink.discard()
                raise
            if self._request.after is not None:
                self._request.after()
        except BaseException as error:
            saved._error = error
            if self._background:
                _failed.append(saved)
            elif not isinstance(error, Exception):
                raise
        finally:
            self._leaves = ()
            saved._ended.set()

    def _run(self) -> None:
        begin = time.perf_counter()
        self._writer.wait(self._request.on_progress)
        written = time.perf_counter()
        with paused():
            self._describe()
        self._sink.commit()
        ended = time.perf_counter()
        self.saved._stages = {
            "snapshot": self._snapshot_s,
            "encode": self._writer.encode_s,
            "write": written - begin,
            "commit": ended - written,
        }

    def _describe(self) -> None:
        """Writes all that is no array."""
        leaves, chunks, places, level = (
            self._leaves,
            self._chunks,
            self._places,
            self._request.level,
        )
        nodes_at = -(-self._writer.end // 64) * 64
        nodes, manifest = database(leaves, chunks, places, [self._data], nodes_at, level)
        self._file.write(nodes, nodes_at)
        self._file.close()
        size = nodes_at + len(nodes)
        others = tree_files(leaves, chunks, self._empties) | {_ocdbt.MANIFEST: manifest}
        ended_ns = time.time_ns()
        about = {"custom_metadata": self._request.metadata, "metrics": self._request.metrics}
        if not self._request.item:
            others |= commit_files(STANDARD, self._begun_ns, ended_ns, about)
        files = [(self._data.path, size)]
        prints = places.fingerprints(leaves, chunks)
        index = index_file(
            leaves, chunks, places, files, others, self._empties, level is not None, prints
        )
        others[_index.FILE] = index
        done = f"Checkpoint commit was successful to {self._sink.path}".encode()
        others[COMMITTED] = done
        written = {self._prefix + name: data for name, data in others.items()}
        if self._request.item:
            handlers = {self._request.item: STANDARD}
            if self._request.metrics is not None:
                handlers["metrics"] = JSON
                written["metrics/metrics"] = json.dumps(dict(self._request.metrics)).encode()
            written |= commit_files(handlers, self._begun_ns, ended_ns, about)
            written[COMMITTED] = done
        for name, data in written.items():
            self._sink.put(name, data)
        self.saved._nbytes = size + sum(map(len, written.values()))
        self.saved._fingerprint = fingerprint_of(
            (leaf.name, leaf.dtype_name, leaf.user_shape, crc)
            for leaf, crc in zip(leaves, prints.tolist(), strict=True)
        )


def _chunk_shape(leaf: Leaf) -> tuple[int, ...]:
    if leaf.tile is None:
        return chunk_shape(leaf.shape, leaf.dtype.itemsize)
    return chunk_shape(leaf.tile, leaf.dtype.itemsize, padded=False)
