"""The v1 API saves under Orbax and under `templax.compat.orbax`; each restores both results."""

import json

import jax.numpy as jnp
import pytest

import templax as tx
import templax.compat.orbax as compat
from helpers import abstract
from side_by_side import assert_interchangeable, first_device, small_tree

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("collect_garbage"),
]


def v1(ocp, path):
    ocp.v1.save(path / "ckpt", {"old": jnp.ones(2)})
    ocp.v1.save(path / "ckpt", small_tree(), overwrite=True, custom_metadata={"seed": 3})
    return json.loads((path / "ckpt/_CHECKPOINT_METADATA").read_text())["custom_metadata"]


def v1_async(ocp, path):
    response = ocp.v1.save_async(path / "ckpt", small_tree())
    result = response.result(timeout=60)
    return [result, response.result(), (path / "ckpt").exists()]


def v1_older_names(ocp, path):
    ocp.v1.save_pytree(path / "other", small_tree())
    ocp.v1.save_pytree_async(path / "ckpt", small_tree()).result()


def v1_read(ocp, path):
    target = abstract(small_tree(), first_device())
    return [ocp.v1.load(path / "ckpt"), ocp.v1.load(path / "ckpt", target)]


def v1_named(ocp, path):
    ocp.v1.save(path / "ckpt", small_tree(), checkpointable_name="model")


def v1_named_read(ocp, path):
    return ocp.v1.load(path / "ckpt", checkpointable_name="model")


@pytest.mark.parametrize(
    ("code", "read"),
    [
        (v1, v1_read),
        (v1_async, v1_read),
        (v1_older_names, v1_read),
        (v1_named, v1_named_read),
    ],
    ids=lambda f: f.__name__,
)
def test_saves_are_interchangeable(code, read, tmp_path):
    """After one changed import, the same tree is saved and restored."""
    assert_interchangeable(code, read, tmp_path)


@pytest.mark.parametrize("wait", [True, False])
def test_v1_raises_what_failed(wait, tmp_path, monkeypatch, fail_next_save):
    """A response raises it at each call of `result`."""
    fail_next_save()
    if wait:
        with pytest.raises(tx.SaveError, match="No space"):
            compat.v1.save(tmp_path / "ckpt", small_tree())
        return
    response = compat.v1.save_async(tmp_path / "ckpt", small_tree())
    for _ in range(2):
        with pytest.raises(tx.SaveError, match="No space"):
            response.result(timeout=60)
