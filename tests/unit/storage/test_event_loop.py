"""What becomes of requests when the process ends."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

END = """
import asyncio, sys
from templax.storage.event_loop import start_request

async def run_forever():
    print("began", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        print("ended", flush=True)

start_request(run_forever())

async def do_nothing():
    pass

start_request(do_nothing()).result()
"""


@pytest.mark.slow
def test_requests_that_run_at_the_end_of_the_process_are_ended() -> None:
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", END], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "began\nended\n", "")
    assert time.monotonic() - begin < 30


SLOW_THREAD = """
import sys, threading, time
import templax
from templax.storage import event_loop
from templax.storage.event_loop import _get_loop, run_request

class SlowEnd:
    def __del__(self, sleep=time.sleep):
        sleep(0.6)  # the interpreter is shutting down meanwhile

sys.modules["slow_end"] = SlowEnd()
loop = _get_loop()
own = event_loop._running[2].ident, threading.main_thread().ident
wake = loop._write_to_self

def wake_slowly(own=own, get_ident=threading.get_ident, sleep=time.sleep):
    wake()
    if get_ident() not in own:
        sleep(0.3)  # a thread of obstore gives up the interpreter's lock, as it does in `wake`

loop._write_to_self = wake_slowly

import obstore

async def put():
    await obstore.put_async(obstore.store.MemoryStore(), "a", b"1")

run_request(put())
print("done", flush=True)
"""


def test_a_thread_of_obstore_that_is_slow_to_end_does_not_abort_the_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SLOW_THREAD], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
