"""Restores by several processes that need the same bytes, with and without sharing the reads."""
