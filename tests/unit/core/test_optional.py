"""Whether there is a package; tests/nojax has programs without JAX."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from templax._core.optional import is_jax_installed, is_jax_loaded


@pytest.mark.parametrize(("file", "installed"), [("__init__.py", True), ("notes.txt", False)])
def test_a_directory_called_jax_is_not_an_installed_package(
    file: str, installed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / file).touch()
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert not is_jax_loaded()
    assert is_jax_installed() is installed
