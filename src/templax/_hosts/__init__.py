"""Agreement among the processes of a JAX job."""
