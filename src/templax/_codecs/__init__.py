"""Decoders and checksums of stored bytes."""
