"""The contents of a checkpoint, before it is matched or read: leaves, chunks and checksums."""
