"""Where commands run, and what they run on."""

import pytest

from helpers import CKPT, CORPUS, run_cli


@pytest.fixture(autouse=True)
def _plain_output(monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)


@pytest.fixture
def in_corpus(monkeypatch):
    """Runs a test in the directory of the corpus, so that output names relative paths."""
    monkeypatch.chdir(CORPUS)


@pytest.fixture
def template_file(tmp_path):
    """A template file made of the default checkpoint."""
    file = tmp_path / "template.json"
    assert run_cli("template", CKPT, "-o", file).exit_code == 0
    return file
