"""Writes the set of this directory with Hugging Face's library, and the digests of its values.

Run by hand with PyTorch 2.14.1 and huggingface_hub 2.4.0, in this directory: `python write.py`.
The tests only read what it wrote.
"""

import hashlib
import json
import pathlib

import huggingface_hub
import torch


def digest(tensor):
    data = tensor.detach().contiguous().flatten()
    return hashlib.sha256(bytes(data.view(torch.uint8).tolist())).hexdigest()


def main():
    torch.manual_seed(0)
    tied = torch.randn(8, 6)
    state = {
        "shared.weight": tied,
        "encoder.embed.weight": tied,
        "encoder.0.weight": torch.randn(6, 4).t(),
        "encoder.0.bias": torch.randn(4).bfloat16(),
        "encoder.0.steps": torch.tensor(7),
        "decoder.0.weight": torch.randn(4, 5).half(),
        "decoder.0.mask": torch.tensor([True, False, True]),
        "decoder.0.empty": torch.empty(0, 3),
    }
    huggingface_hub.save_torch_state_dict(state, ".", safe_serialization=False, max_shard_size=220)
    # An old shard: PyTorch before 1.6 wrote the other kind of file.
    last = max(pathlib.Path().glob("*.bin"))
    torch.save(torch.load(last), last, _use_new_zipfile_serialization=False)
    with open("expected.json", "w") as file:
        found = {name: digest(tensor) for name, tensor in state.items()}
        json.dump({"torch": torch.__version__, "sha256": found}, file, indent=1, sort_keys=True)


if __name__ == "__main__":
    main()
