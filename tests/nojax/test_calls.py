"""The calls that need no JAX, and the errors of those that do."""

from __future__ import annotations

import json
import pickle
from importlib.util import find_spec
from pathlib import Path

import pytest

import templax as tx
from templax._core.names import join_path
from templax._template.plain_tree import flatten_plain
from without_jax import CORPUS, describe, make_numpy_template, run_without_jax

FILES = [
    "orbax-0.12.8-default/ckpt",
    "orbax-0.12.8-noocdbt/ckpt",
    "orbax-0.12.8-special/ckpt",
    "orbax-0.12.8-zarr3/ckpt",
    "orbax-0.2.3-aggregate/ckpt",
    "safetensors-plain/model.safetensors",
    "safetensors-sharded",
    "npz-deflated/params.npz",
    "npy-fortran/array.npy",
    "flaxmsgpack-chunked/state.msgpack",
    "equinox-plain/model.eqx",
    "torch-2.14.1/checkpoint.pt",
    "torch-2.14.1/dcp-2",
]

INSTALL = 'needs JAX, which is not installed; hint: pip install "templax[jax]"'


def test_a_restore_gives_the_bytes_that_it_gives_with_jax() -> None:
    """Of every format, with a template of numpy arrays, and with that of the catalog."""
    code = """
import json
import pickle
import templax as tx
from templax._core.names import join_path
from templax._template.plain_tree import flatten_plain
from without_jax import CORPUS, describe, make_numpy_template

for file in sys.argv[1:]:
    catalog = tx.open(CORPUS / file)
    for template in (make_numpy_template(catalog), catalog.template()):
        leaves, _ = flatten_plain(tx.restore(catalog, template))
        print(json.dumps({join_path(path): describe(leaf) for path, leaf in leaves}))
assert not {"jax", "jaxlib"} & set(sys.modules)
"""
    printed = iter(run_without_jax(code, *FILES).splitlines())
    for file in FILES:
        catalog = tx.open(CORPUS / file)
        leaves, _ = flatten_plain(tx.restore(catalog, make_numpy_template(catalog)))
        wanted = {join_path(path): describe(leaf) for path, leaf in leaves}
        assert wanted.keys() == catalog.leaves.keys()
        assert json.loads(next(printed)) == wanted, file
        assert json.loads(next(printed)) == wanted, file


@pytest.mark.slow
def test_typed_keys_need_jax_and_nothing_else_beside_them_does() -> None:
    code = """
import templax as tx
from without_jax import CORPUS, print_error

path = CORPUS / "orbax-0.12.8-prng" / "ckpt"
template = tx.open(path).template()
print(template["keys"])
print_error(lambda: tx.restore(path, template))
print_error(lambda: tx.check(path, template))
template |= {"key": ..., "keys": ...}
tree = tx.restore(path, template)
print(tree["key"], tree["w"].shape, tx.check(path, template).skipped)
"""
    error = (
        "`key` holds typed PRNG keys, whose restore needs JAX, which is not installed;"
        ' hint: pip install "templax[jax]", or put `...` there to skip them'
    )
    assert run_without_jax(code).splitlines() == [
        "KeysWithoutJax(shape=(3,), impl='rbg')",
        error,
        error,
        "Ellipsis (4,) ('key', 'keys')",
    ]


@pytest.mark.slow
def test_what_needs_jax_says_so() -> None:
    code = """
import collections
import numpy as np
import templax as tx
from without_jax import CORPUS, print_error

path = CORPUS / "npz-stored" / "params.npz"

class Tensor:
    shape, dtype = (2, 3), np.dtype("float32")

print_error(lambda: tx.restore(path, {"params": [Tensor()]}))
print_error(lambda: tx.plan(path, {}, shardings=object()))
print_error(lambda: tx.Recipe)
print_error(lambda: tx.template_of)
print_error(lambda: __import__("templax.compat.orbax"))
try:
    from templax import Recipe
except ImportError as error:
    print(type(error).__name__, error.name)
print(hasattr(tx, "nothing"), len(dir(tx)) > 40)
"""
    leaf = "A jax.Array for the template's `params.0`, a __main__.Tensor,"
    assert run_without_jax(code).splitlines() == [
        f"{leaf} {INSTALL}, or ask for a numpy array",
        f"shardings= {INSTALL}",
        f"templax.Recipe {INSTALL}",
        f"templax.template_of {INSTALL}",
        f"templax.compat {INSTALL}",
        "MissingPackage jax",
        "False True",
    ]


@pytest.mark.slow
def test_what_is_no_template_is_refused_as_with_jax() -> None:
    code = """
import numpy as np
import templax as tx
from without_jax import CORPUS

path = CORPUS / "npz-stored" / "params.npz"
loop = []
loop.append(loop)
for wrong in ({0: 1, "0": 2}, loop, {"w": np.ndarray}, {"w": np.zeros(2, object)}):
    try:
        print(tx.check(path, wrong, extra="ignore").ok)
    except tx.UsageError as error:
        print(str(error).partition(":")[0])
"""
    assert run_without_jax(code).splitlines() == [
        "Expected a pytree as template",
        "Expected a pytree as template",
        "Expected a shape, got <attribute 'shape' of 'numpy.ndarray' objects> - at `w`",
        "False",
    ]


def test_a_run_is_saved_read_and_continued(tmp_path: Path) -> None:
    """By `save`, `Manager`, `verify`, `diff`, `fingerprint` and a plan that was pickled."""
    code = """
import collections, pickle
import ml_dtypes, numpy as np
import templax as tx

Pair = collections.namedtuple("Pair", "mean count")
run = sys.argv[1]

def make(step):
    return {
        "w": np.arange(12, dtype=np.float32).reshape(3, 4) + step,
        "pair": Pair(np.ones(3, ml_dtypes.bfloat16), step),
        "layers": [{"b": np.float64(0.5)}, None, ()],
        "rest": collections.OrderedDict([("z", "text"), ("a", 1.5)]),
    }

manager = tx.Manager(run, keep=tx.Keep(last=2))
for step in range(3):
    manager.save(step, make(step))
manager.close()
manager = tx.Manager(run)
tree = manager.restore(make(0))
pair = tree["pair"]
print(sorted(manager.steps()), type(pair).__name__, pair.count, *tree["rest"].items())
path = manager.path(2)
assert (tree["w"] == make(2)["w"]).all() and type(tree["layers"][0]["b"]) is np.float64
assert tx.fingerprint(tree) == tx.fingerprint(make(2))
print(tx.verify(path).ok, tx.diff(path, manager.path(1)).differs)
plan = pickle.loads(pickle.dumps(tx.plan(path, make(0))))
assert tx.fingerprint(tx.run(plan)) == tx.fingerprint(tree)
saved = tx.save(run + "-later", tree, wait=False)
print(saved.wait().leaves)
assert not {"jax", "jaxlib"} & set(sys.modules)
"""
    printed = run_without_jax(code, tmp_path / "run").splitlines()
    assert printed[0] == "[1, 2] Pair 2 ('z', 'text') ('a', 1.5)"
    assert printed[1:] == ["True True", "6"]


@pytest.mark.slow
def test_help_and_a_star_import_leave_out_what_needs_jax() -> None:
    code = """
import inspect, pydoc
import templax as tx

print({"Recipe", "template_of"} & {*dir(tx), *tx.__all__, *(n for n, _ in inspect.getmembers(tx))})
print("Restore JAX checkpoints through a template" in pydoc.plain(pydoc.render_doc(tx)))
from templax import *
print(restore is tx.restore)
"""
    assert run_without_jax(code).splitlines() == ["set()", "True", "True"]
    if find_spec("jax") is not None:
        assert {"Recipe", "template_of"} < {*dir(tx)}


BROKEN = 'raise RuntimeError("jaxlib is version 0.4, but this version of jax needs 0.9")'

USE_NUMPY = """
import numpy as np
import templax as tx
from without_jax import CORPUS, print_error

path = CORPUS / "npz-stored" / "params.npz"
tree = tx.restore(path, tx.open(path).template())
print(type(tree["params"]["w"]).__name__, tx.save(sys.argv[1], tree).leaves)
print_error(lambda: tx.Recipe)
"""


@pytest.mark.slow
def test_a_directory_called_jax_is_not_taken_for_jax(tmp_path: Path) -> None:
    code = "import types\nsys.modules['jax'] = types.ModuleType('jax')" + USE_NUMPY
    assert run_without_jax(code, tmp_path / "saved").splitlines() == [
        "ndarray 8",
        f"templax.Recipe {INSTALL}",
    ]


@pytest.mark.slow
def test_where_jax_is_broken_the_rest_works(tmp_path: Path) -> None:
    (tmp_path / "jax.py").write_text(BROKEN)
    code = "sys.meta_path.pop(0)\nsys.path.insert(0, sys.argv[2])" + USE_NUMPY
    assert run_without_jax(code, tmp_path / "saved", tmp_path).splitlines() == [
        "ndarray 8",
        "templax.Recipe needs JAX, which can't be imported (jaxlib is version 0.4, but this version"
        ' of jax needs 0.9); hint: pip install "templax[jax]"',
    ]


@pytest.mark.slow
def test_what_was_pickled_with_jax_says_that_it_needs_it(tmp_path: Path) -> None:
    jax = pytest.importorskip("jax")
    catalog = tx.open(CORPUS / "npz-stored" / "params.npz")
    for i, pickled in enumerate(
        (
            tx.plan(catalog, make_numpy_template(catalog)),
            tx.plan(catalog, catalog.template()),
            tx.Recipe(jax.numpy.zeros, 3),
        )
    ):
        (tmp_path / str(i)).write_bytes(pickle.dumps(pickled))
    code = """
import pathlib, pickle
from without_jax import print_error

for i in range(3):
    print_error(lambda: pickle.loads(pathlib.Path(sys.argv[1], str(i)).read_bytes()))
"""
    plan = f"This plan, which was made with JAX, {INSTALL}, or make it in this process"
    assert run_without_jax(code, tmp_path).splitlines() == [
        plan,
        plan,
        f"templax.Recipe {INSTALL}",
    ]


@pytest.mark.slow
def test_a_cast_into_numpy_does_not_import_jax_where_it_is_installed() -> None:
    """XLA's cast from float16 differs in NaNs: a program that has loaded JAX gets that one."""
    code = """
sys.meta_path.pop(0)
import tempfile, warnings
import numpy as np
import templax as tx

warnings.simplefilter("ignore", tx.CastWarning)
path = tempfile.mkdtemp() + "/half.npz"
values = np.array([1.5, -0.0, 6e-8, 65504, np.inf], np.float16)
np.savez(path, w=values)
restored = tx.restore(path, {"w": np.zeros(5, np.float32)})["w"]
print("jax" in sys.modules, restored.tobytes() == values.astype(np.float32).tobytes())
"""
    assert run_without_jax(code).splitlines() == ["False True"]


@pytest.mark.slow
def test_a_tree_that_is_no_pytree_is_named_with_a_hint_that_works_here(tmp_path: Path) -> None:
    code = """
import dataclasses
import templax as tx
from without_jax import CORPUS

@dataclasses.dataclass
class Params:
    w: float

for call in (
    lambda: tx.restore(CORPUS / "npz-stored" / "params.npz", Params(1.0)),
    lambda: tx.save(sys.argv[1], Params(1.0)),
):
    try:
        call()
    except tx.TemplaxError as error:
        print(error)
"""
    assert run_without_jax(code, tmp_path / "saved").splitlines() == [
        "Expected a template with arrays, got Params; hint: tx.open(checkpoint).template() makes"
        " one of what is stored",
        "This tree can't be saved: it is a __main__.Params, which holds no array",
    ]
