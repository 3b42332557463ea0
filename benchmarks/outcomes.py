"""What was measured, and the numbers that sum it up."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .files import files_under
from .worker import Sample


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
        kind: The file it restored.
        own_file: It can't read the workload's file, so this is the same tree in its own.
        nbytes: Of what it returns.
        files: How many the checkpoint is.
        file_bytes: Of all of them.
        timed: One sample per round.
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
    def cpu_s(self) -> Summary:
        return summary([sample.cpu_s for sample in self.timed])

    @property
    def read_bytes(self) -> float:
        return statistics.median(sample.read_bytes for sample in self.timed)

    @property
    def peak_rss_bytes(self) -> int:
        return max(sample.peak_rss_bytes for sample in self.timed + self.untimed)

    @property
    def peak_anon_bytes(self) -> int:
        return max(sample.peak_anon_bytes or 0 for sample in self.untimed)


@dataclass(frozen=True)
class Outcome:
    """All rows of a workload. The first library is what the others are divided by."""

    workload: str
    about: str
    fresh: bool
    leaves: int
    nbytes: int
    rows: list[Row]

    def ratio(self, row: Row) -> Summary | None:
        """Of each round: seconds of this library over those of the first. None if either failed."""
        first = self.rows[0]
        if first.trouble or row.trouble:
            return None
        pairs = zip(row.timed, first.timed, strict=True)
        return summary([theirs.seconds / ours.seconds for theirs, ours in pairs])

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
    ratio = outcome.ratio(row)
    return result | {
        "seconds": row.seconds._asdict(),
        "ratio": None if ratio is None else ratio._asdict(),
        "cpu_s": row.cpu_s._asdict(),
        "peak_rss_bytes": row.peak_rss_bytes,
        "peak_anon_bytes": row.peak_anon_bytes,
        "read_bytes": row.read_bytes,
    }
