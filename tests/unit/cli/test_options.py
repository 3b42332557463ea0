"""Values of options that several commands read."""

from __future__ import annotations

import click
import pytest

from templax.cli.options import parse_size


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("1048576", 1 << 20),
        ("500MB", 500_000_000),
        ("4GiB", 4 << 30),
        ("16 mib", 16 << 20),
        ("1.5k", 1500),
        ("2T", 2 * 10**12),
        ("1b", 1),
    ],
)
def test_a_size_is_a_number_with_a_decimal_or_binary_unit(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "MB", "-1", "1e6", "4 GiBs", "1" * 16, "½"])
def test_what_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="expected a size such as 500MB or 4GiB, got "):
        parse_size(text)


@pytest.mark.parametrize("text", ["0", "0.5", "0.0001KiB"])
def test_a_size_below_one_byte_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="expected a size of at least one byte, got "):
        parse_size(text)
