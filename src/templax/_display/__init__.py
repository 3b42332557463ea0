"""Catalogs, runs and reports as text and JSON."""
