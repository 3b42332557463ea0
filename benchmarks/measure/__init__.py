"""Processes that measure one library each, and the samples they return."""
