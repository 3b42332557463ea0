"""Files of PyTorch: `torch.save` of all versions, and distributed checkpoints."""
