"""Executing a plan: arrays, buffers, errors and threads."""

from __future__ import annotations

import functools
import itertools
import threading
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import zstandard
from msgspec import structs

from stored_leaves import make_pair, make_plan, read_arrays
from templax import Corrupted, SourceError
from templax._catalog.entry import Chunk, Extent
from templax._core.boxes import Box, box_slices, full_box, shape_of
from templax._core.memory import ALIGN, SMALL_BYTES
from templax._match.result import Match, Pair
from templax._plan.build import build_plan
from templax._plan.limits import BATCH_BYTES
from templax._plan.plan import IN_FLIGHT, Plan
from templax._restore.buffers import ARENA_BYTES, SHARED_BYTES, HostMemory
from templax._restore.execute import execute_plan
from templax._template.template import Template
from templax.storage import Memory
from templax.testing import Watched, strategies


@pytest.fixture(autouse=True)
def _threads_unchanged() -> Any:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


make_host_pair = functools.partial(make_pair, host=True)


def make_chunks(values: np.ndarray, encoded: bytes | None = None, **more: Any) -> tuple[Chunk, ...]:
    nbytes = len(values.tobytes() if encoded is None else encoded)
    return (Chunk(Extent("f", 0, nbytes), full_box(values.shape), **more),)


VALUES = np.arange(24, dtype=np.float32).reshape(4, 6)


@pytest.mark.parametrize("codecs", [(), ("zstd",)])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize(
    "box", [((0, 4), (0, 6)), ((1, 3), (0, 6)), ((0, 4), (2, 5)), ((2, 3), (4, 5))]
)
def test_a_box_of_a_chunk_is_its_slice(codecs: Any, order: Any, inline: bool, box: Box) -> None:
    """Raw or compressed, C or Fortran order, in a file or in the index."""
    encoded = VALUES.tobytes(order=order)
    if codecs:
        encoded = zstandard.compress(encoded)
    held = encoded if inline else None
    chunk = Chunk(Extent("f", 0, len(encoded), held), full_box(VALUES.shape), codecs, order)
    (array,) = read_arrays(
        make_plan(make_host_pair("w", VALUES, (box,)), w=(chunk,)), Memory({"f": encoded})
    )
    assert array.dtype == VALUES.dtype
    np.testing.assert_array_equal(array, VALUES[box_slices(box)])


def test_a_chunk_of_several_boxes_is_read_once() -> None:
    boxes = (((0, 2), (0, 6)), ((2, 4), (0, 6)), ((0, 4), (3, 6)))
    source = Watched(Memory({"f": VALUES.tobytes()}))
    arrays = read_arrays(
        make_plan(make_host_pair("w", VALUES, boxes), w=make_chunks(VALUES)), source
    )
    assert source.reads == [("f", 0, 96)]
    for box, array in zip(boxes, arrays, strict=True):
        np.testing.assert_array_equal(array, VALUES[box_slices(box)])


def test_padding_of_edge_chunks_is_dropped() -> None:
    values = np.arange(10, dtype=np.int16).reshape(2, 5)
    data, chunks = b"", []
    for box in strategies.grid((2, 5), (2, 4)):
        padded = np.full((2, 8), -1, np.int16)
        padded[:, :5] = values
        piece = padded[box_slices(box)].tobytes()
        chunks.append(Chunk(Extent("f", len(data), len(data) + len(piece)), box))
        data += piece
    (array,) = read_arrays(
        make_plan(make_host_pair("w", values), w=tuple(chunks)), Memory({"f": data})
    )
    np.testing.assert_array_equal(array, values)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (1, 1, 1)])
def test_small_and_empty_arrays(shape: tuple[int, ...]) -> None:
    values = np.full(shape, 7, np.int32)
    chunks = make_chunks(values) if values.size else ()
    (array,) = read_arrays(
        make_plan(make_host_pair("w", values), w=chunks), Memory({"f": values.tobytes()})
    )
    assert (array.shape, array.dtype) == (shape, values.dtype)
    assert (array == 7).all()


def test_a_cast_on_which_numpy_and_xla_agree_is_done_in_the_copy() -> None:
    values = np.array([1.5, np.nan, 3e38, 1e-45], np.float32)
    made = make_plan(make_host_pair("w", values, dtype="bfloat16"), w=make_chunks(values))
    (finished,) = execute_plan(made, [Memory({"f": values.tobytes()})])
    (array,) = finished.arrays
    assert array.dtype.name == "bfloat16"
    with np.errstate(all="ignore"):
        assert array.tobytes() == values.astype("bfloat16").tobytes()
    assert finished.busy.cast_s > 0


def test_a_cast_of_a_0d_array() -> None:
    values = np.array(1.5, np.float32)
    made = make_plan(make_host_pair("w", values, dtype="bfloat16"), w=make_chunks(values))
    (array,) = read_arrays(made, Memory({"f": values.tobytes()}))
    assert (array.shape, float(array)) == ((), 1.5)


def test_a_cast_on_which_numpy_and_xla_differ_is_left_to_placing() -> None:
    values = np.ones(3, np.float16)
    made = make_plan(make_host_pair("w", values, dtype="float32"), w=make_chunks(values))
    (array,) = read_arrays(made, Memory({"f": values.tobytes()}))
    assert array.dtype == np.float16


def test_fallback_leaves_come_from_the_second_source() -> None:
    first, second = make_host_pair("a", VALUES), make_host_pair("b", VALUES)
    second = Pair(second.target, second.entry, source=1)
    match = Match("m", Template((first.target, second.target)), (first, second))
    made = build_plan(match, [{"a": make_chunks(VALUES)}, {"b": make_chunks(VALUES)}])
    sources = [Memory({"f": VALUES.tobytes()}), Memory({"f": (VALUES * 2).tobytes()})]
    (finished,) = execute_plan(made, sources)
    np.testing.assert_array_equal(finished.arrays[0], VALUES)
    np.testing.assert_array_equal(finished.arrays[1], VALUES * 2)


def allocate(sizes: list[int], host: bool = True) -> list[np.ndarray]:
    """The buffers of byte arrays stored one after the other."""
    pairs, chunks, stop = [], {}, 0
    for i, n in enumerate(sizes):
        pair = make_host_pair(f"l{i}", np.empty(n, np.uint8))
        pairs.append(structs.replace(pair, target=structs.replace(pair.target, host=host)))
        chunks[f"l{i}"] = (Chunk(Extent("f", stop, stop + n), ((0, n),)),) if n else ()
        stop += n
    (batch,) = make_plan(*pairs, **chunks).batches
    memory = HostMemory(batch)
    return [memory.array(i) for i in range(len(sizes))]


def test_buffers_are_aligned_writable_and_disjoint() -> None:
    sizes = [1, 63, 64, 65, SMALL_BYTES, SMALL_BYTES + 1, 0, 3, SHARED_BYTES, SHARED_BYTES + 1] * 9
    arrays = allocate(sizes)
    spans = []
    for array, n in zip(arrays, sizes, strict=True):
        assert array.shape == (n,)
        assert array.flags.writeable
        assert array.flags.c_contiguous
        if n:
            assert array.ctypes.data % ALIGN == 0
            spans.append((array.ctypes.data, array.ctypes.data + n))
    spans.sort()
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))


def test_an_arena_is_no_larger_than_needed() -> None:
    """Small leaves do not take a whole arena."""
    bases = set()
    for array in allocate([8] * 3):
        root: Any = array
        while isinstance(root.base, np.ndarray):
            root = root.base
        bases.add((id(root), root.nbytes))
    assert sum(nbytes for _, nbytes in bases) <= 4 * ALIGN < ARENA_BYTES


def test_batches_have_a_maximum_size_and_keep_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("templax._plan.limits.BATCH_BYTES", 100)
    assert BATCH_BYTES > 100
    pairs = [make_host_pair(f"l{i}", VALUES) for i in range(5)]
    made = make_plan(*pairs, **{p.target.name: make_chunks(VALUES) for p in pairs})
    source = Watched(Memory({"f": VALUES.tobytes()}))
    names = [
        [buffer.pair.target.name for buffer in finished.batch.buffers]
        for finished in execute_plan(made, [source])
    ]
    assert names == [["l0", "l1"], ["l2", "l3"], ["l4"]]


def test_batches_are_read_ahead_up_to_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("templax._plan.limits.BATCH_BYTES", 1)
    pairs = []
    for i in range(9):
        pair = make_host_pair(f"l{i}", VALUES)
        target = structs.replace(pair.target, transient=True)
        pairs.append(structs.replace(pair, target=target))
    made = make_plan(*pairs, threads=1, **{p.target.name: make_chunks(VALUES) for p in pairs})
    source = Watched(Memory({"f": VALUES.tobytes()}))
    with closing(execute_plan(made, [source])) as finished:
        next(finished)
        assert len(source.reads) <= IN_FLIGHT
        next(finished)
        assert len(source.reads) <= IN_FLIGHT + 1
    assert len(source.reads) <= IN_FLIGHT + 1  # no read happens for a consumer that stops


def test_no_worker_waits_for_a_batch_that_another_one_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Buffers that become the result take no memory beyond it, so that all may be in flight."""
    monkeypatch.setattr("templax._plan.limits.BATCH_BYTES", 1)
    count = 3 * IN_FLIGHT
    pairs = [make_host_pair(f"l{i}", VALUES) for i in range(count)]
    others = threading.Barrier(2)

    class Slow(Memory):
        def read(
            self, key: str, start: int = 0, stop: int | None = None, out: memoryview | None = None
        ) -> memoryview:
            if key in ("f0", f"f{count - 1}"):  # the first is read until the last is
                others.wait(timeout=60)
            return super().read(key, start, stop, out)

    chunks = {
        f"l{i}": (Chunk(Extent(f"f{i}", 0, VALUES.nbytes), full_box(VALUES.shape)),)
        for i in range(count)
    }
    made = make_plan(*pairs, threads=2, **chunks)
    assert len(made.batches) == count
    arrays = read_arrays(made, Slow({f"f{i}": VALUES.tobytes() for i in range(count)}))
    assert all(np.array_equal(array, VALUES) for array in arrays)


def test_a_consumer_that_stops_early_ends_the_threads() -> None:
    """`restore` closes the generator when placing fails."""
    before = set(threading.enumerate())
    made = make_plan(make_host_pair("w", VALUES), w=make_chunks(VALUES))
    finished = execute_plan(made, [Memory({"f": VALUES.tobytes()})])
    next(finished)
    finished.close()
    # Those that serve object stores and their caches may be there from earlier tests.
    started = set(threading.enumerate()) - before
    assert not [thread.name for thread in started if thread.name.startswith("templax")]


class Shortened(Memory):
    """A store that silently returns less than was asked for."""

    def read(
        self, key: str, start: int = 0, stop: int | None = None, out: memoryview | None = None
    ) -> memoryview:
        return super().read(key, start, stop, out)[: ((stop or 0) - start) // 2]


def test_a_short_answer_of_a_store_is_damage() -> None:
    box = ((0, 4), (1, 2))  # read whole, copied in pieces
    made = make_plan(make_host_pair("w", VALUES, (box,)), w=make_chunks(VALUES))
    with pytest.raises(Corrupted) as caught:
        read_arrays(made, Shortened({"f": VALUES.tobytes()}))
    assert (caught.value.leaf, caught.value.file) == ("w", "f")


def test_a_truncated_compressed_chunk_names_leaf_file_and_bytes() -> None:
    encoded = zstandard.compress(VALUES.tobytes())[:-4]
    made = make_plan(make_host_pair("w", VALUES), w=make_chunks(VALUES, encoded, codecs=("zstd",)))
    with pytest.raises(Corrupted) as caught:
        read_arrays(made, Memory({"f": encoded}))
    error = caught.value
    assert (error.leaf, error.file, error.start, error.stop) == ("w", "f", 0, len(encoded))
    assert str(error).endswith(f" - at `w`, file `f`, bytes 0-{len(encoded)}")


def test_an_index_value_of_the_wrong_length_is_damage() -> None:
    for held in (b"", b"\0" * 95, b"\0" * 97):
        chunk = Chunk(Extent("index", 0, len(held), held), full_box(VALUES.shape))
        with pytest.raises(Corrupted, match=r"at `w`, file `index`"):
            read_arrays(make_plan(make_host_pair("w", VALUES), w=(chunk,)), Memory({}))


def test_a_missing_file_is_damage_and_names_its_leaf() -> None:
    made = make_plan(make_host_pair("w", VALUES), w=make_chunks(VALUES))
    with pytest.raises(Corrupted) as caught:
        read_arrays(made, Memory({}))
    assert str(caught.value) == "Expected a data file, found none - at `w`, file `f`"


def test_of_several_errors_the_first_in_the_plan_is_raised() -> None:
    pairs = [make_host_pair(f"l{i}", VALUES) for i in range(4)]
    chunks = {f"l{i}": (Chunk(Extent(f"f{i}", 0, 96), full_box(VALUES.shape)),) for i in range(4)}
    source = Memory({"f0": VALUES.tobytes()})
    for _ in range(5):
        with pytest.raises(Corrupted, match="`l1`"):
            read_arrays(make_plan(*pairs, threads=1, **chunks), source)


def test_no_read_starts_after_an_error() -> None:
    pairs = [make_host_pair(f"l{i}", VALUES) for i in range(50)]
    chunks = {
        f"l{i}": (Chunk(Extent(f"f{i:02}", 0, 96), full_box(VALUES.shape)),) for i in range(50)
    }

    def fault(key: str, start: int, stop: int) -> None:
        if key != "f00":  # gives the other thread time to notice the error
            threading.Event().wait(0.05)
        raise SourceError(f"can't read `{key}`: gone")

    source = Watched(Memory({}), fault)
    with pytest.raises(SourceError) as caught:
        read_arrays(make_plan(*pairs, threads=1, **chunks), source)
    assert str(caught.value) == "can't read `f00`: gone"
    assert len(source.reads) < 50


def test_an_error_in_a_later_batch_is_raised_after_the_previous_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("templax._plan.limits.BATCH_BYTES", 1)
    pairs = [make_host_pair("good", VALUES), make_host_pair("bad", VALUES)]
    made = make_plan(
        *pairs,
        good=make_chunks(VALUES),
        bad=(Chunk(Extent("gone", 0, 96), full_box(VALUES.shape)),),
    )
    finished = execute_plan(made, [Memory({"f": VALUES.tobytes()})])
    assert shape_of(next(finished).batch.buffers[0].box) == (4, 6)
    with pytest.raises(Corrupted, match="`bad`"):
        next(finished)


def test_nothing_to_read_starts_no_thread() -> None:
    assert list(execute_plan(Plan(Match("m", Template(())), ()), [])) == []
