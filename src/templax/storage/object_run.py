"""The directory of a run in an object store."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Generator, Iterable
from contextlib import contextmanager

from ..errors import AlreadyExists, SaveError, SourceError
from . import lease
from .event_loop import run_request
from .lease import Lease, is_old, watch_leases
from .leftovers import QUIET_S
from .marks import COMMITTED, DELETION, LEASE, list_foreign_names
from .object_sink import list_marks, refuse_foreign
from .object_store import ObjectSource
from .requests import Traffic, Version
from .stores import Store

_log = logging.getLogger("templax")


class ObjectRun:
    """A directory of steps in an object store.

    The run itself is not locked. Saving or deleting a step takes a lease on that step, so two
    programs never write to the same one, and what each of them saves is complete. A lease on the
    whole run would have to be renewed as long as the program trains, and after a crash the next
    program would have to wait until it expires. Readers take no lease, because reading must not
    require the right to write: if a step is deleted while it is read, the read fails.

    Args:
        store: How to reach the store.
        url: The URL of the directory, without a slash at the end.

    Attributes:
        url: As given.
        storage: As given.
    """

    def __init__(self, store: Store, url: str):
        self.url, self.storage = url, store
        self._location = store.locate(url)
        self._requests = store.connect(self._location)
        self._dead: dict[str, Version] = {}  # the leases that were watched and not renewed

    @property
    def traffic(self) -> Traffic:
        """The requests made so far."""
        return self._requests.traffic

    def look(self) -> ObjectSource:
        """The directory as it is now."""
        return ObjectSource.over(self._requests, self.storage, self._location)

    def join(self, name: str) -> str:
        """The URL of a name in the directory."""
        return f"{self.url}/{name}"

    def acquire(self) -> None:
        """Refuses stores that can't be written to; see `RunStorage`."""
        if self.storage.refusal:
            raise SaveError(self.storage.refusal, file=self.url, hint=self.storage.refusal_hint)

    def release(self) -> None:
        """Does nothing; see `RunStorage`."""

    @contextmanager
    def hold_for_reading(self, name: str) -> Generator[bool, None, None]:
        """Holds nothing; see `RunStorage`."""
        yield True

    def find_abandoned(self, names: Collection[str], *, watch: bool = True) -> set[str]:
        """See `RunStorage`. A save is in progress as long as its lease is renewed.

        Watching the leases takes up to `LEASE_S`, unless all of them are very old.
        """
        leases, quiet = self._find_leases(names)
        if watch:
            young = [path for path, version in leases.items() if not is_old(version)]
            if young:
                text = "watching %d lease%s of %s for up to %.0f s: are they still renewed?"
                _log.warning(text, len(young), "s" * (len(young) > 1), self.url, lease.LEASE_S)
            gone = watch_leases(self._requests, leases)
            self._dead |= {path: leases[path] for path in gone}
        else:
            gone = {path for path, version in leases.items() if is_old(version)}
        return quiet | {name for name in names if self._path(name) in gone}

    def remove_leftovers(self, names: Collection[str]) -> None:
        """See `RunStorage`. Other programs write no leases, so what they left stays."""
        leases, _ = self._find_leases(names)
        problems: list[SaveError] = []
        for name in sorted(names):
            version = leases.get(self._path(name))
            if version is not None and is_old(version):
                try:
                    self.remove_leftover(name)
                except SaveError as error:
                    problems.append(error)
        if problems:
            raise problems[0]

    def _find_leases(self, names: Collection[str]) -> tuple[dict[str, Version], set[str]]:
        """The leases of some names; and the names without one where nothing was written lately."""
        run = self.look()
        leases, quiet = dict[str, Version](), set[str]()
        for name in names:
            found = {info.key: info for info in run.at(name).walk()}
            if LEASE in found:
                version = found[LEASE].version
                assert isinstance(version, Version)
                leases[self._path(name)] = version
                continue
            newest = max((info.modified or 0.0 for info in found.values()), default=0.0)
            if time.time() - newest > QUIET_S:
                quiet.add(name)
        return leases, quiet

    def delete(self, name: str) -> bool:
        """Deletes a step: first the marker and whatever else marks it as complete, then the rest.

        Returns:
            True.

        Raises:
            SaveError: A process is saving or deleting it; or the store refused. Then either the
                whole step remains, or what remains no longer counts as a step.
        """
        self._delete(name)
        return True

    def remove_leftover(self, name: str) -> None:
        """Deletes what a dead save left at a name, if nothing else is there.

        Its lease is watched for `LEASE_S`, unless `find_abandoned` has watched this version of it.

        Raises:
            SaveError: See `delete`; or others have put something there.
        """
        self._delete(name, is_leftover=True)

    def _delete(self, name: str, *, is_leftover: bool = False) -> None:
        lease_path = self._path(name)
        start = len(lease_path) - len(LEASE)
        try:
            held = Lease(self._requests, lease_path, dead=self._dead.get(lease_path))
            try:
                found = run_request(held.hold_during(self._list(lease_path[: start - 1])))
                inside = [path[start:] for path in found]
                if is_leftover and COMMITTED in inside and DELETION not in inside:
                    held.release()
                    raise SaveError("A checkpoint was saved here meanwhile", file=self.join(name))
                if is_leftover and held.took_over:
                    refuse_foreign(list_foreign_names(inside, held.own.all), self.join(name))
                held.record(doomed=(path.partition("/")[0] for path in inside))
                marks = list_marks(found)
                run_request(held.hold_during(self._delete_one_by_one(marks)))
                held.check()  # what follows may be the files of a save that took this over
                rest = sorted({*found} - {*marks, lease_path})
                run_request(held.hold_during(self._requests.delete(rest)))
            except BaseException:
                held.abandon()
                raise
            held.release()
        except AlreadyExists as error:
            raise SaveError(error.what, file=self.join(name), hint="wait for it") from error
        except SourceError as error:
            raise SaveError(f"can't remove: {error}", file=self.join(name)) from error

    def _path(self, name: str) -> str:
        """The path of the lease of a step."""
        path = f"{name}/{LEASE}"
        return f"{self._location.path}/{path}" if self._location.path else path

    async def _list(self, directory: str) -> list[str]:
        """The paths of all objects in a directory."""
        found: list[str] = []
        async for objects in self._requests.list_all(directory):
            found += [meta["path"] for meta in objects]
        return found

    async def _delete_one_by_one(self, marks: Iterable[str]) -> None:
        """Deletes what marks a step as complete. To a reader, each of these means that it is."""
        for path in marks:
            await self._requests.delete([path])
