"""Recognises trees of zarr arrays that are no checkpoint of Orbax.

Those of zarr-python, TensorStore and xarray. `zarr_contents` reads them.
"""

from __future__ import annotations

from .._catalog.catalog import Catalog
from ..errors import UnknownFormat
from ..storage.source import Source
from .file_names import MANIFEST, ROOTS
from .orbax.directory import has_orbax_files


class ZarrTree:
    """A group or an array of zarr 2 or 3, in files or in an OCDBT database, without Orbax's files.

    Nested groups are levels of the tree. A name without a `/` is split at its dots, as Orbax joins
    key paths.
    """

    name = "zarr"

    def detect(self, source: Source) -> str | None:
        info = source.stat("")
        if info is None or not info.is_dir:
            return None
        names = {child.key for child in source.children()}
        found = [name for name in (*ROOTS, MANIFEST) if name in names]
        if not found or has_orbax_files(source, names):
            return None
        return f"`{found[0]}` without files of Orbax" if found[0] == MANIFEST else f"`{found[0]}`"

    def open(self, source: Source) -> Catalog:
        """Opens a tree. Leaves are in the order of their keys.

        The metadata of the catalog has the attributes by the name of their node, and says which
        keys are not part of an array ("not read"), and where chunks are absent ("filled in").
        Arrays of a dtype that templax does not read are listed in `unread`.

        Raises:
            Corrupted: Metadata or the index of a database is unreadable.
            Unsupported: A version of the format, or a kind of index, that templax does not read.
            UnknownFormat: A part of a checkpoint of Orbax, or a database without zarr arrays.
        """
        from .orbax.format import part_of_item_error
        from .zarr_contents import open_tree

        inside = part_of_item_error(source)
        if inside is not None:
            raise inside
        evidence = self.detect(source)
        if evidence is None:
            raise UnknownFormat(f"{source.url} is not a tree of zarr arrays")
        return open_tree(source, self.name, evidence)
