"""Restores by all processes: one checkpoint, one step, or the same error everywhere and soon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from attempts import SETUP, check_failed, read_attempts

WRONG = (
    SETUP
    + """
from templax._restore import api, together
together.SEE_S = 1.0
path, nothing = args[0] + "/ckpt", args[0] + "/nothing"
tx.save(path, tree(7))
wrong = {**want, "w": jax.ShapeDtypeStruct((24, 5), np.float32, sharding=rows)}
real = api.run_plan

def damaged(*rest, **named):
    raise tx.Corrupted("Expected the bytes of this process, found others", leaf="w")

def compute():
    return float(jax.jit(lambda w: w.sum())(array(1)))

for name, who in (("all", range(count)), ("first", [0]), ("last", [last])):
    template = wrong if index in who else want
    attempt(f"template {name}", lambda: read(tx.restore(path, template)))
    attempt(f"compute {name}", compute)
for name, who in (("first", 0), ("last", last)):
    there = nothing if index == who else path
    attempt(f"path {name}", lambda: read(tx.restore(there, want)))
    api.run_plan = damaged if index == who else real
    attempt(f"damage {name}", lambda: read(tx.restore(path, want)))
    api.run_plan = real
    verify = "?" if index == who else "off"
    attempt(f"argument {name}", lambda: read(tx.restore(path, want, verify=verify)))
for name, who in (("first", 0), ("last", last)):
    rules = {"w": "w" if index == who else tx.From("w", "a b -> a b")}
    view = tx.view(path, tx.Mapping(rules, rest="keep"))
    attempt(f"mapping {name}", lambda: read(tx.restore(view, want)))
    view = tx.view(path, tx.Mapping({}, rest="keep"))
    attempt(f"view {name}", lambda: read(tx.restore(view, want)))
attempt("nothing", lambda: read(tx.restore(nothing, want)))
attempt("next", lambda: read(tx.restore(path, want)))
if index == last:  # of local leaves, so it talks to nobody
    local = {"w": np.zeros((24, 4), np.float32), "step": 0}
    attempt("local", lambda: float(tx.restore(path, local)["w"].sum()))
attempt("after", lambda: read(tx.restore(path, want)))
"""
)


@pytest.mark.parametrize("count", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 4))])
def test_what_fails_on_one_process_is_the_same_error_on_all(
    run: Any, tmp_path: Path, count: int
) -> None:
    last = count - 1
    outputs = run(count, WRONG, str(tmp_path))
    told = read_attempts(outputs)
    for said in told:
        for name in ("all", "first", "last"):
            check_failed(
                said[f"template {name}"], "(24, 5)", "(24, 4)", kind="TemplateError", within_s=4
            )
            assert said[f"compute {name}"].result == 24 * 4
        for name, who in (("first", 0), ("last", last)):
            index = told.index(said)
            texts = [f"Process {who} of {count} failed"] if index != who else []
            texts.append("Expected the bytes of this process")
            check_failed(said[f"damage {name}"], *texts, kind="Corrupted", within_s=4)
            texts = [f"Process {who} of {count} failed"] if index != who else []
            texts.append("Expected verify=")
            check_failed(
                said[f"mapping {name}"], "Expected the same mapping", kind="SourceError", within_s=4
            )
            assert said[f"view {name}"].result == said["next"].result
            check_failed(said[f"argument {name}"], *texts, kind="UsageError", within_s=4)
            refused = said[f"path {name}"]
            assert refused.kind in ("SourceError", "NotFound", "SaveError"), refused
            assert "nothing" in refused.result, refused
            assert refused.seconds < 4, refused
        check_failed(said["nothing"], "nothing", kind="NotFound", within_s=4)
        assert said["next"].result == said["after"].result == [7.0], said
    assert told[last]["local"].result == 7 * 24 * 4


RACE = (
    SETUP
    + """
with tx.Manager(args[0], keep=2) as manager:
    for step in range(1, 13):
        manager.save(step, tree(step, shape=(24, 1 << 12)))
        time.sleep(0.01 * ((index * 7 + step) % 5))
        like = {**want, "w": jax.ShapeDtypeStruct((24, 1 << 12), np.float32, sharding=rows)}
        attempt(f"{step}", lambda: [*read(manager.restore(like)), tx.last_restore().step])
"""
)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_latest_step_is_the_same_for_all_beside_saves(
    run: Any, tmp_path: Path, count: int
) -> None:
    told = read_attempts(run(count, RACE, str(tmp_path)))
    for step in range(1, 13):
        assert [said[f"{step}"].result for said in told] == [[step, step]] * count, (step, told)
