"""Writes the files of this directory with PyTorch, and the digests of their values.

Run by hand with PyTorch 2.14.1 and numpy, in this directory: `python write.py`. The tests only read
what it wrote.
"""

import collections
import hashlib
import json
import shutil

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

EXPECTED = {}


def make_leaves():
    torch.manual_seed(0)
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tied = torch.randn(3, 4)
    return {
        "f64": torch.randn(2, 3, dtype=torch.float64),
        "f16": torch.randn(5).half(),
        "bf16": torch.randn(2, 2).bfloat16(),
        "f8_e4m3fn": torch.randn(4).to(torch.float8_e4m3fn),
        "f8_e5m2": torch.randn(4).to(torch.float8_e5m2),
        "i64": torch.arange(-3, 4),
        "i32": torch.arange(4, dtype=torch.int32),
        "i16": torch.arange(4, dtype=torch.int16),
        "i8": torch.arange(-2, 4, dtype=torch.int8),
        "u8": torch.arange(4, dtype=torch.uint8),
        "u16": torch.arange(4).to(torch.uint16),
        "bool": torch.tensor([True, False, True]),
        "c64": torch.randn(3, dtype=torch.complex64),
        "c128": torch.randn(2, dtype=torch.complex128),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 4),
        "slice": base[1:3],
        "transposed": base.t(),
        "column": base[:, 2],
        "block": base[1:3, 2:5],
        "middle_axes": torch.randn(2, 3, 4).transpose(1, 2),
        "channels_last": torch.randn(2, 3, 2, 2).to(memory_format=torch.channels_last),
        "expanded": torch.tensor([1.0, 2.0, 3.0]).expand(2, 3),
        "tied.one": tied,
        "tied.two": tied,
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }


def make_checkpoint():
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.25)
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    return {
        "epoch": 3,
        "best": 0.5,
        "done": False,
        "name": "run ü",
        "nothing": None,
        "empties": [{}, [], ()],
        "raw": b"\x00\x01\x02",
        "list": [torch.ones(2), 7],
        "size": torch.Size([2, 3]),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }


def digest(tensor):
    data = tensor.detach().contiguous().clone().flatten()
    return hashlib.sha256(bytes(data.view(torch.uint8).tolist())).hexdigest()


def find_tensors(tree, path=()):
    if isinstance(tree, torch.Tensor):
        yield ".".join(path), digest(tree)
    elif isinstance(tree, dict):
        for key, child in tree.items():
            yield from find_tensors(child, (*path, str(key)))
    elif isinstance(tree, (list, tuple)):
        for i, child in enumerate(tree):
            yield from find_tensors(child, (*path, str(i)))


def save_shards(rank, world):
    dist.init_process_group(
        "gloo", init_method="tcp://127.0.0.1:29531", rank=rank, world_size=world
    )
    dcp.save(make_distributed(init_device_mesh("cpu", (world,))), checkpoint_id=f"dcp-{world}")
    dist.destroy_process_group()


def make_distributed(mesh=None):
    tree = {
        "model": {
            "rows.weight": torch.arange(30, dtype=torch.float32).reshape(5, 6),
            "columns.weight": torch.arange(24, dtype=torch.float32).reshape(4, 6).bfloat16(),
            "bias": torch.arange(3, dtype=torch.int64),
        },
        "step": 12,
        "lr": 0.5,
        "name": "run",
        "betas": (0.9, 0.99),
        "layers": [torch.ones(2), torch.zeros(0, 2)],
        "nothing": None,
    }
    if mesh is not None:
        model = tree["model"]
        model["rows.weight"] = distribute_tensor(model["rows.weight"], mesh, [Shard(0)])
        model["columns.weight"] = distribute_tensor(model["columns.weight"], mesh, [Shard(1)])
    return tree


def main():
    leaves, checkpoint = make_leaves(), make_checkpoint()
    EXPECTED["leaves.pt"] = EXPECTED["leaves-protocol5.pt"] = dict(find_tensors(leaves))
    torch.save(leaves, "leaves.pt")
    torch.save(leaves, "leaves-protocol5.pt", pickle_protocol=5)
    old = {k: v for k, v in leaves.items() if not k.startswith("f8_") and k != "u16"}
    EXPECTED["leaves-legacy.pt"] = dict(find_tensors(old))
    torch.save(old, "leaves-legacy.pt", _use_new_zipfile_serialization=False)
    for name, new in (("checkpoint.pt", True), ("checkpoint-legacy.pt", False)):
        torch.save(checkpoint, name, _use_new_zipfile_serialization=new)
        EXPECTED[name] = dict(find_tensors(checkpoint))
    torch.save(leaves["f64"], "tensor.pt")
    EXPECTED["tensor.pt"] = {"": digest(leaves["f64"])}
    for world in (1, 2):
        shutil.rmtree(f"dcp-{world}", ignore_errors=True)
        EXPECTED[f"dcp-{world}"] = dict(find_tensors(make_distributed()))
    dcp.save(make_distributed(), checkpoint_id="dcp-1", no_dist=True)
    mp.spawn(save_shards, (2,), nprocs=2)
    with open("expected.json", "w") as file:
        json.dump({"torch": torch.__version__, "sha256": EXPECTED}, file, indent=1, sort_keys=True)


if __name__ == "__main__":
    assert isinstance(make_checkpoint()["model"], collections.OrderedDict)
    main()
