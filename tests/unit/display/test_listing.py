"""The rows of a listing, and the code that it prints."""

import numpy as np
import pytest

from templax._catalog.catalog import Catalog
from templax._catalog.entry import LeafEntry
from templax._core import text as text_module
from templax._display import listing
from templax._display.terminal import escape_controls
from templax.storage import Memory


def make_entry(*path, shape=(4, 8), dtype="f4", **more):
    return LeafEntry(".".join(map(str, path)), path, shape, np.dtype(dtype), **more)


def make_catalog(*entries, url="ckpt", **more):
    return Catalog(url, "orbax", "a test", entries, Memory({}), lambda _: {}, **more)


def list_rows(*entries, **options):
    return [
        "|".join((*(cell.rstrip() for cell in cells[:3]), cells[3].strip(), cells[4]))
        for _, cells in listing.format_cells(listing.build_rows(entries, **options))
    ]


def test_restore_code_quotes_any_path_and_finds_params_anywhere():
    entries = make_entry("model", "params", "w"), make_entry("step")
    code = listing.make_restore_code(make_catalog(*entries, url='a "b"\\c'))
    assert r"""catalog = tx.open("a \"b\"\\c")""" in code
    assert code.endswith('tree = tx.restore(catalog, template["params"], at="model.params")')
    twice = make_entry("model", "params", "w"), make_entry("ema", "params", "w")
    assert listing.make_restore_code(make_catalog(*twice)).endswith("tx.restore(catalog, template)")


def test_numbered_siblings_of_one_shape_share_a_row():
    layers = [
        make_entry("layers", f"layer_{i}", key, shape=(64, 64))
        for i in range(12)
        for key in ("mlp", "attention")
    ]
    assert list_rows(*layers) == [
        "layers||24 leaves|384.0 KiB|",
        "  layer_0 … layer_11||24 leaves|384.0 KiB|12 alike, 32.0 KiB each",
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


def test_deep_paths_long_numbers_and_escape_codes_are_harmless():
    deep = make_entry(*("k" for _ in range(20_000)))
    assert len(listing.build_rows([deep])) == 20_000
    numbers = [make_entry("9" * 5000), make_entry("8" * 5000)]
    assert len(listing.build_rows(numbers)) == 2
    assert escape_controls("a\x1b[31m\x07é") == r"a\x1b[31m\x07é"


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (2**40 * 3, "3.0 TiB"),
        (2**80, "1048576.0 EiB"),
    ],
)
def test_sizes_have_binary_units(nbytes, text):
    assert text_module.format_size(nbytes) == text
