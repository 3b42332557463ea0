"""Files of PyTorch: leaves, strides, damage, refusals. The values are in the contract tests."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

import templax as tx
from helpers import CORPUS, run_cli
from templax.errors import Corrupted, UnknownFormat, Unsupported
from templax.formats.torch import extents
from templax.storage import Memory

WRITTEN = CORPUS / "torch-2.14.1"


def test_what_each_file_is_called() -> None:
    formats = {name: tx.open(WRITTEN / name).format for name in ("leaves.pt", "leaves-legacy.pt")}
    formats["dcp-2"] = tx.open(WRITTEN / "dcp-2").format
    assert formats == {"leaves.pt": "torch", "leaves-legacy.pt": "torch-legacy", "dcp-2": "dcp"}


@pytest.mark.parametrize("name", ["checkpoint.pt", "checkpoint-legacy.pt"])
def test_a_training_checkpoint(name: str) -> None:
    catalog = tx.open(WRITTEN / name)
    leaves = catalog.leaves
    assert {k: (leaves[k].kind, leaves[k].dtype.name) for k in ("epoch", "best", "done")} == {
        "epoch": ("scalar", "int64"), "best": ("scalar", "float64"), "done": ("scalar", "bool"),
    }  # fmt: skip
    assert leaves["name"].value == "run ü"
    assert leaves["model.0.weight"].path == ("model", "0", "weight")
    assert leaves["optimizer.state.0.exp_avg"].path == ("optimizer", "state", "0", "exp_avg")
    assert leaves["optimizer.param_groups.0.lr"].path == ("optimizer", "param_groups", 0, "lr")
    assert leaves["size.1"].path == ("size", 1)
    assert catalog.empties[("nothing",)] == "None"
    assert [catalog.empties["empties", i] for i in range(3)] == ["Dict", "List", "Tuple"]
    assert catalog.metadata["model._metadata"]["1"] == {"version": 2}
    wanted = {"epoch": 0, "best": 0.0, "done": True, "name": "", "raw": np.zeros(3, np.uint8)}
    template = {**wanted, "size": (0, 0), "list": [..., 0], "model": ..., "optimizer": ...}
    got = tx.restore(catalog, template)
    assert (got["epoch"], got["best"], got["done"], got["name"]) == (3, 0.5, False, "run ü")
    assert (got["raw"].tolist(), got["size"], got["list"][1]) == ([0, 1, 2], (2, 3), 7)


def test_contiguous_and_transposed_tensors_are_one_range() -> None:
    catalog = tx.open(WRITTEN / "leaves.pt")
    chunks = catalog.locate(catalog.entries)
    assert {name: len(found) for name, found in chunks.items() if len(found) != 1} == {
        "block": 2, "channels_last": 4, "column": 4, "empty": 0, "expanded": 2, "middle_axes": 2,
    }  # fmt: skip
    assert chunks["transposed"][0].order == "F"
    assert chunks["tied.one"] == chunks["tied.two"]
    assert list(catalog.audit()) == []


def test_both_shards_of_two_processes_are_found() -> None:
    catalog = tx.open(WRITTEN / "dcp-2")
    chunks = catalog.locate(catalog.entries)["model.rows.weight"]
    assert [(c.extent.key, c.box) for c in chunks] == [
        ("__0_0.distcp", ((0, 3), (0, 6))),
        ("__1_0.distcp", ((3, 5), (0, 6))),
    ]
    leaves = catalog.leaves
    assert leaves["layers.0"].path == ("layers", 0)
    assert (leaves["step"].kind, leaves["name"].value) == ("scalar", "run")
    got = tx.restore(catalog, {"step": 0, "betas": (0.0, 0.0), "lr": 0.0, "name": "",
                               "model": ..., "layers": ...})  # fmt: skip
    assert (got["step"], got["betas"], got["lr"], got["name"]) == (12, (0.9, 0.99), 0.5, "run")


# Files made by hand.


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    offset: int = 0,
    numel: int = 12,
    key: str = "0",
    kind: str = "Float",
    more: bytes = b"",
) -> bytes:
    storage = b"(" + text("storage") + f"ctorch\n{kind}Storage\n".encode() + text(key)
    storage += text("cpu") + number(numel) + b"tQ"
    shapes = numbers(shape) + numbers(strides)
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + number(offset)
        + shapes
        + hooks
        + (more + b"tR")
    )


def write_zip(
    path: Path, value: bytes, storages: Mapping[str, bytes], more: Mapping[str, bytes] = {}
) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + value + b".")
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
        for name, data in more.items():
            archive.writestr(f"archive/{name}", data)
    return path


VALUES = np.arange(12, dtype=np.float32)


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ((12,), (1,), 0), ((3, 4), (4, 1), 0), ((4, 3), (1, 4), 0), ((2, 2), (4, 1), 3),
        ((), (), 7), ((3,), (4,), 1), ((2, 3, 2), (6, 2, 1), 0), ((2, 3, 2), (1, 2, 6), 0),
        ((3, 2, 2), (2, 1, 6), 0), ((2, 2, 3), (1, 6, 2), 0), ((3, 4), (0, 1), 2),
        ((3, 4), (1, 0), 2), ((3, 4), (1, 1), 0), ((1, 12), (99, 1), 0), ((5, 1, 2), (2, 7, 1), 1),
        ((2, 2, 2), (0, 0, 0), 5), ((0, 3), (3, 1), 0), ((2, 1, 3), (3, 0, 1), 6),
    ],
)  # fmt: skip
@pytest.mark.parametrize("most_pieces", [100, 0])
def test_any_strides(
    tmp_path: Path,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    offset: int,
    most_pieces: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(extents, "_MAX_PIECES", most_pieces)
    monkeypatch.setattr(extents, "_MAX_APART", most_pieces)
    path = write_zip(tmp_path / "m.pt", tensor(shape, strides, offset), {"0": VALUES.tobytes()})
    steps = tuple(4 * n for n in strides)
    want = np.lib.stride_tricks.as_strided(VALUES[offset:], shape, steps)
    template = np.broadcast_to(np.float32(0), shape)
    if most_pieces == 0 and (shape, strides) == ((3, 4), (1, 1)):  # elements overlap
        with pytest.raises(Unsupported, match="whose elements overlap in at most 0 pieces"):
            tx.restore(path, template)
        return
    np.testing.assert_array_equal(np.asarray(tx.restore(path, template)), want)
    if 0 not in shape:
        tx.convert(path, tmp_path / "copy", to="orbax")
        assert tx.diff(path, tmp_path / "copy").identical
        np.testing.assert_array_equal(np.asarray(tx.restore(tmp_path / "copy", template)), want)
    assert tx.verify(path).ok


def test_integers_of_more_than_64_bits_are_not_read_and_listed(tmp_path: Path) -> None:
    """The state of numpy's generators has integers of 128 bits."""
    state = pickle.dumps(np.random.PCG64(0).state["state"]["state"], 2)[2:-1]
    value = b"}" + text("w") + tensor((3,), (1,)) + b"s" + text("rng") + state + b"s"
    path = write_zip(tmp_path / "m.pt", value, {"0": VALUES.tobytes()})
    why = "templax reads integers of 64 bits; save it as text, `str(number)`"
    assert tx.open(path).unread == {"rng": why}
    got = tx.restore(path, {"w": np.zeros(3, np.float32), "rng": ...})
    assert got["w"].tolist() == [0, 1, 2]


def test_a_tensor_of_many_pieces_is_read_as_one(tmp_path: Path) -> None:
    data = np.arange(1 << 20, dtype=np.float32)
    value = b"}" + text("w") + tensor((1 << 15, 5), (20, 2), 3, numel=1 << 20) + b"s"
    path = write_zip(tmp_path / "m.pt", value, {"0": data.tobytes()})
    want = data[3 : 3 + 20 * (1 << 15)].reshape(-1, 20)[:, :10:2]
    assert len(tx.open(path).locate(tx.open(path).entries)["w"]) == 1
    got = tx.restore(path, {"w": np.broadcast_to(np.float32(0), want.shape)})["w"]
    np.testing.assert_array_equal(got, want)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), "x")
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    rows = jax.ShapeDtypeStruct(want.shape, np.float32, sharding=sharding)
    np.testing.assert_array_equal(np.asarray(tx.restore(path, {"w": rows})["w"]), want)
    tx.convert(path, tmp_path / "copy", to="safetensors")
    assert tx.diff(path, tmp_path / "copy").identical


def test_a_tensor_of_too_many_overlapping_pieces_is_listed_but_not_read(tmp_path: Path) -> None:
    data = np.zeros((1 << 16) + 1, np.float32)
    value = b"}" + text("w") + tensor((1 << 15, 3), (2, 1), numel=(1 << 16) + 1) + b"s"
    path = write_zip(tmp_path / "m.pt", value, {"0": data.tobytes()})
    assert tx.open(path).leaves["w"].shape == (1 << 15, 3)
    with pytest.raises(Unsupported, match="elements overlap in at most 16384 pieces") as caught:
        tx.restore(path, {"w": np.broadcast_to(np.float32(0), (1 << 15, 3))})
    assert caught.value.leaf == "w"
    assert tx.verify(path).ok
    account = tx.account_bytes(path)
    assert (account.kinds["leaf"], account.kinds["gap"]) == (data.nbytes, 0)
    assert tx.diff(path, path).leaves[0].note is not None
    with pytest.raises(Unsupported, match=r"hint: save `tensor.contiguous\(\)`$"):
        tx.convert(path, tmp_path / "out", to="orbax")  # skip= would leave nothing


def test_storages_of_bytes_have_the_dtype_of_the_tensor(tmp_path: Path) -> None:
    base = tensor((4,), (1,), numel=4, kind="Byte").replace(b"_v2", b"_v3")
    base = base.replace(b"ctorch\nByteStorage", b"ctorch.storage\nUntypedStorage")
    for name in ("float8_e4m3fn", "float8_e5m2fnuz"):
        value = base.removesuffix(b"tR") + f"ctorch\n{name}\ntR".encode()
        path = write_zip(tmp_path / "m.pt", value, {"0": b"\x38\x40\xc0\x00"})
        dtype = np.dtype(getattr(ml_dtypes, name))
        got = tx.restore(path, np.zeros(4, dtype))
        assert np.asarray(got).tobytes() == b"\x38\x40\xc0\x00"
    value = base.removesuffix(b"tR") + b"ctorch\nbits8\ntR"
    path = write_zip(tmp_path / "m.pt", value, {"0": bytes(4)})
    with pytest.raises(Unsupported, match=r"torch\.bits8"):
        tx.open(path)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (tensor((3, 4), (4, 1), 1), "beyond it"),
        (tensor((2,), (2**62,)), "beyond it"),
        (tensor((-1,), (1,)), "whole numbers"),
        (tensor((3,), (-1,), 3), "whole numbers"),
        (tensor((3,), (1, 1)), "as many strides as dimensions, 1, got 2"),
        (tensor((1,) * 33, (1,) * 33), "32 dimensions"),
        (tensor((2**40, 2**40, 0), (1, 1, 1)), "that memory can hold"),
        (tensor((3,), (1,), numel=11), "Expected 44 bytes of storage `0`, got 48"),
        (tensor((3,), (1,), key="1"), "storage `1` in the archive, found none"),
        (b"(" + tensor((1,), (1,)) + tensor((1,), (1,), numel=6, kind="Double") + b"t", "two of"),
    ],
)
def test_tensors_that_contradict_their_storage_are_damage(
    tmp_path: Path, value: bytes, what: str
) -> None:
    path = write_zip(tmp_path / "m.pt", value, {"0": VALUES.tobytes()})
    with pytest.raises(Corrupted) as caught:
        tx.open(path)
    assert what in str(caught.value)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (b"ctorch._utils\n_rebuild_qtensor\n)R", "torch._utils._rebuild_qtensor"),
        (b"ctorch._utils\n_rebuild_sparse_tensor\n)R", "torch._utils._rebuild_sparse_tensor"),
        (tensor((1,), (1,), kind="QInt8"), "torch.QInt8Storage"),
        (tensor((1,), (1,), more=b"}" + text("conj") + b"\x88s"), "conjugated"),
        (b"ctorch.serialization\n_get_layout\n" + text("torch.sparse") + b"\x85R", "torch.sparse"),
        (b"ctorch._tensor\n_rebuild_from_type_v2\n)R", "_rebuild_from_type_v2"),
    ],
)  # fmt: skip
def test_other_tensors_are_refused_by_name(tmp_path: Path, value: bytes, what: str) -> None:
    path = write_zip(tmp_path / "m.pt", b"}" + text("w") + value + b"s", {"0": VALUES.tobytes()})
    with pytest.raises(Unsupported) as caught:
        tx.open(path)
    assert what in str(caught.value)


def test_other_archives_are_refused_by_name(tmp_path: Path) -> None:
    value, storages = tensor((12,), (1,)), {"0": VALUES.tobytes()}
    cases = (
        ({"byteorder": b"big"}, "big-endian"), ({"constants.pkl": b""}, "TorchScript"),
        ({"code/__torch__.py": b""}, "TorchScript"),
    )  # fmt: skip
    for more, what in cases:
        path = write_zip(tmp_path / "m.pt", value, storages, more)
        with pytest.raises(Unsupported, match=what):
            tx.open(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02N." + bytes(1000))
    with pytest.raises(Unsupported, match="deflated"):
        tx.open(path)


def test_shared_bytes_do_not_multiply_without_bound(tmp_path: Path) -> None:
    value = tensor((1 << 18,), (1,), numel=1 << 18) + b"q\x000](" + b"h\x00" * 2000 + b"e"
    path = write_zip(tmp_path / "m.pt", value, {"0": bytes(1 << 20)})
    with pytest.raises(Unsupported, match="many share the same bytes"):
        tx.open(path)


def test_a_flipped_bit_is_found_by_verify(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "m.pt", tensor((12,), (1,)), {"0": VALUES.tobytes()})
    data = bytearray(path.read_bytes())
    data[data.index(VALUES.tobytes()) + 5] ^= 1
    path.write_bytes(data)
    (damage,) = tx.open(path).audit()
    assert damage.leaf is None  # the tensor is the whole tree


def test_checksums_that_pytorch_did_not_compute_are_not_compared(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "m.pt", tensor((12,), (1,)), {"0": VALUES.tobytes()})
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
    data = path.read_bytes()
    for info in infos:
        data = data.replace(struct.pack("<I", info.CRC), bytes(4))
    path.write_bytes(data)
    assert list(tx.open(path).audit()) == []


@pytest.mark.parametrize("name", ["checkpoint.pt", "checkpoint-legacy.pt"])
def test_every_cut_of_a_file_is_an_error(name: str, tmp_path: Path) -> None:
    data = (WRITTEN / name).read_bytes()
    for stop in range(1, len(data), 41):
        (tmp_path / "cut").write_bytes(data[:stop])
        with pytest.raises(tx.TemplaxError):
            tx.open(tmp_path / "cut")


def test_legacy_files_must_have_their_storages(tmp_path: Path) -> None:
    data = (WRITTEN / "checkpoint-legacy.pt").read_bytes()
    path = tmp_path / "m.pt"
    for damaged, error, what in (
        (data + b"x", Corrupted, "Expected a file of"),
        (
            data.replace(b"little_endian\x71\x02\x88", b"little_endian\x71\x02\x89"),
            Unsupported,
            "big",
        ),
        (data.replace(b"M\xe9\x03.", b"M\xea\x03.", 1), Unsupported, "version 1001"),
    ):
        assert damaged != data
        path.write_bytes(damaged)
        with pytest.raises(error, match=what):
            tx.open(path)


def test_the_pickles_of_a_legacy_file_may_be_long(tmp_path: Path) -> None:
    facts = {"protocol_version": 1001, "little_endian": True}
    value = {"text": "x" * (5 << 20), "n": 1}
    objects = (0x1950A86A20F9469CFC6C, 1001, facts, value, [])
    path = tmp_path / "m.pt"
    path.write_bytes(b"".join(pickle.dumps(each, 2) for each in objects))
    assert tx.restore(path, {"text": "", "n": 0}) == value


def test_a_key_of_a_storage_that_refers_to_itself_many_times_is_not_spelled_out(
    tmp_path: Path,
) -> None:
    key: tuple[object, ...] = ()
    for _ in range(30):
        key = (key,) * 10
    objects = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {"n": 1}, [key])
    path = tmp_path / "m.pt"
    path.write_bytes(b"".join(pickle.dumps(each, 2) for each in objects))
    with pytest.raises(Corrupted, match="key of a storage once, got another value"):
        tx.open(path)


def parameter(state: bytes, data: bytes = tensor((3,), (1,))) -> bytes:
    """A parameter with attributes."""
    hooks = b"ccollections\nOrderedDict\n)R"
    return (
        b"ctorch._utils\n_rebuild_parameter_with_state\n(" + data + b"\x88" + hooks + state + b"tR"
    )


def test_parameters_with_plain_attributes_are_read_and_these_are_metadata(tmp_path: Path) -> None:
    attributes = {"_no_weight_decay": True, "_optim": {"lr": [0.5, None]}, "name": "x", "n": -1}
    state = pickle.dumps(attributes, 2)[2:-1]
    value = b"}(" + text("a") + b"]" + parameter(state) + b"a" + text("b") + parameter(b"}")
    path = write_zip(tmp_path / "m.pt", value + b"u", {"0": VALUES.tobytes()})
    catalog = tx.open(path)
    assert (dict(catalog.unread), catalog.metadata) == ({}, {"attributes": {"a.0": attributes}})
    got = tx.restore(catalog, catalog.template())
    assert [got["a"][0].tolist(), got["b"].tolist()] == [[0, 1, 2], [0, 1, 2]]
    done = tx.convert(path, tmp_path / "copy.npz")
    assert done.lost["metadata that the format has no place for"] == ("attributes",)
    assert '"_no_weight_decay"' in run_cli("ls", path).stdout


def test_parameters_with_other_attributes_are_not_read_and_listed(tmp_path: Path) -> None:
    scalar = b"}" + text("x") + b"cnumpy\ncore\n)Rs"
    states = {
        "a class": scalar,
        "a tensor": b"}" + text("x") + tensor((3,), (1,)) + b"s",
        "a key": b"}N" + scalar + b"s",
        "slots": b"N" + scalar + b"\x86",
    }
    value = b"}(" + b"".join(text(name) + parameter(state) for name, state in states.items())
    value += text("w") + parameter(b"N")
    value += text("in another") + b"cargparse\nNamespace\n)R" + parameter(scalar) + b"b"
    value += text("refused") + parameter(scalar, b"ctorch._utils\n_rebuild_qtensor\n)R") + b"u"
    path = write_zip(tmp_path / "m.pt", value, {"0": VALUES.tobytes()})
    catalog = tx.open(path)
    assert set(catalog.leaves) == {"w"}
    assert set(catalog.unread) == {*states, "in another", "refused"}
    for name in states:
        assert catalog.unread[name] == (
            "templax reads parameters only if their attributes are numbers, text, lists or dicts;"
            " save `parameter.detach().as_subclass(torch.Tensor)` in its place"
        )
    assert catalog.metadata == {}


def test_attributes_do_not_multiply_without_bound(tmp_path: Path) -> None:
    attributes = pickle.dumps({"k": "a" * 100_000, "n": [*range(1000)]}, 2)[2:-1]
    one = parameter(attributes) + b"r\xff\xff\x00\x00"
    value = b"](" + one + b"j\xff\xff\x00\x00" * 10_000 + b"e"
    path = write_zip(tmp_path / "m.pt", value, {"0": VALUES.tobytes()})
    with pytest.raises(Unsupported, match=r"refers to the same (text|objects) so often"):
        tx.open(path)


# Distributed checkpoints.


def read_directory() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (WRITTEN / "dcp-2").iterdir()}


def open_directory(files: Mapping[str, bytes]) -> tx.Catalog:
    catalog = tx.open(Memory(files))
    catalog.locate([e for e in catalog.entries if e.kind != "string"])
    return catalog


def test_a_directory_without_one_of_its_files_is_damage() -> None:
    files = read_directory()
    assert len(open_directory(files).entries) == 10
    for name in ("__0_0.distcp", "__1_0.distcp"):
        with pytest.raises(Corrupted, match="found none") as caught:
            open_directory({key: data for key, data in files.items() if key != name})
        assert caught.value.file == name


def test_a_file_that_is_cut_is_damage() -> None:
    files = read_directory()
    files["__0_0.distcp"] = files["__0_0.distcp"][:-1]
    with pytest.raises(Corrupted) as caught:
        open_directory(files)
    assert caught.value.leaf == "model.columns.weight"


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        (b"__0_0.distcp", b"../../outside", "a file of this directory"),
        (b"__0_0.distcp", b"/etc/passwd\x00", "a file of this directory"),
        (b"K\x05K\x06\x86", b"K\x07K\x06\x86", "cover (7, 6) once"),
        (b"MetadataIndex", b"MetadataIndeX", "no `torch.distributed.checkpoint.metadata.MetadataI"),
        (b"TensorProperties", b"TensorPropertieS", "TensorPropertieS` in a pickle"),
        (b"_MEM_FORMAT_ENCODING", b"_MEM_FORMAT_ENCODINg", "_MEM_FORMAT_ENCODINg"),
        (b"ChunkStorageMetadata", b"ChunkStorageMetadatA", "ChunkStorageMetadatA"),
    ],
)
def test_metadata_that_is_wrong_is_refused(old: bytes, new: bytes, what: str) -> None:
    files = read_directory()
    assert old in files[".metadata"]
    files[".metadata"] = (
        files[".metadata"]
        .replace(bytes([len(old)]) + old, bytes([len(new)]) + new)
        .replace(old, new)
    )
    with pytest.raises((Corrupted, Unsupported)) as caught:
        open_directory(files)
    assert what in str(caught.value)
    assert caught.value.file == ".metadata"


def test_an_object_that_is_not_read_is_listed_by_name(tmp_path: Path) -> None:
    files = read_directory()
    place = tx.open(Memory(files)).leaves["step"]
    assert place.kind == "scalar"
    name = "__1_0.distcp"
    begin = files[name].index(b"\x80\x02K\x0c.")  # the pickle of 12
    changed = bytearray(files[name])
    changed[begin : begin + 5] = b"\x80\x02\x8f.."  # a set, which is not read
    catalog = tx.open(Memory(files | {name: bytes(changed)}))
    assert "step" not in catalog.leaves
    assert list(catalog.unread) == ["step"]
    assert "builtins.set" in catalog.unread["step"]
    with pytest.raises(tx.TemplateError):
        tx.restore(
            catalog, {"step": 0, "model": ..., "layers": ..., "betas": ..., "lr": ..., "name": ...}
        )


def test_a_tensor_of_a_dtype_that_is_not_read_is_listed_and_the_others_read() -> None:
    files = read_directory()
    assert {e.dtype.name for e in tx.open(Memory(files)).entries if e.kind == "array"} == {
        "bfloat16", "float32", "int64",
    }  # fmt: skip
    files[".metadata"] = files[".metadata"].replace(b"\x8c\x08bfloat16", b"\x8c\x09complex32")
    catalog = open_directory(files)
    assert len(catalog.entries) == 9
    why = (
        "templax reads no `torch.complex32` in a pickle, and calls nothing that a file names; save"
        " `tensor.to(torch.complex64)` in its place"
    )
    assert catalog.unread == {"model.columns.weight": why}
    assert tx.verify(catalog).unread == ("model.columns.weight",)
    assert tx.restore(catalog, catalog.template())["step"] == 12
    with pytest.raises(Unsupported, match=r"no `posix\.system` in a pickle"):  # part of no leaf
        tx.open(Memory(files | {".metadata": b"\x80\x02cposix\nsystem\n0" + files[".metadata"]}))


def test_a_distributed_checkpoint_of_nothing_that_is_read_is_refused() -> None:
    def record(name: str, state: bytes) -> bytes:
        return (
            f"ctorch.distributed.checkpoint.metadata\n{name}\n)".encode() + b"\x81" + state + b"b"
        )

    def make_dict(**items: bytes) -> bytes:
        return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"

    layout = b"ctorch.serialization\n_get_layout\n" + text("torch.strided") + b"\x85R"
    properties = record("TensorProperties", b"(ctorch\nqint8\n" + layout + b"t")
    odd = record("TensorStorageMetadata", make_dict(properties=properties, size=b")", chunks=b"]"))
    value = make_dict(state_dict_metadata=make_dict(odd=odd), storage_data=b"}")
    with pytest.raises(Unsupported) as caught:
        tx.open(Memory({".metadata": b"\x80\x02" + record("Metadata", value) + b"."}))
    assert str(caught.value) == (
        "templax reads no `torch.qint8` in a pickle, and calls nothing that a file names - at"
        " `odd`, file `.metadata`; hint: save `tensor.dequantize()` in its place"
    )


def test_a_tensor_that_is_conjugated_lazily_is_named_and_the_others_handled(
    tmp_path: Path,
) -> None:
    files = read_directory()
    catalog = tx.open(Memory(files))
    (chunk,) = catalog.locate([catalog.leaves["model.bias"]])["model.bias"]
    name, start = chunk.extent.key, chunk.extent.start
    data = files[name]
    old, lazily = b")Rq\ttq\nRq\x0b.", b")Rq\tK\x01tRq\n."  # with an argument more
    at = data.rindex(old, 0, start)
    (tmp_path / "dcp").mkdir()
    for file, content in files.items():
        changed = data[:at] + lazily + data[at + len(old) :] if file == name else content
        (tmp_path / "dcp" / file).write_bytes(changed)
    path = tmp_path / "dcp"
    catalog = tx.open(path)
    assert len(catalog.entries) == 10
    with pytest.raises(Unsupported, match=r"lazily - at `model\.bias`, file .*resolve_neg\(\)` in"):
        tx.restore(path, catalog.template())
    with pytest.raises(Unsupported, match=r"lazily - at .* skip= leaves them out"):
        tx.convert(path, tmp_path / "copy", to="orbax")
    tx.convert(path, tmp_path / "copy", to="orbax", skip=["model.bias"])
    found = tx.diff(path, path)
    assert (found.differs, found.identical) == (False, False)
    assert "model.bias" in str(found)
    (differing,) = tx.diff(path, tmp_path / "copy").differing
    assert differing.name == "model.bias"
    assert tx.account_bytes(path).kinds["leaf"] > 0

    assert tx.verify(path).ok
    first = next(file for file in files if file.startswith("__") and file != name)
    (path / first).unlink()
    damages = tx.verify(path).damages
    assert damages
    assert {damage.file for damage in damages} == {first}


def test_a_name_that_is_not_unicode_is_listed() -> None:
    files = read_directory()
    old, new = b"\x8c\x04step", b"\x8c\x04s\xed\xb3\xa9"
    assert old in files[".metadata"]
    files[".metadata"] = files[".metadata"].replace(old, new)
    catalog = open_directory(files)
    assert len(catalog.entries) == 9
    assert list(catalog.unread) == ["s\\udce9"]
    assert "got text that is not Unicode" in catalog.unread["s\\udce9"]


def test_the_directory_is_copied_without_its_metadata(tmp_path: Path) -> None:
    shutil.copytree(WRITTEN / "dcp-2", tmp_path / "dcp")
    (tmp_path / "dcp" / ".metadata").unlink()
    with pytest.raises(tx.UnknownFormat):
        tx.open(tmp_path / "dcp")


def test_the_recorded_digests_are_of_this_version() -> None:
    assert json.loads((WRITTEN / "expected.json").read_text())["torch"].startswith("2.14.1")
    assert "2.14.1" in io.StringIO((WRITTEN / "write.py").read_text()).read()


def test_verify_compares_the_checksums_of_the_archive(tmp_path: Path) -> None:
    sound = tx.verify(WRITTEN / "leaves.pt")
    assert sound.ok
    assert "has a checksum" not in str(sound)
    data = bytearray((WRITTEN / "leaves.pt").read_bytes())
    entry = next(e for e in tx.open(WRITTEN / "leaves.pt").entries if e.nbytes > 8)
    (chunk, *_) = tx.open(WRITTEN / "leaves.pt").locate([entry])[entry.name]
    data[chunk.extent.start] ^= 1
    (tmp_path / "damaged.pt").write_bytes(data)
    (damage,) = tx.verify(tmp_path / "damaged.pt").damages
    assert damage.leaf in tx.open(WRITTEN / "leaves.pt").leaves


def test_several_archives_in_one_file_are_refused(tmp_path: Path) -> None:
    names = ("leaves.pt", "checkpoint.pt")
    (tmp_path / "two").write_bytes(b"".join((WRITTEN / name).read_bytes() for name in names))
    with pytest.raises(Corrupted, match="these may be several archives in one file"):
        tx.open(tmp_path / "two")


def test_a_directory_of_pytorch_stays_one_beside_a_safetensors_file(tmp_path: Path) -> None:
    shutil.copytree(WRITTEN / "dcp-2", tmp_path / "dcp")
    tx.save(tmp_path / "st", {"step": np.int64(99)}, format="safetensors")
    shutil.copy(tmp_path / "st" / "model.safetensors", tmp_path / "dcp")
    assert tx.open(tmp_path / "dcp").format == "dcp"


def test_what_no_reader_of_tensors_has_is_refused_with_its_leaf_and_the_call_that_helps() -> None:
    where, refused = CORPUS / "torch-2.13.0", "in a pickle, and calls nothing that a file names"
    quantised = (
        f"templax reads no `torch._utils._rebuild_qtensor` {refused} - at `q`; hint: save"
        " `tensor.dequantize()` in its place"
    )
    expected = {
        "quantised-legacy.pt": quantised,
        "module-legacy.pt": f"templax reads no `__main__.Affine` {refused}; hint: save a"
        " dict of tensors, numbers and text, such as a `state_dict()`",
        "script.pt": "templax reads no programs of TorchScript; hint:"
        " `torch.save(torch.jit.load(path).state_dict(), new_path)` writes a file that templax"
        " reads",
    }
    for name, message in expected.items():
        with pytest.raises(Unsupported) as caught:
            tx.open(where / name)
        assert str(caught.value) == message


def test_what_is_not_read_beside_tensors_is_named_wherever_it_is_missed(tmp_path: Path) -> None:
    path = CORPUS / "torch-2.13.0" / "quantised.pt"
    why = (
        "templax reads no `torch._utils._rebuild_qtensor` in a pickle, and calls nothing that a"
        " file names; save `tensor.dequantize()` in its place"
    )
    catalog = tx.open(path)
    assert catalog.unread == {"q": why}
    template = catalog.template()
    assert template["q"] is ...
    assert tx.restore(path, template)["w"].shape == (2,)
    with pytest.raises(tx.TemplateError, match=f"no leaf, found one that .* - at `q`; {why[:9]}"):
        tx.restore(path, {"w": np.zeros(2, np.float32)})
    assert "not read 1 leaf: `q`" in str(tx.verify(path))

    cases = [("q", {"q": 0.0}, None), ("q.scale", {"q": {"scale": 0.0}}, None)]
    for name, template, rename in [*cases, ("new", {"new": 0.0}, {"q": "new"})]:
        with pytest.raises(tx.TemplateError) as caught:
            tx.restore(path, template, extra="ignore", rename=rename)
        text = str(caught.value)
        assert f"Expected a leaf, found one that templax does not read - at `{name}`; {why}" in text
        assert "missing=" not in text

    shown = run_cli("ls", path).stdout
    assert f"not read  `q`: {why}\n" in shown
    assert "not read: `q`" in str(catalog)

    done = tx.convert(path, tmp_path / "copy", to="orbax")
    assert "what templax does not read (1: `q`)" in str(done)
    assert tx.open(tmp_path / "copy").metadata.get("custom_metadata", {}) == {}
    found = tx.diff(path, tmp_path / "copy")
    assert (found.differs, found.identical, found.unread) == (False, False, ("q",))
    assert "templax does not read 1 leaf: `q`" in str(found)
    assert tx.diff(path, tmp_path / "copy", at="w", at_b="w").identical


def test_what_is_not_read_is_named_for_sets_and_merged_checkpoints_too(tmp_path: Path) -> None:
    quantised = CORPUS / "torch-2.13.0" / "quantised.pt"
    shutil.copy(quantised, tmp_path / "pytorch_model-1.bin")
    index = {"metadata": {}, "weight_map": {"w": "pytorch_model-1.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert list(tx.open(tmp_path).unread) == ["q"]

    tx.save(tmp_path / "other", {"b": np.zeros(3)})
    merged = tx.open(tx.merge(quantised, tmp_path / "other"))
    assert (sorted(merged.leaves), list(merged.unread)) == (["b", "w"], ["q"])
    some = tx.open(tx.merge((quantised, "w"), tmp_path / "other"))
    assert not some.unread  # only `w` was asked for


def test_a_program_of_torch_export_is_named() -> None:
    path = CORPUS / "torch-2.13.0" / "program.pt2"
    with pytest.raises(UnknownFormat) as caught:
        tx.open(path)
    assert str(caught.value) == (
        f"Expected a checkpoint that templax reads at {path}, got a program of torch.export; hint:"
        " `torch.save(torch.export.load(path).state_dict, new_path)` writes a file that templax"
        " reads"
    )


def unpack(path: Path) -> Path:
    """Unpacks a file of PyTorch; the directory that was in it."""
    with zipfile.ZipFile(WRITTEN / "leaves.pt") as archive:
        archive.extractall(path)
    (root,) = path.iterdir()
    return root


def pack(path: Path, root: Path, method: int) -> Path:
    """Packs a directory as `zip -r` does, the directories among its members."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for each in (root, *sorted(root.rglob("*"))):
            archive.write(each, each.relative_to(root.parent))
    return path


def test_a_file_that_was_packed_again_is_read(tmp_path: Path) -> None:
    path = pack(tmp_path / "again.pt", unpack(tmp_path / "unpacked"), zipfile.ZIP_STORED)
    assert tx.diff(path, WRITTEN / "leaves.pt").identical
    assert tx.verify(path).ok
    account = tx.account_bytes(path)
    assert sum(account.kinds.values()) == path.stat().st_size


def test_a_file_that_was_deflated_and_one_that_was_unpacked_say_what_helps(tmp_path: Path) -> None:
    root = unpack(tmp_path / "unpacked")
    path = pack(tmp_path / "deflated.pt", root, zipfile.ZIP_DEFLATED)
    with pytest.raises(Unsupported, match="no deflated PyTorch files") as deflated:
        tx.open(path)
    assert deflated.value.hint == (
        "`torch.save(torch.load(path), new_path)` writes a file that templax reads"
    )
    with pytest.raises(UnknownFormat) as unpacked:
        tx.open(root)
    assert str(unpacked.value) == (
        f"Expected a checkpoint that templax reads at {root}, got the files of an unpacked PyTorch"
        " file; hint: pack the directory again, with `zip -0 -r` in the directory around it"
    )


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, None])
def test_a_file_in_another_compression_or_encrypted_says_what_helps(
    tmp_path: Path, method: int | None
) -> None:
    path = write_zip(tmp_path / "m.pt", tensor((12,), (1,)), {"0": VALUES.tobytes()})
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            last = name.endswith("data/0")
            archive.writestr(name, data, method if last else zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    if method is None:
        data[data.index(b"PK\1\2", data.index(b"PK\1\2") + 1) + 8] |= 1
        path.write_bytes(data)
    with pytest.raises(Unsupported, match=r"(encrypted|`bzip2`|`lzma`) members - at `") as caught:
        tx.open(path)
    assert "pack it again with `zip -0 -r`" in str(caught.value.hint)


def test_keys_and_numbers_that_no_tree_has_are_refused_with_what_to_save(tmp_path: Path) -> None:
    one = tensor((12,), (1,))
    same = b"}(" + text("a.b") + one + text("a") + b"}" + text("b") + one + b"s" + b"u"
    cases = {
        b"}" + number(1) + b"\x85" + one + b"s": "save a dict with keys of text",
        same: "save them under keys that differ otherwise",
        b"}" + text("n") + b"\x8a\x09" + bytes(8) + b"\x01s": "save it as text, `str(number)`",
    }
    for value, hint in cases.items():
        path = write_zip(tmp_path / "m.pt", value, {"0": VALUES.tobytes()})
        with pytest.raises(Unsupported) as caught:
            tx.open(path)
        assert caught.value.hint == hint


def test_a_distributed_checkpoint_of_safetensors_is_refused_instead_of_called_damaged() -> None:
    with pytest.raises(Unsupported) as caught:
        tx.open(CORPUS / "torch-2.13.0" / "dcp-safetensors")
    assert str(caught.value) == (
        "templax reads no chunks that were serialised as safetensors - file `__0_0.distcp`; hint:"
        " save with `SerializationFormat.TORCH_SAVE`, which is the default"
    )
