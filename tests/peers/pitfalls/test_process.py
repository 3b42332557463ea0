"""What a restore does to its process: memory, imports, output, event loops."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
import threading
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import templax as tx
from helpers import CORPUS, abstract, assert_same_tree

A = jax.ShapeDtypeStruct
KEY = jax.random.key(0)
X = jnp.ones((1, 8))


@pytest.mark.slow
def test_host_memory_stays_near_the_size_of_the_tree(save: Any, run_on_one_device: Any) -> None:
    """96 MiB in 24 leaves: the peak grows by the tree and the requests in flight."""
    mib = 1 << 20
    tree = {f"w{i}": jnp.arange(mib, dtype=jnp.float32) + i for i in range(24)}
    path = save(tree)
    code = (
        "import sys, resource, jax, numpy as np, templax as tx\n"
        "template = {f'w{i}': jax.ShapeDtypeStruct((1 << 20,), np.float32) for i in range(24)}\n"
        "jax.block_until_ready(jax.device_put(np.ones(3)))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "tree = jax.block_until_ready(tx.restore(sys.argv[1], template))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    grown = int(run_on_one_device(code, path)) * 1024
    assert grown < 1.5 * 96 * mib


@pytest.mark.slow
def test_a_hostile_file_raises_and_does_not_end_the_process(run_on_one_device: Any) -> None:
    """A zstd bomb and a shape of 2**46 elements are refused in bounded memory."""
    code = (
        "import sys, resource, templax as tx\n"
        "size = 1 << 30\n"
        "import jax; jax.devices()\n"
        "vms = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (vms + size, vms + size))\n"
        "for path in sys.argv[1:]:\n"
        "    catalog = tx.open(path)\n"
        "    try:\n"
        "        tx.restore(catalog, catalog.template())\n"
        "    except tx.Corrupted as error:\n"
        "        print(error.leaf)\n"
    )
    cases = ["damaged-zstd_bomb", "damaged-huge_shape"]
    out = run_on_one_device(code, *(CORPUS / case / "ckpt" for case in cases))
    assert out.split() == ["state.params.big"] * 2


@pytest.mark.slow
def test_a_restore_imports_neither_orbax_nor_flax(run_on_one_device: Any) -> None:
    """So that an incompatible pair of them can't break it."""
    code = (
        "import sys, templax as tx\n"
        "catalog = tx.open(sys.argv[1])\n"
        "tx.restore(catalog, catalog.template())\n"
        "print(sorted({'orbax', 'flax', 'tensorstore'} & set(sys.modules)))\n"
    )
    assert run_on_one_device(code, CORPUS / "orbax-0.12.8-default" / "ckpt").strip() == "[]"


@pytest.mark.slow
def test_the_leaves_are_listed_without_jax(run_on_one_device: Any) -> None:
    code = (
        "import sys, templax as tx\n"
        "catalog = tx.open(sys.argv[1])\n"
        "leaf = catalog.leaves['state.params.big']\n"
        "print(leaf.shape, leaf.dtype_name, leaf.nbytes, 'jax' in sys.modules)\n"
    )
    out = run_on_one_device(code, CORPUS / "orbax-0.12.8-sharded8" / "ckpt")
    assert out.strip() == "(128, 64) float32 32768 False"


def test_nothing_is_printed_or_warned(
    save: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], model: Any
) -> None:
    tree = model().init(KEY, X)
    path = save(tree)
    caplog.clear()
    capfd.readouterr()
    with caplog.at_level(logging.INFO), warnings.catch_warnings():
        warnings.simplefilter("error")
        tx.restore(path, abstract(tree))
    # One line for those who ask for it: by default Python shows no INFO.
    (record,) = [r for r in caplog.records if r.name.startswith("templax")]
    assert (record.name, record.levelno) == ("templax", logging.INFO)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_else_is_logged(
    save: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], fails: bool
) -> None:
    """A failure is one exception, without "event loop is closed" or messages of absl."""
    path = save({"w": jnp.arange(5000.0)}, use_ocdbt=False)
    if fails:
        (path / "w" / "0").write_bytes(b"")
    caplog.clear()
    capfd.readouterr()
    with caplog.at_level(logging.INFO + 1, logger="templax"):
        if fails:
            with pytest.raises(tx.Corrupted):
                tx.restore(path, {"w": A((5000,), jnp.float32)})
        else:
            tx.restore(path, {"w": A((5000,), jnp.float32)})
        gc.collect()
    assert [r for r in caplog.records if not r.name.startswith("jax")] == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_ls_prints_code_that_restores(save: Any, model: Any) -> None:
    path = save(model().init(KEY, X))
    done = subprocess.run(
        [sys.executable, "-m", "templax", "ls", str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    code = done.stdout.split("To restore it:")[1].split("# or into")[0]
    scope: dict[str, Any] = {}
    exec("\n".join(line.strip() for line in code.splitlines()), scope)
    assert_same_tree(scope["tree"], model().init(KEY, X))


def test_a_restore_works_inside_a_running_event_loop(save: Any) -> None:
    path = save({"w": jnp.ones(2)})

    async def serve() -> Any:
        direct = tx.restore(path, {"w": A((2,), jnp.float32)})
        threaded = await asyncio.to_thread(tx.restore, path, {"w": A((2,), jnp.float32)})
        return direct, threaded

    loop = asyncio.new_event_loop()
    try:
        direct, threaded = loop.run_until_complete(serve())
    finally:
        loop.close()
    assert_same_tree(direct, threaded)


def test_many_restores_run_at_once(save: Any) -> None:
    """As in a server: from several threads of one event loop."""
    value = {"w": jnp.arange(5000.0)}
    path = save(value)

    async def serve() -> list[Any]:
        calls = [asyncio.to_thread(tx.restore, path, abstract(value)) for _ in range(8)]
        return await asyncio.gather(*calls)

    before = set(threading.enumerate())
    loop = asyncio.new_event_loop()
    try:
        results = loop.run_until_complete(serve())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()
    for got in results:
        assert_same_tree(got, value)
    # Those that serve object stores and their caches may be there from earlier tests.
    started = set(threading.enumerate()) - before
    assert not [thread.name for thread in started if thread.name.startswith("templax")]
