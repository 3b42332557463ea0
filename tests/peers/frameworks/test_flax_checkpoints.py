"""`flax.training.checkpoints` with its import of Orbax changed: Flax's own code over templax.

Its own tests pass over it, too; they are not part of the wheel.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.training.checkpoints as over_orbax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training import orbax_utils
from flax.training.train_state import TrainState
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import templax.compat.orbax as compat

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:Flax Checkpointing:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:restore_args_from_target:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def over_templax() -> Iterator[Any]:
    """The module with one line changed."""
    text = Path(over_orbax.__file__).read_text()
    changed = text.replace("import orbax.checkpoint as ocp", "import templax.compat.orbax as ocp")
    assert changed != text
    module = types.ModuleType("flax_checkpoints_over_templax")
    sys.modules[module.__name__] = module
    exec(compile(changed, over_orbax.__file__, "exec"), module.__dict__)
    assert module.ocp is compat
    yield module
    del sys.modules[module.__name__]


ADAM = optax.adam(1e-3)


def make_state(scale: float = 1.0) -> TrainState:
    params = {"w": jnp.arange(8.0) * scale, "b": jnp.ones((2, 3), jnp.bfloat16)}
    return TrainState.create(apply_fn=len, params=params, tx=ADAM)


def assert_equal(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
        assert np.asarray(a).dtype == np.asarray(b).dtype


@pytest.mark.parametrize("reader", ["templax", "orbax"])
@pytest.mark.parametrize("writer", ["templax", "orbax"])
def test_each_restores_what_the_other_saved(
    tmp_path: Path, over_templax: Any, writer: str, reader: str
) -> None:
    modules = {"templax": over_templax, "orbax": over_orbax}
    checkpointers = {name: module.ocp.PyTreeCheckpointer() for name, module in modules.items()}
    state = make_state(3.0)
    modules[writer].save_checkpoint(
        str(tmp_path), state, 7, orbax_checkpointer=checkpointers[writer]
    )
    restored = modules[reader].restore_checkpoint(
        str(tmp_path), make_state(), orbax_checkpointer=checkpointers[reader]
    )
    assert_equal(restored, state)


@pytest.mark.slow
def test_steps_are_kept_overwritten_and_found_as_over_orbax(
    tmp_path: Path, over_templax: Any
) -> None:
    found: list[Any] = []
    for module in (over_templax, over_orbax):
        run, checkpointer = tmp_path / module.ocp.__name__, module.ocp.PyTreeCheckpointer()
        seen: list[Any] = []
        for step, options in [
            *((step, {"keep": 2}) for step in range(5)),
            (4, {"overwrite": True}),
            (2, {"overwrite": True}),
            (9, {"keep_every_n_steps": 3}),
        ]:
            module.save_checkpoint(
                str(run), make_state(step), step, orbax_checkpointer=checkpointer, **options
            )
            seen.append(sorted(path.name for path in run.iterdir()))
        latest = module.restore_checkpoint(str(run), make_state(), orbax_checkpointer=checkpointer)
        found.append((seen, Path(module.latest_checkpoint(str(run))).name))
        assert_equal(latest, make_state(9))
    assert found[0] == found[1]
    assert found[0][0][4] == ["checkpoint_3", "checkpoint_4"]


def test_restore_args_of_flax_place_the_arrays(tmp_path: Path, over_templax: Any) -> None:
    """They are of real Orbax's classes; a sharding that they ask for is never dropped."""
    checkpointer = compat.PyTreeCheckpointer()
    state = {"w": jnp.arange(8.0)}
    over_templax.save_checkpoint(str(tmp_path), state, 0, orbax_checkpointer=checkpointer)
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    target = jax.device_put(state, NamedSharding(mesh, P("data")))
    args = orbax_utils.restore_args_from_target(target, mesh)
    assert not type(jax.tree.leaves(args)[0]).__module__.startswith("templax")
    restored = over_templax.restore_checkpoint(
        str(tmp_path),
        target,
        orbax_checkpointer=checkpointer,
        orbax_transforms={},
    )
    assert restored["w"].sharding == target["w"].sharding
    direct = checkpointer.restore(tmp_path / "checkpoint_0", item=target, restore_args=args)
    assert isinstance(direct["w"].sharding, NamedSharding)
    assert direct["w"].sharding.mesh == mesh
