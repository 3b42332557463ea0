"""The contents of a checkpoint, before anything is compared or read."""
