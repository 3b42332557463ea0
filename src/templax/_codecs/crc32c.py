"""CRC-32C of bytes, and the error for a checksum that differs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

from ..errors import Corrupted

Bytes = bytes | bytearray | memoryview


def crc32c(data: Bytes, before: int = 0) -> int:
    """CRC-32C (Castagnoli, RFC 3720 appendix B.4) of contiguous bytes.

    Args:
        data: The bytes.
        before: CRC-32C of the bytes before them, to continue a checksum.

    >>> f"{crc32c(b'123456789'):08x}"
    'e3069283'
    >>> crc32c(b"6789", before=crc32c(b"12345")) == crc32c(b"123456789")
    True
    """
    return _load()(data, before)


def crc32c_each(buffers: Iterable[Any]) -> list[int]:
    """The CRC-32C of each of many buffers, which are contiguous but may have any dtype.

    >>> crc32c_each([b"123456789", b""]) == [crc32c(b"123456789"), 0]
    True
    """
    return list(map(_load(), buffers))


@functools.cache
def _load() -> Callable[..., int]:
    import crc32c as _crc32c  # where nothing has a checksum, it is never loaded

    return _crc32c.crc32c


def compare_crc32c(want: int, got: int, start: int | None = None, stop: int | None = None) -> None:
    """Compares the expected and the actual checksum of bytes `start` to `stop` of a file.

    Raises:
        Corrupted: They differ.
    """
    if want != got:
        raise wrong_crc32c(want, got, start, stop)


def wrong_crc32c(
    want: int, got: int, start: int | None = None, stop: int | None = None
) -> Corrupted:
    """The error for bytes `start` to `stop` of a file whose checksum is not the expected one."""
    return Corrupted(f"Expected crc32c `{want:08x}`, got `{got:08x}`", start=start, stop=stop)
