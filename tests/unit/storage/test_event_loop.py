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
