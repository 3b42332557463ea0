"""Fuzzing: one target per parser, whole checkpoints, and saves. See CONTRIBUTING.md."""
