"""`templax.save`."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from .._core.arguments import PyTree
from .._core.progress import Progress
from .._hosts.agreement import open_call
from ..errors import UsageError
from ..storage.open import is_fsspec, name_target
from ..storage.sink import Sink
from .background import start_save
from .destination import Destination
from .options import Url, make_options
from .result import Saved

if TYPE_CHECKING:
    from ..storage.stores import Store


def save(
    url: Url,
    tree: PyTree,
    *,
    format: Literal["orbax", "safetensors", "npz", "msgpack"] | None = None,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    wait: bool = True,
    compression: str | None = None,
    memory: int | None = None,
    threads: int | None = None,
    on_progress: Progress | None = None,
    timeout: float | None = None,
    alone: bool = False,
    shard_size: int | None = None,
    storage: Store | None = None,
) -> Saved:
    """Saves a pytree as a checkpoint, which is either complete or absent.

    Orbax 0.6 and later can restore it. By default the arrays are stored raw and aligned in one
    file, so that `restore` can read them straight into their final buffers, or memory-map them.
    Each chunk has a checksum, which `restore` verifies. If the process is killed at any point,
    `url` holds either what it held before or the complete new checkpoint; no intermediate state is
    ever visible under that name.

    Args:
        url: A local path that does not exist yet, or an empty directory; or a URL of an object
            store, such as "gs://bucket/run/100". Parents are created. A local path that ends in
            `.safetensors`, `.npz` or `.msgpack` becomes a single file.
        tree: Any pytree of arrays (including typed PRNG keys), numbers, strings and None. Functions
            are left out; the template of a restore supplies them.
        format: The layout of the checkpoint. Default: that of the suffix of `url`, else "orbax".
            "safetensors", as Hugging Face's libraries load it, "npz" (numpy) and "msgpack" (Flax)
            are a single file, or a directory with one if `url` has no such suffix; safetensors may
            be several files with an index there. What a format can't store, such as strings and
            dtypes that it lacks, is refused by name; safetensors and npz leave out None and empty
            containers. See "Written" in the documentation.
        metadata: JSON that is stored with the checkpoint; Orbax calls it `custom_metadata`. Scalars
            of NumPy and JAX are stored as numbers. For safetensors, a dict of strings; npz and
            msgpack have no place for it.
        overwrite: Replaces an existing checkpoint, or any file if `url` becomes one; atomically.
        wait: With False, returns as soon as the values are safe: the arrays may then be donated or
            overwritten while they are still being written. NumPy arrays are copied and arrays on
            accelerators are transferred to the host. Arrays on CPU keep their memory until they are
            written, so a step that they are donated to allocates its own.
        compression: None, `"zstd"` or `"zstd:LEVEL"` (1 to 22, default 1). Compression makes the
            files smaller, costs CPU time at each restore, and rules out memory-mapping.
        memory: Bytes of host memory for values that were fetched from devices and not yet written,
            and for what is being sent to an object store; default 2 GiB. A leaf larger than this is
            fetched on its own; less than 40 MiB are not enough for a store, which takes parts of 5
            MiB at least.
        threads: Number of worker threads. Default: the cores available to this process, at most 8.
        on_progress: Called as `on_progress(done, total)` with the bytes of the values written so
            far and of all, at most ten times a second, and with `done == total` once all are
            written, before the commit; with `wait=False` from another thread. An exception in it
            ends the save. In a job of several processes each one reports what it writes itself.
        timeout: In a job of several processes, the seconds to wait for one that is alive and has
            not come to this call. Default: 240, less than the time after which JAX aborts the job.
        alone: Whether this process saves on its own, whatever the others of its job do. It must
            have all of the values. Otherwise every process of the job makes this call, with the
            same arguments: see "Several processes" in the documentation. Formats other than "orbax"
            are written by one process: in a job of several, with True.
        shard_size: Only for safetensors: bytes of data from which a tree is divided among several
            files, each of at most this size unless it holds a single tensor. Default: 5 GB, and no
            limit for a single file.
        storage: How to reach the object store of a URL, such as `templax.storage.S3(endpoint=…)`;
            by default as the environment says.

    Returns:
        What was written; with `wait=False`, the handle of the save in progress. The next save and
        the end of the process wait for it.

    Raises:
        SaveError: A leaf cannot be saved (the message names it; no file was made); the disk is full
            or failed; or an earlier save with `wait=False` failed and nobody waited for it. What
            was at `url` is unchanged, and nothing is left beside it.
        AlreadyExists: Something exists at `url`.
        UsageError: An argument is invalid.

    Example:
        >>> import jax.numpy as jnp, os, tempfile, templax as tx
        >>> path = os.path.join(tempfile.mkdtemp(), "ckpt")
        >>> saved = tx.save(path, {"w": jnp.ones((2, 3)), "step": 7}, metadata={"run": "a"})
        >>> saved.leaves, saved.fingerprint == tx.fingerprint({"step": 7, "w": jnp.ones((2, 3))})
        (2, True)
        >>> tx.restore(path, {"w": jnp.zeros((2, 3)), "step": 0})["step"]
        7
    """
    known = isinstance(url, (str, os.PathLike, Sink)) or is_fsspec(url)
    path = str(url.path if isinstance(url, Sink) else name_target(url) if known else url)
    call = open_call("saving", path, timeout=timeout, alone=alone)
    with call.report_errors():  # arguments included: the others wait for this call
        if not known:
            hint = "; hint: tx.save(path, tree)" if isinstance(tree, (str, os.PathLike)) else ""
            raise UsageError(f"Expected a path to save to, got {type(url).__name__}{hint}")
        options = make_options(
            format=format,
            path="" if isinstance(url, Sink) else path,
            metadata=metadata,
            overwrite=overwrite,
            compression=compression,
            memory=memory,
            threads=threads,
            on_progress=on_progress,
            shard_size=shard_size,
            storage=storage,
        )
        if options.format != "orbax":
            _check_alone(options.format, call.count)
        decide = functools.partial(Destination, url)
        return start_save(call, path, {"": tree}, options, decide, wait=wait)


def _check_alone(format: str, count: int) -> None:
    if count > 1:
        raise UsageError(
            f"{format} is written by one process, got {count}; hint: gather the values with"
            " jax.experimental.multihost_utils.process_allgather, and save on one process with"
            " alone=True"
        )
