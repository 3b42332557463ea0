"""Leases: objects by which one writer at a time holds a checkpoint in an object store.

A store has no locks, but it can refuse to create an object that exists, or to replace one that is
not the version its writer has seen. A lease is such an object. Its holder replaces it again and
again; if it stays the same for longer than it takes to do so several times, its holder is dead, and
another writer may replace it. Nobody's clock is compared with another's.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import suppress

from ..errors import AlreadyExists, NotFound, SaveError, SourceError
from .event_loop import run_request
from .requests import Condition, PreconditionFailed, Requests, make_condition

LEASE_S = 45.0
"""A lease that has not been renewed for this long is abandoned."""

_RENEWALS = 4
"""How often a lease is renewed in that time."""

_LONG_AGO = 20
"""A lease older than this many times its length is abandoned, however clocks may differ."""

NAME = "templax.lease"
"""The name of the lease in the directory of a checkpoint that is being saved."""


class Lease:
    """The right to write a checkpoint, held until `release` or the end of the process.

    Args:
        requests: The store.
        path: Path of the lease in it.
        lease_s: See `LEASE_S`.

    Attributes:
        token: Tells this holder from others.
        took_over: Whether there was one, of a process that is gone.

    Raises:
        AlreadyExists: Another process holds it.
        SourceError: The store failed.
    """

    def __init__(self, requests: Requests, path: str, lease_s: float = LEASE_S):
        self._requests, self._path, self._lease_s = requests, path, lease_s
        self.token = os.urandom(8).hex()
        self.took_over = False
        self._lost: str | None = None
        self._renewed = time.monotonic()
        self._done = threading.Event()
        self._mode: Condition = {}
        self._renewing = threading.Lock()
        self._acquire()
        self._thread = threading.Thread(target=self._keep, name="templax-lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Renews the lease now.

        Raises:
            SaveError: Another process has taken it, or it could not be renewed in time.
        """
        self._renew()
        if self._lost is not None:
            raise SaveError(self._lost, file=f"{self._requests.url}/{self._path}")

    def release(self) -> None:
        """Gives the lease back, unless another process has it by now. Never raises; idempotent."""
        if self._done.is_set():
            return
        self._done.set()
        self._thread.join()
        if self._lost is None:
            with suppress(SourceError):  # it will be taken for abandoned
                run_request(self._requests.delete([self._path]))

    def _acquire(self) -> None:
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
                    f"Another process is saving this checkpoint, as it renews `{place}`",
                    file=place.rpartition("/")[0],
                    hint="wait for it, or save under another name",
                )
            if seen is None:
                seen, deadline = found, now + self._lease_s
            if now > deadline or time.time() - found.modified > _LONG_AGO * self._lease_s:
                try:
                    self._put(make_condition(found.etag, found.generation))
                    self.took_over = True
                    return None
                except PreconditionFailed:  # another process took it at the same time
                    seen = None
                    continue
            time.sleep(min(1.0, self._lease_s / 20))

    def _put(self, mode: Condition | str) -> None:
        """Writes the lease.

        Raises:
            PreconditionFailed: It is another process's.
        """
        content = {
            "token": self.token,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "renewed": time.time(),
        }
        begin = time.monotonic()
        try:
            data = json.dumps(content).encode()
            self._mode = run_request(self._requests.put(self._path, data, mode))
        except PreconditionFailed:
            self._mode = self._find_own()  # the answer to an earlier attempt may have been lost
        self._renewed = begin

    def _find_own(self) -> Condition:
        try:
            version, data = run_request(self._requests.fetch_whole(self._path))
        except NotFound:
            raise PreconditionFailed("The lease is gone") from None
        try:
            token = json.loads(data)["token"]
        except (ValueError, KeyError, TypeError):
            token = None
        if token != self.token:
            raise PreconditionFailed("The lease is another process's")
        return make_condition(version.etag, version.generation)

    def _keep(self) -> None:
        while not self._done.wait(self._lease_s / _RENEWALS) and self._lost is None:
            self._renew()

    def _renew(self) -> None:
        with self._renewing:
            try:
                self._put(self._mode)
            except PreconditionFailed:
                self._lost = "Another process has taken this save over, or removed its lease"
            except SourceError as error:
                if time.monotonic() - self._renewed > self._lease_s / 2:
                    self._lost = f"The lease of this save could not be renewed: {error}"
