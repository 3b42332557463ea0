"""Checkpoints of every generation and layout, paths to them, and files lost in a copy."""

from __future__ import annotations

import hashlib
import shutil
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import templax as tx
from helpers import CORPUS, copy_case

A = jax.ShapeDtypeStruct


def test_every_layout_is_restored_by_the_same_call() -> None:
    """The result has the tree of the template, whichever Orbax wrote the checkpoint and how."""
    template = {"w": A((8, 6), jnp.float32)}
    for case in sorted(CORPUS.glob("orbax-*")):
        if "crash" in case.name or "handmade" in case.name or "manager" in case.name:
            continue
        if case.name.endswith(("prng", "special", "aggregate_some", "aggregate_ocdbt")):
            continue
        got = tx.restore(case / "ckpt", template, at="state.params.layers.0", extra="ignore")
        assert jax.tree.structure(got) == jax.tree.structure(template)


def test_checkpoints_of_every_generation_open() -> None:
    for case in [
        "0.2.3-default",
        "0.2.3-aggregate",
        "0.4.4-default",
        "0.5.5-noocdbt",
        "0.6.4-zarr3",
    ]:
        catalog = tx.open(CORPUS / f"orbax-{case}" / "ckpt")
        assert tx.restore(catalog, catalog.template())["state"]["params"]["big"].shape == (128, 64)


@pytest.mark.slow
def test_every_generation_gives_the_same_values(sha256_of_big: Any) -> None:
    """One template and the same bits from Orbax 0.2 to 0.12."""
    template = {"params": {"big": A((128, 64), jnp.float32), "scale": A((), jnp.float32)}}
    for case in sorted(CORPUS.glob("orbax-*")):
        others = ("prng", "special", "crash_merge", "aligned", "aggregate_some", "aggregate_ocdbt")
        if case.name.endswith(others):  # have other trees
            continue
        path = case / "ckpt"
        if case.name.endswith("manager"):
            path = path / "20" / "state"
        got = tx.restore(path, template, at="state", extra="ignore")
        digest = hashlib.sha256(np.asarray(got["params"]["big"]).tobytes()).hexdigest()
        assert digest == sha256_of_big(case.name)


def test_a_path_is_accepted_in_any_spelling(save: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative, with `~`, as a `pathlib.Path` or a URL, with a slash at the end."""
    path = save({"w": jnp.ones(2)})
    monkeypatch.chdir(path.parent)
    monkeypatch.setenv("HOME", str(path.parent))
    for spelled in ("ckpt", "./ckpt/", "~/ckpt", Path("ckpt"), f"file://{path}"):
        assert tx.restore(spelled, {"w": A((2,), jnp.float32)})["w"].sum() == 2


def test_the_only_pytree_item_of_a_step_is_found(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ocp.CheckpointManager(tmp_path / "run") as manager:
            items = {
                "state": ocp.args.StandardSave({"w": jnp.ones(2)}),
                "config": ocp.args.JsonSave({"lr": 0.1}),
            }
            manager.save(7, args=ocp.args.Composite(**items))
    assert tx.restore(tmp_path / "run" / "7", {"w": A((2,), jnp.float32)})["w"].sum() == 2
    with pytest.raises(tx.UnknownFormat) as caught:
        tx.open(tmp_path / "run")
    assert str(caught.value) == (
        f"{tmp_path}/run holds 1 step; the latest committed step is 7;"
        f' hint: open "{tmp_path}/run/7"'
    )


def test_several_items_of_a_step_are_listed(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ocp.CheckpointManager(tmp_path / "run") as manager:
            items = {k: ocp.args.StandardSave({"w": jnp.ones(2)}) for k in ("state", "ema")}
            manager.save(7, args=ocp.args.Composite(**items))
    step = tmp_path / "run" / "7"
    with pytest.raises(tx.UnknownFormat) as caught:
        tx.restore(step, {"w": A((2,), jnp.float32)})
    for item in ("state", "ema"):
        assert item in str(caught.value)
        assert tx.restore(step / item, {"w": A((2,), jnp.float32)})["w"].sum() == 2


def test_a_missing_chunk_is_an_error_instead_of_zeros() -> None:
    with pytest.raises(tx.Corrupted) as caught:
        tx.restore(
            CORPUS / "damaged-chunk_missing" / "ckpt",
            {"big": A((128, 64), jnp.float32)},
            at="state.params",
            extra="ignore",
        )
    assert (caught.value.leaf, caught.value.file) == ("state.params.big", "state.params.big/0.0")


def test_lost_dot_files_and_lfs_pointers_are_recognised(tmp_path: Path) -> None:
    shutil.copytree(
        CORPUS / "orbax-0.12.8-noocdbt" / "ckpt",
        tmp_path / "ckpt",
        ignore=shutil.ignore_patterns(".*"),
    )
    with pytest.raises(tx.Corrupted, match="with the files whose names start with a dot"):
        tx.open(tmp_path / "ckpt")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    path = copy_case("orbax-0.12.8-default", tmp_path / "lfs")
    (path / "_METADATA").write_text(pointer)
    with pytest.raises(tx.UnknownFormat, match="git lfs pull"):
        tx.open(path)
