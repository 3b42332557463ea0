"""Every sound checkpoint of the corpus: recorded bytes, paths, kinds and shardings."""

import hashlib
import json

import numpy as np
import pytest
from helpers import CORPUS, read_expected

from templax.errors import UnknownFormat
from templax.formats.ocdbt import read
from templax.formats import open_catalog
from templax.storage import Local


def _list_items():
    """Case, path to open, and prefix of its paths in `expected.json`."""
    for case in sorted(CORPUS.glob("orbax-*")):
        if "crash" in case.name:
            continue
        if case.name.endswith("-manager"):
            for step in (10, 20):
                for item in ("state", "ema"):
                    yield pytest.param(
                        case, f"ckpt/{step}/{item}", f"{item}/", id=f"{case.name}-{step}-{item}"
                    )
        else:
            yield pytest.param(case, "ckpt", "", id=case.name)


def _join(path):
    return "/".join(map(str, path))


@pytest.mark.parametrize(("case", "path", "prefix"), list(_list_items()))
def test_every_leaf_has_the_recorded_value(case, path, prefix, assemble):
    catalog = open_catalog(Local(case / path))
    recorded = read_expected(case.name).items()
    expected = {k[len(prefix) :]: v for k, v in recorded if k.startswith(prefix)}
    found = {_join(entry.path): entry for entry in catalog.entries}
    empty = {_join(path): kind for path, kind in catalog.empties.items()}
    assert found.keys() | empty.keys() == expected.keys()
    for name, want in expected.items():
        match want["kind"]:
            case "none" | "empty:dict" | "empty:list" as kind:
                assert empty[name].lower() == kind.removeprefix("empty:")
            case "str":
                assert (found[name].kind, found[name].value) == ("string", want["value"])
            case "int" | "float":
                assert assemble(catalog, found[name]).item() == want["value"]
            case "array":
                array = assemble(catalog, found[name])
                assert array.dtype.name == want["dtype"]
                assert list(array.shape) == want["shape"]
                assert hashlib.sha256(array.tobytes()).hexdigest() == want["sha256"], name


def test_indices_of_sequences_are_ints_and_keys_of_dicts_are_strings(corpus):
    default = open_catalog(Local(corpus / "orbax-0.12.8-default" / "ckpt")).leaves
    special = open_catalog(Local(corpus / "orbax-0.12.8-special" / "ckpt")).leaves
    assert default["state.params.layers.0.w"].path == ("state", "params", "layers", 0, "w")
    assert special["tup.1"].path == ("tup", 1)
    assert special["int_keys.10"].path == ("int_keys", "10")
    assert special["a.b"].path == ("a.b",)
    assert special["c/d"].path == ("c/d",)


def test_typed_keys_carry_their_implementation(corpus):
    leaves = open_catalog(Local(corpus / "orbax-0.12.8-prng" / "ckpt")).leaves
    assert [(e.name, e.kind, e.key_impl, e.shape) for e in leaves.values()] == [
        ("key", "key", "threefry2x32", (2,)),
        ("keys", "key", "rbg", (3, 4)),
        ("w", "array", None, (4,)),
    ]


def test_python_numbers_are_scalars(corpus):
    leaves = open_catalog(Local(corpus / "orbax-0.12.8-default" / "ckpt")).leaves
    assert {n: (e.kind, e.dtype.name) for n, e in leaves.items() if e.kind != "array"} == {
        "extra.py_int": ("scalar", "int64"),
        "extra.py_float": ("scalar", "float64"),
    }


@pytest.mark.parametrize(
    ("case", "name", "sharding"),
    [
        ("orbax-0.12.8-default", "state.params.big", "single device cpu:0"),
        (
            "orbax-0.12.8-sharded8",
            "state.opt_state.0.mu.kernel",
            "P('data', 'model') over data=4, model=2",
        ),
        ("orbax-0.12.8-sharded8", "state.step", "P() over data=4, model=2"),
        ("orbax-0.12.8-special", "a.b", None),
    ],
)
def test_saved_shardings_are_shown_as_jax_code_spells_them(corpus, case, name, sharding):
    assert open_catalog(Local(corpus / case / "ckpt")).leaves[name].saved_sharding == sharding


@pytest.mark.parametrize(
    ("path", "evidence"),
    [
        ("orbax-0.12.8-default/ckpt", "`_METADATA` and `manifest.ocdbt`"),
        ("orbax-0.12.8-noocdbt/ckpt", "`_METADATA`"),
        ("orbax-0.4.4-aggregate/ckpt", "`_METADATA` and `checkpoint`"),
        ("orbax-0.2.3-default/ckpt", "`checkpoint`"),
        ("zarr-2.18.7/tree.zarr", "`.zgroup`"),
        ("zarr-array/tree.zarr", "`zarr.json`"),
        ("zarr-ocdbt/tree.zarr", "`manifest.ocdbt` without files of Orbax"),
    ],
)
def test_evidence_names_the_files_that_identify_the_format(corpus, path, evidence):
    catalog = open_catalog(Local(corpus / path))
    format = "zarr" if path.startswith("zarr") else "orbax"
    assert (catalog.format, catalog.evidence) == (format, evidence)


def test_a_database_without_arrays_is_no_checkpoint(corpus):
    with pytest.raises(UnknownFormat, match="an OCDBT database without zarr arrays, of 979 keys"):
        open_catalog(Local(corpus / "ocdbt-deep" / "db"))


def test_zeros_omitted_by_an_old_writer_are_the_fill_value(corpus, assemble):
    catalog = open_catalog(Local(corpus / "orbax-0.6.4-zarr3" / "ckpt"))
    zeros = catalog.leaves["state.params.zeros"]
    assert [chunk.codecs for chunk in catalog.locate([zeros])[zeros.name]] == [("fill",)]
    assert not assemble(catalog, zeros).any()


def test_deep_database_with_many_generations_lists_every_key(corpus):
    source = Local(corpus / "ocdbt-deep" / "db")
    found = {
        key: hashlib.sha256(
            source.read(e.key, e.start, e.stop) if e.inline is None else e.inline
        ).hexdigest()
        for key, e in read.read_database(source).items()
    }
    assert found == json.loads((corpus / "ocdbt-deep" / "keys.json").read_text())


def test_values_of_a_legacy_file_are_not_copied(corpus):
    catalog = open_catalog(Local(corpus / "orbax-0.2.3-aggregate" / "ckpt"))
    big = catalog.leaves["state.params.big"]
    (chunk,) = catalog.locate([big])[big.name]
    file = (corpus / "orbax-0.2.3-aggregate" / "ckpt" / "checkpoint").read_bytes()
    assert chunk.extent.key == "checkpoint"
    assert file[chunk.extent.start : chunk.extent.stop] == chunk.extent.inline
    assert np.frombuffer(chunk.extent.inline, np.float32).size == 128 * 64
