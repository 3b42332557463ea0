"""Objects that can be restored from like a checkpoint."""

from .._core.optional import require_jax

require_jax("templax.Recipe")
