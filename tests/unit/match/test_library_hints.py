"""Hints where another library, or another model of the same, names and shares leaves otherwise."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import templax as tx
from helpers import checkpoint_like, f32
from mismatches import fail_match, follow_hints

STATS = {"mean": f32(6), "var": f32(6)}
CONV = {"kernel": f32(3, 3, 3, 6), "bias": f32(6)}
NORM = {"scale": f32(6), "bias": f32(6)}

LINEN = {"params": {"conv": CONV, "bn": NORM}, "batch_stats": {"bn": STATS}}
JOINED = {"conv": CONV, "bn": {**NORM, **STATS}}


def box(tree: Any) -> Any:
    """The tree with a level `value` around each leaf."""
    return jax.tree.map(lambda leaf: {"value": leaf}, tree)


@pytest.mark.parametrize("joined", [JOINED, box(JOINED)], ids=["plain", "boxed"])
def test_collections_of_linen_are_joined_and_divided(joined: Any) -> None:
    for stored, wanted in ((LINEN, joined), (joined, LINEN)):
        match = fail_match(stored, wanted)
        assert all(m.hint for m in match.mismatches)
        assert "keeps `params` and `batch_stats` apart" in str(match)
        assert follow_hints(match, stored, wanted).ok


def test_collections_are_joined_in_a_train_state() -> None:
    """What else is in it stays extra."""
    state = {**LINEN, "step": f32(), "opt_state": {"mu": LINEN["params"]}}
    match = fail_match(state, JOINED)
    assert match.rename == {"params": "", "batch_stats": ""}
    after = follow_hints(match, state, JOINED)
    assert {m.problem for m in after.mismatches} == {"extra"}
    assert tx.check(checkpoint_like(state), JOINED, rename=match.rename, extra="ignore").ok


def test_collections_are_joined_besides_what_the_caller_renames() -> None:
    wanted = {"first": CONV, "bn": {**NORM, **STATS}}
    given = {"params.conv": "params.first"}
    match = fail_match(LINEN, wanted, rename=given)
    assert match.rename is not None
    assert tx.check(checkpoint_like(LINEN), wanted, rename=match.rename).ok


def test_weights_alone_are_found_by_at() -> None:
    match = fail_match(LINEN, {"conv": CONV, "bn": NORM}, extra="ignore")
    assert {m.hint for m in match.mismatches} == {'at="params"'}


@pytest.mark.slow
def test_a_model_of_linen_is_restored_into_nnx_and_back(tmp_path: Any) -> None:
    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Conv(6, (3, 3), name="conv")(x)
            return nn.BatchNorm(use_running_average=True, name="bn")(x)

    class Nnx(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.conv = nnx.Conv(3, 6, (3, 3), rngs=rngs)
            self.bn = nnx.BatchNorm(6, use_running_average=True, rngs=rngs)

    variables = Linen().init(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
    tx.save(tmp_path / "linen", variables)
    template = nnx.state(nnx.eval_shape(lambda: Nnx(nnx.Rngs(0))))
    with pytest.raises(tx.TemplateError) as caught:
        tx.restore(tmp_path / "linen", template)
    (hint,) = {m.hint for m in caught.value.mismatches}
    state = tx.restore(tmp_path / "linen", template, **eval(f"dict({hint})"))  # noqa: S307
    tx.save(tmp_path / "nnx", state)
    with pytest.raises(tx.TemplateError) as caught:
        tx.restore(tmp_path / "nnx", tx.template_of(variables))
    (hint,) = {m.hint for m in caught.value.mismatches}
    options = eval(f"dict({hint})")  # noqa: S307 - hints are Python
    back = tx.restore(tmp_path / "nnx", tx.template_of(variables), **options)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), variables, back))


@pytest.mark.parametrize(
    ("layer", "rest"),
    [("out", {"bias": f32(8)}), ("LayerNorm_0", {"bias": f32(8)}), ("ln_f", {}), ("norm2", {})],
)
def test_the_weight_of_a_normalization_is_its_scale(layer: str, rest: Any) -> None:
    stored = {layer: {"weight": f32(8), **rest}, "x": f32(3)}
    wanted = {layer: {"scale": f32(8), **rest}, "x": f32(3)}
    for one, other in ((stored, wanted), (wanted, stored)):
        match = fail_match(one, other)
        assert match.rename is not None
        assert follow_hints(match, one, other).ok


def test_the_weight_of_a_normalization_is_found_beside_transposed_kernels() -> None:
    stored = {
        "ln": {"weight": f32(8), "bias": f32(8)},
        "fc": {"weight": f32(10, 8), "bias": f32(10)},
    }
    wanted = {
        "ln": {"scale": f32(8), "bias": f32(8)},
        "fc": {"kernel": f32(8, 10), "bias": f32(10)},
    }
    match = fail_match(stored, wanted)
    assert match.rename == {"ln.weight": "ln.scale"}
    hints = {m.name: m.hint for m in match.mismatches}
    assert hints["fc.kernel"] is None


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        ({"weight": f32(8, 8), "bias": f32(8)}, {"scale": f32(8, 8), "bias": f32(8)}),
        ({"weight": f32(8)}, {"scale": f32(8)}),
        ({"weight": f32(8), "bias": f32(4)}, {"scale": f32(8), "bias": f32(4)}),
        ({"weight": f32(8), "gamma": f32(8)}, {"scale": f32(8), "weight": f32(8)}),
    ],
    ids=["a matrix", "nothing beside it", "a bias of another shape", "a weight that is wanted"],
)
def test_no_weight_is_taken_for_a_scale_unless_the_rest_agrees(stored: Any, wanted: Any) -> None:
    match = fail_match({"layer": stored, "x": f32(3)}, {"layer": wanted, "x": f32(3)})
    assert "weight" not in "".join(match.rename or {})


class Model(nnx.Module):
    """An embedding and an output layer that may be one array."""

    def __init__(self, *, tied: bool):
        self.embed = nnx.Embed(10, 4, rngs=nnx.Rngs(0))
        new = nnx.Param(jnp.zeros((10, 4)))
        self.out = self.embed.embedding if tied else new


def follow_tied(hint: str, checkpoint: Any) -> dict[str, Any]:
    """The keyword arguments that the hint gives for a model that was tied."""
    assert hint.startswith("if the saved model tied it to `")
    _, _, call = hint.partition("`: ")
    call, _, _ = call.partition(" (the same checkpoint once more); if not, missing=")
    return eval(f"dict({call})", {"checkpoint": checkpoint})  # noqa: S307 - hints are Python


@pytest.mark.slow
def test_an_untied_model_is_restored_from_one_that_was_tied(tmp_path: Any) -> None:
    tied = nnx.state(Model(tied=True))
    tx.save(tmp_path / "ckpt", tied)
    template = nnx.state(nnx.eval_shape(lambda: Model(tied=False)))
    with pytest.raises(tx.TemplateError) as caught:
        tx.restore(tmp_path / "ckpt", template)
    (mismatch,) = caught.value.mismatches
    assert mismatch.hint is not None
    options = follow_tied(mismatch.hint, tmp_path / "ckpt")
    got = tx.restore(tmp_path / "ckpt", template, **options)
    (embedding,) = jax.tree.leaves(tied)
    restored = jax.tree.leaves(got)
    assert len(restored) == 2
    for leaf in restored:
        np.testing.assert_array_equal(leaf, embedding)


def test_the_moments_of_a_tied_embedding_are_found_with_it() -> None:
    def state(params: Any) -> Any:
        return {"params": params, "opt": {"mu": params, "nu": params}}

    stored = state({"wte": f32(10, 4)})
    wanted = state({"wte": f32(10, 4), "lm_head": f32(10, 4)})
    match = fail_match(stored, wanted)
    (hint,) = {m.hint for m in match.mismatches}
    assert hint is not None
    checkpoint = checkpoint_like(stored)
    options = follow_tied(hint, checkpoint)
    assert options["rename"] == {
        f"{place}.wte": f"{place}.lm_head" for place in ("opt.mu", "opt.nu", "params")
    }
    assert tx.check(checkpoint, wanted, **options).ok


@pytest.mark.parametrize(
    ("stored", "new"),
    [
        ({"wte": f32(10, 4)}, {"head": f32(4, 10)}),
        ({"enc": f32(10, 4)}, {"head": f32(10, 4)}),
        ({"embed": f32(10, 4), "pos": f32(10, 4)}, {"head": f32(10, 4)}),
        ({"embed": f32(4)}, {"bias": f32(4)}),
        ({"embed": f32(10, 4)}, {"head": f32(10, 4), "more": f32(3)}),
    ],
    ids=["another shape", "no embedding", "two of its shape", "a vector", "another new leaf"],
)
def test_no_tied_leaf_is_hinted_at_where_it_is_not_clear(stored: Any, new: Any) -> None:
    match = fail_match(stored, {**stored, **new})
    assert all("tied" not in (m.hint or "") for m in match.mismatches)
