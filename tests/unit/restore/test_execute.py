"""The engine: buffers, codecs, casts in the copy, errors with their place, threads that end."""

from __future__ import annotations

import itertools
import threading
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import zstandard
from msgspec import structs

from templax import Corrupted, SourceError
from templax._catalog.entry import Chunk, Extent, LeafEntry
from templax._core.boxes import Box, box_slices, full_box, shape_of
from templax._core.memory import ALIGN, SMALL_BYTES
from templax._match.result import Match, Pair
from templax._plan.build import BATCH_BYTES, build_plan
from templax._plan.plan import IN_FLIGHT, Plan
from templax._restore.buffers import ARENA_BYTES, SHARED_BYTES, HostMemory
from templax._restore.execute import execute_plan
from templax._template.template import Target, Template
from templax.storage import Memory
from templax.testing import Watched, strategies


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Any:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


def leaf(
    name: str, values: np.ndarray, boxes: tuple[Box, ...] | None = None, dtype: Any = None
) -> Pair:
    """A stored array and a target for it."""
    boxes = (full_box(values.shape),) if boxes is None else boxes
    wanted = values.dtype if dtype is None else np.dtype(dtype)
    target = Target(name, (name,), values.shape, wanted, boxes=boxes, host=True)
    return Pair(target, LeafEntry(name, (name,), values.shape, values.dtype))


def planned(*pairs: Pair, threads: int = 2, **chunks: tuple[Chunk, ...]) -> Plan:
    match = Match("memory", Template(tuple(p.target for p in pairs)), pairs)
    return build_plan(match, [chunks], threads=threads)


def done(made: Plan, source: Any) -> list[np.ndarray]:
    return [array for finished in execute_plan(made, [source]) for array in finished.arrays]


def one_chunk(values: np.ndarray, encoded: bytes | None = None, **more: Any) -> tuple[Chunk, ...]:
    nbytes = len(values.tobytes() if encoded is None else encoded)
    return (Chunk(Extent("f", 0, nbytes), full_box(values.shape), **more),)


VALUES = np.arange(24, dtype=np.float32).reshape(4, 6)


# --- what comes out


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
    (array,) = done(planned(leaf("w", VALUES, (box,)), w=(chunk,)), Memory({"f": encoded}))
    assert array.dtype == VALUES.dtype
    np.testing.assert_array_equal(array, VALUES[box_slices(box)])


def test_a_chunk_wanted_by_several_boxes_is_read_once() -> None:
    boxes = (((0, 2), (0, 6)), ((2, 4), (0, 6)), ((0, 4), (3, 6)))
    source = Watched(Memory({"f": VALUES.tobytes()}))
    arrays = done(planned(leaf("w", VALUES, boxes), w=one_chunk(VALUES)), source)
    assert source.reads == [("f", 0, 96)]
    for box, array in zip(boxes, arrays, strict=True):
        np.testing.assert_array_equal(array, VALUES[box_slices(box)])


def test_the_padding_of_edge_chunks_is_left_out() -> None:
    values = np.arange(10, dtype=np.int16).reshape(2, 5)
    data, chunks = b"", []
    for box in strategies.grid((2, 5), (2, 4)):
        padded = np.full((2, 8), -1, np.int16)
        padded[:, :5] = values
        piece = padded[box_slices(box)].tobytes()
        chunks.append(Chunk(Extent("f", len(data), len(data) + len(piece)), box))
        data += piece
    (array,) = done(planned(leaf("w", values), w=tuple(chunks)), Memory({"f": data}))
    np.testing.assert_array_equal(array, values)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (1, 1, 1)])
def test_small_and_empty_arrays(shape: tuple[int, ...]) -> None:
    values = np.full(shape, 7, np.int32)
    chunks = one_chunk(values) if values.size else ()
    (array,) = done(planned(leaf("w", values), w=chunks), Memory({"f": values.tobytes()}))
    assert (array.shape, array.dtype) == (shape, values.dtype)
    assert (array == 7).all()


def test_a_cast_that_numpy_does_as_xla_is_done_in_the_copy_and_timed() -> None:
    values = np.array([1.5, np.nan, 3e38, 1e-45], np.float32)
    made = planned(leaf("w", values, dtype="bfloat16"), w=one_chunk(values))
    (finished,) = execute_plan(made, [Memory({"f": values.tobytes()})])
    (array,) = finished.arrays
    assert array.dtype.name == "bfloat16"
    with np.errstate(all="ignore"):
        assert array.tobytes() == values.astype("bfloat16").tobytes()
    assert finished.busy.cast_s > 0


def test_a_cast_of_a_0d_array() -> None:
    values = np.array(1.5, np.float32)
    made = planned(leaf("w", values, dtype="bfloat16"), w=one_chunk(values))
    (array,) = done(made, Memory({"f": values.tobytes()}))
    assert (array.shape, float(array)) == ((), 1.5)


def test_a_cast_that_differs_is_left_to_placing() -> None:
    values = np.ones(3, np.float16)
    made = planned(leaf("w", values, dtype="float32"), w=one_chunk(values))
    (array,) = done(made, Memory({"f": values.tobytes()}))
    assert array.dtype == np.float16


def test_leaves_come_from_the_source_that_has_them() -> None:
    first, second = leaf("a", VALUES), leaf("b", VALUES)
    second = Pair(second.target, second.entry, fallback=True)
    match = Match("m", Template((first.target, second.target)), (first, second))
    made = build_plan(match, [{"a": one_chunk(VALUES)}, {"b": one_chunk(VALUES)}])
    sources = [Memory({"f": VALUES.tobytes()}), Memory({"f": (VALUES * 2).tobytes()})]
    (finished,) = execute_plan(made, sources)
    np.testing.assert_array_equal(finished.arrays[0], VALUES)
    np.testing.assert_array_equal(finished.arrays[1], VALUES * 2)


# --- memory


def memory_for(sizes: list[int], host: bool = True) -> list[np.ndarray]:
    """Buffers for byte arrays that lie one after the other in a file."""
    pairs, chunks, stop = [], {}, 0
    for i, n in enumerate(sizes):
        pair = leaf(f"l{i}", np.empty(n, np.uint8))
        pairs.append(structs.replace(pair, target=structs.replace(pair.target, host=host)))
        chunks[f"l{i}"] = (Chunk(Extent("f", stop, stop + n), ((0, n),)),) if n else ()
        stop += n
    (batch,) = planned(*pairs, **chunks).batches
    memory = HostMemory(batch)
    return [memory.array(i) for i in range(len(sizes))]


def test_buffers_are_aligned_writable_and_apart() -> None:
    sizes = [1, 63, 64, 65, SMALL_BYTES, SMALL_BYTES + 1, 0, 3, SHARED_BYTES, SHARED_BYTES + 1] * 9
    arrays = memory_for(sizes)
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


def test_arenas_hold_no_more_than_they_must() -> None:
    """A few small leaves do not take a whole arena."""
    bases = set()
    for array in memory_for([8] * 3):
        root: Any = array
        while isinstance(root.base, np.ndarray):
            root = root.base
        bases.add((id(root), root.nbytes))
    assert sum(nbytes for _, nbytes in bases) <= 4 * ALIGN < ARENA_BYTES


def test_batches_close_at_their_size_and_come_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("templax._plan.build.BATCH_BYTES", 100)
    assert BATCH_BYTES > 100
    pairs = [leaf(f"l{i}", VALUES) for i in range(5)]
    made = planned(*pairs, **{p.target.name: one_chunk(VALUES) for p in pairs})
    source = Watched(Memory({"f": VALUES.tobytes()}))
    names = [
        [buffer.pair.target.name for buffer in finished.batch.buffers]
        for finished in execute_plan(made, [source])
    ]
    assert names == [["l0", "l1"], ["l2", "l3"], ["l4"]]


# --- what goes wrong


def test_the_next_batch_is_read_while_one_is_out_and_no_further(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("templax._plan.build.BATCH_BYTES", 1)
    pairs = [leaf(f"l{i}", VALUES) for i in range(9)]
    made = planned(*pairs, threads=1, **{p.target.name: one_chunk(VALUES) for p in pairs})
    source = Watched(Memory({"f": VALUES.tobytes()}))
    with closing(execute_plan(made, [source])) as finished:
        next(finished)
        assert len(source.reads) <= IN_FLIGHT
        next(finished)
        assert len(source.reads) <= IN_FLIGHT + 1
    assert len(source.reads) <= IN_FLIGHT + 1  # a consumer that stops is not read for


def test_a_consumer_that_stops_early_ends_the_threads() -> None:
    """As `restore` does when placing fails: it closes what it has not finished."""
    made = planned(leaf("w", VALUES), w=one_chunk(VALUES))
    finished = execute_plan(made, [Memory({"f": VALUES.tobytes()})])
    next(finished)
    finished.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("templax")]


class Shortened(Memory):
    """A store that gives less than was asked for, and does not say so."""

    def read(
        self, key: str, start: int = 0, stop: int | None = None, out: memoryview | None = None
    ) -> memoryview:
        return super().read(key, start, stop, out)[: ((stop or 0) - start) // 2]


def test_a_store_that_shortens_its_answer_is_found_out() -> None:
    box = ((0, 4), (1, 2))  # read whole, copied in pieces
    made = planned(leaf("w", VALUES, (box,)), w=one_chunk(VALUES))
    with pytest.raises(Corrupted) as caught:
        done(made, Shortened({"f": VALUES.tobytes()}))
    assert (caught.value.leaf, caught.value.file) == ("w", "f")


def test_a_compressed_chunk_cut_short_names_leaf_file_and_bytes() -> None:
    encoded = zstandard.compress(VALUES.tobytes())[:-4]
    made = planned(leaf("w", VALUES), w=one_chunk(VALUES, encoded, codecs=("zstd",)))
    with pytest.raises(Corrupted) as caught:
        done(made, Memory({"f": encoded}))
    error = caught.value
    assert (error.leaf, error.file, error.start, error.stop) == ("w", "f", 0, len(encoded))
    assert str(error).endswith(f" - at `w`, file `f`, bytes 0-{len(encoded)}")


def test_an_index_value_of_the_wrong_length_is_damage() -> None:
    for held in (b"", b"\0" * 95, b"\0" * 97):
        chunk = Chunk(Extent("index", 0, len(held), held), full_box(VALUES.shape))
        with pytest.raises(Corrupted, match=r"at `w`, file `index`"):
            done(planned(leaf("w", VALUES), w=(chunk,)), Memory({}))


def test_a_file_that_is_gone_is_damage_and_names_its_leaf() -> None:
    made = planned(leaf("w", VALUES), w=one_chunk(VALUES))
    with pytest.raises(Corrupted) as caught:
        done(made, Memory({}))
    assert str(caught.value) == "Expected a data file, found none - at `w`, file `f`"


def test_of_several_errors_the_first_of_the_plan_is_raised() -> None:
    pairs = [leaf(f"l{i}", VALUES) for i in range(4)]
    chunks = {f"l{i}": (Chunk(Extent(f"f{i}", 0, 96), full_box(VALUES.shape)),) for i in range(4)}
    source = Memory({"f0": VALUES.tobytes()})
    for _ in range(5):
        with pytest.raises(Corrupted, match="`l1`"):
            done(planned(*pairs, threads=1, **chunks), source)


def test_what_has_not_begun_when_an_error_comes_is_not_read() -> None:
    pairs = [leaf(f"l{i}", VALUES) for i in range(50)]
    chunks = {
        f"l{i}": (Chunk(Extent(f"f{i:02}", 0, 96), full_box(VALUES.shape)),) for i in range(50)
    }

    def fault(key: str, start: int, stop: int) -> None:
        if key != "f00":  # time for the first error to be seen
            threading.Event().wait(0.05)
        raise SourceError(f"can't read `{key}`: gone")

    source = Watched(Memory({}), fault)
    with pytest.raises(SourceError) as caught:
        done(planned(*pairs, threads=1, **chunks), source)
    assert str(caught.value) == "can't read `f00`: gone"
    assert len(source.reads) < 50


def test_an_error_of_a_later_batch_comes_after_the_batches_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("templax._plan.build.BATCH_BYTES", 1)
    pairs = [leaf("good", VALUES), leaf("bad", VALUES)]
    made = planned(
        *pairs,
        good=one_chunk(VALUES),
        bad=(Chunk(Extent("gone", 0, 96), full_box(VALUES.shape)),),
    )
    finished = execute_plan(made, [Memory({"f": VALUES.tobytes()})])
    assert shape_of(next(finished).batch.buffers[0].box) == (4, 6)
    with pytest.raises(Corrupted, match="`bad`"):
        next(finished)


def test_nothing_to_read_starts_no_thread() -> None:
    assert list(execute_plan(Plan(Match("m", Template(())), ()), [])) == []
