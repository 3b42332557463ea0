"""Reads of remote checkpoints through a cache: the same bytes, fetched once."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import obstore
import pytest
from safetensors.numpy import save

import templax as tx
from helpers import CKPT, read_files
from templax.storage import S3, ObjectSource, Source
from templax.storage.cached_reads import (
    BLOCK_BYTES,
    name_block,
    name_object,
)
from templax.storage.requests import Version
from templax.storage.stores import ProcessMemory
from templax.testing import SourceContract

RNG = np.random.default_rng(0)


def put(url: str, objects: Mapping[str, bytes]) -> None:
    """Writes objects below a `memory://` URL."""
    store = ProcessMemory()
    location = store.locate(url)
    for key, data in objects.items():
        obstore.put(store.make(location), f"{location.path}/{key}" if key else location.path, data)


@pytest.fixture
def url() -> str:
    """A `memory://` URL that nothing is at."""
    return f"memory://{uuid4().hex}/run/100"


@pytest.fixture
def cached(tmp_path: Path) -> ProcessMemory:
    return ProcessMemory(cache=tmp_path / "cache")


def list_blocks(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("cache/??/*") if path.is_file())


class TestCachedObjects(SourceContract):
    @pytest.fixture(autouse=True)
    def _settings(self, url: str, cached: ProcessMemory) -> None:
        self.url, self.settings = url, cached

    def make(self, objects: Mapping[str, bytes]) -> Source:
        put(self.url, objects)
        return ObjectSource(self.settings, self.url)


@pytest.mark.parametrize("files", ["safetensors", "orbax"])
def test_the_next_restore_only_lists(
    files: str, url: str, cached: ProcessMemory, tmp_path: Path
) -> None:
    if files == "orbax":
        put(url, read_files(CKPT))
    else:
        tree = {f"layer{i}": RNG.standard_normal((512, 1024 + i), np.float32) for i in range(6)}
        put(url, {"model.safetensors": save(tree), "config.json": b"{}"})
    seen: list[tuple[Any, int, int]] = []
    for _ in range(3):
        source = ObjectSource(cached, url)
        checkpoint = tx.open(source)
        template = checkpoint.template()
        values = tx.restore(source, template)
        seen.append((values, source.traffic.requests, source.traffic.nbytes))
    total = sum(info.size for info in ObjectSource(cached, url).walk())
    plain = ObjectSource(ProcessMemory(), url)
    want = tx.restore(plain, template)
    assert seen[0][2] <= total
    listed = seen[0][1] - len(list_blocks(tmp_path))  # each block was one request
    assert [each[1:] for each in seen[1:]] == [(listed, 0), (listed, 0)]
    for values, _, _ in seen:
        _assert_equal(values, want)


def _assert_equal(got: Any, want: Any) -> None:
    import jax

    assert jax.tree.structure(got) == jax.tree.structure(want)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.slow
def test_any_range_is_read_and_each_byte_is_fetched_once(url: str, cached: ProcessMemory) -> None:
    data = RNG.bytes(3 * BLOCK_BYTES + 12345)
    put(url, {"big": data})
    edges = [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES, len(data)]
    source = ObjectSource(cached, url)
    for start in edges:
        for stop in edges:
            if start <= stop:
                assert source.read("big", start, stop) == data[start:stop]
                out = memoryview(bytearray(stop - start))
                assert source.read("big", start, stop, out) is out
                assert out == data[start:stop]
    assert source.traffic.nbytes == len(data)
    assert source.traffic.cached_nbytes > 2 * len(data)


@pytest.mark.slow
def test_threads_that_want_the_same_bytes_fetch_them_once(url: str, cached: ProcessMemory) -> None:
    data = RNG.bytes(2 * BLOCK_BYTES + 1)
    put(url, {"big": data})
    sources = [ObjectSource(cached, url) for _ in range(3)]
    ready = threading.Barrier(9)

    def read(number: int) -> bool:
        ready.wait()
        out = memoryview(bytearray(len(data)))
        return sources[number % 3].read("big", out=out) == data

    with ThreadPoolExecutor(9) as pool:
        assert all(pool.map(read, range(9)))
    assert sum(source.traffic.nbytes for source in sources) == len(data)


def test_another_version_is_never_served(url: str, cached: ProcessMemory) -> None:
    old, new = RNG.bytes(100_000), RNG.bytes(100_000)
    put(url, {"x": old})
    before = ObjectSource(cached, url)
    assert before.read("x") == old
    put(url, {"x": new})
    assert ObjectSource(cached, url).read("x") == new
    assert before.read("x") == old  # the version that it saw, whole, from the cache
    put(url, {"x": old})
    assert ObjectSource(cached, url).read("x") == old


def test_a_version_that_was_not_read_in_time_is_an_error(url: str, cached: ProcessMemory) -> None:
    put(url, {"x": RNG.bytes(2 * BLOCK_BYTES)})
    before = ObjectSource(cached, url)
    before.read("x", 0, 100_000)
    put(url, {"x": RNG.bytes(2 * BLOCK_BYTES)})
    after = ObjectSource(cached, url)
    after.read("x")  # which leaves all of its blocks in the cache
    with pytest.raises(tx.SourceError, match="changed since the checkpoint was opened"):
        before.read("x")


def test_what_identifies_the_bytes_of_an_object() -> None:
    def identify(*version: Any, bucket: str = "b", path: str = "p") -> bytes:
        return name_object(bucket, path, Version(*version))

    tagged = identify('"e"', 10, 1.0)
    assert identify('"e"', 10, 2.0, "7") == tagged  # a listing tells a coarser time than a request
    assert identify(None, 10, 2.0, "7") == identify(None, 10, 1.0, "7")
    different = [
        tagged,
        identify('"e"', 10, 1.0, bucket="c"),
        identify('"e"', 10, 1.0, path="q"),
        identify('"f"', 10, 1.0),
        identify('"e"', 11, 1.0),
        identify(None, 10, 1.0, "7"),
        identify(None, 10, 1.0, "8"),
        identify(None, 10, 1.0),
        identify(None, 10, 1.5),
        identify(None, 11, 1.0),
        identify('W/"e"', 10, 1.0),
        identify('W/"e"', 10, 1.5),
    ]
    assert len(set(different)) == len(different)


def test_buckets_of_one_name_at_two_endpoints_are_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def name_bucket(url: str = "s3://b/x", **settings: Any) -> str:
        store = S3(cache=tmp_path, access_key_id="k", secret_access_key="hidden", **settings)
        name = store.name_bucket(store.locate(url))
        assert "hidden" not in name
        return name

    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    amazon, one = name_bucket(), name_bucket(endpoint="http://localhost:9000")
    two = name_bucket(endpoint="http://localhost:9001")
    assert len({amazon, one, two, name_bucket("s3://c/x")}) == 4
    assert name_bucket("s3://b/y/z") == amazon
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:9000")
    assert name_bucket() == one


def test_damaged_files_are_fetched_again(
    url: str, cached: ProcessMemory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = RNG.bytes(2 * BLOCK_BYTES)
    put(url, {"big": data})
    ObjectSource(cached, url).read("big")
    one, two = list_blocks(tmp_path)
    with one.open("r+b") as file:
        file.seek(1000)
        file.write(bytes([255 - one.read_bytes()[1000]]))
    source = ObjectSource(cached, url)
    assert source.read("big") == data
    assert source.traffic.nbytes == BLOCK_BYTES
    assert f"cache file `{one}` is damaged; it is removed, its bytes are fetched" in caplog.messages
    again = ObjectSource(cached, url)
    assert again.read("big") == data
    assert again.traffic.nbytes == 0
    assert list_blocks(tmp_path) == [one, two]


def test_a_cache_that_cant_be_written_is_done_without(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = RNG.bytes(2 * BLOCK_BYTES)
    put(url, {"big": data})
    (tmp_path / "file").write_bytes(b"")
    for _ in range(2):
        source = ObjectSource(ProcessMemory(cache=tmp_path / "file"), url)
        assert source.read("big") == data
        assert source.read("big", 100_000, 1_000_000) == data[100_000:1_000_000]
        assert source.traffic.nbytes == len(data) + 900_000  # no whole blocks for nothing
    assert caplog.text.count("can't write to the cache") == 1


@pytest.mark.slow
def test_a_cache_that_is_too_small_serves_right_bytes(url: str, tmp_path: Path) -> None:
    data = RNG.bytes(5 * BLOCK_BYTES)
    put(url, {"big": data})
    for nbytes in (1000, 2 * BLOCK_BYTES):
        settings = ProcessMemory(cache=tmp_path / "cache", cache_bytes=nbytes)
        for _ in range(2):
            assert ObjectSource(settings, url).read("big") == data
        assert sum(path.stat().st_size for path in list_blocks(tmp_path)) <= nbytes


HOLD = """
import sys, time
from templax.storage.block_cache import BlockCache
print(BlockCache(sys.argv[1], 10**6).try_lock(sys.argv[2]), flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_a_process_that_stands_still_is_not_waited_for(url: str, tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    data = RNG.bytes(100_000)
    put(url, {"big": data})
    settings = ProcessMemory(cache=tmp_path / "cache", timeout=1)
    source, location = ObjectSource(settings, url), settings.locate(url)
    path = f"{location.path}/big"
    version = Version.of(obstore.head(settings.make(location), path))
    block = name_block(name_object(settings.name_bucket(location), path, version), 0)
    command = [sys.executable, "-c", HOLD, str(tmp_path / "cache"), block]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        os.kill(holder.pid, signal.SIGSTOP)
        begin = time.monotonic()
        assert source.read("big") == data
        assert time.monotonic() - begin >= 1
        os.kill(holder.pid, signal.SIGKILL)
    assert ObjectSource(settings, url).read("big") == data


def test_the_environment_names_a_cache_for_urls_without_settings(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put(url, {"model.safetensors": save({"w": np.arange(6, dtype=np.float32)})})
    monkeypatch.setenv("TEMPLAX_CACHE", str(tmp_path / "cache"))
    tx.restore(url, {"w": np.zeros(6, np.float32)})
    assert len(list_blocks(tmp_path)) == 1
    with caplog.at_level(logging.DEBUG, "templax"):
        tx.restore(url, {"w": np.zeros(6, np.float32)})
    size = list_blocks(tmp_path)[0].stat().st_size - 20
    assert f"read {size} bytes of `{url}/model.safetensors`, {size} from the cache" in caplog.text
    monkeypatch.setenv("TEMPLAX_CACHE", str(tmp_path / "other"))
    tx.open(url, storage=ProcessMemory())
    assert not (tmp_path / "other").exists()
    monkeypatch.setenv("TEMPLAX_CACHE_BYTES", "50GB")
    with pytest.raises(tx.UsageError) as caught:
        tx.open(url)
    assert str(caught.value) == ("Expected TEMPLAX_CACHE_BYTES to be a number of bytes, got '50GB'")


@pytest.mark.parametrize("generation", [None, "7"])
def test_objects_that_only_a_time_tells_from_another_version_are_not_kept(
    url: str,
    cached: ProcessMemory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    generation: str | None,
) -> None:
    """A program may set the time of a file to that of another one of the same size."""
    describe = Version.of

    def describe_by_time(meta: Any) -> Version:
        return describe(meta)._replace(etag=None, modified=5.0, generation=generation)

    monkeypatch.setattr(Version, "of", describe_by_time)
    old, new = RNG.bytes(100_000), RNG.bytes(100_000)
    put(url, {"x": old})
    assert ObjectSource(cached, url).read("x") == old
    assert bool(list_blocks(tmp_path)) == (generation is not None)
    put(url, {"x": new})
    again = ObjectSource(cached, url)
    assert again.read("x") == (new if generation is None else old)
    assert again.traffic.cached_nbytes == (0 if generation is None else len(old))
