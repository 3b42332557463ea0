"""What several commands share: `--json`, `--color`, and paths that a shell completes."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from ..errors import TemplaxError

if TYPE_CHECKING:
    from .._views.view import View
    from ..storage.source import Source

_Command = TypeVar("_Command", bound=Callable[..., Any])

_SIZE = re.compile(
    r"(?P<number>[0-9]{1,15}(?:\.[0-9]{1,9})?) *(?P<unit>(?:[kmgt]i?)?)b?", re.IGNORECASE
)

_ARGUMENT = r"""(?<![\w.`'"/\\-])(\w+)=(True|False|"[^"]*"|'[^']*'|\d+)?(?!\w)"""

_CODE = r"templax\.storage\.Local\([^)]*\)"
"""Python in a message that also has what to do in a shell."""

_GIVEN = "templax.given"
"""Where a command notes the words that it was called with."""

_JSON = "templax.json"
"""Where a command notes in `click.Context.meta` that it was called with `--json`."""


class CheckpointPath(click.ParamType):  # pyright: ignore[reportMissingTypeArgument]
    """A path or URL, as `templax.open` takes it. A shell completes the names of files.

    Args:
        words: Words that the parameter takes, too.
        directory: Whether a shell completes directories only.
    """

    name = "path"

    def __init__(self, *words: str, directory: bool = False):
        self._words, self._kind = words, "dir" if directory else "file"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        words = [CompletionItem(word) for word in self._words if word.startswith(incomplete)]
        return [*words, CompletionItem(incomplete, type=self._kind)]


def follow_links_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--follow-links`, with which the command gets a source in place of its path."""

    @click.option(
        "--follow-links", is_flag=True, help="Follow symbolic links that lead out of PATH."
    )
    @functools.wraps(command)
    def run(*args: Any, path: str, follow_links: bool, **options: Any) -> Any:
        return command(*args, path=follow_path(path) if follow_links else path, **options)

    return run


def map_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--map`, with which the command gets a view in place of its path."""

    @click.option(
        "--map",
        "map_file",
        type=CheckpointPath(),
        metavar="FILE.json",
        help="Show the checkpoint as the mapping in this file says.",
    )
    @functools.wraps(command)
    def run(*args: Any, path: str | Source, map_file: str | None, **options: Any) -> Any:
        return command(*args, path=map_path(path, map_file), **options)

    return run


def map_path(path: str | Source, map_file: str | None) -> str | Source | View:
    """The view of a checkpoint through the mapping in a file; without a file, its path."""
    if map_file is None:
        return path
    from .._views.mapping import Mapping  # here, so that --help does not wait for numpy
    from .._views.view import View

    return View(path, Mapping.load(map_file))


def follow_path(path: str) -> Source:
    """The source at a path, which follows links that lead out of it."""
    from ..storage.local import Local  # here, so that --help does not wait for numpy
    from ..storage.open import open_source

    source = open_source(path)
    return Local(source.url, follow_links=True) if isinstance(source, Local) else source


def parse_size(text: str) -> int:
    """A number of bytes, such as `500MB`, `4GiB` or `1048576`."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise click.BadParameter(f"expected a size such as 500MB or 4GiB, got {text!r}")
    unit = found["unit"].lower()
    power = "kmgt".find(unit[:1]) + 1 if unit else 0
    nbytes = int(float(found["number"]) * (1024 if "i" in unit else 1000) ** power)
    if nbytes < 1:
        raise click.BadParameter(f"expected a size of at least one byte, got {text!r}")
    return nbytes


def parse_renames(renames: tuple[str, ...]) -> dict[str, str] | None:
    """The values of `--rename` as the argument `rename=`."""
    found: dict[str, str] = {}
    for pair in renames:
        old, equals, new = pair.partition("=")
        if not equals:
            raise click.BadParameter(f"expected OLD=NEW, got {pair!r}", param_hint="--rename")
        if old in found:
            what = f"expected one new name for {old!r}, got {found[old]!r} and {new!r}"
            raise click.BadParameter(what, param_hint="--rename")
        found[old] = new
    return found or None


def rename_option(old: str, new: str) -> Callable[[_Command], _Command]:
    """Adds `--rename`, which the command gets as `renames`; see `parse_renames`.

    Args:
        old, new: What the names of a pair are, for `--help`.
    """
    return click.option(
        "--rename",
        "renames",
        multiple=True,
        metavar="OLD=NEW",
        help=f"A prefix of {old} and what it {new} (cut at the first =); repeatable.",
    )


def json_option(command: _Command) -> _Command:
    """Adds `--json`, which the command gets as `as_json`."""

    def note(ctx: click.Context, _: click.Parameter, value: bool) -> bool:
        ctx.meta[_JSON] = value
        return value

    return click.option(
        "--json", "as_json", is_flag=True, callback=note, help="Print JSON, errors included."
    )(command)


def note_words(ctx: click.Context, words: Iterable[str]) -> None:
    """Notes the words of a command, which its errors repeat as they are."""
    ctx.meta[_GIVEN] = [word for word in words if "=" in word and not word.startswith("-")]


def name_flags(text: str, ctx: click.Context) -> str:
    """The text of an error with options of the command of a context, such as `--skip`, in place of
    arguments of Python. What the user has typed, such as a path, stays as it is.
    """
    return translate_arguments(text, _list_flags(ctx), ctx.meta.get(_GIVEN, ()))


def translate_arguments(text: str, flags: Collection[str], given: Iterable[str] = ()) -> str:
    """A text with options of the command line in place of arguments of Python.

    Args:
        text: As the Python API says it.
        flags: The options of the command, such as `--skip`. Other arguments stay as they are.
        given: Texts that stay as they are.

    >>> flags = ["--skip", "--overwrite", "--no-verify"]
    >>> translate_arguments("skip= leaves them out; overwrite=True replaces it", flags)
    '--skip leaves them out; --overwrite replaces it'
    >>> translate_arguments("Expected verify=False, got at=3", flags)
    'Expected --no-verify, got at=3'
    >>> translate_arguments("skip=4/run holds two steps", flags, ["skip=4/run"])
    'skip=4/run holds two steps'
    """

    def name_flag(found: re.Match[str]) -> str:
        if found[1] is None:
            return found[0]
        name, value = found[1].replace("_", "-"), found[2]
        if value == "False" and f"--no-{name}" in flags:
            return f"--no-{name}"
        if f"--{name}" not in flags or value == "False":
            return found[0]
        if value in (None, "True"):
            return f"--{name}"
        given = value if value.isdecimal() else value[1:-1]
        return f"--{name} {shlex.quote(given)}"

    kept = map(re.escape, sorted(given, key=len, reverse=True))
    return re.sub("|".join([*kept, _CODE, _ARGUMENT]), name_flag, text)


def _list_flags(ctx: click.Context) -> list[str]:
    """The options of the command that a group has invoked."""
    group, name = ctx.command, ctx.invoked_subcommand
    command = group.get_command(ctx, name) if isinstance(group, click.Group) and name else None
    return [] if command is None else [flag for each in command.params for flag in each.opts]


def echo_json_error(ctx: click.Context, error: TemplaxError | OSError) -> None:
    """Prints an error as JSON, if the command was called with `--json`."""
    if ctx.meta.get(_JSON):
        from .._display.json import render_json  # for --json only

        places = ("what", "leaf", "stored_as", "file", "start", "stop", "hint")
        fields: dict[str, Any] = {name: getattr(error, name, None) for name in places}
        fields["what"] = fields["what"] or str(error)
        for name in ("what", "hint"):
            fields[name] = name_flags(fields[name], ctx) if fields[name] else None
        click.echo(render_json({"ok": False, "error": {"type": type(error).__name__, **fields}}))


def color_option(command: _Command) -> _Command:
    """Adds `--color`, which decides for all that is printed."""

    def apply(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
        if value is not None:
            ctx.color = ctx.find_root().color = {"always": True, "never": False}.get(value)

    return click.option(
        "--color",
        type=click.Choice(["auto", "always", "never"]),
        metavar="auto|always|never",
        callback=apply,
        expose_value=False,
        is_eager=True,
        help="When to use colour. auto: on a terminal, unless NO_COLOR is set.",
    )(command)
