"""The targets of a pytree: what it asks for, leaf by leaf."""
