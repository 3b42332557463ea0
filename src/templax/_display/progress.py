"""The progress of a long call, for people."""

from __future__ import annotations

import sys
from typing import TextIO

from .._core.text import format_size

_WIDTH = 34
"""Characters of the line: the longest text, and less than any first line of an error."""


def show_progress(done: int, total: int) -> None:
    """Shows the progress of a restore, a save or a verification, as their `on_progress=`.

    Rewrites one line of standard error, such as `1.2 GiB of 3.4 GiB (35%)`, and removes it at the
    end. It writes only to a terminal or a notebook, and nothing where standard error is a file or
    a pipe.

    Args:
        done: Bytes done so far.
        total: Bytes in all.

    Example:
        >>> import os, tempfile
        >>> import jax.numpy as jnp, templax as tx
        >>> path = os.path.join(tempfile.mkdtemp(), "ckpt")
        >>> saved = tx.save(path, {"w": jnp.ones(3)}, on_progress=tx.show_progress)
        >>> tree = tx.restore(path, {"w": jnp.zeros(3)}, on_progress=tx.show_progress)
    """
    if not _is_watched(sys.stderr):
        return
    text = ""
    if done < total:
        text = f"  {format_size(done)} of {format_size(total)} ({done / total:.0%})"
    # Whatever is written next, an error for instance, begins where this line does.
    sys.stderr.write(f"\r{text.ljust(_WIDTH)}\r")
    sys.stderr.flush()


def _is_watched(stream: TextIO | None) -> bool:
    """Whether a person sees a stream as it is written: on a terminal or in a notebook."""
    if stream is None:  # a program without a console, such as pythonw
        return False
    return type(stream).__module__.partition(".")[0] == "ipykernel" or stream.isatty()
