"""Each file of `examples/mappings` makes of a state dict what numpy makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import templax as tx

MAPPINGS = Path(__file__).parents[2] / "examples" / "mappings"

V, D, F, H, G, K = 11, 8, 12, 4, 2, 3
"""Vocabulary, width, hidden width, heads, heads of keys and values, width of a head."""

Change = Callable[[np.ndarray], np.ndarray]


class Model:
    """A small state dict of random values, and the leaves that a mapping should make of it.

    Attributes:
        stored: Name in the file → values.
        expected: Name in the tree of Flax → values.
    """

    def __init__(self) -> None:
        self.stored: dict[str, np.ndarray] = {}
        self.expected: dict[str, np.ndarray] = {}
        self._rng = np.random.default_rng(0)

    def add(self, source: str, shape: tuple[int, ...], **targets: Change) -> np.ndarray:
        """Stores random values, and expects a leaf made of them under each name given."""
        values = self.stored[source] = self._rng.normal(size=shape).astype(np.float32)
        for target, change in targets.items():
            self.expected[target] = change(values)
        return values

    def add_dense(
        self, source: str, target: str, shape: tuple[int, ...], change: Change | None = None
    ) -> None:
        """A torch `Linear` of shape (out, in), whose bias is taken as it is."""
        self.add(f"{source}.weight", shape, **{f"{target}.kernel": change or transpose})
        self.add(f"{source}.bias", shape[:1], **{f"{target}.bias": same})

    def add_norm(self, source: str, target: str, size: int = D) -> None:
        self.add(f"{source}.weight", (size,), **{f"{target}.scale": same})
        self.add(f"{source}.bias", (size,), **{f"{target}.bias": same})


def same(x: np.ndarray) -> np.ndarray:
    return x


def transpose(x: np.ndarray) -> np.ndarray:
    return x.T


def split_heads(heads: int) -> Change:
    """(heads * K, D) → (D, heads, K)."""
    return lambda x: x.reshape(heads, K, D).transpose(2, 0, 1)


def pair_rope(heads: int) -> Change:
    """As `split_heads`, for rotary embeddings of neighbours instead of halves."""

    def change(x: np.ndarray) -> np.ndarray:
        heads_first = x.reshape(heads, -1, D)
        halves = np.split(heads_first, 2, axis=1)
        pairs = np.empty_like(heads_first)
        pairs[:, 0::2], pairs[:, 1::2] = halves
        return pairs.transpose(2, 0, 1)

    return change


def split_bias(x: np.ndarray) -> np.ndarray:
    return x.reshape(H, K)


def join_heads(x: np.ndarray) -> np.ndarray:
    """(D, H * K) → (H, K, D)."""
    return x.T.reshape(H, -1, D)


def move_channels(x: np.ndarray) -> np.ndarray:
    """Out, in, height, width → height, width, in, out."""
    return x.transpose(2, 3, 1, 0)


def make_gpt2(model: Model) -> None:
    """`openai-community/gpt2`, which stores (in, out) and its causal masks."""
    model.add("wte.weight", (V, D), **{"params.wte.embedding": same})
    model.add("wpe.weight", (5, D), **{"params.wpe.embedding": same})
    for i in range(2):
        s, t = f"h.{i}", f"params.h_{i}"
        model.add(f"{s}.attn.bias", (1, 1, 5, 5))
        for n in (1, 2):
            model.add_norm(f"{s}.ln_{n}", f"{t}.ln_{n}")
        kernel = model.add(f"{s}.attn.c_attn.weight", (D, 3 * H * K))
        bias = model.add(f"{s}.attn.c_attn.bias", (3 * H * K,))
        for j, name in enumerate(("query", "key", "value")):
            part = slice(j * H * K, (j + 1) * H * K)
            model.expected[f"{t}.attn.{name}.kernel"] = kernel[:, part].reshape(D, H, K)
            model.expected[f"{t}.attn.{name}.bias"] = bias[part].reshape(H, K)
        shape = (H * K, D)
        join = {f"{t}.attn.out.kernel": lambda x: x.reshape(H, K, D)}
        model.add(f"{s}.attn.c_proj.weight", shape, **join)
        model.add(f"{s}.attn.c_proj.bias", (D,), **{f"{t}.attn.out.bias": same})
        for name, a, b in (("c_fc", D, F), ("c_proj", F, D)):
            model.add(f"{s}.mlp.{name}.weight", (a, b), **{f"{t}.mlp.{name}.kernel": same})
            model.add(f"{s}.mlp.{name}.bias", (b,), **{f"{t}.mlp.{name}.bias": same})
    model.add_norm("ln_f", "params.ln_f")


def add_decoder(
    model: Model, i: int, t: str, k: int = K, rotate: Any = split_heads, norm: Change = same
) -> None:
    """The attention and the norms of a layer of Llama, Mixtral or Gemma."""
    s = f"model.layers.{i}"
    model.add(f"{s}.input_layernorm.weight", (D,), **{f"{t}.attn_norm.scale": norm})
    model.add(f"{s}.post_attention_layernorm.weight", (D,), **{f"{t}.mlp_norm.scale": norm})
    attn = f"{s}.self_attn"
    model.add(f"{attn}.q_proj.weight", (H * k, D), **{f"{t}.attn.query.kernel": rotate(H)})
    model.add(f"{attn}.k_proj.weight", (G * k, D), **{f"{t}.attn.key.kernel": rotate(G)})
    heads = {f"{t}.attn.value.kernel": lambda x: x.reshape(G, k, D).transpose(2, 0, 1)}
    model.add(f"{attn}.v_proj.weight", (G * k, D), **heads)
    model.add(f"{attn}.o_proj.weight", (D, H * k), **{f"{t}.attn.out.kernel": join_heads})


def add_mlp(model: Model, i: int, t: str) -> None:
    for name, a, b in (("gate", F, D), ("up", F, D), ("down", D, F)):
        source = f"model.layers.{i}.mlp.{name}_proj.weight"
        model.add(source, (a, b), **{f"{t}.mlp.{name}.kernel": transpose})


def make_llama(model: Model, k: int = K, rotate: Any = split_heads) -> None:
    """`meta-llama/Llama-3.1-8B`: fewer heads of keys and values than of queries."""
    model.add("model.embed_tokens.weight", (V, D), **{"params.embed.embedding": same})
    for i in range(12):  # two digits: 10 comes after 9
        add_decoder(model, i, f"params.layers_{i}", k, rotate)
        add_mlp(model, i, f"params.layers_{i}")
    model.add("model.norm.weight", (D,), **{"params.norm.scale": same})
    model.add("lm_head.weight", (V, D), **{"params.head.kernel": transpose})


def make_llama_rope_pairs(model: Model) -> None:
    make_llama(model, 6, pair_rope)


def make_gemma(model: Model) -> None:
    """`google/gemma-2b`: norms multiply by 1 + w, embeddings by √D, and the head is tied."""

    def scale(x: np.ndarray) -> np.ndarray:
        return x * np.float32(D**0.5)

    def add_one(x: np.ndarray) -> np.ndarray:
        return x + np.float32(1)

    tied = {"params.embed.embedding": scale, "params.head.kernel": transpose}
    model.add("model.embed_tokens.weight", (V, D), **tied)
    for i in range(2):
        add_decoder(model, i, f"params.layers_{i}", norm=add_one)
        add_mlp(model, i, f"params.layers_{i}")
    model.add("model.norm.weight", (D,), **{"params.norm.scale": add_one})


def make_mixtral(model: Model) -> None:
    """`mistralai/Mixtral-8x7B`, with layers stacked as `nn.scan` has them."""
    model.add("model.embed_tokens.weight", (V, D), **{"params.embed.embedding": same})
    layers = [Model() for _ in range(3)]
    for i, layer in enumerate(layers):
        add_decoder(layer, i, "params.layers")
        s = f"model.layers.{i}.block_sparse_moe"
        layer.add(f"{s}.gate.weight", (5, D), **{"params.layers.moe.router.kernel": transpose})
        for name, w, a, b in (("gate", 1, F, D), ("up", 3, F, D), ("down", 2, D, F)):
            each = [layer.add(f"{s}.experts.{e}.w{w}.weight", (a, b)).T for e in range(5)]
            layer.expected[f"params.layers.moe.{name}.kernel"] = np.stack(each)
        model.stored |= {name: x + i for name, x in layer.stored.items()}
    for name in layers[0].expected:
        model.expected[name] = np.stack([x.expected[name] + i for i, x in enumerate(layers)])
    model.add("model.norm.weight", (D,), **{"params.norm.scale": same})
    model.add("lm_head.weight", (V, D), **{"params.head.kernel": transpose})


def add_attention(model: Model, source: str, target: str) -> None:
    for name in ("query", "key", "value"):
        s, t = f"{source}.{name}", f"{target}.{name}"
        model.add(f"{s}.weight", (H * K, D), **{f"{t}.kernel": split_heads(H)})
        model.add(f"{s}.bias", (H * K,), **{f"{t}.bias": split_bias})


def make_vit(model: Model) -> None:
    """`google/vit-base-patch16-224`."""
    e = "vit.embeddings"
    model.add(f"{e}.cls_token", (1, 1, D), **{"params.cls": same})
    model.add(f"{e}.position_embeddings", (1, 5, D), **{"params.pos_embedding": same})
    patches = f"{e}.patch_embeddings.projection"
    model.add_dense(patches, "params.patches", (D, 3, 4, 5), move_channels)
    for i in range(2):
        s, t = f"vit.encoder.layer.{i}", f"params.layers_{i}"
        add_attention(model, f"{s}.attention.attention", f"{t}.attn")
        model.add_dense(f"{s}.attention.output.dense", f"{t}.attn.out", (D, H * K), join_heads)
        model.add_norm(f"{s}.layernorm_before", f"{t}.norm1")
        model.add_norm(f"{s}.layernorm_after", f"{t}.norm2")
        model.add_dense(f"{s}.intermediate.dense", f"{t}.mlp.fc1", (F, D))
        model.add_dense(f"{s}.output.dense", f"{t}.mlp.fc2", (D, F))
    model.add_norm("vit.layernorm", "params.norm")
    model.add_dense("classifier", "params.head", (3, D))


def add_conv(model: Model, s: str, t: str, conv: str, norm: str, shape: tuple[int, ...]) -> None:
    kernel = {f"params.{t}.{conv}.kernel": move_channels}
    model.add(f"{s}.convolution.weight", shape, **kernel)
    model.add_norm(f"{s}.normalization", f"params.{t}.{norm}", shape[0])
    for there, here in (("running_mean", "mean"), ("running_var", "var")):
        target = {f"batch_stats.{t}.{norm}.{here}": same}
        model.add(f"{s}.normalization.{there}", shape[:1], **target)
    model.stored[f"{s}.normalization.num_batches_tracked"] = np.array(7)


def make_resnet(model: Model) -> None:
    """`microsoft/resnet-50`: BatchNorm, with a shortcut in the first block of each stage."""
    add_conv(model, "resnet.embedder.embedder", "stem", "conv", "norm", (4, 3, 7, 7))
    for stage in range(2):
        for block in range(2):
            s = f"resnet.encoder.stages.{stage}.layers.{block}"
            t = f"stages_{stage}.blocks_{block}"
            for n, size in enumerate((1, 3, 1)):
                shape = (4, 4, size, size)
                add_conv(model, f"{s}.layer.{n}", t, f"conv_{n}", f"norm_{n}", shape)
            if block == 0:
                add_conv(model, f"{s}.shortcut", f"{t}.shortcut", "conv", "norm", (4, 4, 1, 1))
    model.add_dense("classifier.1", "params.head", (3, 4))


def make_bert(model: Model) -> None:
    """`BertForMaskedLM`, whose decoder is tied to the embedding."""
    e = "bert.embeddings"
    for name, size in (("position", 6), ("token_type", 2)):
        target = {f"params.embeddings.{name}.embedding": same}
        model.add(f"{e}.{name}_embeddings.weight", (size, D), **target)
    tied = {"params.embeddings.word.embedding": same, "params.mlm.decoder.kernel": transpose}
    model.add(f"{e}.word_embeddings.weight", (V, D), **tied)
    model.add_norm(f"{e}.LayerNorm", "params.embeddings.norm")
    for i in range(2):
        s, t = f"bert.encoder.layer.{i}", f"params.layers_{i}"
        add_attention(model, f"{s}.attention.self", f"{t}.attn")
        model.add_dense(f"{s}.attention.output.dense", f"{t}.attn.out", (D, H * K), join_heads)
        model.add_norm(f"{s}.attention.output.LayerNorm", f"{t}.attn_norm")
        model.add_dense(f"{s}.intermediate.dense", f"{t}.mlp.fc1", (F, D))
        model.add_dense(f"{s}.output.dense", f"{t}.mlp.fc2", (D, F))
        model.add_norm(f"{s}.output.LayerNorm", f"{t}.mlp_norm")
    head = "cls.predictions"
    model.add_dense(f"{head}.transform.dense", "params.mlm.dense", (D, D))
    model.add_norm(f"{head}.transform.LayerNorm", "params.mlm.norm")
    model.add(f"{head}.bias", (V,), **{"params.mlm.decoder.bias": same})


def make_t5(model: Model) -> None:
    """`google-t5/t5-small`, whose head is the embedding."""
    model.add("shared.weight", (V, D), **{"params.token_embedder.embedding": same})
    for side, mlp in (("encoder", 1), ("decoder", 2)):
        for i in range(2):
            s, t = f"{side}.block.{i}.layer", f"params.{side}.layers_{i}"
            blocks = [(0, "SelfAttention", "self_attention")]
            blocks += [(1, "EncDecAttention", "cross_attention")] if side == "decoder" else []
            for n, there, here in blocks:
                for name in ("query", "key", "value"):
                    target = {f"{t}.{here}.{name}.kernel": split_heads(H)}
                    model.add(f"{s}.{n}.{there}.{name[0]}.weight", (H * K, D), **target)
                target = {f"{t}.{here}.out.kernel": join_heads}
                model.add(f"{s}.{n}.{there}.o.weight", (D, H * K), **target)
                model.add(f"{s}.{n}.layer_norm.weight", (D,), **{f"{t}.{here}_norm.scale": same})
            dense = f"{s}.{mlp}.DenseReluDense"
            model.add(f"{dense}.wi.weight", (F, D), **{f"{t}.mlp.wi.kernel": transpose})
            model.add(f"{dense}.wo.weight", (D, F), **{f"{t}.mlp.wo.kernel": transpose})
            model.add(f"{s}.{mlp}.layer_norm.weight", (D,), **{f"{t}.mlp_norm.scale": same})
        bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        target = {f"params.{side}.relpos_bias.rel_embedding": transpose}
        model.add(bias, (32, H), **target)
        model.add(f"{side}.final_layer_norm.weight", (D,), **{f"params.{side}.norm.scale": same})


def make_whisper(model: Model) -> None:
    """`openai/whisper-tiny`, whose keys have no bias."""
    for n, channels in ((1, 5), (2, D)):
        s, t = f"model.encoder.conv{n}", f"params.encoder.conv{n}"
        model.add_dense(s, t, (D, channels, 3), lambda x: x.transpose(2, 1, 0))
    tokens = {"params.decoder.embed.embedding": same}
    model.add("model.decoder.embed_tokens.weight", (V, D), **tokens)
    for side, blocks in (("encoder", ["self_attn"]), ("decoder", ["self_attn", "encoder_attn"])):
        positions = {f"params.{side}.pos_embedding": same}
        model.add(f"model.{side}.embed_positions.weight", (6, D), **positions)
        model.add_norm(f"model.{side}.layer_norm", f"params.{side}.norm")
        for i in range(2):
            s, t = f"model.{side}.layers.{i}", f"params.{side}.layers_{i}"
            for block in blocks:
                for name in ("query", "key", "value"):
                    there, here = f"{s}.{block}.{name[0]}_proj", f"{t}.{block}.{name}"
                    kernel = {f"{here}.kernel": split_heads(H)}
                    model.add(f"{there}.weight", (H * K, D), **kernel)
                    if name != "key":
                        model.add(f"{there}.bias", (H * K,), **{f"{here}.bias": split_bias})
                out = f"{s}.{block}.out_proj"
                model.add_dense(out, f"{t}.{block}.out", (D, H * K), join_heads)
            for block in [*blocks, "final"]:
                model.add_norm(f"{s}.{block}_layer_norm", f"{t}.{block}_norm")
            model.add_dense(f"{s}.fc1", f"{t}.fc1", (F, D))
            model.add_dense(f"{s}.fc2", f"{t}.fc2", (D, F))


MODELS: dict[str, Callable[[Model], None]] = {
    "bert": make_bert,
    "gemma": make_gemma,
    "gpt2": make_gpt2,
    "llama": make_llama,
    "llama-rope-pairs": make_llama_rope_pairs,
    "mixtral": make_mixtral,
    "resnet": make_resnet,
    "t5": make_t5,
    "vit": make_vit,
    "whisper": make_whisper,
}


def nest(leaves: dict[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, values in leaves.items():
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = values
    return tree


def list_leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from list_leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@pytest.mark.parametrize("name", MODELS)
def test_a_mapping_makes_of_a_state_dict_what_numpy_does(name: str, tmp_path: Path) -> None:
    model = Model()
    MODELS[name](model)
    file = tmp_path / "model.safetensors"
    save_file({key: np.ascontiguousarray(x) for key, x in model.stored.items()}, file)
    mapping = tx.Mapping.load(MAPPINGS / f"{name}.json")
    template = nest({key: np.empty(x.shape, x.dtype) for key, x in model.expected.items()})
    restored = dict(list_leaves(tx.restore(tx.view(file, mapping), template)))
    assert restored.keys() == model.expected.keys()
    for key, values in model.expected.items():
        np.testing.assert_array_equal(restored[key], values, err_msg=key)
        assert restored[key].dtype == np.float32
    for target, pattern in mapping.targets.items():
        names = mapping.rules[target].names  # none of these rules is a Concat
        assert any(pattern.match(key, names, {}) is not None for key in restored), target


def test_every_mapping_is_tested_listed_and_one_rule_a_line(tmp_path: Path) -> None:
    files = {file.stem: file for file in MAPPINGS.glob("*.json")}
    assert files.keys() == MODELS.keys()
    listed = (MAPPINGS / "README.md").read_text()
    for name, file in files.items():
        assert f"({name}.json)" in listed
        tx.Mapping.load(file).save(tmp_path / file.name)
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()
