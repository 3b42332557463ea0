"""`templax demo`: a real restore and four pitfalls, live."""

from __future__ import annotations

import sys

import click

from .. import demo as program
from .._display.terminal import echo_report
from .options import color_option


@click.command("demo")
@color_option
def demo() -> None:
    """Restore a real Orbax checkpoint, then show four pitfalls and what templax says to them.

    Needs the extra: pip install "templax[demo]". Takes a few seconds, writes to a temporary
    directory only, and exits with 1 if a check failed.
    """
    try:
        status = program.main()
    except ModuleNotFoundError as error:
        echo_report(str(error), prefix="error: ", err=True)
        sys.exit(2)
    sys.exit(status)
