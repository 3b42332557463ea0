"""CRC-32C of bytes, and the error when it differs."""

from __future__ import annotations

from ..errors import Corrupted

Bytes = bytes | bytearray | memoryview


def crc32c(data: Bytes, before: int = 0) -> int:
    """CRC-32C (Castagnoli, RFC 3720 appendix B.4) of contiguous bytes.

    Args:
        before: That of the bytes before them.

    >>> f"{crc32c(b'123456789'):08x}"
    'e3069283'
    """
    import crc32c as _crc32c

    return _crc32c.crc32c(data, before)


def compare_crc32c(want: int, got: int, start: int | None = None, stop: int | None = None) -> None:
    """Raises Corrupted unless two checksums, of bytes `start` to `stop` of a file, are the same."""
    if want != got:
        raise wrong_crc32c(want, got, start, stop)


def wrong_crc32c(
    want: int, got: int, start: int | None = None, stop: int | None = None
) -> Corrupted:
    """The error for bytes `start` to `stop` of a file."""
    return Corrupted(f"Expected crc32c `{want:08x}`, got `{got:08x}`", start=start, stop=stop)
