"""Objects that can be restored from like a checkpoint."""
