"""Templates as JSON: what `save_template` and `templax template` write, `templax check` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import templax as tx
from templax import _template

A = jax.ShapeDtypeStruct


def _mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((4, 2), ("data", "model"))


EVERY_KIND = {
    "w": A((4, 8), jnp.bfloat16),
    "int4": A((3,), jnp.int4),
    "array": jnp.ones(3),
    "numpy": np.ones(2, np.float64),
    "scalar": np.float32(2),
    "n": 3,
    "x": 0.5,
    "b": True,
    "t": int,
    "s": "text",
    "st": str,
    "key": jax.random.split(jax.random.key(0), 4),
    "skip": ...,
    "function": jax.nn.relu,
    "nested": [{"a.b": A((), jnp.int32)}, None, ()],
}


def test_every_kind_of_leaf_comes_back(tmp_path: Path) -> None:
    file = tmp_path / "template.json"
    tx.save_template(EVERY_KIND, file)
    template = _template.load(file.read_bytes())
    assert [t.name for t in template.targets] == sorted(
        [*(set(EVERY_KIND) - {"nested"}), "nested.0.a.b"]
    )
    stored = {k: v for k, v in EVERY_KIND.items() if k not in ("skip", "function", "t", "st")}
    stored |= {"t": 1, "st": "x", "w": jnp.ones((4, 8), jnp.bfloat16)}
    stored |= {"int4": jnp.ones(3, jnp.int4), "nested": [{"a.b": jnp.int32(1)}]}
    match = tx.check(tx.Recipe(lambda: stored), template)
    assert match.ok, str(match)
    assert set(match.skipped) == {"skip", "function"}


def test_a_module_with_functions_is_written_and_read(tmp_path: Path) -> None:
    model = eqx.nn.MLP(2, 2, 4, 1, key=jax.random.key(0))
    tx.save_template(model, tmp_path / "m.json")
    template = _template.load((tmp_path / "m.json").read_bytes())
    assert tx.check(tx.Recipe(lambda: model), template).ok


def test_shardings_are_written_and_held_to_the_shape(tmp_path: Path) -> None:
    sharding = NamedSharding(_mesh(), PartitionSpec("data", None, "model"))
    tx.save_template({"w": A((4, 3, 6), jnp.float32)}, tmp_path / "t.json", shardings=sharding)
    content = json.loads((tmp_path / "t.json").read_bytes())
    assert content["leaves"][0]["sharding"] == {
        "mesh": {"data": 4, "model": 2},
        "spec": ["data", None, "model"],
        "memory_kind": sharding.memory_kind,
    }
    content["leaves"][0]["shape"] = [5, 3, 6]
    template = _template.load(json.dumps(content).encode())
    match = tx.check(tx.Recipe(lambda: {"w": jnp.ones((5, 3, 6))}), template)
    assert [str(m) for m in match.mismatches] == [
        "Expected dimension 0 divisible by 4 (mesh axis `data`), got 5, sharding"
        " P('data', None, 'model') - at `w`"
    ]


def test_one_leaf_per_line() -> None:
    """A template is kept under version control and read in diffs."""
    tree = {"a": A((2, 3), jnp.float32), "b": A((), jnp.int32)}
    from templax._pytree import as_template

    assert _template.dump(as_template(tree)) == (
        b'{"templax_template": 1,\n "leaves": [\n'
        b'  {"path":["a"],"shape":[2,3],"dtype":"float32"},\n'
        b'  {"path":["b"],"shape":[],"dtype":"int32"}\n ]}\n'
    )
    assert _template.load(_template.dump(as_template({}))).targets == ()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", tx.UnknownFormat),
        (b"\xff\xfe", tx.UnknownFormat),
        (b"[" * 100_000, tx.UnknownFormat),
        (b'{"leaves": []}', tx.UnknownFormat),
        (b'{"templax_template": 2, "leaves": []}', tx.UnknownFormat),
        (b'{"templax_template": 1, "leaves": [{"path": ["a"]}]}', tx.UnknownFormat),
        (
            b'{"templax_template": 1, "leaves": [{"path": ["a"], "shape": [-1], "dtype": "int8"}]}',
            tx.Damaged,
        ),
        (
            b'{"templax_template": 1, "leaves": [{"path": ["a"], "shape": [], "dtype": "object"}]}',
            tx.Damaged,
        ),
        (
            b'{"templax_template": 1, "leaves": [{"path": ["a"], "shape": [], "dtype": "os"}]}',
            tx.Damaged,
        ),
    ],
)
def test_what_is_no_template_is_refused(data: bytes, kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught:
        _template.load(data, "want.json")
    assert type(caught.value) is kind
    assert "want.json" in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "spec", "expected"),
    [
        ((8, 8), ("data", "model"), None),
        ((), (), None),
        ((8,), (("data", "model"),), None),
        ((4,), (("data", "model"),), "dimension 0 divisible by 8 (mesh axes `data`, `model`)"),
        ((8, 3), (None, "model"), "dimension 1 divisible by 2 (mesh axis `model`)"),
        ((8,), (None, "model"), "at most 1 dimensions in its sharding"),
        ((0, 3), ("data", None), None),
    ],
)
def test_a_sharding_is_held_to_a_shape_as_jax_does(
    shape: tuple[int, ...], spec: Any, expected: str | None
) -> None:
    data = _template.Sharding({"data": 4, "model": 2}, spec)
    problem = _template.sharding_problem("w", shape, data)
    assert (problem and problem.expected) == expected
    sharding = NamedSharding(_mesh(), PartitionSpec(*spec))
    if problem is None:
        sharding.shard_shape(shape)
    else:
        with pytest.raises((ValueError, IndexError)):
            sharding.shard_shape(shape)
