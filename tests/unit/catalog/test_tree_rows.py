"""The rows of the tree of a checkpoint, and `print(catalog)`."""

import numpy as np
import pytest

from templax._catalog.catalog import MAX_ROWS, Catalog
from templax._catalog.entry import LeafEntry
from templax._catalog.tree_rows import build_rows, find_depth, format_cells
from templax.storage import Memory


def make_entry(*path, shape=(4, 8), dtype="f4", **more):
    return LeafEntry(".".join(map(str, path)), path, shape, np.dtype(dtype), **more)


def make_catalog(*entries, url="ckpt", **more):
    return Catalog(url, "orbax", "a test", entries, Memory({}), lambda _: {}, **more)


def list_rows(*entries, **options):
    return [
        "|".join((*(cell.rstrip() for cell in cells[:3]), cells[3].strip(), cells[4]))
        for _, cells in format_cells(build_rows(entries, **options))
    ]


def test_numbered_siblings_of_one_shape_share_a_row():
    layers = [
        make_entry("layers", f"layer_{i}", key, shape=(64, 64))
        for i in range(12)
        for key in ("mlp", "attention")
    ]
    assert list_rows(*layers) == [
        "layers||24 leaves|384.0 KiB|98.3 K parameters",
        "  layer_0 … layer_11||24 leaves|384.0 KiB|98.3 K parameters, 12 alike, 32.0 KiB each",
        "    attention|float32|(64, 64)|16.0 KiB|",
        "    mlp|float32|(64, 64)|16.0 KiB|",
    ]
    assert len(list_rows(*layers, collapse=False)) == 1 + 12 * 3


def test_numbered_siblings_that_differ_or_have_gaps_have_their_own_rows():
    same = [make_entry(i) for i in (0, 1, 2, 4, 10)]
    assert [line.split("|")[0] for line in list_rows(*same)] == ["0 … 2", "4", "10"]
    other = [
        make_entry(0),
        make_entry(1),
        make_entry(2, shape=(4,)),
        make_entry(3),
        make_entry(4, dtype="i4"),
        make_entry(5),
    ]
    assert [line.split("|")[0] for line in list_rows(*other)] == list("012345")


def test_ambiguous_keys_are_quoted():
    entries = (
        make_entry("a.b"),
        make_entry("", "x"),
        make_entry("c d"),
        make_entry("new\nline"),
        make_entry("é/f"),
    )
    labels = [line.split("|")[0] for line in list_rows(*entries)]
    assert labels == ["''", "  x", "'a.b'", "'c d'", r"'new\nline'", "é/f"]


def test_a_bare_leaf_and_an_empty_checkpoint_can_be_listed():
    assert list_rows(make_entry()) == ["(root)|float32|(4, 8)|128 B|"]
    assert list_rows() == []


def test_a_long_string_is_truncated():
    long = LeafEntry("t", ("t",), (), np.dtype(str), "string", value="x" * 1000)
    assert list_rows(long) == [f"t|str||1000 B|'{'x' * 56}..."]


@pytest.mark.slow
def test_deep_paths_and_long_numbers_are_harmless():
    deep = make_entry(*("k" for _ in range(20_000)))
    assert len(build_rows([deep])) == 20_000
    numbers = [make_entry("9" * 5000), make_entry("8" * 5000)]
    assert len(build_rows(numbers)) == 2


@pytest.mark.parametrize(
    ("dtype", "count"),
    [
        *((dtype, 32) for dtype in ("f4", "f8", "bfloat16", "float8_e4m3fn", "c8")),
        *((dtype, 0) for dtype in ("i4", "u1", "?", "int4")),
    ],
)
def test_parameters_are_elements_of_float_and_complex_dtypes(dtype, count):
    assert make_entry("w", dtype=dtype).parameter_count == count


def test_subtrees_add_up_their_parameters():
    entries = (
        make_entry("params", "w"),
        make_entry("params", "b", shape=()),
        make_entry("step", dtype="i4"),
        make_entry("rng", "key", shape=(2,), dtype="u4", kind="key", key_impl="threefry2x32"),
        LeafEntry("name", ("name",), (), np.dtype(str), "string", value="x" * 9),
    )
    notes = {row.label: row.note for row in build_rows(entries) if row.kind == "subtree"}
    assert notes == {"params": "33 parameters", "rng": ""}
    catalog = make_catalog(*entries)
    assert catalog.parameter_count == 33
    assert str(catalog).splitlines()[0] == "ckpt (orbax): 5 leaves, 277 B, 33 parameters"
    assert str(make_catalog(make_entry("x", shape=()))).splitlines()[0] == (
        "ckpt (orbax): 1 leaf, 4 B, 1 parameter"
    )


def test_a_catalog_prints_its_tree_and_its_repr_is_one_line():
    catalog = make_catalog(make_entry("params", "w"), make_entry("step", shape=(), dtype="i4"))
    assert str(catalog).splitlines()[1:] == [
        "params           1 leaf  128 B  32 parameters",
        "  w     float32  (4, 8)  128 B",
        "step    int32    ()        4 B",
    ]
    assert repr(catalog) == "Catalog('ckpt', orbax, 2 leaves)"
    unfinished = make_catalog(make_entry("w"), uncommitted="no marker")
    assert str(unfinished).splitlines()[1] == "UNCOMMITTED: no marker"
    assert str(make_catalog()) == "ckpt (orbax): 0 leaves, 0 B"


@pytest.mark.parametrize(
    ("entries", "last"),
    [
        (
            [make_entry(f"a{'bc'[i % 2]}{i}", f"x{j}", shape=(i + 1, j + 1))
             for i in range(30) for j in range(5)],
            "(1 of 2 levels; `catalog.leaves` has every leaf)",
        ),
        (
            [make_entry(f"w{i}", shape=(i,)) for i in range(1000)],
            "(and 960 more; `catalog.leaves` has every leaf)",
        ),
        (
            [make_entry(*("k" for _ in range(300)))],
            "(40 of 300 levels; `catalog.leaves` has every leaf)",
        ),
    ],
    ids=["irregular", "flat", "deep"],
)  # fmt: skip
def test_a_large_catalog_prints_a_bounded_number_of_lines(entries, last):
    lines = str(make_catalog(*entries)).splitlines()
    assert len(lines) <= MAX_ROWS + 2
    assert lines[-1] == last
    assert "\n" not in repr(make_catalog(*entries))


@pytest.mark.parametrize("maximum", [1, 3, 7, 100])
def test_the_rows_of_fewer_levels_are_known_beforehand(maximum):
    entries = [make_entry("a", f"b{'cde'[i]}", f"w{j}", shape=(i,)) for i in range(3) for j in "xy"]
    rows = build_rows(entries)
    depth = find_depth(rows, maximum)
    shown = build_rows(entries, depth=depth)
    assert len(shown) == sum(row.depth < depth for row in rows)
    assert len(shown) <= maximum
    assert depth == 3 or len(build_rows(entries, depth=depth + 1)) > maximum


def test_one_long_name_does_not_widen_every_line():
    rows = build_rows([make_entry("x" * 5000), *(make_entry(f"n{i}") for i in range(10))])
    _, *others = sorted((len(cells[0]) for _, cells in format_cells(rows)), reverse=True)
    assert set(others) == {200}


def test_a_tree_of_far_more_nodes_than_leaves_is_a_row_per_leaf():
    entries = [make_entry(str(i), *"a" * 250) for i in range(300)]
    rows = build_rows(entries, {("e",): "Dict"})
    assert [row.label for row in rows] == [*(entry.name for entry in entries), "e"]
    assert build_rows(entries[:200])[1].label == "a"


def test_a_leaf_that_is_the_root_does_not_hide_others():
    rows = build_rows([make_entry(), make_entry("a", "b")])
    assert [row.label for row in rows] == ["(root)", "a.b"]
