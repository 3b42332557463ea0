"""Decoders and checksums for stored bytes."""
