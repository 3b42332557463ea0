"""Every public name of Orbax is there, or the error about it says what to use instead."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import orbax.checkpoint as orbax
import pytest

import templax.compat.orbax as compat
from orbax_names import list_names, make_page, resolve

SRC = Path(compat.__file__).parent

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "orbax-names.md"


def test_a_name_that_is_not_there_says_what_to_use_instead() -> None:
    missing = 0
    for space, name in list_names():
        try:
            assert resolve(space, name) is not None
        except AttributeError as error:
            missing += 1
            text = str(error)
            assert text.startswith("templax.compat.orbax has no `"), (space, name)
            hint = text.partition("; hint: ")[2]
            assert hint, (space, name)
    assert missing < 130


def test_names_that_orbax_has_in_several_modules_are_one_object() -> None:
    for first, second in (
        (("handlers", "ArraySaveArgs"), ("args", "ArraySave")),
        (("handlers", "CompositeResults"), ("args", "Composite")),
        (("utils", "checkpoint_steps"), ("step", "checkpoint_steps")),
        (("utils", "is_primary_host"), ("multihost", "is_primary_host")),
        (("checkpoint_manager", "CheckpointArgs"), ("checkpoint_args", "CheckpointArgs")),
        (("handlers.handler_registration", "CheckpointHandler"), ("", "CheckpointHandler")),
        (("", "Future"), ("future", "Future")),
    ):
        assert resolve(*first) is resolve(*second)


def test_the_page_lists_the_names_that_are_there() -> None:
    """`python tests/orbax_names.py > docs/reference/orbax-names.md` writes it again."""
    assert PAGE.read_text() == make_page()


def test_numbers_of_processes_need_no_initialization() -> None:
    """Programs call this once, under a condition; Orbax needs `jax.distributed` for it."""
    for name in ("runtime_to_distributed", "distributed_to_device"):
        getattr(compat.multihost, f"initialize_{name}_ids")()
        assert getattr(compat.multihost, f"is_{name}_ids_initialized")()
    assert hasattr(orbax.multihost, "initialize_runtime_to_distributed_ids")


def test_what_python_itself_looks_for_gets_no_hint() -> None:
    with pytest.raises(AttributeError) as caught:
        _ = compat.__wrapped__  # pyright: ignore
    assert "hint" not in str(caught.value)


LAZY = [path for path in SRC.rglob("*.py") if "load_lazily(" in path.read_text()]


@pytest.mark.parametrize("path", [p for p in LAZY if p.name != "unmapped.py"], ids=str)
def test_type_checkers_see_the_names_that_are_loaded(path: Path) -> None:
    """Both are written by hand, in a block of imports and in a table."""
    tree = ast.parse(path.read_text())
    blocks = [node.body for node in tree.body if isinstance(node, ast.If)]
    imports = [node for body in blocks for node in body if isinstance(node, ast.ImportFrom)]
    seen = {alias.asname or alias.name for node in imports for alias in node.names}
    parts = path.relative_to(SRC).with_suffix("").parts
    module = importlib.import_module(".".join([compat.__name__, *parts]).removesuffix(".__init__"))
    assert sorted(seen) == module.__all__ == dir(module)
    assert all(getattr(module, name) is not None for name in seen)


@pytest.mark.slow
def test_importing_the_package_loads_none_of_its_modules() -> None:
    """Nor those of templax that they need: the import is a program's first line."""
    code = (
        "import sys, templax.compat.orbax\n"
        "print(*sorted(name for name in sys.modules if name.startswith('templax')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    below = [n for n in done.stdout.split() if n.startswith("templax.compat.")]
    assert below == ["templax.compat.orbax", "templax.compat.orbax.unmapped"]
    assert len(done.stdout.split()) < 10
