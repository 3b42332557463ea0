"""The command `templax`: shows what is in a checkpoint, and compares it with a template.

Exit status: 0 if all is well, 1 if a check found a difference or corruption, 2 if something could
not be read or written, 130 after Ctrl-C, 141 if the reader of a pipe went away.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from importlib import import_module
from io import TextIOBase, UnsupportedOperation
from typing import Any, TextIO

import click
from click.shell_completion import CompletionItem

import templax as tx

from .._display.terminal import echo_report
from .options import color_option, echo_json_error, name_flags, note_words

COMMANDS = {
    "check": ("check", "Compare the checkpoint at PATH with a template."),
    "convert": ("convert", "Write the checkpoint at SRC in another format to DST."),
    "demo": ("demo", "Restore a real Orbax checkpoint, then show four pitfalls."),
    "diff": ("diff", "Show how the checkpoints at A and B differ."),
    "draw": ("draw", "Draw which file, or which device, has which part of a leaf."),
    "ls": ("ls", "Show the contents of the checkpoint at PATH."),
    "plan": ("check", "Show what a restore would read, decode and copy."),
    "prune": ("runs", "Delete the steps in DIR that no rule keeps."),
    "steps": ("runs", "Show the steps in DIR: sizes, ages and metrics."),
    "suggest": ("suggest", "Write a mapping with which the checkpoint at PATH fits a template."),
    "template": ("template", "Write the template that the checkpoint at PATH fits."),
    "verify": ("verify", "Read every byte of the checkpoint at PATH once, and list all damage."),
}
"""Name → module and short help. Each module is imported only when its command is used, so that
`templax --help` does not wait for numpy."""

INTERRUPTED = 130
"""The status of a program that Ctrl-C ended."""

PIPE_CLOSED = 141
"""The status of a program that wrote to a pipe without a reader, such as `git log | head`."""


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

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        # As the base class does, without importing the modules of all commands.
        commands = [
            CompletionItem(name, help=text)
            for name, (_, text) in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return [*commands, *click.Command.shell_complete(self, ctx, incomplete)]

    def main(self, *arguments: Any, **extra: Any) -> Any:
        _replace_closed_streams()
        try:
            return super().main(*arguments, **extra)
        except OSError:  # click could not write what is wrong with the arguments
            _discard(sys.stderr)
            sys.exit(2)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        note_words(ctx, args)
        return super().parse_args(ctx, args)

    def make_context(self, *arguments: Any, **extra: Any) -> click.Context:
        try:
            return super().make_context(*arguments, **extra)
        except OSError as error:  # --help and --version print here
            sys.exit(_end(error))

    def invoke(self, ctx: click.Context) -> Any:
        for stream in (sys.stdout, sys.stderr):
            # A leaf may have a name that the terminal's encoding lacks.
            reconfigure = getattr(stream, "reconfigure", None)
            if reconfigure is not None:
                reconfigure(errors="backslashreplace")
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # a closed pipe and a full disk are noticed here at the latest
            return result
        except KeyboardInterrupt:
            _report("interrupted")
            ctx.exit(INTERRUPTED)
        except (tx.TemplaxError, OSError) as error:
            ctx.exit(_end(error, ctx))


def _end(error: tx.TemplaxError | OSError, ctx: click.Context | None = None) -> int:
    """Reports an error that ends a command.

    Args:
        error: The error.
        ctx: The context of the command, for the error as JSON.

    Returns:
        The exit status.
    """
    if isinstance(error, BrokenPipeError):
        _discard(sys.stdout)
        return PIPE_CLOSED
    _report(str(error) if ctx is None else name_flags(str(error), ctx), prefix="error: ")
    try:
        if ctx is not None:
            echo_json_error(ctx, error)
        sys.stdout.flush()
    except OSError:  # nothing can be written there
        _discard(sys.stdout)
    return 2


def _report(text: str, *, prefix: str = "") -> None:
    """Prints to standard error, if somebody reads it; the exit status tells in any case."""
    try:
        echo_report(text, prefix=prefix, err=True)
    except OSError:
        _discard(sys.stderr)


class _ClosedOutput(TextIOBase):
    """Standard output that was closed before the command began, as `>&-` does in a shell."""

    def write(self, s: str, /) -> int:
        raise OSError(errno.EBADF, "standard output is closed")


def _replace_closed_streams() -> None:
    """Puts something in the place of standard streams that were closed, which Python sets to None.

    Their numbers are taken, so that no file is opened under the number of standard error, where
    libraries print.
    """
    if not (sys.stdin is None or sys.stdout is None or sys.stderr is None):
        return
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(null)
    if sys.stdout is None:
        sys.stdout = _ClosedOutput()
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def _discard(stream: TextIO) -> None:
    """Sends what is left in the buffer of a stream nowhere: Python would try to write it again."""
    with suppress(UnsupportedOperation):  # a stream in memory, which a test reads
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(tx.__version__, prog_name="templax")
@color_option
def main() -> None:
    """Inspect, verify and compare JAX checkpoints, and check them against templates.

    Exit status: 0 if all is well, 1 if a check found a difference or corruption, 2 if something
    can't be read.
    """
