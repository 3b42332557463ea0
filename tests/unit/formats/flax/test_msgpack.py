"""Msgpack files of Flax, which are also the structure files of old Orbax versions."""

import itertools
import tracemalloc

import ml_dtypes
import msgpack
import numpy as np
import pytest
from flax import serialization
from hypothesis import given
from hypothesis import strategies as st

from helpers import count_examples, mark_slow
from limits import run_limited
from templax.errors import Corrupted, TemplaxError, Unsupported
from templax.formats.flax.msgpack import Empty, Piece, Value, locate_value, read_msgpack

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def read_leaves(data):
    return read_msgpack(memoryview(data))


def read_values(data):
    return {
        path: np.frombuffer(join_pieces(leaf), leaf.dtype).reshape(leaf.shape)
        for path, leaf in read_leaves(data).items()
        if isinstance(leaf, Value)
    }


def join_pieces(leaf):
    return b"".join(piece.data for piece in leaf.pieces)


def encode_array(shape, dtype, data, code=1):
    return msgpack.ExtType(code, msgpack.packb([shape, dtype, data]))


def test_every_kind_of_leaf_of_flax_is_read():
    tree = {
        "w": np.arange(6, dtype=BFLOAT16).reshape(2, 3),
        "s": np.float32(2.5),
        "c": 1 + 2j,
        "n": {"i": 7, "f": 0.5, "b": True, "big": 2**64 - 1},
        "list": [np.zeros(2, np.int8)],
        "none": None,
        "empty": {},
        "text": "hello",
        "raw": b"\x00\xff",
    }
    data = serialization.msgpack_serialize(tree)
    leaves, values = read_leaves(data), read_values(data)
    assert values["w",].dtype == BFLOAT16
    assert values["w",].tobytes() == tree["w"].tobytes()
    assert (leaves["s",].kind, values["s",].item()) == ("scalar", 2.5)
    assert (leaves["c",].kind, values["c",].item()) == ("scalar", 1 + 2j)
    assert {k[1]: v.item() for k, v in values.items() if k[0] == "n"} == tree["n"]
    assert values["list", 0].tolist() == [0, 0]
    assert leaves["none",] == Empty("None")
    assert leaves["empty",] == Empty("Dict")
    assert leaves["text",] == "hello"
    assert (leaves["raw",].kind, values["raw",].dtype) == ("array", np.uint8)
    assert values["raw",].tolist() == [0, 255]


def test_an_empty_list_is_empty():
    assert read_leaves(msgpack.packb({"a": []})) == {("a",): Empty("List")}


def test_values_know_their_place_in_the_file():
    data = serialization.msgpack_serialize({"a": np.arange(100), "b": np.ones(3, np.uint8)})
    for leaf in read_leaves(data).values():
        (piece,) = leaf.pieces
        assert bytes(piece.data) == data[piece.start : piece.stop]


def test_chunked_arrays_are_joined(monkeypatch):
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 16)
    array = np.arange(33, dtype=np.int32).reshape(3, 11)
    data = serialization.msgpack_serialize({"a": array})
    assert b"__msgpack_chunked_array__" in data
    assert read_values(data)["a",].tolist() == array.tolist()
    pieces = read_leaves(data)["a",].pieces
    assert len(pieces) == 9
    assert [data[piece.start : piece.stop] for piece in pieces] == [p.data for p in pieces]


@given(cuts=st.lists(st.integers(0, 24), max_size=6), shape=st.permutations([2, 3, 4]))
def test_chunks_of_pieces_tile_the_array(cuts, shape):
    """Pieces may end anywhere in a row, and may be empty."""
    array = np.arange(24, dtype=np.int16).reshape(shape)
    bounds = [0, *sorted(cuts), 24]
    flat = array.reshape(-1)
    pieces = tuple(Piece(memoryview(flat[a:b].tobytes())) for a, b in itertools.pairwise(bounds))
    got = np.full(shape, -1, np.int16)
    for chunk in locate_value(Value(array.dtype, array.shape, "array", pieces), "", inline=True):
        box = tuple(slice(*bounds) for bounds in chunk.box)
        assert (got[box] == -1).all()
        got[box] = np.frombuffer(chunk.extent.inline, np.int16).reshape(got[box].shape)
    assert (got == array).all()


def test_very_many_pieces_are_refused():
    piece = encode_array([6], "int8", b"abcdef")
    chunked = {
        "__msgpack_chunked_array__": True,
        "shape": {str(i): n for i, n in enumerate((1,) * 28 + (24, 1000))},
        "chunks": {str(i): piece for i in range(4000)},
    }
    assert len(read_leaves(msgpack.packb({"a": chunked}))["a",].pieces) == 4000
    with pytest.raises(Unsupported) as caught:
        read_leaves(msgpack.packb({"a": chunked, "b": chunked}))
    assert str(caught.value) == (
        "templax reads 131072 dimensions of pieces of arrays, got more - at `b`"
    )


def encode_chunked(**changes):
    piece = encode_array([2], "int8", b"ab")
    chunked = {
        "__msgpack_chunked_array__": True,
        "shape": {"0": 4},
        "chunks": {"0": piece, "1": piece},
    }
    return msgpack.packb({"a": chunked | changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": {"0": 5}}, "Expected the bytes of int8(5,), got 4 - at `a`"),
        ({"shape": {"0": -4}}, "Expected the bytes of int8(-4,), got 4 - at `a`"),
        ({"shape": {"1": 4}}, "Expected item '0' of a chunked array, found none - at `a`"),
        ({"chunks": {}}, "Expected chunks that are arrays, got others - at `a`"),
        ({"chunks": {"0": 1}}, "Expected chunks that are arrays, got others - at `a`"),
        (
            {
                "chunks": {
                    "0": encode_array([2], "int8", b"ab"),
                    "1": encode_array([1], "int16", b"ab"),
                }
            },
            "Expected chunks of one dtype, got several - at `a`",
        ),
        (
            {"chunks": {"0": encode_array([2], "int8", b"abc")}},
            "Expected the bytes of int8(2,), got 3 - at `a`",
        ),
        (
            {"chunks": 3},
            "Expected an array in chunks: Expected `object`, got `int` - at `$.chunks`",
        ),
    ],
)
def test_invalid_chunks_of_an_array_are_damage(changes, message):
    assert read_leaves(encode_chunked())["a",].shape == (4,)
    with pytest.raises(Corrupted) as caught:
        read_leaves(encode_chunked(**changes))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (encode_array([3], "int8", b"ab"), "Expected the bytes of int8(3,), got 2"),
        (encode_array([-2], "int8", b"ab"), "Expected the bytes of int8(-2,), got 2"),
        (encode_array([2**40, 2**40, 0], "int8", b"ab"), "Expected the bytes of int8"),
        (encode_array([2] * 100_000, "int8", b"ab"), "Expected the bytes of int8"),
        (msgpack.ExtType(1, b"\x93"), "A msgpack extension is unreadable"),
        (msgpack.ExtType(2, b"\xc0"), "A msgpack extension is unreadable"),
    ],
)
def test_contradictory_arrays_are_damage(array, message):
    with pytest.raises(Corrupted) as caught:
        read_leaves(msgpack.packb({"a": array}))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (encode_array([1], "object", b"ab"), "templax does not read dtype `object` - at `b.0`"),
        (encode_array([1], "str32", b"abcd"), "templax does not read dtype `str32` - at `b.0`"),
        (msgpack.ExtType(9, b""), "templax does not read msgpack extension 9 - at `b.0`"),
        (
            msgpack.Timestamp(1),
            "templax does not read msgpack values of type `datetime` - at `b.0`",
        ),
    ],
)
def test_unsupported_msgpack_values_are_named(value, message):
    with pytest.raises(Unsupported) as caught:
        read_leaves(msgpack.packb({"a": 1, "b": [value], "c": value}))
    assert str(caught.value) == message


@pytest.mark.parametrize("depth", [301, 100_000])
def test_a_tree_nested_too_deeply_is_damage(depth):
    with pytest.raises(Corrupted, match=r"301 deep|300 deep|recursion"):
        read_leaves(b"\x91" * depth + b"\xc0")


@pytest.mark.parametrize("data", [b"", b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc1"])
def test_other_bytes_are_damage(data):
    with pytest.raises(Corrupted, match="The msgpack is unreadable"):
        read_leaves(data)


@count_examples(200)
@given(data=st.data())
def test_altered_files_raise_only_errors_of_templax(data):
    changed = bytearray(encode_chunked())
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert isinstance(read_leaves(bytes(changed)), dict)
    except TemplaxError:
        return


@given(junk=st.binary(max_size=100))
def test_arbitrary_bytes_raise_only_errors_of_templax(junk):
    try:
        assert isinstance(read_leaves(junk), dict)
    except TemplaxError:
        return


@pytest.mark.parametrize(
    ("data", "key"),
    [
        (b"\x82\xa1a\x01\xa1a\x02", "a"),
        (b"\x82\xa1a\x01\xd9\x01a\x02", "a"),
        (b"\x82\x01\x01\xcc\x01\x02", "1"),
        (b"\x82\xa1b\x82\xa1a\x93\x01\x02\x80\xa1a\x01\xa1c\x02", "a"),
    ],
)
def test_a_key_that_occurs_twice_is_named(data, key):
    with pytest.raises(Corrupted) as caught:
        read_leaves(data)
    assert str(caught.value) == f"Expected each key of a map once, got '{key}' again"


def test_keys_of_one_name_are_refused():
    with pytest.raises(Corrupted, match="Expected one leaf, got two of this name - at `1`"):
        read_leaves(msgpack.packb({1: 2, "1": 3}))


ARRAY_KEY = msgpack.packb(
    {msgpack.ExtType(1, msgpack.packb(([1], "int8", b"a"))): 1}, strict_types=True
)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (ARRAY_KEY, Unsupported, "templax reads msgpack maps with keys of text, got Value"),
        (bytearray(ARRAY_KEY), Corrupted, "The msgpack is unreadable: cannot hash"),
        (b"\x81\xc7\x01\x02a\x01", Corrupted, "A msgpack extension is unreadable"),
        (b"\x81\xc7\x01\x05a\x01", Unsupported, "templax does not read msgpack extension 5"),
        (b"\x81\x91\x01\x02", Unsupported, "templax reads msgpack maps with keys of text"),
        (b"\x81\xc4\x01a\x02", Unsupported, "templax reads msgpack maps with keys of text"),
    ],
)
def test_keys_that_are_no_text_are_refused(data, error, message):
    with pytest.raises(error, match=message):
        read_leaves(data)


def test_an_array_without_elements_that_numpy_cannot_make_is_damage():
    with pytest.raises(Corrupted, match="Expected the bytes of int8"):
        read_leaves(msgpack.packb({"a": encode_array([2**40, 2**40, 0], "int8", b"")}))


@pytest.mark.parametrize(
    "data",
    [
        b"\x82\xa1a\xdd\x00\x0f\x00\x00" + b"\x80" * 0xF0000 + b"\xa1a\x01",
        *mark_slow(
            b"\xdd\x00\x0f\x00\x00" + b"\xc0" * 0xF0000,
            b"\xdd\x00\x04\x00\x00" + b"\x81\xa1a\x01" * 0x40000,
        ),
    ],
)
def test_a_megabyte_of_tiny_values_takes_little_time_and_memory(tmp_path, data):
    tmp_path.joinpath("checkpoint").write_bytes(data)
    code = "from templax.formats.flax.msgpack import read_msgpack as read\n"
    code += "read(memoryview(open('checkpoint', 'rb').read()))"
    found = run_limited(code, cwd=tmp_path)
    assert found.error is not None
    assert found.error.startswith("Unsupported: templax reads 2")


@pytest.mark.slow
def test_too_many_values_are_refused_before_they_are_decoded():
    n = 300_000
    data = b"\x81\xa1a\xdd" + n.to_bytes(4, "big") + b"\x90" * n
    tracemalloc.start()
    try:
        with pytest.raises(Unsupported, match="got more"):
            read_leaves(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20  # the empty lists alone take 17 MB
