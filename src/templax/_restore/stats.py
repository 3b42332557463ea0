"""The figures of a restore: how much it read and placed, and how long each stage took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .._plan.plan import Plan


@dataclass(slots=True)
class StageSeconds:
    """Seconds spent in each stage, summed over all threads."""

    read_s: float = 0.0
    decode_s: float = 0.0
    cast_s: float = 0.0
    place_s: float = 0.0

    def __iadd__(self, other: StageSeconds) -> StageSeconds:
        self.read_s += other.read_s
        self.decode_s += other.decode_s
        self.cast_s += other.cast_s
        self.place_s += other.place_s
        return self


@dataclass(frozen=True, slots=True)
class Stats:
    """The figures of one restore. `str(stats)` is the line that is logged.

    Attributes:
        url: The checkpoint.
        leaves: Number of leaves restored.
        casts: How many of them were cast.
        requests: Byte ranges requested from the source.
        read_bytes: Bytes in these ranges.
        placed_bytes: Bytes of the finished leaves on this process, each distinct box counted once.
        mapped_bytes: How many of them a mapping of the file serves.
        seconds: Wall-clock time of all stages. Each run of a plan counts its planning too.
        stages: Wall-clock seconds of each stage: `template`, `open`, `match`, `locate`, `plan` and
            `run`; `place` is a part of `run`.
        busy: Seconds summed over all threads: `read`, `decode` (copies included), `cast`.
    """

    url: str
    leaves: int
    casts: int
    requests: int
    read_bytes: int
    placed_bytes: int
    mapped_bytes: int
    seconds: float
    stages: Mapping[str, float]
    busy: Mapping[str, float]

    @classmethod
    def of(cls, plan: Plan, busy: StageSeconds, run_s: float) -> Stats:
        """The figures of a plan whose run took `run_s` seconds."""
        stages = {**plan.prepared, "run": run_s, "place": busy.place_s}
        return cls(
            url=plan.match.url,
            leaves=len(plan.match.pairs),
            casts=len(plan.match.casts),
            requests=plan.requests,
            read_bytes=plan.read_bytes,
            placed_bytes=plan.placed_bytes,
            mapped_bytes=plan.mapped_bytes,
            seconds=sum(plan.prepared.values()) + run_s,
            stages=stages,
            busy={"read": busy.read_s, "decode": busy.decode_s, "cast": busy.cast_s},
        )

    @property
    def gb_per_s(self) -> float:
        """Placed bytes per second, in 10^9."""
        return self.placed_bytes / self.seconds / 1e9

    def __str__(self) -> str:
        stages = [f"{name} {s:.3f}" for name, s in self.stages.items() if name != "place"]
        busy = ", ".join(f"{name} {s:.3f}" for name, s in self.busy.items())
        leaves = "leaf" if self.leaves == 1 else "leaves"
        requests = "request" if self.requests == 1 else "requests"
        return (
            f"restored {self.leaves:,} {leaves}, {self.placed_bytes:,} bytes of {self.url} in"
            f" {self.seconds:.3f} s ({self.gb_per_s:.2f} GB/s): {self.requests:,} {requests},"
            f" {self.read_bytes:,} bytes read, {self.mapped_bytes:,} mapped, {self.casts:,} cast;"
            f" seconds by stage: {', '.join(stages)} (place {self.stages['place']:.3f} of it);"
            f" of all threads: {busy}"
        )
