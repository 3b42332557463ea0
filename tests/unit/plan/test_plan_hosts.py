"""The figures of the hosts of a job are those that each host's own plan has."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

import templax as tx
from drawn_rules import drawn_rules
from helpers import count_examples
from stored_leaves import make_pair, small_sizes
from templax._catalog.entry import Chunk, Extent
from templax._core.boxes import full_box, size_of
from templax._match.result import Match, Pair
from templax._plan.build import build_plan
from templax._plan.job import HostPlan
from templax._plan.plan import Plan
from templax._plan.plan_hosts import plan_job
from templax._plan.ranges import count_bytes
from templax._template.sharding import Sharding
from templax._template.template import Template
from templax.testing import strategies

MESH = {"x": 2, "y": 4}

HOSTS = (1, 2, 4, 8)

FIGURES = (
    "requests", "read_bytes", "useful_bytes", "decoded_chunks", "placed_bytes", "peak_bytes",
)  # fmt: skip


class Job(NamedTuple):
    """What is stored, what is wanted of it, and how it is planned."""

    pairs: tuple[Pair, ...]
    chunks: dict[str, tuple[Chunk, ...]]
    topology: tx.Topology
    options: dict[str, Any]
    sizes: dict[str, int]


@st.composite
def _layouts(draw: st.DrawFn) -> dict[str, Any]:
    """What leaves of a kind have in common: shape, dtypes, sharding, boxes and codec of chunks."""
    axes: list[Any] = draw(st.permutations(["x", "y", None, None]))
    if draw(st.integers(0, 3)) == 0:
        axes = draw(st.sampled_from([[("x", "y")], [("y", "x"), None], [None, ("x", "y")]]))
    spec = tuple(axes[: draw(st.integers(0, 3))])
    shape = []
    for dimension in spec:
        names = (dimension,) if isinstance(dimension, str) else dimension or ()
        parts = math.prod(MESH[name] for name in names)
        shape.append(parts * draw(st.integers(1, 4 if parts > 1 else 8)))
    shape += draw(st.lists(st.integers(1, 5), max_size=2))
    size = tuple(draw(st.integers(1, n)) for n in shape)
    if shape and draw(st.booleans()):
        size = (size[0], *shape[1:])
    stored = np.dtype(draw(st.sampled_from(["u1", "<i2", "<f4"])))
    return {
        "shape": tuple(shape),
        "size": tuple(shape) if draw(st.booleans()) else size,
        "dtype": stored,
        "wanted": np.dtype("i4") if stored == "i2" and draw(st.booleans()) else stored,
        "sharding": None if draw(st.integers(0, 5)) == 0 else Sharding(dict(MESH), spec),
        "kind": draw(st.sampled_from(["raw"] * 4 + ["zstd"] * 3 + ["crc32c", "F", "inline"])),
        "block": draw(st.sampled_from([0, 0, 1, 3, 4, 8, 20, 1 << 20])),
        "packed": draw(st.booleans()),
        "tied": draw(st.integers(0, 3)) == 0,
    }


@st.composite
def _chunks(draw: st.DrawFn, layout: dict[str, Any], ends: dict[str, int]) -> tuple[Chunk, ...]:
    """The chunks of a leaf, each after what is in its file so far."""
    made: list[Chunk] = []
    file = draw(st.sampled_from(["f", "g"]))
    for box in strategies.grid(layout["shape"], layout["size"]):
        if layout["kind"] != "zstd":  # only a compressed chunk includes the padding
            pairs = zip(box, layout["shape"], strict=True)
            box = tuple((a, min(b, n)) for (a, b), n in pairs)
        nbytes = size_of(box) * layout["dtype"].itemsize
        if layout["kind"] == "zstd":
            nbytes = draw(st.integers(1, nbytes + 9))
        nbytes += 4 * (layout["kind"] == "crc32c")
        if not layout["packed"]:
            file = draw(st.sampled_from([file, file, "f", "g"]))
            # Bytes may be those of several leaves, as of tied weights.
            ends[file] = max(0, ends[file] + draw(st.integers(-20 if layout["tied"] else 0, 9)))
        extent = Extent(file, ends[file], ends[file] + nbytes)
        if layout["kind"] == "inline":
            extent = Extent("index", 0, nbytes, bytes(nbytes))
        else:
            ends[file] += nbytes
        codecs = (layout["kind"],) if layout["kind"] in ("zstd", "crc32c") else ()
        chunk = Chunk(extent, box, codecs, "F" if layout["kind"] == "F" else "C")
        if layout["block"]:
            block = min(layout["block"], nbytes)
            sums = (0,) * -(-nbytes // block)
            chunk = structs.replace(chunk, checked=True, sums=sums, block=block)
        made.append(chunk)
    return tuple(made)


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    """Jobs of 1 to 8 hosts that restore one to six leaves, of which some are alike."""
    layouts = draw(st.lists(_layouts(), min_size=1, max_size=3))
    pairs: list[Pair] = []
    chunks: dict[str, tuple[Chunk, ...]] = {}
    ends = {"f": 3, "g": 0}
    for i in range(draw(st.integers(1, 6))):
        layout = draw(st.sampled_from(layouts))
        values = np.broadcast_to(np.zeros((), layout["dtype"]), layout["shape"])
        pair = make_pair(f"l{i}", values, (), layout["wanted"], sharding=layout["sharding"])
        pairs.append(pair)
        chunks[f"l{i}"] = draw(_chunks(layout, ends))
    hosts = draw(st.sampled_from(HOSTS))
    topology = tx.Topology(
        hosts=hosts,
        devices_per_host=8 // hosts,
        mesh=MESH,
        platform=draw(st.sampled_from(["cpu", "tpu"])),
    )
    options = {
        "threads": draw(st.integers(1, 3)),
        "memory": draw(st.sampled_from([1, 500, 3000, 1 << 31])),
        "verify": draw(st.sampled_from(["available", "available", "required", "off"])),
        "gaps": [draw(st.sampled_from([0, 0, 7, 1 << 20]))],
    }
    sizes = {
        "SCATTER_BYTES": draw(st.sampled_from([4, 12, 40, 1 << 20])),
        "SPLIT_BYTES": draw(st.sampled_from([4, 20, 64, 1 << 20])),
        "IN_PLACE_BYTES": draw(st.sampled_from([8, 20, 1 << 20])),
        "LARGE_BYTES": draw(st.sampled_from([9, 30, 1 << 20])),
        "REQUEST_BYTES": draw(st.sampled_from([10, 60, 1 << 20])),
        "AHEAD_BYTES": draw(st.sampled_from([20, 1 << 20])),
        "GAP_BYTES": draw(st.sampled_from([1, 5, 1 << 16])),
        "BATCH_BYTES": draw(st.sampled_from([40, 200, 1 << 20])),
        "BATCH_LEAVES": draw(st.sampled_from([3, 4096])),
        "INLINE_PARTS": draw(st.sampled_from([2, 512])),
    }
    return Job(tuple(pairs), chunks, topology, options, sizes)


def plan_host(
    match: Match, chunks: Any, topology: tx.Topology, host: int, options: dict[str, Any]
) -> Plan:
    """The plan that a host makes for itself."""
    placed = []
    for pair in match.pairs:
        target = pair.target
        spec = None if target.sharding is None else target.sharding.spec
        boxes = topology.find_boxes(spec, target.shape, host)
        transient = topology.platform != "cpu" and not target.host
        target = structs.replace(target, boxes=boxes, transient=transient)
        placed.append(structs.replace(pair, target=target))
    return build_plan(Match(match.url, match.template, tuple(placed)), chunks, **options)


def list_requests(plan: Plan) -> list[tuple[int, int, str, int]]:
    """Start, stop, key and source of all requests."""
    reads = [op for batch in plan.batches for op in batch.reads if op.stop > op.start]
    return [(op.start, op.stop, op.key, op.source) for op in reads]


def count_device_bytes(plan: Plan) -> int:
    """Bytes of the largest box of each leaf."""
    targets = [pair.target for pair in plan.match.pairs if not pair.target.host]
    return sum(max(map(size_of, t.boxes)) * t.dtype.itemsize for t in targets)


def count_ideal_bytes(plan: Plan) -> int:
    """Stored bytes of the elements that are wanted of each part."""
    total = 0
    for batch in plan.batches:
        for op in batch.reads:
            for part in op.parts if op.stop > op.start else ():
                wanted = sum(size_of(copy.src) for copy in part.copies)
                nbytes, size = part.chunk.extent.nbytes, size_of(part.chunk.box)
                total += part.stop - part.start if part.strided else -(-nbytes * wanted // size)
    return total


def check_host(host: HostPlan, plan: Plan) -> None:
    """Asserts that all figures of a host are those of its own plan."""
    for figure in FIGURES:
        assert getattr(host, figure) == getattr(plan, figure), figure
    parts = [part for batch in plan.batches for op in batch.reads for part in op.parts]
    assert host.chunks == len(parts)
    assert host.device_bytes == count_device_bytes(plan)
    assert host.ideal_bytes == count_ideal_bytes(plan)


def check_job(match: Match, chunks: Any, topology: tx.Topology, options: dict[str, Any]) -> None:
    """Asserts that the plan of a job has the figures of the plans of its hosts."""
    job = plan_job(match, chunks, topology, **options)
    assert sorted(h for group in job.groups for h in group.hosts) == list(range(topology.hosts))
    requests = set[tuple[int, int, str, int]]()
    workers = 0
    for number in range(topology.hosts):
        plan = plan_host(match, chunks, topology, number, options)
        check_host(job.find_host(number), plan)
        requests.update(list_requests(plan))
        workers = max(workers, plan.threads)
    assert job.threads == workers
    files = {key: i for i, key in enumerate({request[2:] for request in requests})}
    columns = [(files[key, source], start, stop) for start, stop, key, source in requests]
    distinct = count_bytes(*np.array(columns, np.int64).T) if columns else 0
    assert job.distinct_bytes == distinct


@given(jobs())
@count_examples(250)
def test_hosts_are_planned_as_they_plan_themselves(job: Job) -> None:
    match = Match("memory", Template(tuple(p.target for p in job.pairs)), job.pairs)
    with small_sizes(job.sizes):
        check_job(match, [job.chunks], job.topology, job.options)


@pytest.mark.parametrize(
    ("leaves", "requests"),
    [
        ([(0, 5), (0, 6), (0, 5)], 3),  # two of 5 bytes would share a request of 10
        ([(0, 16), (4, 2), (10, 2)], 4),  # between the small ones is a part of the large one
    ],
)
def test_leaves_of_the_same_bytes_are_read_in_their_order(
    leaves: list[tuple[int, int]], requests: int
) -> None:
    """Where parts begin at the same byte, or lie within others."""
    pairs: list[Pair] = []
    chunks: dict[str, tuple[Chunk, ...]] = {}
    for i, (start, n) in enumerate(leaves):
        values = np.zeros(n, np.uint8)
        pairs.append(make_pair(f"l{i}", values, (), sharding=Sharding(dict(MESH), ())))
        chunks[f"l{i}"] = (Chunk(Extent("f", start, start + n), ((0, n),)),)
    match = Match("", Template(tuple(pair.target for pair in pairs)), tuple(pairs))
    topology = tx.Topology(hosts=1, devices_per_host=8, mesh=MESH)
    options = {"threads": 1, "memory": 1 << 20, "verify": "off", "gaps": [0]}
    sizes = {"REQUEST_BYTES": 10, "GAP_BYTES": 10, "IN_PLACE_BYTES": 7}
    with small_sizes({**sizes, "SPLIT_BYTES": 8, "SCATTER_BYTES": 8}):
        check_job(match, [chunks], topology, options)
        assert plan_job(match, [chunks], topology, **options).groups[0].requests == requests


@pytest.mark.parametrize(
    ("values", "spec"),
    [
        (np.zeros((2, 4, 8), np.uint8), (None, "y", "x")),
        (np.zeros((8, 8), np.float32), (None, ("x", "y"))),  # it begins within the last element
    ],
    ids=["bytes", "floats"],
)
def test_the_last_block_of_a_chunk_may_be_shorter_than_the_others(
    values: np.ndarray, spec: Any
) -> None:
    """So that two hosts whose boxes begin alike in a block complete it with other bytes."""
    pair = make_pair("l", values, (), sharding=Sharding(dict(MESH), spec))
    extent, sums = Extent("f", 3, 3 + values.nbytes), (0,) * -(-values.nbytes // 3)
    chunk = Chunk(extent, full_box(values.shape), checked=True, sums=sums, block=3)
    match = Match("", Template((pair.target,)), (pair,))
    topology = tx.Topology(hosts=8, devices_per_host=1, mesh=MESH, platform="cpu")
    options = {"threads": 1, "memory": 1, "verify": "available", "gaps": [0]}
    sizes = {"SCATTER_BYTES": 4, "SPLIT_BYTES": 4, "IN_PLACE_BYTES": 8, "LARGE_BYTES": 9}
    with small_sizes({**sizes, "GAP_BYTES": 1, "BATCH_BYTES": 40}):
        check_job(match, [{"l": (chunk,)}], topology, options)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30), st.integers(0, 9)), max_size=9),
    st.sampled_from([0, 1 << 61]),
)
def test_bytes_of_overlapping_ranges_are_counted_once(
    ranges: list[tuple[int, int, int]], offset: int
) -> None:
    expected = {(file, at) for file, start, n in ranges for at in range(start, start + n)}
    columns = [(file, offset + start, offset + start + n) for file, start, n in ranges]
    assert count_bytes(*np.array(columns, np.int64).reshape(-1, 3).T) == len(expected)


@given(rule=drawn_rules(), compression=st.sampled_from([None, "zstd"]), data=st.data())
@count_examples(40)
def test_views_are_planned_as_their_hosts_plan_them(
    rule: Any, compression: Any, data: st.DataObject, tmp_path_factory: Any
) -> None:
    path = tmp_path_factory.mktemp("view") / "ckpt"
    tx.save(path, rule.stored, compression=compression)
    catalog = tx.open(tx.view(path, tx.Mapping(rule.rules)))
    pairs = []
    for name, entry in catalog.leaves.items():
        free, spec = ["x", "y"], list[Any]()
        for n in entry.shape:
            fit = [None, *(axis for axis in free if n % MESH[axis] == 0)]
            spec.append(data.draw(st.sampled_from(fit)))
            free = [axis for axis in free if axis != spec[-1]]
        values = np.broadcast_to(np.zeros((), entry.dtype), entry.shape)
        pair = make_pair(name, values, (), sharding=Sharding(dict(MESH), tuple(spec)))
        pairs.append(Pair(pair.target, entry))
    match = Match("", Template(tuple(pair.target for pair in pairs)), tuple(pairs))
    options = {"threads": 2, "memory": data.draw(st.sampled_from([500, 1 << 31])), "gaps": [0]}
    options["verify"] = data.draw(st.sampled_from(["available", "required"]))
    topology = tx.Topology(hosts=4, devices_per_host=2, mesh=MESH)
    with small_sizes({"SCATTER_BYTES": 40, "SPLIT_BYTES": 64, "IN_PLACE_BYTES": 20}):
        check_job(match, [catalog.locate(catalog.entries)], topology, options)
