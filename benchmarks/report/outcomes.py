"""What was measured, and its summary in numbers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..files import list_files
from ..measure.sample import Sample


class Summary(NamedTuple):
    """One number over all rounds. The minimum shows the code, the median the machine as well."""

    median: float
    q1: float
    q3: float
    min: float


@dataclass
class Row:
    """One library on one workload.

    Attributes:
        kind: The kind of file that it restored or wrote.
        own_file: It can't read the workload's file, so it restored the same tree from its own.
        nbytes: Bytes of the tree that it returns or saves.
        files: Number of files in the checkpoint.
        file_bytes: Their total size.
        timed: One sample per round. A slow saver sits out the last rounds.
        first_s: Seconds of first restores, each in a new process.
        untimed: The samples before and after, whose results were compared.
        trouble: `"failed: …"` or `"wrong: …"`, or empty.
        notes: What the library says about its run.
        requests, moved_bytes: What passed between it and an object store in one restore or save;
            None for local files.
    """

    library: str
    kind: str
    own_file: bool
    nbytes: int = 0
    files: int = 0
    file_bytes: int = 0
    timed: list[Sample] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    untimed: list[Sample] = field(default_factory=list)
    trouble: str = ""
    notes: list[str] = field(default_factory=list)
    requests: int | None = None
    moved_bytes: int | None = None

    def count_files(self, checkpoint: Path) -> None:
        """Records the number and the size of the checkpoint's files."""
        found = list_files(checkpoint)
        self.files, self.file_bytes = len(found), sum(file.stat().st_size for file in found)

    @property
    def seconds(self) -> Summary:
        return summarize([sample.seconds for sample in self.timed])

    @property
    def stall_s(self) -> Summary | None:
        """None for restores, and for saves that do all of their work within the call."""
        stalls = [sample.stall_s for sample in self.timed if sample.stall_s is not None]
        return summarize(stalls) if stalls else None

    @property
    def cpu_s(self) -> Summary:
        return summarize([sample.cpu_s for sample in self.timed])

    @property
    def read_bytes(self) -> float:
        return statistics.median(sample.read_bytes for sample in self.timed)

    @property
    def peak_rss_bytes(self) -> int:
        return max(sample.peak_rss_bytes for sample in self.timed + self.untimed)

    @property
    def peak_anon_bytes(self) -> int | None:
        """None for saves, where it is not measured."""
        return max(
            (s.peak_anon_bytes for s in self.untimed if s.peak_anon_bytes is not None), default=None
        )


@dataclass(frozen=True)
class Outcome:
    """All rows of a workload; ratios divide by the first.

    Attributes:
        fresh: Each sample was a whole process.
        saved: Saves were measured, not restores.
    """

    workload: str
    about: str
    fresh: bool
    leaves: int
    nbytes: int
    rows: list[Row]
    saved: bool = False

    def ratio(self, row: Row) -> Summary | None:
        """Seconds over those of the first library, per round. None if either of them failed."""
        first = self.rows[0]
        if first.trouble or row.trouble:
            return None
        # A library with fewer samples sat out the last rounds.
        pairs = zip(row.timed, first.timed, strict=False)
        return summarize([theirs.seconds / ours.seconds for theirs, ours in pairs])

    def first_ratio(self, row: Row) -> Summary | None:
        """As `ratio`, for first restores of new processes. None if they were not timed."""
        pairs = list(zip(row.first_s, self.rows[0].first_s, strict=False))
        return summarize([theirs / ours for theirs, ours in pairs]) if pairs else None

    @property
    def first_to_stall(self) -> Row | None:
        """The first library that saves in the background, whose stalls divide the others."""
        return next((row for row in self.rows if not row.trouble and row.stall_s), None)

    def stall_ratio(self, row: Row) -> Summary | None:
        """As `ratio`, for stalls. None if this library or every library saves within the call."""
        first = self.first_to_stall
        if first is None or row.trouble:
            return None
        pairs = zip(row.timed, first.timed, strict=False)
        ratios = [a.stall_s / b.stall_s for a, b in pairs if a.stall_s and b.stall_s]
        return summarize(ratios) if ratios else None

    @property
    def notes(self) -> list[str]:
        return [note for row in self.rows for note in row.notes]


def summarize(numbers: Sequence[float]) -> Summary:
    if len(numbers) < 2:
        return Summary(*[numbers[0]] * 4)
    q1, median, q3 = statistics.quantiles(numbers, n=4, method="inclusive")
    return Summary(median, q1, q3, min(numbers))


def collect_facts(outcome: Outcome) -> dict[str, Any]:
    """All samples and their summaries, for JSON."""
    return {
        "workload": outcome.workload,
        "about": outcome.about,
        "leaves": outcome.leaves,
        "bytes": outcome.nbytes,
        "first": outcome.rows[0].library,
        "libraries": {row.library: _collect_row_facts(outcome, row) for row in outcome.rows},
    }


def _collect_row_facts(outcome: Outcome, row: Row) -> dict[str, Any]:
    result = {
        "ok": not row.trouble,
        "trouble": row.trouble,
        "file": row.kind,
        "own_file": row.own_file,
        "files": row.files,
        "file_bytes": row.file_bytes,
        "bytes": row.nbytes,
        "notes": row.notes,
        "samples": [asdict(sample) for sample in row.timed],
        "first_s": row.first_s,
        "untimed": [asdict(sample) for sample in row.untimed],
    }
    if row.trouble:
        return result

    def to_dict(numbers: Summary | None) -> dict[str, float] | None:
        return None if numbers is None else numbers._asdict()

    return result | {
        "seconds": row.seconds._asdict(),
        "ratio": to_dict(outcome.ratio(row)),
        "stall_s": to_dict(row.stall_s),
        "stall_ratio": to_dict(outcome.stall_ratio(row)),
        "first_ratio": to_dict(outcome.first_ratio(row)),
        "cpu_s": row.cpu_s._asdict(),
        "peak_rss_bytes": row.peak_rss_bytes,
        "peak_anon_bytes": row.peak_anon_bytes,
        "read_bytes": row.read_bytes,
        "requests": row.requests,
        "moved_bytes": row.moved_bytes,
    }
