"""Jobs of several processes that save to, and restore from, an object store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import templax as tx
from stores.connect import find_storage
from stores.server import Bucket
from stores.servers import Servers

from .conftest import Run
from .test_saving import TREE

SAVE = (
    TREE
    + """
url = args[0]
saved = tx.save(url + "/run/100", tree())
template = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    if isinstance(x, jax.Array) and not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x,
    {name: tree()[name] for name in ("rows", "columns", "both", "z_numpy", "numpy", "scalar")},
)
again = tx.restore(url + "/run/100", template, extra="ignore")
for name, leaf in again.items():
    for a, b in zip(jax.tree.leaves(leaf), jax.tree.leaves(tree()[name])):
        a, b = [x.addressable_shards if isinstance(x, jax.Array) else [x] for x in (a, b)]
        for one, other in zip(a, b, strict=True):
            one, other = [np.asarray(getattr(x, "data", x)) for x in (one, other)]
            np.testing.assert_array_equal(one, other)
print(json.dumps([saved.leaves, saved.nbytes, str(saved.fingerprint)]))
"""
)

REFUSED = (
    TREE
    + """
def fail():
    raise ValueError("a disk")

try:
    if index == 1:
        from templax._save.item import Item
        Item.finish_share = lambda self: (_ for _ in ()).throw(tx.SaveError("process 1 gives up"))
    tx.save(args[0] + "/run/200", tree())
except tx.SaveError as error:
    print(str(error).splitlines()[0])
"""
)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    servers = Servers(tmp_path_factory.mktemp("servers"))
    yield servers.make_bucket(servers.start("moto"))
    servers.stop()


def test_processes_save_their_shares_and_restore_them(run: Run, bucket: Bucket) -> None:
    outputs = run(2, SAVE, bucket.url, env=bucket.server.environment)
    assert [output.code for output in outputs] == [0, 0], outputs[0].err + outputs[1].err
    told = [json.loads(output.out) for output in outputs]
    assert told[0] == told[1]
    names = sorted(name for name in bucket.list() if name.startswith("run/100/"))
    owners = {name.split("/")[2] for name in names if "/d/" in name}
    assert owners == {"d", "ocdbt.process_0", "ocdbt.process_1"}
    assert "run/100/commit_success.txt" in names
    assert not [name for name in names if "lease" in name]
    catalog = tx.open(f"{bucket.url}/run/100", storage=find_storage(bucket))
    assert tx.verify(catalog).ok
    assert str(tx.fingerprint(catalog)) == told[0][2]
    found = tx.restore(catalog, {"rows": np.zeros((64, 96), "f4")}, extra="ignore")
    want = np.random.default_rng(0).standard_normal((64, 96)).astype("f4")
    np.testing.assert_array_equal(found["rows"], want)


@pytest.mark.slow
def test_a_save_that_fails_on_one_process_leaves_nothing(
    run: Run, bucket: Bucket, tmp_path: Path
) -> None:
    outputs = run(2, REFUSED, bucket.url, env=bucket.server.environment)
    assert [output.code for output in outputs] == [0, 0], outputs[0].err + outputs[1].err
    assert "process 1 gives up" in outputs[0].out
    assert "process 1 gives up" in outputs[1].out
    assert not [name for name in bucket.list() if name.startswith("run/200/")]
