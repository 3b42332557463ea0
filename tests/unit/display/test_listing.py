"""The code that a listing prints, sizes, and text for a terminal."""

import numpy as np
import pytest

from templax._catalog.catalog import Catalog
from templax._catalog.entry import LeafEntry
from templax._core import text as text_module
from templax._display import listing
from templax._escape import escape_text
from templax.storage import Memory


def make_entry(*path, shape=(4, 8), dtype="f4", **more):
    return LeafEntry(".".join(map(str, path)), path, shape, np.dtype(dtype), **more)


def make_catalog(*entries, url="ckpt", **more):
    return Catalog(url, "orbax", "a test", entries, Memory({}), lambda _: {}, **more)


def test_restore_code_quotes_any_path_and_finds_params_anywhere():
    entries = make_entry("model", "params", "w"), make_entry("step")
    code = listing.make_restore_code(make_catalog(*entries, url='a "b"\\c'))
    assert r"""catalog = tx.open("a \"b\"\\c")""" in code
    assert code.endswith('tree = tx.restore(catalog, template["params"], at="model.params")')
    twice = make_entry("model", "params", "w"), make_entry("ema", "params", "w")
    assert listing.make_restore_code(make_catalog(*twice)).endswith("tx.restore(catalog, template)")


def test_the_first_leaves_that_are_not_read_are_shown_and_the_others_counted():
    unread = {f"args_{i}": "no such class" for i in range(10)}
    catalog = make_catalog(make_entry("w"), unread=unread)
    facts = [text for what, text in listing.describe_checkpoint(catalog, catalog.entries)
             if what == "not read"]  # fmt: skip
    shown = [f"`args_{i}`: no such class" for i in range(8)]
    assert facts == [*shown, "2 more; --json has them all"]


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


def test_escape_codes_are_harmless():
    assert escape_text("a\x1b[31m\x07é") == r"a\x1b[31m\x07é"


def test_counts_have_three_significant_digits():
    counts = [0, 999, 1000, 12_345, 999_499, 999_500, 6_738_415_616, 2 * 10**16]
    assert [text_module.format_count(n) for n in counts] == [
        *("0", "999", "1.00 K", "12.3 K", "999 K", "1.00 M", "6.74 B", "20000 T")
    ]


def test_integers_that_may_be_quantised_weights_are_named():
    catalog = make_catalog(
        make_entry("w", dtype="i1"),
        make_entry("packed", shape=(2, 3), dtype="u1"),
        make_entry("scale", shape=(4,)),
        make_entry("count", shape=(5,), dtype="i4"),
        make_entry("flag", shape=(), dtype="i1"),
    )
    facts = dict(listing.describe_checkpoint(catalog, catalog.entries))
    assert facts["total"].endswith(" 4 parameters")
    assert facts["not counted"] == (
        "elements of arrays that may be quantised weights: 32 of int8, 6 of uint8"
    )
    shown = listing.select_leaves(catalog, ["scale", "count"])
    assert "not counted" not in dict(listing.describe_checkpoint(catalog, shown))


@pytest.mark.parametrize(("parameters", "named"), [(3199, True), (3200, False)])
def test_few_narrow_integers_are_not_named(parameters: int, named: bool):
    """Named if there is more than one for every 100 parameters."""
    catalog = make_catalog(
        make_entry("w", shape=(parameters,)), make_entry("mask", shape=(32,), dtype="i1")
    )
    facts = dict(listing.describe_checkpoint(catalog, catalog.entries))
    assert ("not counted" in facts) == named


def test_reasons_for_leaves_that_cannot_be_decoded_are_counted_where_they_are_many():
    entries = [
        LeafEntry(f"w{i}", (f"w{i}",), (2,), np.dtype("f4"), undecodable=f"codec {i}")
        for i in range(11)
    ]
    facts = list(listing.describe_checkpoint(make_catalog(*entries), entries))
    told = [text for label, text in facts if label == "not decoded"]
    assert told[0] == "`w0`: codec 0"
    assert told[8:] == ["leaves for 3 more reasons; --json has them all"]
