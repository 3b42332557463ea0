"""What a pytree asks for: its targets."""
