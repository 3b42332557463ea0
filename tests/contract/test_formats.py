"""Every format fulfils `FormatContract`, on recorded checkpoints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.serialization
import flax.traverse_util
import ml_dtypes  # noqa: F401 - names its dtypes for numpy
import numpy as np
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
    "orbax-0.4.4-aggregate_some",
    "orbax-0.4.4-aggregate_ocdbt",
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


NUMPY = {
    "npz-stored": "params.npz",
    "npz-deflated": "params.npz",
    "npz-checksums": "model.npz",
    "npy-fortran": "array.npy",
    "equinox-plain": "model.eqx",
    "equinox-header": "model.eqx",
}
"""The cases of numpy and Equinox: case → file."""

HAIKU = {
    "mlp/~/linear_0/w": "mlp/~/linear_0.w",
    "mlp/~/linear_0/b": "mlp/~/linear_0.b",
    "mlp/~/linear_1/w": "mlp/~/linear_1.w",
}


@pytest.mark.parametrize("case", NUMPY)
class TestNumpy(FormatContract):
    @pytest.fixture(autouse=True)
    def _case(self, case: str) -> None:
        self.case = case

    def open(self) -> tx.Catalog:
        return tx.open(CORPUS / self.case / NUMPY[self.case])

    def expected(self) -> Mapping[str, str]:
        return {
            HAIKU.get(name, name.replace("/", ".")): leaf["sha256"]
            for name, leaf in read_expected(self.case).items()
        }


@pytest.mark.parametrize("case", ["flaxmsgpack-plain", "flaxmsgpack-chunked"])
class TestFlax(FormatContract):
    @pytest.fixture(autouse=True)
    def _case(self, case: str) -> None:
        self.case = case

    def open(self) -> tx.Catalog:
        return tx.open(CORPUS / self.case / "state.msgpack")

    def expected(self) -> Mapping[str, str]:
        return {
            path.replace("/", "."): leaf["sha256"]
            for path, leaf in read_expected(self.case).items()
            if leaf["kind"] == "array"
        }

    def test_everything_else_is_what_was_recorded(self) -> None:
        catalog = self.open()
        recorded = {
            path.replace("/", "."): leaf["kind"]
            for path, leaf in read_expected(self.case).items()
            if leaf["kind"] != "array"
        }
        names = {"None": "none", "Dict": "empty:dict"}
        found = {".".join(map(str, p)): names[kind] for p, kind in catalog.empties.items()}
        numbers = {name for name, kind in recorded.items() if kind == "int"}
        assert recorded == found | dict.fromkeys(numbers, "int")
        assert all(catalog.leaves[name].kind == "scalar" for name in numbers)


FLAX_TREE = {
    "first": b"raw",
    "layers": [np.arange(12, dtype="f2").reshape(3, 4), np.ones((2, 3), np.complex64)],
    **{
        name: np.arange(4).astype(name)
        for name in ("bfloat16", "float8_e4m3fn", "int4", "bool", "int8", "uint64", "float64")
    },
    "chunked": np.arange(200, dtype=np.int32).reshape(4, 5, 10),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "empty": np.zeros((0, 3), np.float32),
    "zero": np.zeros((), np.int32),
    "scalar": np.float32(2.5),
    "complex": 1 + 2j,
    "numbers": {"i": 7, "f": 0.5, "b": True, "big": 2**64 - 1, "low": -(2**63)},
}


class TestFlaxOfThisMachine(FormatContract):
    """All kinds of leaves, written by the Flax that is installed."""

    @pytest.fixture(autouse=True)
    def _write(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 300)
        self.path = tmp_path / "state.msgpack"
        self.path.write_bytes(flax.serialization.to_bytes(FLAX_TREE))

    def open(self) -> tx.Catalog:
        return tx.open(self.path)

    def expected(self) -> Mapping[str, str]:
        flat = flax.traverse_util.flatten_dict(flax.serialization.to_state_dict(FLAX_TREE))
        arrays = {
            ".".join(path): np.frombuffer(leaf, np.uint8) if isinstance(leaf, bytes) else leaf
            for path, leaf in flat.items()
        }
        digest = {name: np.asarray(leaf).tobytes("C") for name, leaf in arrays.items()}
        return {name: hashlib.sha256(data).hexdigest() for name, data in digest.items()}


def read_digests(case: str) -> dict[str, Any]:
    return json.loads((CORPUS / case / "expected.json").read_text())["sha256"]


@pytest.mark.parametrize("name", ["checkpoint_7", "checkpoint_8"])
class TestFlaxOfSeveralProcesses(FormatContract):
    """What `write.py` beside them wrote, with arrays in directories beside the files."""

    @pytest.fixture(autouse=True)
    def _name(self, name: str) -> None:
        self.name = name

    def open(self) -> tx.Catalog:
        return tx.open(CORPUS / "flax-gda" / self.name)

    def expected(self) -> Mapping[str, str]:
        return read_digests("flax-gda")[self.name]


@pytest.mark.parametrize("name", ["", "checkpoint"])
class TestT5X(FormatContract):
    """What `write.py` beside it wrote, as T5X does."""

    @pytest.fixture(autouse=True)
    def _name(self, name: str) -> None:
        self.name = name

    def open(self) -> tx.Catalog:
        return tx.open(CORPUS / "t5x" / "checkpoint_1000" / self.name)

    def expected(self) -> Mapping[str, str]:
        return read_digests("t5x")


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


GGUF: dict[str, dict[str, str]] = read_digests("gguf")


@pytest.mark.parametrize(
    ("name", "values"),
    [*((name, name) for name in GGUF if name != "not-read.gguf"),
     ("split/model-00002-of-00003.gguf", "split")],
)  # fmt: skip
class TestGguf(FormatContract):
    """What `write.py` beside them wrote with GGML's own library; it dequantised them, too."""

    @pytest.fixture(autouse=True)
    def _name(self, name: str, values: str) -> None:
        self.name, self.values = name, values

    def open(self) -> tx.Catalog:
        return tx.open(CORPUS / "gguf" / self.name)

    def expected(self) -> Mapping[str, str]:
        values = GGUF[self.values]
        if np.lib.NumpyVersion(np.__version__) < "2.3.0":
            # One block has NaN as its scale and its minimum: of their sum, another one is kept.
            values = {name: sha for name, sha in values.items() if name != "Q4_1.weight"}
        return values


ZARR = ("zarr-2.18.7", "zarr-3.1.6", "zarr-array", "zarr-ocdbt")


@pytest.mark.parametrize("case", ZARR)
class TestZarr(FormatContract):
    @pytest.fixture(autouse=True)
    def _case(self, case: str) -> None:
        self.case = case

    def open(self) -> tx.Catalog:
        return tx.open(CORPUS / self.case / "tree.zarr")

    def expected(self) -> Mapping[str, str]:
        return {
            path.replace("/", "."): leaf["sha256"]
            for path, leaf in read_expected(self.case).items()
        }

    def test_all_that_was_recorded_is_there_and_nothing_else(self) -> None:
        catalog, expected = self.open(), read_expected(self.case)
        assert catalog.format == "zarr"
        found = {e.name: (e.dtype.name, list(e.shape)) for e in catalog.entries}
        recorded = {
            path.replace("/", "."): (leaf["dtype"], leaf["shape"])
            for path, leaf in expected.items()
        }
        assert found == recorded


def test_the_checksums_of_recorded_archives_cover_every_value(tmp_path: Path) -> None:
    data = bytearray((CORPUS / "npz-checksums" / "model.npz").read_bytes())
    (tmp_path / "m.npz").write_bytes(data)
    catalog = tx.open(tmp_path / "m.npz")
    ((chunk,),) = catalog.locate([catalog.leaves["params.w"]]).values()
    assert (chunk.block, len(chunk.sums)) == (256, 2)
    assert tx.verify(tmp_path / "m.npz").ok
    data[chunk.extent.start + 300] ^= 1
    (tmp_path / "m.npz").write_bytes(data)
    template = {"params": {"w": np.zeros((16, 8), np.float32)}}
    with pytest.raises(tx.Corrupted, match="Expected crc32c"):
        tx.restore(tmp_path / "m.npz", template, extra="ignore")
