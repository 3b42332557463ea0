"""The OCDBT reader: databases of TensorStore are read, and invalid ones are refused."""

import contextlib
import itertools
import json
import os
import tempfile

import pytest
import tensorstore as ts
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from helpers import CKPT, CORPUS, count_examples, mark_slow, read_files
from limits import run_limited
from templax._codecs.crc32c import crc32c
from templax.errors import Corrupted, NotFound, TemplaxError, Unsupported
from templax.formats.ocdbt.read import read_database
from templax.storage import Local, Memory


def write_with_tensorstore(directory, values, config):
    spec = {"driver": "ocdbt", "base": f"file://{directory}/", "config": config}
    store = ts.KvStore.open(spec).result()
    for key, value in values.items():
        store.write(key, value).result()


def read_values(source, prefix=""):
    return {
        key: bytes(
            source.read(extent.key, extent.start, extent.stop)
            if extent.inline is None
            else extent.inline
        )
        for key, extent in read_database(source, prefix).items()
    }


@count_examples(15)
@given(
    values=st.dictionaries(
        st.text(min_size=1, max_size=40), st.binary(max_size=300), min_size=1, max_size=20
    ),
    inline=st.sampled_from([0, 20, 1024]),
    node=st.sampled_from([200, 1000, 1 << 20]),
    compression=st.sampled_from([None, {"id": "zstd", "level": 1}]),
)
def test_every_key_and_value_of_a_database_is_read(values, inline, node, compression):
    config = {
        "max_inline_value_bytes": inline,
        "max_decoded_node_bytes": node,
        "compression": compression,
    }
    with tempfile.TemporaryDirectory() as directory:
        write_with_tensorstore(directory, values, config)
        assert read_values(Local(directory)) == values
        assert list(read_database(Local(directory))) == sorted(values, key=str.encode)


def test_numbered_manifests_are_read(tmp_path):
    write_with_tensorstore(tmp_path, {"a": b"1", "b": b"2" * 500}, {"manifest_kind": "numbered"})
    assert read_values(Local(tmp_path)) == {"a": b"1", "b": b"2" * 500}
    for numbered in tmp_path.glob("manifest.0*"):
        numbered.unlink()
    with pytest.raises(Corrupted, match=r"Expected a file `manifest.<16 hex digits>` beside it"):
        read_database(Local(tmp_path))


def test_a_database_whose_keys_were_all_deleted_is_empty(tmp_path):
    write_with_tensorstore(tmp_path, {"a": b"1"}, {})
    store = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{tmp_path}/"}).result()
    store.write("a", None).result()
    assert read_database(Local(tmp_path)) == {}


def test_a_database_below_a_prefix_has_extents_relative_to_the_source(tmp_path):
    write_with_tensorstore(tmp_path / "db", {"big": b"x" * 2000, "small": b"y"}, {})
    found = read_database(Local(tmp_path), "db/")
    assert read_values(Local(tmp_path), "db/") == {"big": b"x" * 2000, "small": b"y"}
    assert all(extent.key.startswith("db/d/") for extent in found.values())


def test_a_missing_manifest_is_not_found():
    with pytest.raises(NotFound) as caught:
        read_database(Memory({}))
    assert str(caught.value) == "Expected a file, found none - file `manifest.ocdbt`"


def encode_number(n):
    out = b""
    while n > 0x7F:
        out, n = out + bytes([n & 0x7F | 0x80]), n >> 7
    return out + bytes([n])


def encode_numbers(*column):
    return b"".join(map(encode_number, column))


def wrap(magic, body, compression=0):
    if compression:
        body = zstandard.ZstdCompressor().compress(body)
    head = magic.to_bytes(4, "big") + (18 + len(body)).to_bytes(8, "little")
    data = head + bytes([0, compression]) + body
    return data + crc32c(data).to_bytes(4, "little")


def encode_files(*paths):
    lengths = [len(path) for path in paths]
    shared = [0] * (len(paths) - 1)
    return encode_numbers(len(paths), *shared, *lengths, *[0] * len(paths)) + b"".join(paths)


def encode_manifest(root_length, height=0, *, file=b"d/a", kind=0):
    config = bytes(16) + encode_numbers(kind, 1024, 10**8) + b"\x04" + encode_number(0)
    version = (
        encode_number(1)
        + encode_number(1)
        + bytes([height])
        + encode_numbers(0, 0, root_length, 1, 1, 0)
    )
    return wrap(0x0CDB3A2A, config + encode_files(file) + version + bytes(8) + encode_number(0))


def encode_node(height, files, keys, tail):
    lengths = [len(key) for key in keys]
    shared = [0] * (len(keys) - 1)
    common = lengths if height else []
    columns = encode_numbers(len(keys), *shared, *lengths, *common) + b"".join(keys)
    return bytes([height]) + files + columns + tail


def make_database(body, height=0, compression=0):
    node = wrap(0x0CDB20DE, body, compression)
    return Memory({"manifest.ocdbt": encode_manifest(len(node), height), "d/a": node})


def test_the_encoder_of_these_tests_agrees_with_the_reader():
    body = encode_node(
        0,
        encode_files(b"v"),
        [b"k", b"l"],
        encode_numbers(2, 3) + b"\0\1" + encode_numbers(0, 7) + b"hi",
    )
    found = read_database(make_database(body))
    assert found["k"].inline == b"hi"
    assert (found["l"].key, found["l"].start, found["l"].stop) == ("v", 7, 10)


@pytest.mark.parametrize("path", [b"/etc/passwd", b"../x", b"a/../../x", b"a\0b", b"a//b", b"."])
def test_a_data_file_outside_the_database_is_refused(path):
    body = encode_node(
        0, encode_files(path), [b"k"], encode_number(3) + b"\1" + encode_numbers(0, 0)
    )
    with pytest.raises(Corrupted) as caught:
        read_database(make_database(body))
    assert str(caught.value) == (
        f"Expected a data file inside the checkpoint, got {path.decode()!r} - file `d/a`"
    )


def test_a_node_that_is_its_own_child_is_refused():
    """No two references lead to the same bytes, so a walk can't loop."""
    length = 18 + len(
        encode_node(1, encode_files(b"d/a"), [b"k"], encode_numbers(0, 0, 0, 1, 1, 1))
    )
    body = encode_node(1, encode_files(b"d/a"), [b"k"], encode_numbers(0, 0, length, 1, 1, 1))
    with pytest.raises(Corrupted) as caught:
        read_database(make_database(body, height=1))
    assert str(caught.value) == (
        "Expected index nodes apart from each other, got some that share bytes"
        f" - file `d/a`, bytes 0-{length}"
    )


def test_a_tree_with_exponentially_many_paths_is_refused():
    """Two references per node double the work with each level."""
    leaf = wrap(0x0CDB20DE, encode_node(0, encode_files(), [b"k"], encode_number(0) + b"\0"))
    objects, length, depth = {"d/0": leaf}, len(leaf), 40
    for height in range(1, depth + 1):
        child = b"d/%d" % (height - 1)
        tail = encode_numbers(0, 0, 0, 0, length, length, 1, 1, 1, 1, 1, 1)
        node = wrap(0x0CDB20DE, encode_node(height, encode_files(child), [b"a", b"b"], tail))
        objects[f"d/{height}"], length = node, len(node)
    objects["manifest.ocdbt"] = encode_manifest(length, depth, file=b"d/%d" % depth)
    with pytest.raises(Corrupted, match="got some that share bytes - file `d/0`"):
        read_database(Memory(objects))


def test_names_that_expand_to_gigabytes_are_refused():
    """Kilobytes of lengths may declare gigabytes of names."""
    n = 1 << 16
    lengths = encode_number(60000) * (n - 1) + encode_number(60000) + encode_number(1) * (n - 1)
    body = bytes([0]) + encode_files() + encode_number(n) + lengths + bytes(60000 + n)
    with pytest.raises(Unsupported, match=r"templax reads indexes of up to \d+ bytes of names in"):
        read_database(make_database(body, compression=1))


@pytest.mark.parametrize("n", [2**20 + 1, 2**40, 2**63])
def test_a_count_beyond_the_size_of_the_node_is_refused(n):
    body = bytes([0]) + encode_files() + encode_number(n) + b"\1" * 100
    with pytest.raises(Corrupted, match="Expected 1 to 1048576 entries"):
        read_database(make_database(body))


def test_a_node_that_decodes_beyond_the_limit_is_refused():
    with pytest.raises(Corrupted, match=r"Expected at most 5\d{7} decoded bytes, got more"):
        read_database(make_database(bytes(200_000_001), compression=1))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            encode_node(0, encode_files(), [b"b", b"a"], encode_numbers(0, 0) + b"\0\0"),
            "Expected keys in order",
        ),
        (
            encode_node(0, encode_files(), [b"\xff"], encode_number(0) + b"\0"),
            "Expected keys in UTF-8",
        ),
        (
            encode_node(0, encode_files(), [b"k"], encode_number(0) + b"\2"),
            "Expected values of kinds 0 and 1, got 2",
        ),
        (
            encode_node(0, encode_files(), [b"k"], encode_number(0) + b"\1" + encode_numbers(0, 0)),
            "one of 0 data files",
        ),
        (
            encode_node(0, encode_files(), [b"k"], encode_number(9) + b"\0"),
            "Expected 9 more bytes, got 0",
        ),
        (
            encode_node(0, encode_files(), [b"k"], encode_number(0) + b"\0x"),
            "Expected the end, got 1 more bytes",
        ),
        (
            encode_node(
                0,
                encode_files(b"v"),
                [b"k"],
                encode_number(2**62) + b"\1" + encode_numbers(0, 2**62),
            ),
            "Expected a byte range below",
        ),
        (encode_node(0, encode_files(), [b"k"], b"\xff" * 11), "Expected 1 numbers, got 0"),
        (
            encode_node(0, encode_files(), [b"k"], b"\xff" * 9 + b"\x02"),
            "Expected numbers of at most 64 bits",
        ),
    ],
)
def test_a_contradictory_node_is_named(body, message):
    with pytest.raises(Corrupted, match=message) as caught:
        read_database(make_database(body))
    assert caught.value.file == "d/a"


@pytest.mark.parametrize(
    ("at", "what"), [(12, "OCDBT version 0, got 7"), (13, "compression 0 and")]
)
def test_later_versions_of_ocdbt_are_named(at, what):
    node = bytearray(wrap(0x0CDB20DE, b""))
    node[at] = 7
    node[-4:] = crc32c(bytes(node[:-4])).to_bytes(4, "little")
    with pytest.raises(Unsupported, match=what):
        read_database(Memory({"manifest.ocdbt": encode_manifest(len(node)), "d/a": bytes(node)}))


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        (
            encode_numbers(0, 2**64 - 1, 2**64 - 1, 1, 1, 1),
            "Expected a child node, got an absent one",
        ),
        (encode_numbers(0, 0, 2**40, 1, 1, 1), "Expected an index node of at most 268435456 bytes"),
        (encode_numbers(0, 0, 10**6, 1, 1, 1), "Expected at least 1000000 bytes, the file has"),
        (encode_numbers(1, 0, 10, 1, 1, 1), "Expected one of 1 data files, got number 1"),
    ],
)
def test_a_missing_child_node_is_damage(tail, message):
    with pytest.raises(Corrupted, match=message):
        read_database(make_database(encode_node(1, encode_files(b"d/a"), [b"k"], tail), height=1))


@given(data=st.data())
def test_any_altered_byte_of_a_database_is_noticed(data):
    """Checksums cover every byte of the manifest and the nodes."""
    case = CKPT
    objects = read_files(case)
    (node,) = [key for key in objects if key.startswith("d/")]
    key = data.draw(st.sampled_from(["manifest.ocdbt", node]))
    at = data.draw(st.integers(0, len(objects[key]) - 1))
    changed = bytearray(objects[key])
    changed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises((Corrupted, Unsupported)):
        read_database(Memory(objects | {key: bytes(changed)}))


@count_examples(200)
@given(data=st.data())
def test_altered_bodies_with_sound_checksums_raise_only_errors_of_templax(data):
    case = CORPUS / "orbax-handmade-aligned" / "ckpt"
    objects = read_files(case)
    manifest = objects["manifest.ocdbt"]
    (file,) = [key for key in objects if key.startswith("d/")]
    start = objects[file].index(bytes.fromhex("0cdb20de"))
    whole = data.draw(st.sampled_from([manifest, objects[file][start:]]))
    body = bytearray(whole[14:-4])
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    changed = wrap(int.from_bytes(whole[:4], "big"), bytes(body))
    if whole is manifest:
        objects["manifest.ocdbt"] = changed
    else:
        objects[file] = objects[file][:start] + changed
    with contextlib.suppress(TemplaxError):
        assert isinstance(json.dumps(list(read_database(Memory(objects)))), str)


@given(junk=st.binary(max_size=200))
def test_arbitrary_bytes_raise_only_errors_of_templax(junk):
    for magic in (0x0CDB3A2A, 0x0CDB20DE):
        for data in (junk, wrap(magic, junk), wrap(magic, junk, 1)):
            node = encode_manifest(len(data))
            with pytest.raises(TemplaxError):
                read_database(
                    Memory({"manifest.ocdbt": data if magic == 0x0CDB3A2A else node, "d/a": data})
                )


def encode_front_coded(keys, tails=False):
    """Keys as a node stores them: without the prefix that each shares with the previous one."""
    pairs = [(b"", keys[0]), *itertools.pairwise(keys)]
    shared = [len(os.path.commonprefix(pair)) for pair in pairs]  # noqa: RUF071 (of bytes)
    own = [len(key) - n for key, n in zip(keys, shared, strict=True)]
    columns = encode_numbers(*shared[1:], *own, *(map(len, keys) if tails else ()))
    rests = [key[n:] for key, n in zip(keys, shared, strict=True)]
    return encode_number(len(keys)) + columns + b"".join(rests)


def encode_inline_leaf(keys, value):
    n = len(keys)
    lengths = encode_numbers(*[len(value)] * n)
    return b"\0" + encode_files() + encode_front_coded(keys) + lengths + bytes(n) + value * n


def make_prefixes_that_add_up():
    """A root whose key is a long prefix, above a node of many keys that each inherit it."""
    file = encode_files(b"d/a")
    n = 100_000
    keys = [b"%06d" % i for i in range(n)]
    tail = encode_numbers(*[0] * n, *[0] * n, *[40] * n, *[1] * (3 * n))
    inner = wrap(0x0CDB20DE, b"\1" + file + encode_front_coded(keys, tails=True) + tail, 1)
    prefix = [b"x" * 60_000]
    tail = encode_numbers(0, 0, len(inner), 1, 1, 1)
    root = wrap(0x0CDB20DE, b"\2" + file + encode_front_coded(prefix, tails=True) + tail, 1)
    manifest = encode_manifest(len(root), 2, file=b"d/r")
    return {"manifest.ocdbt": manifest, "d/r": root, "d/a": inner}


def make_leaf_database(body):
    node = wrap(0x0CDB20DE, body, 1)
    return {"manifest.ocdbt": encode_manifest(len(node)), "d/a": node}


def make_many_keys(n):
    return make_leaf_database(encode_inline_leaf([b"%07d" % i for i in range(n)], b""))


def make_empty_arrays(n):
    meta = {"zarr_format": 2, "shape": [0], "chunks": [1], "dtype": "<f4", "order": "C"}
    keys = [b"%06d/.zarray" % i for i in range(n)]
    return make_leaf_database(encode_inline_leaf(keys, json.dumps(meta).encode()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objects", "error"),
    [
        (make_prefixes_that_add_up, "Unsupported: templax reads indexes of up to 33"),
        (lambda: make_leaf_database(bytes(250 << 20)), "Corrupted: Expected at most 5"),
        (lambda: make_empty_arrays(65_000), None),
        *mark_slow(
            (lambda: make_empty_arrays(400_000), "Unsupported: templax reads indexes of up to 13"),
            (lambda: make_many_keys(10**6), "Unsupported: templax reads indexes of up to"),
        ),
    ],
    ids=["inherited prefixes", "one node", "fewer arrays", "arrays", "keys"],
)
def test_kilobytes_of_index_take_little_time_and_memory(tmp_path, objects, error):
    for key, data in objects().items():
        path = tmp_path / "ckpt" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        assert len(data) < 100_000

    found = run_limited("print(len(tx.open('ckpt').entries))", cwd=tmp_path)

    assert (found.error or "").startswith(error or "")
    assert (found.error is None) == (error is None)


def test_a_value_in_a_node_is_limited_as_in_tensorstore():
    body = encode_inline_leaf([b"k"], bytes((1 << 20) + 1))
    with pytest.raises(Corrupted, match="Expected values of at most 1048576 bytes, got 1048577"):
        read_database(make_database(body))
