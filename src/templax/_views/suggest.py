"""Suggests a mapping from a checkpoint to a template. A suggestion is tried before it is made."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from .._catalog.entry import LeafEntry
from .._core.arguments import PyTree
from .._core.gc_pause import pause_gc
from .._match.match import CheckpointView, match_leaves
from .._match.options import MatchOptions
from .._template.make import make_template
from .._template.template import Template
from ..errors import MappingError
from ..formats.registry import Checkpoint, open_checkpoint
from .mapping import Mapping as LeafMapping
from .resolve import resolve_mapping
from .suggested_rules import Suggestion, suggest_rules

MAX_LEAVES = 60_000
"""A mapping is looked for among up to this many leaves of both trees together."""

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
    it is transposed; leaves of the template without a source, which `missing=` may fill; leaves of
    the checkpoint that are left out, which are also in `Mapping.drop`. That names and shapes agree
    does not prove that the values mean the same: compare the outputs of the models.

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


@pause_gc()
def find_suggestion(entries: Sequence[LeafEntry], template: Template) -> Suggestion | None:
    """A mapping that makes the leaves of a checkpoint fit, with what can't be told about it.

    None if nothing convincing was found.
    """
    targets = [target for target in template.targets if target.has_data]
    if not targets or len(entries) + len(targets) > MAX_LEAVES:
        return None
    made = suggest_rules(entries, targets)
    if made is None or 2 * len(made.covered) < len(targets):
        return None
    for mapping in (made.mapping, made.plain):
        if _fits(mapping, entries, template, made.covered):
            return Suggestion(mapping, mapping, made.covered, made.notes, made.undecidable)
    return None


def _fits(
    mapping: LeafMapping,
    entries: Sequence[LeafEntry],
    template: Template,
    covered: frozenset[str],
) -> bool:
    """Whether a mapping makes all leaves that it should make, as the template asks for them."""
    shapes = {t.name: (t.shape, t.dtype) for t in template.targets if t.has_data}
    try:
        resolved = resolve_mapping(mapping, entries, shapes.get)
    except MappingError:
        return False
    found = match_leaves(CheckpointView(resolved.entries), template, MatchOptions())
    names = {pair.target.name for pair in found.pairs}
    return names == covered and all(m.problem == "missing" for m in found.mismatches)
