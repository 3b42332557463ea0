"""Samples summed up as tables, charts and JSON."""
