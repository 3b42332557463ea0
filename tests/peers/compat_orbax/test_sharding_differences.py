"""Saved shardings, which Orbax restores to and templax ignores.

Each test asserts what both libraries do; `docs/orbax_differences.md` names it.
"""

import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as orbax
import pytest

import templax.compat.orbax as compat
from helpers import abstract
from side_by_side import assert_same, first_device, quiet, sharded_tree, small_template, small_tree

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
S = jax.ShapeDtypeStruct


def test_differs_saved_sharding_without_one_in_the_template(at):
    """Orbax uses the saved sharding, templax JAX's default device."""
    template = abstract(sharded_tree())
    with quiet():
        theirs = orbax.StandardCheckpointer().restore(at.sharded_standard, template)
    assert len(theirs["w"].sharding.device_set) == 8
    ours = compat.StandardCheckpointer().restore(at.sharded_standard, template)
    assert ours["w"].sharding.device_set == {jax.devices()[0]}
    assert ours["w"].tolist() == theirs["w"].tolist()


def test_differs_pytree_item_sharding(at):
    """Without restore args Orbax ignores the sharding of an item; templax follows it."""
    template = {
        "w": S((8, 4), jnp.float32, sharding=first_device()),
        "key": S((), jax.random.key(0).dtype),
    }
    with quiet():
        theirs = orbax.PyTreeCheckpointer().restore(at.sharded_pytree, item=template)
    assert len(theirs["w"].sharding.device_set) == 8
    ours = compat.PyTreeCheckpointer().restore(at.sharded_pytree, item=template)
    assert ours["w"].sharding.device_set == {jax.devices()[0]}


TOPOLOGY = """
import sys, warnings, logging
warnings.simplefilter("ignore"); logging.disable(logging.CRITICAL)
import jax, jax.numpy as jnp
import orbax.checkpoint as orbax
import templax.compat.orbax as compat
assert len(jax.devices()) == 1
root = sys.argv[1]
key = jax.random.key(0).dtype
template = {"w": jax.ShapeDtypeStruct((8, 4), jnp.float32), "key": jax.ShapeDtypeStruct((), key)}
def pytree(ocp, *t): return ocp.PyTreeCheckpointer().restore(f"{root}/sharded-pytree", *t)
def standard(ocp, *t): return ocp.StandardCheckpointer().restore(f"{root}/sharded-standard", *t)
def v1(ocp, *t): return ocp.v1.load(f"{root}/sharded-v1", *t)
for call in (pytree, standard, v1):
    for t in ((), (template,)):
        try:
            call(orbax, *t)
        except ValueError as error:
            print(str(error)[:26])
        else:
            print("restored")
        print(call(compat, *t)["w"].sum())
"""


@pytest.mark.slow
def test_differs_topology(at):
    """Saved on eight devices, restored on one: all six calls fail in Orbax, none in templax."""
    env = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    out = subprocess.run(
        [sys.executable, "-c", TOPOLOGY, str(at.root)],
        capture_output=True,
        text=True,
        env=env,
    )
    assert out.returncode == 0, out.stderr[-2000:]
    lines = out.stdout.split("\n")[:-1]
    assert set(lines[1::2]) == {"496.0"}
    # pytree and v1: "sharding passed to deserialization should be specified ... Got None"
    assert lines[0::2] == [
        "sharding passed to deseria",
        "sharding passed to deseria",
        "Topology mismatch detected",
        "Topology mismatch detected",
        "sharding passed to deseria",
        "sharding passed to deseria",
    ]


@pytest.mark.parametrize("how", ["missing", "garbage"])
def test_differs_sharding_file(at, tmp_path, how):
    """With `_sharding` missing or invalid Orbax fails or returns numpy; templax never needs it."""
    pytree = shutil.copytree(at.small_pytree, tmp_path / "pytree")
    standard = shutil.copytree(at.small_standard, tmp_path / "standard")
    for path in (pytree, standard):
        if how == "missing":
            (path / "_sharding").unlink()
        else:
            (path / "_sharding").write_text("{garbage")
    template = small_template()
    with quiet():
        with pytest.raises(ValueError, match=r"Sharding of jax.Array|Invalid JSON"):
            orbax.PyTreeCheckpointer().restore(pytree, item=template)
        if how == "missing":
            theirs = orbax.StandardCheckpointer().restore(standard, template)
            assert isinstance(theirs["a"], np.ndarray)
        else:
            with pytest.raises(ValueError, match="Invalid JSON"):
                orbax.StandardCheckpointer().restore(standard, template)
    for path in (pytree, standard):
        assert_same(compat.PyTreeCheckpointer().restore(path, item=template), small_tree())
        assert_same(compat.PyTreeCheckpointer().restore(path), small_tree())
