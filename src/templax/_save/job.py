"""One save from its snapshot to its commit, by one process or by all of a job."""

from __future__ import annotations

import functools
import logging
import time
import zlib
from collections.abc import Callable, Mapping

import msgspec
import numpy as np

from .._catalog.fingerprint import Fingerprint
from .._core.gc_pause import pause_gc
from .._hosts.agreement import Hosts
from .._hosts.offers import describe_different_values
from ..errors import SaveError
from ..formats.orbax.directory import COMMITTED
from ..formats.orbax.extra_content import list_extra_content
from ..formats.orbax.write import JSON, Files, encode_commit_files
from ..storage.open import is_remote
from ..storage.open_sink import join_staging, open_staging
from ..storage.sink import SharedSink, Sink
from .contents import Content, File, ForeignItem, Group, Tree
from .destination import Destination, await_directory, check_destination
from .fingerprint import combine_saved
from .foreign_items import ForeignItems
from .item import Item, Json, Share, put_files
from .jobs import WriteOptions
from .local_values import Selected, digest_leaves, digest_small, find_difference, select_large
from .options import SaveOptions
from .result import Outcome, clear_tracebacks
from .snapshot import collect_leaves, copy_values
from .write_formats import make_item

Result = tuple[int, list[list[int]]]
"""Bytes of all files; and for each item, the crc32c of each leaf."""

_log = logging.getLogger("templax")


class Job:
    """One save: `begin` in the caller's thread, then `run`; `abort` if either is interrupted.

    Args:
        call: The call that saves, of all processes of the job.
        path: What is saved to, as far as it is known before `begin`.
        options: How to save.

    Attributes:
        outcome: What becomes of the save.
    """

    def __init__(self, call: Hosts, path: str, options: SaveOptions):
        self._hosts, self._options, self._background = call, options, False
        self._begun_ns = time.time_ns()
        self._sink: Sink | None = None
        self._items: list[Item] = []
        self._foreign = ForeignItems()
        self._handlers: dict[str, str] = {}
        self._parts: list[str] = []  # the directories in those of items
        self._documents: Files = {}
        self._large: list[Selected] = []  # of each item, on processes other than 0
        self._all_written = False
        self.outcome = Outcome(path)

    def begin(
        self,
        items: Mapping[str, Content],
        decide: Callable[[], Destination],
        *,
        background: bool,
        earlier: SaveError | None = None,
    ) -> None:
        """Collects the leaves, stages the checkpoint and starts the first writer.

        Args:
            items: Name → content. The name "" stands for the checkpoint itself, or for the
                item that `decide` names, and must be the only one.
            decide: Decides where the save goes; called by process 0 once all have come.
            background: Whether the values must be safe from later changes when this returns.
            earlier: The error of an earlier save that no caller has seen yet.
        """
        begin = time.perf_counter()
        self._background = background
        with pause_gc():
            for name, item in items.items():
                self._add_item(name, item)
            reply = self._meet_others(earlier, decide)
        leaves = [leaf for item in self._items for leaf in item.leaves]
        try:
            if self._sink is None:
                self._sink = self._join_sink(reply)
            if background:
                copy_values(leaves, self._options.threads)
            with pause_gc():
                if self._hosts.index > 0:
                    self._large = [select_large(item.leaves) for item in self._items]
                self._open_items()
            self._foreign.begin(self._sink)
        except Exception as error:
            agreed, _ = self._hosts.settle(error, done=False)
            if agreed is error:
                raise
            raise agreed from error
        self.outcome.path = self._sink.path
        self.outcome.leaves = len(leaves)
        self._snapshot_s = time.perf_counter() - begin

    def _add_item(self, name: str, item: Content) -> None:
        if isinstance(item, Group):
            directory = f"{name}/" if name else ""
            for part, content in item.parts.items():
                self._add_part(directory + part, content)
                self._parts.append(directory + part)
            self._handlers[name] = item.handler
        elif isinstance(item, ForeignItem):
            self._foreign.add(name, item)
            self._handlers[name] = item.handler
        else:
            self._handlers[name] = self._add_part(name, item)

    def _add_part(self, name: str, item: Content) -> str:
        """Adds what one directory holds; returns its handler."""
        if isinstance(item, (Json, File)):
            directory = f"{name}/" if name else ""
            is_json = isinstance(item, Json)
            self._documents[directory + item.file] = item.encode(name) if is_json else item.data
            return JSON if is_json else item.handler
        tree = item if isinstance(item, Tree) else Tree(item)
        leaves, empties = collect_leaves(tree.value)
        if tree.shardings is not None:
            for leaf in leaves:
                leaf.sharding = tree.shardings.get(leaf.name)
        made = make_item(name, leaves, empties, self._options, tree=tree.value)
        made.metadata, made.empty_tuples = tree.metadata, tree.empty_tuples
        self._items.append(made)
        return tree.handler

    def _meet_others(self, earlier: SaveError | None, decide: Callable[[], Destination]) -> bytes:
        """Waits until all processes save the same; returns what process 0 tells of its sink."""
        job, options = self._hosts, self._options
        leaves = [leaf for item in self._items for leaf in item.leaves]
        elsewhere = [leaf.name for leaf in leaves if leaf.tile is not None]
        if job.count == 1:
            if elsewhere:
                raise SaveError(
                    "Expected values that this process has all of, got others with alone=True",
                    leaf=elsewhere[0],
                )
            return job.join(earlier=earlier, make_reply=lambda: self._open_sink(decide))
        facts = {
            "items": ", ".join(f"`{name}`" for name in sorted(self._handlers)) or "none",
            "metrics=": "no metrics" if options.metrics is None else "metrics",
            "overwrite=": str(options.overwrite),
            "compression level": str(options.level),
        }
        noted = {
            "metrics": options.metrics,
            "metadata": options.metadata,
            "JSON items": self._documents,
        }
        notes = {name: f"{zlib.crc32(repr(value).encode()):08x}" for name, value in noted.items()}
        return job.join(
            facts,
            notes=notes,
            leaves=self._digest_facts(),
            values=digest_small(leaves),
            name_leaf=lambda i: leaves[i].name,
            earlier=earlier,
            local=not elsewhere,
            make_reply=lambda: self._open_sink(decide),
        )

    def _open_sink(self, decide: Callable[[], Destination]) -> bytes:
        """Makes the sink on process 0. Returns what the others need to add their files."""
        job, options = self._hosts, self._options
        url, name = decide()
        self._name_item(name)
        keeps = options.keeps_others
        if not isinstance(url, Sink):
            replaces = options.overwrite and not options.single
            check_destination(url, options.storage, replaces=replaces, keeps=keeps)
        self._sink = sink = open_staging(
            url,
            overwrite=options.overwrite,
            single=options.single,
            others=list_extra_content,
            keeps=keeps,
            storage=options.storage,
        )
        if job.count == 1:
            return b""
        if not isinstance(sink, SharedSink):
            raise SaveError("Several processes can't save to a sink of your own", file=sink.path)
        owners = [item.single_owners for item in self._items]
        return msgspec.msgpack.encode((sink.path, sink.directory, name, owners))

    def _join_sink(self, told: bytes) -> Sink:
        """The sink of another process than 0."""
        kind = tuple[str, str, str, list[list[tuple[int, int]]]]
        path, directory, name, owners = msgspec.msgpack.decode(told, type=kind)
        self._name_item(name)
        for item, single_owners in zip(self._items, owners, strict=True):
            item.set_owners(single_owners)
        if not is_remote(path):
            await_directory(directory, path, self._hosts)
        return join_staging(path, directory, self._options.storage)

    def _name_item(self, name: str) -> None:
        """Names the only item as `Destination` says, and adds the metrics beside it."""
        if name:
            self._handlers = {name: self._handlers.pop("")}
            for item in self._items:
                item.rename(name)
        metrics = self._options.metrics
        if metrics is not None:
            self._add_item("metrics", Json(metrics, "metrics"))

    def _digest_facts(self) -> bytes:
        """See `Call.leaves`."""
        encode = msgspec.msgpack.Encoder().encode
        facts = [fact for item in self._items for fact in item.facts]
        return np.fromiter((zlib.crc32(encode(f)) for f in facts), "<u4", len(facts)).tobytes()

    def _open_items(self) -> None:
        """Makes the data files, and starts the threads that write the first of them."""
        assert self._sink is not None
        job, options = self._hosts, self._options
        written = WriteOptions(
            job.index, options.level, options.threads, options.memory, forget=self._background
        )
        for item in self._items:
            item.open(self._sink, written, only_process=job.count == 1)
        for item in self._items[:1]:
            item.writer.start()

    def run(self) -> None:
        """Writes and commits, and leaves the result or the error in `outcome`.

        Re-raises BaseExceptions such as KeyboardInterrupt.
        """
        try:
            with self._hosts:
                self._write_and_commit()
                self._run_callback()
        except BaseException as error:
            self.abort(error)
            if not isinstance(error, Exception):
                raise
        finally:
            self._items = []
            self.outcome.end()

    def _run_callback(self) -> None:
        """Calls `SaveOptions.after`. The checkpoint stays committed if that fails."""
        try:
            if self._options.after is not None:
                self._options.after(self._hosts)
        except BaseException as error:
            self._hosts.fail(error)  # the others may wait for what it would have told them
            self.outcome.error = error
            if not isinstance(error, Exception):
                raise

    def abort(self, error: BaseException) -> None:
        """Discards what was written, stops the threads, and passes the error to all that wait for
        this save, in this process and in the others. Idempotent.
        """
        self._foreign.stop()  # first: it would write to a directory that is being removed
        if self._sink is not None:
            self._sink.discard()
        for item in self._items:
            item.stop()
        try:
            self._hosts.fail(error)
        finally:
            self._hosts.close()
        clear_tracebacks(error)
        self.outcome.error = error
        self.outcome.end()

    def _write_and_commit(self) -> None:
        begin = time.perf_counter()
        try:
            self._write_data_files()
            written = time.perf_counter()
            result = self._commit()
        except Exception as error:
            if self._hosts.index == 0:
                raise
            written = time.perf_counter()
            result = self._find_result_of_others(error)
        ended = time.perf_counter()
        self.outcome.nbytes, crcs = result
        self.outcome.combine = self._prepare_fingerprint(crcs)
        self.outcome.stages = {
            "snapshot": self._snapshot_s,
            "encode": sum(item.writer.encode_s for item in self._items),
            "write": written - begin,
            "commit": ended - written,
        }

    def _find_result_of_others(self, error: Exception) -> Result:
        """The result, if process 0 committed although this process failed; else raises the error.

        Process 0 needs nothing of a process that has told it what it wrote.
        """
        agreed, committed = self._hosts.settle(error, done=self._all_written)
        if committed is None:
            raise agreed
        _log.warning(
            "%s is saved; process %d then failed: %s", self.outcome.path, self._hosts.index, error
        )
        return msgspec.msgpack.decode(committed, type=Result)

    def _write_data_files(self) -> None:
        """Writes the data files, one after the other, each with all threads."""
        job, progress, done = self._hosts, self._options.on_progress, 0
        total = sum(item.writer.total for item in self._items)

        def report(written: int, _: int) -> None:
            job.check()
            if progress is not None:
                progress(done + written, total)

        for number, item in enumerate(self._items):
            if number > 0:
                item.writer.start()
            item.writer.wait(None if progress is None and job.count == 1 else report)
            done += item.writer.total
        self._foreign.wait()

    def _prepare_fingerprint(self, crcs: list[list[int]]) -> Callable[[], Fingerprint]:
        """What makes the fingerprint of the tree; of several items, that of the dict of their
        trees. It holds the leaves, but not their values.
        """
        several = len(self._items) > 1
        saved = [(item.name if several else None, item.leaves) for item in self._items]
        for _, leaves in saved:
            for leaf in leaves:
                leaf.pieces = ()
        return functools.partial(combine_saved, saved, crcs)

    def _commit(self) -> Result:
        """Writes the remaining files, and commits; in a job process 0 does, for all."""
        job, sink = self._hosts, self._sink
        assert sink is not None
        if job.count == 1:
            self._foreign.finalize()
            with pause_gc():
                result = self._write_small_files([item.data_files for item in self._items])
            sink.commit()
            return result
        own_shares = [item.finish_share() for item in self._items]
        for share, large in zip(own_shares, self._large, strict=False):
            share.values = digest_leaves(large)
        if job.index > 0:
            sink.commit()  # brings this process's data files to the disk
        gathered = job.gather("writing", msgspec.msgpack.encode(own_shares))
        self._all_written = True
        if job.index > 0:
            return msgspec.msgpack.decode(job.announce("committing"), type=Result)
        shares = [msgspec.msgpack.decode(data, type=list[Share]) for data in gathered]
        self._foreign.finalize()
        with pause_gc():
            files = [
                item.merge_shares(sink, [share[number] for share in shares])
                for number, item in enumerate(self._items)
            ]
            result = self._write_small_files(files)
        self._compare_values(shares, result[1])
        self._commit_and_tell(sink, msgspec.msgpack.encode(result))
        return result

    def _commit_and_tell(self, sink: Sink, result: bytes) -> None:
        """Commits on process 0. Once that is done, the others hear it, whatever happens here."""
        late: BaseException | None = None
        while True:
            try:
                if late is None:
                    sink.commit()
                self._hosts.announce("committing", result, again=late is not None)
                break
            except BaseException as error:
                committed = isinstance(sink, SharedSink) and sink.committed
                if late is not None or not committed:
                    raise
                late = error
        if late is None:
            return
        if not isinstance(late, Exception):
            raise late
        _log.warning("%s is saved; process 0 then failed: %s", sink.path, late)

    def _compare_values(self, shares: list[list[Share]], crcs: list[list[int]]) -> None:
        """Refuses to commit if a process holds another value of what process 0 has saved.

        Small values were compared before anything was written.
        """
        assert self._sink is not None
        for index, own in enumerate(shares):
            for item, share, saved in zip(self._items, own, crcs, strict=True):
                leaf = find_difference(share.values, saved)
                if leaf is not None:
                    name, path = item.leaves[leaf].name, self._sink.path
                    raise describe_different_values(name, index, path).to_exception()

    def _write_small_files(self, files: list[list[tuple[str, int]]]) -> Result:
        """Writes everything except the arrays, and the file that marks the checkpoint as whole.

        Args:
            files: For each item, the path and size of each data file.

        Returns:
            Bytes of all files; and for each item, the crc32c of each leaf.
        """
        assert self._sink is not None
        if self._options.format != "orbax":
            (item,) = self._items
            small, total, leaf_crcs = item.describe(files[0], {})
            return total + put_files(self._sink, small), [leaf_crcs]
        about = {
            "custom_metadata": self._options.metadata,
            "metrics": self._options.metrics,
        }
        whole = self._handlers.get("")  # set if the only item is the checkpoint itself
        commit: Files = {}
        if self._options.whole:
            ended_ns = time.time_ns()
            commit = encode_commit_files(whole or self._handlers, self._begun_ns, ended_ns, about)
        small = dict(self._documents)
        total, crcs = 0, list[list[int]]()
        for item, parts in zip(self._items, files, strict=True):
            described, nbytes, leaf_crcs = item.describe(parts, {} if item.name else commit)
            small |= described
            total += nbytes
            crcs.append(leaf_crcs)
        if not self._options.whole:
            return total + put_files(self._sink, small), crcs
        small |= commit | dict.fromkeys(self._options.marks, b"")
        marker = f"Checkpoint commit was successful to {self._sink.path}".encode()
        for name in (*self._handlers, *self._parts):
            small[f"{name}/{COMMITTED}" if name else COMMITTED] = marker
        small[COMMITTED] = small.pop(COMMITTED, marker)  # written after all other files
        return total + put_files(self._sink, small), crcs
