"""The names of files by which layouts are recognised, apart from the modules that read them."""

from __future__ import annotations

MANIFEST = "manifest.ocdbt"
"""The index of an OCDBT database."""

FILES = (".zarray", "zarr.json")
"""The metadata of an array of zarr, in the versions 2 and 3."""

GROUP = ".zgroup"
"""The metadata of a group of zarr 2."""

ROOTS = (GROUP, *FILES)
"""Files of which one is in the root of a tree of zarr."""

ARRAYS = "_gda"
"""What the name of a directory ends in that Flax writes beside a file, for its arrays."""

INDEX_FILE = "templax.index"
"""The file that templax adds to the checkpoints of Orbax that it saves."""
