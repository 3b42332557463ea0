"""Zarr arrays: those of TensorStore are read, invalid metadata and chunks are refused."""

import contextlib
import json
import math
import os
import tempfile

import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts
from hypothesis import given
from hypothesis import strategies as st

from helpers import count_examples, mark_slow
from limits import run_limited
from stored_leaves import join_chunks
from templax._catalog.entry import Extent
from templax._codecs.crc32c import crc32c
from templax._codecs.decode import CHECKSUMS, COMPRESSIONS
from templax.errors import Corrupted, TemplaxError, Unsupported
from templax.formats.zarr.chunks import locate_arrays
from templax.formats.zarr.metadata import parse_metadata
from templax.storage import Local, Memory

BFLOAT16, INT4 = np.dtype(ml_dtypes.bfloat16), np.dtype(ml_dtypes.int4)


def read_array(source, name="a", absent="error"):
    """The values of an array, decoded without the engine."""
    objects = {i.key: Extent(i.key, 0, i.size) for i in source.walk()}
    file = next(f for f in (".zarray", "zarr.json") if f"{name}/{f}" in objects)
    array = parse_metadata(source.read(f"{name}/{file}"), file)
    chunks = locate_arrays(array, name, objects, source, absent=absent)
    return join_chunks(chunks, array.shape, array.dtype, source)


DTYPES = (
    "bool int8 uint16 int32 uint64 float16 float32 float64 complex64 bfloat16 int4 float8_e4m3fn"
)


@st.composite
def chunked_arrays(draw):
    """An array of small random values, and the shape of its chunks."""
    dtype = draw(st.sampled_from(DTYPES.split()))
    shape = tuple(draw(st.lists(st.integers(1, 7), max_size=3)))
    chunks = tuple(draw(st.integers(1, n + 2)) for n in shape)
    seed = draw(st.integers(0, 2**32 - 1))
    values = np.random.default_rng(seed).integers(0, 7, shape)
    return np.asarray(values).astype(np.dtype(getattr(ml_dtypes, dtype, dtype))), chunks


def write_with_tensorstore(directory, driver, metadata, values, **options):
    spec = {
        "driver": driver,
        "kvstore": f"file://{directory}/a/",
        "metadata": metadata,
        "create": True,
        **options,
    }
    store = ts.open(spec, dtype=values.dtype.name, shape=values.shape).result()
    store.write(values).result()


def have_same_bytes(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@given(
    array=chunked_arrays(),
    compressor=st.sampled_from(
        [
            None,
            {"id": "zstd", "level": 1},
            {"id": "gzip", "level": 1},
            {"id": "gzip", "level": 9},
            {"id": "zlib", "level": 1},
            {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1},
            {"id": "blosc", "cname": "blosclz", "clevel": 9, "shuffle": 2},
            {"id": "blosc", "cname": "zstd", "clevel": 1, "shuffle": 0},
        ]
    ),
    order=st.sampled_from(["C", "F"]),
    separator=st.sampled_from([".", "/"]),
    big=st.booleans(),
)
def test_zarr2_is_read_as_tensorstore_reads_it(array, compressor, order, separator, big):
    values, chunks = array
    metadata = {
        "chunks": chunks,
        "compressor": compressor,
        "order": order if len(chunks) > 1 else "C",  # TensorStore refuses to open its own "F"
        "dimension_separator": separator,
    }
    if big and values.dtype.kind in "uifc" and values.dtype.itemsize > 1:
        metadata["dtype"] = values.dtype.newbyteorder(">").str
    with tempfile.TemporaryDirectory() as directory:
        write_with_tensorstore(
            directory, "zarr", metadata, values, store_data_equal_to_fill_value=True
        )
        assert have_same_bytes(read_array(Local(directory)), values)


BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
BIG = {"name": "bytes", "configuration": {"endian": "big"}}
BLOSC = {
    "name": "blosc",
    "configuration": {
        "cname": "lz4", "clevel": 5, "shuffle": "shuffle", "typesize": 4, "blocksize": 0,
    },
}  # fmt: skip
ZSTD = {"name": "zstd", "configuration": {"level": 1}}
GZIP = {"name": "gzip", "configuration": {"level": 5}}
CRC = {"name": "crc32c"}
REVERSED = {"name": "transpose", "configuration": {"order": [0]}}


def make_sharding_codec(chunk_shape, codecs, location="end", index=(BYTES, CRC)):
    return {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": list(chunk_shape),
            "codecs": list(codecs),
            "index_codecs": list(index),
            "index_location": location,
        },
    }


@given(
    array=chunked_arrays(),
    rest=st.sampled_from(
        [[], [ZSTD], [CRC], [ZSTD, CRC], [CRC, ZSTD], [GZIP], [GZIP, CRC], [BLOSC], [BLOSC, CRC]]
    ),
    location=st.sampled_from([None, "start", "end"]),
    index=st.sampled_from([[BYTES], [BYTES, CRC]]),
    split=st.integers(1, 3),
    encoding=st.sampled_from(
        [("default", "/"), ("default", "."), ("v2", "."), ("v2", "/")],
    ),
    endian=st.sampled_from([BYTES, BIG]),
    reverse=st.booleans(),
)
def test_zarr3_is_read_as_tensorstore_reads_it(
    array, rest, location, index, split, encoding, endian, reverse
):
    values, inner = array
    codecs, shard = [endian, *rest], inner
    if reverse:
        axes = list(range(values.ndim))[::-1]
        codecs = [{"name": "transpose", "configuration": {"order": axes}}, *codecs]
    if location is not None:
        codecs = [make_sharding_codec(inner, codecs, location, index)]
        shard = tuple(c * split for c in inner)
    metadata = {
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard}},
        "chunk_key_encoding": {"name": encoding[0], "configuration": {"separator": encoding[1]}},
        "codecs": codecs,
    }
    with tempfile.TemporaryDirectory() as directory:
        write_with_tensorstore(
            directory, "zarr3", metadata, values, store_data_equal_to_fill_value=True
        )
        assert have_same_bytes(read_array(Local(directory)), values)


@count_examples(15)
@given(array=chunked_arrays())
def test_shards_in_shards_are_read_as_tensorstore_reads_them(array):
    values, inner = array
    middle = tuple(2 * c for c in inner)
    nested = make_sharding_codec(middle, [make_sharding_codec(inner, [BYTES, ZSTD])])
    shape = [2 * c for c in middle]
    metadata = {
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shape}},
        "codecs": [nested],
    }
    with tempfile.TemporaryDirectory() as directory:
        write_with_tensorstore(
            directory, "zarr3", metadata, values, store_data_equal_to_fill_value=True
        )
        assert have_same_bytes(read_array(Local(directory)), values)


@given(array=chunked_arrays(), driver=st.sampled_from(["zarr", "zarr3"]), data=st.data())
def test_chunks_equal_to_the_fill_value_may_be_absent(array, driver, data):
    values, chunks = array
    fill = data.draw(st.sampled_from([0, 1]))
    values = np.where(np.arange(values.size).reshape(values.shape) % 3, values, 0).astype(
        values.dtype
    )
    if data.draw(st.booleans()):
        values[...] = fill
    fill = bool(fill) if values.dtype == bool else fill
    if values.dtype.kind == "c":
        fill = [fill, 0]
    metadata = {"fill_value": fill}
    if driver == "zarr":
        name = values.dtype.str if values.dtype.kind != "V" else values.dtype.name
        metadata |= {"chunks": chunks, "compressor": None, "dtype": name}
    else:
        grid = {"name": "regular", "configuration": {"chunk_shape": [2 * c for c in chunks]}}
        metadata |= {"chunk_grid": grid, "codecs": [make_sharding_codec(chunks, [BYTES])]}
        metadata["data_type"] = values.dtype.name
    with tempfile.TemporaryDirectory() as directory:
        write_with_tensorstore(directory, driver, metadata, values)
        assert have_same_bytes(read_array(Local(directory), absent="fill"), values)


def encode_zarr2(**changes):
    metadata = {
        "zarr_format": 2,
        "shape": [4],
        "chunks": [2],
        "dtype": "<f4",
        "compressor": None,
        "fill_value": None,
        "filters": None,
        "order": "C",
    }
    return json.dumps(metadata | changes).encode()


def encode_zarr3(**changes):
    metadata = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [4],
        "data_type": "float32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2]}},
        "chunk_key_encoding": {"name": "default"},
        "fill_value": 0,
        "codecs": [BYTES],
    }
    return json.dumps(metadata | changes).encode()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compressor": {"id": "bz2"}}, "templax does not read codec `bz2`"),
        ({"compressor": {"id": "lzma"}}, "templax does not read codec `lzma`"),
        ({"compressor": {"id": "crc32c"}}, "templax does not read codec `crc32c`"),
        ({"compressor": {"id": ["zstd"]}}, "templax does not read codec `['zstd']`"),
        ({"compressor": {}}, "templax does not read codec `None`"),
        ({"filters": [{"id": "delta"}]}, "templax reads no zarr filters, got `delta`"),
        ({"order": "X"}, "templax reads arrays of order C and F, got `X`"),
    ],
)
def test_zarr2_that_cannot_be_decoded_has_a_shape_and_a_reason(changes, message):
    array = parse_metadata(encode_zarr2(**changes), ".zarray")
    assert (array.shape, array.dtype) == ((4,), np.dtype(np.float32))
    assert_values_are_refused(array, message)


def assert_values_are_refused(array, message):
    """The error names the leaf and comes before the chunks are looked up."""
    with pytest.raises(Unsupported) as caught:
        locate_arrays(array, "layer.w", {}, Memory({}), absent="error")
    assert (caught.value.what, caught.value.leaf) == (message, "layer.w")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "|O"}, "templax does not read dtype `|O`"),
        ({"dtype": ">V2"}, "templax does not read dtype `>V2`"),
        ({"dtype": "<M8[s]"}, "templax does not read dtype `<M8[s]`"),
        ({"dtype": [["a", "<f4"]]}, "templax does not read dtype `[['a', '<f4']]`"),
        ({"zarr_format": 1}, "templax reads zarr_format 2 in `.zarray`, got 1"),
    ],
)
def test_unsupported_zarr2_metadata_is_named(changes, message):
    with pytest.raises(Unsupported) as caught:
        parse_metadata(encode_zarr2(**changes), ".zarray")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codecs": [BYTES, {"name": "bz2"}]}, "templax does not read codec `bz2`"),
        (
            {"codecs": [BYTES, {"name": "numcodecs.delta"}]},
            "templax does not read codec `delta`",
        ),
        (
            {"codecs": [BYTES, {"name": "a"}, ZSTD, {"name": "b"}]},
            "templax does not read codec `a`",
        ),
        (
            {"codecs": [{"name": "bytes", "configuration": {"endian": "middle"}}]},
            "templax does not read codec `bytes` with 'middle'",
        ),
        (
            {"codecs": [REVERSED, make_sharding_codec([1], [BYTES])]},
            "templax does not read codec `transpose` around shards",
        ),
        (
            {"codecs": [BYTES, {"name": "big-endian-4"}]},
            "templax does not read codec `big-endian-4`",
        ),
        (
            {"codecs": [make_sharding_codec([1], [BYTES], index=[BIG, CRC])]},
            "templax does not read big-endian shard indexes",
        ),
        (
            {"codecs": [make_sharding_codec([1], [BYTES]), ZSTD]},
            "templax does not read codec `zstd` around shards",
        ),
        (
            {"codecs": [BYTES, ZSTD, ZSTD]},
            "templax reads chunks compressed once, got several codecs `zstd`",
        ),
        (
            {"codecs": [make_sharding_codec([1], [BYTES, {"name": "lzma"}])]},
            "templax does not read codec `lzma`",
        ),
        (
            {"codecs": [BYTES, ZSTD, {"name": "gzip"}]},
            "templax reads chunks compressed once, got several codecs `gzip`, `zstd`",
        ),
        ({"codecs": [BYTES, *[CRC] * 9]}, "templax reads chunks of 8 codecs at most, got 9"),
        ({"codecs": [BYTES, {"name": "fill"}]}, "templax does not read codec `fill`"),
        ({"chunk_grid": {"name": "rectilinear"}}, "templax does not read chunk grid `rectilinear`"),
        ({"chunk_key_encoding": {"name": "x"}}, "templax does not read chunk key encoding `x`"),
        ({"storage_transformers": [{}]}, "templax reads no zarr storage transformers"),
        (
            {"codecs": [make_sharding_codec([1], [BYTES], index=[BYTES, ZSTD])]},
            "templax does not read shard indexes with codecs ['bytes', 'zstd']",
        ),
    ],
)
def test_zarr3_that_cannot_be_decoded_has_a_shape_and_a_reason(changes, message):
    array = parse_metadata(encode_zarr3(**changes), "zarr.json")
    assert (array.shape, array.dtype) == ((4,), np.dtype(np.float32))
    assert_values_are_refused(array, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_type": "string"}, "templax does not read dtype `string`"),
        ({"node_type": "group"}, "got group of 3"),
    ],
)
def test_unsupported_zarr3_metadata_is_named(changes, message):
    with pytest.raises(Unsupported) as caught:
        parse_metadata(encode_zarr3(**changes), "zarr.json")
    assert message in str(caught.value)


def test_axes_in_another_order_than_the_reverse_are_refused_by_name():
    for order, refused in (([2, 0, 1], True), ([2, 1, 0], False), ("F", False), ("C", False)):
        transpose = {"name": "transpose", "configuration": {"order": order}}
        grid = {"name": "regular", "configuration": {"chunk_shape": [2, 2, 2]}}
        text = encode_zarr3(shape=[2, 2, 2], chunk_grid=grid, codecs=[transpose, BYTES])
        array = parse_metadata(text, "zarr.json")
        if refused:
            message = "templax reads transposed chunks whose axes are in reverse order"
            assert_values_are_refused(array, message)
        else:
            assert (array.unsupported, array.order) == (None, "C" if order == "C" else "F")


def test_two_transposes_are_one():
    turn = {"name": "transpose", "configuration": {"order": [1, 2, 0]}}
    grid = {"name": "regular", "configuration": {"chunk_shape": [2, 2, 2]}}
    for n, unsupported in ((1, True), (2, True), (3, False)):
        text = encode_zarr3(shape=[2, 2, 2], chunk_grid=grid, codecs=[turn] * n + [BYTES])
        array = parse_metadata(text, "zarr.json")
        assert (array.unsupported is not None) is unsupported


@pytest.mark.parametrize(
    "array",
    [
        parse_metadata(encode_zarr2(compressor={"id": "blosc"}), ".zarray"),
        parse_metadata(
            encode_zarr3(codecs=[make_sharding_codec([1], [BYTES, BLOSC])]), "zarr.json"
        ),
    ],
    ids=["zarr 2", "in shards"],
)
def test_without_numcodecs_the_error_names_the_extra(array, monkeypatch):
    monkeypatch.setattr("templax._codecs.decode.has_numcodecs", lambda: False)
    with pytest.raises(Unsupported) as caught:
        locate_arrays(array, "layer.w", {}, Memory({}), absent="error")
    assert str(caught.value) == (
        "templax reads codec `blosc` with numcodecs, which is not installed - at `layer.w`;"
        ' hint: pip install "templax[codecs]"'
    )
    index = b"".join(n.to_bytes(8, "little") for n in (0, 4, 4, 4))
    shard = bytes(8) + index + crc32c(index).to_bytes(4, "little")
    objects = {f"a/{array.key((i,))}": shard for i in (0, 1)}
    extents = {key: Extent(key, 0, len(shard)) for key in objects}
    source = Memory(objects)
    chunks = locate_arrays(array, "a", extents, source, absent="error", damages=[])
    assert {chunk.codecs for chunk in chunks} == {("unreadable",)}


@pytest.mark.parametrize(("nbytes", "stored", "right"), [
    (1 << 26, 1 << 13, True),  # equal values, compressed by blosc with zstd
    (1 << 26, 1 << 10, False),
    (1 << 28, 1 << 21, True),
    (1 << 28, 1 << 14, False),
])  # fmt: skip
def test_blosc_chunks_of_too_few_bytes_are_refused_before_memory_is_taken(nbytes, stored, right):
    text = encode_zarr2(shape=[nbytes], chunks=[nbytes], dtype="|u1", compressor={"id": "blosc"})
    array, objects = parse_metadata(text, ".zarray"), {"a/0": Extent("a/0", 0, stored)}
    with contextlib.nullcontext() if right else pytest.raises((Corrupted, Unsupported)):
        locate_arrays(array, "a", objects, Memory({"a/0": b""}), absent="error")


def test_every_codec_with_a_decoder_is_read():
    for name in COMPRESSIONS:
        assert parse_metadata(encode_zarr2(compressor={"id": name}), ".zarray").codecs == (name,)
    for name in (*COMPRESSIONS, *CHECKSUMS):
        metadata = encode_zarr3(codecs=[BYTES, {"name": name}])
        assert parse_metadata(metadata, "zarr.json").codecs == (name,)


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [-1]},
        {"shape": [2**63]},
        {"shape": [10**30]},
        {"shape": [2.5]},
        {"shape": ["4"]},
        {"shape": [2**40, 2**40], "chunks": [1, 1]},
        {"shape": [1] * 33, "chunks": [1] * 33},
        {"chunks": [0]},
        {"chunks": [-2]},
        {"chunks": [2, 2]},
        {"chunks": [2**40]},
        {"shape": "x"},
    ],
)
def test_impossible_shapes_and_chunks_are_damage(changes):
    with pytest.raises(Corrupted):
        parse_metadata(encode_zarr2(**changes), ".zarray")


@pytest.mark.parametrize(
    ("codecs", "message"),
    [
        ([], "Expected a codec that makes bytes of an array, got none"),
        (
            [make_sharding_codec([1, 1], [BYTES])],
            "Expected inner chunks of 1 dimensions, got (1, 1)",
        ),
        ([make_sharding_codec([0], [BYTES])], "Expected inner chunks of 1 dimensions, got (0,)"),
        (
            [make_sharding_codec([3], [BYTES])],
            "Expected inner chunks that divide shards (2,), got (3,)",
        ),
    ],
)
def test_impossible_codecs_are_damage(codecs, message):
    with pytest.raises(Corrupted) as caught:
        parse_metadata(encode_zarr3(codecs=codecs), "zarr.json")
    assert str(caught.value) == message


def test_unreadable_metadata_is_damage():
    for data in (
        b"",
        b"{",
        b"[" * 100_000,
        b"\xff",
        b"{}",
        encode_zarr2() + b"x",
        b" " * (2 << 20),
    ):
        for file in (".zarray", "zarr.json"):
            with pytest.raises(Corrupted):
                parse_metadata(data, file)


def test_deeply_nested_shards_are_refused():
    codec = BYTES
    for _ in range(20):
        codec = make_sharding_codec([1], [codec])
    array = parse_metadata(encode_zarr3(codecs=[codec]), "zarr.json")
    assert_values_are_refused(array, "templax reads shards in shards 4 deep, got deeper ones")


def locate_chunks(data, objects, *, index=None, absent="error", file=".zarray"):
    source = Memory({})
    extents = {k: Extent(k, 0, len(v), v) for k, v in objects.items()}
    return locate_arrays(
        parse_metadata(data, file), "a", extents, source, absent=absent, index=index
    )


def test_a_missing_chunk_names_leaf_and_file():
    objects = {"a/0": bytes(8)}
    with pytest.raises(Corrupted) as caught:
        locate_chunks(encode_zarr2(), objects)
    assert str(caught.value) == "Expected a chunk, found none - at `a`, file `a/1`"
    with pytest.raises(Corrupted) as caught:
        locate_chunks(encode_zarr2(), objects, index="manifest.ocdbt")
    assert str(caught.value) == (
        "Expected chunk `a/1`, the index has none - at `a`, file `manifest.ocdbt`"
    )


def test_an_absent_chunk_without_a_fill_value_is_damage():
    with pytest.raises(Corrupted, match="Expected a chunk, found none"):
        locate_chunks(encode_zarr2(fill_value=None), {"a/0": bytes(8)}, absent="fill")


def test_a_huge_grid_of_missing_chunks_is_not_walked():
    huge = encode_zarr2(shape=[2**40], chunks=[1], fill_value=0)
    with pytest.raises(Corrupted) as caught:
        locate_chunks(huge, {"a/0": bytes(4)}, absent="error")
    assert str(caught.value) == "Expected a chunk, found none - at `a`, file `a/1`"
    with pytest.raises(Unsupported, match=f"does not fill in {2**40 - 1} absent chunks"):
        locate_chunks(huge, {"a/0": bytes(4)}, absent="fill")


def test_an_array_without_elements_has_no_chunks():
    assert locate_chunks(encode_zarr2(shape=[0], chunks=[1]), {}) == ()
    assert locate_chunks(encode_zarr2(shape=[2**30, 0, 2**30], chunks=[1, 1, 1]), {}) == ()
    with pytest.raises(
        Corrupted, match=r"less than 2\*\*63 bytes"
    ):  # numpy counts the bytes of a row
        locate_chunks(encode_zarr2(shape=[2**62, 0, 2**62], chunks=[1, 1, 1]), {})


def test_a_raw_chunk_of_the_wrong_length_is_damage():
    with pytest.raises(Corrupted) as caught:
        locate_chunks(encode_zarr2(), {"a/0": bytes(8), "a/1": bytes(7)})
    assert str(caught.value) == "Expected a chunk of 8 bytes, got 7 - at `a`, file `a/1`"


def test_a_compressed_chunk_too_small_for_its_elements_is_damage():
    big = encode_zarr2(shape=[2**40], chunks=[2**40], compressor={"id": "zstd"})
    with pytest.raises(Corrupted, match="can't decode to as many"):
        locate_chunks(big, {"a/0": bytes(30_000)})


def test_a_compressed_chunk_too_large_for_its_elements_is_damage():
    with pytest.raises(Corrupted, match="Expected 8 bytes compressed, got 70000"):
        locate_chunks(
            encode_zarr2(compressor={"id": "zstd"}), {"a/0": bytes(70_000), "a/1": bytes(8)}
        )


@pytest.mark.parametrize(
    ("dtype", "fill", "expected"),
    [
        ("<f4", "NaN", np.float32("nan")),
        ("<f4", "-Infinity", np.float32("-inf")),
        ("<f8", 1.5, np.float64(1.5)),
        ("<f4", "0x7fc00001", np.uint32(0x7FC00001)),
        ("bfloat16", 1, BFLOAT16.type(1)),
        ("<u8", 2**64 - 1, np.uint64(2**64 - 1)),
        ("<i8", -(2**63), np.int64(-(2**63))),
        ("|b1", True, np.bool_(True)),
        ("int4", -3, INT4.type(-3)),
        ("<c8", [1, "Infinity"], np.complex64(complex(1, math.inf))),
    ],
)
def test_fill_values_are_read_as_zarr_spells_them(dtype, fill, expected):
    (chunk,) = locate_chunks(encode_zarr2(dtype=dtype, fill_value=fill), {}, absent="fill")
    assert chunk.codecs == ("fill",)
    assert chunk.box == ((0, 4),)
    assert bytes(chunk.extent.inline) == expected.tobytes()


@pytest.mark.parametrize(
    ("dtype", "fill"),
    [
        ("|u1", 300),
        ("|u1", -1),
        ("<i4", 1.5),
        ("<f4", "x"),
        ("<f4", {}),
        ("<f4", [1, 2]),
        ("<i8", 2**70),
    ],
)
def test_a_fill_value_outside_its_dtype_is_damage(dtype, fill):
    with pytest.raises(Corrupted, match="Expected a fill_value of dtype"):
        locate_chunks(encode_zarr2(dtype=dtype, fill_value=fill), {}, absent="fill")


def encode_shard(entries, data=b"", checked=True):
    index = np.array(entries, "<u8").tobytes()
    return data + index + (crc32c(index).to_bytes(4, "little") if checked else b"")


SHARDED = encode_zarr3(shape=[2], codecs=[make_sharding_codec([1], [BYTES])])
NONE = 2**64 - 1


def test_the_index_of_a_shard_is_verified():
    shard = bytearray(encode_shard([(0, 4), (4, 4)], bytes(8)))
    shard[-5] ^= 1
    with pytest.raises(
        Corrupted, match=r"of a shard's index, got `.*` - at `a`, file `a/c/0`, bytes"
    ):
        locate_chunks(SHARDED, {"a/c/0": bytes(shard)}, file="zarr.json")


@pytest.mark.parametrize("entry", [(41, 4), (NONE, 4), (2**63, 2**63), (4, 2**40)])
def test_an_inner_chunk_outside_its_shard_is_damage(entry):
    with pytest.raises(Corrupted, match="Expected an inner chunk within the 44 bytes of its shard"):
        locate_chunks(SHARDED, {"a/c/0": encode_shard([(0, 4), entry], bytes(8))}, file="zarr.json")


def test_an_absent_inner_chunk_is_damage_or_the_fill_value():
    objects = {"a/c/0": encode_shard([(0, 4), (NONE, NONE)], bytes(4))}
    with pytest.raises(Corrupted, match="Expected a chunk, found none"):
        locate_chunks(SHARDED, objects, file="zarr.json")
    chunks = locate_chunks(SHARDED, objects, file="zarr.json", absent="fill")
    assert [(c.box, c.codecs) for c in chunks] == [(((0, 1),), ()), (((1, 2),), ("fill",))]


def test_a_shard_too_short_for_its_index_is_damage():
    with pytest.raises(Corrupted, match="Expected a shard with an index of 36 bytes, got 10 bytes"):
        locate_chunks(SHARDED, {"a/c/0": bytes(10)}, file="zarr.json")


@count_examples(300)
@given(data=st.data())
def test_altered_metadata_raises_only_errors_of_templax(data):
    file, text = data.draw(
        st.sampled_from(
            [(".zarray", encode_zarr2()), ("zarr.json", encode_zarr3()), ("zarr.json", SHARDED)]
        )
    )
    changed = bytearray(text)
    at = data.draw(st.integers(0, len(changed) - 1))
    changed[at : at + data.draw(st.integers(0, 3))] = data.draw(
        st.binary(max_size=2) | st.sampled_from([b"99999999", b"-", b"null", b"[]", b"1e9"])
    )
    objects = {"a/0": bytes(8), "a/1": bytes(8), "a/c/0": bytes(8), "a/c/1": bytes(8)}
    with contextlib.suppress(TemplaxError):
        locate_chunks(
            bytes(changed), objects, file=file, absent=data.draw(st.sampled_from(["error", "fill"]))
        )


def make_shard_directory(path, shards, *, arrays=1, nbytes=None, inner=1):
    """Arrays of one byte per inner chunk, each in one shard of as many."""
    for i in range(arrays):
        directory = path / f"a{i}"
        directory.joinpath("c").mkdir(parents=True)
        n = shards
        codec = make_sharding_codec([inner], [BYTES], index=(BYTES,))
        meta = encode_zarr3(shape=[n], data_type="uint8", codecs=[codec], chunk_grid=make_grid([n]))
        directory.joinpath("zarr.json").write_bytes(meta)
        with directory.joinpath("c", "0").open("wb") as file:
            file.truncate(nbytes or 16 * n)


def make_grid(shape):
    return {"name": "regular", "configuration": {"chunk_shape": shape}}


@pytest.mark.parametrize("command", ["tx.verify('.')", "tx.restore('.', tx.open('.').template())"])
def test_a_sparse_shard_takes_little_time_and_memory(tmp_path, command):
    make_shard_directory(tmp_path, 1 << 26)
    make_tree_metadata(tmp_path, ["a0"])

    found = run_limited(command, preload="import jax", cwd=tmp_path)

    assert (found.error or "").startswith(
        "Unsupported: templax reads shards of 1048576 inner chunks, got 67108864 - at `a0`"
    )


def make_tree_metadata(path, names):
    tree = {
        name: {
            "key_metadata": [{"key": name, "key_type": 2}],
            "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False},
        }
        for name in names
    }
    text = json.dumps({"tree_metadata": tree, "use_ocdbt": False, "use_zarr3": True})
    path.joinpath("_METADATA").write_text(text)


def test_many_shards_of_tiny_chunks_take_little_time_and_memory(tmp_path):
    """Links stand for what a database can do as well: many arrays in the same bytes."""
    n = 50_000
    make_shard_directory(tmp_path, n)
    index = np.stack([np.zeros(n, "<u8"), np.ones(n, "<u8")], 1)
    shard = tmp_path / "a0" / "c" / "0"
    shard.write_bytes(index.tobytes())
    names = [f"a{i}" for i in range(50)]
    for name in names[1:]:
        tmp_path.joinpath(name, "c").mkdir(parents=True)
        os.link(tmp_path / "a0" / "zarr.json", tmp_path / name / "zarr.json")
        os.link(shard, tmp_path / name / "c" / "0")
    make_tree_metadata(tmp_path, names)

    found = run_limited("tx.verify('.')", cwd=tmp_path)

    assert (found.error or "").startswith("Unsupported: templax reads 1")


@pytest.mark.slow
@pytest.mark.parametrize("present", [0, *mark_slow(1)])
@pytest.mark.parametrize("written", [True, *mark_slow(False)])
def test_many_grids_of_absent_chunks_take_little_time_and_memory(tmp_path, present, written):
    names = [f"a{i:04}" for i in range(2000)]
    for name in names:
        tmp_path.joinpath(name).mkdir()
        meta = encode_zarr2(shape=[60_000], chunks=[1], fill_value=0, dtype="|u1")
        tmp_path.joinpath(name, ".zarray").write_bytes(meta)
        for i in range(present):
            tmp_path.joinpath(name, str(i)).write_bytes(b"x")
    make_tree_metadata(tmp_path, names)
    if written:
        text = tmp_path.joinpath("_METADATA").read_text()
        text = text.replace("{", '{"store_array_data_equal_to_fill_value": true, ', 1)
        tmp_path.joinpath("_METADATA").write_text(text)

    found = run_limited("print(len(tx.verify('.').damages))", cwd=tmp_path)

    assert found.error is None
    assert (int(found.stdout) == 0) == (not present and not written)


@pytest.mark.parametrize(
    ("file", "text", "old", "new", "key"),
    [
        (".zarray", encode_zarr2(), b'"shape": [4]', b'"shape": [4], "shape": [2]', "shape"),
        (".zarray", encode_zarr2(), b'"order"', b'"\\u006frder": "F", "order"', "order"),
        ("zarr.json", encode_zarr3(), b'"shape": [4]', b'"shape": [4], "shape": [2]', "shape"),
        ("zarr.json", SHARDED, b'"endian"', b'"endian": "big", "endian"', "endian"),
    ],
)
def test_a_key_that_occurs_twice_is_named(file, text, old, new, key):
    assert old in text
    with pytest.raises(Corrupted, match=f"`{file}` is unreadable: the key '{key}' occurs twice"):
        parse_metadata(text.replace(old, new, 1), file)
