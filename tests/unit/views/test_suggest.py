"""Mappings that are suggested for models in the layouts of other libraries."""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np
import pytest

import templax as tx
from model_layouts import (
    D,
    F,
    H,
    K,
    L,
    Layout,
    V,
    bert,
    gpt2,
    kernel,
    llama,
    norm,
    resnet,
    vit,
    zeros,
)
from templax._catalog.entry import LeafEntry
from templax._template.template import Target, Template
from templax._views.suggest import find_suggestion


def suggest(tmp_path, stored: Any, template: Any) -> tuple[tx.Mapping | None, list[str]]:
    """The mapping for a tree that is saved first, and its notes."""
    path = tmp_path / "stored.safetensors"
    tx.save(path, stored.stored if isinstance(stored, Layout) else stored)
    notes: list[str] = []
    return tx.suggest(path, template, on_note=notes.append), notes


def restore(tmp_path, mapping: tx.Mapping, template: Any, **options: Any) -> Any:
    return tx.restore(tx.view(tmp_path / "stored.safetensors", mapping), template, **options)


def test_gpt2_with_separate_heads(tmp_path):
    block = {
        "ln_1": norm(),
        "attn": {
            **{p: kernel(D, H, K, bias=(H, K)) for p in ("query", "key", "value")},
            "out": kernel(H, K, D, bias=(D,)),
        },
        "ln_2": norm(),
        "mlp": {"fc_in": kernel(D, F, bias=(F,)), "fc_out": kernel(F, D, bias=(D,))},
    }
    template = {
        "wte": {"embedding": zeros(V, D)},
        "wpe": {"embedding": zeros(16, D)},
        **{f"h_{i}": block for i in range(L)},
        "ln_f": norm(),
    }
    mapping, notes = suggest(tmp_path, gpt2(), template)
    assert mapping is not None
    assert any("`(t h k)` must be `(h t k)`" in note for note in notes)
    made, stored = restore(tmp_path, mapping, template), gpt2().stored["transformer"]
    fused = stored["h"]["1"]["attn"]["c_attn"]
    want = fused["weight"].reshape(D, 3, H, K)
    for i, part in enumerate(("query", "key", "value")):
        np.testing.assert_array_equal(made["h_1"]["attn"][part]["kernel"], want[:, i])
        np.testing.assert_array_equal(
            made["h_1"]["attn"][part]["bias"], fused["bias"].reshape(3, H, K)[i]
        )
    out = stored["h"]["2"]["attn"]["c_proj"]["weight"]
    np.testing.assert_array_equal(made["h_2"]["attn"]["out"]["kernel"], out.reshape(H, K, D))
    np.testing.assert_array_equal(made["ln_f"]["scale"], stored["ln_f"]["weight"])


def make_llama_block(layers: int | None = None) -> dict[str, Any]:
    n = () if layers is None else (layers,)
    return {
        "attn": {
            "q": kernel(*n, D, H, K),
            "k": kernel(*n, D, 2, K),
            "v": kernel(*n, D, 2, K),
            "o": kernel(*n, H, K, D),
        },
        "mlp": {
            "gate": kernel(*n, D, F),
            "up": kernel(*n, D, F),
            "down": kernel(*n, F, D),
        },
        "attn_norm": {"scale": zeros(*n, D)},
        "mlp_norm": {"scale": zeros(*n, D)},
    }


def make_llama() -> dict[str, Any]:
    return {
        "embed": {"embedding": zeros(V, D)},
        "layers": [make_llama_block() for _ in range(L)],
        "final_norm": {"scale": zeros(D)},
        "lm_head": kernel(D, V),
    }


@pytest.mark.parametrize("layout", ["list", "names", "scan"])
def test_llama(tmp_path, layout):
    layers: dict[str, Any] = {
        "list": {"layers": [make_llama_block() for _ in range(L)]},
        "names": {f"layers_{i}": make_llama_block() for i in range(L)},
        "scan": {"layers": make_llama_block(L)},
    }[layout]
    template = make_llama()
    del template["layers"]
    template |= layers
    mapping, _ = suggest(tmp_path, llama(), template)
    assert mapping is not None
    assert len(mapping) == 12
    made, stored = restore(tmp_path, mapping, template), llama().stored["model"]
    got = {
        "list": lambda i: made["layers"][i],
        "names": lambda i: made[f"layers_{i}"],
        "scan": lambda i: jax.tree.map(lambda x: x[i], made["layers"]),
    }[layout]
    for i in range(L):
        block, source = got(i), stored["layers"][str(i)]
        q = source["self_attn"]["q_proj"]["weight"]
        np.testing.assert_array_equal(block["attn"]["q"]["kernel"], q.T.reshape(D, H, K))
        o = source["self_attn"]["o_proj"]["weight"]
        np.testing.assert_array_equal(block["attn"]["o"]["kernel"], o.T.reshape(H, K, D))
        up = source["mlp"]["up_proj"]["weight"]
        np.testing.assert_array_equal(block["mlp"]["up"]["kernel"], up.T)
        after = source["post_attention_layernorm"]["weight"]
        np.testing.assert_array_equal(block["mlp_norm"]["scale"], after)


def test_bert(tmp_path):
    layer = {
        "attention": {
            **{p: kernel(D, D, bias=(D,)) for p in ("query", "key", "value", "out")},
            "norm": norm(),
        },
        "mlp": {"Dense_0": kernel(D, F, bias=(F,)), "Dense_1": kernel(F, D, bias=(D,))},
        "mlp_norm": norm(),
    }
    template = {
        "params": {
            "word_embed": {"embedding": zeros(V, D)},
            "pos_embed": {"embedding": zeros(16, D)},
            "type_embed": {"embedding": zeros(2, D)},
            "embed_norm": norm(),
            **{f"layer_{i}": layer for i in range(L)},
            "pooler": kernel(D, D, bias=(D,)),
        }
    }
    mapping, _ = suggest(tmp_path, bert(), template)
    assert mapping is not None
    made, stored = restore(tmp_path, mapping, template)["params"], bert().stored["bert"]
    one, source = made["layer_2"], stored["encoder"]["layer"]["2"]
    query = source["attention"]["self"]["query"]["weight"]
    np.testing.assert_array_equal(one["attention"]["query"]["kernel"], query.T)
    first = source["attention"]["output"]["LayerNorm"]["weight"]
    np.testing.assert_array_equal(one["attention"]["norm"]["scale"], first)
    second = source["output"]["LayerNorm"]["bias"]
    np.testing.assert_array_equal(one["mlp_norm"]["bias"], second)
    np.testing.assert_array_equal(one["mlp"]["Dense_1"]["bias"], source["output"]["dense"]["bias"])


def test_vit(tmp_path):
    block = {
        "LayerNorm_0": norm(),
        "MultiHeadDotProductAttention_1": {
            **{p: kernel(D, H, K, bias=(H, K)) for p in ("query", "key", "value")},
            "out": kernel(H, K, D, bias=(D,)),
        },
        "LayerNorm_2": norm(),
        "MlpBlock_3": {"Dense_0": kernel(D, F, bias=(F,)), "Dense_1": kernel(F, D, bias=(D,))},
    }
    template = {
        "cls": zeros(1, 1, D),
        "embedding": kernel(4, 4, 3, D, bias=(D,)),
        "Transformer": {
            "posembed_input": {"pos_embedding": zeros(1, 17, D)},
            **{f"encoderblock_{i}": block for i in range(L)},
            "encoder_norm": norm(),
        },
        "head": kernel(D, 10, bias=(10,)),
    }
    mapping, _ = suggest(tmp_path, vit(), template)
    assert mapping is not None
    made, stored = restore(tmp_path, mapping, template), vit().stored["vit"]
    patch = stored["embeddings"]["patch_embeddings"]["projection"]["weight"]
    np.testing.assert_array_equal(made["embedding"]["kernel"], patch.transpose(2, 3, 1, 0))
    one, source = made["Transformer"]["encoderblock_1"], stored["encoder"]["layer"]["1"]
    key = source["attention"]["attention"]["key"]
    got = one["MultiHeadDotProductAttention_1"]["key"]
    np.testing.assert_array_equal(got["kernel"], key["weight"].T.reshape(D, H, K))
    np.testing.assert_array_equal(got["bias"], key["bias"].reshape(H, K))
    np.testing.assert_array_equal(one["LayerNorm_2"]["scale"], source["layernorm_after"]["weight"])
    np.testing.assert_array_equal(
        made["Transformer"]["encoder_norm"]["bias"], stored["layernorm"]["bias"]
    )


@pytest.mark.parametrize("stages", [(2, 3), (2, 2)])
def test_resnet_with_batch_norm(tmp_path, stages):
    params: dict[str, Any] = {"conv_init": kernel(7, 7, 3, 8), "bn_init": norm(8)}
    stats: dict[str, Any] = {"bn_init": {"mean": zeros(8), "var": zeros(8)}}
    n, into = 0, 8
    for s, blocks in enumerate(stages):
        width = 8 * 2**s
        sizes = (width, width, 4 * width)
        for b in range(blocks):
            block = {
                "Conv_0": kernel(1, 1, into, width),
                "Conv_1": kernel(3, 3, width, width),
                "Conv_2": kernel(1, 1, width, 4 * width),
                **{f"BatchNorm_{j}": norm(size) for j, size in enumerate(sizes)},
            }
            stat = {
                f"BatchNorm_{j}": {"mean": zeros(k), "var": zeros(k)} for j, k in enumerate(sizes)
            }
            if b == 0:
                block["conv_proj"] = kernel(1, 1, into, 4 * width)
                block["norm_proj"] = norm(4 * width)
                stat["norm_proj"] = {"mean": zeros(4 * width), "var": zeros(4 * width)}
            params[f"BottleneckResNetBlock_{n}"] = block
            stats[f"BottleneckResNetBlock_{n}"] = stat
            n, into = n + 1, 4 * width
    params["Dense_0"] = kernel(into, 10, bias=(10,))
    template = {"params": params, "batch_stats": stats}
    mapping, notes = suggest(tmp_path, resnet(stages), template)
    assert mapping is not None
    made, stored = restore(tmp_path, mapping, template), resnet(stages).stored
    last = f"BottleneckResNetBlock_{n - 1}"
    source = stored["layer2"][str(stages[1] - 1)]
    np.testing.assert_array_equal(
        made["params"][last]["Conv_1"]["kernel"], source["conv2"]["weight"].transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(
        made["batch_stats"][last]["BatchNorm_2"]["var"], source["bn3"]["running_var"]
    )
    shortcut = stored["layer2"]["0"]["downsample"]["1"]["running_mean"]
    block = made["batch_stats"][f"BottleneckResNetBlock_{stages[0]}"]
    np.testing.assert_array_equal(block["norm_proj"]["mean"], shortcut)
    assert mapping.drop == ("*.num_batches_tracked",)
    assert any("left out" in note and "num_batches_tracked" in note for note in notes)


def test_a_layer_that_may_be_transposed_is_taken_as_its_neighbours_and_noted(tmp_path):
    mapping, notes = suggest(tmp_path, llama(), make_llama())
    assert mapping is not None
    assert notes[0] == (
        "can't tell by its shape whether it is transposed (taken as transposed, like the others):"
        " `layers.{i}.attn.o.kernel`, `layers.{i}.attn.q.kernel`"
    )
    assert notes[1:] == ["left out: `model.layers.0.self_attn.rotary_emb.inv_freq`"]


def test_without_a_neighbour_a_square_layer_is_taken_as_its_names_suggest(tmp_path):
    stored = {"fc1": {"weight": np.arange(9, dtype="f").reshape(3, 3)}}
    template = {"Dense_0": {"kernel": zeros(3, 3)}}
    mapping, notes = suggest(tmp_path, stored, template)
    assert mapping is not None
    assert notes == [
        "can't tell by its shape whether it is transposed (taken as transposed, as the names"
        " suggest): `Dense_0.kernel`"
    ]
    made = restore(tmp_path, mapping, template)
    np.testing.assert_array_equal(made["Dense_0"]["kernel"], stored["fc1"]["weight"].T)


def test_notes_are_warnings_of_the_logger_by_default(tmp_path, caplog):
    tx.save(tmp_path / "m.npz", {"fc": {"weight": np.zeros((3, 3))}})
    tx.suggest(tmp_path / "m.npz", {"fc": {"kernel": zeros(3, 3)}})
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "can't tell by its shape" in caplog.text


def test_a_tied_last_layer_is_filled_by_the_embedding(tmp_path):
    layout = llama()
    del layout.shapes["lm_head.weight"]
    template = make_llama()
    mapping, notes = suggest(tmp_path, layout, template)
    assert mapping is not None
    assert mapping.rules["lm_head.kernel"] == tx.From("model.embed_tokens.weight", "f d -> d f")
    assert any("is not stored" in note for note in notes)
    made = restore(tmp_path, mapping, template)
    np.testing.assert_array_equal(made["lm_head"]["kernel"], made["embed"]["embedding"].T)


def test_a_stacked_model_is_taken_apart(tmp_path):
    stored = {"layers": {"attn": {"q": {"kernel": np.random.rand(L, D, H, K).astype("f")}}}}
    template = {f"layers_{i}": {"attn": {"q": kernel(D, H, K)}} for i in range(L)}
    mapping, _ = suggest(tmp_path, stored, template)
    assert mapping is not None
    made = restore(tmp_path, mapping, template)
    for i in range(L):
        want = stored["layers"]["attn"]["q"]["kernel"][i]
        np.testing.assert_array_equal(made[f"layers_{i}"]["attn"]["q"]["kernel"], want)


def test_a_subtree_that_moved_is_one_rule(tmp_path):
    moments = {p: {"fc1": kernel(4, 3), "fc2": kernel(3, 2)} for p in ("mu", "nu")}
    params = {"fc1": kernel(4, 3), "fc2": kernel(3, 2)}
    stored = {"params": params, "opt_state": {"0": {"count": np.int32(5), **moments}}}
    template = {
        "params": params,
        "opt_state": {"1": {"0": {"count": np.zeros((), np.int32), **moments}}},
    }
    mapping, notes = suggest(tmp_path, stored, template)
    assert mapping == tx.Mapping({"opt_state.1.{...}": "opt_state.{...}"}, rest="keep")
    assert notes == []
    assert restore(tmp_path, mapping, template)["opt_state"]["1"]["0"]["count"] == 5


def test_replicas_are_reduced_to_the_first(tmp_path):
    stored = {"a": {"w": np.random.rand(4, 2, 3)}, "b": {"w": np.random.rand(4, 5)}}
    template = {"a": {"w": np.zeros((2, 3))}, "b": {"w": np.zeros(5)}}
    mapping, notes = suggest(tmp_path, stored, template)
    assert mapping == tx.Mapping(
        {"{...}": tx.From("{...}", "replica ... -> ...", select={"replica": 0})}
    )
    assert notes == ["every leaf has a leading axis of 4: the first of them is taken"]
    made = restore(tmp_path, mapping, template)
    np.testing.assert_array_equal(made["a"]["w"], stored["a"]["w"][0])


@pytest.mark.parametrize("to", ["nnx", "linen"])
def test_linen_and_nnx(tmp_path, to):
    linen = {
        "params": {"Dense_0": kernel(4, 3, bias=(3,)), "BatchNorm_0": norm(3)},
        "batch_stats": {"BatchNorm_0": {"mean": zeros(3), "var": zeros(3)}},
    }
    leaves = {"mean": zeros(3), "var": zeros(3), **norm(3)}
    nnx = {
        "Dense_0": {p: {"value": x} for p, x in kernel(4, 3, bias=(3,)).items()},
        "BatchNorm_0": {p: {"value": x} for p, x in leaves.items()},
    }
    stored, template = (linen, nnx) if to == "nnx" else (nnx, linen)
    mapping, notes = suggest(tmp_path, stored, template)
    assert mapping is not None
    assert notes == []
    assert tx.check(tx.view(tmp_path / "stored.safetensors", mapping), template).ok


def test_numbers_of_layers_that_differ_are_told_by_their_order(tmp_path):
    sizes = [(6, 5), (5, 4), (4, 3)]
    stored = {f"{2 * i}": {"weight": np.ones((b, a))} for i, (a, b) in enumerate(sizes)}
    template = {f"Dense_{i}": kernel(a, b) for i, (a, b) in enumerate(sizes)}
    mapping, _ = suggest(tmp_path, stored, template)
    assert mapping is not None
    sources = [rule.source.text for rule in mapping.rules.values() if isinstance(rule, tx.From)]
    assert sources == ["0.weight", "2.weight", "4.weight"]


def test_what_has_no_source_is_stated_and_left_to_missing(tmp_path):
    template = {**make_llama(), "value_head": kernel(D, 7)}
    mapping, notes = suggest(tmp_path, llama(), template)
    assert mapping is not None
    assert "no source was found for `value_head.kernel`" in notes
    found = tx.check(tx.view(tmp_path / "stored.safetensors", mapping), template)
    assert [(m.problem, m.name) for m in found.mismatches] == [("missing", "value_head.kernel")]


def test_the_optimizer_of_a_checkpoint_is_left_out_for_a_template_of_parameters(tmp_path):
    weights = {"fc": {"weight": np.ones((3, 4))}, "out": {"weight": np.ones((2, 3))}}
    stored = {"model": weights, "optimizer": {"exp_avg": weights, "exp_avg_sq": weights}}
    template = {"fc": kernel(4, 3), "out": kernel(3, 2)}
    mapping, notes = suggest(tmp_path, stored, template)
    assert mapping is not None
    assert mapping.drop == ("optimizer.*",)
    assert any("left out" in note for note in notes)
    assert {rule.source.text for rule in mapping.rules.values()} == {
        "model.fc.weight",
        "model.out.weight",
    }


def test_what_fits_as_it_is_needs_no_rules(tmp_path):
    tree = {"a": kernel(2, 3), "b": kernel(3, 3)}
    mapping, notes = suggest(tmp_path, tree, tree)
    assert mapping == tx.Mapping({}, rest="keep")
    assert notes == []


def test_queries_and_keys_are_never_exchanged(tmp_path):
    stored = {"attn": {p: {"weight": np.ones((4, 4))} for p in ("q_proj", "v_proj")}}
    template = {"attn": {p: kernel(4, 4) for p in ("q", "k")}}
    mapping, notes = suggest(tmp_path, stored, template)
    assert mapping is not None
    assert list(mapping.rules) == ["attn.q.kernel"]
    assert "no source was found for `attn.k.kernel`" in notes


def test_moments_are_no_weights(tmp_path):
    stored = {"mu": {"fc": kernel(3, 4), "out": kernel(4, 2)}}
    assert suggest(tmp_path, stored, {"fc": kernel(3, 4), "out": kernel(4, 2)}) == (None, [])


@pytest.mark.parametrize("layout", [gpt2(), llama(), bert(), vit(), resnet()])
def test_nothing_is_suggested_for_an_unrelated_template(tmp_path, layout):
    template = {"generator": {f"deconv{i}": kernel(5, 5, 9, 11 + i) for i in range(4)}}
    assert suggest(tmp_path, layout, template) == (None, [])


def test_nothing_is_suggested_for_another_size_of_the_model(tmp_path):
    template = {"h": [{"attn": {"q": kernel(32, 4, 8)}, "mlp": {"fc_in": kernel(32, 64)}}]}
    assert suggest(tmp_path, gpt2(), template) == (None, [])


def test_nothing_is_suggested_where_names_say_nothing(tmp_path):
    stored = {name: {"weight": np.ones((4, 3))} for name in ("alpha", "beta", "gamma")}
    template = {name: kernel(3, 4) for name in ("north", "east", "south")}
    assert suggest(tmp_path, stored, template)[0] is None


def test_a_float_is_not_made_an_integer(tmp_path):
    stored = {"fc": {"weight": np.ones((3, 4))}}
    assert suggest(tmp_path, stored, {"fc": {"kernel": np.zeros((4, 3), np.int32)}}) == (None, [])


def test_nothing_is_applied(tmp_path):
    template = make_llama()
    mapping, _ = suggest(tmp_path, llama(), template)
    assert mapping is not None
    with pytest.raises(tx.TemplateError):
        tx.restore(tmp_path / "stored.safetensors", template)
    assert [path.name for path in tmp_path.iterdir()] == ["stored.safetensors"]


def test_a_suggestion_survives_its_file(tmp_path):
    mapping, _ = suggest(tmp_path, llama(), make_llama())
    assert mapping is not None
    mapping.save(tmp_path / "map.json")
    assert tx.Mapping.load(tmp_path / "map.json") == mapping


def test_check_hints_at_a_mapping_that_makes_all_leaves_fit(tmp_path):
    path = tmp_path / "llama.safetensors"
    tx.save(path, llama().stored)
    found = tx.check(path, make_llama())
    lines = str(found).split("\n")
    assert lines[0] == (
        f"none of 30 leaves found in {path}; a mapping of 12 rules makes all of them; can't tell by"
        " its shape whether `layers.0.attn.o.kernel`, `layers.1.attn.o.kernel`,"
        " `layers.2.attn.o.kernel`, and 3 more is transposed; hint: tx.view(checkpoint,"
        " tx.suggest(checkpoint, template))"
    )
    mapping = tx.suggest(path, make_llama(), on_note=print)
    assert lines[1:] == [f"  {line}" for line in str(mapping).split("\n")]
    assert {m.hint for m in found.mismatches if m.problem == "missing"} == {
        "tx.view(checkpoint, tx.suggest(checkpoint, template))"
    }
    assert len(found.undecidable) == 2 * L


def test_check_does_not_hint_at_a_mapping_that_leaves_a_mismatch(tmp_path):
    path = tmp_path / "llama.safetensors"
    tx.save(path, llama().stored)
    found = tx.check(path, {**make_llama(), "value_head": kernel(D, 7)})
    assert "tx.suggest" not in str(found)


def test_check_of_a_view_does_not_hint_at_another_mapping(tmp_path):
    path = tmp_path / "llama.safetensors"
    tx.save(path, llama().stored)
    found = tx.check(tx.view(path, tx.Mapping({}, rest="keep")), make_llama())
    assert "tx.suggest" not in str(found)


def test_experts_are_stacked(tmp_path):
    layout, width = Layout(), 5
    for i, e in np.ndindex(L, 4):
        expert = f"model.layers.{i}.block_sparse_moe.experts.{e}"
        layout.add(f"{expert}.w1.weight", width, D)
        layout.add(f"{expert}.w2.weight", D, width)
        layout.add(f"{expert}.w3.weight", width, D)
    moe = {
        "w1": kernel(L, 4, D, width),
        "w2": kernel(L, 4, width, D),
        "w3": kernel(L, 4, D, width),
    }
    template = {"layers": {"moe": moe}}
    mapping, _ = suggest(tmp_path, layout, template)
    assert mapping is not None
    made = restore(tmp_path, mapping, template)
    layers = layout.stored["model"]["layers"]
    for part in ("w1", "w2", "w3"):
        want = [
            [
                layers[str(i)]["block_sparse_moe"]["experts"][str(e)][part]["weight"].T
                for e in range(4)
            ]
            for i in range(L)
        ]
        np.testing.assert_array_equal(made["layers"]["moe"][part]["kernel"], want)


def make_t5_attention(block: str, layer: int, name: str) -> dict[str, tuple[int, ...]]:
    return {f"{block}.layer.{layer}.{name}.{p}.weight": (D, D) for p in "qkvo"}


def test_the_layers_of_t5_are_told_apart_by_their_numbers(tmp_path):
    layout = Layout()
    layout.add("shared.weight", V, D)
    for side, mlp in (("encoder", 1), ("decoder", 2)):
        for i in range(L):
            block = f"{side}.block.{i}"
            layout.shapes |= make_t5_attention(block, 0, "SelfAttention")
            if side == "decoder":
                layout.shapes |= make_t5_attention(block, 1, "EncDecAttention")
            layout.add(f"{block}.layer.{mlp}.DenseReluDense.wi.weight", F, D)
            layout.add(f"{block}.layer.{mlp}.DenseReluDense.wo.weight", D, F)
            for j in range(mlp + 1):
                layout.add(f"{block}.layer.{j}.layer_norm.weight", D)
        layout.add(f"{side}.final_layer_norm.weight", D)
    attention = {p: kernel(D, D) for p in ("query", "key", "value", "out")}
    scale = {"scale": zeros(D)}
    layer = {
        "self_attn": attention,
        "self_attn_norm": scale,
        "mlp": {"wi": kernel(D, F), "wo": kernel(F, D)},
        "mlp_norm": scale,
    }
    memory = {"cross_attn": attention, "cross_attn_norm": scale}
    template = {
        "embed": {"embedding": zeros(V, D)},
        "encoder": {**{f"layers_{i}": layer for i in range(L)}, "final_norm": scale},
        "decoder": {**{f"layers_{i}": layer | memory for i in range(L)}, "final_norm": scale},
    }
    mapping, _ = suggest(tmp_path, layout, template)
    assert mapping is not None
    made, stored = restore(tmp_path, mapping, template)["decoder"], layout.stored["decoder"]
    one, source = made["layers_1"], stored["block"]["1"]["layer"]
    for j, name in enumerate(("self_attn_norm", "cross_attn_norm", "mlp_norm")):
        want = source[str(j)]["layer_norm"]["weight"]
        np.testing.assert_array_equal(one[name]["scale"], want)
    want = source["1"]["EncDecAttention"]["k"]["weight"].T
    np.testing.assert_array_equal(one["cross_attn"]["key"]["kernel"], want)
    np.testing.assert_array_equal(made["final_norm"]["scale"], stored["final_layer_norm"]["weight"])


@pytest.mark.parametrize("name", ["$drop", "a{b}c", "x*y", "[0]", "{...}", "w\n\x1b", "a..b", ""])
def test_names_that_are_odd_in_the_notation_are_harmless(name):
    shape, dtype = (4, 3), np.dtype("f")
    entries = [LeafEntry(n, (n,), shape, dtype) for n in (f"{name}.weight", name, "fc.weight")]
    for wanted in (f"{name}.kernel", "fc.kernel", name):
        target = Target(wanted, (wanted,), shape[::-1], dtype)
        found = find_suggestion(entries, Template((target,)))
        if found is not None:
            assert found.covered == {wanted}


def test_a_tree_without_leaves_gets_no_suggestion():
    entry = LeafEntry("fc.weight", ("fc", "weight"), (4, 3), np.dtype("f"))
    assert find_suggestion([entry], Template(())) is None
    target = Target("fc.kernel", ("fc", "kernel"), (3, 4), np.dtype("f"))
    assert find_suggestion([], Template((target,))) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        ([f"a.b{i}.c{i % 7}.w.weight" for i in range(20_000)], "x.b{}.c.w.kernel"),
        ([f"fc{i}.weight" for i in range(20_000)], "fc{}.kernel"),
        ([f"w{i}x.weight" for i in range(20_000)], "y{}x.kernel"),
        ([".".join(["0"] * 1_000 + [str(i)]) for i in range(20)], "y{}x.kernel"),
    ],
)
def test_the_search_is_bounded(stored, wanted):
    dtype = np.dtype("f")
    entries = [LeafEntry(n, tuple(n.split(".")), (4, 4), dtype) for n in stored]
    names = [wanted.format(i) for i in range(20_000)]
    targets = [Target(n, tuple(n.split(".")), (4, 4), dtype) for n in names]
    before = time.process_time()
    find_suggestion(entries, Template(tuple(targets)))
    assert time.process_time() - before < 15


def test_a_last_layer_is_not_tied_where_a_leaf_of_its_size_is_left(tmp_path):
    layout = llama()
    layout.shapes["projection_to_words.weight"] = layout.shapes.pop("lm_head.weight")
    mapping, notes = suggest(tmp_path, layout, make_llama())
    assert mapping is not None
    assert "lm_head.kernel" not in mapping.rules
    assert "no source was found for `lm_head.kernel`" in notes
