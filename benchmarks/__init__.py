"""Templax against its peers on the same files: `python -m benchmarks --help`."""
