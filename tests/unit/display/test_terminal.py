"""The styles of reports and errors."""

import pytest

from templax._display.terminal import highlight_line
from templax.errors import Corrupted, Mismatch


def styles(line):
    """Each styled text with its style; the parts are the whole line."""
    parts = highlight_line(line)
    assert "".join(part if isinstance(part, str) else part[0] for part in parts) == line
    return dict(part for part in parts if not isinstance(part, str))


@pytest.mark.parametrize(
    ("mismatch", "wanted", "found"),
    [
        (Mismatch("shape", "w", "(2,)", "(3,)"), "shape `(2,)`", "`(3,)`"),
        (Mismatch("dtype", "w", "int8", "float32"), "dtype `int8`", "`float32`"),
        (Mismatch("missing", "w", "", "none"), "a leaf", "none"),
        (Mismatch("extra", "w", "", "int32()"), "no leaf", "`int32()`"),
        (Mismatch("kind", "w", "a typed key", "uint32(2,)"), "a typed key", "uint32(2,)"),
    ],
    ids=lambda value: value.problem if isinstance(value, Mismatch) else "",
)
def test_what_was_expected_and_what_was_found_differ_in_colour(mismatch, wanted, found):
    assert styles(f"  {mismatch}") == {wanted: "yellow", found: "red", "`w`": "cyan"}


def test_a_hint_and_a_note_keep_their_colours():
    mismatch = Mismatch("shape", "w", "(2,)", "(3,)", hint='at="a"', note="nearest: `v`")
    assert styles(str(mismatch)) == {
        "shape `(2,)`": "yellow",
        "`(3,)`": "red",
        "`w`": "cyan",
        "`v`": "cyan",
        'hint: at="a"': "green",
    }


def test_damage_is_marked_likewise():
    error = Corrupted("Expected crc32c `0a`, got `0b`", leaf="w", file="d/1", start=0, stop=8)
    assert styles(str(error)) == {
        "crc32c `0a`": "yellow",
        "`0b`": "red",
        "`w`": "cyan",
        "`d/1`": "cyan",
    }


@pytest.mark.parametrize("line", ["", "all 3 leaves match", "Expected nothing", "hint"])
def test_other_lines_are_left_as_they_are(line):
    assert styles(line) == {}
