"""Compares a catalog with a template: every pair, every mismatch, and hints."""
