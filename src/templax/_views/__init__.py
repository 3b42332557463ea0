"""What stands in for a checkpoint."""
