"""The OCDBT writer: its databases are read by templax and by TensorStore."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from templax.formats.ocdbt import read, write
from templax.formats.ocdbt.write import DataFile, encode_database
from templax.storage import Local, Memory

Values = dict[bytes, bytes | tuple[int, int, int]]

NAMES = st.text("ab./é0\0", min_size=1, max_size=8).map(str.encode)
PLACES = st.tuples(st.integers(0, 1), st.integers(0, 2**40), st.integers(0, 2**40))
FILES = [DataFile("d/first"), DataFile("ocdbt.process_1/d/second", 16)]


def make_database(values: Values, node_offset: int) -> Memory:
    nodes, manifest = encode_database(sorted(values.items()), FILES, node_offset)
    files = {"d/first": b"x" * node_offset + nodes, read.MANIFEST: manifest}
    return Memory(files)


@given(
    st.dictionaries(NAMES, st.binary(max_size=40) | PLACES),
    st.integers(0, 200),
    st.sampled_from([1, 2, 7, 1 << 18]),
    st.sampled_from([1, 3, 256]),
)
def test_the_reader_finds_every_value(
    values: Values, node_offset: int, entries: int, compared: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "NODE_ENTRIES", entries)
        patch.setattr(write, "COMPARED_NAMES", compared)
        found = read.read_database(make_database(values, node_offset))
    assert list(found) == [key.decode() for key in sorted(values)]
    for key, value in values.items():
        extent = found[key.decode()]
        if isinstance(value, bytes):
            assert extent.inline == value
        else:
            file, offset, length = value
            assert (extent.key, extent.start, extent.nbytes) == (FILES[file].path, offset, length)


@pytest.mark.parametrize("entries", [1, 3, 1 << 18])
def test_tensorstore_reads_every_value(
    tmp_path: Path, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ts = pytest.importorskip("tensorstore")
    monkeypatch.setattr(write, "NODE_ENTRIES", entries)
    stored = {f"k{i}/{j}".encode(): bytes([i, j]) * (1 + 300 * j) for i in range(5) for j in (0, 7)}
    data: list[bytes] = [b"", b""]
    values: Values = {}
    for i, (key, value) in enumerate(stored.items()):
        if len(value) > 8:
            values[key] = (i % 2, len(data[i % 2]), len(value))
            data[i % 2] += value
        else:
            values[key] = value
    nodes, manifest = encode_database(sorted(values.items()), FILES, len(data[0]))
    for file, content in ((FILES[0], data[0] + nodes), (FILES[1], data[1])):
        path = tmp_path / file.path
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    (tmp_path / read.MANIFEST).write_bytes(manifest)
    store = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{tmp_path}/"}).result()
    assert {key: store.read(key).result().value for key in store.list().result()} == stored
    # A range of keys can be listed too.
    some = store.list(ts.KvStore.KeyRange(b"k2", b"k3")).result()
    assert sorted(some) == [b"k2/0", b"k2/7"]
    assert {e.key for e in read.read_database(Local(tmp_path)).values()} <= {f.path for f in FILES}


def test_an_empty_database_has_no_keys(tmp_path: Path) -> None:
    nodes, manifest = encode_database([], FILES, 0)
    assert nodes == b""
    assert read.read_database(Memory({read.MANIFEST: manifest})) == {}
    ts = pytest.importorskip("tensorstore")
    (tmp_path / read.MANIFEST).write_bytes(manifest)
    store = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{tmp_path}/"}).result()
    assert store.list().result() == []
