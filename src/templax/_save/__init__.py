"""The save, from a snapshot of the tree to the commit."""
