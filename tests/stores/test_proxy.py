"""What clients see of each fault of the proxy, and what the proxy counts."""

import concurrent.futures
import http.client
import socket
import time
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import obstore
import pytest
from obstore.exceptions import AlreadyExistsError, GenericError, PermissionDeniedError

from .choice import WITH_RANGES, WRITABLE, run_on
from .faults import (
    EXPIRED_TOKEN,
    Answer,
    Corrupt,
    Cut,
    Delay,
    Fault,
    LoseAnswer,
    Refuse,
    SlowFirstByte,
    StaleListing,
    Stall,
)
from .messages import Stream
from .proxy import FaultProxy
from .server import Bucket

once = run_on("fake-gcs", quick=("fake-gcs",))
everywhere = run_on(*WITH_RANGES)
writable = run_on(*WRITABLE)

DATA = bytes(range(256)) * 4096
WAITS = {"init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=2)}


def open_store(bucket: Bucket, proxy: FaultProxy, retries: int = 0, timeout: str = "5s") -> Any:
    """A store behind the proxy that repeats a request so often."""
    options = {**bucket.server.client_options, "timeout": timeout}
    retry = {
        "max_retries": retries,
        "backoff": {**WAITS, "base": 2},
        "retry_timeout": timedelta(seconds=20),
    }
    return bucket.at(proxy.url).open_store(client_options=options, retry_config=retry)


def read(store: Any, stop: int = 2000) -> bytes:
    return bytes(obstore.get_range(store, "x", start=0, end=stop))


def read_status(stream: Stream) -> int:
    head = stream.read_head()
    assert head is not None
    return head.status


@everywhere
def test_what_passes_is_counted(bucket: Bucket, proxy: FaultProxy) -> None:
    bucket.write("x", DATA)
    store = open_store(bucket, proxy)
    assert bytes(obstore.get(store, "x").bytes()) == DATA
    assert read(store) == DATA[:2000]
    obstore.head(store, "x")
    with pytest.raises(FileNotFoundError):
        obstore.get(store, "absent")
    assert proxy.count_by_method() == {"GET": 3, "HEAD": 1}
    assert proxy.count("GET", "*/x") == 2
    whole, part = proxy.select("GET", "*/x")
    assert (whole.status, part.status) == (200, 206)
    assert proxy.sum_bytes([whole, part]) == (0, len(DATA) + 2000)
    assert [exchange.number for exchange in proxy.exchanges] == [1, 2, 3, 4]


@writable
def test_what_is_written_is_counted(bucket: Bucket, proxy: FaultProxy) -> None:
    store = open_store(bucket, proxy)
    obstore.put(store, "a", DATA)
    assert proxy.count_by_method() == {"PUT": 1}
    assert proxy.sum_bytes()[0] == len(DATA)
    obstore.put(store, "b", DATA * 6, use_multipart=True, chunk_size=5 << 20)
    large = [put.sent_bytes for put in proxy.select("PUT") if put.sent_bytes > 10_000]
    assert sum(large) == len(DATA) * 7  # Azure's list of parts is a PUT too
    assert bucket.read("b") == DATA * 6
    proxy.clear()
    assert obstore.list(store).collect()[0]["size"] == len(DATA)
    [listed] = proxy.exchanges
    assert listed.is_listing


@everywhere
@pytest.mark.parametrize("status", [429, 500, 503])
def test_statuses(bucket: Bucket, proxy: FaultProxy, status: int) -> None:
    bucket.write("x", DATA)
    rule = proxy.inject(Answer(status, retry_after_seconds=1), method="GET", times=2)
    with pytest.raises(GenericError, match=f"{status} "):
        read(open_store(bucket, proxy))
    assert read(open_store(bucket, proxy, retries=1)) == DATA[:2000]
    assert [exchange.status for exchange in proxy.exchanges] == [status, status, 206]
    assert rule.hits == 2


@everywhere
def test_expired_tokens(bucket: Bucket, proxy: FaultProxy) -> None:
    bucket.write("x", DATA)
    proxy.inject(Answer(403, body=EXPIRED_TOKEN))
    store = open_store(bucket, proxy, retries=3)
    with pytest.raises(PermissionDeniedError, match=r"ExpiredToken.*INJECTED"):
        read(store)
    assert proxy.count() == 1
    assert read(store) == DATA[:2000]


@everywhere
@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("fault", [Refuse, LoseAnswer])
def test_lost_connections(
    bucket: Bucket, proxy: FaultProxy, fault: type[Refuse | LoseAnswer], reset: bool
) -> None:
    bucket.write("x", DATA)
    proxy.inject(fault(reset), times=2)
    with pytest.raises(GenericError, match="error sending request"):
        read(open_store(bucket, proxy))
    assert read(open_store(bucket, proxy, retries=1)) == DATA[:2000]
    assert proxy.count() == 3


@writable
def test_a_refused_write_does_nothing_and_one_whose_answer_is_lost_is_there(
    bucket: Bucket, proxy: FaultProxy
) -> None:
    store = open_store(bucket, proxy)
    for name, fault in [("refused", Refuse()), ("lost", LoseAnswer())]:
        proxy.inject(fault)
        with pytest.raises(GenericError):
            obstore.put(store, name, b"12", mode="create")
    assert bucket.list() == {"lost": 2}


@writable
def test_a_client_may_meet_its_own_object(bucket: Bucket, proxy: FaultProxy) -> None:
    proxy.inject(LoseAnswer(reset=False))
    with pytest.raises(AlreadyExistsError):
        obstore.put(open_store(bucket, proxy, retries=1), "x", b"1", mode="create")
    assert bucket.read("x") == b"1"


@everywhere
@pytest.mark.parametrize("reset", [True, False])
def test_bodies_cut_short(bucket: Bucket, proxy: FaultProxy, reset: bool) -> None:
    bucket.write("x", DATA)
    proxy.inject(Cut(1000, reset=reset))
    with pytest.raises(GenericError, match="body error"):
        read(open_store(bucket, proxy))
    assert proxy.sum_bytes() == (0, 1000)
    proxy.inject(Cut(300_000, reset=reset))
    store = open_store(bucket, proxy, retries=1)
    assert bytes(obstore.get(store, "x").bytes()) == DATA
    [resumed] = proxy.exchanges[2:]
    start, stop = (resumed.identity[2] or "").removeprefix("bytes=").split("-")
    assert 0 < int(start) <= 300_000  # a reset may overtake bytes that were sent
    assert int(stop) == len(DATA) - 1


@everywhere
def test_a_wrong_length_looks_like_a_whole_body(bucket: Bucket, proxy: FaultProxy) -> None:
    bucket.write("x", DATA)
    proxy.inject(Cut(1000, claim_less=True))
    store = open_store(bucket, proxy)
    assert read(store) == DATA[:1000]
    assert read(store) == DATA[:2000]


@everywhere
def test_corruption(bucket: Bucket, proxy: FaultProxy) -> None:
    bucket.write("x", DATA)
    proxy.inject(Corrupt(at=700))
    found = read(open_store(bucket, proxy))
    assert [place for place in range(2000) if found[place] != DATA[place]] == [700]


@once
@pytest.mark.parametrize(
    "fault",
    [Delay(0.2), SlowFirstByte(0.2), Stall(1000, 0.2)],
    ids=lambda fault: type(fault).__name__,
)
def test_delays(bucket: Bucket, proxy: FaultProxy, fault: Fault) -> None:
    bucket.write("x", DATA)
    store = open_store(bucket, proxy)
    proxy.inject(fault)
    began = time.monotonic()
    assert read(store) == DATA[:2000]
    assert time.monotonic() - began > 0.19
    proxy.inject(fault)
    with pytest.raises(GenericError):
        read(open_store(bucket, proxy, timeout="50ms"))


@writable
def test_stale_listings(bucket: Bucket, proxy: FaultProxy) -> None:
    bucket.write("a", b"1")
    store = open_store(bucket, proxy)

    def names() -> list[str]:
        return [entry["path"] for entry in obstore.list(store).collect()]

    assert names() == ["a"]
    bucket.write("b", b"1")
    proxy.inject(StaleListing(), times=2)
    assert [names(), names(), names()] == [["a"], ["a"], ["a", "b"]]


@writable
def test_every_request_fails_once(bucket: Bucket, proxy: FaultProxy) -> None:
    proxy.fail_each_once(Answer(503), Cut(3), Refuse(reset=False))
    store = open_store(bucket, proxy, retries=3)  # what goes on after a cut is another request
    for number in range(6):
        obstore.put(store, f"{number}", DATA)
        assert bytes(obstore.get(store, f"{number}").bytes()) == DATA
    assert len(bucket.list()) == 6
    first = {exchange.identity: exchange for exchange in reversed(proxy.exchanges)}
    assert all(exchange.fault is not None for exchange in first.values())


@once
def test_faults_befall_the_requests_that_a_rule_names(bucket: Bucket, proxy: FaultProxy) -> None:
    bucket.write("x", DATA)
    bucket.write("y", DATA)
    store = open_store(bucket, proxy)
    by_path = proxy.inject(Answer(503), path="*/y", skip=1, times=None)
    by_match = proxy.inject(Answer(429), matches=lambda exchange: exchange.method == "HEAD")
    for _ in range(2):
        assert read(store) == DATA[:2000]
    obstore.get_range(store, "y", start=0, end=1)
    for _ in range(2):
        with pytest.raises(GenericError, match="503"):
            obstore.get_range(store, "y", start=0, end=1)
    with pytest.raises(GenericError, match="429"):
        obstore.head(store, "x")
    obstore.head(store, "x")
    assert (by_path.hits, by_match.hits) == (3, 1)
    proxy.clear()
    obstore.get_range(store, "y", start=0, end=1)
    assert proxy.count() == 1


@writable
def test_a_store_that_is_gone(bucket: Bucket, proxy: FaultProxy) -> None:
    store = open_store(bucket, proxy)
    proxy.kill_after(2)
    obstore.put(store, "a", b"1")
    obstore.put(store, "b", b"1")
    for _ in range(2):
        with pytest.raises(GenericError, match="error sending request"):
            obstore.put(store, "c", b"1")
    proxy.kill_after(1, lose_last_answer=True)
    for name in ("d", "e"):
        with pytest.raises(GenericError, match="error sending request"):
            obstore.put(store, name, b"1")
    proxy.revive()
    obstore.put(store, "f", b"1")
    assert sorted(bucket.list()) == ["a", "b", "d", "f"]


@once
def test_a_store_that_is_silent(bucket: Bucket, proxy: FaultProxy) -> None:
    proxy.kill_after(0, silently=True)
    began = time.monotonic()
    with pytest.raises(GenericError):
        obstore.put(open_store(bucket, proxy, timeout="100ms"), "a", b"1")
    assert time.monotonic() - began > 0.09
    assert bucket.list() == {}


@once
def test_latency_is_of_each_request(bucket: Bucket, proxy: FaultProxy) -> None:
    bucket.write("x", DATA)
    store = open_store(bucket, proxy)
    proxy.shape(latency_ms=50)
    began = time.monotonic()
    for _ in range(4):
        read(store)
    one_by_one = time.monotonic() - began
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: read(store), range(8)))
    together = time.monotonic() - began - one_by_one
    assert one_by_one > 0.2
    assert together < one_by_one
    assert proxy.most_in_flight > 1


@once
@pytest.mark.parametrize("readers", [1, 4])
def test_bandwidth_is_of_all_connections(bucket: Bucket, proxy: FaultProxy, readers: int) -> None:
    bucket.write("x", DATA)
    store = open_store(bucket, proxy)
    proxy.shape(bytes_per_second=20e6)
    expected = 4 * len(DATA) / 20e6
    with concurrent.futures.ThreadPoolExecutor(readers) as threads:
        began = time.monotonic()
        list(threads.map(lambda _: read(store, len(DATA)), range(4)))
        took = time.monotonic() - began
        assert 0.9 * expected < took < 2 * expected
        began = time.monotonic()
        list(threads.map(lambda number: obstore.put(store, f"{number}", DATA), range(4)))
        took = time.monotonic() - began
    assert 0.9 * expected < took < 2 * expected


@once
def test_bandwidth_of_a_connection(bucket: Bucket, proxy: FaultProxy) -> None:
    bucket.write("x", DATA)
    proxy.shape(connection_bytes_per_second=10e6)
    store = open_store(bucket, proxy)
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        began = time.monotonic()
        list(threads.map(lambda _: read(store, len(DATA)), range(4)))
        took = time.monotonic() - began
    assert 0.9 * len(DATA) / 10e6 < took < 3.5 * len(DATA) / 10e6


@run_on("moto")
def test_a_client_may_wait_to_be_told_to_continue(bucket: Bucket, proxy: FaultProxy) -> None:
    target = urlsplit(proxy.url)
    address = (target.hostname or "", target.port or 0)
    head = (
        f"PUT /{bucket.name}/x HTTP/1.1\r\nHost: {target.netloc}\r\nContent-Length: 5\r\n"
        "Expect: 100-continue\r\nConnection: close\r\n\r\n"
    ).encode()
    with socket.create_connection(address) as connection:
        connection.sendall(head)
        stream = Stream(connection)
        assert read_status(stream) == 100
        connection.sendall(b"hello")
        while (status := read_status(stream)) == 100:
            pass  # moto says it twice
        assert status == 200
    assert bucket.read("x") == b"hello"
    proxy.inject(Answer(503))
    with socket.create_connection(address) as connection:
        connection.sendall(head)
        assert read_status(Stream(connection)) == 503


@run_on("caddy")
def test_connections_are_kept(bucket: Bucket, proxy: FaultProxy) -> None:
    bucket.write("x", DATA)
    connection = http.client.HTTPConnection(urlsplit(proxy.url).netloc)
    connection.connect()
    kept = connection.sock
    proxy.inject(Answer(503), skip=1)
    statuses = []
    for method in ("GET", "GET", "HEAD", "GET"):
        connection.request(method, f"/{bucket.name}/x")
        response = connection.getresponse()
        statuses.append(response.status)
        body = response.read()
        assert connection.sock is kept
    assert statuses == [200, 503, 200, 200]
    assert body == DATA
    connection.close()


@once
def test_a_closed_proxy_lets_the_port_go(bucket: Bucket) -> None:
    proxy = FaultProxy(bucket.server.url)
    store = open_store(bucket, proxy)
    obstore.put(store, "x", b"1")
    proxy.close()
    with pytest.raises(GenericError, match="error sending request"):
        obstore.put(store, "x", b"2")
    assert bucket.read("x") == b"1"
