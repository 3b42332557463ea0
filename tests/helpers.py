"""What tests of several packages share: the corpus, trees, files, processes."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.experimental
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import settings
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import templax as tx

if TYPE_CHECKING:
    from click.testing import Result

set_mesh = jax.set_mesh if hasattr(jax, "set_mesh") else jax.sharding.use_mesh
"""Sets a mesh for a block, in every version of JAX."""

SET_MESH = "jax.set_mesh" if hasattr(jax, "set_mesh") else "jax.sharding.use_mesh"
"""How messages name it."""

enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
"""Turns 64-bit types on or off for a block."""

CORPUS = Path(__file__).parent / "corpus"
CKPT = CORPUS / "orbax-0.12.8-default" / "ckpt"
"""The checkpoint for tests that do not care which one they read."""


def skip_without_dtype(name: str) -> None:
    """Skips a test of a dtype that came with ml_dtypes 0.5 where an older one is installed."""
    if ml_dtypes.__version__.startswith("0.4.") and name in _NEW_IN_0_5:
        pytest.skip("ml_dtypes before 0.5 lacks it")


_NEW_IN_0_5 = (
    "int2", "uint2", "float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn", "float8_e3m4",
    "float8_e4m3", "float8_e8m0fnu",
)  # fmt: skip


def mark_slow(*cases: Any) -> list[Any]:
    """Parameters that the quick tests leave out: values, or tuples of several."""
    rows = (case if isinstance(case, tuple) else (case,) for case in cases)
    return [pytest.param(*row, marks=pytest.mark.slow) for row in rows]


def is_thorough() -> bool:
    """Whether tests try everything of which they otherwise try a part, which takes much longer."""
    return settings.get_current_profile_name() == "thorough"


def choose_some(cases: Sequence[Any], every: int, first: int = 0) -> Sequence[Any]:
    """One in `every` of the cases, or all of them if the tests are to be thorough."""
    return cases if is_thorough() else cases[first % every :: every]


def count_examples(number: int) -> settings:
    """A setting for hypothesis: this number of examples.

    They are fewer in proportion if the profile tries fewer than the default one, and as many as the
    profile tries if that is more.
    """
    default, chosen = settings.get_profile("default").max_examples, settings().max_examples
    scaled = number * chosen // default if chosen <= default else max(number, chosen)
    return settings(max_examples=max(scaled, 1))


def copy_case(case: str, to: Path) -> Path:
    """Copies the checkpoint of a case of the corpus, so that a test may change it. Returns `to`."""
    shutil.copytree(CORPUS / case / "ckpt", to)
    return to


def f32(*shape: int) -> jax.ShapeDtypeStruct:
    """A template leaf."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def abstract(tree: Any, sharding: Any = None) -> Any:
    """The tree with a `jax.ShapeDtypeStruct` in place of each array; other leaves stay."""

    def describe(leaf: Any) -> Any:
        if not isinstance(leaf, (jax.Array, np.ndarray, np.generic)):
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(describe, tree)


def checkpoint_like(tree: Any) -> tx.Recipe:
    """A checkpoint in memory with the leaves of an abstract tree, all zeros."""

    def checkpoint() -> Any:
        return jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x,
            tree,
        )

    return tx.Recipe(checkpoint)


CHECKPOINT_LIKE_URL = "Recipe(checkpoint_like.<locals>.checkpoint)"
"""How messages name what `checkpoint_like` returns."""


def checkpoint_of(tree: Any) -> tx.Recipe:
    """A checkpoint in memory that holds this tree."""
    return tx.Recipe(lambda: tree)


def make_keys(*shape: int, impl: str = "threefry2x32") -> jax.Array:
    """Typed PRNG keys, all different; `jax.random.split` would compile a program for them.

    In JAX 0.5 they keep the numpy array, and lack what else a `jax.Array` has.
    """
    words = {"threefry2x32": 2, "rbg": 4, "unsafe_rbg": 4}[impl]
    data = np.arange(math.prod(shape) * words, dtype=np.uint32).reshape(*shape, words)
    return jax.random.wrap_key_data(data, impl=impl)


def shard_over(n: int, *spec: Any) -> NamedSharding:
    """A sharding over the first `n` devices; `spec` names their only axis, `x`."""
    return NamedSharding(Mesh(np.array(jax.devices()[:n]), ("x",)), PartitionSpec(*spec))


def assert_same_tree(got: Any, want: Any, *, kinds: bool = True) -> None:
    """The same structure, and each leaf of the same kind, dtype, shape and bytes.

    PRNG keys are compared by implementation and key data; leaves other than arrays by type and
    identity or equality.

    Args:
        kinds: Whether a `jax.Array` differs from a numpy array of the same values.
    """
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
        where = jax.tree_util.keystr(path)
        if not isinstance(b, (jax.Array, np.ndarray, np.generic)):
            assert type(a) is type(b), where
            assert a is b or a == b or (a != a and b != b), where  # NaN
            continue
        assert not kinds or isinstance(a, jax.Array) == isinstance(b, jax.Array), where
        assert (a.dtype, a.shape) == (b.dtype, b.shape), where
        if jnp.issubdtype(b.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), where


def list_mismatches(found: tx.Match | tx.TemplateError) -> list[tuple[str, str]]:
    """The problem and the name of each mismatch, in order."""
    return [(mismatch.problem, mismatch.name) for mismatch in found.mismatches]


def check_template(checkpoint: Any, template: Any, **options: Any) -> list[tuple[str, str]]:
    """The problem and the name of each mismatch that `templax.check` reports."""
    return list_mismatches(tx.check(checkpoint, template, **options))


def catch_mismatches(checkpoint: Any, template: Any, **options: Any) -> list[tuple[str, str]]:
    """The problem and the name of each mismatch for which a restore is refused."""
    with pytest.raises(tx.TemplateError) as caught:
        tx.restore(checkpoint, template, **options)
    return list_mismatches(caught.value)


def restore_as_saved(checkpoint: Any) -> Any:
    """Restores everything, through the template that the checkpoint gives."""
    catalog = tx.open(checkpoint)
    return tx.restore(catalog, catalog.template())


def read_expected(case: str) -> dict[str, dict[str, Any]]:
    """What a case of the corpus records about its leaves, by their paths with slashes."""
    return json.loads((CORPUS / case / "expected.json").read_text())


def save_with_orbax(path: Path, tree: Any, save_args: Any = None, **options: Any) -> Path:
    """Saves as a single item; `options` go to `PyTreeCheckpointHandler`. Returns `path`."""
    import orbax.checkpoint as ocp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        handler = ocp.PyTreeCheckpointHandler(**options)
        ocp.Checkpointer(handler).save(path, args=ocp.args.PyTreeSave(tree, save_args=save_args))
    return path


def read_files(directory: Path) -> dict[str, bytes]:
    """The content of every file below the directory, by its relative path."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def count_bytes(directory: Path) -> int:
    """The total size of the files below the directory."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def list_names(directory: Path) -> list[str]:
    """The names of the directory's children, sorted."""
    return sorted(path.name for path in directory.iterdir())


def flip_bit(data: bytes, at: int) -> bytes:
    """The data with one bit of the byte at `at` changed."""
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


def run_cli(*arguments: Any, input: str | None = None) -> Result:
    """Runs `templax` with these arguments in this process."""
    from click.testing import CliRunner

    from templax.cli.main import main

    return CliRunner().invoke(main, [str(a) for a in arguments], input=input)


def run_python(
    *arguments: Any, timeout_s: float = 120.0, **environment: str | None
) -> subprocess.CompletedProcess[str]:
    """Runs Python in a process of its own, without input; `NAME=None` unsets a variable.

    A process that takes longer than `timeout_s` is killed and fails the test.
    """
    env = os.environ | environment
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={name: value for name, value in env.items() if value is not None},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
