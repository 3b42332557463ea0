"""A catalog compared with a template: every pair, every mismatch, and hints."""
