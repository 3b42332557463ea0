"""CRC-32C is that of the package `crc32c`, however its function was loaded."""

from __future__ import annotations

import crc32c as package
import pytest

from templax._codecs import crc32c


@pytest.fixture(params=["extension module", "package"])
def load(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    if request.param == "package":  # as if the extension module had another place
        monkeypatch.setattr(crc32c, "find_spec", lambda _: None)
    return crc32c._load_function.__wrapped__


def test_the_function_is_that_of_the_package(load) -> None:
    function = load()
    assert function(b"123456789", 0) == 0xE3069283
    for data in (b"", b"x", bytes(range(256)) * 50, memoryview(b"abc")[1:]):
        assert function(data, 7) == package.crc32c(data, 7)


def test_a_checksum_is_continued(load) -> None:
    function = load()
    assert function(b"6789", function(b"12345", 0)) == package.crc32c(b"123456789")
