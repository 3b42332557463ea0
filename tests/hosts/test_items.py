"""Several items that the processes of a job save as one step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest

import templax as tx

SCRIPT = """
import jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from templax._hosts.agreement import open_call
from templax._save.background import start_save
from templax._save.destination import Destination
from templax._save.item import Json
from templax._save.options import make_options
mesh = Mesh(np.array(jax.devices()), ("x",))
rows, here = NamedSharding(mesh, PartitionSpec("x")), NamedSharding(mesh, PartitionSpec())
def array(sharding, start, dtype):
    values = (np.arange(64).reshape(8, 8) + start).astype(dtype)
    return jax.make_array_from_callback(values.shape, sharding, lambda at: values[at])
items = {
    "state": {"w": array(rows, 0, np.float32), "n": 5},
    "ema": {"w": array(rows, 100, np.int32), "all": array(here, 200, np.int8)},
    "meta": Json({"process": 0}),
}
call = open_call("saving", args[0])
go = lambda: Destination(args[0])
saved = start_save(call, args[0], items, make_options(), go, wait=args[1] == "wait").wait()
print(saved.fingerprint, saved.leaves)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["wait", "background"])
def test_each_process_writes_its_share_of_each_item(run: Any, tmp_path: Path, how: str) -> None:
    path = tmp_path / how
    outputs = run(2, SCRIPT, str(path), how)
    assert [o.code for o in outputs] == [0, 0], outputs[0].err + outputs[1].err
    values = np.arange(64).reshape(8, 8)
    want = {
        "state": {"w": values.astype(np.float32), "n": 5},
        "ema": {"w": (values + 100).astype(np.int32), "all": (values + 200).astype(np.int8)},
    }
    for name, tree in want.items():
        restored = tx.restore(path / name, tree, verify="required")
        theirs = ocp.StandardCheckpointer().restore(path / name, tree)
        for leaf, value in tree.items():
            np.testing.assert_array_equal(restored[leaf], value)
            np.testing.assert_array_equal(theirs[leaf], value)
        files = {str(f.relative_to(path / name)) for f in (path / name).rglob("d/*")}
        assert {f.rpartition("d/")[0] for f in files} == {
            "",
            "ocdbt.process_0/",
            "ocdbt.process_1/",
        }
    assert json.loads((path / "meta" / "metadata").read_text()) == {"process": 0}
    assert {o.out.strip() for o in outputs} == {f"{tx.fingerprint(want)} 4"}
