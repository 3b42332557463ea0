"""Measures templax beside other libraries and the limits of the machine.

Programs: `python -m benchmarks` (restores), `benchmarks.saving` (saves), `benchmarks.engine`
(figures without a peer) and `benchmarks.interop` (checkpoints exchanged with Orbax).
"""
