"""`python -m templax` is the command `templax`."""

from __future__ import annotations

from .cli.main import main

main(prog_name="templax")
