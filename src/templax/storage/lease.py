"""Leases: objects by which one writer at a time holds a checkpoint in an object store.

A store has no locks, but it can refuse to create an object that exists, or to replace one that is
not the version its writer has seen. A lease is such an object. Its holder replaces it again and
again; if it stays the same for longer than it takes to do so several times, its holder is dead, and
another writer may replace it. Clocks are not compared, except that a lease of over 15 minutes ago
is taken for abandoned at once.

A lease also lists what belongs to its holder, so that whoever takes it over can tell what the
holder left from what others have put there.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import msgspec

from ..errors import AlreadyExists, NotFound, SaveError, SourceError
from .event_loop import run_request
from .request_errors import PreconditionFailed
from .requests import Condition, Requests, Version, make_condition

T = TypeVar("T")

LEASE_S = 45.0
"""A lease that has not been renewed for this long is abandoned."""

_RENEWALS = 4
"""How often a lease is renewed in that time."""

_LONG_AGO = 20
"""A lease older than this many times `LEASE_S` is abandoned, even if clocks differ."""

_TAKEN = "Another process has taken this save over, or removed its lease"
"""Why a lease is lost."""


class Belongings(msgspec.Struct, frozen=True):
    """The names directly below the directory of a lease that belong to its holders.

    Attributes:
        names: What a save has written, or begun to replace.
        doomed: What a deletion has begun to delete. It may not have come to any of it, as long as
            the checkpoint has its marker.
    """

    names: frozenset[str] = frozenset()
    doomed: frozenset[str] = frozenset()

    @property
    def all(self) -> frozenset[str]:
        """The names of both kinds. If there is no marker, all of them belong to the holders."""
        return self.names | self.doomed


async def read_belongings(requests: Requests, path: str) -> tuple[Version, Belongings]:
    """What a lease says that belongs to its holders, and which version of it does.

    Raises:
        NotFound: The lease does not exist.
        SourceError: The store failed.
    """
    version, data = await requests.fetch_whole(path)
    try:
        return version, msgspec.json.decode(data, type=Belongings)
    except msgspec.DecodeError:  # not a lease of this version of templax
        return version, Belongings()


def is_old(lease: Version, lease_s: float | None = None) -> bool:
    """Whether a lease is so old that it is certainly abandoned, without watching it."""
    return time.time() - lease.modified > _LONG_AGO * (LEASE_S if lease_s is None else lease_s)


def watch_leases(
    requests: Requests, leases: Mapping[str, Version], lease_s: float | None = None
) -> set[str]:
    """The paths of the leases whose holders are gone. Takes up to `LEASE_S`, unless all are old.

    Args:
        requests: The store.
        leases: Path → version, as seen before this call.
        lease_s: See `LEASE_S`.
    """
    length = LEASE_S if lease_s is None else lease_s
    old = {path for path, version in leases.items() if is_old(version, length)}
    begin, still = time.monotonic(), dict(leases)
    while still.keys() - old:
        now = run_request(_describe_all(requests, sorted(still.keys() - old)))
        for path, version in now.items():
            if version is None or not version.is_same(still[path]):
                del still[path]  # it was renewed, or given back
        if time.monotonic() - begin > length:
            break
        time.sleep(length / _RENEWALS)
    return old | still.keys()


async def _describe_all(requests: Requests, paths: Sequence[str]) -> dict[str, Version | None]:
    found = await asyncio.gather(*map(requests.describe, paths))
    return dict(zip(paths, found, strict=True))


class Lease:
    """The right to write a checkpoint, held until `release` or the end of the process.

    Args:
        requests: The store.
        path: Path of the lease in it.
        lease_s: See `LEASE_S`.
        dead: A version of the lease that `watch_leases` has found abandoned. If the lease is still
            that version, it is taken over at once.

    Attributes:
        token: Identifies this holder.
        own: What this holder has recorded, and what those recorded whose leases were taken over.
        took_over: Whether it replaced the lease of a dead process.

    Raises:
        AlreadyExists: Another process holds it.
        SourceError: The store failed.
    """

    def __init__(
        self,
        requests: Requests,
        path: str,
        lease_s: float | None = None,
        *,
        dead: Version | None = None,
    ):
        self._requests, self._path = requests, path
        self._lease_s = LEASE_S if lease_s is None else lease_s
        self.token = os.urandom(8).hex()
        self.took_over, self.own = False, Belongings()
        self._lost: str | None = None
        self._renewed = time.monotonic()
        self._done = threading.Event()
        self._mode: Condition = {}
        self._renewing = threading.Lock()
        self._acquire(dead)
        self._thread = threading.Thread(target=self._keep, name="templax-lease", daemon=True)
        self._thread.start()

    def record(self, *, names: Iterable[str] = (), doomed: Iterable[str] = ()) -> None:
        """Adds names to `own`, and writes them to the store.

        Raises:
            SaveError: Another process has taken the lease.
            SourceError: The store failed.
        """
        with self._renewing:
            self.own = Belongings(self.own.names.union(names), self.own.doomed.union(doomed))
            try:
                self._put(self._mode)
            except PreconditionFailed:
                self._lost = _TAKEN
        self._refuse_lost()

    def check(self) -> None:
        """Renews the lease now.

        Raises:
            SaveError: Another process has taken it, or it could not be renewed in time.
        """
        self._renew()
        self._refuse_lost()

    def _refuse_lost(self) -> None:
        if self._lost is not None:
            raise SaveError(self._lost, file=f"{self._requests.url}/{self._path}")

    async def hold_during(self, request: Coroutine[Any, Any, T]) -> T:
        """Runs requests, and cancels them once another process may have taken the lease.

        Without that, requests that the store refuses for a while would be retried for longer than
        the lease lasts without being renewed.

        Raises:
            SaveError: The lease was lost, or could not be renewed in time.
        """
        task = asyncio.ensure_future(request)
        try:
            while not task.done():
                left = self._renewed + self._lease_s - time.monotonic()
                if self._lost is not None or left <= 0:
                    lost = self._lost or "The lease of this save could not be renewed in time"
                    raise SaveError(lost, file=f"{self._requests.url}/{self._path}")
                await asyncio.wait([task], timeout=min(left, self._lease_s / _RENEWALS))
            return task.result()
        finally:
            task.cancel()
            await asyncio.wait([task])

    def is_held(self) -> bool:
        """Renews the lease now, even if it was late; whether no other process has taken it."""
        with self._renewing:
            try:
                self._put(self._mode)
            except SourceError:
                return False
            self._lost = None
            return True

    def release(self) -> None:
        """Gives the lease back, unless another process has it by now. Never raises; idempotent."""
        if self._done.is_set():
            return
        self._done.set()
        self._thread.join()
        if self._lost is None:
            with suppress(SourceError):  # then it expires, as after a crash
                run_request(self._requests.delete([self._path]))

    def abandon(self) -> None:
        """Stops renewing the lease and leaves it there, as a sign that the rest is incomplete."""
        self._done.set()
        self._thread.join()

    def _acquire(self, dead: Version | None) -> None:
        deadline, seen = 0.0, None
        while True:
            try:
                return self._put("create")
            except PreconditionFailed:
                found = run_request(self._requests.describe(self._path))
            if found is None:  # it was given back just now
                continue
            now = time.monotonic()
            if seen is not None and not seen.is_same(found):
                place = f"{self._requests.url}/{self._path}"
                raise AlreadyExists(
                    f"Another process is saving this checkpoint: it keeps renewing `{place}`",
                    file=place.rpartition("/")[0],
                    hint="wait for it, or save under another name",
                )
            if seen is None:
                seen, deadline = found, now + self._lease_s
            is_dead = dead is not None and dead.is_same(found)
            if now > deadline or is_dead or is_old(found, self._lease_s):
                try:
                    version, self.own = run_request(read_belongings(self._requests, self._path))
                    if version.is_same(found):
                        self._put(make_condition(version.etag, version.generation))
                        self.took_over = True
                        return None
                except (PreconditionFailed, NotFound):  # another process took it at the same time
                    pass
                seen, self.own = None, Belongings()
                continue
            time.sleep(min(1.0, self._lease_s / 20))

    def _put(self, mode: Condition | str) -> None:
        """Writes the lease.

        Raises:
            PreconditionFailed: Another process holds it.
        """
        content = {
            "token": self.token,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "renewed": time.time(),
            "names": sorted(self.own.names),
            "doomed": sorted(self.own.doomed),
        }
        begin, data = time.monotonic(), json.dumps(content).encode()
        try:
            self._mode = run_request(self._requests.put(self._path, data, mode))
        except PreconditionFailed:
            self._mode, written = self._find_own()  # the answer to a request may have been lost
            if written != data:  # to an earlier one
                self._mode = run_request(self._requests.put(self._path, data, self._mode))
        self._renewed = begin

    def _find_own(self) -> tuple[Condition, bytes]:
        """How to replace the lease, and its content, if this process holds it."""
        try:
            version, data = run_request(self._requests.fetch_whole(self._path))
        except NotFound:
            raise PreconditionFailed("The lease is gone") from None
        try:
            token = json.loads(data)["token"]
        except (ValueError, KeyError, TypeError):
            token = None
        if token != self.token:
            raise PreconditionFailed("Another process holds the lease")
        return make_condition(version.etag, version.generation), data

    def _keep(self) -> None:
        while not self._done.wait(self._lease_s / _RENEWALS) and self._lost is None:
            self._renew()

    def _renew(self) -> None:
        with self._renewing:
            try:
                self._put(self._mode)
            except PreconditionFailed:
                self._lost = _TAKEN
            except SourceError as error:
                if time.monotonic() - self._renewed > self._lease_s / 2:
                    self._lost = f"The lease of this save could not be renewed: {error}"
