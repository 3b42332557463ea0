"""The restore: plans are executed and their buffers placed."""
