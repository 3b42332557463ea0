"""Plans: the reads that a match needs, as requests and batches."""
