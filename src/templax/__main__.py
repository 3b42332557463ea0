"""`python -m templax` is the command `templax`."""

from .cli import main

main(prog_name="templax")
