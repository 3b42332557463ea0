"""The files, packages and functions that the pages for contributors name exist."""

from __future__ import annotations

import ast
import functools
import importlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import templax as tx

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "templax"
ARCHITECTURE = ROOT / "docs" / "explanation" / "architecture.md"
PAGES = {
    ARCHITECTURE: (60, 60),
    ROOT / "CONTRIBUTING.md": (15, 20),
    ROOT / "docs" / "how-to" / "contribute-a-format.md": (4, 10),
}
"""The pages, and how many paths and names to expect in each at least."""

OTHERS = {"device_put", "jax.Array", "msgspec.Struct", "preadv", "templax.index"}
"""Names that are not templax's own, and a file on disk."""

_PATH = re.compile(r"[\w.<>-]*/[\w./<>-]*|[\w-]+\.(?:py|md|toml)")
_NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")


def blocks(page: Path) -> Iterator[str]:
    """The paragraphs and table rows of a page, without its code blocks."""
    text = re.sub(r"^ *```.*?^ *```\n", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for paragraph in re.split(r"\n\n+", text):
        yield from paragraph.splitlines() if paragraph.startswith("|") else [paragraph]


def words(block: str) -> list[str]:
    """What a block has in backticks, in order."""
    return re.findall(r"`([^`]+)`", block)


def find_paths(block: str) -> dict[str, Path | None]:
    """The file or directory of each path in a block; None if there is none.

    A path is relative to the repository, to `src/templax`, or to a directory that the block has
    named before. A part such as `<name>` stands for a new file.
    """
    found: dict[str, Path | None] = {}
    nearby: list[Path] = []
    for word in filter(_PATH.fullmatch, words(block)):
        known = word[: word.index("<")] if "<" in word else word
        candidates = [base / known for base in (ROOT, SRC, *nearby)]
        path = next((candidate for candidate in candidates if candidate.exists()), None)
        found[word] = path
        if path is not None:
            nearby.insert(0, path if path.is_dir() else path.parent)
    return found


@functools.cache
def defined_names(file: Path) -> set[str]:
    """What a module defines, and the members of its classes: `Job`, `Job.begin`, `begin`."""
    found: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        names = _bound_names(node)
        found |= names
        if isinstance(node, ast.ClassDef):
            members = {name for child in node.body for name in _bound_names(child)}
            found |= members | {f"{node.name}.{name}" for name in members}
    return found


def _bound_names(node: ast.stmt) -> set[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def is_found(name: str, files: list[Path]) -> bool:
    """Whether a name is a package of templax, public, or defined in one of `files`.

    Args:
        name: A name such as `storage`, `tx.check`, `Catalog.audit` or `build_plan`.
        files: Modules in which to look for what is not public.
    """
    if name.startswith("templax."):
        module, _, attribute = name.rpartition(".")
        return hasattr(importlib.import_module(module), attribute)
    name = name.removeprefix("tx.")
    if (SRC / name).is_dir() or (SRC / f"{name}.py").is_file() or name in ("templax", *tx.__all__):
        return True
    if name.split(".")[0] in tx.__all__:  # a member of a public class
        files = list(SRC.rglob("*.py"))
    return any(name in defined_names(file) for file in files)


def named(block: str) -> list[str]:
    """The names in a block, those of calls such as `open(source)` included."""
    bare = (re.sub(r"\(.*\)$", "", word) for word in words(block) if not _PATH.fullmatch(word))
    return [word for word in bare if _NAME.fullmatch(word) and word not in OTHERS]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_exists(page: Path) -> None:
    found = [(word, path) for block in blocks(page) for word, path in find_paths(block).items()]
    assert [word for word, path in found if path is None] == []
    assert len(found) >= PAGES[page][0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_name_is_defined_where_the_page_says(page: Path) -> None:
    """In a file that the same paragraph or row names; anywhere, if it names none."""
    everything = sorted(SRC.rglob("*.py"))
    wrong: list[str] = []
    count = 0
    for block in blocks(page):
        paths = find_paths(block).values()
        files = [path for path in paths if path is not None and path.suffix == ".py"]
        for name in named(block):
            count += 1
            if not is_found(name, files or everything):
                wrong.append(name)
    assert wrong == []
    assert count >= PAGES[page][1]


def test_the_list_of_packages_is_complete() -> None:
    [tree] = re.findall(r"^```text\nsrc/templax/\n(.*?)^```", ARCHITECTURE.read_text(), re.M | re.S)
    listed = re.findall(r"^  (\S+)", tree, re.MULTILINE)
    assert len(listed) > 15
    assert [entry for entry in listed if not (SRC / entry).exists()] == []
    packages = {file.parent.relative_to(SRC).parts[0] for file in SRC.glob("*/__init__.py")}
    modules = {file.stem for file in SRC.glob("*.py")} - {"__main__"}
    assert {entry.split("/")[0].removesuffix(".py") for entry in listed} == packages | modules


def test_the_order_of_imports_is_that_of_the_contract() -> None:
    [order] = re.findall(r"^`_escape` <.*?(?=\n\n)", ARCHITECTURE.read_text(), re.M | re.S)
    stages = [set(words(stage)) for stage in order.split("<")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    [layers] = [c for c in project["tool"]["importlinter"]["contracts"] if c["type"] == "layers"]
    contract = [set(layer.split(" | ")) for layer in reversed(layers["layers"])]
    assert [stage for stage in stages if stage != {"templax"}] == contract


def test_a_stale_name_is_noticed() -> None:
    row = "| `_restore/api.py` | `restore`, `gone` | `options.py` and `gone.py` |"
    paths = find_paths(row)
    assert paths == {
        "_restore/api.py": SRC / "_restore" / "api.py",
        "options.py": SRC / "_restore" / "options.py",
        "gone.py": None,
    }
    files = [path for path in paths.values() if path is not None]
    assert [is_found(name, files) for name in named(row)] == [True, False]
    assert is_found("Job.begin", [SRC / "_save" / "job.py"])
    assert not is_found("Job.gone", [SRC / "_save" / "job.py"])
    assert is_found("Catalog.audit", [])
    assert not is_found("Catalog.gone", [])
    assert is_found("templax.testing.FormatContract", [])
    assert not is_found("templax.testing.Gone", [])
