"""The house: who may import what, and what importing it costs."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import templax as tx
from templax._template import dump, from_catalog

SRC = Path(tx.__file__).parent
CASE = Path(__file__).parents[1] / "corpus" / "orbax-0.12.8-default" / "ckpt"
MODULES = {
    ".".join(file.relative_to(SRC).with_suffix("").parts): file for file in SRC.rglob("*.py")
}

JAX = {
    "_pytree", "_shardings", "_abstract", "_place", "_recipe",
    "demo", "compat.orbax", "compat._orbax_args",
}  # fmt: skip
"""Modules that may import JAX when they are imported themselves."""

PURE = {
    "_errors",
    "_names",
    "_boxes",
    "_dtypes",
    "_match",
    "_hints",
    "_leaf_hints",
    "_report",
    "_plan",
}

ORDER = [
    {"_errors", "_names", "_boxes", "_dtypes"},
    {"_codecs", "sources", "sources._local", "sources._memory"},
    {"_catalog"},
    {"_template"},
    {m for m in MODULES if m.startswith("formats")},
    {"_match"},
    {"_report", "_leaf_hints"},
    {"_hints"},
    {"_plan"},
    {"_execute"},
    {"_shardings"},
    {"_pytree"},
    {"_abstract", "_place"},
    {"_recipe"},
    {"_api"},
    {"__init__"},
    {m for m in MODULES if m.startswith(("compat", "testing"))}
    | {"cli", "demo", "_listing", "_terminal"},
]  # fmt: skip
"""Left never imports right, when it is imported."""


def _imports(module: str, inside_functions: bool = False) -> Iterator[str]:
    """What a module imports, templax's own modules by their short name."""
    tree = ast.parse(MODULES[module].read_text())
    package = module.split(".")[:-1]
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not inside_functions:
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        pending += list(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = [*base, *(node.module.split(".") if node.module else [])]
            if (
                node.level
                and ".".join(name) not in MODULES
                and f"{'.'.join(name)}.__init__".lstrip(".") not in MODULES
            ) or (node.level and not node.module):
                yield from (".".join([*name, alias.name]) for alias in node.names)
            else:
                yield ".".join(name)


def _own(module: str) -> set[str]:
    found = set()
    for name in _imports(module):
        for known in (name, f"{name}.__init__", name.removeprefix("templax.")):
            if known in MODULES:
                found.add(known)
    return found


def _stage(module: str) -> int:
    module = module.removesuffix(".__init__")
    return next(
        i for i, stage in enumerate(ORDER) if module in stage or f"{module}.__init__" in stage
    )


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_stage_imports_a_later_one(module: str) -> None:
    later = {other for other in _own(module) if _stage(other) > _stage(module)}
    assert not later


@pytest.mark.parametrize("module", sorted(set(MODULES) - JAX))
def test_jax_is_imported_by_few(module: str) -> None:
    assert not {name for name in _imports(module) if name.split(".")[0] in ("jax", "flax", "orbax")}


@pytest.mark.parametrize("module", sorted(PURE))
def test_pure_stages_do_no_io(module: str) -> None:
    names = {name.split(".")[0] for name in _imports(module, inside_functions=True)}
    assert not names & {
        "os",
        "io",
        "threading",
        "concurrent",
        "sources",
        "formats",
        "pathlib",
        "jax",
    }


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_is_read_in_one_sitting(module: str) -> None:
    assert len(MODULES[module].read_text().splitlines()) <= 450


def _fresh(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_looking_and_checking_do_not_import_jax(tmp_path: Path) -> None:
    template = tmp_path / "t.json"
    template.write_bytes(dump(from_catalog(tx.open(CASE))))
    code = (
        "import sys, templax as tx\n"
        "from templax._template import load\n"
        "template = load(open(sys.argv[2], 'rb').read())\n"
        "print(tx.check(tx.open(sys.argv[1]), template).ok)\n"
        "print('jax' in sys.modules, 'rich' in sys.modules, 'orbax' in sys.modules)\n"
    )
    assert _fresh(code, str(CASE), str(template)) == "True\nFalse False False"


@pytest.mark.parametrize(
    "package",
    ["templax", "templax.sources", "templax.formats", "templax.testing", "templax.compat.orbax"],
)
def test_what_a_package_exports_is_importable_and_documented(package: str) -> None:
    module = importlib.import_module(package)
    for name in module.__all__:
        assert hasattr(module, name), name
    assert len(set(module.__all__)) == len(module.__all__)
    assert module.__doc__


def test_names_without_an_underscore_are_exported() -> None:
    public = {
        n for n in vars(tx) if not n.startswith("_") and not isinstance(getattr(tx, n), type(os))
    }
    assert public - {"TYPE_CHECKING", "Any"} <= set(tx.__all__)


def test_errors_name_this_package_and_share_one_base() -> None:
    errors = [getattr(tx, n) for n in tx.__all__ if isinstance(getattr(tx, n), type)]
    raised = [e for e in errors if issubclass(e, Exception) and not issubclass(e, Warning)]
    assert all(issubclass(e, tx.TemplaxError) for e in raised)
    assert issubclass(tx.TemplateError, ValueError)
    assert issubclass(tx.NotFound, FileNotFoundError)
    assert issubclass(tx.SourceError, OSError)
