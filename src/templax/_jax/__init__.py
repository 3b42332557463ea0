"""Everything that touches the internals of JAX."""
