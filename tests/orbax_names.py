"""Orbax's public names, and what `templax.compat.orbax` has of them.

`python tests/orbax_names.py` prints the list in docs/reference/orbax-names.md.
"""

from __future__ import annotations

import importlib
import types
from collections.abc import Iterator, Mapping
from functools import reduce

COMPAT = "templax.compat.orbax"

_ONLY_BY_PATH = ("checkpoint_args", "checkpoint_manager", "future")
"""Public modules that no other public module holds as an attribute."""

_START = "# Orbax's names\n"


def find_modules() -> Mapping[str, types.ModuleType]:
    """Orbax's public modules, by their dotted name below `orbax.checkpoint`."""
    import orbax.checkpoint

    found: dict[str, types.ModuleType] = {}
    seen = set[int]()
    pending = [("", orbax.checkpoint)]
    pending += [(n, importlib.import_module(f"orbax.checkpoint.{n}")) for n in _ONLY_BY_PATH]
    while pending:
        name, module = pending.pop(0)
        if id(module) in seen:
            continue
        seen.add(id(module))
        found[name] = module
        if any(_is_from(value, module) for value in vars(module).values()):
            continue  # it defines things; the modules that it holds are those that it uses
        for attribute, value in sorted(vars(module).items()):
            if attribute == "experimental":
                attribute, value = "experimental.v1", value.v1
            is_public = isinstance(value, types.ModuleType) and not attribute.startswith("_")
            if is_public and value.__name__.startswith("orbax.checkpoint"):
                pending.append((f"{name}.{attribute}".lstrip("."), value))
    return found


def _is_from(value: object, module: types.ModuleType) -> bool:
    return getattr(value, "__module__", "") == module.__name__


def list_names() -> Iterator[tuple[str, str]]:
    """Each public name of Orbax: its module below `orbax.checkpoint`, and the name."""
    for space, module in find_modules().items():
        for name, value in sorted(vars(module).items()):
            of_orbax = str(getattr(value, "__module__", "")).startswith("orbax.")
            is_module = isinstance(value, types.ModuleType)
            if not name.startswith("_") and not is_module and (of_orbax or name.isupper()):
                yield space, name


def resolve(space: str, name: str) -> object:
    """What templax has under a name of Orbax.

    Raises:
        AttributeError: It has nothing; the error has the hint.
    """
    parts = [part for part in space.split(".") if part]
    for stop in range(len(parts), -1, -1):
        path = ".".join([COMPAT, *parts[:stop]])
        try:
            module = importlib.import_module(path)
        except ModuleNotFoundError as error:
            if error.name is None or not path.startswith(error.name):
                raise
            continue
        return reduce(getattr, [*parts[stop:], name], module)
    raise AssertionError("the package itself is there")


def make_page() -> str:
    """The page of the documentation."""
    import orbax.checkpoint

    have: dict[str, list[str]] = {}
    lack: dict[str, dict[str, list[str]]] = {}
    for space, name in list_names():
        try:
            resolve(space, name)
            have.setdefault(space, []).append(name)
        except AttributeError as error:
            hint = str(error).partition("; hint: ")[2]
            lack.setdefault(space, {}).setdefault(hint, []).append(name)
    total, missing = (
        sum(map(len, have.values())),
        sum(len(n) for h in lack.values() for n in h.values()),
    )
    lines = [
        _START,
        "Every public name of `orbax.checkpoint` and its modules, as of Orbax"
        f" {orbax.checkpoint.__version__}: {total} are in `templax.compat.orbax` under the same"
        f" path, {missing} are not, and say what to use instead. A test compares this page with"
        " both packages.\n",
    ]
    for space in dict.fromkeys([*have, *lack]):
        lines.append(f"## `{COMPAT}{'.' if space else ''}{space}`\n")
        if space in have:
            lines.append(", ".join(f"`{name}`" for name in have[space]) + "\n")
        for hint, names in lack.get(space, {}).items():
            listed = ", ".join(f"`{name}`" for name in names)
            lines.append(f"Not there: {listed}. Instead: {hint}.\n")
    return "\n".join(lines)


if __name__ == "__main__":
    print(make_page(), end="")
