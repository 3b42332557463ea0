"""Checkpoints exchanged with stock Orbax: `python -m benchmarks.interop --help`."""
