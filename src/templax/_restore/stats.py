"""What a restore took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .._plan.plan import Plan
from .execute import StageSeconds


@dataclass(frozen=True, slots=True)
class Stats:
    """Figures of one restore. `str(stats)` is the line that is logged.

    Attributes:
        url: The checkpoint.
        leaves: That were read.
        casts: Of these, how many were cast.
        requests: Ranges asked of the source.
        read_bytes: Asked for in them.
        placed_bytes: Of the finished leaves on this process, each distinct box once.
        mapped_bytes: Of these, those that a mapping serves.
        seconds: Wall clock of all stages; of a plan that is run again, its planning included.
        stages: Seconds of wall clock: `template`, `open`, `match`, `locate`, `plan`, then `run`, of
            which `place` is a part.
        busy: Seconds of all threads together: `read`, `decode` (with copies), `cast`.
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
        """The figures of a plan that was run in `run_s` seconds."""
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
