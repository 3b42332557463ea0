"""No file can make templax run code, as docs/explanation/security.md promises.

The source never does what could run code, and each place that comes near it is listed here.
"""

from __future__ import annotations

import ast
import functools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import templax as tx

SRC = Path(tx.__file__).parent
MODULES = {
    ".".join(file.relative_to(SRC).with_suffix("").parts): file for file in SRC.rglob("*.py")
}

BUILTINS = {"eval", "exec", "compile", "__import__", "input", "breakpoint"}

LIBRARIES = {
    *("pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "torch", "yaml"),
    *("importlib", "imp", "runpy", "pkgutil", "code", "codeop", "zipimport"),
    *("subprocess", "multiprocessing", "pty", "commands", "ctypes", "cffi"),
    *("xmlrpc", "urllib", "http", "requests", "socket", "webbrowser"),
}
"""Libraries that load or run code, start programs or open connections."""

CALLS = {
    *("os.system", "os.popen", "os.startfile", "os.fork", "os.forkpty"),
    *("asyncio.create_subprocess_shell", "asyncio.create_subprocess_exec"),
    *("np.load", "numpy.load", "np.fromfile", "sys.path.append", "sys.path.insert"),
    *("builtins.eval", "builtins.exec", "jax.export.deserialize"),
}
PREFIXES = ("os.exec", "os.spawn", "os.posix_spawn")

ALLOWED = {
    ("__init__", "importlib"): "public names are imported when they are first used: a fixed table",
    ("cli.main", "importlib"): "commands are imported when they are called: a fixed table",
    ("_codecs.blosc", "importlib"): "imports two modules of numcodecs: constants",
    ("_codecs.crc32c", "importlib"): "finds and imports the module of crc32c: constants",
    ("_core.optional", "importlib"): "imports JAX, or asks whether it is there: a constant",
    ("compat.orbax.checkpoint_args", "importlib"): "imports the handlers of templax: a constant",
    ("compat.orbax.experimental.v1.registration", "importlib"): "imports handlers: a constant",
    ("compat.orbax.unmapped", "importlib"): "names are imported when first used: a fixed table",
    ("demo", "importlib"): "asks whether the libraries of the demo are there: constants",
    ("demo", "subprocess"): "a child that is killed while it saves: this Python, fixed arguments",
    ("storage.disk", "ctypes"): "exchanges two directories by a call of the C library",
    ("_jax.pickling", "pickle"): "lets a plan or template be pickled by its owner: writes only",
    ("_template.placement", "pickle"): "loads a part of what the owner is already unpickling",
    ("_template.template", "pickle"): "loads a part of what the owner is already unpickling",
    ("_views.recipe", "pickle"): "loads a part of what the owner is already unpickling",
    ("storage.open", "urllib"): "decodes `%20` in a path; opens no connection",
    ("storage.leftovers", "socket"): "the name of this machine",
    ("storage.lease", "socket"): "the name of this machine",
    ("storage.__init__", "importlib"): "classes are imported when first used: a fixed table",
    ("storage.environment", "importlib"): "imports the packages of extras: constants",
    ("storage.stores", "importlib"): "imports a module of obstore: a constant",
    ("storage.stores", "urllib"): "splits a URL that the caller gives",
    ("storage.block_cache", "importlib"): "imports the module of crc32c: a constant",
    ("storage.hub", "importlib"): "imports a module of obstore: a constant",
    ("storage.hub", "urllib"): "decodes `%20` in a URL",
    ("storage.web_listing", "http"): "the errors of urllib",
    ("storage.web_listing", "urllib"): "asks the web server that the caller names for its pages",
    ("_runs.locks", "socket"): "the name of this machine",
    ("_core.dtypes", "getattr(ml_dtypes, …)"): "a dtype by its name; only a type of numbers counts",
}
"""What comes near, and why no file decides what it does."""


@functools.cache
def parse(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def find_uses(module: str) -> Iterator[str]:
    """What a module does that could run code."""
    tree, modules = parse(module), set[str]()
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            modules |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        yield from (top for name in names if (top := name.partition(".")[0]) in LIBRARIES)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in BUILTINS:
            yield node.id
        if isinstance(node, ast.Attribute):
            text = join_names(node)
            if text in CALLS or text.startswith(PREFIXES):
                yield text
        if isinstance(node, ast.Call):
            yield from (f"{k.arg}=" for k in node.keywords if k.arg in ("shell", "allow_pickle"))
            if isinstance(node.func, ast.Name) and node.func.id == "getattr":
                owner, name, *_ = node.args
                known = isinstance(name, ast.Constant)
                if isinstance(owner, ast.Name) and owner.id in modules and not known:
                    yield f"getattr({owner.id}, …)"


def join_names(node: ast.expr) -> str:
    """`a.b.c` as it is written; names after anything else are left out."""
    if isinstance(node, ast.Attribute):
        owner = join_names(node.value)
        return f"{owner}.{node.attr}" if owner else ""
    return node.id if isinstance(node, ast.Name) else ""


@functools.cache
def find_all_uses() -> set[tuple[str, str]]:
    """The module and the name of each use in templax."""
    return {(module, what) for module in MODULES for what in find_uses(module)}


def test_no_module_can_run_code_from_a_file() -> None:
    assert find_all_uses() - set(ALLOWED) == set()


def test_every_exception_is_still_needed() -> None:
    assert set(ALLOWED) <= find_all_uses()


@pytest.mark.slow
def test_pickles_are_loaded_only_inside_of_the_unpickling_of_their_owner() -> None:
    """A function that loads one is named in a `__reduce__`, and nothing calls it."""
    loading = Counter[str]()
    for module in MODULES:
        tree = parse(module)
        parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        loaders = {find_function(parents, node) for node in ast.walk(tree) if is_load(node)}
        loading[module] = len(loaders)
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and node.id in loaders:
                assert find_function(parents, node) == "__reduce__", (module, node.id)
    assert +loading == {"_template.placement": 1, "_template.template": 1, "_views.recipe": 1}


def is_load(node: ast.AST) -> bool:
    named = isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle"
    return named and node.attr.lower() in ("load", "loads", "unpickler")


def find_function(parents: dict[ast.AST, ast.AST], node: ast.AST) -> str:
    while not isinstance(node, ast.FunctionDef):
        node = parents[node]
    return node.name


@pytest.mark.parametrize(
    ("source", "uses"),
    [
        ("import pickle as p", {"pickle"}),
        ("from torch import load", {"torch"}),
        ("eval(text)", {"eval"}),
        ("f = exec", {"exec"}),
        ("re.compile(text)", set()),
        ("import os\nos.system(text)", {"os.system"}),
        ("os.execvp(a, b)", {"os.execvp"}),
        ("f(asyncio.create_subprocess_exec)(a)", {"asyncio.create_subprocess_exec"}),
        ("run(text, shell=True)", {"shell="}),
        ("np.load(file, allow_pickle=True)", {"np.load", "allow_pickle="}),
        ("import optax\ngetattr(optax, name)", {"getattr(optax, …)"}),
        ("import optax\ngetattr(optax, 'adam')", set()),
    ],
)
def test_the_search_finds_what_it_looks_for(
    source: str, uses: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "module.py").write_text(source)
    monkeypatch.setitem(MODULES, source, tmp_path / "module.py")
    assert set(find_uses(source)) == uses
