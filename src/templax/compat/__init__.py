"""The names of other libraries implemented with templax, for existing code."""

__all__: list[str] = []
