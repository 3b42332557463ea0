"""The pages of `docs/reference/api` list every public name."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PAGES = Path(__file__).parents[2] / "docs" / "reference" / "api"

MODULES = [
    "templax",
    "templax.compat.orbax",
    "templax.errors",
    "templax.formats",
    "templax.storage",
    "templax.testing",
]
"""The public modules; those that they export are public, too."""

DIRECTIVE = re.compile(r"^\.\. auto(\w+):: (\S+)$", re.MULTILINE)


def public_names(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Every public name of a module with its object, those of exported modules included."""
    for name in module.__all__:
        value = getattr(module, name)
        if isinstance(value, ModuleType) and "compat.orbax" in value.__name__:
            continue  # Orbax's modules are many: docs/how-to/from-orbax.md lists them
        if isinstance(value, ModuleType) and hasattr(value, "__all__"):
            yield from public_names(value)
        else:
            yield f"{module.__name__}.{name}", value


def resolve(name: str) -> Any:
    """The object of a dotted name, imported as far as it is a module."""
    parts = name.split(".")
    for stop in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:stop]))
        except ModuleNotFoundError:
            continue
        return functools.reduce(getattr, parts[stop:], module)
    raise ModuleNotFoundError(name)


def listed_names() -> list[str]:
    pages = [page.read_text() for page in sorted(PAGES.glob("*.md"))]
    return [name for page in pages for _, name in DIRECTIVE.findall(page)]


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_listed(module: str) -> None:
    # By identity: a name that two modules export is listed once.
    listed = {id(resolve(name)) for name in listed_names()}
    public = dict(public_names(importlib.import_module(module)))
    assert public
    assert not [name for name, value in public.items() if id(value) not in listed]


def test_no_name_is_listed_twice() -> None:
    names = listed_names()
    assert sorted(names) == sorted(set(names))


def test_every_page_is_in_the_index() -> None:
    index = (PAGES / "index.md").read_text()
    pages = {page.stem for page in PAGES.glob("*.md")} - {"index"}
    assert pages == set(re.findall(r"\]\((\w+)\.md\)", index))
    assert pages == set(re.findall(r"^(\w+)$", index, re.MULTILINE))
