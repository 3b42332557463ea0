"""JAX. `save`, and the saves that go on in the background."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from .._core.arguments import PyTree
from .background import start_save
from .options import Progress, Url, make_options
from .result import Saved


def save(
    url: Url,
    tree: PyTree,
    *,
    format: Literal["orbax"] = "orbax",
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    wait: bool = True,
    compression: str | None = None,
    memory: int | None = None,
    threads: int | None = None,
    on_progress: Progress | None = None,
) -> Saved:
    """Saves a pytree: as a checkpoint that is wholly there or not at all.

    Every Orbax since 0.6 restores it. By default its arrays lie raw and aligned in one file, so
    that `restore` reads them straight to where they will stay, or maps them; each chunk has a
    checksum, which `restore` checks. Killed at any instant, what was at `url` before is still
    there, or the new checkpoint is; nothing in between is ever visible under that name.

    Args:
        url: A local path that does not exist yet, or an empty directory. Parents are made.
        tree: Any pytree of arrays (typed PRNG keys too), numbers, strings and None. Functions in it
            are left out: the template that restores it supplies them.
        format: The layout; "orbax" is the only one.
        metadata: JSON that goes with it; Orbax calls it `custom_metadata`.
        overwrite: Replaces a checkpoint that is there, in one step.
        wait: False returns as soon as the values are safe: the arrays may be donated or overwritten
            while they are written. Numpy arrays are copied, arrays on accelerators transferred; the
            memory of CPU arrays is held until they are written, so that a step they are donated to
            takes memory of its own.
        compression: None, `"zstd"` or `"zstd:LEVEL"` (1 to 22; 1 if not said): fewer bytes, more
            cycles at each restore, nothing to map.
        memory: Host bytes that are fetched from devices and not yet written; default 2 GiB. A leaf
            that is larger is fetched alone.
        threads: Workers. Default: the cores of this process, at most 8.
        on_progress: Called with bytes written and bytes in all, at most ten times a second; with
            `wait=False` from another thread.

    Returns:
        What was written, once it is; with `wait=False` the handle of a save that goes on. The next
        save, and the end of the process, wait for it.

    Raises:
        SaveError: A leaf that can't be saved, by its name and before a file is made; the disk is
            full or failed; or a save with `wait=False` failed that nobody waited for. What was at
            `url` is untouched, and nothing is left beside it.
        AlreadyExists: Something is at `url`.
        UsageError: An argument that means nothing.

    Example:
        >>> import jax.numpy as jnp, os, tempfile, templax as tx
        >>> path = os.path.join(tempfile.mkdtemp(), "ckpt")
        >>> saved = tx.save(path, {"w": jnp.ones((2, 3)), "step": 7}, metadata={"run": "a"})
        >>> saved.leaves, saved.fingerprint == tx.fingerprint({"step": 7, "w": jnp.ones((2, 3))})
        (2, True)
        >>> tx.restore(path, {"w": jnp.zeros((2, 3)), "step": 0})["step"]
        7
    """
    request = make_options(format, metadata, overwrite, compression, memory, threads, on_progress)
    return start_save(url, {"": tree}, request, wait=wait)
