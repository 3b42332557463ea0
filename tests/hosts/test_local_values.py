"""Values of which every process holds a copy, but not the same: only one could be saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from attempts import SETUP, check_failed, check_run, read_attempts

LOCAL = (
    SETUP
    + """
logging.basicConfig(level=logging.WARNING)
other = index == last
values = {
    "number": {"n": 5 + other},
    "numpy": {"a": np.full(3, float(other))},
    "jax": {"a": jax.device_put(jnp.full(3, float(other)), jax.local_devices()[0])},
    "text": {"t": "ab"[other]},
    "large": {"big": np.full((1 << 19,), other, np.float32)},
}
for wait in (True, False):
    for name, extra in values.items():
        path = f"{args[0]}/{name}-{wait}"
        save = lambda: tx.save(path, {**tree(1), "extra": extra}, wait=wait).wait() and None
        attempt(f"{name} {wait}", save)
attempt("next", lambda: tx.save(args[0] + "/next", tree(2)))
with tx.Manager(args[0] + "/run") as manager:
    metrics, metadata = {"loss": 1.0 + index}, {"host": index}
    named = dict(metrics=metrics, metadata=metadata, wait=True)
    attempt("metrics", lambda: manager.save(1, tree(1), **named))
    attempt("saved metrics", lambda: [manager.metrics(1), manager.metadata(1)])
"""
)


@pytest.mark.parametrize("count", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 4))])
def test_different_values_of_local_leaves_are_refused_and_named(
    run: Any, tmp_path: Path, count: int
) -> None:
    outputs = run(count, LOCAL, str(tmp_path))
    told = read_attempts(outputs)
    last = count - 1
    leaves = {"number": "n", "numpy": "a", "jax": "a", "text": "t", "large": "big"}
    for said in told:
        for name, leaf in leaves.items():
            for wait in (True, False):
                text = f"Expected the same value on every process, got another on process {last}"
                where = f"`extra.{leaf}`"
                check_failed(said[f"{name} {wait}"], text, where, "alone=True", within_s=5)
        assert said["next"].kind == "ok"
        assert said["metrics"].kind == "ok"
        assert said["saved metrics"].result == [{"loss": 1.0}, {"host": 0}]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["next", "run"]
    warning = f"process {last} passed other metrics and metadata than process 0, whose are taken"
    assert warning in outputs[0].err
    check_run(tmp_path / "run", [1])
