"""Runs, which are directories of steps: saving, keeping, listing and locking them."""
