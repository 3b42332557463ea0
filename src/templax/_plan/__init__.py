"""The reads that a match needs, as requests and batches."""
