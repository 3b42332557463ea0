"""What a person reads: a match as text, facts first, then what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from ._errors import Mismatch
from ._match import Match

if TYPE_CHECKING:
    from ._plan import Plan
    from ._verify import Verified

SHOWN = 20
"""Mismatches written out; the rest are counted."""


def report(match: Match) -> str:
    """The text of `str(match)` and of `TemplateError`.

    Grammar: a sentence on the whole, then one line per mismatch, `what - at `leaf``, with its note
    and hint; after 20 lines the rest is counted by kind and subtree.
    """
    if match.ok:
        return "\n".join([_verdict(match), *_remarks(match)])
    if match.summary is not None:
        return match.summary
    extras = [m.name for m in match.mismatches if m.problem == "extra"]
    asked = {t.name for t in match.template.targets}
    others = len({m.name for m in match.mismatches if m.problem != "extra" and m.name in asked})
    others = others or int(len(extras) < len(match.mismatches))
    total = sum(t.has_data for t in match.template.targets)
    if others:
        verb = "does" if others == 1 else "do"
        head = f"{others} of {total} {_leaves(total)} {verb} not match {match.url}"
        if extras:
            head += f", and {len(extras)} of its leaves {_are(extras)} not in the template"
    else:
        n = len(extras)
        head = f"{n} {_leaves(n)} of {match.url} {_are(extras)} not in the template"
        head = ", ".join(filter(None, (head, _subtrees(extras))))
    hints = Counter(m.hint for m in match.mismatches if m.hint)
    shared = {hint for hint, n in hints.items() if n > 1}
    lines = [head, *listed(match.mismatches, shared)]
    lines += [f"  hint: {hint}" for hint in hints if hint in shared]
    return "\n".join(lines)


def listed(mismatches: Sequence[Mismatch], shared: Collection[str] = ()) -> list[str]:
    """A line per mismatch, its hint left out if it is one of `shared`; the rest counted."""
    lines = [
        f"  {m.fact}" if m.hint is None or m.hint in shared else f"  {m}"
        for m in mismatches[:SHOWN]
    ]
    rest = mismatches[SHOWN:]
    if rest:
        lines.append(f"  and {len(rest)} more: {_counted(rest)} (`error.mismatches` has them all)")
    return lines


def _verdict(match: Match) -> str:
    n = len(match.pairs)
    total = sum(t.has_data for t in match.template.targets)
    if n == total:
        return (
            f"all {total} {_leaves(total)} match {match.url}"
            if total != 1
            else f"the leaf matches {match.url}"
        )
    return (
        f"{n} of {total} {_leaves(total)} match {match.url}, the others keep the template's values"
    )


def _remarks(match: Match) -> list[str]:
    lines = []
    kinds = Counter((c.stored, c.wanted) for c in match.casts)
    for (stored, wanted), n in kinds.items():
        nbytes = sum(c.nbytes for c in match.casts if (c.stored, c.wanted) == (stored, wanted))
        lines.append(f"  {n} cast from {stored} to {wanted} ({nbytes:,} bytes)")
    spare = sum(pair.fallback for pair in match.pairs)
    if spare:
        lines.append(f"  {spare} supplied by the checkpoint given as `missing=`")
    for what, names in (
        ("kept from the template", match.kept),
        ("without data, left as in the template", match.skipped),
        ("of the checkpoint ignored", match.ignored),
    ):
        if names:
            lines.append(f"  {len(names)} {what}: {some(names)}")
    return lines


def some(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:3])
    return f"{shown}, and {len(names) - 3} more" if len(names) > 3 else shown


def explain(plan: Plan) -> str:
    """The text of `str(plan)`: what a restore will do, as a table."""
    n = len(plan.match.pairs)
    lines = [f"restore of {n:,} {_leaves(n)} from {plan.match.url}"]
    lines += [f"  {what:<16}{n:>18,}  {note}".rstrip() for what, n, note in figures(plan)]
    if plan.unmapped:
        reasons = [f"{n:,} {why}" for why, n in plan.unmapped.items()]
        lines.append(f"  not mapped: {', '.join(reasons)}")
    if plan.unverified:
        lines.append(f"  not verifiable: {some(plan.unverified)}")
    return "\n".join(lines)


def figures(plan: Plan) -> list[tuple[str, int, str]]:
    """What a plan costs: name, figure and a remark for each."""
    read, useful = plan.read_bytes, plan.useful_bytes
    buffers = [buffer for batch in plan.batches for buffer in batch.buffers]
    mapped = sum(buffer.view is not None for buffer in buffers)
    ops = [op for batch in plan.batches for op in batch.reads]
    parts = [part for op in ops for part in op.parts]
    inline = sum(part.chunk.extent.inline is not None for part in parts)
    direct = sum(part.direct is not None for part in parts)
    casts = sum(cast.nbytes for cast in plan.match.casts)
    over = "in flight beyond the arrays returned"
    if plan.peak_bytes > plan.memory:
        over += f"; more than memory={plan.memory:,}: less is not possible"
    files = len({op.key for op in ops if op.stop > op.start})
    return [
        (
            "requests",
            plan.requests,
            f"of {files:,} file{'' if files == 1 else 's'}",
        ),
        ("bytes read", read, "as stored"),
        ("bytes useful", useful, f"{useful / read:.1%} of those read" if read else ""),
        ("bytes placed", plan.placed_bytes, "of the finished leaves"),
        ("bytes mapped", plan.mapped_bytes, f"{mapped:,} leaves over the file itself"),
        ("bytes cast", casts, f"{len(plan.match.casts):,} leaves"),
        ("chunks", len(parts), f"{inline:,} of them held by an index, or computed"),
        ("chunks decoded", plan.decoded_chunks, "decompressed"),
        ("copies avoided", direct, "chunks read or decoded in place"),
        ("peak host bytes", plan.peak_bytes, over),
        ("unverified", len(plan.unverified), "leaves with bytes that no checksum covers"),
        ("threads", plan.threads, "that read and decode"),
    ]


def verification(verified: Verified, rest: str = "`verified.damages` has them all") -> str:
    """The text of `str(verified)`: the verdict, the damages, and what nobody could check.

    Args:
        verified: What was found.
        rest: Where the damages are that are not written out.
    """
    n, url, checked = verified.leaves, verified.url, verified.checked_bytes
    took = f" ({verified.seconds:.2f} s)"
    if verified.damages:
        count, names = len(verified.damages), {d.leaf for d in verified.damages if d.leaf}
        where = f" in {len(names):,} of {n:,} {_leaves(n)}" if names else ""
        damages = "damage" if count == 1 else "damages"
        lines = [f"{url} is damaged: {count:,} {damages}{where}{took}"]
        lines += [f"  {damage}" for damage in verified.damages[:SHOWN]]
        if count > SHOWN:
            lines.append(f"  and {count - SHOWN:,} more ({rest})")
        lines.append(f"  {checked:,} bytes were compared with their checksum")
    elif verified.unchecked_bytes and not checked:
        what = f"none of its {verified.unchecked_bytes:,} bytes has a checksum"
        return f"{url} shows no damage, but {what}{took}"
    elif verified.unchecked_bytes:
        lines = [f"{url} shows no damage: {checked:,} bytes agree with their checksum{took}"]
    else:
        what = f"all {checked:,} bytes of {n:,} {_leaves(n)} agree with their checksum"
        return f"{url} is sound: {what}{took}"
    if verified.unchecked_bytes:
        names = verified.unchecked
        lines.append(
            f"  {verified.unchecked_bytes:,} bytes of {len(names):,} {_leaves(len(names))} have"
            f" none: {some(names)}"
        )
    return "\n".join(lines)


def _leaves(n: int) -> str:
    return "leaf" if n == 1 else "leaves"


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _counted(mismatches: Sequence[Mismatch]) -> str:
    by_problem: dict[str, list[str]] = {}
    for m in mismatches:
        by_problem.setdefault(m.problem, []).append(m.name)
    return "; ".join(
        " ".join(filter(None, (f"{len(names)} {problem}", _subtrees(names))))
        for problem, names in by_problem.items()
    )


def _subtrees(names: Sequence[str]) -> str:
    """`all under `opt_state``, or the three largest subtrees with their counts."""
    if len(names) == 1:
        return f"at `{names[0]}`"
    parts = [name.split(".") for name in names]
    depth = 0
    while all(len(p) > depth + 1 for p in parts) and len({p[depth] for p in parts}) == 1:
        depth += 1
    if depth:
        return f"all under `{'.'.join(parts[0][:depth])}`"
    heads = Counter(p[0] for p in parts)
    if len(heads) == len(names):
        return ""
    shown = ", ".join(f"`{head}` ({n})" for head, n in heads.most_common(3))
    return f"under {shown}" + (f" and {len(heads) - 3} others" if len(heads) > 3 else "")
