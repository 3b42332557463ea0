"""A checkpoint that is written to an object store."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress

from ..errors import (
    AlreadyExists,
    CheckpointError,
    NotFound,
    SaveError,
    SourceError,
    TemplaxError,
    UsageError,
)
from .event_loop import run_request
from .lease import Lease
from .marks import COMMITTED, DATA_FILE, LEASE, STEP_METADATA, list_foreign_names
from .object_file import ObjectFile
from .object_store import ObjectSource
from .request_errors import PreconditionFailed
from .requests import Condition, Version, gather, make_condition
from .source import Source
from .staged_objects import StagedObjects
from .stores import Store

_log = logging.getLogger("templax")

_MARKS = (COMMITTED, STEP_METADATA)
"""What tells readers that a checkpoint is complete. The first is the marker, written last."""


class ObjectSink:
    """A checkpoint below a path of an object store, which is complete once its marker is written.

    A store can't move a directory. So data files, which have random names, are uploaded as they are
    written. All other files are kept in memory until `commit` writes them, and last the marker, on
    condition that there is none. Meanwhile, a lease (`lease.py`) keeps other writers away.

    To replace a checkpoint, `commit` deletes its marker, writes the new files and the marker, and
    deletes the old data files. If one of these steps fails, it puts the old files back. If the
    process is killed between deleting the old marker and writing the new one, there is no
    checkpoint; at any other moment, there is one.

    Args:
        store: How to reach the store.
        url: Final location, such as "s3://bucket/run/100".
        overwrite: Whether an existing checkpoint may be replaced.
        others: Lists the names that others put beside the checkpoint that is replaced; None if
            nothing else can be there.
        keeps: Whether these names are kept. Otherwise they are an error.

    Attributes:
        path: The same as `url`.
        directory: The token of the lease, which other processes need to add files.
        committed: Whether the marker is written.
        not_removed: URLs of objects that could not be deleted in the end.

    Raises:
        AlreadyExists: There is a checkpoint, and `overwrite` is False; or another process is
            saving one.
        SaveError: The store can't be written to, or refused.
    """

    def __init__(
        self,
        store: Store,
        url: str,
        *,
        overwrite: bool,
        others: Callable[[Source], list[str]] | None = None,
        keeps: bool = False,
    ):
        self._init_state(store, url, overwrite=overwrite)
        if store.refusal:
            raise SaveError(store.refusal, file=url, hint=store.refusal_hint)
        if not self._root:
            raise SaveError("Expected a path in the bucket, got the bucket itself", file=url)
        try:
            with self._translate_errors("save"):
                found = run_request(self._list())
                self._check_free(found, had_lease=False)
                run_request(self._mark_old(found))
                self._lease = Lease(self._requests, self._join(LEASE))
                self.directory = self._lease.token
                self._old = run_request(self._list())
                self._old.pop(self._join(LEASE), None)
                self._check_free(self._old, had_lease=self._lease.took_over)
                self._kept = frozenset(self._find_others(others, keeps=keeps))
                self._old = {
                    path: version
                    for path, version in self._old.items()
                    if self._find_name(path) not in self._kept
                }
        except BaseException:  # such as an interrupt: the caller has no object to discard yet
            self.discard()
            raise

    @classmethod
    def join(cls, store: Store, url: str, directory: str) -> ObjectSink:
        """Adds files to a save that another process started and that only it commits or discards.

        Args:
            store: How to reach the store.
            url, directory: `path` and `directory` of that process's sink.
        """
        self = cls.__new__(cls)
        self._init_state(store, url, overwrite=False)
        self.directory = directory
        return self

    def _init_state(self, store: Store, url: str, *, overwrite: bool) -> None:
        location = store.locate(url)
        self._requests, self._root = store.connect(location), location.path
        self._store, self._location, self._uploads = store, location, None
        self.path = f"{location.url}/{location.path}"
        self.directory, self.committed = "", False
        self.not_removed: tuple[str, ...] = ()
        self._overwrite, self._ended = overwrite, False
        self._files: list[ObjectFile] = []
        self._small: dict[str, bytes] = {}  # path → content, in the order of `put`
        self._old: dict[str, Version] = {}  # what was there before, except what is kept
        self._kept: frozenset[str] = frozenset()  # names that others put there
        self._marked_old = False  # whether `_mark_old` wrote a marker
        self._taken: dict[str, bytes] = {}  # small files of the old checkpoint, to put back
        self._conditions: dict[str, Condition] = {}  # what is still there of them
        self._written: set[str] = set()  # small files that `commit` has written, or tried to
        self._lease: Lease | None = None
        self._guard = threading.RLock()

    def create(self, key: str) -> ObjectFile:
        """See `Sink`."""
        path = self._check_key(key)
        with self._translate_errors("create"), self._guard:
            if self._uploads is None:
                self._uploads = self._store.make(self._location, retries=True)
            file = ObjectFile(self._uploads, self._requests, path)
            self._files.append(file)
            return file

    def put(self, key: str, data: bytes | bytearray | memoryview) -> None:
        """Keeps a small file, which `commit` writes. See `Sink`."""
        path = self._check_key(key)
        with self._guard:
            self._small.pop(path, None)
            self._small[path] = bytes(data)

    def preview(self) -> Source:
        """The checkpoint as it will be, to read before `commit`. Closes all files.

        Raises:
            SaveError: See `SinkFile.close`.
        """
        for file in list(self._files):
            file.close()
        small = {self._relative(path): data for path, data in self._small.items()}
        data = {self._relative(file.path): file.size for file in self._files}
        return StagedObjects(small, data, ObjectSource(self._store, self.path))

    def commit(self) -> None:
        """See `Sink`. The file that was `put` last is the marker."""
        with self._translate_errors("finish"):
            with self._guard:
                self._check()
                files = list(self._files)
                if self._lease is not None and not self._small:
                    raise UsageError("Expected files, of which the last is the marker, got none")
            for file in files:
                file.close()
            if self._lease is None:
                self._ended = True
                return
            self._refuse_taken((*self._small, *(file.path for file in files)))
            # From here on, what is at the path may be a part of either checkpoint.
            self._lease.record(names=map(self._find_name, (*self._old, *self._small)))
            run_request(self._lease.hold_during(self._take_markers_away()))
            *others, marker = self._small
            written = gather(self._put_new(path, self._small[path]) for path in others)
            run_request(self._lease.hold_during(written))
            self._lease.check()
            marked = self._small[marker] + f" ({self.directory})".encode()
            run_request(self._lease.hold_during(self._put_new(marker, marked)))
            self.committed = self._ended = True
        if self._kept:
            text = "%s is replaced, and keeps what it did not write: %s"
            _log.info(text, self.path, ", ".join(sorted(self._kept)))
        new = {*self._small, *(file.path for file in files)}
        self.not_removed = run_request(self._delete_all(self._old.keys() - new))
        self._lease.release()

    def discard(self) -> None:
        """See `Sink`."""
        with self._guard:
            if self._ended:
                return
            self._ended = True
        for file in self._files:
            file.abandon()
        written = {file.path for file in self._files}
        try:
            # Where another process has the lease, only data files are certain to be ours.
            if self._lease is not None and self._lease.is_held():
                run_request(self._put_back())
                marker = self._join(COMMITTED)
                if self._marked_old and self._old.keys() <= {marker}:
                    # All else is kept: `_mark_old` took it for a checkpoint, which it is not.
                    run_request(self._requests.delete([marker]))
                written |= self._written - self._taken.keys()
            self.not_removed = run_request(self._delete_all(written - self._old.keys()))
        except TemplaxError:
            self.not_removed = (self.path,)
        if self._lease is not None:
            # The lease marks what could not be removed, or another save left, as unfinished, and
            # tells what belongs to it.
            is_left = self._is_left() or (self._lease.took_over and self._lease.own.names)
            if self.not_removed or is_left:
                self._lease.abandon()
            else:
                self._lease.release()

    def __enter__(self) -> ObjectSink:
        return self

    def __exit__(self, *exc: object) -> None:
        self.discard()

    def _join(self, key: str) -> str:
        return f"{self._root}/{key}"

    def _check_key(self, key: str) -> str:
        self._check()
        if "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
            raise UsageError(f"Expected a path below the checkpoint, got {key!r}")
        return self._join(key)

    def _check(self) -> None:
        if self._ended:
            raise SaveError("The save was already committed or discarded", file=self.path)

    @contextmanager
    def _translate_errors(self, action: str) -> Generator[None, None, None]:
        """Discards the save if the block fails, and turns a `SourceError` into a `SaveError`."""
        try:
            yield
        except SaveError:
            self.discard()
            raise
        except (SourceError, CheckpointError) as error:
            self.discard()
            rest = "nothing was saved and nothing is left behind"
            if self.not_removed:
                rest = f"nothing was saved, but `{self.not_removed[0]}` could not be removed"
            raise SaveError(f"can't {action}: {error}; {rest}", file=self.path) from error

    async def _list(self) -> dict[str, Version]:
        """The objects below the path."""
        found: dict[str, Version] = {}
        async for objects in self._requests.list_all(self._root):
            found |= {meta["path"]: Version.of(meta) for meta in objects}
        return found

    def _check_free(self, found: Mapping[str, Version], *, had_lease: bool) -> None:
        """Refuses a path that is taken, unless its contents may be replaced or are a leftover.

        Raises:
            AlreadyExists: There is a checkpoint, or something that no save left behind.
        """
        lease = self._join(LEASE)
        others = [path for path in found if path != lease and not self._is_data(path)]
        whole = self._join(COMMITTED) in found or not (had_lease or lease in found)
        if others and whole and not self._overwrite:
            raise AlreadyExists(
                f"Expected nothing, found objects such as `{others[0]}`",
                file=self.path,
                hint="overwrite=True replaces a checkpoint; or save under another name",
            )

    def _find_others(
        self, others: Callable[[Source], list[str]] | None, *, keeps: bool
    ) -> list[str]:
        """The names directly below the path of what belongs neither to a checkpoint nor to a save.

        Raises:
            SaveError: There are some, and they are not kept.
        """
        assert self._lease is not None
        if self._is_left():
            foreign = list_foreign_names(map(self._relative, self._old), self._lease.own.all)
            if not keeps:
                refuse_foreign(foreign, self.path)
            return foreign
        if others is None or not self._old:
            return []
        # The lease is that of this save, and the marker may be that of `_mark_old`.
        own = {LEASE, COMMITTED, *self._lease.own.names}
        names = [name for name in others(ObjectSource(self._store, self.path)) if name not in own]
        if names and not keeps:
            raise SaveError(
                f"overwrite=True replaces one checkpoint, found `{names[0]}` in it",
                file=self.path,
                hint="save under another name",
            )
        return names

    def _is_left(self) -> bool:
        """Whether what was there before is left of a save or deletion that was killed."""
        assert self._lease is not None
        return self._lease.took_over and self._join(COMMITTED) not in self._old

    def _refuse_taken(self, paths: Iterable[str]) -> None:
        """Refuses names that the new checkpoint uses itself.

        Raises:
            SaveError: One of them is kept.
        """
        taken = sorted(self._kept & {self._find_name(path) for path in paths})
        if taken:
            raise SaveError(
                f"Expected another name than `{taken[0]}`, which others use there",
                file=self.path,
                hint="save under another name, or move it",
            )

    def _relative(self, path: str) -> str:
        """The path of an object below the root."""
        return path[len(self._root) + 1 :]

    def _find_name(self, path: str) -> str:
        """The name directly below the root that the path of an object has."""
        return self._relative(path).partition("/")[0]

    def _is_data(self, path: str) -> bool:
        """Whether this is a data file, which is not a checkpoint without its index."""
        return DATA_FILE.fullmatch(self._relative(path)) is not None

    async def _mark_old(self, found: Mapping[str, Version]) -> None:
        """Writes a marker for the old checkpoint if it was copied from a disk without one.

        Otherwise the lease would make it look unfinished while the new one is being written.
        """
        others = [path for path in found if not self._is_data(path)]
        if not others or found.keys() & {self._join(COMMITTED), self._join(LEASE)}:
            return
        about = self._join(STEP_METADATA)
        if about in found:
            try:
                _, data = await self._requests.fetch_whole(about)
                if json.loads(data)["commit_timestamp_nsecs"] is None:
                    return
            except (NotFound, ValueError, KeyError, TypeError):
                return
        with suppress(PreconditionFailed):
            await self._requests.put(self._join(COMMITTED), b"", "create")
            self._marked_old = True

    async def _take_markers_away(self) -> None:
        """Keeps the small files of the old checkpoint in memory, and deletes its markers."""
        marks = list_marks(self._old)
        for path in {*marks, *self._small.keys()} & self._old.keys():
            with suppress(NotFound):
                version, self._taken[path] = await self._requests.fetch_whole(path)
                self._conditions[path] = make_condition(version.etag, version.generation)
        for path in marks:  # one at a time: to a reader, either means that it is complete
            await self._requests.delete([path])
            self._conditions.pop(path, None)

    async def _put_new(self, path: str, data: bytes) -> None:
        """Writes a small file, unless another process has written it meanwhile.

        Raises:
            AlreadyExists: Another process has, so it has taken this save over.
        """
        self._written.add(path)
        try:
            await self._requests.put(path, data, self._conditions.get(path, "create"))
        except PreconditionFailed:
            # It may be our own, if the answer to an earlier attempt was lost.
            if (await self._requests.fetch_whole(path))[1] != data:
                self._written.discard(path)
                raise AlreadyExists(
                    "Another process saved a checkpoint here during the save", file=self.path
                ) from None

    async def _put_back(self) -> None:
        """Writes the files of the old checkpoint again, its markers last."""
        taken = self._taken.items()
        others = [(path, data) for path, data in taken if path.rpartition("/")[2] not in _MARKS]
        await gather(self._requests.put(path, data) for path, data in others)
        for path in sorted(self._taken.keys(), key=lambda path: path.endswith(COMMITTED)):
            if path.rpartition("/")[2] in _MARKS:
                await self._requests.put(path, self._taken[path])

    async def _delete_all(self, paths: Iterable[str]) -> tuple[str, ...]:
        """Deletes objects; returns the URLs of those that could not be deleted."""
        try:
            await self._requests.delete(sorted(paths))
        except SourceError:
            left = await self._list()
            return tuple(f"{self._location.url}/{path}" for path in paths if path in left)
        return ()


def list_marks(paths: Iterable[str]) -> list[str]:
    """The objects that mark a checkpoint as complete, in the order in which to delete them."""
    marks = [path for path in paths if path.rpartition("/")[2] in _MARKS]
    return sorted(marks, key=lambda path: (path.count("/"), path.endswith(STEP_METADATA)))


def refuse_foreign(foreign: Sequence[str], url: str) -> None:
    """Refuses to delete the rest of a save or deletion that was killed, if others put something
    there.

    Args:
        foreign: See `list_foreign_names`.
        url: The directory.

    Raises:
        SaveError: They did.
    """
    if foreign:
        raise SaveError(
            "Expected nothing but the rest of an unfinished save or deletion, found"
            f" `{foreign[0]}`, which does not belong to it",
            file=url,
            hint=f"move `{foreign[0]}`; then the rest can be replaced or removed",
        )
