"""CRC-32C of bytes, and the error for a checksum that differs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
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
    return _load_function()(data, before)


def crc32c_each(buffers: Iterable[Any]) -> list[int]:
    """The CRC-32C of each of many buffers, which are contiguous but may have any dtype.

    >>> crc32c_each([b"123456789", b""]) == [crc32c(b"123456789"), 0]
    True
    """
    return list(map(_load_function(), buffers))


@functools.cache
def _load_function() -> Callable[..., int]:
    """The function of the package `crc32c`.

    From its extension module if that is where it was, since the package itself also imports its
    command line and reads its own version, for which a process pays 20 ms.
    """
    package = find_spec("crc32c")
    places = package.submodule_search_locations if package is not None else None
    spec = PathFinder.find_spec("crc32c._crc32c", places) if places else None
    if spec is None or spec.loader is None:
        return import_module("crc32c").crc32c
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, "crc32c", None)
    return import_module("crc32c").crc32c if function is None else function


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
