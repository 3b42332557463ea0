"""Other libraries' names over templax, for code that already exists."""

__all__: list[str] = []
