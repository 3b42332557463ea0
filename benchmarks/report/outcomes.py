"""What was measured, and the numbers that sum it up."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..files import files_under
from ..measure.sample import Sample


class Summary(NamedTuple):
    """Of one number over the rounds. The minimum is closer to the code, the median to the box."""

    median: float
    q1: float
    q3: float
    min: float


@dataclass
class Row:
    """One library on one workload.

    Attributes:
        kind: The file it restored, or wrote.
        own_file: It can't read the workload's file, so this is the same tree in its own.
        nbytes: Of what it returns, or saves.
        files: How many the checkpoint is.
        file_bytes: Of all of them.
        timed: One sample per round. A slow saver sits out the last rounds.
        untimed: Those whose results were compared, before and after.
        trouble: `"failed: …"` or `"wrong: …"`, or empty.
        notes: What the library says of itself.
    """

    library: str
    kind: str
    own_file: bool
    nbytes: int = 0
    files: int = 0
    file_bytes: int = 0
    timed: list[Sample] = field(default_factory=list)
    untimed: list[Sample] = field(default_factory=list)
    trouble: str = ""
    notes: list[str] = field(default_factory=list)

    def wrote(self, checkpoint: Path) -> None:
        """Counts the files of its checkpoint."""
        found = files_under(checkpoint)
        self.files, self.file_bytes = len(found), sum(file.stat().st_size for file in found)

    @property
    def seconds(self) -> Summary:
        return summary([sample.seconds for sample in self.timed])

    @property
    def stall_s(self) -> Summary | None:
        """None of a restore, and of a save that returns when it has ended."""
        stalls = [sample.stall_s for sample in self.timed if sample.stall_s is not None]
        return summary(stalls) if stalls else None

    @property
    def cpu_s(self) -> Summary:
        return summary([sample.cpu_s for sample in self.timed])

    @property
    def read_bytes(self) -> float:
        return statistics.median(sample.read_bytes for sample in self.timed)

    @property
    def peak_rss_bytes(self) -> int:
        return max(sample.peak_rss_bytes for sample in self.timed + self.untimed)

    @property
    def peak_anon_bytes(self) -> int | None:
        """None of saves, where nobody looked."""
        return max(
            (s.peak_anon_bytes for s in self.untimed if s.peak_anon_bytes is not None), default=None
        )


@dataclass(frozen=True)
class Outcome:
    """All rows of a workload. The first library is what the others are divided by.

    Attributes:
        fresh: Each sample was a process.
        saved: What was measured is saves.
    """

    workload: str
    about: str
    fresh: bool
    leaves: int
    nbytes: int
    rows: list[Row]
    saved: bool = False

    def ratio(self, row: Row) -> Summary | None:
        """Of each round: seconds of this library over those of the first. None if either failed."""
        first = self.rows[0]
        if first.trouble or row.trouble:
            return None
        # Who has fewer samples has those of the first rounds.
        pairs = zip(row.timed, first.timed, strict=False)
        return summary([theirs.seconds / ours.seconds for theirs, ours in pairs])

    @property
    def first_to_stall(self) -> Row | None:
        """The first library whose saves go on behind the call: what other stalls are divided by."""
        return next((row for row in self.rows if not row.trouble and row.stall_s), None)

    def stall_ratio(self, row: Row) -> Summary | None:
        """As `ratio`, of stalls. None if there is none to divide, or to divide by."""
        first = self.first_to_stall
        if first is None or row.trouble:
            return None
        pairs = zip(row.timed, first.timed, strict=False)
        ratios = [a.stall_s / b.stall_s for a, b in pairs if a.stall_s and b.stall_s]
        return summary(ratios) if ratios else None

    @property
    def notes(self) -> list[str]:
        return [note for row in self.rows for note in row.notes]


def summary(numbers: Sequence[float]) -> Summary:
    if len(numbers) < 2:
        return Summary(*[numbers[0]] * 4)
    q1, median, q3 = statistics.quantiles(numbers, n=4, method="inclusive")
    return Summary(median, q1, q3, min(numbers))


def facts(outcome: Outcome) -> dict[str, Any]:
    """Everything, for JSON."""
    return {
        "workload": outcome.workload,
        "about": outcome.about,
        "leaves": outcome.leaves,
        "bytes": outcome.nbytes,
        "first": outcome.rows[0].library,
        "libraries": {row.library: _row_facts(outcome, row) for row in outcome.rows},
    }


def _row_facts(outcome: Outcome, row: Row) -> dict[str, Any]:
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
        "untimed": [asdict(sample) for sample in row.untimed],
    }
    if row.trouble:
        return result

    def maybe(numbers: Summary | None) -> dict[str, float] | None:
        return None if numbers is None else numbers._asdict()

    return result | {
        "seconds": row.seconds._asdict(),
        "ratio": maybe(outcome.ratio(row)),
        "stall_s": maybe(row.stall_s),
        "stall_ratio": maybe(outcome.stall_ratio(row)),
        "cpu_s": row.cpu_s._asdict(),
        "peak_rss_bytes": row.peak_rss_bytes,
        "peak_anon_bytes": row.peak_anon_bytes,
        "read_bytes": row.read_bytes,
    }
