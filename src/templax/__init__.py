"""Restore JAX checkpoints through a template.

    >>> import templax as tx
    >>> catalog = tx.open("tests/corpus/orbax-0.12.8-default/ckpt")
    >>> params = tx.restore(catalog, catalog.template()["state"]["params"], at="state.params")

Importing templax does not import JAX; the calls that make arrays do.
"""

from typing import TYPE_CHECKING, Any

from ._api import check, last_restore, open, plan, restore, run, save_template
from ._catalog import Catalog, LeafEntry
from ._errors import (
    CastWarning,
    CheckpointError,
    Damaged,
    Mismatch,
    NotFound,
    SourceError,
    TemplateError,
    TemplaxError,
    Uncommitted,
    UnknownFormat,
    Unsupported,
    Unverified,
    UsageError,
)
from ._match import Match
from ._plan import Plan
from ._stats import Stats

if TYPE_CHECKING:
    from ._abstract import template_of
    from ._recipe import Recipe

__version__ = "0.1.0"

__all__ = [
    "CastWarning",
    "Catalog",
    "CheckpointError",
    "Damaged",
    "LeafEntry",
    "Match",
    "Mismatch",
    "NotFound",
    "Plan",
    "Recipe",
    "SourceError",
    "Stats",
    "TemplateError",
    "TemplaxError",
    "Uncommitted",
    "UnknownFormat",
    "Unsupported",
    "Unverified",
    "UsageError",
    "check",
    "last_restore",
    "open",
    "plan",
    "restore",
    "run",
    "save_template",
    "template_of",
]

_JAX = {"Recipe": "_recipe", "template_of": "_abstract"}


def __getattr__(name: str) -> Any:
    if name in _JAX:
        from importlib import import_module

        value = getattr(import_module(f"{__name__}.{_JAX[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
