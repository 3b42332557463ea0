"""Parts of a save, each done with nothing around it.

A copy that a save leaves to a thread behind it has to be in memory of its own.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..jobs import Save
from ..workloads import PyTree, named
from .threads import PIECE, shared, touched

_BEGIN_WRITING = 2
"""`SYNC_FILE_RANGE_WRITE` of Linux."""


def copy(tree: PyTree) -> Save:
    """Copies every leaf to one block of fresh memory, in pieces, with all threads."""
    import numpy as np

    leaves = [np.asarray(leaf).reshape(-1).view(np.uint8) for leaf in named(tree).values()]
    pieces, nbytes = [], 0
    for leaf in leaves:
        for start in range(0, leaf.nbytes, PIECE):
            pieces.append((nbytes + start, leaf[start : start + PIECE]))
        nbytes += leaf.nbytes

    def save(path: Path) -> Callable[[], Any]:
        del path
        block = np.empty(nbytes, np.uint8)

        def copied(todo: Iterator[tuple[int, Any]]) -> None:
            for at, piece in todo:
                block[at : at + piece.nbytes] = piece

        shared(copied, pieces)()
        return lambda: block  # held, or else the time would be that of freeing it, too

    return save


def write(tree: PyTree) -> Save:
    """Writes as many bytes to one file, in pieces, with all threads, and syncs it.

    The disk begins with each piece at once, as it does for whoever syncs while he writes.
    """
    buffer = memoryview(touched(sum(leaf.nbytes for leaf in named(tree).values())))
    pieces = [(at, buffer[at : at + PIECE]) for at in range(0, len(buffer), PIECE)]
    begin = ctypes.CDLL(None).sync_file_range
    begin.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)

    def save(path: Path) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)

        def written(todo: Iterator[tuple[int, memoryview]]) -> None:
            for at, piece in todo:
                if os.pwrite(fd, piece, at) != len(piece):
                    raise EOFError(f"Expected {len(piece)} bytes written at {at}, got fewer")
                begin(fd, at, len(piece), _BEGIN_WRITING)

        shared(written, pieces)()
        os.fsync(fd)
        os.close(fd)

    return save
