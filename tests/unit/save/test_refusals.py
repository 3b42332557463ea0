"""What `save` refuses before it makes a file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import templax as tx
from helpers import assert_same_tree, run_python
from templax._save import item, job
from templax.formats.orbax import limits


def make_donated() -> jax.Array:
    x = jnp.ones(4)
    jax.jit(lambda x: x * 2, donate_argnums=0)(x)
    if not x.is_deleted():
        x.delete()
    return x


def make_deleted(x: jax.Array) -> jax.Array:
    x.delete()
    return x


BAD = {
    "abstract": (lambda: jax.ShapeDtypeStruct((2,), jnp.float32), "abstract"),
    "skipped": (lambda: ..., "never restored"),
    "objects": (lambda: np.array([object()]), "dtype object"),
    "text": (lambda: np.array(["a"]), "dtype <U1"),
    "longdouble": (lambda: np.zeros(2, np.longdouble), "dtype"),
    "huge": (lambda: 2**70, "int64 can't hold"),
    "bytes": (lambda: b"raw", "np.frombuffer"),
    "set": (lambda: {1, 2}, "builtins.set"),
    "donated": (make_donated, "donated"),
    "deleted bytes": (lambda: make_deleted(jnp.ones(4, jnp.int8)), "deleted"),
    "deleted key": (lambda: make_deleted(jax.random.key(0)), "deleted"),
    "surrogate": (lambda: "\udc80", "Unicode"),
    "masked": (lambda: np.ma.masked_array([1.0, 2.0], [0, 1]), "mask would be lost"),
}


def test_all_leaves_that_cannot_be_saved_are_named(tmp_path: Path) -> None:
    tree = {"fine": jnp.ones(3)} | {name: make() for name, (make, _) in BAD.items()}
    with pytest.raises(tx.SaveError) as caught:
        tx.save(tmp_path / "ckpt", tree)
    for name, (_, why) in BAD.items():
        assert f"`{name}`" in str(caught.value)
        assert why in str(caught.value)
    assert "fine" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_traced_array_is_refused_by_name(tmp_path: Path) -> None:
    @jax.jit
    def step(x: jax.Array) -> jax.Array:
        tx.save(tmp_path / "ckpt", {"x": x})
        return x

    with pytest.raises(tx.SaveError, match=r"`x` is traced: save outside of jax\.jit"):
        step(jnp.ones(2))


def test_two_leaves_with_the_same_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(tx.SaveError, match=r"two leaves are named `a\.b`"):
        tx.save(tmp_path / "ckpt", {"a": {"b": jnp.ones(1)}, "a.b": jnp.ones(2)})


@pytest.mark.parametrize(
    "wrong",
    [
        {"format": "pickle"},
        {"compression": "gzip"},
        {"compression": "zstd:0"},
        {"compression": "zstd:23"},
        {"compression": True},
        {"metadata": {"a": {1, 2}}},
        {"memory": 0},
        {"threads": -1},
    ],
)
def test_invalid_arguments_are_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(tx.UsageError):
        tx.save(tmp_path / "ckpt", {"w": jnp.ones(3)}, **wrong)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("url", [None, 5, ["a"]])
def test_a_value_that_is_not_a_path_is_refused(url: Any) -> None:
    with pytest.raises(tx.UsageError, match="Expected a path"):
        tx.save(url, {"w": np.ones(3)})


def test_text_beyond_the_limit_of_restore_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item, "MAX_METADATA", 10_000)
    with pytest.raises(tx.SaveError, match="which a restore would refuse"):
        tx.save(tmp_path / "ckpt", {"s": "a" * 10_001})
    assert os.listdir(tmp_path) == []


W = np.ones(2, np.float32)


@pytest.mark.parametrize(
    ("tree", "why"),
    [
        ({"a": np.ones((1,) * 33, np.float32)}, "`a` has 33 dimensions, more than 32"),
        ({"a": jnp.ones((1,) * 33)}, "`a` has 33 dimensions, more than 32"),
        (
            {"a": jax.random.key(0).reshape((1,) * 32)},
            "`a` has 33 dimensions with those of its key data, more than 32",
        ),
        (
            {"a": np.zeros((0, 2**62), np.int8)},
            "`a` has shape (0, 4611686018427387904), more than 2**62-1 in a dimension",
        ),
        (
            {"n" * 65528: W},
            f"`{'n' * 40}…` has a name of 65,528 bytes, which makes keys of 65,536, more than"
            " 65,535",
        ),
        (
            {"é" * 32764: W},
            f"`{'é' * 40}…` has a name of 65,528 bytes, which makes keys of 65,536, more than"
            " 65,535",
        ),
        (
            {f"{'n' * 65000}{i}": W for i in range(300)},
            f"`{'n' * 40}…` and the other names make keys of 39,001,580 bytes, more than"
            " 33,708,032",
        ),
        ({"a": W, "a/": W}, "`a/` would be stored where `a` is: rename one of them"),
        (
            {"": W, "/": W},
            "`/` would be stored where the leaf without a name is: rename one of them",
        ),
        ({"a": {"\udc80": W}}, r"`a.\udc80` is a name that is not valid Unicode"),
        ({"a": {"\udc80": None}}, r"`a.\udc80` is a name that is not valid Unicode"),
        ({"a~": "text"}, "`a~` is a string, and has a `~` in its name: rename it"),
        ({"a/b/c": "x", "a": "y"}, "`a/b/c` would be stored in the string `a`"),
        (
            {"w": W, "e": [None] * 65553},
            "`e.0` is one of 65,553 empty containers, more than 65,552",
        ),
        ({"a/" * 300: "x"}, f"`{'a/' * 20}…` is a string with over 299 `/`"),
        ({"\udc80": "text"}, r"`\udc80` is a name that is not valid Unicode"),
    ],
)
def test_what_could_not_be_read_again_is_refused_by_name(
    tree: Any, why: str, tmp_path: Path
) -> None:
    with pytest.raises(tx.SaveError) as caught:
        tx.save(tmp_path / "ckpt", tree)
    assert str(caught.value) == f"This tree can't be saved: {why}"
    assert os.listdir(tmp_path) == []
    with tx.Manager(tmp_path / "run") as manager, pytest.raises(tx.SaveError) as caught:
        manager.save(1, tree, wait=True)
    assert str(caught.value) == f"This tree can't be saved: {why}"
    assert not (tmp_path / "run" / "1").exists()


@pytest.mark.parametrize(
    "tree",
    [
        {"a": np.ones((1,) * 32, np.float32)},
        {"a": jax.random.key(0).reshape((1,) * 31)},
        {"a": np.zeros((0, 2**62 - 1), np.int8)},
        {"n" * 65527: W},
        {"n" * 70000: "text", "m" * 70000: None, "w": W},
        {"a": "text", "a/": W, "a//": W},
        {"a/b": "x", "a/c/": "y", "/": "z", "b~1": "u", "b~0~1/": "v", "a": W, "b~": W},
    ],
)
def test_what_is_just_within_the_limits_is_saved(tree: Any, tmp_path: Path) -> None:
    tx.save(tmp_path / "ckpt", tree)
    assert tx.verify(tmp_path / "ckpt").damages == ()
    assert_same_tree(tx.restore(tmp_path / "ckpt", tree), tree)


def nest(levels: int) -> Any:
    tree: Any = W
    for _ in range(levels):
        tree = {"a": tree}
    return tree


def test_a_tree_of_many_levels_is_refused(tmp_path: Path) -> None:
    tx.save(tmp_path / "ckpt", nest(300))
    assert_same_tree(tx.restore(tmp_path / "ckpt", nest(300)), nest(300))
    with pytest.raises(tx.SaveError, match=r"`a\.a.*…` is 301 levels deep, more than 300"):
        tx.save(tmp_path / "deep", nest(301))


@jax.tree_util.register_pytree_with_keys_class
class Pair:
    """A node whose children have the same key."""

    def __init__(self, *children: Any):
        self.children = children

    def tree_flatten_with_keys(self) -> Any:
        return [(jax.tree_util.DictKey("a"), child) for child in self.children], None

    @classmethod
    def tree_unflatten(cls, _: None, children: Any) -> Any:
        return cls(*children)


@pytest.mark.parametrize(
    ("tree", "why"),
    [
        (Pair(None, {}), "`a` is there 2 times"),
        (Pair(W, {"b": W}), "`a` holds a value and has others below it"),
        (Pair(None, {"b": {"c": W}}), "`a` holds a value and has others below it"),
    ],
)
def test_children_that_share_a_key_are_refused(tree: Any, why: str, tmp_path: Path) -> None:
    with pytest.raises(tx.SaveError) as caught:
        tx.save(tmp_path / "ckpt", tree)
    assert str(caught.value) == f"This tree can't be saved: {why}"


def test_a_path_that_is_not_unicode_is_refused(tmp_path: Path) -> None:
    for save in (
        lambda path: tx.save(path, {"w": W}),
        lambda path: tx.Manager(path).save(1, {"w": W}, wait=True),
    ):
        with pytest.raises(
            tx.SaveError, match=r"Expected a path in UTF-8, got other bytes.*\\udc80"
        ):
            save(f"{tmp_path}/\udc80")


@pytest.mark.parametrize("text", ["a" * 10_001, "\x01" * 2_000])
def test_metadata_files_beyond_what_a_restore_reads_are_refused_before_a_file_is_made(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "_OVERHEAD", 0)
    monkeypatch.setattr(limits, "MAX_METADATA", 10_000)
    monkeypatch.setattr(job, "open_staging", None)
    with pytest.raises(tx.SaveError, match=r"`s` has the largest part of `_strings\.json`, which"):
        tx.save(tmp_path / "ckpt", {"s": text, "other": W})


def test_more_chunks_than_an_index_holds_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_ENTRIES", 6)
    tx.save(tmp_path / "a", {"a": W, "b": W, "c": W})
    with pytest.raises(tx.SaveError) as caught:
        tx.save(tmp_path / "b", {"a": W, "b": np.zeros(4 << 20, np.float32)})
    assert str(caught.value) == (
        "This tree can't be saved: `b` is cut into 4 chunks, and all arrays together make 7 keys,"
        " more than 6"
    )


def test_arguments_in_the_wrong_order_are_told_so(tmp_path: Path) -> None:
    tree = {"w": np.ones(1000)}
    with pytest.raises(tx.UsageError) as caught:
        tx.save(tree, str(tmp_path / "ckpt"))  # pyright: ignore[reportArgumentType]
    assert str(caught.value) == "Expected a path to save to, got dict; hint: tx.save(path, tree)"
    tx.save(tmp_path / "ckpt", tree)
    with pytest.raises(tx.UsageError, match=r'Expected extra="error", "ignore" or .*, got .*…$'):
        tx.restore(tmp_path / "ckpt", tree, extra=tree)  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info >= (3, 12), reason="JAX flattens trees of 2,000 levels there")
def test_a_tree_that_is_too_deep_for_jax_is_refused(tmp_path: Path) -> None:
    # In a process of its own, as JAX does not give back all of the stack.
    code = (
        "import sys, numpy as np, jax, templax as tx\n"
        "path = sys.argv[1]\n"
        "tx.save(path, {'w': np.ones(2)})\n"
        "tree = np.ones(2)\n"
        "for _ in range(2000):\n"
        "    tree = {'k': tree}\n"
        "try:\n"
        "    tx.check(path, tree)\n"
        "except tx.UsageError as error:\n"
        "    print(error)\n"
    )
    result = run_python("-c", code, tmp_path / "ckpt")
    said = "Expected a pytree as template: it has too many levels for JAX"
    assert result.stdout.splitlines() == [said]
