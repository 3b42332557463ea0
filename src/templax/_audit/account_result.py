"""The result of `account_bytes`, and its text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .._catalog.regions import BYTE_KINDS, ByteKind
from .._core.text import format_size, leaf_noun, list_examples
from .._escape import join_lines

MAX_ROWS = 20
"""Rows of each table that `str(account)` shows."""


@dataclass(frozen=True, slots=True)
class FileBytes:
    """A file of a checkpoint.

    Attributes:
        file: Path below `ByteAccount.url`; "" if the checkpoint is this file.
        nbytes: Its size, which is the sum of `kinds`.
        kinds: Kind → bytes. See `ByteAccount`.
    """

    file: str
    nbytes: int
    kinds: Mapping[ByteKind, int]


@dataclass(frozen=True, slots=True)
class LeafBytes:
    """A leaf of a checkpoint.

    Attributes:
        name: Its name.
        stored: Bytes of the files that hold its values, without those that an earlier leaf has.
        inline: Bytes of it that are inside an index, and count to that.
        nbytes: Bytes of its decoded values.
    """

    name: str
    stored: int
    inline: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class SharedBytes:
    """Leaves that share bytes, such as tied weights. They are counted once, for the first of them.

    Attributes:
        leaves: Their names, in the order of the checkpoint.
        nbytes: Bytes that more than one of them has.
    """

    leaves: tuple[str, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class PartBytes:
    """Bytes that are of one kind and for one purpose.

    Attributes:
        kind: See `ByteAccount`.
        what: What they are, in words of the format, such as "header".
        nbytes: How many there are, in all files.
    """

    kind: ByteKind
    what: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class Gap:
    """A byte range of a file to which nothing refers."""

    file: str
    start: int
    stop: int
    what: str


@dataclass(frozen=True, slots=True, repr=False)
class ByteAccount:
    """What every byte of the files of a checkpoint is for; each is counted once.

    The kinds are "leaf" (values), "index" (headers, indexes, metadata), "padding" (for alignment,
    or of a chunk at an edge), "gap" (nothing refers to it, in a file that is used) and "orphan" (in
    a file that nothing refers to).

    Attributes:
        url: The directory or file whose bytes are counted.
        format: See `Catalog`.
        nbytes: Size of all files, which is the sum of `kinds`.
        decoded: Bytes of the decoded values of all leaves.
        kinds: Kind → bytes.
        files: The files, the largest first.
        parts: What the bytes of each kind are, the largest first.
        leaves: The leaves, those that take the most bytes first.
        shared: Leaves that share bytes.
        gaps: Every gap.
        unread: Path → why a file or directory could not be measured. Its bytes are not in `nbytes`.

    `str()` shows all of this as tables.
    """

    url: str
    format: str
    nbytes: int
    decoded: int
    kinds: Mapping[ByteKind, int]
    files: tuple[FileBytes, ...]
    parts: tuple[PartBytes, ...]
    leaves: tuple[LeafBytes, ...]
    shared: tuple[SharedBytes, ...]
    gaps: tuple[Gap, ...]
    unread: Mapping[str, str]

    def __repr__(self) -> str:
        return f"ByteAccount({self.url!r}, {self.nbytes:,} bytes in {len(self.files):,} files)"

    def __str__(self) -> str:
        return format_account(self, "the attributes have them all")


def format_account(account: ByteAccount, rest: str, rows: int | None = MAX_ROWS) -> str:
    """The text of `str(account)`.

    Args:
        account: The account.
        rest: Says where to find the rows that are left out.
        rows: Rows of each table; None for all.
    """
    n = len(account.files)
    noun = "file" if n == 1 else "files"
    lines = [f"{account.url} ({account.format}): {account.nbytes:,} bytes in {n:,} {noun}"]
    lines += _align([_describe_kind(account, kind) for kind in BYTE_KINDS], "lrrl")
    lines += [f"NOT MEASURED: {file}: {problem}" for file, problem in account.unread.items()]
    for title, table, columns in (
        ("File", [_describe_file(account, file) for file in account.files[:rows]], "lrrrrrr"),
        ("Leaf", [_describe_leaf(leaf) for leaf in account.leaves[:rows]], "lrrrl"),
    ):
        whole = len(account.files if title == "File" else account.leaves)
        if table:
            head = ["Leaf", "stored", "decoded", "ratio", ""]
            if title == "File":
                head = ["File", "size", *BYTE_KINDS]
            lines += ["", *_align([head, *table], columns), *_say_more(whole - len(table), rest)]
    if account.parts:
        table = [[part.kind, part.what, f"{part.nbytes:,}"] for part in account.parts[:rows]]
        lines += ["", *_align([["Kind", "what", "bytes"], *table], "llr")]
        lines += _say_more(len(account.parts) - len(table), rest)
    if account.shared:
        lines.append("")
    for shared in account.shared[:rows]:
        names = list_examples([f"`{name}`" for name in shared.leaves[:4]], len(shared.leaves))
        lines.append(f"{shared.nbytes:,} bytes are shared by {names}")
    if account.gaps:
        table = [[g.file, f"{g.start:,}", f"{g.stop:,}", g.what] for g in account.gaps[:rows]]
        lines += ["", *_align([["Gap in", "start", "stop", ""], *table], "lrrl")]
        lines += _say_more(len(account.gaps) - len(table), rest)
    return join_lines(lines)


def _describe_kind(account: ByteAccount, kind: ByteKind) -> list[str]:
    nbytes = account.kinds[kind]
    share = f"{100 * nbytes / account.nbytes:.1f} %" if account.nbytes else ""
    note = ""
    if kind == "leaf":
        n = len(account.leaves)
        note = f"{n:,} {leaf_noun(n)}, {format_size(account.decoded)} decoded"
        inline = sum(leaf.inline for leaf in account.leaves)
        if inline:
            note += f"; {inline:,} bytes more are inside an index"
        elif account.decoded:
            note += f", stored in {nbytes / account.decoded:.3f} of that"
    return [f"  {kind}", f"{nbytes:,}", share, note]


def _describe_file(account: ByteAccount, file: FileBytes) -> list[str]:
    name = file.file or account.url.rstrip("/").rpartition("/")[2]
    kinds = [f"{file.kinds[kind]:,}" if file.kinds.get(kind) else "" for kind in BYTE_KINDS]
    return [name, f"{file.nbytes:,}", *kinds]


def _describe_leaf(leaf: LeafBytes) -> list[str]:
    stored = leaf.stored + leaf.inline
    ratio = f"{stored / leaf.nbytes:.3f}" if leaf.nbytes else ""
    note = f"{leaf.inline:,} of them inside an index" if leaf.inline else ""
    return [leaf.name, f"{stored:,}", f"{leaf.nbytes:,}", ratio, note]


def _say_more(n: int, rest: str) -> list[str]:
    return [f"and {n:,} more ({rest})"] if n > 0 else []


def _align(rows: list[list[str]], columns: str) -> list[str]:
    """Rows as lines, with columns to the left ("l") or to the right ("r")."""
    widths = [min(max(len(row[i]) for row in rows), 100) for i in range(len(columns))]
    return [
        "  ".join(
            text.ljust(width) if side == "l" else text.rjust(width)
            for text, width, side in zip(row, widths, columns, strict=True)
        ).rstrip()
        for row in rows
    ]
