"""Opening a directory as a checkpoint, and what is said of one that can't be opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from templax._catalog.catalog import Catalog
from templax.errors import UnknownFormat
from templax.formats import open_catalog
from templax.storage import Local


def open_local(path: Path, **options: Any) -> Catalog:
    """The catalog of a local directory or file."""
    return open_catalog(Local(path), **options)


def read_refusal(path: Path, kind: type[Exception] = UnknownFormat) -> str:
    """The message of opening a path; asserts that it raises exactly `kind`."""
    with pytest.raises(kind) as caught:
        open_local(path)
    assert type(caught.value) is kind
    return str(caught.value)
