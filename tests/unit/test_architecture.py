"""What importing costs, and what no module may do.

Who may import whom is a contract of import-linter, in pyproject.toml.
"""

from __future__ import annotations

import ast
import functools
import importlib
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import templax as tx
from templax._template.json_file import dump_template, template_from_catalog
from templax.cli.main import COMMANDS

SRC = Path(tx.__file__).parent
CASE = Path(__file__).parents[1] / "corpus" / "orbax-0.12.8-default" / "ckpt"
MODULES = {
    ".".join(file.relative_to(SRC).with_suffix("").parts): file for file in SRC.rglob("*.py")
}

JAX = {
    "_jax.paths", "_jax.put", "_jax.support", "_jax.versions", "_restore.devices",
    "_restore.reshard",
    "_save.jax_leaves", "_save.owners", "_template.flatten", "_template.from_pytree",
    "_template.jax_shardings", "_template.specs", "_template.trace", "_views.recipe",
    "compat.orbax.args", "compat.orbax.arrays", "compat.orbax.checkpoint_manager",
    "compat.orbax.checkpointers", "compat.orbax.experimental.v1.arrays",
    "compat.orbax.experimental.v1.checkpoint_metadata", "compat.orbax.experimental.v1.loading",
    "compat.orbax.experimental.v1.multihost", "compat.orbax.experimental.v1.partial",
    "compat.orbax.experimental.v1.pytree_handler", "compat.orbax.experimental.v1.saving",
    "compat.orbax.experimental.v1.tree", "compat.orbax.experimental.v1.tree_loading",
    "compat.orbax.experimental.v1.tree_metadata",
    "compat.orbax.handlers.random_keys", "compat.orbax.handlers.trees", "compat.orbax.leaf_args",
    "compat.orbax.leaf_templates", "compat.orbax.metadata.sharding", "compat.orbax.metadata.tree",
    "compat.orbax.msgpack_utils", "compat.orbax.multihost", "compat.orbax.run_items",
    "compat.orbax.test_utils", "compat.orbax.transform_utils", "compat.orbax.tree",
    "compat.orbax.tree_restore", "compat.orbax.type_handlers",
    "compat.orbax.utils",
}  # fmt: skip
"""Modules that may import JAX when they are imported themselves."""

PURE = {
    "errors", "_core.arguments", "_core.boxes", "_core.chunk_grid", "_core.dtypes", "_core.names",
    "_core.text", "_codecs.crc_combine", "_catalog.checksums", "_catalog.entry", "_catalog.written",
    "_match.at_hints", "_match.collection_hints", "_match.failure", "_match.hints",
    "_match.leaf_hints", "_match.match", "_match.similar_names",
    "_match.meaning", "_match.missing_hints", "_match.moved_subtrees", "_match.rename_hints",
    "_match.rename_text", "_match.options", "_match.result", "_match.shape_hints",
    "_plan.buffers", "_plan.build", "_plan.chunk_lookup", "_plan.compare_layouts", "_plan.job",
    "_plan.job_leaves", "_plan.limits", "_plan.moves", "_plan.parts", "_plan.plan",
    "_plan.plan_hosts", "_plan.ranges", "_plan.requests", "_plan.sharing", "_plan.topology",
    "_runs.retention",
    "_template.placement", "_template.plain_tree", "_template.sharding", "_template.template",
    "_views.axes", "_views.expressions", "_views.mapping_json", "_views.names",
    "_views.rule_checks", "_views.rules",
}  # fmt: skip


@functools.cache
def _parse(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def _imports(module: str, inside_functions: bool = False) -> Iterator[str]:
    """What a module imports, templax's own modules by their short name."""
    tree = _parse(module)
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


def test_jax_is_imported_by_few() -> None:
    for module in sorted(set(MODULES) - JAX):
        names = {name.split(".")[0] for name in _imports(module)}
        assert not names & {"jax", "flax", "orbax"}, module


def test_pure_stages_do_no_io() -> None:
    io = {"os", "io", "threading", "concurrent", "storage", "formats", "pathlib", "jax"}
    for module in sorted(PURE):
        names = {name.split(".")[0] for name in _imports(module, inside_functions=True)}
        assert not names & io, module


def test_a_module_is_read_in_one_sitting() -> None:
    for module, file in MODULES.items():
        assert len(file.read_text().splitlines()) <= 450, module


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


@pytest.mark.slow
def test_looking_and_checking_do_not_import_jax(tmp_path: Path) -> None:
    template = tmp_path / "t.json"
    template.write_bytes(dump_template(template_from_catalog(tx.open(CASE))))
    code = (
        "import sys, templax as tx\n"
        "from templax._template.json_file import load_template as load\n"
        "template = load(open(sys.argv[2], 'rb').read())\n"
        "print(tx.check(tx.open(sys.argv[1]), template).ok)\n"
        "print('jax' in sys.modules, 'rich' in sys.modules, 'orbax' in sys.modules)\n"
    )
    assert _fresh(code, str(CASE), str(template)) == "True\nFalse False False"


@pytest.mark.parametrize(
    "package",
    ["templax", "templax.storage", "templax.formats", "templax.testing", "templax.compat.orbax"],
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


# --- what importing costs, and what the walk above must be able to see


def test_the_walk_sees_imports_in_every_form() -> None:
    """Relative, absolute, aliased, under `if` and `try`; not under `TYPE_CHECKING`."""
    assert {"_core.boxes", "_template.template"} <= _own("_restore.devices")
    assert "_catalog.abstract_tree" in set(_imports("_catalog.catalog", inside_functions=True))
    assert "_catalog.abstract_tree" not in _own("_catalog.catalog")
    assert "hypothesis" not in set(_imports("testing.strategies"))  # `if TYPE_CHECKING` only
    assert "jax" in set(_imports("_jax.support"))


@pytest.mark.slow
def test_the_list_of_jax_modules_holds_no_other() -> None:
    """A module that no longer needs JAX leaves the list, so that it does not come back unseen."""
    for module in sorted(JAX):
        assert module in MODULES
        names = {name.split(".")[0] for name in _imports(module)}
        assert "jax" in names or any(other in JAX for other in _own(module)), module


def test_pure_stages_open_nothing() -> None:
    """Nor by a builtin: no `open`, no `print`, no `input`, no `exec`."""
    for module in sorted(PURE):
        calls = {
            node.func.id
            for node in ast.walk(_parse(module))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not calls & {"open", "print", "input", "exec", "eval", "__import__"}, module


@pytest.mark.slow
def test_no_module_swallows_what_it_does_not_know() -> None:
    """No bare `except`, no `except Exception` or `BaseException` that does not raise again.

    Except in the demo, which shows whatever Orbax raises.
    """
    for module in MODULES:
        for node in ast.walk(_parse(module)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            assert node.type is not None, (module, node.lineno)
            names = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)}
            if names & {"Exception", "BaseException"} and module != "demo":
                raises = any(isinstance(n, ast.Raise) for n in ast.walk(node))
                assert raises, (module, node.lineno)


def test_no_module_reads_the_environment() -> None:
    """No environment variable changes a result; those may be read that only dress a terminal, or by
    which all programs are told how to reach an object store.
    """
    allowed = {"_display.terminal", "cli.main", "demo", "storage.environment"}
    for module in set(MODULES) - allowed:
        text = MODULES[module].read_text()
        assert "os.environ" not in text, module
        assert "getenv" not in text, module


def test_every_module_says_what_it_is_for() -> None:
    for module in MODULES:
        assert ast.get_docstring(_parse(module)), module


def test_no_module_is_called_after_nothing() -> None:
    """The modules of Orbax have Orbax's names."""
    ours = [module for module in MODULES if not module.startswith("compat.orbax.")]
    words = {word for module in ours for word in module.strip("_").replace(".", "_").split("_")}
    assert not words & {"util", "utils", "helper", "helpers", "common", "base", "misc", "impl"}


HEAVY = "('jax', 'jaxlib', 'flax', 'orbax', 'tensorstore', 'equinox', 'hypothesis', 'rich')"


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        "import templax",
        "import templax.storage, templax.formats",
        "import templax.testing",
        "import templax.cli",
        "import templax as tx; list(tx.open(sys.argv[1]).leaves); dir(tx)",
        "import templax as tx; str(tx.TemplateError); tx.CastWarning; tx.Match",
        "import templax as tx; str(tx.verify(sys.argv[1]))",
    ],
)
def test_what_needs_no_jax_imports_none(code: str) -> None:
    loaded = f"print([m for m in {HEAVY} if m in sys.modules])"
    assert _fresh(f"import sys\n{code}\n{loaded}", str(CASE)) == "[]"


@pytest.mark.slow
def test_a_report_of_what_does_not_fit_imports_no_jax(tmp_path: Path) -> None:
    """Hints included."""
    template = tmp_path / "t.json"
    template.write_bytes(dump_template(template_from_catalog(tx.open(CASE), at="state")))
    code = (
        "import sys, templax as tx\n"
        "from templax._template.json_file import load_template as load\n"
        "match = tx.check(sys.argv[1], load(open(sys.argv[2], 'rb').read()))\n"
        "print({m.hint for m in match.mismatches if m.problem == 'missing'}, match.ok)\n"
        f"print([m for m in {HEAVY} if m in sys.modules])\n"
    )
    assert _fresh(code, str(CASE), str(template)) == "{'at=\"state\"'} False\n[]"


def _loaded_by(code: str, *names: str) -> set[str]:
    """Which of `names` are imported after `code` ran in a process of its own."""
    loaded = f"print([m for m in {names!r} if m in sys.modules])"
    output = _fresh(f"import sys\n{code}\n{loaded}", str(CASE))
    return set(ast.literal_eval(output.splitlines()[-1]))


def test_importing_templax_imports_no_library() -> None:
    """Nor `dataclasses` or `re`: only the names that are used cost something."""
    third = ("numpy", "ml_dtypes", "msgspec", "zstandard", "crc32c", "click", "rich", "jax")
    assert not _loaded_by("import templax", *third, "templax.errors", "dataclasses")
    assert not _loaded_by("import templax as tx; tx.Mismatch, tx.TemplaxError", *third)


CLI = "from templax.cli import main\ntry: main({!r})\nexcept SystemExit as end: print(end.code)"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["ls", "--help"], ["la"]])
def test_help_waits_for_no_library_but_click(arguments: list[str]) -> None:
    heavy = ("numpy", "ml_dtypes", "msgspec", "zstandard", "crc32c", "importlib.metadata")
    assert not _loaded_by(CLI.format(arguments), *heavy, "templax.formats", "templax._match.match")


def test_the_short_help_of_each_command_is_how_its_own_help_begins() -> None:
    """`--help` imports no command, so that their first sentences are written there too."""
    for name, (module, text) in COMMANDS.items():
        command = getattr(importlib.import_module(f"templax.cli.{module}"), name)
        assert command.get_short_help_str(limit=200).startswith(text.removesuffix(".")), name


@pytest.mark.slow
@pytest.mark.parametrize("colour", ["", "1"])
def test_a_listing_loads_nothing_that_compares_or_restores(
    colour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", colour)
    stages = ("_restore", "_match.match", "_match.hints", "_plan", "_template")
    heavy = ("jax", "rich", "concurrent.futures", *(f"templax.{stage}" for stage in stages))
    assert not _loaded_by(CLI.format(["ls", str(CASE)]), *heavy)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["templax", "x.safetensors", "x.npz"])
def test_a_listing_loads_no_format_that_is_not_its_own(name: str, tmp_path: Path) -> None:
    """Nor what saves, nor the modules of Python that take longest to import."""
    path = tmp_path / name
    tx.save(path, {"w": np.ones(3, np.float32)}, format="npz" if name == "x.npz" else None)
    formats = ("torch", "gguf", "ocdbt.read", "zarr.chunks", "zarr_contents", "diagnose")
    others = (
        *(f"templax.formats.{each}" for each in formats),
        *("templax.storage.staging", "templax.storage.leftovers"),
        *("zipfile", "pathlib", "urllib.parse", "logging", "shutil", "asyncio"),
    )
    assert not _loaded_by(CLI.format(["ls", str(path)]), *others)


@pytest.mark.slow
def test_a_checksum_does_not_load_the_package_around_its_function() -> None:
    """It brings `importlib.metadata`, which takes as long as all of templax."""
    bare = CASE.parents[1] / "orbax-0.12.8-noocdbt" / "ckpt"
    loaded = "\nfrom templax._codecs.crc32c import _load_function as load"
    count = "\nprint(load.cache_info().currsize)"
    for path, used in ((bare, 0), (CASE, 1)):
        code = CLI.format(["ls", str(path)])
        assert not _loaded_by(code, "crc32c", "importlib.metadata")
        assert int(_fresh(f"import sys\n{code}{loaded}{count}").splitlines()[-1]) == used


@pytest.mark.slow
def test_a_restore_loads_no_part_of_jax_that_an_application_does_not() -> None:
    """`jax.extend` takes longer to import than a small restore takes."""
    code = (
        "import jax, templax as tx\n"
        "template = {'scale': jax.ShapeDtypeStruct((), 'float32')}\n"
        "tx.restore(sys.argv[1], template, at='state.params', extra='ignore')"
    )
    assert not _loaded_by(code, "jax.extend", "jax.experimental.pallas")


def test_public_names_have_one_home() -> None:
    """The table by which they are loaded says what the stub says to type checkers."""
    stub = ast.parse((SRC / "__init__.pyi").read_text())
    typed = {
        alias.name: node.module
        for node in stub.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    assert typed == tx._HOME  # pyright: ignore[reportAttributeAccessIssue]
    assert sorted(typed) == tx.__all__
    for name, module in typed.items():
        assert getattr(tx, name) is getattr(importlib.import_module(f"templax.{module}"), name)


@pytest.mark.slow
def test_packages_of_the_surface_need_no_import_of_their_own() -> None:
    code = "import templax as tx; print(tx.storage.Memory.__name__, tx.formats.Format.__name__)"
    assert _fresh(code) == "Memory Format"


@pytest.mark.slow
def test_an_error_is_unpickled_where_nothing_is_loaded() -> None:
    match = tx.check(CASE, template_from_catalog(tx.open(CASE)), at="state")
    for error in (tx.TemplateError(match), tx.Corrupted("Expected more, got less")):
        code = "import pickle, sys; print(repr(pickle.loads(bytes.fromhex(sys.argv[1]))))"
        assert _fresh(code, pickle.dumps(error).hex()) == repr(error)


@pytest.mark.slow
def test_jax_comes_with_the_names_that_need_it() -> None:
    code = (
        "import sys, templax as tx\n"
        "print('jax' in sys.modules)\n"
        "tx.Recipe, tx.template_of\n"
        "print('jax' in sys.modules)\n"
    )
    assert _fresh(code) == "False\nTrue"


def test_all_is_exactly_what_is_public() -> None:
    assert sorted(tx.__all__) == tx.__all__ == sorted(set(tx.__all__))
    namespace: dict[str, object] = {}
    exec("from templax import *", namespace)
    assert set(namespace) - {"__builtins__"} == set(tx.__all__)
    assert set(tx.__all__) <= set(dir(tx))
    public = {name for name in dir(tx) if not name.startswith("_")}
    modules = {name for name in public if isinstance(getattr(tx, name), type(os))}
    assert public - modules == set(tx.__all__)


def test_help_begins_with_every_call() -> None:
    """`help(tx)` lists the private packages right after the docstring."""
    assert tx.__doc__ is not None
    overview = tx.__doc__.partition(">>>")[0]
    calls = {name for name in tx.__all__ if not isinstance(getattr(tx, name), type)}
    assert calls | {"Manager", "Keep", "Recipe"} <= set(overview.replace(",", " ").split())


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError) as caught:
        _ = tx.load  # pyright: ignore[reportAttributeAccessIssue]
    assert str(caught.value) == "module 'templax' has no attribute 'load'"


def test_every_public_name_is_documented() -> None:
    for name in tx.__all__:
        public = getattr(tx, name)
        assert public.__doc__, name
        assert public.__doc__.strip(), name


def test_the_package_is_typed() -> None:
    assert (SRC / "py.typed").is_file()
