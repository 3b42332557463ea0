"""Opens the GGUF files that a model was split into, and directories with a single one."""

from __future__ import annotations

from ..._catalog.catalog import Catalog
from ...errors import Corrupted
from ...storage.signatures import GGUF, recognise_root
from ...storage.source import Source
from ..file_set import FileSet, Index
from .file import SPLIT_NAME, SPLIT_TENSORS, GgufPart


class GgufSet(FileSet):
    """A directory with the files of one split model, or with a single file; or one of the former.

    `gguf-split` of llama.cpp names them `model-00001-of-00003.gguf` and so on.
    """

    name = "gguf"
    suffix = ".gguf"
    formats = (GgufPart(),)

    def open(self, source: Source) -> Catalog:
        """Opens the files. Leaves are in the order of the files, and as in each.

        Raises:
            Corrupted: A file is unreadable or absent, or they have not as many tensors as they say.
            Unsupported: See `read_header`.
        """
        catalog = super().open(source)
        count = len(catalog.entries)
        total = catalog.metadata.get(SPLIT_TENSORS, count)
        if total != count:
            raise Corrupted(f"Expected {total!r:.80} tensors in all files, found {count}")
        return catalog

    def _find(self, source: Source) -> tuple[Source, str] | None:
        """The directory, and in it the first file, or the only one."""
        info = source.stat("")
        if info is None:
            return None
        if not info.is_dir:
            name = source.url.rpartition("/")[2]
            is_part = SPLIT_NAME.fullmatch(name) and recognise_root(source) == GGUF
            return (source.at(".."), name) if is_part else None
        names = [child.key for child in source.children() if child.key.endswith(self.suffix)]
        parts = [SPLIT_NAME.fullmatch(name) for name in names]
        models = {(part[1], part[3]) if part else None for part in parts}
        if len(names) > 1 and (None in models or len(models) > 1):
            return None
        return (source, names[0]) if names and self._is_file(source, names[0]) else None

    def _list_files(self, root: Source, name: str) -> tuple[Index, list[str]]:
        part = SPLIT_NAME.fullmatch(name)
        if part is None:
            return Index({}), [name]
        count = int(part[3])
        return Index({}), [f"{part[1]}-{i:05}-of-{part[3]}.gguf" for i in range(1, count + 1)]
