"""JAX. All handlers of templax: importing this registers their args."""

from __future__ import annotations

from . import composite, documents, random_keys, trees

__all__ = ["composite", "documents", "random_keys", "trees"]
