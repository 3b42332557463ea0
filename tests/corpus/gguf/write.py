"""Writes the files of this directory with GGML's own library, and the digests of their values.

Run by hand with gguf 0.19.0 and numpy 2.4.6, in this directory: `python write.py`. The tests only
read what it wrote. Quantised tensors are random bytes, so that every bit pattern of a scale occurs;
their digests are of what `gguf.quants.dequantize` makes of them.
"""

import hashlib
import json
import pathlib

import gguf
import numpy as np

RNG = np.random.default_rng(0)

READ = (
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ4_NL", "IQ4_XS", "MXFP4"),
)


def make_plain():
    return {
        "token_embd.weight": RNG.standard_normal((5, 8)).astype("f4"),
        "blk.0.attn_q.weight": RNG.standard_normal((2, 3, 4)).astype("f2"),
        "blk.0.f64": RNG.standard_normal((3, 2)),
        "blk.0.i8": np.arange(-3, 4, dtype="i1"),
        "blk.0.i16": np.arange(6, dtype="i2").reshape(3, 2),
        "blk.0.i32": np.arange(4, dtype="i4"),
        "blk.0.i64": np.arange(4, dtype="i8"),
        "output_norm.weight": np.ones(1, "f4"),
    }


def make_writer(path, **options):
    writer = gguf.GGUFWriter(path, "llama", **options)
    writer.add_name("tiny ü")
    writer.add_block_count(1)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_int64("test.low", -(1 << 63))
    writer.add_array("test.list", [3, -4, 5])
    writer.add_array("test.words", ["a", "ü"])
    writer.add_array("tokenizer.ggml.tokens", [f"<{i}>" for i in range(300)])
    writer.add_array("tokenizer.ggml.scores", [float(i) for i in range(300)])
    return writer


def add_tensors(writer, tensors):
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    bf16 = RNG.standard_normal((3, 4)).astype("f4").view("u4") >> 16
    stored = bf16.astype("u2")
    kind = gguf.GGMLQuantizationType.BF16
    writer.add_tensor("blk.0.bf16", stored.view("u1"), raw_dtype=kind)
    return {name: values.tobytes() for name, values in tensors.items()} | {
        "blk.0.bf16": stored.tobytes()
    }


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_quantised(path, names, values):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    found = {}
    for name in names:
        kind = gguf.GGMLQuantizationType[name]
        elements, nbytes = gguf.GGML_QUANT_SIZES[kind]
        rows = 3 * 256 // elements if values else 1
        stored = RNG.integers(0, 256, (2, 2, rows * nbytes), dtype=np.uint8)
        writer.add_tensor(f"{name}.weight", stored, raw_dtype=kind)
        if values:
            with np.errstate(all="ignore"):
                found[f"{name}.weight"] = gguf.quants.dequantize(stored, kind).tobytes()
    writer.add_tensor("norm.weight", np.arange(4, dtype="f4"))
    found["norm.weight"] = np.arange(4, dtype="f4").tobytes()
    finish(writer)
    return found


def main():
    expected = {}
    writer = make_writer("plain.gguf")
    expected["plain.gguf"] = add_tensors(writer, make_plain())
    finish(writer)
    pathlib.Path("split").mkdir(exist_ok=True)
    writer = make_writer("split/model.gguf", split_max_tensors=4)
    expected["split"] = add_tensors(writer, make_plain())
    finish(writer)
    expected["quantised.gguf"] = write_quantised("quantised.gguf", READ, True)
    others = [k.name for k, (n, _) in gguf.GGML_QUANT_SIZES.items() if n > 1 and k.name not in READ]
    expected["not-read.gguf"] = write_quantised("not-read.gguf", others, False)
    digests = {
        file: {name: hashlib.sha256(data).hexdigest() for name, data in values.items()}
        for file, values in expected.items()
    }
    with open("expected.json", "w") as file:
        json.dump({"sha256": digests}, file, indent=1, sort_keys=True)


if __name__ == "__main__":
    main()
