"""Recognises the directories of arrays that Flax writes beside its files."""

from __future__ import annotations

from contextlib import suppress

from ..._catalog.catalog import Catalog
from ..._core.text import quote_text
from ...errors import CheckpointError, SourceError, UnknownFormat
from ...storage.source import Source
from ..file_names import ARRAYS


class FlaxArrays:
    """A directory of the arrays that several processes saved beside a Flax msgpack file.

    `flax.training.checkpoints.save_checkpoint_multiprocess` writes it. Alone, it is a part of a
    tree, which would look like a tree of its own.
    """

    name = "flax"

    def detect(self, source: Source) -> str | None:
        base = source.url.rstrip("/").rpartition("/")[2]
        main = base.removesuffix(ARRAYS)
        if main in ("", base):
            return None
        info, beside = source.stat(""), source.at("..").stat(main)
        is_part = info is not None and info.is_dir and beside is not None and not beside.is_dir
        return f"the file `{main}` beside it" if is_part else None

    def open(self, source: Source) -> Catalog:
        main = source.url.rstrip("/").rpartition("/")[2].removesuffix(ARRAYS)
        beside = source.at("..").at(main)
        from .file import FlaxMsgpack

        hint = None
        with suppress(CheckpointError, SourceError):
            hint = f"open {quote_text(FlaxMsgpack().open(beside).url)}"
        what = f"{source.url} holds arrays of the file `{main}` beside it, which names them"
        raise UnknownFormat(what, hint=hint)
