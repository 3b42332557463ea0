"""Writes the files of this directory with PyTorch: what templax refuses, and says what to do about.

Run by hand with PyTorch 2.13.0 and safetensors, in this directory: `python write.py`. The tests only read what it
wrote.
"""

import os

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.distributed.checkpoint.filesystem import SerializationFormat
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

SAFETENSORS = SerializationFormat.SAFETENSORS


class Affine(torch.nn.Module):
    """A module whose source code is short, because files before PyTorch 1.6 have it."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))

    def forward(self, x):
        return x @ self.weight.T


def save(name, value, **options):
    torch.save(value, f"{name}.pt", **options)


def save_shards(rank):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    tree = {"w": distribute_tensor(torch.arange(12.0).reshape(4, 3), mesh, [Shard(0)])}
    dcp.save(tree, storage_writer=dcp.HuggingFaceStorageWriter("shards", save_distributed=True))
    writer = dcp.FileSystemWriter("dcp-safetensors", serialization_format=SAFETENSORS)
    dcp.save({"a": torch.ones(2), "b": torch.ones(3)}, storage_writer=writer)
    dist.destroy_process_group()


def main():
    module, legacy = Affine(), {"_use_new_zipfile_serialization": False}
    torch.jit.save(torch.jit.script(module), "script.pt")
    torch.export.save(torch.export.export(module, (torch.ones(1, 3),)), "program.pt2")
    save("module-legacy", module, **legacy)
    quantised = {
        "w": torch.ones(2),
        "q": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    }
    save("quantised", quantised)
    save("quantised-legacy", quantised, **legacy)
    save("conjugated", {"w": torch.ones(2), "c": torch.ones(2, dtype=torch.complex64).conj()})
    mp.spawn(save_shards, nprocs=2)


if __name__ == "__main__":
    main()
