"""Stock Orbax at work: saves trees, or restores them by each of its calls and says what came back.

A plain file that needs JAX, numpy and any Orbax since 0.6, so that it runs where templax can't:

    python orbax_peer.py save TREES VALUES.npz DIRECTORY
    python orbax_peer.py restore TREES DIRECTORY [DIRECTORY ...]

The trees are a JSON file: name -> node, as `trees` describes one. Answers are printed, one
line of JSON each, so that what came before a crash is known.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import logging
import os
import platform
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import Any

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

try:
    from orbax.checkpoint.experimental import v1
except ImportError:
    v1 = None

PyTree = Any
Node = Mapping[str, Any]
Template = Callable[[], PyTree]
Row = list[Any]
Answer = dict[str, Any]
STEP = 7
METRICS = {"loss": 0.25}
CONTAINERS = ("dict", "list", "tuple", "namedtuple")


def main() -> None:
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    # Answers go where nothing else is printed: Orbax and its libraries write to standard output.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for answer in _answers(*sys.argv[1:]):
        out.write(json.dumps(answer) + "\n")
        out.flush()
    out.close()
    # A save that failed leaves threads of Orbax behind, for which an exit would wait 300 s.
    os._exit(0)


def _answers(mode: str, trees_file: str, *arguments: str) -> Iterator[Answer]:
    packages = {name: metadata.version(name) for name in ("jax", "tensorstore", "numpy")}
    packages["Python"] = platform.python_version()
    yield {"orbax": ocp.__version__, "devices": jax.device_count(), "packages": packages}
    with open(trees_file, encoding="utf-8") as file:
        trees = json.load(file)
    if mode == "save":
        values, directory = np.load(arguments[0]), os.path.abspath(arguments[1])
        for name, node in trees.items():
            for layout in SAVES:
                path = os.path.join(directory, name, layout)
                yield {
                    "tree": name,
                    "layout": layout,
                    **outcome(_saved, layout, path, node, values),
                }
    else:
        for directory in arguments:
            for name, node in trees.items():
                for call, answer in restored(os.path.abspath(os.path.join(directory, name)), node):
                    yield {"directory": directory, "tree": name, "call": call, **answer}


def _saved(layout: str, path: str, node: Node, values: Mapping[str, np.ndarray]) -> None:
    SAVES[layout](path, built(node, lambda leaf: concrete(leaf, values)))


def outcome(act: Callable[..., Any], *arguments: Any) -> Answer:
    """What `act` returned, as `ok`, or its `error`, and `where` in Orbax it was raised."""
    try:
        return {"ok": act(*arguments)}
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        frames = traceback.extract_tb(error.__traceback__)
        inside = [frame for frame in frames if "/orbax/" in frame.filename.replace(os.sep, "/")]
        where = ""
        if inside:
            last = inside[-1]
            where = last.filename.replace(os.sep, "/").rsplit("site-packages/", 1)[-1]
            where = f"{where}:{last.lineno} {last.name}"
        text = " ".join(str(error).split())
        return {"error": type(error).__name__ + (": " + text[:400] if text else ""), "where": where}


# Trees.


def built(node: Node, leaf: Callable[[Node], Any]) -> PyTree:
    """The pytree that a node describes; `leaf` makes the arrays and the Python values."""
    kind = node["kind"]
    if kind == "dict":
        keys = [int(key) if node.get("ints") else key for key, _ in node["items"]]
        return dict(zip(keys, [built(child, leaf) for _, child in node["items"]], strict=True))
    if kind in CONTAINERS:
        items = [built(child, leaf) for _, child in node["items"]]
        if kind == "namedtuple":
            return collections.namedtuple("State", [key for key, _ in node["items"]])(*items)
        return items if kind == "list" else tuple(items)
    if kind == "none":
        return None
    return leaf(node)


def concrete(node: Node, values: Mapping[str, np.ndarray]) -> Any:
    """A leaf with its value, placed as it was."""
    kind = node["kind"]
    if kind == "python":
        return python_value(node)
    data = values[node["values"]]
    if kind == "key":
        return jax.random.wrap_key_data(jax.numpy.asarray(data), impl=node["impl"])
    array = data.view(dtype_of(node["dtype"])).reshape(node["shape"])
    if kind == "numpy":
        return array[()] if node.get("scalar") else array
    return jax.device_put(array, sharding_of(node))


def wanted(node: Node) -> Any:
    """An abstract leaf: on one device, or spread over all of them."""
    kind = node["kind"]
    if kind == "python":
        return python_value(node)
    shape = tuple(node["shape"])
    if kind == "key":
        dtype = jax.random.key(0, impl=node["impl"]).dtype
        return jax.ShapeDtypeStruct(shape, dtype, sharding=spread(shape))
    dtype = dtype_of(node["dtype"])
    if kind == "numpy" and not node.get("scalar"):  # Orbax takes no scalars of numpy in a template
        return np.zeros(shape, dtype)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=spread(shape))


def python_value(node: Node) -> Any:
    read = {"int": int, "float": float.fromhex, "complex": complex, "str": str}
    if node["type"] == "bool":
        return node["value"] == "True"
    return read[node["type"]](node["value"])


def dtype_of(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, name))


def sharding_of(node: Node) -> jax.sharding.Sharding:
    """As the node has it: mesh shape, its axis names, and a spec; None is the first device."""
    if node.get("mesh") is None:
        return SingleDeviceSharding(jax.devices()[0])
    shape, names, spec = node["mesh"]
    mesh = Mesh(np.asarray(jax.devices()[: int(np.prod(shape))]).reshape(shape), names)
    spec = [tuple(entry) if isinstance(entry, list) else entry for entry in spec]
    return NamedSharding(mesh, PartitionSpec(*spec))


def spread(shape: tuple[int, ...]) -> jax.sharding.Sharding:
    """Over the first dimension that the devices divide; whole on each where none is."""
    devices = jax.devices()
    if len(devices) == 1:
        return SingleDeviceSharding(devices[0])
    mesh = Mesh(np.asarray(devices), ("x",))
    for i, size in enumerate(shape):
        if size and size % len(devices) == 0:
            return NamedSharding(mesh, PartitionSpec(*[None] * i, "x"))
    return NamedSharding(mesh, PartitionSpec())


# Restoring.


def restored(directory: str, node: Node) -> Iterator[tuple[str, Answer]]:
    """Each call's name, and its outcome, on the layouts of one tree that are there."""
    for layout, calls in CALLS.items():
        path = os.path.join(directory, layout)
        # A manager makes its directory even where the save then fails.
        if os.path.isdir(path) and (layout != "manager" or str(STEP) in os.listdir(path)):
            for call, restore in calls.items():
                yield call, outcome(_described, node, restore, path)
            if layout == "item":
                yield "metadata", outcome(described_metadata, node, path)


def _described(node: Node, restore: Callable[[str, Template], PyTree], path: str) -> list[Row]:
    return described(node, restore(path, lambda: template(node)))


def template(node: Node) -> PyTree:
    """The tree, abstract: on one device, or spread over all of them."""
    return built(node, wanted)


def with_item(path: str, template: Template) -> PyTree:
    item = template()
    arguments = ocp.checkpoint_utils.construct_restore_args(item)
    return ocp.PyTreeCheckpointer().restore(path, item=item, restore_args=arguments)


def managed(path: str, args: Any) -> PyTree:
    manager = ocp.CheckpointManager(path, options=manager_options())
    with contextlib.closing(manager):
        found = [manager.latest_step(), manager.best_step(), list(manager.all_steps())]
        if found != [STEP, STEP, [STEP]]:
            raise LookupError(f"latest, best and all steps are {found}")
        metrics = manager.metrics(STEP)
        if metrics != METRICS:
            raise LookupError(f"metrics are {metrics}")
        return manager.restore(STEP) if args is None else manager.restore(STEP, args=args)


def continued(path: str, template: Template) -> PyTree:
    """Saves the next step into a copy of the directory, which deletes the one that was there."""
    copy = f"{path}-continued-{ocp.__version__}-{jax.device_count()}"
    shutil.copytree(path, copy)
    manager = ocp.CheckpointManager(copy, options=ocp.CheckpointManagerOptions(max_to_keep=1))
    with contextlib.closing(manager):
        item = template()
        arguments = ocp.checkpoint_utils.construct_restore_args(item)
        args = ocp.args.PyTreeRestore(item=item, restore_args=arguments)
        manager.save(STEP + 1, args=ocp.args.PyTreeSave(manager.restore(STEP, args=args)))
        manager.wait_until_finished()
        if list(manager.all_steps()) != [STEP + 1] or str(STEP) in os.listdir(copy):
            raise LookupError(f"all steps are {list(manager.all_steps())}")
        return manager.restore(STEP + 1, args=args)


def manager_options() -> Any:
    return ocp.CheckpointManagerOptions(best_fn=lambda metrics: metrics["loss"], best_mode="min")


CALLS = {
    "item": {
        "pytree": lambda path, _: ocp.PyTreeCheckpointer().restore(path),
        "pytree+item": with_item,
        "standard": lambda path, _: ocp.StandardCheckpointer().restore(path),
        "standard+template": lambda path, t: ocp.StandardCheckpointer().restore(path, t()),
    },
    "manager": {
        "manager": lambda path, _: managed(path, ocp.args.PyTreeRestore()),
        "manager+template": lambda path, t: managed(path, ocp.args.StandardRestore(t())),
        "manager, saving on": continued,
    },
    "v1": {},
}
"""Layout -> call -> what it makes of a path and of a function that gives the template."""

if v1 is not None:  # before, a manager knew no handlers but of what it had saved
    CALLS["manager"]["manager, no args"] = lambda path, _: managed(path, None)
if hasattr(v1, "load"):
    CALLS["item"]["v1"] = lambda path, _: v1.load(path, checkpointable_name=None)
    CALLS["item"]["v1+template"] = lambda path, t: v1.load(path, t(), checkpointable_name=None)
elif v1 is not None:  # knows no item that isn't in a directory of items
    CALLS["v1"]["v1"] = lambda path, _: v1.load_pytree(path)
    CALLS["v1"]["v1+template"] = lambda path, t: v1.load_pytree(path, t())


def described(node: Node, value: PyTree, path: str = "") -> list[Row]:
    """What is at each path of the tree: [path, type, dtype, shape, digest, sharding]."""
    kind = node["kind"]
    if kind in CONTAINERS:
        found = children(value) if node["items"] or value is not None else {}
        expected = [key for key, _ in node["items"]]
        if sorted(found) != sorted(expected):
            raise LookupError(f"at `{path}`: expected {expected}, got {list(found)}")
        rows = [[path, type(value).__name__, "", [], "", ""]]
        for key, child in node["items"]:
            rows += described(child, found[key], path + "/" + key)
        return rows
    if value is None or (
        isinstance(value, (str, int, float, complex)) and not isinstance(value, np.generic)
    ):
        text = value.hex() if isinstance(value, float) else str(value)
        return [[path, type(value).__name__, "", [], text, ""]]
    sharding, dtype = "", str(getattr(value, "dtype", ""))
    if isinstance(value, jax.Array):
        sharding = sharding_text(value.sharding)
        if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            data = np.asarray(jax.random.key_data(value))
            return [[path, "key", dtype, list(value.shape), digest(data), sharding]]
    kind = "jax" if isinstance(value, jax.Array) else type(value).__name__
    array = np.asarray(value)
    return [[path, kind, array.dtype.name, list(array.shape), digest(array), sharding]]


def children(value: Any) -> Mapping[str, Any]:
    """By key, of a container of any type."""
    if isinstance(value, dict):
        return {str(key): child for key, child in value.items()}
    if hasattr(value, "_asdict"):
        return value._asdict()
    if isinstance(value, (list, tuple)):
        return {str(i): child for i, child in enumerate(value)}
    raise LookupError(f"expected a container, got {type(value).__name__}")


def digest(array: np.ndarray) -> str:
    # The narrowest integers leave the upper half of their byte undefined.
    if array.dtype.name in ("int2", "int4"):
        array = array.astype(np.int8)
    elif array.dtype.name in ("uint2", "uint4"):
        array = array.astype(np.uint8)
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def sharding_text(sharding: jax.sharding.Sharding) -> str:
    if isinstance(sharding, NamedSharding):
        return f"{tuple(sharding.spec)} over {dict(sharding.mesh.shape)}"
    return f"{len(sharding.device_set)} devices"


def described_metadata(node: Node, path: str) -> list[Row]:
    found = ocp.StandardCheckpointer().metadata(path)
    found = getattr(found, "item_metadata", found)
    return metadata_rows(node, getattr(found, "tree", found), "")


def metadata_rows(node: Node, value: Any, path: str) -> list[Row]:
    if node["kind"] in CONTAINERS:
        found = children(value) if node["items"] or value is not None else {}
        return [
            row
            for key, child in node["items"]
            for row in metadata_rows(child, found[key], path + "/" + key)
        ]
    shape = getattr(value, "shape", None)
    dtype = getattr(value, "dtype", None)
    name = "" if dtype is None else getattr(dtype, "name", None) or str(dtype)
    return [[path, type(value).__name__, name, list(shape or ()), "", ""]]


# Saving.


def save_pytree(path: str, tree: PyTree, **options: Any) -> None:
    ocp.PyTreeCheckpointer(**options).save(path, tree)


def save_manager(path: str, tree: PyTree) -> None:
    manager = ocp.CheckpointManager(path, options=manager_options())
    with contextlib.closing(manager):
        manager.save(STEP, args=ocp.args.PyTreeSave(tree), metrics=METRICS)
        manager.wait_until_finished()


def save_standard(path: str, tree: PyTree) -> None:
    checkpointer = ocp.StandardCheckpointer()
    with contextlib.closing(checkpointer):
        checkpointer.save(path, tree)
        getattr(checkpointer, "wait_until_finished", lambda: None)()


SAVES = {
    "item": save_pytree,
    "standard": save_standard,
    "files": lambda path, tree: save_pytree(path, tree, use_ocdbt=False),
    "zarr3": lambda path, tree: save_pytree(path, tree, use_zarr3=True),
    "manager": save_manager,
}
if v1 is not None:
    SAVES["v1"] = lambda path, tree: v1.save_pytree(path, tree)


if __name__ == "__main__":
    main()
