"""A cache on the disk: processes that share it, and later ones, fetch a byte once."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

import templax as tx
from helpers import mark_slow
from templax.storage.cached_reads import BLOCK_BYTES

from .choice import WRITABLE, run_on
from .faults import Exchange
from .proxy import FaultProxy
from .server import Bucket

TREE = {
    f"layer{number}": np.random.default_rng(number).standard_normal(
        (1024, 512 * number), np.float32
    )
    for number in range(1, 5)
} | {f"bias{number}": np.full(7, number, np.float32) for number in range(30)}
FILE = save(TREE)

RESTORE = """
import hashlib, json, sys
import numpy as np
import templax as tx
from templax.storage import ObjectSource, open_source
source = open_source(sys.argv[1])
template = {name: np.zeros(leaf.shape, np.float32) for name, leaf in tx.open(source).leaves.items()}
print("ready", flush=True)
sys.stdin.readline()
tree = tx.restore(open_source(sys.argv[1]), template)
digest = hashlib.sha256(b"".join(tree[name].tobytes() for name in sorted(tree))).hexdigest()
print(digest, flush=True)
"""


@pytest.fixture
def use(
    bucket: Bucket, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], str]:
    """Puts a checkpoint into the bucket, and the settings into the environment; returns its URL."""

    def prepare() -> str:
        bucket.write("run/model.safetensors", FILE)
        behind = bucket.at(proxy.url)
        for variable, value in behind.server.environment.items():
            monkeypatch.setenv(variable, value)
        monkeypatch.setenv("TEMPLAX_CACHE", str(tmp_path / "cache"))
        return f"{behind.url}/run/model.safetensors"

    return prepare


def get_bodies(proxy: FaultProxy) -> list[Exchange]:
    """The requests that brought bytes of the file, rather than a listing."""
    return proxy.select("GET", "*model*safetensors")


def start(url: str, number: int) -> list[subprocess.Popen[str]]:
    """Starts processes that restore the checkpoint once they are told to."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", RESTORE, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        for _ in range(number)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    return started


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def digest() -> str:
    return hashlib.sha256(b"".join(TREE[name].tobytes() for name in sorted(TREE))).hexdigest()


@pytest.mark.slow
@run_on(*WRITABLE)
def test_the_next_restore_fetches_no_byte(use: Callable[[], str], proxy: FaultProxy) -> None:
    url = use()
    template = {name: np.zeros_like(leaf) for name, leaf in TREE.items()}
    for attempt in range(2):
        proxy.clear()
        tree = tx.restore(url, template)
        assert all(np.array_equal(tree[name], TREE[name]) for name in TREE)
        fetched = sum(exchange.received_bytes for exchange in get_bodies(proxy))
        assert fetched == (0 if attempt else len(FILE))


@pytest.mark.slow
@run_on("moto")
@pytest.mark.parametrize("number", [2, *mark_slow(8)])
def test_several_processes_fetch_each_byte_once(
    use: Callable[[], str], proxy: FaultProxy, number: int
) -> None:
    url = use()
    proxy.shape(latency_ms=5)
    processes = start(url, number)
    for process in processes:
        tell(process)
    answers = [process.communicate(timeout=120)[0].strip() for process in processes]
    assert answers == [digest()] * number
    bodies = get_bodies(proxy)
    assert sum(exchange.received_bytes for exchange in bodies) == len(FILE)
    assert len(bodies) == -(-len(FILE) // BLOCK_BYTES)
    _, received = proxy.sum_bytes()
    assert received <= len(FILE) + number * 10_000  # and what each asked for of the listing
    print(json.dumps(proxy.count_by_method()), received)


@pytest.mark.slow
@run_on("moto")
def test_a_process_killed_while_it_fetches_holds_nobody_up(
    use: Callable[[], str], proxy: FaultProxy
) -> None:
    url = use()
    killed, *others = start(url, 3)
    proxy.clear()
    proxy.shape(connection_bytes_per_second=2e6)
    tell(killed)
    deadline = time.monotonic() + 30
    while not get_bodies(proxy) and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    proxy.shape()
    for process in others:
        tell(process)
    begin = time.monotonic()
    answers = [process.communicate(timeout=60)[0].strip() for process in others]
    assert answers == [digest()] * 2
    assert time.monotonic() - begin < 30  # not the two minutes until a lock is ignored
