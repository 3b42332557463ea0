"""Flax's own layouts."""
