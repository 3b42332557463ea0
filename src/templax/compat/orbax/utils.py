"""JAX. Orbax's `utils`."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from .unmapped import unmapped_attribute

__all__ = ["empty_array"]


def empty_array(shape: tuple[int, ...], dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
    """An abstract leaf of a template; it takes no memory.

    Example:
        >>> import numpy as np
        >>> from templax.compat import orbax as ocp
        >>> ocp.utils.empty_array((2, 3), np.float32)
        ShapeDtypeStruct(shape=(2, 3), dtype=float32)
    """
    return jax.ShapeDtypeStruct(shape, dtype)


__getattr__ = unmapped_attribute("utils.")
