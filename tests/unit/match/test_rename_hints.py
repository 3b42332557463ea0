"""Hints that rename: subtrees that moved, other names of a leaf, other spellings of all names."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import templax as tx
from helpers import CHECKPOINT_LIKE_URL as URL
from helpers import checkpoint_like, f32
from mismatches import DENSE, MLP, fail_match, follow_hints, has_no_hint
from templax._match import meaning

A = jax.ShapeDtypeStruct

NET = {
    "Dense_0": {"kernel": f32(3, 8), "bias": f32(8)},
    "Dense_1": {"kernel": f32(8, 8), "bias": f32(8)},
    "Dense_2": {"kernel": f32(8, 4), "bias": f32(4)},
}


def _train_state(optimizer: Any, params: Any) -> Any:
    return {"params": params, "opt_state": jax.eval_shape(optimizer.init, params)}


@pytest.mark.parametrize(
    ("wrap", "rename"),
    [
        (lambda o: optax.chain(optax.clip(1.0), o), {"opt_state.0": "opt_state.1.0"}),
        (lambda o: optax.chain(o, optax.clip(1.0)), {"opt_state.0": "opt_state.0.0"}),
    ],
)
def test_an_optimizer_that_was_chained_since_is_found(wrap: Any, rename: Any) -> None:
    checkpoint = _train_state(optax.adam(1e-3), NET)
    template = _train_state(wrap(optax.adam(1e-3)), NET)
    match = fail_match(checkpoint, template)
    assert match.rename == rename
    assert all(m.hint for m in match.mismatches)
    assert follow_hints(match, checkpoint, template).ok
    back = fail_match(template, checkpoint)
    assert follow_hints(back, template, checkpoint).ok


@pytest.mark.parametrize(
    ("template_optimizer", "inner"),
    [
        (optax.MultiSteps(optax.adam(1e-3), 2), "opt_state.inner_opt_state.0"),
        (optax.inject_hyperparams(optax.adam)(1e-3), "opt_state.inner_state.0"),
        (optax.apply_if_finite(optax.adam(1e-3), 3), "opt_state.inner_state.0"),
    ],
)
def test_an_optimizer_that_was_wrapped_since_is_found(template_optimizer: Any, inner: str) -> None:
    checkpoint = _train_state(optax.adam(1e-3), NET)
    template = _train_state(template_optimizer, NET)
    match = fail_match(checkpoint, template)
    assert match.rename == {"opt_state.0": inner}
    after = tx.check(checkpoint_like(checkpoint), template, rename=match.rename)
    assert {m.problem for m in after.mismatches} == {"missing"}  # what the wrapper adds
    assert all(not m.name.startswith(inner) for m in after.mismatches)


def test_two_optimizers_that_were_wrapped_are_each_found() -> None:
    """Actor and critic have the same shapes; the places tell them apart."""
    adam, chain = optax.adam(1e-3), optax.chain(optax.clip(1.0), optax.adam(1e-3))
    checkpoint = {name: _train_state(adam, NET) for name in ("actor", "critic")}
    template = {name: _train_state(chain, NET) for name in ("actor", "critic")}
    match = fail_match(checkpoint, template)
    assert match.rename == {
        "actor.opt_state.0": "actor.opt_state.1.0",
        "critic.opt_state.0": "critic.opt_state.1.0",
    }
    assert follow_hints(match, checkpoint, template).ok


def test_renamed_layers_of_unique_shapes_are_found() -> None:
    checkpoint = {"enc": NET["Dense_0"], "mid": NET["Dense_1"], "head": NET["Dense_2"]}
    template = {"encoder": NET["Dense_0"], "middle": NET["Dense_1"], "head": NET["Dense_2"]}
    match = fail_match(checkpoint, template)
    assert str(match).split("\n")[-1] == '  hint: rename={"enc": "encoder", "mid": "middle"}'
    assert follow_hints(match, checkpoint, template).ok


def test_renamed_layers_are_found_in_the_moments_of_an_optimizer_too() -> None:
    adam = optax.adam(1e-3)
    checkpoint = _train_state(adam, {"enc": NET["Dense_0"], "head": NET["Dense_2"]})
    template = _train_state(adam, {"encoder": NET["Dense_0"], "head": NET["Dense_2"]})
    match = fail_match(checkpoint, template)
    assert match.rename is not None
    assert set(match.rename) == {"params.enc", "opt_state.0.mu.enc", "opt_state.0.nu.enc"}
    assert follow_hints(match, checkpoint, template).ok


def test_layers_that_are_numbered_anew_are_found() -> None:
    template = {f"Dense_{i + 1}": NET[f"Dense_{i}"] for i in range(3)}
    match = fail_match(NET, template)
    assert match.rename == {"Dense_0": "Dense_1", "Dense_1": "Dense_2", "Dense_2": "Dense_3"}
    assert all(m.hint for m in match.mismatches)
    assert follow_hints(match, NET, template).ok


def test_a_subtree_that_moved_to_an_inner_level_is_found() -> None:
    checkpoint = {"model": {"enc": DENSE, "head": f32(9)}, "step": f32()}
    template = {"model": {"head": f32(9), "trunk": {"enc": DENSE}}, "step": f32()}
    match = fail_match(checkpoint, template)
    assert match.rename == {"model.enc": "model.trunk.enc"}
    assert follow_hints(match, checkpoint, template).ok


def test_moved_subtrees_are_found_where_extra_leaves_are_ignored() -> None:
    checkpoint = {"enc": DENSE, "x": f32(2), "y": f32(2)}
    template = {"encoder": DENSE, "x": f32(2)}
    match = fail_match(checkpoint, template, extra="ignore")
    assert follow_hints(match, checkpoint, template, extra="ignore").ok


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("encoder", "decoder"),
        ("self_attn", "cross_attn"),
        ("teacher", "student"),
        ("fwd", "bwd"),
        ("q1", "q2"),
        ("mu", "nu"),
        ("trace", "tracer"),
        ("layers_0", "layers_1"),
        ("block1", "block3"),
        ("block1", "block10"),
        ("net", "net_target"),
        ("critic", "criticTarget"),
        ("policy", "policytarget"),
        ("model", "model_ema"),
        ("mid", "top"),
        ("w", "wo"),
        ("encoder.net", "decoder.net"),
        ("model.enc", "trunk.enc"),
        ("ema.net", "net"),
        ("mu.net", "net"),
    ],
)
def test_no_subtree_is_renamed_to_one_of_another_meaning(old: str, new: str) -> None:
    """The content of both is the same, and nothing else has it."""

    def nest(name: str) -> Any:
        tree: Any = {"kernel": f32(3, 8), "bias": f32(8)}
        for key in reversed(name.split(".")):
            tree = {key: tree}
        return {"x": f32(5), "top_level": {"y": f32(6), **tree}}

    for stored, wanted in ((old, new), (new, old)):
        assert fail_match(nest(stored), nest(wanted)).rename is None


@pytest.mark.parametrize(
    ("old", "new"), [("enc_0", "encoder_0"), ("Dense_0", "dense_00"), ("AttnBlock", "attn_block")]
)
def test_a_subtree_of_an_abbreviated_name_is_found(old: str, new: str) -> None:
    for stored, wanted in ((old, new), (new, old)):
        checkpoint, template = {stored: DENSE, "x": f32(5)}, {wanted: DENSE, "x": f32(5)}
        match = fail_match(checkpoint, template)
        assert match.rename == {stored: wanted}
        assert follow_hints(match, checkpoint, template).ok


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        (optax.scale_by_adam(), optax.trace(0.9)),
        (optax.trace(0.9), optax.scale_by_adam()),
        (optax.sgd(0.1, 0.9), optax.chain(optax.clip(1.0), optax.adam(1e-3))),
        (optax.adam(1e-3), optax.chain(optax.clip(1.0), optax.sgd(0.1, 0.9))),
    ],
)
def test_no_moment_is_renamed_to_another(stored: Any, wanted: Any) -> None:
    assert fail_match(_train_state(stored, NET), _train_state(wanted, NET)).rename is None


def test_the_state_of_a_flat_chain_that_got_another_index_is_found() -> None:
    scale = optax.scale_by_adam()
    checkpoint = _train_state(optax.chain(scale, optax.scale(-1.0)), NET)
    template = _train_state(optax.chain(optax.clip(1.0), scale, optax.scale(-1.0)), NET)
    match = fail_match(checkpoint, template)
    assert match.rename == {"opt_state.0": "opt_state.1"}
    assert follow_hints(match, checkpoint, template).ok


@pytest.mark.parametrize(
    ("old", "new"),
    [
        *[("w_v", "w_o"), ("weight_ih", "weight_hh"), ("Wq", "Wk"), ("wi", "wo"), ("wx", "wh")],
        *[("k_embed", "q_embed"), ("w_up", "w_out"), ("running_mean", "running_var")],
        *[("mean", "median"), ("sigma_w", "sigma_b"), ("kernel_re", "kernel_im"), ("mu", "nu")],
        *[("min_val", "max_val"), ("best_loss", "last_loss"), ("seed", "speed"), ("fwd", "bwd")],
        *[("scale", "kernel"), ("scale", "embedding"), ("scale", "weight"), ("w_1_2", "w_12")],
        *[("kernel_1", "kernel_2"), ("q_kernel", "k_kernel"), ("ema_bias", "bias")],
    ],
)
def test_no_leaf_is_renamed_to_one_of_another_meaning(old: str, new: str) -> None:
    for shape in ((4,), (4, 4)):
        for stored, wanted in ((old, new), (new, old)):
            layer = {"other": f32(4), "x": f32(7)}
            checkpoint = {"layer": {**layer, stored: f32(*shape)}}
            template = {"layer": {**layer, wanted: f32(*shape)}}
            match = fail_match(checkpoint, template)
            assert "rename=" not in str(match)
            assert match.rename is None


def test_a_leaf_spelled_almost_alike_is_noted() -> None:
    match = fail_match({"l": {"w_up": f32(4), "x": f32(7)}}, {"l": {"w_ups2": f32(4), "x": f32(7)}})
    assert has_no_hint(match)
    match = fail_match({"k_embed": f32(4), "x": f32(7)}, {"q_embed": f32(4), "x": f32(7)})
    assert match.mismatches[0].note == "nearest: `k_embed`"
    assert has_no_hint(match)


def test_no_moment_is_noted_as_nearest_to_a_weight() -> None:
    checkpoint = {"net": {"mu": {"w": f32(3)}}, "x": f32(7)}
    for name in ("w", "nu.w"):
        match = fail_match(checkpoint, {f"net.{name}": f32(3), "x": f32(7)})
        assert match.mismatches[0].note is None


@pytest.mark.parametrize(
    ("old", "new"),
    [("Kernel", "kernel"), ("pos-embed", "pos_embed"), ("w_01", "w_1"), ("losses", "loss")],
)
def test_a_leaf_of_another_case_separator_padding_or_a_plural_is_renamed(
    old: str, new: str
) -> None:
    for stored, wanted in ((old, new), (new, old)):
        checkpoint, template = {stored: f32(4), "x": f32(7)}, {wanted: f32(4), "x": f32(7)}
        match = fail_match(checkpoint, template)
        assert match.rename == {stored: wanted}
        assert follow_hints(match, checkpoint, template).ok


def test_looking_for_other_names_of_many_leaves_costs_little(monkeypatch: Any) -> None:
    """Like those of a flat dict whose keys are whole names."""
    names = []
    real = meaning.normalize
    monkeypatch.setattr(meaning, "normalize", lambda name: names.append(name) or real(name))
    checkpoint = {"losses": f32(4), **{f"old{i}": f32(2) for i in range(200)}}
    template = {"loss": f32(4), **{f"new{i}": f32(3) for i in range(200)}}
    match = fail_match(checkpoint, template)
    assert match.rename == {"losses": "loss"}
    assert 400 <= len(names) <= 4000  # a few for each of 402 leaves


@pytest.mark.parametrize(
    ("checkpoint", "template"),
    [
        pytest.param(
            {f"layers_{i}": DENSE for i in (0, 1, 2, 3)},
            {f"layers_{i}": DENSE for i in (0, 1, 2, 4)},
            id="layers are alike",
        ),
        pytest.param(
            {"a": DENSE, "b": DENSE}, {"c": DENSE, "d": DENSE}, id="two subtrees fit two others"
        ),
        pytest.param({"dense": {"bias": f32(8)}}, {"norm": {"bias": f32(8)}}, id="one vector"),
        pytest.param(
            {"x": {"kernel": f32(3, 8), "bias": f32(8)}},
            {"y": {"kernel": f32(3, 8), "bias": f32(9)}},
            id="one of the shapes differs",
        ),
        pytest.param(
            {"x": {"kernel": A((3, 8), jnp.int8)}},
            {"y": {"kernel": f32(3, 8)}},
            id="quantized",
        ),
    ],
)
def test_no_move_is_hinted_where_several_or_none_fit(checkpoint: Any, template: Any) -> None:
    assert has_no_hint(fail_match(checkpoint, template))


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [("weight", "kernel"), ("gamma", "scale"), ("w", "kernel"), ("beta", "bias")],
)
def test_another_name_of_the_same_leaf_is_hinted_where_one_fits(stored: str, wanted: str) -> None:
    checkpoint = {"fc1": {stored: f32(3, 8), "other": f32(8)}}
    template = {"fc1": {wanted: f32(3, 8), "other": f32(8)}}
    match = fail_match(checkpoint, template)
    assert match.rename == {f"fc1.{stored}": f"fc1.{wanted}"}
    assert follow_hints(match, checkpoint, template).ok


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        ({"scale": f32(8)}, {"bias": f32(8)}),
        ({"gamma": f32(8, 3)}, {"kernel": f32(3, 8)}),
        ({"scale": f32(3), "gamma": f32(3)}, {"kernel": f32(3)}),
    ],
)
def test_no_other_name_is_hinted_for_another_role_or_shape_or_two(stored: Any, wanted: Any) -> None:
    assert has_no_hint(fail_match({"fc": {**stored, "x": f32()}}, {"fc": {**wanted, "x": f32()}}))


@pytest.mark.parametrize("sep", [",", "/", "|"])
def test_names_joined_by_another_separator_are_respelled(sep: str) -> None:
    flat = {sep.join(["params", d, k]): v for d, layer in MLP.items() for k, v in layer.items()}
    match = fail_match(flat, {"params": MLP})
    assert str(match) == (
        f"none of 4 leaves found in {URL}; the checkpoint joins names by `{sep}`;"
        f' hint: rename=lambda name: name.replace("{sep}", ".")'
    )
    assert follow_hints(match, flat, {"params": MLP}).ok
    assert follow_hints(fail_match(flat, MLP), flat, MLP).ok
    assert follow_hints(fail_match({"params": MLP}, flat), {"params": MLP}, flat).ok


def test_an_at_that_is_part_of_a_longer_name_is_respelled_as_well() -> None:
    flat = {f"params,{d},{k}": v for d, layer in MLP.items() for k, v in layer.items()}
    match = fail_match(flat, MLP, at="params")
    assert match.mismatches[0].hint == (
        'rename=lambda name: name.replace(",", ".").removeprefix("params."), at=""'
    )
    assert follow_hints(match, flat, MLP, at="params").ok


@pytest.mark.parametrize(
    ("checkpoint", "template"),
    [
        ({"a,b": f32(2)}, {"c": {"d": f32(2)}}),
        ({"a,b": f32(2)}, {"a": {"b": f32(3)}, "z": f32(4), "y": f32(5)}),
        ({"a/b": f32(2)}, {"a,b": f32(2), "x": f32(1)}),
    ],
)
def test_no_respelling_is_hinted_where_it_does_not_help(checkpoint: Any, template: Any) -> None:
    match = fail_match(checkpoint, template)
    assert "replace" not in str(match)


def test_a_value_level_below_another_prefix_is_respelled() -> None:
    """The variables of Linen lie under `params`, those of NNX end in `value`."""
    boxed = jax.tree.map(lambda x: {"value": x}, MLP)
    for checkpoint, template in (({"params": MLP}, boxed), (boxed, {"params": MLP})):
        match = fail_match(checkpoint, template)
        assert follow_hints(match, checkpoint, template).ok
    match = fail_match({"params": MLP, "opt_state": f32(3)}, boxed)
    assert match.mismatches[0].hint == 'rename=lambda name: name + ".value", at="params"'


def _start_head(size: int) -> Any:
    return {"body": np.ones((4, 2)), "head": {"kernel": np.ones((2, size)), "bias": np.ones(size)}}


@pytest.mark.parametrize("missing", [tx.Recipe(_start_head, 5), "keep"])
def test_a_head_of_another_size_is_set_aside(missing: Any) -> None:
    checkpoint, template = tx.Recipe(_start_head, 9), _start_head(5)
    options: dict[str, Any] = {"missing": missing, "extra": "ignore"}
    match = tx.check(checkpoint, template, **options)
    assert match.rename == {"head": "old.head"}
    assert {m.hint for m in match.mismatches} == {'rename={"head": "old.head"}'}
    got = tx.restore(checkpoint, template, rename=match.rename, **options)
    assert got["head"]["kernel"].shape == (2, 5)


@pytest.mark.parametrize(
    "options", [{}, {"extra": "ignore"}, {"missing": tx.Recipe(_start_head, 5)}]
)
def test_no_head_is_set_aside_unless_something_supplies_and_ignores_it(options: Any) -> None:
    match = tx.check(tx.Recipe(_start_head, 9), _start_head(5), **options)
    assert has_no_hint(match)


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        pytest.param({"w": f32(8, 3)}, {"w": f32(3, 8)}, id="turned"),
        pytest.param({"w": f32(2, 3), "v": f32(2, 4)}, {"w": f32(3), "v": f32(4)}, id="replicas"),
        pytest.param({"k": A((2,), jnp.uint32)}, {"k": jax.random.key(0)}, id="a raw key"),
        pytest.param({"w": f32(3), "old": f32(4)}, {"w": f32(4)}, id="another leaf fits"),
    ],
)
def test_no_leaf_is_set_aside_that_can_be_had(stored: Any, wanted: Any) -> None:
    def make(tree: Any) -> Any:
        return jax.tree.map(
            lambda s: s if isinstance(s, jax.Array) else jnp.zeros(s.shape, s.dtype), tree
        )

    checkpoint = tx.Recipe(lambda: make({"body": f32(9), "part": stored}))
    template = make({"body": f32(9), "part": wanted})
    match = tx.check(checkpoint, template, missing="keep", extra="ignore")
    assert not match.ok
    assert match.rename is None
    assert "old." not in str(match)


def test_the_words_of_pytorch_are_respelled_though_its_kernels_are_transposed() -> None:
    stored = {"fc.weight": f32(10, 8), "fc.bias": f32(10), "square.weight": f32(8, 8)}
    template = {"fc": {"kernel": f32(8, 10), "bias": f32(10)}, "square": {"kernel": f32(8, 8)}}
    for wrapped in (template, {"params": template}):
        match = fail_match(stored, wrapped)
        assert "the checkpoint calls `weight` what the template calls `kernel`" in str(match)
        after = follow_hints(match, stored, wrapped)
        assert [m.problem for m in after.mismatches] == ["shape"]
        assert [name.split(".")[-2] for name in after.undecidable] == ["square"]


def test_the_words_of_pytorch_are_not_respelled_where_that_finds_nothing() -> None:
    assert has_no_hint(fail_match({"a": {"weight": f32(3, 4)}}, {"b": {"kernel": f32(5, 6)}}))


def test_a_square_weight_that_is_renamed_to_kernel_is_named_as_undecidable(tmp_path):
    path = tmp_path / "ckpt"
    tx.save(
        path, {"fc1": {"weight": np.eye(4, dtype="f4")}, "fc2": {"weight": np.eye(5, dtype="f4")}}
    )
    f32 = np.dtype("f4")
    template = {
        "fc1": {"kernel": jax.ShapeDtypeStruct((4, 4), f32)},
        "fc2": {"kernel": jax.ShapeDtypeStruct((5, 5), f32)},
    }
    match = tx.check(path, template)
    assert match.undecidable == ("fc1.kernel", "fc2.kernel")
    assert "an't tell by its shape whether" in str(match)
    assert "as PyTorch stores it" in str(match)


@pytest.mark.parametrize("stored", ["weight", "kernel"])
def test_a_square_weight_in_a_flat_tree_is_named_as_undecidable(stored: str) -> None:
    """In either direction: from PyTorch's names, and to them."""
    wanted = {"weight": "kernel", "kernel": "weight"}[stored]
    match = fail_match({f"fc.{stored}": f32(4, 4)}, {f"fc.{wanted}": f32(4, 4)})
    assert match.undecidable == (f"fc.{wanted}",)


def test_a_leaf_that_is_not_square_tells_the_layout_of_the_square_ones(tmp_path):
    path = tmp_path / "ckpt"
    tx.save(
        path, {"fc1": {"weight": np.eye(4, dtype="f4")}, "fc2": {"weight": np.ones((4, 5), "f4")}}
    )
    f32 = np.dtype("f4")
    template = {
        "fc1": {"kernel": jax.ShapeDtypeStruct((4, 4), f32)},
        "fc2": {"kernel": jax.ShapeDtypeStruct((4, 5), f32)},
    }
    assert tx.check(path, template).undecidable == ()


@pytest.mark.parametrize(
    ("given", "combined"),
    [
        ({"enc": "encoder"}, {"enc": "encoder", "mid": "middle"}),
        ({"head": "top", "enc": "encoder"}, {"head": "top", "enc": "encoder", "mid": "middle"}),
        ({"enc": "Encoder"}, {"enc": "encoder", "mid": "middle"}),
        (
            lambda name: name.replace("enc", "encoder"),
            {"enc.b": "encoder.b", "enc.w": "encoder.w", "mid.b": "middle.b", "mid.w": "middle.w"},
        ),
    ],
)
def test_a_rename_besides_the_callers_is_hinted_together_with_it(
    given: Any, combined: dict[str, str]
) -> None:
    def layer(n: int) -> Any:
        return {"w": f32(3, n), "b": f32(n)}

    head = "top" if isinstance(given, dict) and "head" in given else "head"
    checkpoint = {"enc": layer(4), "mid": layer(5), "head": layer(6)}
    template = {"encoder": layer(4), "middle": layer(5), head: layer(6)}
    match = fail_match(checkpoint, template, rename=given)
    assert match.rename == combined
    assert follow_hints(match, checkpoint, template).ok


@pytest.mark.parametrize(
    ("checkpoint", "template", "given"),
    [
        pytest.param(
            {"a": DENSE, "b": f32(4)},
            {"params": {"x": DENSE, "b": f32(4)}},
            {"a": "x"},
            id="wrapped, too",
        ),
        pytest.param(
            {"old": {"enc": {"Dense_0": DENSE}}, "y": f32(4)},
            {"new": {"encoder": {"Dense_0": DENSE}}, "y": f32(4)},
            {"old": "new"},
            id="below what was renamed",
        ),
        pytest.param(
            {"m": {"a": {"value": f32(2)}, "b": {"value": f32(3)}}, "c": {"value": f32(4)}},
            {"n": {"a": f32(2), "b": f32(3)}, "c": f32(4)},
            {"m": "n"},
            id="a level more in all names",
        ),
        pytest.param(
            {"a": {"x": DENSE}, "head": f32(2, 3), "s": f32(6)},
            {"b": {"x": DENSE}, "head": f32(2, 4), "s": f32(6)},
            {"a": "b"},
            id="a head of another size",
        ),
    ],
)
def test_hints_on_names_hold_where_the_caller_renames(
    checkpoint: Any, template: Any, given: dict[str, str]
) -> None:
    options = {"extra": "ignore", "missing": checkpoint_like(template)}
    match = fail_match(checkpoint, template, rename=given, extra="ignore")
    if not match.rename:
        match = fail_match(checkpoint, template, rename=given, **options)
    assert match.rename
    tx.restore(checkpoint_like(checkpoint), template, **{**options, "rename": match.rename})
