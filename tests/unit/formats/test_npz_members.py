"""Members of `.npz` archives in all compressions, and those that templax does not decode."""

from __future__ import annotations

import base64
import io
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

import templax as tx
from helpers import run_cli
from templax.storage import Memory

RNG = np.random.default_rng(0)

TREE = {
    "plain": RNG.normal(size=(3, 5)).astype("f4"),
    "fortran": np.asfortranarray(RNG.normal(size=(4, 6, 2))),
    "big": np.arange(5, dtype=">i4"),
    "empty": np.zeros((0, 3), "i8"),
    "noise": RNG.integers(0, 256, 1_500_000, dtype="u1"),
    "zeros": np.zeros(3 << 20, "u1"),
}

METHODS = {zipfile.ZIP_DEFLATED: "deflate", zipfile.ZIP_BZIP2: "bzip2", zipfile.ZIP_LZMA: "lzma"}

NEW = [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]

PACK_AGAIN = "unpack the archive, and pack it again with `zip -0 -r`"

_LOCAL, _ENTRY = struct.Struct("<4s5H3L2H"), struct.Struct("<4s6H3L5H2L")


WITHOUT_MARKER = """
UEsDBD8AAAAOAAAAIQCRmfKlWAAAAJgAAAAFAAAAYi5ucHkaAQUAXQAQAAAASZOGpN7TgnlqWw0jODarnZ1MTe7j
bcMd62ciZu4cpEC6+JnXSScm4hcteW82wVWYhShhDNmJtAg5kwyIxzz6UIWc2TDghh2ClYVb4AAAUEsDBD8AAAAO
AAAAIQDZ+NcBYAAAALAAAAAFAAAAdy5ucHkaAQUAXQAQAAAASZOGpN7TgnlqWw0jODarnZ1MTe7jbcMd62e92u4c
pEC6+JnXSScm4hcteWkzOW5HJTa8/PyVCJf4GWZFXNIQwWG6VqITszT64Z0ilHdTG5g5n0+HYABQSwECPwM/AAAA
DgAAACEAkZnypVgAAACYAAAABQAAAAAAAAAAACCApIEAAAAAYi5ucHlQSwECPwM/AAAADgAAACEA2fjXAWAAAACw
AAAABQAAAAAAAAAAACCApIF7AAAAdy5ucHlQSwUGAAAAAAIAAgBmAAAA/gAAAAAA
"""
"""`b` and `w`, packed by 7-Zip 26.01 with `7zz a -tzip -mm=LZMA:eos=off -mtm=off`."""


def save(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def archive(members: dict[str, bytes], method: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as writer:
        for name, data in members.items():
            writer.writestr(name, data)
    return file.getvalue()


def stored_bytes(content: bytes, method: int) -> bytes:
    """What a zip archive stores of a member."""
    data = archive({"w": content}, method)
    (size,) = struct.unpack_from("<L", data, data.rindex(b"PK\1\2") + 20)
    return data[31 : 31 + size]


def pack(members: dict[str, tuple[int, int, bytes, bytes]]) -> bytes:
    """An archive by hand: name → flags, method, stored bytes, and what they decode to."""
    body = directory = b""
    for name, (flags, method, stored, content) in members.items():
        at, crc = len(body), zlib.crc32(content)
        sizes = (crc, len(stored), len(content), len(name))
        body += _LOCAL.pack(b"PK\3\4", 20, flags, method, 0, 33, *sizes, 0) + name.encode() + stored
        directory += _ENTRY.pack(
            b"PK\1\2", 20, 20, flags, method, 0, 33, *sizes, 0, 0, 0, 0, 0, at
        ) + name.encode()  # fmt: skip
    n = len(members)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, n, n, len(directory), len(body), 0)
    return body + directory + end


def open_bytes(data: bytes) -> tx.Catalog:
    return tx.open(Memory({"": data}))


@pytest.mark.parametrize("method", NEW)
def test_members_in_other_compressions_are_restored_as_numpy_loads_them(
    tmp_path: Path, method: int
) -> None:
    members = {f"{name}.npy": save(value) for name, value in TREE.items()}
    path = tmp_path / "a.npz"
    path.write_bytes(archive(members, method))
    for checkpoint in (path, Memory({"": path.read_bytes()})):
        got = tx.restore(checkpoint, TREE)
        with np.load(path) as loaded:
            for name, value in TREE.items():
                assert got[name].tobytes() == value.tobytes() == loaded[name].tobytes(), name
        assert tx.verify(checkpoint).ok
    verified = tx.verify(path)
    assert (verified.unchecked_bytes, verified.unread) == (0, ())
    account = tx.account_bytes(path)
    assert sum(account.kinds.values()) == path.stat().st_size
    assert not account.gaps
    tx.convert(path, tmp_path / "b.safetensors")
    assert tx.diff(path, tmp_path / "b.safetensors").identical


def test_the_members_of_an_archive_may_differ_in_compression(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as writer:
        for method in (zipfile.ZIP_STORED, *METHODS):
            writer.writestr(f"m{method}", save(np.full(3, method)), method)
    got = tx.restore(path, tx.open(path).template())
    assert {name: value.tolist() for name, value in got.items()} == {
        f"m{method}": [method] * 3 for method in (0, 8, 12, 14)
    }


@pytest.mark.parametrize("method", METHODS)
def test_damage_in_a_compressed_member_is_found_and_named(tmp_path: Path, method: int) -> None:
    noise = save(RNG.integers(0, 256, 1_200_000, dtype="u1"))
    data = bytearray(archive({"a/b.npy": noise, "c.npy": save(np.zeros(9))}, method))
    data[1_100_000] ^= 4
    path = tmp_path / "a.npz"
    path.write_bytes(data)
    catalog = tx.open(path)
    if method == zipfile.ZIP_BZIP2:  # a block has a checksum of its own
        with pytest.raises(tx.Corrupted, match=r"Expected bzip2 bytes, got bytes.* at `a\.b`"):
            tx.restore(catalog, catalog.template())
    assert [damage.leaf for damage in tx.verify(catalog).damages] == ["a.b"]


@pytest.mark.parametrize("method", METHODS)
def test_members_that_decode_to_another_size_are_damage(method: int) -> None:
    content = save(RNG.normal(size=1000))
    long = stored_bytes(content + bytes(1 << 17), method)
    catalog = open_bytes(pack({"w.npy": (0, method, long, content)}))
    if method != zipfile.ZIP_LZMA:  # lzma may go on behind its end
        with pytest.raises(tx.Corrupted, match="Expected 8000 decoded bytes, got more"):
            tx.restore(catalog, catalog.template())
        assert len(tx.verify(catalog).damages) == 1
    stored = stored_bytes(content, method)
    for short in (stored_bytes(content[:-1], method), stored[: len(stored) // 2]):
        data = pack({"w.npy": (0, method, short, content)})
        with pytest.raises(tx.Corrupted, match=r"Expected .*, got .* at `w`"):
            tx.restore(open_bytes(data), {"w": np.zeros(1000)})


def test_lzma_needs_no_marker_of_its_end() -> None:
    data = base64.b64decode(WITHOUT_MARKER)
    assert data[6] == 0
    catalog = open_bytes(data)
    got = tx.restore(catalog, catalog.template())
    assert got["b"].tolist() == [[1] * 3] * 2
    assert got["w"].tolist() == [0, 1, 2, 3, 4, 5]
    assert tx.verify(catalog).ok


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\t\4\5\0\x5d",
        b"\t\4\6\0\x5d\0\0\1\0",
        b"\t\4\5\0\xff\0\0\1\0",
        b"\t\4\5\0\x2c\0\0\1\0",
    ],
)
def test_an_lzma_member_with_wrong_options_is_damage(head: bytes) -> None:
    data = pack({"w.npy": (2, zipfile.ZIP_LZMA, head, save(np.zeros(0)))})
    with pytest.raises(tx.Corrupted, match=r"Expected .* at `w`"):
        open_bytes(data)


def test_an_lzma_member_with_a_large_dictionary_is_not_read() -> None:
    content = save(np.zeros(9))
    stored = bytearray(stored_bytes(content, zipfile.ZIP_LZMA))
    stored[5:9] = struct.pack("<L", 1 << 28)
    kept = (2, zipfile.ZIP_LZMA, bytes(stored), content)
    stored[5:9] = struct.pack("<L", (1 << 28) + 1)
    catalog = open_bytes(
        pack({"a.npy": kept, "b.npy": (2, zipfile.ZIP_LZMA, bytes(stored), content)})
    )
    assert catalog.unread == {
        "b": "templax reads lzma with a dictionary of at most 268435456 bytes, got one of 268435457"
    }
    assert tx.restore(catalog, {"a": np.ones(9), "b": ...})["a"].tolist() == [0] * 9
    verified = tx.verify(catalog)
    assert (verified.ok, verified.unread) == (True, ("b",))


@pytest.mark.parametrize("method", NEW)
def test_a_size_that_the_compression_can_not_reach_is_damage(method: int) -> None:
    data = bytearray(archive({"w.npy": save(np.zeros(2))}, method))
    at = data.rindex(b"PK\1\2") + 24
    data[at : at + 4] = struct.pack("<I", 1 << 30)
    with pytest.raises(tx.Corrupted, match=f"Expected {1 << 30} bytes of a member"):
        open_bytes(bytes(data))


@pytest.mark.parametrize("method", NEW)
def test_a_small_archive_that_decodes_to_much_is_refused(method: int) -> None:
    content = save(np.zeros(1 << 19, "u1"))
    member = (2, method, stored_bytes(content, method), content)
    count = 1000 if method == zipfile.ZIP_BZIP2 else 1024  # each counts as 900,000 bytes or more
    names = [f"w{i}.npy" for i in range(count)]
    with pytest.raises(tx.Unsupported, match="536870912 decoded bytes of an archive of") as caught:
        open_bytes(pack(dict.fromkeys(names, member)))
    assert caught.value.hint == PACK_AGAIN
    few = open_bytes(pack(dict.fromkeys(names[:500], member)))
    assert len(few.entries) == 500


def test_a_compression_that_python_was_built_without_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = archive({"w.npy": save(np.zeros(2))}, zipfile.ZIP_BZIP2)
    monkeypatch.setitem(sys.modules, "bz2", None)
    with pytest.raises(tx.Unsupported, match="`bzip2` only if Python was built with it - at `w`"):
        open_bytes(data)


def _write_locked(path: Path) -> None:
    """An archive of arrays `w` and `z`, and four that templax does not decode."""
    content = save(np.arange(3.0))
    members = {
        "locked.npy": (1, 0, bytes(12) + content, content),
        "locked_too.npy": (1, 99, b"AES", content),
        "w.npy": (0, 0, content, content),
        "zstd.npy": (0, 93, b"zstd", content),
        "odd": (0, 77, b"?", content),
        "z.npy": (0, 8, stored_bytes(content, zipfile.ZIP_DEFLATED), content),
    }
    path.write_bytes(pack(members))


UNREAD = {
    "locked": f"templax reads no encrypted members; {PACK_AGAIN}, without a password",
    "locked_too": f"templax reads no encrypted members; {PACK_AGAIN}, without a password",
    "zstd": f"templax does not decode `zstd` members; {PACK_AGAIN}",
    "odd": f"templax does not decode `method 77` members; {PACK_AGAIN}",
}


def test_members_that_are_not_decoded_are_listed_and_the_others_read(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    _write_locked(path)
    catalog = tx.open(path)
    assert catalog.unread == UNREAD
    for got in (
        tx.restore(path, {"w": np.zeros(3), "z": np.zeros(3)}, extra="ignore"),
        tx.restore(path, catalog.template()),
    ):
        assert got["w"].tolist() == got["z"].tolist() == [0, 1, 2]
    wanted = {"w": np.zeros(3), "z": np.zeros(3), "zstd": np.zeros(3)}
    with pytest.raises(tx.TemplateError) as caught:
        tx.restore(path, wanted, extra="ignore")
    (missing,) = caught.value.mismatches
    assert (missing.problem, missing.name, missing.note) == ("missing", "zstd", UNREAD["zstd"])

    listed = run_cli("ls", path)
    assert listed.exit_code == 0, listed.output
    assert "not read" in listed.output
    assert "locked_too" in listed.output
    account = tx.account_bytes(path)
    assert sum(account.kinds.values()) == path.stat().st_size
    assert {gap.what for gap in account.gaps} == {"members that templax does not read"}


def test_verify_names_members_that_are_not_decoded_and_checks_the_others(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    _write_locked(path)
    verified = tx.verify(path)
    assert (verified.ok, verified.leaves, verified.unread) == (True, 2, tuple(UNREAD))
    data = bytearray(path.read_bytes())
    data[data.index(b"w.npy") + 140] ^= 1
    path.write_bytes(data)
    assert [damage.leaf for damage in tx.verify(path).damages] == ["w"]


def test_an_archive_of_nothing_but_such_members_names_the_first() -> None:
    content = save(np.zeros(2))
    data = pack({"a.npy": (1, 0, content, content), "b.npy": (0, 93, content, content)})
    with pytest.raises(tx.Unsupported, match="no encrypted members - at `a`") as caught:
        open_bytes(data)
    assert caught.value.hint == f"{PACK_AGAIN}, without a password"


def test_what_is_wrong_with_the_place_of_such_a_member_is_damage() -> None:
    content = save(np.zeros(2))
    good = {"w.npy": (0, 0, content, content)}
    data = bytearray(pack(good | {"a.npy": (1, 0, content, content)}))
    at = data.rindex(b"PK\1\2")
    for field, value, what in [
        (20, 1 << 20, "bytes of a member from byte"),
        (42, 0, "overlap"),
        (42, 1 << 20, "Expected a member below byte"),
    ]:
        changed = data.copy()
        changed[at + field : at + field + 4] = struct.pack("<L", value)
        with pytest.raises(tx.Corrupted, match=what):
            open_bytes(bytes(changed))
