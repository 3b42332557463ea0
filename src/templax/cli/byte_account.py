"""Prints what every byte of a checkpoint is for: the output of `templax ls --bytes`."""

from __future__ import annotations

import click

from .._audit.account import account_bytes
from .._audit.account_result import MAX_ROWS, format_account
from .._display.json import render_json
from .._display.json_listing import account_fields
from .._display.terminal import echo_report
from ..formats.registry import open_catalog
from ..storage.open import open_source
from ..storage.source import Source


def print_account(path: str | Source, *, as_json: bool, whole: bool) -> None:
    """Prints the account of the checkpoint at a path.

    Args:
        path: The checkpoint.
        as_json: Whether to print JSON, which has all of it.
        whole: Whether to print every row of each table.
    """
    catalog = open_catalog(open_source(path), uncommitted="allow")
    account = account_bytes(catalog)
    if as_json:
        click.echo(render_json(account_fields(account)))
    else:
        rows = None if whole else MAX_ROWS
        echo_report(format_account(account, "--flat and --json have them all", rows))
