"""Limits that several formats share. The others are stated by the reader that checks them."""

from __future__ import annotations

MAX_RANK = 32
"""Most dimensions of an array, as in TensorStore."""

MAX_DEPTH = 256
"""Most levels of a tree or of a JSON value. JAX, Orbax and Python's JSON module recurse, and fail
at about 1,000 frames, of which a program may have used most when it restores."""
