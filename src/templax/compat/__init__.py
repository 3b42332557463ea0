"""The names of other libraries implemented with templax, for existing code."""

from .._core.optional import require_jax

require_jax("templax.compat")

__all__: list[str] = []
