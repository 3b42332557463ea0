"""Formats of Flax, and of T5X, which extends it."""
