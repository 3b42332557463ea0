"""Everything that touches the inside of JAX."""
