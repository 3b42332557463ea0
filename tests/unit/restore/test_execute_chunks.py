"""Large, small and adjacent chunks: how they are read and decoded."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

import templax as tx
from helpers import CORPUS, assert_same_tree
from stored_leaves import make_pair, make_plan, plan_pair, read_arrays
from templax._catalog.entry import Chunk, Extent
from templax._core.boxes import size_of
from templax._restore.execute import execute_plan
from templax.storage import Memory
from templax.testing import Watched, strategies

make_host_pair = functools.partial(make_pair, host=True)


@given(st.data())
def test_large_raw_parts_are_split_without_overlap(data: Any) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    boxes = tuple(
        dict.fromkeys(data.draw(st.lists(strategies.boxes(shape), min_size=1, max_size=3)))
    )
    values = np.arange(size_of(tuple((0, n) for n in shape)), dtype=np.int32).reshape(shape)
    chunk = Chunk(Extent("f", 0, values.nbytes), tuple((0, n) for n in shape))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("templax._plan.parts.SCATTER_BYTES", data.draw(st.sampled_from([4, 12, 40])))
        patch.setattr("templax._plan.parts.SPLIT_BYTES", data.draw(st.sampled_from([4, 20, 64])))
        made = make_plan(make_host_pair("w", values, boxes), w=(chunk,))
    source = Watched(Memory({"f": values.tobytes()}))
    (finished,) = execute_plan(made, [source])
    for buffer, array in zip(finished.batch.buffers, finished.arrays, strict=True):
        np.testing.assert_array_equal(array, values[tuple(slice(a, b) for a, b in buffer.box)])
    spans = sorted((start, stop) for _, start, stop in source.reads)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))


def test_adjacent_chunks_are_one_read_and_one_mapping() -> None:
    """Even if the last chunk reaches past the edge of the leaf."""
    ckpt = CORPUS / "orbax-handmade-aligned" / "ckpt"
    catalog = tx.open(ckpt)
    located = catalog.locate(catalog.entries)
    several = [e for e in catalog.entries if len(located[e.name]) > 1]
    assert several
    template = catalog.template()
    assert_same_tree(tx.restore(catalog, template, mapped=True), tx.restore(catalog, template))
    values = np.arange(70, dtype=np.float32).reshape(7, 10)
    padded = np.zeros((8, 10), np.float32)
    padded[:7] = values
    chunks = tuple(
        Chunk(Extent("f", i * 80, i * 80 + 80), ((2 * i, 2 * i + 2), (0, 10))) for i in range(4)
    )
    source = Watched(Memory({"f": padded.tobytes()}))
    (finished,) = execute_plan(make_plan(make_host_pair("w", values), w=chunks), [source])
    np.testing.assert_array_equal(finished.arrays[0], values)
    assert source.reads == [("f", 0, 280)]
    for apart in (chunks[::-1], (*chunks[:2], structs.replace(chunks[2], codecs=("crc32c",)))):
        made = make_plan(make_host_pair("w", values), w=tuple(apart))
        assert sum(len(op.parts) for op in made.batches[0].reads) == len(apart)


@pytest.fixture(scope="module")
def large() -> tuple[np.ndarray, bytes]:
    """The values and the bytes of a chunk large enough to be decoded in pieces."""
    import zstandard

    values = np.random.default_rng(0).standard_normal((1500, 1000)).astype(np.float32)
    stored = zstandard.ZstdCompressor(write_checksum=True).compress(values.tobytes())
    assert len(stored) > 5 << 20
    return values, stored


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    ("boxes", "dtype"),
    [
        (None, None),
        (None, "bfloat16"),
        ((((0, 1500), (0, 500)), ((0, 1500), (500, 1000))), None),
        ((((3, 700), (0, 1000)), ((700, 1499), (1, 3))), "bfloat16"),
    ],
)
def test_a_large_chunk_is_decoded_while_it_is_read(
    large: Any, order: Any, boxes: Any, dtype: Any
) -> None:
    values, stored = large
    if order == "F":
        values = values.reshape(1000, 1500).T
    pair = make_host_pair("w", values, boxes, dtype)
    chunk = Chunk(Extent("f", 7, 7 + len(stored)), ((0, 1500), (0, 1000)), ("zstd",), order)
    source = Watched(Memory({"f": b"?" * 7 + stored}))
    made = plan_pair(pair, chunk, threads=2, memory=64 << 20)
    for buffer, array in zip(made.batches[0].buffers, read_arrays(made, source), strict=True):
        want = values[tuple(slice(a, b) for a, b in buffer.box)]
        assert array.tobytes() == want.astype(array.dtype).tobytes()
    assert max(stop - start for _, start, stop in source.reads) <= 1 << 20
    assert sum(stop - start for _, start, stop in source.reads) == len(stored)
    if order == "C":
        assert made.scratch_bytes <= 5 << 20


@pytest.mark.parametrize("boxes", [None, (((3, 700), (0, 1000)), ((700, 1499), (1, 3)))])
def test_a_chunk_for_which_there_is_memory_is_decoded_in_one_call(large: Any, boxes: Any) -> None:
    values, stored = large
    pair = make_host_pair("w", values, boxes)
    chunk = Chunk(Extent("f", 7, 7 + len(stored)), ((0, 1500), (0, 1000)), ("zstd",))
    source = Watched(Memory({"f": b"?" * 7 + stored}))
    made = plan_pair(pair, chunk, threads=2, memory=128 << 20)
    for buffer, array in zip(made.batches[0].buffers, read_arrays(made, source), strict=True):
        want = values[tuple(slice(a, b) for a, b in buffer.box)]
        np.testing.assert_array_equal(array, want)
    assert source.reads == [("f", 7, 7 + len(stored))]
    scratch = len(stored) + (0 if boxes is None else values.nbytes)
    assert made.scratch_bytes == scratch <= made.memory // (4 * made.threads)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_errors_within_a_large_chunk_name_the_leaf(large: Any, dtype: Any) -> None:
    values, stored = large
    chunk = Chunk(Extent("f", 0, len(stored)), ((0, 1500), (0, 1000)), ("zstd",))
    pair = make_host_pair("w", values, None, dtype)
    made = plan_pair(pair, chunk, threads=2, memory=64 << 20)

    def fault(key: str, start: int, stop: int) -> None:
        if start > 2 << 20:
            raise tx.SourceError("can't read `f`: gone")

    with pytest.raises(tx.SourceError, match="gone"):
        read_arrays(made, Watched(Memory({"f": stored}), fault))
    with pytest.raises(tx.Corrupted) as caught:
        read_arrays(made, Memory({"f": stored[:-1] + b"?"}))  # within the frame's checksum
    error = caught.value
    assert (error.leaf, error.file, error.start, error.stop) == ("w", "f", 0, len(stored))


def test_pieces_of_a_large_raw_leaf_are_read_in_place() -> None:
    """The source fills the buffer itself."""
    values = np.arange(96, dtype=np.float32).reshape(12, 8)
    outs = []

    class Source(Memory):
        def read(self, key: str, start: int = 0, stop: Any = None, out: Any = None) -> memoryview:
            outs.append(np.frombuffer(out, np.uint8).ctypes.data)
            return super().read(key, start, stop, out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("templax._plan.parts.SCATTER_BYTES", 64)
        patch.setattr("templax._plan.parts.SPLIT_BYTES", 64)
        patch.setattr("templax._plan.requests.IN_PLACE_BYTES", 1)
        chunk = Chunk(Extent("f", 0, values.nbytes), ((0, 12), (0, 8)))
        made = make_plan(make_host_pair("w", values), w=(chunk,))
    (finished,) = execute_plan(made, [Source({"f": values.tobytes()})])
    (array,) = finished.arrays
    np.testing.assert_array_equal(array, values)
    assert sorted(outs) == [array.ctypes.data + i for i in range(0, values.nbytes, 64)]


def test_small_chunks_are_decoded_together_and_a_damaged_one_is_named() -> None:
    import zstandard

    pairs, chunks, data = [], {}, b""
    for i in range(50):
        values = np.full(16, i, np.float32)
        frame = zstandard.compress(values.tobytes())
        pairs.append(make_host_pair(f"l{i}", values))
        chunks[f"l{i}"] = (
            Chunk(Extent("f", len(data), len(data) + len(frame)), ((0, 16),), ("zstd",)),
        )
        data += frame
    made = make_plan(*pairs, **chunks)
    (op,) = made.batches[0].reads
    assert len(op.parts) == 50
    (finished,) = execute_plan(made, [Memory({"f": data})])
    assert [float(a[3]) for a in finished.arrays] == list(range(50))
    bad = op.parts[17]
    broken = data[: bad.start] + b"\xff" * 4 + data[bad.start + 4 :]
    with pytest.raises(tx.Corrupted, match=r"Expected a zstd frame.* - at `l17`"):
        list(execute_plan(made, [Memory({"f": broken})]))
    longer = zstandard.compress(bytes(65))
    swapped = structs.replace(bad.chunk, extent=Extent("f", len(data), len(data) + len(longer)))
    made = make_plan(*pairs, **(chunks | {"l17": (swapped,)}))
    with pytest.raises(tx.Corrupted, match=r"Expected 64 decoded bytes.* - at `l17`"):
        list(execute_plan(made, [Memory({"f": data + longer})]))


def test_joined_chunks_are_bounded_by_their_decoded_size() -> None:
    """A request is bounded by its size and by what it decodes to, and the plan counts both."""
    import zstandard

    frame = zstandard.compress(bytes(1 << 16))
    values = np.zeros(256 << 16, np.uint8)
    chunks = [
        Chunk(
            Extent("f", i * len(frame), (i + 1) * len(frame)),
            ((i << 16, (i + 1) << 16),),
            ("zstd",),
        )
        for i in range(256)
    ]
    made = make_plan(make_host_pair("w", values), w=tuple(chunks))
    sizes = [sum(part.nbytes for part in op.parts) for op in made.batches[0].reads]
    assert max(sizes) <= 4 << 20
    assert made.scratch_bytes >= max(sizes)
    (finished,) = execute_plan(made, [Memory({"f": frame * 256})])
    assert not finished.arrays[0].any()


def test_a_fill_value_takes_no_scratch() -> None:
    values = np.full((64, 8), 7, np.int16)
    boxes = tuple(((0, 64), (i, i + 1)) for i in range(8))
    chunk = Chunk(Extent("i", 0, 2, b"\7\0"), ((0, 64), (0, 8)), ("fill",), "C", True)
    made = make_plan(make_host_pair("w", values, boxes, "int32"), w=(chunk,))
    assert made.scratch_bytes == 0
    (finished,) = execute_plan(made, [Memory({})])
    assert all((a == 7).all() and a.dtype == np.int32 for a in finished.arrays)
