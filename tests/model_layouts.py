"""Small models in the layouts of Hugging Face and torchvision, and templates of Flax for them."""

from __future__ import annotations

from typing import Any

import numpy as np

D, H, K, F, V, L = 24, 4, 6, 40, 50, 3
"""Width, heads, size of a head, width of the MLP, vocabulary, layers."""


class Layout:
    """Names → shapes; `stored` also has values, each element another."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}

    def add(self, name: str, *shape: int) -> None:
        self.shapes[name] = shape

    def dense(self, name: str, out: int, into: int, bias: bool = True) -> None:
        self.add(f"{name}.weight", out, into)
        if bias:
            self.add(f"{name}.bias", out)

    def norm(self, name: str, size: int = D) -> None:
        self.add(f"{name}.weight", size)
        self.add(f"{name}.bias", size)

    def batch_norm(self, name: str, size: int) -> None:
        self.norm(name, size)
        self.add(f"{name}.running_mean", size)
        self.add(f"{name}.running_var", size)
        self.add(f"{name}.num_batches_tracked")

    @property
    def stored(self) -> dict[str, Any]:
        """The values as a nested tree."""
        rng = np.random.default_rng(0)
        tree: dict[str, Any] = {}
        for name, shape in self.shapes.items():
            *parents, last = name.split(".")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = np.asarray(rng.normal(size=shape), np.float32)
        return tree


def gpt2() -> Layout:
    """`GPT2LMHeadModel`: Conv1D, whose weights are (inputs, outputs), and a fused attention."""
    made = Layout()
    made.add("transformer.wte.weight", V, D)
    made.add("transformer.wpe.weight", 16, D)
    for i in range(L):
        h = f"transformer.h.{i}"
        made.norm(f"{h}.ln_1")
        made.add(f"{h}.attn.c_attn.weight", D, 3 * D)
        made.add(f"{h}.attn.c_attn.bias", 3 * D)
        made.add(f"{h}.attn.c_proj.weight", D, D)
        made.add(f"{h}.attn.c_proj.bias", D)
        made.norm(f"{h}.ln_2")
        made.add(f"{h}.mlp.c_fc.weight", D, F)
        made.add(f"{h}.mlp.c_fc.bias", F)
        made.add(f"{h}.mlp.c_proj.weight", F, D)
        made.add(f"{h}.mlp.c_proj.bias", D)
    made.norm("transformer.ln_f")
    return made


def llama() -> Layout:
    """`LlamaForCausalLM` with grouped queries."""
    made = Layout()
    made.add("model.embed_tokens.weight", V, D)
    for i in range(L):
        layer = f"model.layers.{i}"
        made.dense(f"{layer}.self_attn.q_proj", D, D, bias=False)
        made.dense(f"{layer}.self_attn.k_proj", 2 * K, D, bias=False)
        made.dense(f"{layer}.self_attn.v_proj", 2 * K, D, bias=False)
        made.dense(f"{layer}.self_attn.o_proj", D, D, bias=False)
        made.add(f"{layer}.self_attn.rotary_emb.inv_freq", K // 2)
        made.dense(f"{layer}.mlp.gate_proj", F, D, bias=False)
        made.dense(f"{layer}.mlp.up_proj", F, D, bias=False)
        made.dense(f"{layer}.mlp.down_proj", D, F, bias=False)
        made.add(f"{layer}.input_layernorm.weight", D)
        made.add(f"{layer}.post_attention_layernorm.weight", D)
    made.add("model.norm.weight", D)
    made.add("lm_head.weight", V, D)
    return made


def bert() -> Layout:
    """`BertModel`."""
    made = Layout()
    made.add("bert.embeddings.word_embeddings.weight", V, D)
    made.add("bert.embeddings.position_embeddings.weight", 16, D)
    made.add("bert.embeddings.token_type_embeddings.weight", 2, D)
    made.norm("bert.embeddings.LayerNorm")
    for i in range(L):
        layer = f"bert.encoder.layer.{i}"
        for part in ("query", "key", "value"):
            made.dense(f"{layer}.attention.self.{part}", D, D)
        made.dense(f"{layer}.attention.output.dense", D, D)
        made.norm(f"{layer}.attention.output.LayerNorm")
        made.dense(f"{layer}.intermediate.dense", F, D)
        made.dense(f"{layer}.output.dense", D, F)
        made.norm(f"{layer}.output.LayerNorm")
    made.dense("bert.pooler.dense", D, D)
    return made


def vit() -> Layout:
    """`ViTForImageClassification`."""
    made = Layout()
    made.add("vit.embeddings.cls_token", 1, 1, D)
    made.add("vit.embeddings.position_embeddings", 1, 17, D)
    made.add("vit.embeddings.patch_embeddings.projection.weight", D, 3, 4, 4)
    made.add("vit.embeddings.patch_embeddings.projection.bias", D)
    for i in range(L):
        layer = f"vit.encoder.layer.{i}"
        for part in ("query", "key", "value"):
            made.dense(f"{layer}.attention.attention.{part}", D, D)
        made.dense(f"{layer}.attention.output.dense", D, D)
        made.dense(f"{layer}.intermediate.dense", F, D)
        made.dense(f"{layer}.output.dense", D, F)
        made.norm(f"{layer}.layernorm_before")
        made.norm(f"{layer}.layernorm_after")
    made.norm("vit.layernorm")
    made.dense("classifier", 10, D)
    return made


def resnet(stages: tuple[int, ...] = (2, 3)) -> Layout:
    """`torchvision.models.resnet50`, with fewer blocks."""
    made = Layout()
    made.add("conv1.weight", 8, 3, 7, 7)
    made.batch_norm("bn1", 8)
    into = 8
    for s, blocks in enumerate(stages):
        width = 8 * 2**s
        for b in range(blocks):
            block = f"layer{s + 1}.{b}"
            made.add(f"{block}.conv1.weight", width, into, 1, 1)
            made.batch_norm(f"{block}.bn1", width)
            made.add(f"{block}.conv2.weight", width, width, 3, 3)
            made.batch_norm(f"{block}.bn2", width)
            made.add(f"{block}.conv3.weight", 4 * width, width, 1, 1)
            made.batch_norm(f"{block}.bn3", 4 * width)
            if b == 0:
                made.add(f"{block}.downsample.0.weight", 4 * width, into, 1, 1)
                made.batch_norm(f"{block}.downsample.1", 4 * width)
            into = 4 * width
    made.dense("fc", 10, into)
    return made


def kernel(*shape: int, bias: tuple[int, ...] | None = None) -> dict[str, Any]:
    """A template of a dense layer or a convolution of Flax."""
    made: dict[str, Any] = {"kernel": zeros(*shape)}
    if bias is not None:
        made["bias"] = zeros(*bias)
    return made


def norm(size: int = D) -> dict[str, Any]:
    return {"scale": zeros(size), "bias": zeros(size)}


def zeros(*shape: int) -> np.ndarray:
    return np.broadcast_to(np.float32(0), shape)
