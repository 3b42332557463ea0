"""The part of HTTP/1.1 that a proxy needs: heads, and where the body after one ends."""

import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

PIECE_BYTES = 256 * 1024
HEAD_BYTES = 256 * 1024


class ConnectionEndedError(Exception):
    """The other side closed or reset the connection."""


@dataclass(frozen=True)
class Head:
    """The first line and the header fields of a message, and the bytes that they came in."""

    raw: bytes

    @property
    def first(self) -> list[str]:
        """The three words of the first line."""
        return self.raw.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)

    @property
    def status(self) -> int:
        """The status of a response."""
        return int(self.first[1])

    def find(self, name: str) -> str | None:
        """The value of the header field `name`; None if there is none."""
        wanted = name.lower().encode() + b":"
        for line in self.raw.split(b"\r\n")[1:]:
            if line.lower().startswith(wanted):
                return line[len(wanted) :].strip().decode("latin-1")
        return None

    def replace(self, name: str, value: str | None) -> "Head":
        """The same head with another value of `name`, or without it."""
        wanted = name.lower().encode() + b":"
        lines = [
            line for line in self.raw.split(b"\r\n")[:-2] if not line.lower().startswith(wanted)
        ]
        if value is not None:
            lines.append(f"{name}: {value}".encode("latin-1"))
        return Head(b"\r\n".join([*lines, b"", b""]))

    @property
    def body_bytes(self) -> int | None:
        """How long the body is said to be; None if chunked, or if it ends with the connection."""
        if self.is_chunked:
            return None
        length = self.find("content-length")
        return None if length is None else int(length)

    @property
    def is_chunked(self) -> bool:
        """Whether the body comes in chunks, each of which says its length."""
        return "chunked" in (self.find("transfer-encoding") or "").lower()

    @property
    def is_last(self) -> bool:
        """Whether the connection ends after this message."""
        connection = (self.find("connection") or "").lower()
        version = self.first[0] if self.raw.startswith(b"HTTP/") else self.first[2]
        return "close" in connection or (version == "HTTP/1.0" and "keep-alive" not in connection)


class Stream:
    """A connection that is read by heads and bodies."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._read = bytearray()
        self._piece = bytearray(PIECE_BYTES)

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Sends all of `data`."""
        try:
            self.socket.sendall(data)
        except OSError as error:
            raise ConnectionEndedError(str(error)) from error

    def read_head(self) -> Head | None:
        """Reads up to the end of a head; None if the connection ended before it began."""
        while (end := self._read.find(b"\r\n\r\n")) < 0:
            if len(self._read) > HEAD_BYTES:
                raise ConnectionEndedError("the head is too long")
            piece = self._receive(PIECE_BYTES)
            if not piece:
                if self._read:
                    raise ConnectionEndedError("within a head")
                return None
            self._read += piece
        head = Head(bytes(self._read[: end + 4]))
        del self._read[: end + 4]
        return head

    def relay_body(
        self, head: Head, send: Callable[[memoryview], None], *, is_request: bool
    ) -> None:
        """Hands the body after `head` to `send` in pieces, with the lengths of its chunks."""
        if head.is_chunked:
            self._relay_chunks(send)
        elif (length := head.body_bytes) is not None:
            self._relay(length, send)
        elif not is_request:
            self._relay(None, send)

    def _relay(self, length: int | None, send: Callable[[memoryview], None]) -> None:
        if self._read:
            taken = bytes(self._read if length is None else self._read[:length])
            del self._read[: len(taken)]
            send(memoryview(taken))
            length = None if length is None else length - len(taken)
        view = memoryview(self._piece)
        while length is None or length > 0:
            most = PIECE_BYTES if length is None else min(length, PIECE_BYTES)
            try:
                count = self.socket.recv_into(view, most)
            except OSError as error:
                raise ConnectionEndedError(str(error)) from error
            if not count:
                if length is None:
                    return
                raise ConnectionEndedError(f"{length} bytes before the end of a body")
            send(view[:count])
            length = None if length is None else length - count

    def _relay_chunks(self, send: Callable[[memoryview], None]) -> None:
        size = -1
        while size:
            line = self._read_line()
            size = int(line.split(b";", 1)[0], 16)
            send(memoryview(line))
            self._relay(size, send)
            if size:
                send(memoryview(self._read_line()))
        while (line := self._read_line()) != b"\r\n":
            send(memoryview(line))
        send(memoryview(line))

    def _read_line(self) -> bytes:
        while (end := self._read.find(b"\n")) < 0:
            piece = self._receive(PIECE_BYTES)
            if not piece:
                raise ConnectionEndedError("within a chunk")
            self._read += piece
        line = bytes(self._read[: end + 1])
        del self._read[: end + 1]
        return line

    def _receive(self, most: int) -> bytes:
        try:
            return self.socket.recv(most)
        except OSError as error:
            raise ConnectionEndedError(str(error)) from error

    def close(self, *, reset: bool = False) -> None:
        """Closes the connection, with a reset if it is to look broken."""
        try:
            if reset:
                at_once = struct.pack("ii", 1, 0)
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
            else:
                self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the other side was quicker
        self.socket.close()
