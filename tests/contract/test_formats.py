"""Every format keeps the contract: one class per layout, over a real checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

import templax as tx
from templax.testing import FormatContract

CORPUS = Path(__file__).parents[1] / "corpus"
CASES = (
    "orbax-0.12.8-default",
    "orbax-0.12.8-noocdbt",
    "orbax-0.12.8-sharded8",
    "orbax-0.12.8-sharded8_chunks",
    "orbax-0.12.8-multi2p",
    "orbax-0.12.8-v1",
    "orbax-0.12.8-zarr3",
    "orbax-0.6.4-zarr3",
    "orbax-0.4.4-aggregate",
    "orbax-0.2.3-aggregate",
    "orbax-0.2.3-default",
    "orbax-handmade-aligned",
)


@pytest.mark.parametrize("case", ["safetensors-official", "safetensors-plain"])
class TestSafetensors(FormatContract):
    @pytest.fixture(autouse=True)
    def _case(self, case: str) -> None:
        self.case = case

    def open(self) -> tx.Catalog:
        return tx.open(CORPUS / self.case / "model.safetensors")

    def expected(self) -> Mapping[str, str]:
        recorded = json.loads((CORPUS / self.case / "expected.json").read_text())
        return {name: leaf["sha256"] for name, leaf in recorded.items()}


@pytest.mark.parametrize("case", CASES)
class TestOrbax(FormatContract):
    @pytest.fixture(autouse=True)
    def _case(self, case: str) -> None:
        self.case = case

    def open(self) -> tx.Catalog:
        return tx.open(CORPUS / self.case / "ckpt")

    def expected(self) -> Mapping[str, str]:
        content = json.loads((CORPUS / self.case / "expected.json").read_text())
        return {
            path.replace("/", "."): leaf["sha256"]
            for path, leaf in content.items()
            if leaf["kind"] == "array"
        }
