"""Audits: every byte of a checkpoint is compared with its checksum."""
