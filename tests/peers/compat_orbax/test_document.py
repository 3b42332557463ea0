"""`docs/orbax_differences.md` names the tests here that assert the differences."""

import re
from pathlib import Path

DOC = Path(__file__).parents[3] / "docs" / "orbax_differences.md"


def test_every_row_of_the_document_has_its_test():
    """And every test that asserts a difference is named there."""
    kind = r"test_(?:differs|same)_\w+"
    named = re.findall(f"`({kind})`", DOC.read_text())
    files = Path(__file__).parent.glob("test_*.py")
    here = [n for f in files for n in re.findall(f"^def ({kind})", f.read_text(), re.MULTILINE)]
    assert set(named) == set(here)
    assert len(here) == len(set(here))
