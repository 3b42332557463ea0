"""plan, run, verify, memory, mapped, statistics: what a caller may ask of the engine."""

from __future__ import annotations

import functools
import gc
import itertools
import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from msgspec import structs
from safetensors.numpy import save_file

import templax as tx
from helpers import CORPUS
from stored_leaves import make_pair
from stored_leaves import make_plan as planned
from stored_leaves import read_arrays as done
from templax._catalog.entry import Chunk, Extent
from templax._core.boxes import size_of
from templax._jax import put
from templax._plan.build import build_plan
from templax._plan.plan import IN_FLIGHT
from templax._restore import place
from templax._restore.execute import execute_plan
from templax.storage import Local, Memory
from templax.testing import Watched, strategies

leaf = functools.partial(make_pair, host=True)

RAW = CORPUS / "orbax-0.12.8-uncompressed" / "ckpt"
ZSTD = CORPUS / "orbax-0.12.8-default" / "ckpt"


def same(a: Any, b: Any) -> bool:
    return all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes()
        if hasattr(x, "dtype") and not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        else True
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


# --- plan and run


def test_a_plan_reads_no_array_and_can_be_run_again_and_again() -> None:
    source = Watched(Local(RAW))
    catalog = tx.open(source)
    template = catalog.template()
    del source.reads[:]
    made = tx.plan(catalog, template)
    assert source.reads == []
    once, again = tx.run(made), tx.run(made)
    assert same(once, tx.restore(RAW, template))
    assert same(once, again)
    assert len(source.reads) == 2 * made.requests


def test_a_plan_says_what_a_restore_costs() -> None:
    source = Watched(Local(ZSTD))
    catalog = tx.open(source)
    del source.reads[:]
    made = tx.plan(catalog, catalog.template())
    tx.run(made)
    assert made.requests == len(source.reads)
    assert made.read_bytes == sum(stop - start for _, start, stop in source.reads)
    assert 0 < made.useful_bytes <= made.read_bytes
    text = str(made)
    assert text.splitlines()[0] == f"restore of 14 leaves from {ZSTD}"
    assert f"bytes read          {made.read_bytes:>14,}  as stored" in text
    assert "not verifiable: `state.params.big`" in text


def test_one_leaf_of_many_reads_its_bytes_and_the_index_only() -> None:
    source = Watched(Local(RAW))
    big = jax.ShapeDtypeStruct((128, 64), jnp.float32)
    tx.restore(tx.open(source), {"big": big}, at="state.params", extra="ignore")
    data = [(key, stop - start) for key, start, stop in source.reads if "/d/" in key]
    assert sum(nbytes for _, nbytes in data) <= 128 * 64 * 4 + 4096  # with the index node


def test_one_leaf_of_many_reads_no_byte_of_another(tmp_path: Path) -> None:
    path, tree = many(tmp_path, 150, (100, 100))
    source = Watched(Local(path))
    catalog = tx.open(source)
    del source.reads[:]
    template = {"l77": jax.ShapeDtypeStruct((100, 100), jnp.float32)}
    restored = tx.restore(catalog, template, extra="ignore")
    assert same(restored["l77"], tree["l77"])
    (chunk,) = catalog.locate([catalog.leaves["l77"]])["l77"]
    assert source.reads == [("", chunk.extent.start, chunk.extent.stop)]


def test_a_plan_for_a_template_from_a_file_is_shown_but_not_run(tmp_path: Path) -> None:
    from templax._template.json_file import template_from_catalog

    made = tx.plan(RAW, template_from_catalog(tx.open(RAW)))
    assert made.placed_bytes > 32768
    with pytest.raises(tx.UsageError, match="a template from a file"):
        tx.run(made)
    with pytest.raises(tx.UsageError, match="Expected a Plan"):
        tx.run(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"threads": 0}, "Expected threads= an int of at least 1, got 0"),
        ({"threads": True}, "Expected threads= an int of at least 1, got True"),
        ({"memory": 0}, "Expected memory= an int of at least 1, got 0"),
        ({"memory": "2GiB"}, "Expected memory= an int of at least 1, got '2GiB'"),
        ({"verify": True}, 'Expected verify="available", "required" or "off", got True'),
        ({"mapped": "yes"}, "Expected mapped=True or False, got 'yes'"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: Any, said: str) -> None:
    with pytest.raises(tx.UsageError) as caught:
        tx.restore(RAW, {}, **options)
    assert str(caught.value) == said


def test_what_a_prompt_shows_is_short() -> None:
    catalog = tx.open(RAW)
    template = catalog.template()
    assert repr(catalog) == f"Catalog({str(RAW)!r}, orbax, 14 leaves)"
    assert repr(tx.plan(RAW, template)) == f"Plan({str(RAW)!r}, 14 leaves, 34,404 bytes)"
    assert repr(tx.check(RAW, template)) == f"Match({str(RAW)!r}, 14 leaves matched, ok)"
    wrong = tx.check(RAW, {"no": jax.ShapeDtypeStruct((), jnp.float32)}, extra="ignore")
    assert repr(wrong) == f"Match({str(RAW)!r}, 0 leaves matched, 1 mismatch)"


def test_a_rename_of_nothing_is_a_slip() -> None:
    """With `missing=` or `extra="ignore"` nobody would notice it."""
    template = {"weight": jax.ShapeDtypeStruct((16, 8), jnp.float32)}
    options: Any = {"at": "state.params.dense", "extra": "ignore"}
    recipe = tx.Recipe(lambda: {"weight": jnp.zeros((16, 8))})
    with pytest.raises(tx.UsageError) as caught:
        tx.restore(RAW, template, rename={"kernell": "weight"}, missing=recipe, **options)
    assert str(caught.value) == (
        f"Expected rename= of what {RAW} has under `state.params.dense`, got `kernell`;"
        " nearest: `kernel`"
    )
    restored = tx.restore(RAW, template, rename={"kernel": "weight"}, missing=recipe, **options)
    assert restored["weight"].any()


@pytest.mark.parametrize("template", [object(), [len, len], {"init": jnp.zeros}])
def test_a_template_without_any_array_is_a_mistake(template: Any) -> None:
    """A model or its `init` in place of its parameters would come back as it is."""
    with pytest.raises(tx.UsageError, match="Expected a template with arrays, got "):
        tx.restore(RAW, template, extra="ignore")


# --- verify


def checked_chunk(values: np.ndarray, *, good: bool) -> tuple[bytes, Chunk]:
    from templax._codecs.crc32c import crc32c

    data = values.tobytes()
    sum_ = crc32c(data) ^ (0 if good else 1)
    stored = data + sum_.to_bytes(4, "little")
    box = tuple((0, n) for n in values.shape)
    return stored, Chunk(Extent("f", 0, len(stored)), box, ("crc32c",), "C", True)


@pytest.mark.parametrize(("verify", "raises"), [("available", True), ("off", False)])
def test_a_wrong_checksum_is_damage_unless_verification_is_off(verify: str, raises: bool) -> None:
    values = np.arange(12, dtype=np.int32)
    stored, chunk = checked_chunk(values, good=False)
    made = replace(planned(leaf("w", values), w=(chunk,)), verify=verify)
    if raises:
        with pytest.raises(tx.Corrupted, match="Expected crc32c"):
            list(execute_plan(made, [Memory({"f": stored})]))
    else:
        (finished,) = execute_plan(made, [Memory({"f": stored})])
        np.testing.assert_array_equal(finished.arrays[0], values)


@pytest.mark.parametrize("n", [12, 700_000])
@pytest.mark.parametrize("good", [True, False])
def test_a_raw_chunk_is_checked_where_it_is_read(n: int, good: bool) -> None:
    values = np.arange(n, dtype=np.int32)
    stored, chunk = checked_chunk(values, good=good)
    source = Watched(Memory({"f": stored}))
    made = planned(leaf("w", values), w=(chunk,))
    assert made.unverified == ()
    if good:
        np.testing.assert_array_equal(done(made, source)[0], values)
        assert sum(stop - start for _, start, stop in source.reads) == len(stored)
    else:
        with pytest.raises(tx.Corrupted, match=r"Expected crc32c .* - at `w`, file `f`, bytes 0-"):
            done(made, source)


def test_required_refuses_bytes_without_a_checksum_before_any_read() -> None:
    source = Watched(Local(ZSTD))
    catalog = tx.open(source)
    del source.reads[:]
    with pytest.raises(tx.Unverified) as caught:
        tx.restore(catalog, catalog.template(), verify="required")
    assert str(caught.value) == (
        f"1 of 14 leaves of {ZSTD} have bytes that no checksum covers: `state.params.big`;"
        ' hint: verify="available" checks those that have one'
    )
    assert source.reads == []
    # What the index itself holds is covered by the index's checksum.
    scale = {"scale": jax.ShapeDtypeStruct((), jnp.float32)}
    tx.restore(catalog, scale, at="state.params", extra="ignore", verify="required")


# --- memory


def sharded(n: int, spec: tuple[str | None, ...]) -> NamedSharding:
    return NamedSharding(Mesh(np.array(jax.devices()[:n]), ("x",)), PartitionSpec(*spec))


@pytest.fixture
def as_if_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU devices count as such that copy what they are given: memory has to be given back."""
    monkeypatch.setattr("templax._template.from_pytree.device_put_copies", lambda *_: True)


def many(tmp_path: Path, n: int = 12, shape: tuple[int, int] = (64, 256)) -> tuple[Path, Any]:
    tree = {f"l{i}": np.random.default_rng(i).random(shape, np.float32) for i in range(n)}
    save_file(tree, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors", tree


@pytest.mark.usefixtures("as_if_on_an_accelerator")
@pytest.mark.parametrize("memory", [1, 100_000, 400_000, 1 << 30])
def test_batches_in_flight_stay_within_the_memory(tmp_path: Path, memory: int) -> None:
    path, tree = many(tmp_path)
    template = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in tree.items()}
    made = tx.plan(path, template, memory=memory)
    leaf_bytes = 64 * 256 * 4
    windows = [
        sum(b.transient_bytes for b in made.batches[i : i + IN_FLIGHT + 1])
        for i in range(len(made.batches))
    ]
    assert max(windows) <= max(memory, (IN_FLIGHT + 1) * leaf_bytes)
    assert same(tx.run(made), tree)


@pytest.mark.usefixtures("as_if_on_an_accelerator")
def test_what_is_copied_is_waited_for_before_more_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or else transfers that lag behind would hold more host memory than `memory=`."""
    path, tree = many(tmp_path)
    template = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in tree.items()}
    made = tx.plan(path, template, memory=1)
    waited: list[int] = []
    wait = jax.block_until_ready
    monkeypatch.setattr(jax, "block_until_ready", lambda x: waited.append(len(x)) or wait(x))
    tx.run(made)
    assert waited == [len(batch.buffers) for batch in made.batches] == [1] * 12


@pytest.mark.usefixtures("as_if_on_an_accelerator")
def test_a_leaf_larger_than_the_memory_is_loaded_box_by_box(tmp_path: Path) -> None:
    path, tree = many(tmp_path, 1, (512, 64))
    n = len(jax.devices())
    where = sharded(n, ("x", None))
    template = {"l0": jax.ShapeDtypeStruct((512, 64), jnp.float32, sharding=where)}
    made = tx.plan(path, template, memory=1)
    assert [len(b.buffers) for b in made.batches] == [1] * n
    restored = tx.run(made)["l0"]
    assert restored.sharding == where
    assert same(restored, tree["l0"])
    stats = tx.last_restore()
    assert stats is not None
    assert stats.read_bytes == 512 * 64 * 4  # each byte once


@pytest.mark.usefixtures("as_if_on_an_accelerator")
def test_boxes_that_share_a_chunk_are_loaded_together() -> None:
    """Or else the chunk would be decoded once for each."""
    catalog = tx.open(ZSTD)
    where = sharded(len(jax.devices()), (None, "x"))
    template = {"big": jax.ShapeDtypeStruct((128, 64), jnp.float32, sharding=where)}
    made = tx.plan(catalog, template, at="state.params", extra="ignore", memory=1)
    assert made.decoded_chunks == 1
    assert len(made.batches) == 1


def test_fewer_threads_where_their_scratch_would_not_fit() -> None:
    values = np.zeros((8, 8), np.float32)
    pair = leaf("w", values, (((0, 8), (0, 3)),))
    chunk = Chunk(Extent("f", 0, 200), ((0, 8), (0, 8)), ("zstd",))
    match = planned(pair, w=(chunk,)).match
    assert build_plan(match, [{"w": (chunk,)}], threads=8, memory=1 << 20).threads == 8
    assert build_plan(match, [{"w": (chunk,)}], threads=8, memory=2000).threads == 2
    assert build_plan(match, [{"w": (chunk,)}], threads=8, memory=1).threads == 1


# --- mapped


def aligned(tmp_path: Path) -> tuple[Path, Any]:
    """A safetensors file whose data begins at a multiple of 64."""
    tree = {
        "a": np.arange(4096, dtype=np.float32).reshape(64, 64),
        "b": np.arange(77, dtype=np.int8),
        "c": np.ones((3, 16), np.float32),
    }
    path = tmp_path / "m.safetensors"
    stop, header = 0, {}
    for name in ("a", "c", "b"):
        value = tree[name]
        dtype = {"f": "F32", "i": "I8"}[value.dtype.kind]
        header[name] = {
            "dtype": dtype, "shape": value.shape, "data_offsets": [stop, stop + value.nbytes]
        }  # fmt: skip
        stop += value.nbytes
    text = json.dumps(header)
    text += " " * (-(8 + len(text)) % 64)
    data = b"".join(tree[name].tobytes() for name in ("a", "c", "b"))
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + data)
    return path, tree


def test_mapped_leaves_are_the_file_and_survive_it(tmp_path: Path) -> None:
    path, tree = aligned(tmp_path)
    source = Watched(Local(path))
    catalog = tx.open(source)
    template = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in tree.items()}
    del source.reads[:]
    made = tx.plan(catalog, template, mapped=True)
    restored = tx.run(made)
    assert made.mapped_bytes == 64 * 64 * 4 + 3 * 16 * 4 + 77
    assert source.reads == []
    mapped = [
        line for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line
    ]
    assert len(mapped) == 1
    address = restored["a"].unsafe_buffer_pointer()
    low, high = (int(x, 16) for x in mapped[0].split()[0].split("-"))
    assert low <= address < high
    path.unlink()
    assert same(restored, tree)
    before = path.parent / "other"
    before.write_bytes(b"x" * 100_000)
    os.replace(before, path)  # a new file of the same name is another file
    assert same(restored, tree)
    del restored, catalog, made, source
    gc.collect()
    assert str(path) not in Path("/proc/self/maps").read_text()


def test_a_donated_mapped_array_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    path, tree = aligned(tmp_path)
    content = path.read_bytes()
    template = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in tree.items()}
    restored = tx.restore(path, template, mapped=True)
    jax.jit(lambda a: a * 2, donate_argnums=0)(restored["a"]).block_until_ready()
    assert path.read_bytes() == content


def test_what_can_not_be_mapped_is_read(tmp_path: Path) -> None:
    """Cast, wrong order of dimensions, a numpy leaf, several devices, an offset of 8."""
    path, tree = aligned(tmp_path)
    cast = {"a": jax.ShapeDtypeStruct((64, 64), jnp.bfloat16)}
    made = tx.plan(path, cast, mapped=True, extra="ignore")
    assert (made.mapped_bytes, made.unmapped) == (0, {"cast": 1})
    assert "\n  not mapped: 1 cast\n" in str(made)
    made = tx.plan(path, {"a": np.zeros((64, 64), np.float32)}, mapped=True, extra="ignore")
    assert (made.mapped_bytes, made.unmapped) == (0, {"numpy arrays or Python values": 1})
    array = tx.run(made)["a"]
    array[:] = 0  # it is the caller's own
    data = bytearray(path.read_bytes())
    n = int.from_bytes(data[:8], "little")
    shifted = tmp_path / "shifted.safetensors"
    shifted.write_bytes((n + 8).to_bytes(8, "little") + data[8 : 8 + n] + b" " * 8 + data[8 + n :])
    template = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in tree.items()}
    made = tx.plan(shifted, template, mapped=True)
    assert (made.mapped_bytes, made.unmapped) == (0, {"at no multiple of 64 bytes": 3})
    assert tx.plan(shifted, template).unmapped == {}
    assert same(tx.run(made), tree)


def test_nothing_is_mapped_over_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, tree = aligned(tmp_path)
    monkeypatch.setattr("templax.storage.local._file_system", lambda path: "nfs4")
    source = Local(path)
    assert not source.maps
    assert source.view("", 0, 8) is None
    template = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in tree.items()}
    made = tx.plan(source, template, mapped=True)
    assert (made.mapped_bytes, made.unmapped) == (0, {"in no local file system": 3})
    assert same(tx.run(made), tree)


def test_a_file_that_changed_before_it_is_mapped_is_refused(tmp_path: Path) -> None:
    path, tree = aligned(tmp_path)
    template = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in tree.items()}
    made = tx.plan(path, template, mapped=True)
    os.utime(path, ns=(0, 0))
    with pytest.raises(tx.SourceError, match="changed since"):
        tx.run(made)
    path.unlink()
    with pytest.raises(tx.Corrupted, match="Expected a data file, found none - at `a`"):
        tx.run(made)


# --- large raw parts


@given(st.data())
def test_large_raw_parts_are_split_and_tile_all_the_same(data: Any) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    boxes = tuple(
        dict.fromkeys(data.draw(st.lists(strategies.boxes(shape), min_size=1, max_size=3)))
    )
    values = np.arange(size_of(tuple((0, n) for n in shape)), dtype=np.int32).reshape(shape)
    chunk = Chunk(Extent("f", 0, values.nbytes), tuple((0, n) for n in shape))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("templax._plan.parts.SCATTER_BYTES", data.draw(st.sampled_from([4, 12, 40])))
        patch.setattr("templax._plan.parts.SPLIT_BYTES", data.draw(st.sampled_from([4, 20, 64])))
        made = planned(leaf("w", values, boxes), w=(chunk,))
    source = Watched(Memory({"f": values.tobytes()}))
    (finished,) = execute_plan(made, [source])
    for buffer, array in zip(finished.batch.buffers, finished.arrays, strict=True):
        np.testing.assert_array_equal(array, values[tuple(slice(a, b) for a, b in buffer.box)])
    spans = sorted((start, stop) for _, start, stop in source.reads)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))


def test_chunks_back_to_back_are_one_read_and_one_mapping() -> None:
    """Small chunks for others, one range for us: also where the last one reaches past the leaf."""
    ckpt = CORPUS / "orbax-handmade-aligned" / "ckpt"
    catalog = tx.open(ckpt)
    located = catalog.locate(catalog.entries)
    several = [e for e in catalog.entries if len(located[e.name]) > 1]
    assert several
    template = catalog.template()
    assert same(tx.restore(catalog, template, mapped=True), tx.restore(catalog, template))
    values = np.arange(70, dtype=np.float32).reshape(7, 10)
    padded = np.zeros((8, 10), np.float32)
    padded[:7] = values
    chunks = tuple(
        Chunk(Extent("f", i * 80, i * 80 + 80), ((2 * i, 2 * i + 2), (0, 10))) for i in range(4)
    )
    source = Watched(Memory({"f": padded.tobytes()}))
    (finished,) = execute_plan(planned(leaf("w", values), w=chunks), [source])
    np.testing.assert_array_equal(finished.arrays[0], values)
    assert source.reads == [("f", 0, 280)]
    for apart in (chunks[::-1], (*chunks[:2], structs.replace(chunks[2], codecs=("crc32c",)))):
        made = planned(leaf("w", values), w=tuple(apart))
        assert sum(len(op.parts) for op in made.batches[0].reads) == len(apart)


# --- large compressed chunks


@pytest.fixture(scope="module")
def large() -> tuple[np.ndarray, bytes]:
    """A chunk that is decoded from several pieces."""
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
def test_a_large_chunk_is_decoded_as_it_is_read(
    large: Any, order: Any, boxes: Any, dtype: Any
) -> None:
    values, stored = large
    if order == "F":
        values = values.reshape(1000, 1500).T
    pair = leaf("w", values, boxes, dtype)
    chunk = Chunk(Extent("f", 7, 7 + len(stored)), ((0, 1500), (0, 1000)), ("zstd",), order)
    source = Watched(Memory({"f": b"?" * 7 + stored}))
    made = planned(pair, w=(chunk,))
    for buffer, array in zip(made.batches[0].buffers, done(made, source), strict=True):
        want = values[tuple(slice(a, b) for a, b in buffer.box)]
        assert array.tobytes() == want.astype(array.dtype).tobytes()
    assert max(stop - start for _, start, stop in source.reads) <= 1 << 20
    assert sum(stop - start for _, start, stop in source.reads) == len(stored)
    if order == "C":
        assert made.scratch_bytes <= 5 << 20


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_what_fails_within_a_large_chunk_is_named(large: Any, dtype: Any) -> None:
    values, stored = large
    chunk = Chunk(Extent("f", 0, len(stored)), ((0, 1500), (0, 1000)), ("zstd",))
    made = planned(leaf("w", values, None, dtype), w=(chunk,))

    def fault(key: str, start: int, stop: int) -> None:
        if start > 2 << 20:
            raise tx.SourceError("can't read `f`: gone")

    with pytest.raises(tx.SourceError, match="gone"):
        done(made, Watched(Memory({"f": stored}), fault))
    with pytest.raises(tx.Corrupted) as caught:
        done(made, Memory({"f": stored[:-1] + b"?"}))  # within the frame's checksum
    error = caught.value
    assert (error.leaf, error.file, error.start, error.stop) == ("w", "f", 0, len(stored))


def test_a_large_raw_leaf_is_read_in_place_in_each_of_its_pieces() -> None:
    """No scratch, and the source fills the buffer itself."""
    values = np.arange(96, dtype=np.float32).reshape(12, 8)
    outs = []

    class Source(Memory):
        def read(self, key: str, start: int = 0, stop: Any = None, out: Any = None) -> memoryview:
            outs.append(np.frombuffer(out, np.uint8).ctypes.data)
            return super().read(key, start, stop, out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("templax._plan.parts.SCATTER_BYTES", 64)
        patch.setattr("templax._plan.parts.SPLIT_BYTES", 64)
        patch.setattr("templax._plan.build.IN_PLACE_BYTES", 1)
        chunk = Chunk(Extent("f", 0, values.nbytes), ((0, 12), (0, 8)))
        made = planned(leaf("w", values), w=(chunk,))
    (finished,) = execute_plan(made, [Source({"f": values.tobytes()})])
    (array,) = finished.arrays
    np.testing.assert_array_equal(array, values)
    assert sorted(outs) == [array.ctypes.data + i for i in range(0, values.nbytes, 64)]


# --- many small leaves


def test_small_chunks_are_decoded_together_and_a_damaged_one_is_named() -> None:
    import zstandard

    pairs, chunks, data = [], {}, b""
    for i in range(50):
        values = np.full(16, i, np.float32)
        frame = zstandard.compress(values.tobytes())
        pairs.append(leaf(f"l{i}", values))
        chunks[f"l{i}"] = (
            Chunk(Extent("f", len(data), len(data) + len(frame)), ((0, 16),), ("zstd",)),
        )
        data += frame
    made = planned(*pairs, **chunks)
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
    made = planned(*pairs, **(chunks | {"l17": (swapped,)}))
    with pytest.raises(tx.Corrupted, match=r"Expected 64 decoded bytes.* - at `l17`"):
        list(execute_plan(made, [Memory({"f": data + longer})]))


def test_small_chunks_that_decode_to_much_are_not_joined_without_end() -> None:
    """A request, and what it decodes to, is bounded by both sizes; the plan counts them."""
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
    made = planned(leaf("w", values), w=tuple(chunks))
    sizes = [sum(part.nbytes for part in op.parts) for op in made.batches[0].reads]
    assert max(sizes) <= 4 << 20
    assert made.scratch_bytes >= max(sizes)
    (finished,) = execute_plan(made, [Memory({"f": frame * 256})])
    assert not finished.arrays[0].any()


def test_a_fill_value_takes_no_memory_of_its_own() -> None:
    values = np.full((64, 8), 7, np.int16)
    boxes = tuple(((0, 64), (i, i + 1)) for i in range(8))
    chunk = Chunk(Extent("i", 0, 2, b"\7\0"), ((0, 64), (0, 8)), ("fill",), "C", True)
    made = planned(leaf("w", values, boxes, "int32"), w=(chunk,))
    assert made.scratch_bytes == 0
    (finished,) = execute_plan(made, [Memory({})])
    assert all((a == 7).all() and a.dtype == np.int32 for a in finished.arrays)


@pytest.mark.parametrize("private", [True, False])
def test_placing_is_the_same_by_the_public_calls(
    monkeypatch: pytest.MonkeyPatch, private: bool
) -> None:
    if not private:
        monkeypatch.setattr(place, "batched_put", lambda: None)
    else:
        assert put.batched_put() is not None, "this JAX has another private call: see _put.py"
    names = [
        "bool",
        "int8",
        "uint8",
        "int4",
        "int32",
        "float16",
        "bfloat16",
        "float32",
        "float8_e4m3fn",
        "complex64",
    ]
    tree = {name: np.arange(64).reshape(8, 8).astype(name) for name in names} | {"0": np.int32(3)}
    catalog = tx.Recipe(lambda: {k: jnp.asarray(v) for k, v in tree.items()})
    n = len(jax.devices())
    for where in (
        None,
        SingleDeviceSharding(jax.devices()[-1]),
        sharded(n, ()),
        sharded(n, ("x",)),
    ):
        spec = {
            k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=where)
            for k, v in tree.items()
            if v.ndim or where is None or len(where.device_set) == 1
        }
        restored = tx.restore(catalog, spec, extra="ignore")
        for name, array in restored.items():
            want = jax.device_put(tree[name], where)
            assert (array.dtype, array.shape) == (want.dtype, want.shape)
            assert (array.sharding, array.committed) == (want.sharding, want.committed)
            assert array.weak_type is False
            assert same(array, tree[name])


def test_uncommitted_leaves_go_to_the_default_device() -> None:
    template = {"scale": jax.ShapeDtypeStruct((), jnp.float32)}
    with jax.default_device(jax.devices()[-1]):
        restored = tx.restore(ZSTD, template, at="state.params", extra="ignore")
    assert restored["scale"].devices() == {jax.devices()[-1]}
    assert not restored["scale"].committed


@pytest.mark.parametrize("guard", ["allow", "disallow", "disallow_explicit"])
@pytest.mark.parametrize("where", [None, "one", "all"])
def test_a_transfer_guard_holds_as_for_device_put(guard: str, where: str | None) -> None:
    """The caller asked for the transfer, as with `jax.device_put`."""
    to = {None: None, "one": SingleDeviceSharding(jax.devices()[0]), "all": sharded(2, ())}[where]
    template = {"big": jax.ShapeDtypeStruct((128, 64), jnp.float32, sharding=to)}

    def restored() -> Any:
        return tx.restore(RAW, template, at="state.params", extra="ignore")

    with jax.transfer_guard(guard):
        if guard == "disallow_explicit":
            with pytest.raises(Exception, match=r"[Dd]isallow"):
                restored()
        else:
            restored()
    restored()


def test_a_memory_kind_is_that_of_device_put() -> None:
    device = jax.devices()[0]
    for memory in device.addressable_memories():
        where = SingleDeviceSharding(device, memory_kind=memory.kind)
        template = {"big": jax.ShapeDtypeStruct((128, 64), jnp.float32, sharding=where)}
        array = tx.restore(RAW, template, at="state.params", extra="ignore")["big"]
        want = jax.device_put(np.zeros((128, 64), np.float32), where)
        assert array.sharding.memory_kind == memory.kind
        assert jax.typeof(array) == jax.typeof(want)


def test_a_plan_made_with_64_bit_types_is_not_run_without() -> None:
    tree = {"w": np.array([2**40, 2**40 + 1])}
    recipe = Memory({"": _safetensors(tree)})
    with jax.enable_x64(True):
        plan = tx.plan(recipe, {"w": jax.ShapeDtypeStruct((2,), np.dtype("int64"))})
        assert tx.run(plan)["w"].tolist() == [2**40, 2**40 + 1]
    with pytest.raises(tx.UsageError, match="jax_enable_x64 as it was when the plan was made"):
        tx.run(plan)


def _safetensors(tree: dict[str, np.ndarray]) -> bytes:
    from safetensors.numpy import save

    return save(tree)


def test_leaves_that_look_alike_share_all_but_their_names() -> None:
    from templax._template.from_pytree import as_template

    leaf = jax.ShapeDtypeStruct((2,), jnp.float32, sharding=sharded(2, ("x",)))
    first, second = as_template({"a": leaf, "b": [leaf]}).targets
    assert second == structs.replace(first, name="b.0", path=("b", 0))


# --- statistics


def test_a_restore_is_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    catalog = tx.open(RAW)
    with caplog.at_level(logging.INFO, logger="templax"):
        tx.restore(catalog, catalog.template())
    stats = tx.last_restore()
    assert stats is not None
    assert (stats.url, stats.leaves, stats.requests) == (str(RAW), 14, 1)
    assert stats.placed_bytes == 34404
    assert set(stats.stages) == {"template", "open", "match", "locate", "plan", "run", "place"}
    assert 0 < sum(stats.stages.values()) - stats.stages["place"] <= stats.seconds * 1.001
    assert stats.gb_per_s == pytest.approx(34404 / stats.seconds / 1e9)
    assert [r.getMessage() for r in caplog.records] == [str(stats)]
    assert str(stats).startswith(f"restored 14 leaves, 34,404 bytes of {RAW} in ")


def test_the_collector_is_left_as_it_was() -> None:
    for before in (True, False):
        (gc.enable if before else gc.disable)()
        try:
            tx.restore(RAW, tx.open(RAW).template())
            with pytest.raises(tx.TemplateError):
                tx.restore(RAW, {"no": jax.ShapeDtypeStruct((), jnp.float32)})
            assert gc.isenabled() is before
        finally:
            gc.enable()


# --- the command line


def test_the_command_shows_a_plan(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    run = [sys.executable, "-m", "templax"]
    subprocess.run([*run, "template", RAW, "-o", file], check=True)
    done = subprocess.run([*run, "plan", RAW, file], capture_output=True, text=True, check=True)
    assert done.stdout == f"{tx.plan(RAW, _template(file))}\n"
    done = subprocess.run(
        [*run, "plan", RAW, file, "--json", "--mapped"], capture_output=True, text=True, check=True
    )
    shown = json.loads(done.stdout)
    assert (shown["ok"], shown["bytes_mapped"], shown["requests"]) == (True, 32768, 0)
    assert shown["unverified"] == ["state.params.big"]
    done = subprocess.run(
        [*run, "plan", RAW, file, "--at", "state"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stdout.startswith("none of 14 leaves")
    done = subprocess.run(
        [*run, "plan", RAW, file, "--verify", "required"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "no checksum covers" in done.stderr


def _template(file: Path) -> Any:
    from templax._template.json_file import load_template

    return load_template(file.read_bytes())
