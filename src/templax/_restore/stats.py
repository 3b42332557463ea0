"""The figures of a restore: how much it read and placed, and how long each stage took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .._core.text import list_filled, list_names
from .._escape import escape_text
from .._match.result import CastNote, Match, group_casts, list_casts, list_differences
from .._plan.plan import Plan


@dataclass(slots=True)
class StageSeconds:
    """Seconds spent in each stage, summed over all threads."""

    read_s: float = 0.0
    decode_s: float = 0.0
    cast_s: float = 0.0
    place_s: float = 0.0
    move_s: float = 0.0

    def __iadd__(self, other: StageSeconds) -> StageSeconds:
        self.read_s += other.read_s
        self.decode_s += other.decode_s
        self.cast_s += other.cast_s
        self.place_s += other.place_s
        self.move_s += other.move_s
        return self


@dataclass(frozen=True, slots=True)
class StepChoice:
    """Which step of a run is restored.

    Attributes:
        step: Its number; None if the run holds no step, so that it begins anew.
        skipped: The later steps, and those saved later, that were not taken, each with the reason.
    """

    step: int | None
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stats:
    """The figures of one restore. `str(stats)` is the line that is logged.

    Attributes:
        url: The checkpoint.
        leaves: Number of leaves restored.
        casts: How many of them were cast; `cast_leaves` names them.
        requests: Byte ranges requested from the source.
        read_bytes: Bytes in these ranges.
        placed_bytes: Bytes of the finished leaves on this process, each distinct box counted once.
        mapped_bytes: How many of them a mapping of the file serves.
        seconds: Wall-clock time of all stages. Each run of a plan counts its planning too.
        stages: Wall-clock seconds of each stage: `template`, `open`, `match`, `locate`, `plan` and
            `run`; `place` is a part of `run`, and so is `move`, if leaves were read together.
        busy: Seconds summed over all threads: `read`, `decode` (copies included), `cast`.
        cast_leaves: The leaves that were cast, with their dtypes, as in `Match.casts`.
        supplied: Names of leaves that the checkpoint lacks, each with the URL of the one given as
            `missing=` that supplied it. `leaves` counts them too.
        kept: Names of template leaves that kept the template's own value.
        ignored: Names of leaves of the checkpoint that were not restored.
        step: The step that `Manager.restore` restored; None if it began anew, and of other calls.
        began_anew: Whether `Manager.restore` found no step, so that `missing=` gave every leaf.
        skipped_steps: The later steps, and those saved later, that `Manager.restore` did not take,
            each with the reason.
        filled: Names of leaves with chunks that are absent, which means the fill value in zarr.
        shared: Names of the leaves that the processes of the job read together.
        received_bytes: Bytes of these leaves that the devices of this process received from others.
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
    cast_leaves: tuple[CastNote, ...] = ()
    supplied: Mapping[str, str] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    step: int | None = None
    began_anew: bool = False
    skipped_steps: tuple[str, ...] = ()
    filled: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    received_bytes: int = 0

    @classmethod
    def of(
        cls, plan: Plan, busy: StageSeconds, run_s: float, choice: StepChoice | None = None
    ) -> Stats:
        """The figures of a plan whose run took `run_s` seconds.

        Args:
            choice: The step that the plan restores, if it does.
        """
        stages = {**plan.prepared, "run": run_s, "place": busy.place_s}
        if plan.sharing.digest:
            stages["move"] = busy.move_s
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
            cast_leaves=plan.match.casts,
            supplied=plan.match.supplied,
            kept=plan.match.kept,
            ignored=plan.match.ignored,
            step=None if choice is None else choice.step,
            began_anew=choice is not None and choice.step is None,
            skipped_steps=() if choice is None else choice.skipped,
            filled=plan.filled,
            shared=tuple(plan.sharing.leaves),
            received_bytes=plan.sharing.received_bytes,
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
        what = f"restored {self.leaves:,} {leaves}, {self.placed_bytes:,} bytes of {self.url}"
        if self.began_anew:
            what = (
                f"began anew, as {self.url} holds no step: {self.leaves:,} {leaves} from missing=,"
                f" {self.placed_bytes:,} bytes"
            )
        skipped = f"; skipped {'; '.join(self.skipped_steps)}" if self.skipped_steps else ""
        differences = list_casts(self.cast_leaves)
        differences += list_differences(self.supplied, self.kept, self.ignored)
        differences += [line.strip() for line in list_filled(self.filled)]
        if self.shared:
            names = list_names(self.shared)
            differences.append(f"read together, {self.received_bytes:,} bytes received: {names}")
        return escape_text(
            f"{what} in"
            f" {self.seconds:.3f} s ({self.gb_per_s:.2f} GB/s): {self.requests:,} {requests},"
            f" {self.read_bytes:,} bytes read, {self.mapped_bytes:,} mapped, {self.casts:,} cast;"
            f" seconds by stage: {', '.join(stages)} (place {self.stages['place']:.3f} of it);"
            f" of all threads: {busy}{skipped}{''.join(f'; {line}' for line in differences)}"
        )


def describe_casts(match: Match, cast_s: float) -> str:
    """The text of the `CastWarning` of a restore."""
    groups = sorted(group_casts(match.casts).items(), key=lambda item: -len(item[1]))
    pairs = ", ".join(
        f"{a} to {b} ({len(group)}: {list_names([c.name for c in group])})"
        for (a, b), group in groups
    )
    nbytes = sum(c.nbytes for c in match.casts)
    n, total = len(match.casts), len(match.pairs)
    return (
        f"{n} of {total} {'leaf' if total == 1 else 'leaves'} of {match.url}"
        f" {'was' if n == 1 else 'were'} cast: {pairs}; {nbytes:,} bytes, {cast_s:.3f} s;"
        ' cast="exact" refuses this'
    )
