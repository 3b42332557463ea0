"""Saving a tree, from the snapshot of its values to the commit."""
