"""`docs/reference/cli.md` has every command with every option, default and choice."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from templax.cli.main import COMMANDS, main

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "cli.md").read_text()

OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")


SHARED = "--color"
"""The option that every command has, which the page describes once."""


def sections() -> dict[str, str]:
    """The text of the page below each heading that is a command."""
    _, *parts = re.split(r"^## `templax ([\w-]+)`\n", PAGE, flags=re.MULTILINE)
    texts = (re.split(r"^## ", text, flags=re.MULTILINE)[0] for text in parts[1::2])
    return dict(zip(parts[::2], texts, strict=True))


def load_command(name: str) -> click.Command:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    return command


def options(name: str) -> dict[str, click.Option]:
    """The options of a command by each of their spellings, such as `-o` and `--output`.

    Without the shared one.
    """
    parameters = load_command(name).params
    found = [parameter for parameter in parameters if isinstance(parameter, click.Option)]
    return {spelling: option for option in found for spelling in option.opts if spelling != SHARED}


def rows(text: str) -> dict[str, tuple[str, str]]:
    """For each option with a row in a table, its cells: the option itself, and its default."""
    table = re.findall(r"^\| (`-.*?) \|(.*?)\|", text.replace(r"\|", "/"), re.MULTILINE)
    return {name: cells for cells in table for name in OPTION.findall(cells[0])}


def test_every_command_has_a_section() -> None:
    assert sorted(sections()) == sorted(COMMANDS)


@pytest.mark.parametrize("command", [main, *map(load_command, COMMANDS)], ids=lambda c: c.name)
def test_the_shared_option_is_described_for_all_commands(command: click.Command) -> None:
    (option,) = (parameter for parameter in command.params if SHARED in parameter.opts)
    assert isinstance(option.type, click.Choice)
    assert f"`{SHARED} {'|'.join(option.type.choices)}`" in PAGE.partition("\n## ")[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_options_of_a_command_are_those_of_its_section(name: str) -> None:
    prose = re.sub(r"```.*?```|pip install [^`]*", "", sections()[name], flags=re.DOTALL)
    mentioned = {
        option for code in re.findall(r"`[^`]+`", prose) for option in OPTION.findall(code)
    }
    assert mentioned == set(options(name))


@pytest.mark.parametrize("name", COMMANDS)
def test_defaults_and_choices_are_in_the_row_of_their_option(name: str) -> None:
    shared = rows(sections()["check"]) if name == "plan" else {}
    listed = shared | rows(sections()[name])
    for spelling, option in options(name).items():
        if spelling == "--json" and name == "steps":
            continue  # the only option of the command, and in prose
        heading, default = listed[spelling]
        if isinstance(option.default, str) and option.default not in ("", "-"):
            assert default.strip() == f"`{option.default}`", spelling
        if isinstance(option.type, click.Choice):
            assert f" {'/'.join(option.type.choices)}`" in heading, spelling


def test_the_page_is_read_as_it_is_meant() -> None:
    """The expressions above find what is there."""
    assert rows("| `-o FILE`, `--output FILE` | standard output | x |\n") == {
        "-o": ("`-o FILE`, `--output FILE`", " standard output "),
        "--output": ("`-o FILE`, `--output FILE`", " standard output "),
    }
    assert OPTION.findall("`--keep-best N` and `a-b` --- `-h`") == ["--keep-best", "-h"]
    assert sum(len(options(name)) for name in COMMANDS) > 25


@pytest.mark.parametrize("name", COMMANDS)
def test_help_begins_with_one_whole_sentence(name: str) -> None:
    for text in (COMMANDS[name][1], (load_command(name).help or "").split("\n\n")[0]):
        assert re.fullmatch(r"[A-Z][^.]*(?:\.\w[^.]*)*\.", " ".join(text.split())), text
