"""Which names mean the same leaf, and which must never be taken for each other."""

from __future__ import annotations

import pytest

from templax._views.leaf_words import compare_meanings, read_name


def compare(a: str, b: str) -> float:
    meanings = []
    for name in (a, b):
        elements = name.split(".")
        blocks = frozenset(i for i, element in enumerate(elements) if element[-1:] == "#")
        meanings.append(read_name([e.rstrip("#") for e in elements], {}, blocks))
    return compare_meanings(*meanings)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("model.layers.#.self_attn.q_proj.weight", "layers_#.attention.query.kernel"),
        ("encoder.layer.#.attention.output.dense.bias", "encoderblock_#.SelfAttention.out.bias"),
        ("h.#.mlp.c_fc.weight", "blocks.#.mlp.up.kernel"),
        ("model.layers.#.mlp.down_proj.weight", "layers_#.ffn.w2.kernel"),
        ("bn1.running_mean", "batch_stats.bn.mean"),
        ("Dense.kernel.value", "params.Dense.kernel"),
        ("layers.#.post_attention_layernorm.weight", "layers_#.mlp_norm.scale"),
        ("transformer.wpe.weight", "pos_embed.embedding"),
        ("lm_head.weight", "head.kernel"),
        ("fc.weight", "head.kernel"),
        ("layers/#/attn/q_proj/weight", "layers_#.attention.query.kernel"),
        ("layers,#,input_layernorm,weight", "layers_#.attn_norm.scale"),
        ("layers_0_post_attention_layernorm_weight", "layers.#.ffn_norm.weight"),
        ("Dense/kernel/value", "params.Dense.kernel"),
    ],
)
def test_names_of_the_same_leaf_agree(a, b):
    assert compare(a, b) > 0.5
    assert compare(a, b) == compare(b, a)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("layers.#.attn.q_proj.weight", "layers.#.attn.k_proj.weight"),
        ("layers.#.mlp.gate_proj.weight", "layers.#.mlp.up_proj.weight"),
        ("layers.#.attn.o_proj.weight", "layers.#.mlp.down_proj.weight"),
        ("layers.#.attn.q.kernel", "layers.#.cross_attn.q.kernel"),
        ("encoder.layers.#.attn.q.kernel", "decoder.layers.#.attn.q.kernel"),
        ("layers.#.input_layernorm.weight", "layers.#.post_attention_layernorm.weight"),
        ("wte.weight", "wpe.weight"),
        ("bn.running_mean", "bn.running_var"),
        ("fc.weight", "fc.bias"),
        ("opt_state.mu.fc.weight", "opt_state.nu.fc.weight"),
        ("opt_state.mu.fc.weight", "params.fc.weight"),
        ("ema_params.fc.weight", "params.fc.weight"),
        ("alpha.weight", "beta.weight"),
        ("layers/#/post_attention_layernorm/weight", "layers.#.attention_norm.weight"),
        ("layers_0_post_attention_layernorm_weight", "layers.#.attention_norm.weight"),
        ("layers/0/ln_1/bias", "layers.0.ln_1.scale"),
        ("opt_state/mu/fc/weight", "params.fc.weight"),
    ],
)
def test_names_of_different_leaves_have_nothing_in_common(a, b):
    assert compare(a, b) == 0
