"""Real object stores on loopback, and a proxy that makes them fail or slow."""
