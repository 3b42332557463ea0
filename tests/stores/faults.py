"""What can go wrong between a client and a store, one class for each, and where it does."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from .messages import Head

_ERROR = "<Error><Code>{}</Code><Message>{}</Message><RequestId>INJECTED</RequestId></Error>"
SLOW_DOWN = _ERROR.format("SlowDown", "Please reduce your request rate.").encode()
EXPIRED_TOKEN = _ERROR.format("ExpiredToken", "The provided token has expired.").encode()


class DropConnectionError(Exception):
    """Ends a connection in place of what was to be sent."""

    def __init__(self, *, reset: bool) -> None:
        super().__init__("reset" if reset else "closed")
        self.reset = reset


@dataclass
class Exchange:
    """A request and what came of it, as a proxy saw them.

    `path` has no query, `target` has; both are as the client escaped them. `status` is None if no
    answer began. Bytes are those of bodies that arrived at the other side. Times are of
    `time.monotonic`.
    """

    number: int
    method: str
    target: str
    head: Head
    began: float
    ended: float | None = None
    status: int | None = None
    sent_bytes: int = 0
    received_bytes: int = 0
    fault: Fault | None = None

    @property
    def path(self) -> str:
        """What is before the query."""
        return self.target.split("?", 1)[0]

    @property
    def query(self) -> str:
        """What is after the question mark."""
        return self.target.partition("?")[2]

    @property
    def is_listing(self) -> bool:
        """Whether the request asks which objects there are."""
        parts = self.query.split("&")
        return self.method == "GET" and ("list-type=2" in parts or "comp=list" in parts)

    @property
    def identity(self) -> tuple[str, str, str | None]:
        """Equal for a request and for one that repeats it."""
        return self.method, self.target, self.head.find("range") or self.head.find("x-ms-range")


class Fault:
    """Nothing wrong. Each kind changes one of the steps of an exchange."""

    def answer(self) -> bytes | None:
        """A response in place of the server's, which then never sees the request."""
        return None

    def before_request(self) -> None:
        """Called before the request goes to the server."""

    def before_response(self, head: Head) -> Head:
        """Called when the server has answered, before the client gets any of it."""
        return head

    def change_body(self, position: int, piece: memoryview) -> memoryview:
        """What is sent of the body's bytes from `position`; may drop the connection instead."""
        del position
        return piece

    stale = False
    reset = False


@dataclass(frozen=True)
class Answer(Fault):
    """A status in place of the server's answer: a store that is overloaded, unless `body` differs.

    The request has the number `INJECTED` in the fields and the body where stores name theirs.
    """

    status: int
    retry_after_seconds: float | None = None
    body: bytes = SLOW_DOWN

    def answer(self) -> bytes:
        """The whole response."""
        lines = [
            f"HTTP/1.1 {self.status} Injected",
            "Content-Type: application/xml",
            f"Content-Length: {len(self.body)}",
            "x-amz-request-id: INJECTED",
            "x-ms-request-id: INJECTED",
            "x-guploader-uploadid: INJECTED",
        ]
        if self.retry_after_seconds is not None:
            lines.append(f"Retry-After: {self.retry_after_seconds:g}")
        return "\r\n".join([*lines, "", ""]).encode() + self.body


@dataclass(frozen=True)
class Refuse(Fault):
    """The connection breaks before the server sees the request."""

    reset: bool = True

    def before_request(self) -> None:
        """Breaks it."""
        raise DropConnectionError(reset=self.reset)


@dataclass(frozen=True)
class LoseAnswer(Fault):
    """The server does what is asked, and the connection breaks before the client hears of it."""

    reset: bool = True

    def before_response(self, head: Head) -> Head:
        """Breaks it."""
        raise DropConnectionError(reset=self.reset)


@dataclass(frozen=True)
class Cut(Fault):
    """The answer's body ends after `at` bytes.

    Args:
        at: Bytes that still arrive.
        reset: Ends the connection with a reset, not as if all were well.
        claim_less: Names `at` as the Content-Length, so that the answer looks whole.
    """

    at: int
    reset: bool = False
    claim_less: bool = False

    def before_response(self, head: Head) -> Head:
        """Changes the length if it is to be wrong."""
        if not self.claim_less:
            return head
        length = min(self.at, head.body_bytes or 0)
        return head.replace("content-length", str(length)).replace("connection", "close")

    def change_body(self, position: int, piece: memoryview) -> memoryview:
        """Lets the first bytes through; the proxy drops the connection at an incomplete piece."""
        return piece[: max(self.at - position, 0)]


@dataclass(frozen=True)
class Corrupt(Fault):
    """The bits of one byte of the answer's body are turned over."""

    at: int = 0

    def change_body(self, position: int, piece: memoryview) -> memoryview:
        """Changes the byte if it is in `piece`."""
        if not position <= self.at < position + len(piece):
            return piece
        changed = bytearray(piece)
        changed[self.at - position] ^= 0xFF
        return memoryview(changed)


@dataclass(frozen=True)
class Delay(Fault):
    """The server gets the request late."""

    seconds: float

    def before_request(self) -> None:
        """Waits."""
        time.sleep(self.seconds)


@dataclass(frozen=True)
class SlowFirstByte(Fault):
    """The server acts at once, and the client gets the first byte of the answer late."""

    seconds: float

    def before_response(self, head: Head) -> Head:
        """Waits."""
        time.sleep(self.seconds)
        return head


@dataclass(frozen=True)
class Stall(Fault):
    """The answer's body stops for a while after `at` bytes."""

    at: int
    seconds: float

    def change_body(self, position: int, piece: memoryview) -> memoryview:
        """Waits before the piece that holds the byte."""
        if position <= self.at < position + len(piece):
            time.sleep(self.seconds)
        return piece


@dataclass(frozen=True)
class StaleListing(Fault):
    """A listing as it was when the proxy first saw its answer, in place of the present one."""

    stale = True


@dataclass
class Rule:
    """Which requests a fault befalls: the next `times` of a method, path and query, or all."""

    fault: Fault
    method: str | None = None
    path: str = "*"
    query: str = "*"
    matches: Callable[[Exchange], bool] | None = None
    skip: int = 0
    times: int | None = 1
    hits: int = field(default=0, init=False)

    def applies(self, exchange: Exchange) -> bool:
        """Whether the fault befalls this request; counts it if so."""
        if self.times is not None and self.hits >= self.times + self.skip:
            return False
        if self.method is not None and exchange.method != self.method:
            return False
        if not fnmatch.fnmatchcase(exchange.path, self.path):
            return False
        if not fnmatch.fnmatchcase(exchange.query, self.query):
            return False
        if self.matches is not None and not self.matches(exchange):
            return False
        self.hits += 1
        return self.hits > self.skip
