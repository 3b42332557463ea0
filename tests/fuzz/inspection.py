"""What the commands do with an opened checkpoint, in this process, and what must hold there."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any, NoReturn

import templax as tx
from templax._catalog.catalog import Catalog
from templax._catalog.tree_rows import build_rows, format_cells
from templax._display import listing
from templax._display.json import render_json
from templax._display.json_listing import account_fields, catalog_fields
from templax._escape import escape_text
from templax._template.json_file import dump_template, load_template, template_from_catalog
from templax.errors import Corrupted

from .targets import Wrong

_ASCII_CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


def inspect(catalog: Catalog) -> None:
    """Lists a checkpoint, as a tree and in JSON, finds its chunks, and checks its own template.

    Also counts the bytes of its files.
    """
    list_contents(catalog)
    damages: list[Corrupted] = []
    entries = [entry for entry in catalog.entries if entry.kind != "string"]
    with suppress(tx.CheckpointError):  # a listing goes on where this does not
        catalog.locate(entries, damages)
    with suppress(tx.CheckpointError):
        catalog.locate(entries)
    for damage in damages:
        check_line(str(damage))
    check_own_template(catalog)
    with suppress(tx.CheckpointError, tx.SourceError):
        count_bytes(catalog)


def count_bytes(catalog: Catalog) -> None:
    """Checks that each byte of the files is counted once, as `templax ls --bytes` does."""
    account = tx.account_bytes(catalog)
    views = (
        account.kinds.values(),
        [file.nbytes for file in account.files],
        [part.nbytes for part in account.parts],
    )
    if any(sum(view) != account.nbytes for view in views):
        raise Wrong(f"the bytes of a checkpoint do not add up: {account}"[:2000])
    for line in str(account).split("\n"):
        check_line(line)
    check_json(render_json(account_fields(account)))


def list_contents(catalog: Catalog) -> None:
    """What `templax ls` computes: the facts, the tree, the code, and the JSON."""
    for label, text in listing.describe_checkpoint(catalog, list(catalog.entries)):
        check_line(escape_text(label + text).replace("\n", ""))
    rows = build_rows(catalog.entries, catalog.empties)
    for _, cells in format_cells(rows):
        check_line(escape_text("".join(cells)))
    code = listing.make_restore_code(catalog)
    check_code(code)
    if (text := str(catalog)) and _ASCII_CONTROLS.search(text):
        raise Wrong(f"str(catalog) has control characters: {text[:400]!r}")
    check_json(render_json(catalog_fields(catalog, list(catalog.entries), code)))


def check_own_template(catalog: Catalog) -> None:
    """Checks that a checkpoint fits its own template, also after that was written and read."""
    template = template_from_catalog(catalog)
    match = tx.check(catalog, template)
    if any(problem.problem != "ambiguous" for problem in match.mismatches):
        raise Wrong(f"a checkpoint does not fit its own template: {match}"[:2000])
    again = load_template(dump_template(template))
    if [(t.name, t.shape) for t in again.targets] != [(t.name, t.shape) for t in template.targets]:
        raise Wrong("a template differs after it was written and read")


def check_line(text: str) -> None:
    """Checks text that must be one line of output."""
    if not text.isprintable():
        raise Wrong(f"unprintable text: {text[:400]!r}")


def check_code(code: str) -> None:
    for line in code.splitlines():
        check_line(line)
    compile(code, "<restore>", "exec")


def check_json(text: str) -> Any:
    """Parses JSON as other programs do: without NaN and Infinity."""
    return json.loads(text, parse_constant=_refuse)


def _refuse(name: str) -> NoReturn:
    raise Wrong(f"JSON with {name}")
