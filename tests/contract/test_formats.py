"""Every format fulfils `FormatContract`, on recorded checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

import templax as tx
from helpers import CORPUS, read_expected
from templax.testing import FormatContract

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
        return {name: leaf["sha256"] for name, leaf in read_expected(self.case).items()}


@pytest.mark.parametrize("name", ["", "model.safetensors.index.json"])
class TestSafetensorsSet(FormatContract):
    @pytest.fixture(autouse=True)
    def _name(self, name: str) -> None:
        self.name = name

    def open(self) -> tx.Catalog:
        return tx.open(CORPUS / "safetensors-sharded" / self.name)

    def expected(self) -> Mapping[str, str]:
        found = read_expected("safetensors-sharded")
        return {name: leaf["sha256"] for name, leaf in found.items()}


@pytest.mark.parametrize("case", CASES)
class TestOrbax(FormatContract):
    @pytest.fixture(autouse=True)
    def _case(self, case: str) -> None:
        self.case = case

    def open(self) -> tx.Catalog:
        return tx.open(CORPUS / self.case / "ckpt")

    def expected(self) -> Mapping[str, str]:
        return {
            path.replace("/", "."): leaf["sha256"]
            for path, leaf in read_expected(self.case).items()
            if leaf["kind"] == "array"
        }
