"""The public calls: each a few lines that run the stages in order."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Literal

from .._catalog.catalog import Catalog
from .._core.arguments import PyTree, check_int
from .._core.dtypes import Cast
from .._core.gc_pause import pause_gc
from .._core.names import Rename
from .._core.text import list_names
from .._core.workers import MAX_THREADS, MEMORY_BYTES, count_cores
from .._match.result import Match, TemplateError
from .._plan.build import build_plan
from .._plan.plan import Plan
from .._template.json_file import dump_template
from .._template.template import Template
from ..errors import CastWarning, Unverified, UsageError
from ..formats.registry import Checkpoint, open_checkpoint
from .execute import execute_plan
from .prepare import locate_chunks, match_checkpoint
from .stats import Stats

Verify = Literal["available", "required", "off"]

_log = logging.getLogger("templax")

_last: Stats | None = None


def restore(
    checkpoint: Checkpoint,
    template: PyTree,
    *,
    at: str = "",
    rename: Rename | None = None,
    shardings: PyTree = None,
    missing: Literal["error", "keep"] | Checkpoint = "error",
    extra: Literal["error", "ignore"] = "error",
    cast: Cast = "float",
    verify: Verify = "available",
    memory: int | None = None,
    threads: int | None = None,
    mapped: bool = False,
) -> PyTree:
    """Loads a checkpoint into the structure, shapes, dtypes and shardings of a template.

    The template decides all: what comes back has its treedef, and each leaf is what the template's
    leaf is. A `jax.ShapeDtypeStruct` or `jax.Array` gives a `jax.Array` with its shape, dtype and
    sharding (none: JAX's default device); an `np.ndarray` an `np.ndarray`; a Python number, `str`
    or one of these types gives such a value; a typed PRNG key a typed key; `...` skips a leaf or
    subtree and stays `...`; functions and other leaves without data come back as they are. How the
    checkpoint was sharded when it was saved plays no part.

    Args:
        checkpoint: A path or URL, a `Source`, a `Catalog` from `open`, or a `Recipe`.
        template: Any pytree.
        at: Where in the checkpoint the tree is: the name of a subtree, such as `"params"`.
        rename: `{checkpoint prefix: template prefix}`, the longest match counts; or a function
            from the checkpoint's leaf names (after `at`) to the template's.
        shardings: A prefix of `template` with shardings or devices, which override its own.
        missing: What to do about a leaf that the checkpoint lacks: `"error"`; `"keep"` the
            template's own value; or another checkpoint, often a `Recipe`, that supplies it (`at`
            holds for it, too). Of that one only what is missing is read or computed.
        extra: What to do about a leaf of the checkpoint that the template lacks.
        cast: Which dtypes may become the template's: `"float"`: any float any float, any complex
            any complex, and what loses nothing; `"widen"`: only the latter; `"exact"`: none.
            Casts are announced by one `CastWarning`.
        verify: `"available"` checks every checksum that the checkpoint has, while the bytes are in
            cache; of what one covers only in part (a shard of a chunk) nothing more is read, and
            `Plan.unverified` names the leaf. `"required"` reads all that the checksum covers, and
            refuses leaves that have none; `"off"` checks those of indexes only.
        memory: Host bytes in flight beyond the arrays returned; default 2 GiB. A leaf that is
            larger is loaded box by box.
        threads: Workers that read and decode. Default: the cores of this process, at most 8.
        mapped: Raw leaves that lie in a local file as they will in memory (C order, the template's
            dtype, at a multiple of 64 bytes, for one CPU device) become arrays over a private
            mapping of the file: not one byte of them is copied, and none is read before it is used,
            but to compare checksums, which `verify="off"` leaves out. While such arrays live,
            nobody may overwrite the file (the weights would change) or cut it (the process would be
            killed); deleting or replacing it does no harm.

    Returns:
        The template's pytree, filled. Arrays on CPU own their memory (but for `mapped=True`), those
        up to 1 MiB some 8 MiB together with others; the files may be deleted.

    Raises:
        TemplateError: The checkpoint does not fit. Lists every mismatch; no array byte was read.
        CheckpointError: NotFound, UnknownFormat, Unsupported, Uncommitted, Unverified or Corrupted.
        SourceError: The storage failed, or changed while it was read.
        UsageError: An argument that means nothing.

    Example:
        >>> import jax, jax.numpy as jnp, templax as tx
        >>> template = {"scale": jax.ShapeDtypeStruct((), jnp.float32)}
        >>> tx.restore("tests/corpus/orbax-0.12.8-default/ckpt", template, at="state.params",
        ...            extra="ignore")["scale"].dtype
        dtype('float32')
    """
    return _run(
        plan(
            checkpoint,
            template,
            at=at,
            rename=rename,
            shardings=shardings,
            missing=missing,
            extra=extra,
            cast=cast,
            verify=verify,
            memory=memory,
            threads=threads,
            mapped=mapped,
        )
    )


def plan(
    checkpoint: Checkpoint,
    template: PyTree | Template,
    *,
    at: str = "",
    rename: Rename | None = None,
    shardings: PyTree = None,
    missing: Literal["error", "keep"] | Checkpoint = "error",
    extra: Literal["error", "ignore"] = "error",
    cast: Cast = "float",
    verify: Verify = "available",
    memory: int | None = None,
    threads: int | None = None,
    mapped: bool = False,
) -> Plan:
    """What `restore` would do: every read, decode and copy, and what they cost. Reads no array.

    Args: As of `restore`.

    Returns:
        A plan: `print` it, or `run` it.

    Raises:
        As `restore`: a plan is made of what fits only.

    Example:
        >>> import jax, jax.numpy as jnp, templax as tx
        >>> template = {"big": jax.ShapeDtypeStruct((128, 64), jnp.float32)}
        >>> plan = tx.plan("tests/corpus/orbax-0.12.8-default/ckpt", template, at="state.params",
        ...                extra="ignore")
        >>> plan.requests, plan.placed_bytes
        (1, 32768)
        >>> tx.run(plan)["big"].shape
        (128, 64)
    """
    if threads is None:
        threads = min(MAX_THREADS, count_cores())
    threads = check_int("threads", threads)
    memory = MEMORY_BYTES if memory is None else check_int("memory", memory)
    if verify not in ("available", "required", "off"):
        raise UsageError(f'Expected verify="available", "required" or "off", got {verify!r}')
    if not isinstance(mapped, bool):
        raise UsageError(f"Expected mapped=True or False, got {mapped!r}")
    begin = time.perf_counter()
    with pause_gc():
        wanted = _as_template(template, shardings)
    took = {"template": time.perf_counter() - begin}
    catalogs, found = match_checkpoint(checkpoint, wanted, at, rename, missing, extra, cast, took)
    if not found.ok:
        raise TemplateError(found)
    begin = time.perf_counter()
    chunks = locate_chunks(catalogs, found)
    took["locate"] = time.perf_counter() - begin
    begin = time.perf_counter()
    sources = [catalog.source for catalog in catalogs]
    with pause_gc():
        made = build_plan(
            found,
            chunks,
            threads=threads,
            memory=memory,
            verify=verify,
            mapped=[source.maps for source in sources] if mapped else (),
            sources=sources,
        )
    if verify == "required" and made.unverified:
        names = made.unverified
        raise Unverified(
            f"{len(names)} of {len(found.pairs)} leaves of {found.url} have bytes that no"
            f" checksum covers: {list_names(names)}",
            hint='verify="available" checks those that have one',
        )
    took["plan"] = time.perf_counter() - begin
    return replace(made, prepared=took)


def run(plan: Plan) -> PyTree:
    """Does what `plan` made.

    Args:
        plan: Can be run more than once; each time the bytes are read again.

    Returns:
        As `restore`.

    Raises:
        Corrupted, SourceError: As `restore`. That the files are those that were planned for is
            checked.
        UsageError: The plan is of a template from a JSON file, which has no pytree.
    """
    return _run(plan)


def _run(plan: Plan) -> PyTree:
    from .place import place_batches

    global _last
    if not isinstance(plan, Plan):
        raise UsageError(f"Expected a Plan from templax.plan, got {type(plan).__name__}")
    if plan.match.template.treedef is None:
        raise UsageError("Expected a plan for a pytree, got one for a template from a file")
    _still_holds(plan)
    begin = time.perf_counter()
    with closing(execute_plan(plan, plan.sources)) as finished:
        tree, busy = place_batches(plan.match, finished)
    _last = stats = Stats.of(plan, busy, time.perf_counter() - begin)
    _log.info("%s", stats)
    if plan.match.casts:
        warnings.warn(CastWarning(_said(plan.match, busy.cast_s)), stacklevel=3)
    return tree


def _still_holds(plan: Plan) -> None:
    """Refuses a plan that was made with 64-bit types on, and is run with them off."""
    from .._jax.support import jax_supports

    for dtype in {pair.target.dtype for pair in plan.match.pairs if not pair.target.host}:
        if not jax_supports(dtype):
            raise UsageError(
                f"Expected jax_enable_x64 as it was when the plan was made: no jax.Array holds"
                f" `{dtype.name}` now"
            )


def last_restore() -> Stats | None:
    """What the restore that ended last in this process took; None before the first.

    Example:
        >>> import templax as tx
        >>> catalog = tx.open("tests/corpus/orbax-0.12.8-default/ckpt")
        >>> tree = tx.restore(catalog, catalog.template())
        >>> stats = tx.last_restore()
        >>> stats.leaves, stats.placed_bytes > stats.read_bytes > 0
        (14, True)
    """
    return _last


def _as_template(template: PyTree | Template, shardings: PyTree) -> Template:
    if isinstance(template, Template):
        return template
    from .._template.from_pytree import as_template

    return as_template(template, shardings)


def check(
    checkpoint: Checkpoint,
    template: PyTree | Template,
    *,
    at: str = "",
    rename: Rename | None = None,
    shardings: PyTree = None,
    missing: Literal["error", "keep"] | Checkpoint = "error",
    extra: Literal["error", "ignore"] = "error",
    cast: Cast = "float",
) -> Match:
    """Compares a checkpoint with a template as `restore` would, without reading an array.

    Args: As of `restore`.

    Returns:
        The match: `.ok`, `.mismatches`, `.casts`; `str(match)` is the report.

    Raises:
        CheckpointError, SourceError, UsageError: As `restore`. A mismatch raises nothing.

    Example:
        >>> import jax, jax.numpy as jnp, templax as tx
        >>> template = {"scale": jax.ShapeDtypeStruct((3,), jnp.float32)}
        >>> match = tx.check("tests/corpus/orbax-0.12.8-default/ckpt", template,
        ...                  at="state.params", extra="ignore")
        >>> match.ok, match.mismatches[0].problem
        (False, 'shape')
    """
    wanted = _as_template(template, shardings)
    return match_checkpoint(checkpoint, wanted, at, rename, missing, extra, cast)[1]


def open(checkpoint: Checkpoint, *, uncommitted: Literal["error", "allow"] = "error") -> Catalog:
    """Opens a checkpoint: its leaves and metadata, without reading an array or importing JAX.

    Args:
        checkpoint: A path or URL, a `Source`, or a `Recipe`.
        uncommitted: `"allow"` opens a save that never finished; a `Catalog` opened so can be
            restored from, which is the only way to read such a directory.

    Raises:
        NotFound, UnknownFormat, Unsupported, Uncommitted, Corrupted, SourceError

    Example:
        >>> import templax as tx
        >>> catalog = tx.open("tests/corpus/orbax-0.12.8-default/ckpt")
        >>> catalog.leaves["state.params.big"].shape
        (128, 64)
    """
    return open_checkpoint(checkpoint, uncommitted)


def save_template(
    template: PyTree, file: str | os.PathLike[str], *, shardings: PyTree = None
) -> None:
    """Writes a template as JSON, shardings included, for `templax check CHECKPOINT FILE`.

    Args:
        template: As of `restore`, or one with arrays: only shapes, dtypes and shardings are kept.
        file: Overwritten if it exists.
        shardings: As of `restore`.

    Example:
        >>> import jax, jax.numpy as jnp, templax as tx, tempfile, os
        >>> file = os.path.join(tempfile.mkdtemp(), "template.json")
        >>> tx.save_template({"w": jax.ShapeDtypeStruct((2, 3), jnp.bfloat16)}, file)
    """
    Path(file).write_bytes(dump_template(_as_template(template, shardings)))


def _said(match: Match, cast_s: float) -> str:
    kinds = Counter((c.stored, c.wanted) for c in match.casts)
    pairs = ", ".join(f"{a} to {b} ({n})" for (a, b), n in kinds.most_common())
    nbytes = sum(c.nbytes for c in match.casts)
    n, total = len(match.casts), len(match.pairs)
    return (
        f"{n} of {total} {'leaf' if total == 1 else 'leaves'} of {match.url}"
        f" {'was' if n == 1 else 'were'} cast: {pairs}; {nbytes:,} bytes, {cast_s:.3f} s;"
        ' cast="exact" refuses this'
    )
