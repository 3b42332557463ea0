"""Writes the files of this directory with PyTorch: what templax refuses, and says what to do about.

Run by hand with PyTorch 2.13.0, in this directory: `python write.py`. The tests only read what it
wrote.
"""

import torch


class Affine(torch.nn.Module):
    """A module whose source code is short, because files before PyTorch 1.6 have it."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))

    def forward(self, x):
        return x @ self.weight.T


def save(name, value, **options):
    torch.save(value, f"{name}.pt", **options)


module, legacy = Affine(), {"_use_new_zipfile_serialization": False}
torch.jit.save(torch.jit.script(module), "script.pt")
torch.export.save(torch.export.export(module, (torch.ones(1, 3),)), "program.pt2")
save("module-legacy", module, **legacy)
quantised = {"w": torch.ones(2), "q": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}
save("quantised", quantised)
save("quantised-legacy", quantised, **legacy)
save("conjugated", {"w": torch.ones(2), "c": torch.ones(2, dtype=torch.complex64).conj()})
