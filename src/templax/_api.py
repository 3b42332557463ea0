"""The public calls: each a few lines that run the stages in order."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union

from msgspec import structs

from ._catalog import Catalog
from ._dtypes import CASTS, Cast, holds
from ._errors import (
    CastWarning,
    Mismatch,
    NotFound,
    TemplateError,
    TemplaxError,
    UsageError,
)
from ._hints import with_hints
from ._match import Match, Options, Side, match
from ._names import Rename
from ._template import Template, dump
from .formats import open_catalog
from .sources import Source, open_source

if TYPE_CHECKING:
    from ._execute import Finished
    from ._recipe import Recipe

PyTree = Any
Checkpoint = Union[str, "os.PathLike[str]", Source, Catalog, "Recipe"]


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
    threads: int | None = None,
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
        threads: Workers that read and decode. Default: the cores of this process, at most 8.

    Returns:
        The template's pytree, filled. Arrays on CPU own their memory; the files may be deleted.

    Raises:
        TemplateError: The checkpoint does not fit. Lists every mismatch; no array byte was read.
        CheckpointError: NotFound, UnknownFormat, Unsupported, Uncommitted or Damaged.
        SourceError: The storage failed, or changed while it was read.
        UsageError: An argument that means nothing.

    Example:
        >>> import jax, jax.numpy as jnp, templax as tx
        >>> template = {"scale": jax.ShapeDtypeStruct((), jnp.float32)}
        >>> tx.restore("tests/corpus/orbax-0.12.8-default/ckpt", template, at="state.params",
        ...            extra="ignore")["scale"].dtype
        dtype('float32')
    """
    from ._place import place
    from ._pytree import as_template

    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise UsageError(f"Expected threads= a number of at least 1, got {threads!r}")
    wanted = as_template(template, shardings)
    catalogs, found = _matched(checkpoint, wanted, at, rename, missing, extra, cast)
    if not found.ok:
        raise TemplateError(found)
    with closing(_read(catalogs, found, threads)) as finished:
        tree, cast_s = place(found, finished)
    if found.casts:
        warnings.warn(CastWarning(_said(found, cast_s)), stacklevel=2)
    return tree


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
    if not isinstance(template, Template):
        from ._pytree import as_template

        template = as_template(template, shardings)
    return _matched(checkpoint, template, at, rename, missing, extra, cast)[1]


def open(checkpoint: Checkpoint, *, uncommitted: Literal["error", "allow"] = "error") -> Catalog:
    """Opens a checkpoint: its leaves and metadata, without reading an array or importing JAX.

    Args:
        checkpoint: A path or URL, a `Source`, or a `Recipe`.
        uncommitted: `"allow"` opens a save that never finished; a `Catalog` opened so can be
            restored from, which is the only way to read such a directory.

    Raises:
        NotFound, UnknownFormat, Unsupported, Uncommitted, Damaged, SourceError

    Example:
        >>> import templax as tx
        >>> catalog = tx.open("tests/corpus/orbax-0.12.8-default/ckpt")
        >>> catalog.leaves["state.params.big"].shape
        (128, 64)
    """
    if isinstance(checkpoint, Catalog):
        return checkpoint
    if uncommitted not in ("error", "allow"):
        raise UsageError(f'Expected uncommitted="error" or "allow", got {uncommitted!r}')
    if isinstance(checkpoint, (str, os.PathLike, Source)):
        return open_catalog(open_source(checkpoint), uncommitted=uncommitted)
    from ._recipe import Recipe

    if isinstance(checkpoint, Recipe):
        return checkpoint.catalog()
    raise UsageError(
        f"Expected a path, Source, Catalog or Recipe as checkpoint, got {type(checkpoint).__name__}"
    )


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
    if not isinstance(template, Template):
        from ._pytree import as_template

        template = as_template(template, shardings)
    Path(file).write_bytes(dump(template))


def _matched(
    checkpoint: Checkpoint,
    template: Template,
    at: str,
    rename: Rename | None,
    missing: Literal["error", "keep"] | Checkpoint,
    extra: Literal["error", "ignore"],
    cast: Cast,
) -> tuple[Sequence[Catalog], Match]:
    """The catalogs involved, and the match with hints."""
    if not isinstance(at, str):
        raise UsageError(f"Expected at= the name of a subtree (str), got {at!r}")
    if extra not in ("error", "ignore"):
        raise UsageError(f'Expected extra="error" or "ignore", got {extra!r}')
    if cast not in CASTS:
        raise UsageError(f"Expected cast= one of {', '.join(CASTS)}, got {cast!r}")
    if not (rename is None or callable(rename) or _is_mapping_of_names(rename)):
        raise UsageError(f"Expected rename= a dict of names (str) or a function, got {rename!r}")
    catalogs = [open(checkpoint)]
    keep = isinstance(missing, str) and missing == "keep"
    if not keep and not (isinstance(missing, str) and missing == "error"):
        catalogs.append(_open_missing(missing))
    sides = [Side(c.entries, c.empties) for c in catalogs]
    fallback = sides[1] if len(sides) == 2 else None

    def compared(options: Options, template: Template) -> Match:
        return match(catalogs[0].url, sides[0], template, options, fallback)

    def tried(options: Options, template: Template) -> Match:
        found = compared(options, template)
        try:
            return _numbers_fit(catalogs, found)
        except TemplaxError:  # a hint that is tried must not fail for what it would find
            return found

    options = Options(at, rename, "keep" if keep else "error", extra, cast)
    result = _numbers_fit(catalogs, compared(options, template))
    return catalogs, result if result.ok else with_hints(result, sides[0], options, tried)


def _is_mapping_of_names(rename: object) -> bool:
    return isinstance(rename, Mapping) and all(
        isinstance(old, str) and isinstance(new, str) for old, new in rename.items()
    )


def _open_missing(missing: Checkpoint) -> Catalog:
    try:
        return open(missing)
    except NotFound as error:
        if isinstance(missing, str) and missing.isidentifier():
            raise UsageError(
                f'Expected missing="error", "keep" or a checkpoint, got {missing!r},'
                " where there is nothing"
            ) from error
        raise


def _read(
    catalogs: Sequence[Catalog], found: Match, threads: int | None = None
) -> Generator[Finished, None, None]:
    """Host buffers of every leaf that a match pairs, batch by batch."""
    from ._execute import execute
    from ._plan import plan

    chunks = []
    for i, catalog in enumerate(catalogs):
        mine = [pair.entry for pair in found.pairs if pair.fallback == bool(i)]
        chunks.append(catalog.locate(entry for entry in mine if entry.kind != "string"))
    return execute(plan(found, chunks), [catalog.source for catalog in catalogs], threads)


def _numbers_fit(catalogs: Sequence[Catalog], found: Match) -> Match:
    """The match with a mismatch for each Python int that its integer target can't hold.

    The index of a checkpoint holds such numbers itself, as a rule, so this reads next to nothing.
    """
    pairs = [p for p in found.pairs if p.by_value]
    if not pairs:
        return found
    as_stored = [
        structs.replace(p, target=structs.replace(p.target, dtype=p.entry.dtype, boxes=((),)))
        for p in pairs
    ]
    wrong: list[Mismatch] = []
    values: dict[str, int] = {}
    with closing(_read(catalogs, replace(found, pairs=tuple(as_stored)))) as finished:
        for done in finished:
            for buffer, array in zip(done.batch.buffers, done.arrays, strict=True):
                values[buffer.pair.target.name] = int(array[()])
    for pair in pairs:
        target, value = pair.target, values[pair.target.name]
        if not holds(target.dtype, value):
            note = f"the number is {value}"
            wrong.append(
                Mismatch("dtype", target.name, target.dtype_name, pair.entry.dtype_name, note=note)
            )
    if not wrong:
        return found
    order = {target.name: i for i, target in enumerate(found.template.targets)}
    merged = sorted([*found.mismatches, *wrong], key=lambda m: order.get(m.name, len(order)))
    return replace(found, mismatches=tuple(merged))


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
