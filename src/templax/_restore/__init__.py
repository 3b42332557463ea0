"""Restores: the public calls, the reads of a plan, and the placement of arrays."""
