"""One process fails or is interrupted at each stage of a save: either all have it, or none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from attempts import SETUP, check_failed, check_values, read_attempts

HIT = (
    SETUP
    + """
from templax._save import job
from templax.storage.staging import Staging
wait, error = args[1] == "wait", {"raise": RuntimeError, "interrupt": KeyboardInterrupt}[args[2]]
STAGES = {
    "staged": (job.Job, "_open_items", True, None),
    "writing": (writer.Writer, "_write", False, None),
    "written": (agreement.Hosts, "gather", False, None),
    "described": (job.Job, "_write_small_files", False, None),
    "synced": (Staging, "commit", True, None),
    "committing": (agreement.Hosts, "announce", False, "committing"),
}

def hook(who, kind, name, after, when):
    real, fired = getattr(kind, name), []
    def call(self, *rest, **named):
        hit = index == who and not fired and when in (None, *rest)
        if hit and not after:
            fired.append(name)
            raise error("boom")
        result = real(self, *rest, **named)
        if hit and after:
            fired.append(name)
            raise error("boom")
        return result
    setattr(kind, name, call)
    return lambda: setattr(kind, name, real)

for stage, point in STAGES.items():
    if error is KeyboardInterrupt and stage == "writing":  # in another thread than the main one
        continue
    for who, victim in ((0, "first"), (last, "last")):
        name, path = f"{stage} {victim}", f"{args[0]}/{stage}-{victim}"
        unhook = hook(who, *point)
        attempt(name, lambda: tx.save(path, tree(1), wait=wait).wait() and None)
        unhook()
        attempt(name + " next", lambda: tx.save(path + "-next", tree(2), wait=wait).wait() and None)
"""
)

COMMITTED = {("committing", "first"), ("committing", "last"), ("synced", "first")}
"""After the rename, nothing makes an error of a save."""


@pytest.mark.parametrize(
    ("count", "wait", "what"),
    [
        (2, "wait", "raise"),
        pytest.param(2, "background", "raise", marks=pytest.mark.slow),
        pytest.param(2, "wait", "interrupt", marks=pytest.mark.slow),
        pytest.param(3, "background", "raise", marks=pytest.mark.slow),
        pytest.param(3, "wait", "interrupt", marks=pytest.mark.slow),
        pytest.param(4, "wait", "raise", marks=pytest.mark.slow),
    ],
)
def test_all_have_the_save_or_none_and_the_process_that_failed_is_named(
    run: Any, tmp_path: Path, count: int, wait: str, what: str
) -> None:
    outputs = run(count, HIT, str(tmp_path), wait, what)
    told = read_attempts(outputs)
    error = {"raise": "RuntimeError", "interrupt": "KeyboardInterrupt"}[what]
    names = [name for name in told[0] if not name.endswith("next")]
    assert len(names) == (12 if what == "raise" else 10)
    expected: list[str] = []
    for name in names:
        stage, victim = name.split()
        who = 0 if victim == "first" else count - 1
        never = (stage, victim) == ("described", "last")  # only process 0 does that
        committed = never or (stage, victim) in COMMITTED
        for index, said in enumerate(told):
            where = name, index, said[name]
            if index == who and not never and (not committed or what == "interrupt"):
                check_failed(said[name], "boom", kind=error, within_s=5)
            elif committed:
                assert said[name].kind == "ok", where
            else:
                text = f"Process {who} of {count} failed"
                check_failed(said[name], text, f"{error}: boom", within_s=5)
            assert said[f"{name} next"].kind == "ok", (where, said[f"{name} next"])
        if committed and not never and what == "raise":
            assert "then failed: boom" in outputs[who].err
        path = tmp_path / f"{stage}-{victim}"
        if committed:
            expected.append(path.name)
            check_values(path, 1)
        expected.append(f"{path.name}-next")
        check_values(tmp_path / f"{path.name}-next", 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(expected)
