"""Casts on the host that give what a cast by JAX would."""

from __future__ import annotations

import numpy as np

from .._core.dtypes import WIDE, cast_into, host_cast_is_exact
from .._core.optional import is_jax_loaded

CAST_BLOCK = 1 << 20
"""Elements per cast by XLA. Casting each leaf in its own shape would compile once per shape."""


def cast_array(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """`jnp.asarray(values).astype(dtype)` on the host, bit for bit, NaNs included.

    XLA casts block by block. numpy casts what a `jax.Array` can't hold, and everything in a program
    that has not loaded JAX: a NaN may then get another sign or payload.
    """
    out = np.empty(values.shape, dtype)
    if host_cast_is_exact(values.dtype, dtype) or not is_jax_loaded():
        cast_into(out, values)
        return out
    import jax
    import jax.numpy as jnp

    from .._jax.support import jax_supports

    known = values.dtype.name in WIDE or jax_supports(values.dtype)  # JAX narrows wide ones itself
    if not known or not jax_supports(dtype):
        cast_into(out, values)
        return out
    flat, flat_out = values.reshape(-1), out.reshape(-1)
    for start in range(0, flat.size, CAST_BLOCK):
        block = flat[start : start + CAST_BLOCK]
        size = min(CAST_BLOCK, 1 << (len(block) - 1).bit_length())
        padded = np.zeros(size, block.dtype)
        padded[: len(block)] = block
        # JAX narrows 64 bits with numpy, which would warn about values that do not fit.
        quiet, allowed = np.errstate(all="ignore"), jax.transfer_guard("allow")
        # jax_debug_nans is for NaNs that a computation makes, and these were stored.
        nans, infs = jax.debug_nans(False), jax.debug_infs(False)
        with quiet, allowed, nans, infs, jax.ensure_compile_time_eval():
            done = np.asarray(jnp.asarray(padded).astype(dtype))
        flat_out[start : start + len(block)] = done[: len(block)]
    return out
