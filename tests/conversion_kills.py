"""Kills a conversion at a chosen moment: a program that a test runs in a process of its own.

Arguments: the source, the destination, the format; the number of writes before the process kills
itself, or the method of `Target` before which it does; the compression, if any; and the file of a
mapping, if a view is converted.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any, cast

import templax as tx
from templax._convert import cut, target
from templax._core import chunk_grid
from templax._save import jobs, writer

SMALL: dict[tuple[Any, str], int] = {
    (chunk_grid, "CHUNK_BYTES"): 256,
    (cut, "BLOCK_BYTES"): 512,
    (jobs, "SMALL_BYTES"): 64,
    (jobs, "PACK_BYTES"): 256,
    (jobs, "RUN_BYTES"): 512,
    (writer, "STEP_BYTES"): 128,
    (writer, "SYNC_BYTES"): 512,
}
"""Sizes with which a small tree takes many chunks."""


def shrink() -> None:
    """Makes a small tree take many chunks."""
    for (module, name), size in SMALL.items():
        setattr(module, name, size)
    chunk_grid.chunk_shape.cache_clear()


def die(*_: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def main(
    source: str, path: str, to: str, when: str, compression: str = "", mapping: str = ""
) -> None:
    shrink()
    if when.isdigit():
        left, writers = int(when), cast("Any", writer.Writer)
        real = writers._write

        def write(self: Any, *arguments: Any) -> None:
            nonlocal left
            if left == 0:
                die()
            left -= 1
            real(self, *arguments)

        writers._write = write
    else:
        setattr(target.Target, when, die)
    how: Any = to
    src = tx.view(source, tx.Mapping.load(mapping)) if mapping else source
    tx.convert(src, path, to=how, threads=1, compression=compression or None)


if __name__ == "__main__":
    main(*sys.argv[1:])
