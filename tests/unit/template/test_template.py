"""Template files: JSON that `save_template` writes and `templax check` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

import templax as tx
from helpers import count_examples, make_keys
from limits import run_limited
from templax._template import json_file
from templax._template import template as template_module
from templax._template.from_pytree import as_template
from templax._template.sharding import Sharding, find_sharding_problem
from templax.testing import strategies

A = jax.ShapeDtypeStruct


def make_mesh() -> jax.sharding.Mesh:
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
    "key": make_keys(4),
    "skip": ...,
    "function": jax.nn.relu,
    "nested": [{"a.b": A((), jnp.int32)}, None, ()],
}
SHARDED = A((4, 2), jnp.int8, sharding=NamedSharding(make_mesh(), PartitionSpec("data", "model")))
STORED = tx.open(
    tx.Recipe(lambda: {"w": jnp.ones(3), "n": 3, "s": "text", "b": True, "key": jax.random.key(0)})
)


def test_every_kind_of_leaf_is_read_back(tmp_path: Path) -> None:
    file = tmp_path / "template.json"
    tx.save_template(EVERY_KIND, file)
    template = json_file.load_template(file.read_bytes())
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
    template = json_file.load_template((tmp_path / "m.json").read_bytes())
    assert tx.check(tx.Recipe(lambda: model), template).ok


def test_shardings_are_written_and_checked_against_the_shape(tmp_path: Path) -> None:
    sharding = NamedSharding(make_mesh(), PartitionSpec("data", None, "model"))
    tx.save_template({"w": A((4, 3, 6), jnp.float32)}, tmp_path / "t.json", shardings=sharding)
    content = json.loads((tmp_path / "t.json").read_bytes())
    assert content["leaves"][0]["sharding"] == {
        "mesh": {"data": 4, "model": 2},
        "spec": ["data", None, "model"],
        "memory_kind": sharding.memory_kind,
    }
    content["leaves"][0]["shape"] = [5, 3, 6]
    template = json_file.load_template(json.dumps(content).encode())
    match = tx.check(tx.Recipe(lambda: {"w": jnp.ones((5, 3, 6))}), template)
    assert [str(m) for m in match.mismatches] == [
        "Expected dimension 0 divisible by 4 (mesh axis `data`), got 5, sharding"
        " P('data', None, 'model') - at `w`"
    ]


def test_a_template_file_has_one_leaf_per_line() -> None:
    """So that diffs of a template under version control are readable."""
    tree = {"a": A((2, 3), jnp.float32), "b": A((), jnp.int32)}
    assert json_file.dump_template(as_template(tree)) == (
        b'{"templax_template": 1,\n "leaves": [\n'
        b'  {"path":["a"],"shape":[2,3],"dtype":"float32"},\n'
        b'  {"path":["b"],"shape":[],"dtype":"int32"}\n ]}\n'
    )
    assert json_file.load_template(json_file.dump_template(as_template({}))).targets == ()


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
            tx.Corrupted,
        ),
        (
            b'{"templax_template": 1, "leaves": [{"path": ["a"], "shape": [], "dtype": "object"}]}',
            tx.Corrupted,
        ),
        (
            b'{"templax_template": 1, "leaves": [{"path": ["a"], "shape": [], "dtype": "os"}]}',
            tx.Corrupted,
        ),
    ],
)
def test_a_file_that_is_not_a_template_is_refused(data: bytes, kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught:
        json_file.load_template(data, "want.json")
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
def test_a_sharding_is_checked_against_a_shape_as_in_jax(
    shape: tuple[int, ...], spec: Any, expected: str | None
) -> None:
    data = Sharding({"data": 4, "model": 2}, spec)
    problem = find_sharding_problem("w", shape, data)
    assert (problem and problem.expected) == expected
    sharding = NamedSharding(make_mesh(), PartitionSpec(*spec))
    if problem is None:
        sharding.shard_shape(shape)
    else:
        with pytest.raises((ValueError, IndexError)):
            sharding.shard_shape(shape)


def list_fields(t: template_module.Target) -> tuple[Any, ...]:
    return (t.name, t.path, t.shape, t.dtype, t.kind, t.key_impl, t.host, t.optional, t.sharding)


@pytest.mark.parametrize("kind", sorted(EVERY_KIND))
def test_each_kind_of_leaf_keeps_every_field(kind: str, tmp_path: Path) -> None:
    written = as_template({kind: EVERY_KIND[kind], "beside": np.ones(3, np.int8)})
    tx.save_template({kind: EVERY_KIND[kind], "beside": np.ones(3, np.int8)}, tmp_path / "t.json")
    read = json_file.load_template((tmp_path / "t.json").read_bytes())
    assert list(map(list_fields, read.targets)) == list(map(list_fields, written.targets))
    assert (
        json_file.dump_template(read)
        == json_file.dump_template(written)
        == (tmp_path / "t.json").read_bytes()
    )
    assert not any(t.concrete or t.placement for t in read.targets)


@pytest.mark.parametrize("dtype", strategies.DTYPES)
def test_each_dtype_is_written_by_its_name(dtype: str) -> None:
    template = as_template([A((2,), jnp.dtype(dtype)), np.zeros(2, jnp.dtype(dtype))])
    assert [
        json.loads(json_file.dump_template(template))["leaves"][i]["dtype"] for i in (0, 1)
    ] == [dtype] * 2
    assert [
        t.dtype for t in json_file.load_template(json_file.dump_template(template)).targets
    ] == [jnp.dtype(dtype)] * 2


@pytest.mark.slow
@given(strategies.trees(), st.data())
def test_any_tree_with_any_shardings_is_read_back(tree: Any, data: st.DataObject) -> None:
    """The template read back matches the tree that it was made of."""
    leaves, treedef = jax.tree.flatten(tree)
    abstract = [
        A(x.shape, x.dtype, sharding=data.draw(strategies.shardings(x.shape))) for x in leaves
    ]
    template = as_template(jax.tree.unflatten(treedef, abstract))
    read = json_file.load_template(json_file.dump_template(template))
    assert list(map(list_fields, read.targets)) == list(map(list_fields, template.targets))
    assert tx.check(tx.Recipe(lambda: tree), read, cast="exact").ok


@pytest.mark.parametrize(
    "spec",
    [
        PartitionSpec(),
        PartitionSpec("data"),
        PartitionSpec(None, "model"),
        PartitionSpec(("data", "model")),
        PartitionSpec(("model", "data"), None),
        PartitionSpec("model", "data"),
    ],
    ids=str,
)
def test_each_partition_spec_is_read_back(spec: PartitionSpec) -> None:
    template = as_template({"w": A((8, 8), jnp.int8, sharding=NamedSharding(make_mesh(), spec))})
    (read,) = json_file.load_template(json_file.dump_template(template)).targets
    assert read.sharding == template.targets[0].sharding
    assert read.sharding is not None
    assert read.sharding.mesh == {"data": 4, "model": 2}
    assert PartitionSpec(*read.sharding.spec) == spec


def test_a_sharding_of_prng_keys_is_checked_against_the_shape_of_the_keys(tmp_path: Path) -> None:
    """The shape of the key data has one dimension more."""
    keys = make_keys(4)
    sharding = NamedSharding(make_mesh(), PartitionSpec("data"))
    tx.save_template({"k": keys}, tmp_path / "t.json", shardings=sharding)
    read = json_file.load_template((tmp_path / "t.json").read_bytes())
    assert read.targets[0].problems == ()
    assert tx.check(tx.Recipe(lambda: {"k": keys}), read).ok
    other = tx.check(tx.Recipe(lambda: {"k": jax.random.key(0, impl="rbg")}), read)
    assert [(m.problem, m.expected, m.found) for m in other.mismatches] == [
        ("shape", "(4,)", "()"),
        ("dtype", "key<threefry2x32>", "key<rbg>"),
    ]


def test_names_that_json_must_escape_are_read_back() -> None:
    names = [
        'say "hi"',
        "back\\slash",
        "new\nline",
        "漢字",
        "",
        " ",
        "a/b",
        "a.b",
        "\u2028",
        "\x00",
    ]
    read = json_file.load_template(
        json_file.dump_template(as_template({n: A((), jnp.int8) for n in names}))
    )
    assert sorted(t.name for t in read.targets) == sorted(names)


def test_save_template_accepts_a_loaded_template(tmp_path: Path) -> None:
    template = as_template(EVERY_KIND)
    tx.save_template(template, tmp_path / "a.json")
    tx.save_template(
        json_file.load_template((tmp_path / "a.json").read_bytes()), tmp_path / "b.json"
    )
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_messages_for_invalid_template_files() -> None:
    with pytest.raises(tx.UnknownFormat) as caught:
        json_file.load_template(b'{"leaves": []}', "want.json")
    assert str(caught.value) == (
        "Expected a template file, Object missing required field `templax_template` - file"
        " `want.json`; hint: `templax template CHECKPOINT` and `tx.save_template` write one"
    )
    with pytest.raises(tx.UnknownFormat) as caught:
        json_file.load_template(b'{"templax_template": 2, "leaves": []}', "want.json")
    assert str(caught.value) == "Expected template version 1, got 2 - file `want.json`"
    with pytest.raises(tx.Corrupted) as damaged:
        json_file.load_template(encode_template(shape=[2, -1]), "want.json")
    assert str(damaged.value) == (
        "Expected sizes of at least 0, got (2, -1) - at `a`, file `want.json`"
    )
    with pytest.raises(tx.Corrupted) as damaged:
        json_file.load_template(encode_template(dtype="float33"), "want.json")
    assert str(damaged.value) == "Expected a dtype, got `float33` - at `a`, file `want.json`"


def encode_template(**changed: Any) -> bytes:
    leaf = {"path": ["a"], "shape": [2], "dtype": "float32"} | changed
    return json.dumps({"templax_template": 1, "leaves": [leaf]}).encode()


HOSTILE = {
    "a scalar of unsigned ints": encode_template(kind="scalar", shape=[], dtype="uint8"),
    "a scalar of bfloat16": encode_template(kind="scalar", shape=[], dtype="bfloat16"),
    "a scalar with a shape": encode_template(kind="scalar", shape=[3], dtype="int64"),
    "a key without implementation": encode_template(kind="key", dtype="uint32"),
    "a key without key data": encode_template(kind="key", shape=[], dtype="uint32", key_impl="rbg"),
    "a key of floats": encode_template(kind="key", dtype="float32", key_impl="threefry2x32"),
    "a key of an unknown implementation": encode_template(
        kind="key", dtype="uint32", key_impl="x\n"
    ),
    "a mesh axis of no device": encode_template(sharding={"mesh": {"x": 0}, "spec": ["x"]}),
    "a mesh axis of negative size": encode_template(sharding={"mesh": {"x": -2}, "spec": ["x"]}),
    "an unknown mesh axis": encode_template(sharding={"mesh": {}, "spec": ["x"]}),
    "an axis twice": encode_template(sharding={"mesh": {"x": 2}, "spec": [["x", "x"]]}),
    "a sharding of another rank": encode_template(sharding={"mesh": {"x": 2}, "spec": ["x", None]}),
    "a shape beyond memory": encode_template(shape=[2**62, 2**62]),
    "a size beyond 64 bits": encode_template(shape=[2**70]),
    "an empty path": encode_template(path=[]),
    "a path of odd elements": encode_template(path=["", -1, 2**70]),
    "a string with a shape": encode_template(kind="string", shape=[3], dtype="string"),
    "a skip with a shape": encode_template(kind="skip", shape=[3]),
    "a dtype with an order": encode_template(dtype=">f4"),
    "a dtype with a shape": encode_template(dtype="(3,)f4"),
    "a structured dtype": encode_template(dtype="f4,f4"),
    "a dtype of objects": encode_template(dtype="O"),
    "a dtype of text": encode_template(dtype="U4"),
    "two leaves of one name": (
        b'{"templax_template": 1, "leaves": [{"path": ["a"], "shape": [], "dtype": "int8"},'
        b'{"path": ["a"], "shape": [], "dtype": "int8"}]}'
    ),
    "a bool as version": b'{"templax_template": true, "leaves": []}',
    "a float as version": b'{"templax_template": 1.5, "leaves": []}',
    "a number": b"1",
    "null": b"null",
    "an Orbax metadata file": b'{"tree_metadata": {}, "use_zarr3": false}',
    "a safetensors header": b'{"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
    "a BOM": b"\xef\xbb\xbf" + encode_template(),
    "UTF-16": encode_template().decode().encode("utf-16"),
    "truncated": encode_template()[:-3],
    "twice": encode_template() * 2,
    "NaN": b'{"templax_template": NaN, "leaves": []}',
    "deep": b'{"templax_template":' * 50_000,
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_template_is_refused_or_reported(data: bytes) -> None:
    """Loading it raises an error, or the template loads and can be matched."""
    refused: tx.CheckpointError | None = None
    template = template_module.Template(())
    try:
        template = json_file.load_template(data, "want.json")
    except (tx.UnknownFormat, tx.Corrupted) as error:
        refused = error
    if refused is not None:
        assert refused.file == "want.json"
        assert "want.json" in str(refused)
        return
    stored: list[Any] = [jnp.ones(2), jnp.ones(2, jnp.uint32), 3, "text", jax.random.key(0)]
    for leaf in stored:
        match = tx.check(tx.Recipe(lambda leaf=leaf: {"a": leaf}), template)
        assert match.ok or str(match)


@count_examples(200)
@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
def test_arbitrary_bytes_are_not_a_template(data: bytes) -> None:
    with pytest.raises(tx.UnknownFormat):
        json_file.load_template(data)


@count_examples(200)
@given(st.data())
def test_a_template_with_one_change_is_read_or_refused(data: st.DataObject) -> None:
    """A field of another type or value, or a byte."""
    content = json.loads(json_file.dump_template(as_template({**EVERY_KIND, "s": SHARDED})))
    leaf = data.draw(st.sampled_from(content["leaves"]))
    field = data.draw(st.sampled_from(["path", "shape", "dtype", "kind", "key_impl", "sharding"]))
    leaf[field] = data.draw(
        st.sampled_from(
            [None, "", "int8", "key", "scalar", "string", "skip", [], [0], [1, 2], ["a"], 3, {}]
        )
    )
    text = bytearray(json.dumps(content).encode())
    if data.draw(st.booleans()):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    try:
        template = json_file.load_template(bytes(text))
    except (tx.UnknownFormat, tx.Corrupted):
        return
    str(tx.check(STORED, template))


LEAF = {"path": ["a"], "shape": [2], "dtype": "float32"}

KEY = {"dtype": "uint32", "kind": "key", "key_impl": "threefry2x32"}


def shard(mesh: dict[str, int], *spec: Any) -> dict[str, Any]:
    return {"sharding": {"mesh": mesh, "spec": list(spec)}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (KEY | {"shape": []}, "Expected the shape of a key's data, got () - at `a`, file `t.json`"),
        (
            shard({str(i): 2**62 for i in range(300)}, [str(i) for i in range(300)]),
            "Expected a mesh of at most 2147483648 devices, got more - at `a`, file `t.json`",
        ),
        (shard({"x": 2}, "x", "x"), "Expected each mesh axis in one dimension, got one in several"),
        (shard({"x": 2}, ["x"] * 10_000), "Expected each mesh axis in one dimension"),
        ({"shape": [2**60] * 300}, "Expected a shape that memory can hold, got (1152921504606846"),
        ({"shape": [2**62] * 100_000}, "Expected a shape that memory can hold, got (4611686018427"),
        ({"shape": [2**62, 0, 8]}, "Expected a shape that memory can hold, got (46116860184273879"),
        ({"shape": [1] * 33}, "Expected a shape that memory can hold, got (1, 1, 1, 1, ... 29"),
        ({"dtype": "f4," * 100_000}, "Expected a dtype, got `f4,f4,"),
        (
            {"path": ["a"] * 100_000},
            "templax reads trees of at most 300 levels, got 100000 below `a.a.a.a.a.a.a.a`",
        ),
    ],
)
def test_a_leaf_that_no_template_has_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"templax_template": 1, "leaves": [LEAF | changes]}))
    code = "from templax._template.json_file import load_template as load\n"

    found = run_limited(f"{code}load(open('t.json', 'rb').read(), 't.json')", cwd=tmp_path)

    assert found.error is not None
    assert found.error.partition(": ")[2].startswith(message)


@pytest.mark.parametrize(
    "text",
    [
        '{"templax_template": 1, "leaves": [], "leaves": []}',
        '{"templax_template": 1, "leaves": [{"path": ["a"], "path": ["b"], "shape": [],'
        ' "dtype": "int8"}]}',
        '{"templax_template": 1, "leaves": [{"path": ["a"], "shape": [], "dtype": "int8",'
        ' "sharding": {"mesh": {"x": 1, "x": 2}, "spec": []}}]}',
    ],
)
def test_a_key_that_occurs_twice_is_named(text: str) -> None:
    with pytest.raises(tx.UnknownFormat, match=r"Expected a template file, the key '\w+' occurs"):
        json_file.load_template(text.encode())


def test_a_template_that_could_not_be_read_again_is_refused(tmp_path: Path) -> None:
    tree: Any = A((2,), jnp.int8)
    for _ in range(301):
        tree = {"a": tree}
    with pytest.raises(tx.UsageError, match="at most 300 levels, got 301"):
        tx.save_template(tree, tmp_path / "t.json")
    assert not list(tmp_path.iterdir())
