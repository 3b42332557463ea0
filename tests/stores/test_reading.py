"""Sources over object stores fulfil the contract, and read one version whatever fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import templax as tx
from helpers import mark_slow
from templax import storage
from templax.storage import ObjectSource, Source
from templax.testing import SourceContract

from .choice import WITH_RANGES, WRITABLE, run_on
from .connect import find_storage, open_bucket
from .faults import (
    EXPIRED_TOKEN,
    Answer,
    Cut,
    Delay,
    Fault,
    LoseAnswer,
    Refuse,
    SlowFirstByte,
    Stall,
)
from .proxy import FaultProxy
from .server import SECRET_KEY, Bucket

writable = run_on(*WRITABLE)
DATA = np.random.default_rng(0).integers(0, 256, 20_000_000, np.uint8).tobytes()
TREE: dict[str, Any] = {
    "w": np.arange(3_000_000, dtype="f4").reshape(3000, 1000),
    "layers": [{"b": np.full(8, i, "f4")} for i in range(50)],
    "step": 7,
}


def save_to(bucket: Bucket, tmp_path: Path, path: str = "run/100") -> None:
    """Saves `TREE` locally and copies the files, without the help of what is tested."""
    tx.save(tmp_path / "ckpt", TREE)
    bucket.upload(tmp_path / "ckpt", f"{path}/")


def assert_equal(found: Any) -> None:
    np.testing.assert_array_equal(found["w"], TREE["w"])
    for got, want in zip(found["layers"], TREE["layers"], strict=True):
        np.testing.assert_array_equal(got["b"], want["b"])
    assert found["step"] == 7


@writable
class TestObjectStore(SourceContract):
    @pytest.fixture(autouse=True)
    def _bucket(self, bucket: Bucket) -> None:
        self.bucket = bucket

    def make(self, objects: Mapping[str, bytes]) -> Source:
        for key, data in objects.items():
            self.bucket.write(f"root/{key}", data)
        return open_bucket(self.bucket, "root")


@run_on(*WITH_RANGES)
def test_ranges_of_any_size(bucket: Bucket) -> None:
    bucket.write("a/x", DATA)
    source = open_bucket(bucket, "a/x")
    info = source.stat("")
    assert info is not None
    assert info.size == len(DATA)
    ranges = [
        (0, 10),
        (5, 70_000),
        (0, len(DATA)),
        (len(DATA) - 30, len(DATA)),
        (9_000_000, 9_000_000),
    ]
    for start, stop in ranges:
        assert bytes(source.read("", start, stop)) == DATA[start:stop]
        out = memoryview(bytearray(stop - start))
        assert source.read("", start, stop, out) is out
        assert bytes(out) == DATA[start:stop]
    with pytest.raises(tx.Corrupted, match="the file has 20000000"):
        source.read("", 0, len(DATA) + 1)


@writable
@pytest.mark.parametrize("size", [1000, 200_000])
def test_an_object_that_changes_between_two_reads_is_an_error(bucket: Bucket, size: int) -> None:
    bucket.write("a/x", DATA[: size * 2])
    bucket.write("a/y", b"1")
    source = open_bucket(bucket, "a")
    assert [info.key for info in source.children()] == ["x", "y"]
    bucket.write("a/x", DATA[size : size * 3])
    with pytest.raises(tx.SourceError, match="changed since the checkpoint was opened"):
        source.read("x", size, 2 * size)


@pytest.mark.slow
@writable
def test_a_checkpoint_is_restored_listed_and_verified(bucket: Bucket, tmp_path: Path) -> None:
    save_to(bucket, tmp_path)
    url, store = f"{bucket.url}/run/100", find_storage(bucket)
    assert_equal(tx.restore(url, TREE, storage=store))
    catalog = tx.open(url, storage=store)
    assert catalog.url == url
    assert tx.verify(catalog).ok
    assert tx.diff(catalog, tmp_path / "ckpt").identical
    with pytest.raises(tx.TemplateError, match="does not match"):
        tx.restore(catalog, {**TREE, "w": np.zeros((3, 3), "f4")})
    with pytest.raises(tx.NotFound, match=r"hint: open .*/run/100"):
        tx.open(f"{bucket.url}/runs/100", storage=store)


@pytest.mark.slow
@writable
def test_urls_are_served_as_the_environment_says(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_to(bucket, tmp_path)
    for name, value in bucket.server.environment.items():
        monkeypatch.setenv(name, value)
    url = f"{bucket.url}/run/100"
    assert_equal(tx.restore(url, TREE))
    assert_equal(tx.restore(Path(url), TREE))  # which joins the slashes


@writable
def test_a_missing_bucket_is_named(bucket: Bucket) -> None:
    url = f"{bucket.server.scheme}://absent-bucket/run/100"
    with pytest.raises(tx.NotFound, match="Expected a bucket or container, found none") as caught:
        tx.open(url, storage=find_storage(bucket))
    assert "absent-bucket" in str(caught.value)


FAULTS: dict[str, list[Fault]] = {
    "503": [Answer(503)],
    "429": [Answer(429, retry_after_seconds=0)],
    "500": [Answer(500)],
    "refused": [Refuse()],
    "closed": [Refuse(reset=False)],
    "lost": [LoseAnswer()],
    "cut": [Cut(at=100)],
    "reset": [Cut(at=70_000, reset=True)],
    "short": [Cut(at=1_000_000, claim_less=True)],
    "all": [Answer(503), Cut(at=50), LoseAnswer(), Refuse()],
}
QUICK = ("503", "short", "all")
SLOW = [name for name in FAULTS if name not in QUICK]


@pytest.mark.slow
@run_on("moto", "azurite")
@pytest.mark.parametrize("name", [*QUICK, *mark_slow(*SLOW)])
def test_each_request_may_fail_once(
    bucket: Bucket, proxy: FaultProxy, tmp_path: Path, name: str
) -> None:
    save_to(bucket, tmp_path)
    proxy.fail_each_once(*FAULTS[name])
    source = open_bucket(bucket.at(proxy.url), "run/100")
    assert_equal(tx.restore(source, TREE))
    assert isinstance(source, ObjectSource)
    assert source.traffic.retried > 1
    assert tx.verify(source).ok


@run_on("moto")
def test_an_answer_that_stops_is_asked_for_again_from_there(
    bucket: Bucket, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage.stores, "STALL_S", 0.5)
    bucket.write("x", DATA)
    proxy.inject(Stall(at=5_000_000, seconds=30), method="GET", path="*/x")
    source = open_bucket(bucket.at(proxy.url), "x")
    begin = time.monotonic()
    assert bytes(source.read("", 0, 8_000_000)) == DATA[:8_000_000]
    assert time.monotonic() - begin < 10
    asked = [e.head.find("range") for e in proxy.select("GET", "*/x") if not e.is_listing]
    assert asked[0] == "bytes=0-7999999"
    assert asked[1] is not None
    pinned = {e.head.find("if-match") for e in proxy.select("GET", "*/x") if not e.is_listing}
    assert len(pinned) == 1
    assert None not in pinned
    assert int(asked[1].removeprefix("bytes=").partition("-")[0]) > 1_000_000


@run_on("moto")
def test_a_slow_answer_is_asked_for_a_second_time(bucket: Bucket, proxy: FaultProxy) -> None:
    bucket.write("x", DATA)
    source = open_bucket(bucket.at(proxy.url), "x")
    source.read("", 0, 1_000_000)
    proxy.inject(SlowFirstByte(20), method="GET", path="*/x")
    begin = time.monotonic()
    assert bytes(source.read("", 2_000_000, 3_000_000)) == DATA[2_000_000:3_000_000]
    assert time.monotonic() - begin < 10
    assert isinstance(source, ObjectSource)
    assert source.traffic.hedged == 1


@run_on("moto")
def test_a_store_that_stays_down_is_one_error_in_time(bucket: Bucket, proxy: FaultProxy) -> None:
    bucket.write("x", DATA)
    source = open_bucket(bucket.at(proxy.url), "x", timeout=2)
    assert source.stat("") is not None
    proxy.inject(Answer(503), path="*/x", times=None)
    begin = time.monotonic()
    with pytest.raises(tx.SourceError) as caught:
        source.read("", 0, 1_000_000)
    assert 0.5 < time.monotonic() - begin < 6
    text = str(caught.value)
    assert "status 503 SlowDown: Please reduce your request rate." in text
    assert "(request INJECTED); tried " in text
    assert f"{bucket.url}/x" in text


@run_on("moto")
def test_expired_credentials_are_looked_up_again(
    bucket: Bucket, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.write("x", DATA)
    proxy.inject(Answer(400, body=EXPIRED_TOKEN), path="*/x", times=2)
    for name, value in bucket.at(proxy.url).server.environment.items():
        monkeypatch.setenv(name, value)
    assert bytes(storage.open_source(f"{bucket.url}/x").read("", 0, 100_000)) == DATA[:100_000]
    proxy.inject(Answer(400, body=EXPIRED_TOKEN), path="*/x", times=None)
    with pytest.raises(tx.SourceError, match="without a reason; hint: check the credentials"):
        storage.open_source(f"{bucket.url}/x").stat("")


@writable
def test_no_error_holds_a_secret(bucket: Bucket, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    secrets = [str(v) for k, v in bucket.server.config.items() if "key" in k or "token" in k]
    secrets.append(SECRET_KEY)
    stopped = bucket.at("http://127.0.0.1:9")
    settings = find_storage(stopped, timeout=0.5)
    with pytest.raises(tx.SourceError) as caught:
        tx.open(f"{bucket.url}/run", storage=settings)
    said = f"{caught.value!r} {caught.value} {caplog.text} {settings!r} {open_bucket(stopped)!r}"
    for secret in secrets:
        assert len(secret) < 8 or secret not in said
    assert "Connection refused" in said


@run_on("moto")
def test_an_interrupt_ends_a_restore_at_once(
    bucket: Bucket, proxy: FaultProxy, tmp_path: Path
) -> None:
    save_to(bucket, tmp_path)
    catalog = tx.open(open_bucket(bucket.at(proxy.url), "run/100"))
    proxy.inject(Delay(20), path="*/d/*", times=None)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        tx.restore(catalog, TREE, on_progress=stop)
    assert time.monotonic() - begin < 5
    assert not [t for t in threading.enumerate() if t.name.startswith("templax_")]


@run_on("moto")
def test_a_checkpoint_is_opened_in_three_round_trips(
    bucket: Bucket, proxy: FaultProxy, tmp_path: Path
) -> None:
    save_to(bucket, tmp_path)
    proxy.shape(latency_ms=200)
    begin = time.monotonic()
    catalog = tx.open(open_bucket(bucket.at(proxy.url), "run/100"))
    assert time.monotonic() - begin < 4 * 0.2
    assert len(catalog.leaves) == 52
    assert proxy.count() <= 10


@pytest.mark.slow
@run_on("caddy")
def test_a_web_server_is_listed_by_its_pages(bucket: Bucket, tmp_path: Path) -> None:
    save_to(bucket, tmp_path, "run/a b/100")
    url = f"{bucket.url}/run/a b/100"
    assert_equal(tx.restore(url, TREE))
    assert tx.verify(url).ok
    with pytest.raises(tx.SaveError, match="does not write to them"):
        tx.save(f"{bucket.url}/run/200", TREE)


@run_on("plain")
def test_a_server_without_ranges_is_refused_by_name(bucket: Bucket) -> None:
    bucket.write("m.safetensors", DATA[:100_000])
    with pytest.raises(tx.SourceError, match="sends whole files only"):
        tx.open(f"{bucket.url}/m.safetensors")
