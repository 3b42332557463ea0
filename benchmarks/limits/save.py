"""Parts of a save. Each is opened for a tree, untimed, and returns the call that is timed."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..jobs import Save
from ..workloads import PyTree, count_bytes, name_leaves
from .threads import PIECE, allocate_touched, share_tasks

_SYNC_FILE_RANGE_WRITE = 2
"""From Linux's `fs.h`: start writing the range to the disk, without waiting for the end."""


def open_copy(tree: PyTree) -> Save:
    """Copies every leaf to one block of fresh memory, in pieces, with all threads.

    The memory is fresh because a background save needs a copy of its own.
    """
    import numpy as np

    leaves = [np.asarray(leaf).reshape(-1).view(np.uint8) for leaf in name_leaves(tree).values()]
    pieces, nbytes = [], 0
    for leaf in leaves:
        for start in range(0, leaf.nbytes, PIECE):
            pieces.append((nbytes + start, leaf[start : start + PIECE]))
        nbytes += leaf.nbytes

    def save(path: Path) -> Callable[[], Any]:
        del path
        block = np.empty(nbytes, np.uint8)

        def copy(todo: Iterator[tuple[int, Any]]) -> None:
            for at, piece in todo:
                block[at : at + piece.nbytes] = piece

        share_tasks(copy, pieces)()
        return lambda: block  # keeps it alive, so that freeing it is not timed

    return save


def open_write(tree: PyTree) -> Save:
    """Writes as many bytes to one file, in pieces, with all threads, and syncs it.

    Each piece starts on its way to the disk at once, so that the final sync has little left to do.
    """
    buffer = memoryview(allocate_touched(count_bytes(tree)))
    pieces = [(at, buffer[at : at + PIECE]) for at in range(0, len(buffer), PIECE)]
    start_writing = ctypes.CDLL(None).sync_file_range
    start_writing.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)

    def save(path: Path) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)

        def write(todo: Iterator[tuple[int, memoryview]]) -> None:
            for at, piece in todo:
                if os.pwrite(fd, piece, at) != len(piece):
                    raise EOFError(f"Expected {len(piece)} bytes written at {at}, got fewer")
                start_writing(fd, at, len(piece), _SYNC_FILE_RANGE_WRITE)

        share_tasks(write, pieces)()
        os.fsync(fd)
        os.close(fd)

    return save
