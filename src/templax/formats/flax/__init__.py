"""Formats of Flax."""
