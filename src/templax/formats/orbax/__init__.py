"""Orbax checkpoints: steps, items, trees, and the checksums that templax adds."""
