"""Files that PyTorch wrote fulfil `FormatContract`; `write.py` in their directory wrote them."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

import templax as tx
from helpers import CORPUS
from templax.testing import FormatContract

WRITTEN = CORPUS / "torch-2.14.1"

EXPECTED: dict[str, dict[str, str]] = json.loads((WRITTEN / "expected.json").read_text())["sha256"]


@pytest.mark.parametrize("name", EXPECTED)
class TestTorch(FormatContract):
    @pytest.fixture(autouse=True)
    def _name(self, name: str) -> None:
        self.name = name

    def open(self) -> tx.Catalog:
        return tx.open(WRITTEN / self.name)

    def expected(self) -> Mapping[str, str]:
        return EXPECTED[self.name]


SET = CORPUS / "torch-set"


@pytest.mark.parametrize("name", ["", "pytorch_model.bin.index.json"])
class TestTorchSet(FormatContract):
    @pytest.fixture(autouse=True)
    def _name(self, name: str) -> None:
        self.name = name

    def open(self) -> tx.Catalog:
        return tx.open(SET / self.name)

    def expected(self) -> Mapping[str, str]:
        return json.loads((SET / "expected.json").read_text())["sha256"]
