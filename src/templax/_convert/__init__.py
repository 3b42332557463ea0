"""Conversion of a checkpoint to another format, without a template. No JAX."""
