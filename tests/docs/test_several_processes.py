"""The page about several processes: each row names its test, and each time limit is that of the
code.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "several-processes.md"
TESTS = ROOT / "tests" / "hosts"


def rows(heading: str) -> list[list[str]]:
    """The cells of the only table of a section."""
    [section] = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S)
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def defined_tests() -> set[str]:
    found: set[str] = set()
    for file in TESTS.glob("test_*.py"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef):
                found.add(node.name)
    return found


def test_each_row_of_what_happens_names_a_test() -> None:
    known, table = defined_tests(), rows("What happens when which process does what")
    assert len(table) >= 28
    for row in table:
        assert len(row) == 5, row
        assert row[4].strip("`") in known, row[4]


@pytest.mark.parametrize("row", rows("All time limits"), ids=lambda row: f"{row[1]}-{row[2]}")
def test_each_time_limit_is_that_of_the_code(row: list[str]) -> None:
    seconds, name, where, _ = (cell.strip("`") for cell in row)
    if where == "JAX":
        default = inspect.signature(jax.distributed.initialize).parameters[name].default
        assert default == float(seconds)
    else:
        module = importlib.import_module(f"templax.{where.removesuffix('.py').replace('/', '.')}")
        assert getattr(module, name) == float(seconds)


def test_no_time_limit_is_left_out() -> None:
    """Each constant of these modules that is a number of seconds is in the table."""
    table = {(row[1].strip("`"), row[2].strip("`")) for row in rows("All time limits")}
    source = ROOT / "src" / "templax"
    for folder in ("_hosts", "_save", "_runs", "_restore"):
        for file in (source / folder).glob("*.py"):
            for name in re.findall(r"^(\w+_S) = [\d.]+$", file.read_text(), re.MULTILINE):
                assert (name, file.relative_to(source).as_posix()) in table
