"""Restore JAX checkpoints through a template.

    >>> import templax as tx
    >>> catalog = tx.open("tests/corpus/orbax-0.12.8-default/ckpt")
    >>> params = tx.restore(catalog, catalog.template()["state"]["params"], at="state.params")

Importing templax imports next to nothing: each public name is loaded when it is first used, and
JAX with the calls that make arrays.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import formats as formats
    from . import sources as sources
    from ._abstract import template_of
    from ._api import check, last_restore, open, plan, restore, run, save_template
    from ._catalog import Catalog, LeafEntry
    from ._errors import (
        CastWarning,
        CheckpointError,
        Damaged,
        Exists,
        Mismatch,
        NotFound,
        SaveError,
        SourceError,
        TemplateError,
        TemplaxError,
        Uncommitted,
        UnknownFormat,
        Unsupported,
        Unverified,
        UsageError,
    )
    from ._fingerprint import Fingerprint, fingerprint
    from ._keep import Keep
    from ._manager import Manager
    from ._match import Match
    from ._plan import Plan
    from ._recipe import Recipe
    from ._save import save
    from ._saving import Saved
    from ._stats import Stats
    from ._verify import Verified, verify

__version__ = "0.1.0"

__all__ = [
    "CastWarning",
    "Catalog",
    "CheckpointError",
    "Damaged",
    "Exists",
    "Fingerprint",
    "Keep",
    "LeafEntry",
    "Manager",
    "Match",
    "Mismatch",
    "NotFound",
    "Plan",
    "Recipe",
    "SaveError",
    "Saved",
    "SourceError",
    "Stats",
    "TemplateError",
    "TemplaxError",
    "Uncommitted",
    "UnknownFormat",
    "Unsupported",
    "Unverified",
    "UsageError",
    "Verified",
    "check",
    "fingerprint",
    "last_restore",
    "open",
    "plan",
    "restore",
    "run",
    "save",
    "save_template",
    "template_of",
    "verify",
]

_MODULES = {
    "CastWarning": "_errors",
    "Catalog": "_catalog",
    "CheckpointError": "_errors",
    "Damaged": "_errors",
    "Exists": "_errors",
    "Fingerprint": "_fingerprint",
    "Keep": "_keep",
    "LeafEntry": "_catalog",
    "Manager": "_manager",
    "Match": "_match",
    "Mismatch": "_errors",
    "NotFound": "_errors",
    "Plan": "_plan",
    "Recipe": "_recipe",
    "SaveError": "_errors",
    "Saved": "_saving",
    "SourceError": "_errors",
    "Stats": "_stats",
    "TemplateError": "_errors",
    "TemplaxError": "_errors",
    "Uncommitted": "_errors",
    "UnknownFormat": "_errors",
    "Unsupported": "_errors",
    "Unverified": "_errors",
    "UsageError": "_errors",
    "Verified": "_verify",
    "check": "_api",
    "fingerprint": "_fingerprint",
    "last_restore": "_api",
    "open": "_api",
    "plan": "_api",
    "restore": "_api",
    "run": "_api",
    "save": "_save",
    "save_template": "_api",
    "template_of": "_abstract",
    "verify": "_verify",
}
"""Where each public name is defined."""

if not TYPE_CHECKING:  # or else a type checker would take every name to be there

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name in ("formats", "sources"):
            return import_module(f"{__name__}.{name}")
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
