"""Restores from object stores and saves to them, next to other libraries and plain requests."""
