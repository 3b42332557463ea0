"""The command `templax`: shows what is in a checkpoint, and compares it with a template.

Exit status: 0 if all is well, 1 if a check found a difference or corruption, 2 if something could
not be read.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import click

import templax as tx

from .._display.terminal import echo_report

COMMANDS = {
    "check": ("check", "Compare the checkpoint at PATH with a template."),
    "demo": ("demo", "Restore a real Orbax checkpoint, then show four pitfalls."),
    "ls": ("ls", "Show the contents of the checkpoint at PATH."),
    "plan": ("check", "Show what a restore would read, decode and copy."),
    "prune": ("runs", "Delete the steps in DIR that no rule keeps."),
    "steps": ("runs", "Show the steps in DIR: sizes, ages and metrics."),
    "template": ("template", "Write the template that the checkpoint at PATH fits."),
    "verify": ("verify", "Read every byte of the checkpoint at PATH once, and list all damage."),
}
"""Name → module and short help. Each module is imported only when its command is used, so that
`templax --help` does not wait for numpy."""


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _ = COMMANDS[cmd_name]
        return getattr(import_module(f"{__package__}.{module}"), cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        for stream in (sys.stdout, sys.stderr):
            # A leaf may have a name that the terminal's encoding lacks.
            reconfigure = getattr(stream, "reconfigure", None)
            if reconfigure is not None:
                reconfigure(errors="backslashreplace")
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # a closed pipe is noticed here, where click handles it
            return result
        except tx.TemplaxError as error:
            echo_report(str(error), prefix="error: ", err=True)
            ctx.exit(2)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(tx.__version__, prog_name="templax")
def main() -> None:
    """Inspect and verify JAX checkpoints, and compare them with templates.

    Exit status: 0 if all is well, 1 if a check found a difference or corruption, 2 if something
    can't be read.
    """
