"""Template files, of at most a megabyte each, that ask for something huge."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

HOSTILE_TEMPLATES: dict[str, Callable[[], bytes]] = {}


def _add(build: Callable[[], bytes]) -> Callable[[], bytes]:
    HOSTILE_TEMPLATES[build.__name__] = build
    return build


def _template(*leaves: dict[str, Any]) -> bytes:
    plain = {"path": ["a"], "shape": [4], "dtype": "float32"}
    listed = [plain | leaf for leaf in leaves]
    return json.dumps({"templax_template": 1, "leaves": listed}).encode()


@_add
def a_shape_of_many_sizes() -> bytes:
    return _template({"shape": [2**62] * 40_000})


@_add
def a_path_of_many_keys() -> bytes:
    return _template({"path": ["a"] * 200_000})


@_add
def a_path_of_dots() -> bytes:
    return _template({"path": ["." * 900_000]})


@_add
def many_aliases() -> bytes:
    return _template({"aliases": ["a"] * 200_000})


@_add
def a_mesh_of_many_axes() -> bytes:
    mesh = {f"x{i}": 2**62 for i in range(20_000)}
    return _template({"shape": [2**62], "sharding": {"mesh": mesh, "spec": [list(mesh)]}})


@_add
def a_mesh_of_300_axes() -> bytes:
    mesh = {f"x{i}": 2**62 for i in range(300)}
    return _template({"shape": [0], "sharding": {"mesh": mesh, "spec": [list(mesh)]}})


@_add
def one_axis_many_times() -> bytes:
    spec = [["x"] * 200_000]
    return _template({"sharding": {"mesh": {"x": 2**62}, "spec": spec}})


@_add
def one_leaf_many_times() -> bytes:
    return _template(*[{}] * 15_000)


@_add
def many_leaves_that_look_alike() -> bytes:
    return _template(*({"path": [f"layers.{i}.v{j}"]} for i in range(100) for j in range(100)))


@_add
def a_shape_that_no_memory_holds() -> bytes:
    return _template(*({"path": [f"w{i}"], "shape": [2**62, 2**62]} for i in range(1000)))
