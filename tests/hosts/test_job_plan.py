"""A plan for hosts that need not exist has the figures of a job that does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

import templax as tx
from helpers import CORPUS
from job_processes import DEVICES

FIGURES = (
    "requests", "read_bytes", "useful_bytes", "decoded_chunks", "placed_bytes", "peak_bytes",
)  # fmt: skip

RULES = [("rows", P("data")), ("columns", P(None, "data")), ("blocks", P("data", None)), ("*", P())]

PLAN = """
import json
import jax.numpy as jnp, templax as tx
from jax.sharding import PartitionSpec as P
sys.path.insert(0, args.pop(0))
from test_job_plan import FIGURES, RULES, make_tree
mesh = jax.make_mesh((len(jax.devices()),), ("data",))
template = tx.template_of(make_tree(), mesh=mesh, specs=RULES)
for path in args:
    plan = tx.plan(path, template)
    print(json.dumps([path, {name: getattr(plan, name) for name in FIGURES}]))
    tree = tx.restore(path, template)
    stats = tx.last_restore()
    print(json.dumps(["read", stats.read_bytes]))
"""


def make_tree() -> dict[str, Any]:
    return {
        "rows": jnp.arange(240 * 48, dtype=jnp.float32).reshape(240, 48),
        "columns": jnp.arange(240 * 48, dtype=jnp.bfloat16).reshape(240, 48),
        "blocks": jnp.ones((480, 7), jnp.int32),
        "norm": jnp.ones(13),
        "step": jnp.zeros((), jnp.int32),
    }


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3, 4])
def test_every_host_is_planned_as_it_plans_itself(run: Any, tmp_path: Path, count: int) -> None:
    paths = [str(tmp_path / "raw"), str(tmp_path / "zstd"), str(tmp_path / "st")]
    tx.save(paths[0], make_tree(), alone=True)
    tx.save(paths[1], make_tree(), alone=True, compression="zstd")
    tx.save(paths[2], make_tree(), alone=True, format="safetensors")
    size = count * DEVICES
    mesh = AbstractMesh((size,), ("data",))
    template = tx.template_of(make_tree(), mesh=mesh, specs=RULES)
    topology = tx.Topology(
        hosts=count, devices_per_host=DEVICES, mesh={"data": size}, platform="cpu"
    )
    here = str(Path(__file__).parent)
    done = run(count, PLAN, here, *paths)
    said = [[json.loads(line) for line in each.out.splitlines()] for each in done]
    for path in paths:
        plan = tx.plan(path, template, topology=topology)
        for host, lines in enumerate(said):
            at = next(i for i, (what, _) in enumerate(lines) if what == path)
            planned = {name: getattr(plan.find_host(host), name) for name in FIGURES}
            assert planned == lines[at][1], (path, host)
            assert plan.find_host(host).read_bytes == lines[at + 1][1], (path, host)
        assert plan.read_bytes == sum(
            line[1]["read_bytes"] for lines in said for line in lines if line[0] == path
        )


def test_the_corpus_has_the_checkpoints_of_several_hosts() -> None:
    """What the figures above are compared on is not the only layout: 2 processes of Orbax."""
    plan = tx.plan(
        CORPUS / "orbax-0.12.8-multi2p" / "ckpt",
        tx.open(CORPUS / "orbax-0.12.8-multi2p" / "ckpt").template(),
        topology=tx.Topology(hosts=2, devices_per_host=2, mesh={"data": 4}),
    )
    assert len(plan.whole) == len(plan.match.pairs) > 0
