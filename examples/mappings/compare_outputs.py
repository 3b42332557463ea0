"""Compares models of transformers with models of Flax that have their weights through a mapping.

Each model is small, has random weights, and is written as `save_pretrained` writes it; nothing is
downloaded. Run it with `nox -s mappings`, or with `python examples/mappings/compare_outputs.py`
where flax, torch and transformers are installed.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

import templax as tx

LIMIT = 1e-4
"""Maximum difference of two outputs."""

jax.config.update("jax_default_matmul_precision", "highest")


class Attention(nn.Module):
    """Attention of `heads` queries over `groups` of keys and values, by default of `x` itself."""

    heads: int
    groups: int
    head: int
    bias: bool = True
    key_bias: bool = True
    causal: bool = False
    rotate: Callable[[jax.Array], jax.Array] | None = None
    scale: float | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, source: jax.Array | None = None, positions: jax.Array | float = 0
    ) -> jax.Array:
        def project(name: str, heads: int, given: jax.Array) -> jax.Array:
            bias = self.bias and (name != "key" or self.key_bias)
            return nn.DenseGeneral((heads, self.head), use_bias=bias, name=name)(given)

        source = x if source is None else source
        query, key = project("query", self.heads, x), project("key", self.groups, source)
        value = project("value", self.groups, source)
        if self.rotate is not None:
            query, key = self.rotate(query), self.rotate(key)
        key, value = (jnp.repeat(a, self.heads // self.groups, axis=2) for a in (key, value))
        scale = self.head**-0.5 if self.scale is None else self.scale
        logits = jnp.einsum("bqhk,bshk->bhqs", query, key) * scale + positions
        if self.causal:
            logits = jnp.where(jnp.tri(x.shape[1], dtype=bool), logits, -jnp.inf)
        mixed = jnp.einsum("bhqs,bshk->bqhk", nn.softmax(logits), value)
        return nn.DenseGeneral(x.shape[-1], axis=(-2, -1), use_bias=self.bias, name="out")(mixed)


def rotate_halves(x: jax.Array) -> jax.Array:
    """Rotary embedding of (i, i + k/2), as transformers does it."""
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate(_rotate(a, b), axis=-1)


def rotate_pairs(x: jax.Array) -> jax.Array:
    """Rotary embedding of (2 i, 2 i + 1), as in the paper."""
    return jnp.stack(_rotate(x[..., 0::2], x[..., 1::2]), axis=-1).reshape(x.shape)


def _rotate(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    frequency = 10_000.0 ** -(jnp.arange(a.shape[-1]) / a.shape[-1])
    angle = jnp.arange(a.shape[1])[:, None, None] * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return a * cos - b * sin, b * cos + a * sin


class MLP(nn.Module):
    """Two layers, whose names are given."""

    names: tuple[str, str]
    width: int
    approximate: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inner = nn.gelu(nn.Dense(self.width, name=self.names[0])(x), approximate=self.approximate)
        return nn.Dense(x.shape[-1], name=self.names[1])(inner)


class GPT2Block(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        attn = Attention(4, 4, x.shape[-1] // 4, causal=True, name="attn")
        x += attn(nn.LayerNorm(1e-5, name="ln_1")(x))
        mlp = MLP(("c_fc", "c_proj"), 4 * x.shape[-1], approximate=True, name="mlp")
        return x + mlp(nn.LayerNorm(1e-5, name="ln_2")(x))


class GPT2(nn.Module):
    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        embed = nn.Embed(31, 16, name="wte")
        x = embed(tokens) + nn.Embed(12, 16, name="wpe")(jnp.arange(tokens.shape[1]))
        for i in range(2):
            x = GPT2Block(name=f"h_{i}")(x)
        return embed.attend(nn.LayerNorm(1e-5, name="ln_f")(x))


class GatedMLP(nn.Module):
    act: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gate, up = (nn.Dense(24, use_bias=False, name=name)(x) for name in ("gate", "up"))
        return nn.Dense(x.shape[-1], use_bias=False, name="down")(self.act(gate) * up)


class Experts(nn.Module):
    """A matrix for each of three experts."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, (3, x.shape[-1], self.width))
        return jnp.einsum("btd,edf->betf" if x.ndim == 3 else "betd,edf->betf", x, kernel)


class MoE(nn.Module):
    """All experts on all tokens, weighted by the two best of the router."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        weights = nn.softmax(nn.Dense(3, use_bias=False, name="router")(x))
        weights = jnp.where(weights >= jnp.sort(weights)[..., -2:-1], weights, 0)
        weights /= weights.sum(-1, keepdims=True)
        gate, up = Experts(24, name="gate")(x), Experts(24, name="up")(x)
        out = Experts(x.shape[-1], name="down")(nn.silu(gate) * up)
        return jnp.einsum("bte,betd->btd", weights, out)


class DecoderLayer(nn.Module):
    groups: int
    rotate: Callable[[jax.Array], jax.Array]
    act: Callable[[jax.Array], jax.Array] | None

    @nn.compact
    def __call__(self, x: jax.Array, _: None = None) -> tuple[jax.Array, None]:
        attn = Attention(
            4, self.groups, 8, bias=False, causal=True, rotate=self.rotate, name="attn"
        )
        x += attn(nn.RMSNorm(1e-6, name="attn_norm")(x))
        inner = nn.RMSNorm(1e-6, name="mlp_norm")(x)
        mlp = MoE(name="moe") if self.act is None else GatedMLP(self.act, name="mlp")
        return x + mlp(inner), None


class Decoder(nn.Module):
    """Llama, Mixtral or Gemma; Mixtral has its layers stacked, and no `act`."""

    groups: int = 2
    rotate: Callable[[jax.Array], jax.Array] = rotate_halves
    act: Callable[[jax.Array], jax.Array] | None = nn.silu

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(31, 16, name="embed")(tokens)
        arguments = self.groups, self.rotate, self.act
        if self.act is None:
            over = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
            x, _ = nn.scan(DecoderLayer, length=2, **over)(*arguments, name="layers")(x, None)
        else:
            for i in range(2):
                x, _ = DecoderLayer(*arguments, name=f"layers_{i}")(x)
        return nn.Dense(31, use_bias=False, name="head")(nn.RMSNorm(1e-6, name="norm")(x))


class ViT(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = nn.Conv(16, (4, 4), strides=4, padding="VALID", name="patches")(images)
        x = x.reshape(len(x), -1, 16)
        cls = self.param("cls", nn.initializers.zeros, (1, 1, 16))
        x = jnp.concatenate([jnp.repeat(cls, len(x), axis=0), x], axis=1)
        x += self.param("pos_embedding", nn.initializers.zeros, (1, x.shape[1], 16))
        for i in range(2):
            x = ViTLayer(name=f"layers_{i}")(x)
        return nn.Dense(5, name="head")(nn.LayerNorm(1e-12, name="norm")(x)[:, 0])


class ViTLayer(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x += Attention(4, 4, 4, name="attn")(nn.LayerNorm(1e-12, name="norm1")(x))
        return x + MLP(("fc1", "fc2"), 24, name="mlp")(nn.LayerNorm(1e-12, name="norm2")(x))


class Embeddings(nn.Module):
    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        word = nn.Embed(31, 16, name="word")
        position = nn.Embed(12, 16, name="position")(jnp.arange(tokens.shape[1]))
        x = word(tokens) + position + nn.Embed(2, 16, name="token_type")(jnp.zeros_like(tokens))
        return nn.LayerNorm(1e-12, name="norm")(x)


class MLMHead(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.gelu(nn.Dense(16, name="dense")(x), approximate=False)
        return nn.Dense(31, name="decoder")(nn.LayerNorm(1e-12, name="norm")(x))


class Bert(nn.Module):
    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = Embeddings(name="embeddings")(tokens)
        for i in range(2):
            x = BertLayer(name=f"layers_{i}")(x)
        return MLMHead(name="mlm")(x)


class BertLayer(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.LayerNorm(1e-12, name="attn_norm")(x + Attention(4, 4, 4, name="attn")(x))
        return nn.LayerNorm(1e-12, name="mlp_norm")(x + MLP(("fc1", "fc2"), 24, name="mlp")(x))


class ConvNorm(nn.Module):
    size: int
    width: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return convolve(self.size, self.width, self.stride, "conv", "norm", x)


def convolve(size: int, width: int, stride: int, conv: str, norm: str, x: jax.Array) -> jax.Array:
    """A convolution and a BatchNorm in a module that calls them `conv` and `norm`."""
    options = {"strides": stride, "padding": size // 2, "use_bias": False, "name": conv}
    x = nn.Conv(width, (size, size), **options)(x)
    return nn.BatchNorm(use_running_average=True, epsilon=1e-5, name=norm)(x)


class Bottleneck(nn.Module):
    width: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shortcut = x
        if self.stride != 1 or x.shape[-1] != self.width:
            shortcut = ConvNorm(1, self.width, self.stride, name="shortcut")(x)
        inner = self.width // 4
        x = nn.relu(convolve(1, inner, 1, "conv_0", "norm_0", x))
        x = nn.relu(convolve(3, inner, self.stride, "conv_1", "norm_1", x))
        return nn.relu(convolve(1, self.width, 1, "conv_2", "norm_2", x) + shortcut)


class Stage(nn.Module):
    width: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = Bottleneck(self.width, self.stride, name="blocks_0")(x)
        return Bottleneck(self.width, 1, name="blocks_1")(x)


class ResNet(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = nn.relu(ConvNorm(7, 8, 2, name="stem")(images))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        x = Stage(16, 1, name="stages_0")(x)
        x = Stage(32, 2, name="stages_1")(x)
        return nn.Dense(5, name="head")(x.mean((1, 2)))


class WhisperLayer(nn.Module):
    """A layer of the encoder; of the decoder if it is given what the encoder made."""

    @nn.compact
    def __call__(self, x: jax.Array, encoded: jax.Array | None = None) -> jax.Array:
        causal = encoded is not None
        attn = Attention(4, 4, 4, key_bias=False, causal=causal, name="self_attn")
        x += attn(nn.LayerNorm(1e-5, name="self_attn_norm")(x))
        if encoded is not None:
            attn = Attention(4, 4, 4, key_bias=False, name="encoder_attn")
            x += attn(nn.LayerNorm(1e-5, name="encoder_attn_norm")(x), encoded)
        inner = nn.Dense(24, name="fc1")(nn.LayerNorm(1e-5, name="final_norm")(x))
        return x + nn.Dense(16, name="fc2")(nn.gelu(inner, approximate=False))


class WhisperEncoder(nn.Module):
    @nn.compact
    def __call__(self, sound: jax.Array) -> jax.Array:
        x = nn.gelu(nn.Conv(16, (3,), padding=1, name="conv1")(sound), approximate=False)
        x = nn.gelu(nn.Conv(16, (3,), strides=2, padding=1, name="conv2")(x), approximate=False)
        x += self.param("pos_embedding", nn.initializers.zeros, x.shape[1:])
        for i in range(2):
            x = WhisperLayer(name=f"layers_{i}")(x)
        return nn.LayerNorm(1e-5, name="norm")(x)


class WhisperDecoder(nn.Module):
    @nn.compact
    def __call__(self, tokens: jax.Array, encoded: jax.Array) -> jax.Array:
        embed = nn.Embed(31, 16, name="embed")
        positions = self.param("pos_embedding", nn.initializers.zeros, (12, 16))
        x = embed(tokens) + positions[: tokens.shape[1]]
        for i in range(2):
            x = WhisperLayer(name=f"layers_{i}")(x, encoded)
        return embed.attend(nn.LayerNorm(1e-5, name="norm")(x))


class Whisper(nn.Module):
    @nn.compact
    def __call__(self, sound: jax.Array) -> jax.Array:
        encoded = WhisperEncoder(name="encoder")(sound)
        return WhisperDecoder(name="decoder")(jnp.array([[1, 5, 7, 4]] * len(sound)), encoded)


class T5Layer(nn.Module):
    """A layer of the encoder; of the decoder if it is given what the encoder made."""

    @nn.compact
    def __call__(
        self, x: jax.Array, positions: jax.Array, encoded: jax.Array | None = None
    ) -> jax.Array:
        options = {"bias": False, "scale": 1.0}
        causal = encoded is not None
        attn = Attention(4, 4, 4, causal=causal, **options, name="self_attention")
        x += attn(nn.RMSNorm(1e-6, name="self_attention_norm")(x), positions=positions)
        if encoded is not None:
            attn = Attention(4, 4, 4, **options, name="cross_attention")
            x += attn(nn.RMSNorm(1e-6, name="cross_attention_norm")(x), encoded)
        return x + T5MLP(name="mlp")(nn.RMSNorm(1e-6, name="mlp_norm")(x))


class T5MLP(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inner = nn.relu(nn.Dense(24, use_bias=False, name="wi")(x))
        return nn.Dense(x.shape[-1], use_bias=False, name="wo")(inner)


class RelativePositions(nn.Module):
    """A bias for each head and distance, of at most 8 tokens."""

    causal: bool

    @nn.compact
    def __call__(self, n: int) -> jax.Array:
        bias = self.param("rel_embedding", nn.initializers.zeros, (4, 32))
        distance = np.arange(n)[None] - np.arange(n)[:, None]  # of the key from the query
        assert n <= 8, "T5 puts longer distances into logarithmic buckets"
        bucket = np.abs(distance) + (0 if self.causal else 16 * (distance > 0))
        return bias[:, np.where(distance > 0, 0, bucket) if self.causal else bucket]


class T5Stack(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, encoded: jax.Array | None = None) -> jax.Array:
        positions = RelativePositions(encoded is not None, name="relpos_bias")(x.shape[1])
        for i in range(2):
            x = T5Layer(name=f"layers_{i}")(x, positions, encoded)
        return nn.RMSNorm(1e-6, name="norm")(x)


class T5(nn.Module):
    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        embed = nn.Embed(31, 16, name="token_embedder")
        encoded = T5Stack(name="encoder")(embed(tokens))
        started = jnp.array([[1, 5, 7, 4]] * len(tokens))
        return embed.attend(T5Stack(name="decoder")(embed(started), encoded) * 16**-0.5)


def make_pairs() -> dict[str, tuple[Any, nn.Module]]:
    """Name of a mapping → the model of transformers, and that of Flax."""
    small = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 4}
    small |= {"intermediate_size": 24, "vocab_size": 31, "rms_norm_eps": 1e-6}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    decoder = {**small, **tokens, "head_dim": 8, "num_key_value_heads": 2}
    vit = {**small, "image_size": 8, "patch_size": 4, "num_labels": 5}
    t = transformers
    gpt2 = {"n_layer": 2, "n_embd": 16, "n_head": 4, "n_positions": 12, "vocab_size": 31}
    llama = t.LlamaForCausalLM(t.LlamaConfig(**decoder))
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}
    resnet = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [2, 2], "num_labels": 5}
    whisper = {"d_model": 16, "vocab_size": 31, "num_mel_bins": 6, "max_source_positions": 8}
    whisper |= {"max_target_positions": 12, "decoder_start_token_id": 1, **tokens}
    for side in ("encoder", "decoder"):
        whisper |= {f"{side}_layers": 2, f"{side}_attention_heads": 4, f"{side}_ffn_dim": 24}
    t5 = {"num_layers": 2, "d_model": 16, "num_heads": 4, "d_kv": 4, "d_ff": 24, "vocab_size": 31}
    t5 |= {**tokens, "decoder_start_token_id": 1}
    mixtral = t.MixtralConfig(**decoder, **rope, num_local_experts=3, num_experts_per_tok=2)
    return {
        "gpt2": (t.GPT2LMHeadModel(t.GPT2Config(**gpt2, **tokens)), GPT2()),
        "llama": (llama, Decoder()),
        "llama-rope-pairs": (llama, Decoder(rotate=rotate_pairs)),
        "mixtral": (t.MixtralForCausalLM(mixtral), Decoder(act=None)),
        "gemma": (t.GemmaForCausalLM(t.GemmaConfig(**decoder)), Decoder(act=nn.gelu)),
        "vit": (t.ViTForImageClassification(t.ViTConfig(**vit)), ViT()),
        "bert": (
            t.BertForMaskedLM(t.BertConfig(**small, max_position_embeddings=12, **tokens)),
            Bert(),
        ),
        "resnet": (t.ResNetForImageClassification(t.ResNetConfig(**resnet)), ResNet()),
        "t5": (t.T5ForConditionalGeneration(t.T5Config(**t5)), T5()),
        "whisper": (t.WhisperForConditionalGeneration(t.WhisperConfig(**whisper)), Whisper()),
    }


def compare(name: str, theirs: Any, ours: nn.Module, directory: Path) -> float:
    """The largest difference of the outputs of two models, of which one has random weights."""
    theirs.eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # norms and biases too, which begin as 1 and 0
            parameter.add_(torch.randn_like(parameter) * 0.3)
        for key, buffer in theirs.named_buffers():
            if "running" in key:
                buffer.add_(torch.rand_like(buffer))
    theirs.save_pretrained(directory)
    file = directory / "model.safetensors"
    if name == "gpt2":  # as in openai-community/gpt2
        stored = {k.removeprefix("transformer."): v for k, v in load_file(file).items()}
        masks = {f"h.{i}.attn.bias": np.tri(12, dtype=np.float32)[None, None] for i in range(2)}
        save_file(stored | masks, file)
    rng = np.random.default_rng(0)
    more = {}
    if name in ("vit", "resnet"):
        size = 8 if name == "vit" else 32
        inputs = rng.normal(size=(2, size, size, 3)).astype(np.float32)
        given = inputs.transpose(0, 3, 1, 2)
    elif name == "whisper":
        inputs = rng.normal(size=(2, 16, 6)).astype(np.float32)
        given = inputs.transpose(0, 2, 1)
    else:
        given = inputs = rng.integers(3, 31, size=(2, 8))
    if name in ("t5", "whisper"):
        more["decoder_input_ids"] = torch.tensor([[1, 5, 7, 4]] * 2)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(np.ascontiguousarray(given)), **more).logits.numpy()
    mapping = tx.Mapping.load(Path(__file__).parent / f"{name}.json")
    template = tx.template_of(ours.init, jax.random.key(0), inputs)
    variables = tx.restore(tx.view(file, mapping), template)
    return float(np.abs(ours.apply(variables, inputs) - expected).max())


def main() -> int:
    torch.manual_seed(0)
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    worst = 0.0
    for name, (theirs, ours) in make_pairs().items():
        with tempfile.TemporaryDirectory() as directory:
            difference = compare(name, theirs, ours, Path(directory))
        print(f"{name:18}largest difference {difference:.1e}")
        worst = max(worst, difference)
    return int(not worst <= LIMIT)


if __name__ == "__main__":
    sys.exit(main())
