"""Suggests a mapping from a checkpoint to a template. A suggestion is tried before it is made."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from .._catalog.entry import LeafEntry
from .._core.arguments import PyTree
from .._core.dtypes import Cast
from .._core.gc_pause import pause_gc
from .._core.text import leaf_noun, list_names
from .._escape import escape_text
from .._match.checkpoint_view import CheckpointView
from .._match.match import match_leaves
from .._match.options import MatchOptions
from .._match.result import MAX_SHOWN, Match
from .._template.make import make_template
from .._template.template import Template
from ..errors import MappingError
from ..formats.registry import Checkpoint, open_checkpoint
from .mapping import Mapping as LeafMapping
from .resolve import resolve_mapping
from .suggested_rules import Suggestion, suggest_rules

_MAX_LEAVES, _MAX_STEPS = 60_000, 4_000_000
"""A mapping is looked for among up to this many leaves of both trees together, and in up to this
many steps: the sum of the squared depths of the leaves."""

_LEAST_LEAVES = 4
"""A mapping is not suggested for fewer leaves: their names and shapes may agree by chance."""

_log = logging.getLogger("templax")


def suggest(
    checkpoint: Checkpoint,
    template: PyTree | Template,
    *,
    on_note: Callable[[str], None] | None = None,
) -> LeafMapping | None:
    """Looks for a mapping with which a checkpoint fits a template, by names, shapes and structure.

    Nothing is applied or read but metadata: look at the mapping, edit it, and pass it to `view`.
    It is returned only if the leaves that it makes fit the template in shape and dtype. What is not
    certain is told in notes: layers whose weight is square, so that its shape does not tell whether
    it is transposed; the order of queries, keys and values in a leaf that holds all of them, of
    which the usual one is taken; leaves of the template without a source, which `missing=` may
    fill; leaves of the checkpoint that are left out, which are also in `Mapping.drop`. That names
    and shapes agree does not prove that the values mean the same: compare the outputs of the
    models.

    Args:
        checkpoint: See `open`.
        template: See `restore`.
        on_note: Called with each note. By default, notes are warnings of the logger "templax".

    Returns:
        The mapping; one without rules that keeps every leaf if the names and shapes fit as they
        are. None if for less than half of the template anything convincing was found.

    Raises:
        CheckpointError, SourceError: See `open`.
        UsageError: The template is not valid.

    Example:
        >>> import os, tempfile
        >>> import numpy as np
        >>> import templax as tx
        >>> path = os.path.join(tempfile.mkdtemp(), "torch.safetensors")
        >>> layers = [{"q_proj": {"weight": np.ones((4, 6))}} for _ in range(3)]
        >>> _ = tx.save(path, {"model": {"layers": layers}})
        >>> template = {"layers": {"q": {"kernel": np.empty((3, 6, 2, 2))}}}
        >>> print(tx.suggest(path, template))
        target           from                            axes
        layers.q.kernel  model.layers.{i}.q_proj.weight  (h k) d -> i d h k, k=2
    """
    catalog = open_checkpoint(checkpoint)
    made = find_suggestion(catalog.entries, make_template(template))
    if made is None:
        return None
    for note in made.notes:
        if on_note is None:
            _log.warning("the suggested mapping: %s", note)
        else:
            on_note(note)
    return made.mapping


def hint_at_mapping(found: Match, entries: Sequence[LeafEntry], cast: Cast) -> Match:
    """A failed match with a mapping as its hint, if one makes it succeed.

    None is looked for where most names are found, where other hints explain most mismatches, or
    where there are so few leaves that their names and shapes may agree by chance.

    Args:
        found: The failed match, with all other hints.
        entries: The leaves of the checkpoint.
        cast: See `restore`.
    """
    total = sum(target.has_data for target in found.template.targets)
    missing = sum(m.problem == "missing" for m in found.mismatches)
    hints = [m.hint for m in found.mismatches if m.hint and not m.hint.startswith("missing=")]
    if total < _LEAST_LEAVES or 2 * missing <= total or 2 * len(hints) >= len(found.mismatches):
        return found
    made = find_suggestion(entries, found.template, cast)
    if made is None or len(made.covered) < total:
        return found
    hint = "tx.view(checkpoint, tx.suggest(checkpoint, template))"
    rows = str(made.mapping).split("\n")
    shown = rows[: MAX_SHOWN + 1]
    if len(rows) > len(shown):
        shown.append(f"and {len(rows) - len(shown)} more lines")
    summary = (
        f"{total - missing or 'none'} of {total} {leaf_noun(total)} found in {found.url}; a mapping"
        f" of {len(made.mapping):,} rules makes all of them"
    )
    if made.undecidable:
        summary += f"; can't tell by its shape whether {list_names(made.undecidable)} is transposed"
    summary += "".join(f"; {order}" for order in made.orders)
    lines = [escape_text(f"{summary}; hint: {hint}"), *(f"  {row}" for row in shown)]
    mismatches = tuple(replace(m, hint=hint) for m in found.mismatches)
    return replace(
        found,
        mismatches=mismatches,
        summary="\n".join(lines),
        rename=None,
        undecidable=made.undecidable,
    )


@pause_gc()
def find_suggestion(
    entries: Sequence[LeafEntry], template: Template, cast: Cast = "float"
) -> Suggestion | None:
    """A mapping that makes the leaves of a checkpoint fit, with what can't be told about it.

    None if nothing convincing was found.
    """
    targets = [target for target in template.targets if target.has_data]
    if not targets or len(entries) + len(targets) > _MAX_LEAVES:
        return None
    if sum((leaf.name.count(".") + 1) ** 2 for leaf in (*entries, *targets)) > _MAX_STEPS:
        return None
    try:
        made = suggest_rules(entries, targets)
    except MappingError:  # names that the notation can't spell, such as those that begin with `$`
        return None
    if made is None or 2 * len(made.covered) < len(targets):
        return None
    for mapping in (made.mapping, made.plain):
        if _fits(mapping, entries, template, made.covered, cast):
            return replace(made, mapping=mapping)
    return None


def _fits(
    mapping: LeafMapping,
    entries: Sequence[LeafEntry],
    template: Template,
    covered: frozenset[str],
    cast: Cast,
) -> bool:
    """Whether a mapping makes all leaves that it should make, as the template asks for them."""
    shapes = {t.name: (t.shape, t.dtype) for t in template.targets if t.has_data}
    try:
        resolved = resolve_mapping(mapping, entries, shapes.get)
    except MappingError:
        return False
    found = match_leaves(CheckpointView(resolved.entries), template, MatchOptions(cast=cast))
    names = {pair.target.name for pair in found.pairs}
    return names == covered and all(m.problem == "missing" for m in found.mismatches)
