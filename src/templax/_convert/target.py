"""The checkpoint that a conversion writes: from its leaves to the commit."""

from __future__ import annotations

import os
import time
from dataclasses import replace

from .._core.progress import Progress
from .._core.text import format_size
from .._save.item import Item, put_files
from .._save.jobs import WriteOptions
from .._save.write_formats import make_item
from ..errors import SaveError
from ..formats.orbax.directory import COMMITTED
from ..formats.orbax.extra_content import list_extra_content
from ..formats.orbax.write import STANDARD, encode_commit_files
from ..storage.leftovers import Leftover, remove_abandoned
from ..storage.open import is_remote
from ..storage.open_sink import open_staging
from ..storage.sink import PreviewedSink
from ..storage.source import Source
from ..storage.staging import Staging
from .journal import Head, Journal
from .leftovers import digest, find_leftover
from .options import ConvertOptions
from .read import LeafReader
from .select import Selection

_ADVICE_ON_SAVES = (": pass it in metadata=", ": save jax.random.key_data")
"""Parts of errors of `save`, that `convert` has no use for."""


def plan_files(chosen: Selection, options: ConvertOptions) -> Item:
    """Plans the files.

    Raises:
        SaveError: The format can't store some leaves; names them.
        UsageError: The leaves don't fit into one file of the size that was asked for.
    """
    save = replace(options.save, metadata=chosen.metadata)
    try:
        return make_item("", chosen.leaves, chosen.empties, save, chunk_bytes=options.chunk_size)
    except SaveError as error:
        what = error.what
        for advice in _ADVICE_ON_SAVES:
            what = what.replace(advice, "")
        # Leaving leaves out does not help against what is wrong with the whole tree.
        is_of_leaves = error.leaf is not None or what.startswith("This tree can't be saved: `")
        hint = "skip= leaves them out" if is_of_leaves else error.hint
        raise SaveError(what, leaf=error.leaf, file=error.file, hint=hint) from error


class Target:
    """A checkpoint that is being written. Leaving a `with` block discards what is not committed.

    Args:
        chosen: What is to be written.
        options: How.
        item: The plan of the files.
        reader: Reads the values.
        source: See `Head`; None if a later process can't tell whether it reads the same.

    Attributes:
        resumed_bytes, restarted: See `Converted`.
        nbytes: Bytes of all files. Valid after `finish`.

    Raises:
        AlreadyExists: Something is at the path.
        SaveError: Another process is converting to this path, the disk is too small or refused.
    """

    def __init__(
        self,
        chosen: Selection,
        options: ConvertOptions,
        item: Item,
        reader: LeafReader,
        source: str | None,
    ):
        self._item, self._metadata, self._options = item, chosen.metadata, options.save
        self._begun_ns = time.time_ns()
        self.nbytes, self.restarted = 0, None
        save = options.save
        leftover: Leftover | None = None
        read = [(name, entry.name) for name, entry in chosen.entries.items()]
        identity = digest(
            (options.identity, item.facts, read, chosen.empties, dict(chosen.metadata))
        )
        if source is not None and not is_remote(options.path):
            leftover, self.restarted = find_leftover(options.path, source, identity)
        sink = open_staging(
            options.path,
            overwrite=save.overwrite,
            single=save.single,
            leftover=leftover,
            others=list_extra_content,
            storage=save.storage,
        )
        self._sink = sink
        try:
            self._journal = None
            if isinstance(sink, Staging) and source is not None:
                resume = leftover is not None
                self._journal = Journal(sink.directory, reader.overflows, resume=resume)
            write = WriteOptions(
                process=0,
                level=save.level,
                threads=save.threads,
                memory=save.memory,
                forget=False,
                reader=reader,
                journal=self._journal,
                data=None if is_remote(options.path) else digest((source, identity))[:32],
            )
            item.open(sink, write, only_process=True)
            self.resumed_bytes = item.writer.found
            self._check_space()
            if isinstance(sink, Staging) and self._journal is not None and source is not None:
                sink.sync_names()  # a journal without these files would be believed
                self._journal.begin(Head(source, identity, tuple(sink.keys)))
        except BaseException:
            self.discard()
            raise

    def _check_space(self) -> None:
        """Refuses what the disk has no room for, before it is written."""
        if self._options.level is not None or not isinstance(self._sink, Staging):
            return
        # What a killed call had written has its room, whether its journal tells of it or not.
        needed = self._item.writer.total - self._sink.count_allocated()
        free = _find_room(self._sink.directory)
        if free is not None and needed > free:  # killed saves may take the room
            remove_abandoned(self._sink.path)
            free = _find_room(self._sink.directory)
        if free is not None and needed > free:
            raise SaveError(
                f"Expected room for {format_size(needed)}, found {format_size(free)}",
                file=self._sink.path,
                hint="make room, or convert to another disk",
            )

    def preview(self) -> str | Source:
        """A source or path by which to open the checkpoint before the commit."""
        sink = self._sink
        if isinstance(sink, PreviewedSink):
            return sink.preview()
        assert isinstance(sink, Staging)
        if self._options.format != "orbax" and len(sink.keys) == 1:
            return os.path.join(sink.directory, sink.keys[0])
        return sink.directory

    def write(self, progress: Progress | None) -> None:
        """Reads and writes all values.

        Raises:
            CheckpointError, SourceError: A leaf can't be read.
            SaveError: The disk refused.
        """
        self._item.writer.start()
        self._item.writer.wait(progress)

    def finish(self) -> list[int]:
        """Writes everything except the values; the crc32c of each leaf.

        Raises:
            SaveError: The disk refused.
        """
        item, sink = self._item, self._sink
        if self._options.format != "orbax":
            small, total, crcs = item.describe(item.data_files, {})
        else:
            about = {"custom_metadata": self._metadata}
            commit = encode_commit_files(STANDARD, self._begun_ns, time.time_ns(), about)
            small, total, crcs = item.describe(item.data_files, commit)
            small |= commit
            small[COMMITTED] = f"Checkpoint commit was successful to {sink.path}".encode()
        self.nbytes = total + put_files(sink, small)
        return crcs

    def commit(self) -> tuple[str, tuple[str, ...]]:
        """Makes the checkpoint visible. Returns its path, and what could not be removed.

        Raises:
            AlreadyExists: Something has appeared at the path meanwhile.
            SaveError: The disk refused.
        """
        if self._journal is not None:
            self._journal.remove()
        self._sink.commit()
        return self._sink.path, self._sink.not_removed

    def discard(self) -> None:
        """Stops the threads, and removes what was written unless it is committed. Idempotent."""
        self._item.stop()
        if self._journal is not None:
            self._journal.close()
        self._sink.discard()

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *exc: object) -> None:
        self.discard()


def _find_room(directory: str) -> int | None:
    """Bytes that can be written to a disk; None if it does not say."""
    try:
        stats = os.statvfs(directory)
    except OSError:
        return None
    return stats.f_bavail * stats.f_frsize
