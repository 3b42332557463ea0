"""Trees of zarr arrays: names, what is said of them, and what tells them from Orbax's."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore as ts

import templax as tx
from helpers import CORPUS, run_cli
from templax.errors import Corrupted, NotFound, UnknownFormat, Unsupported
from templax.storage import Memory

ONES = np.ones(4, np.float32)


def zarray(**changes: Any) -> bytes:
    about = {
        "zarr_format": 2, "shape": [4], "chunks": [2], "dtype": "<f4", "compressor": None,
        "fill_value": 0.0, "order": "C", "filters": None,
    }  # fmt: skip
    return json.dumps(about | changes).encode()


def zarr3(**changes: Any) -> bytes:
    about = {
        "zarr_format": 3, "node_type": "array", "shape": [4], "data_type": "float32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2]}},
        "chunk_key_encoding": {"name": "default"}, "fill_value": 0.0,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}], "attributes": {},
    }  # fmt: skip
    return json.dumps(about | changes).encode()


GROUP = b'{"zarr_format": 2}'
GROUP3 = b'{"zarr_format": 3, "node_type": "group", "attributes": {}}'
HALF = ONES[:2].tobytes()


def tree_of(**files: bytes) -> Memory:
    """A group of zarr 2 in which `w` is an array of ones, with other files; `__` stands for `/`."""
    whole = {".zgroup": GROUP, "w/.zarray": zarray(), "w/0": HALF, "w/1": HALF}
    return Memory(whole | {name.replace("__", "/"): data for name, data in files.items()})


def open_files(files: dict[str, bytes]) -> tx.Catalog:
    return tx.open(Memory(files))


@pytest.mark.parametrize("group", [{".zgroup": GROUP}, {"zarr.json": GROUP3}])
def test_groups_are_levels_and_a_flat_name_is_split_at_its_dots(group: dict[str, bytes]) -> None:
    names = ("a/b", "c.d", "deep/er/x.y")
    catalog = open_files(group | {f"{name}/.zarray": zarray() for name in names})
    assert [e.path for e in catalog.entries] == [("a", "b"), ("c", "d"), ("deep", "er", "x.y")]


def test_values_of_a_tree_are_restored_through_a_template() -> None:
    np.testing.assert_array_equal(tx.restore(tree_of(), {"w": ONES})["w"], ONES)


def test_a_chunk_that_is_absent_is_the_fill_value_and_named() -> None:
    files = {".zgroup": GROUP, "w/.zarray": zarray(fill_value=7.0), "w/0": HALF}
    catalog = open_files(files)
    said = "chunks that are absent, which means the fill value: `w: 1 of 2`"
    assert catalog.metadata == {"filled in": said}
    np.testing.assert_array_equal(tx.restore(catalog, {"w": ONES})["w"], [1, 1, 7, 7])
    files["w/.zarray"] = zarray(fill_value=None)
    assert open_files(files).metadata == {}
    with pytest.raises(Corrupted, match="Expected a chunk, found none"):
        tx.restore(Memory(files), {"w": ONES})


def test_arrays_of_other_dtypes_and_other_files_are_named_as_not_read() -> None:
    catalog = tx.open(
        tree_of(
            names__arr=b"",
            dates__x=b"",
            **{"dates__.zarray": zarray(dtype="<M8[s]"), "notes.txt": b"hello"},
        )
    )
    assert catalog.unread == {"dates": "templax does not read dtype `<M8[s]`"}
    assert catalog.metadata["not read"] == {"other files": "2: `names/arr`, `notes.txt`"}
    assert list(catalog.leaves) == ["w"]


def test_a_conversion_names_what_is_not_read_and_does_not_carry_the_list(tmp_path: Path) -> None:
    w = zarray(shape=[2], chunks=[2], dtype="<f4")
    files = {".zgroup": b'{"zarr_format": 2}', "w/.zarray": w, "w/0": bytes(8), "notes.txt": b"x"}
    files["dates/.zarray"] = zarray(dtype="<M8[s]")
    for name, data in files.items():
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(data)
    done = tx.convert(tmp_path / "tree", tmp_path / "copy", to="orbax")
    assert "what templax does not read (2: `dates`, `other files`)" in str(done)
    assert tx.open(tmp_path / "copy").metadata.get("custom_metadata", {}) == {}


def test_an_array_of_an_unknown_codec_is_listed_and_refused_when_it_is_read() -> None:
    files = {"q__.zarray": zarray(filters=[{"id": "delta"}]), "q__0": HALF, "q__1": HALF}
    source = tree_of(**files)
    assert list(tx.open(source).leaves) == ["q", "w"]
    np.testing.assert_array_equal(tx.restore(source, {"w": ONES, "q": ...})["w"], ONES)
    with pytest.raises(Unsupported, match="no zarr filters, got `delta` - at `q`"):
        tx.restore(source, {"q": ONES, "w": ONES})


def test_what_ls_prints_restores_a_tree_without_the_arrays_that_can_not_be_decoded(
    tmp_path: Path,
) -> None:
    path = copy_case("zarr-2.18.7", tmp_path / "t")
    assert "catalog.template())" in run_cli("ls", path).output
    put = {"v": {"compressor": {"id": "bz2", "level": 1}}, "x/q": {"filters": [{"id": "delta"}]}}
    for name, changes in put.items():
        (path / name).mkdir(parents=True)
        (path / name / ".zarray").write_bytes(zarray(chunks=[4], **changes))
        (path / name / "0").write_bytes(HALF)
    shown = " ".join(run_cli("ls", path).output.split())
    assert "not decoded `v`: templax does not read codec `bz2`" in shown
    assert "not decoded `x.q`: templax reads no zarr filters, got `delta`" in shown
    assert "can't be decoded" in shown
    listed = json.loads(run_cli("ls", path, "--json").output)
    reasons = {leaf["name"]: leaf["undecodable"] for leaf in listed["leaves"]}
    assert (reasons["v"], reasons["kernel"]) == ("templax does not read codec `bz2`", None)
    code = [line for line in listed["restore"].splitlines() if line.startswith(("cat", "tree"))]
    found: dict[str, Any] = {}
    exec("\n".join(code[:2]), {"tx": tx}, found)
    assert found["tree"]["v"] is found["tree"]["x"]["q"] is ...
    assert found["tree"]["kernel"].shape == (7, 5)
    with pytest.raises(Unsupported, match="to leave them out"):
        tx.restore(path, tx.open(path).template())


def test_attributes_are_metadata_by_node_and_empty_groups_are_empty_dicts() -> None:
    attributes = {".zattrs": b'{"run": 1}', "w/.zattrs": b'{"unit": "m"}', "e/.zgroup": GROUP}
    catalog = tx.open(tree_of(**attributes))
    assert catalog.metadata == {"attributes": {"": {"run": 1}, "w": {"unit": "m"}}}
    assert catalog.empties == {("e",): "Dict"}
    group = json.loads(GROUP3) | {"attributes": {"run": 1}}
    files = {"zarr.json": json.dumps(group).encode(), "w/zarr.json": zarr3(attributes={"u": 2})}
    catalog = open_files(files | {"g/zarr.json": GROUP3, "g/e/zarr.json": GROUP3})
    assert catalog.metadata["attributes"] == {"": {"run": 1}, "w": {"u": 2}}
    assert catalog.empties == {("g", "e"): "Dict"}


def test_attributes_may_hold_what_python_takes_for_json() -> None:
    """zarr-python and xarray write NaN, infinities, and lone surrogates."""
    said = {"missing_value": float("-inf"), "units": "\ud800", "big": 10**30}
    files = {".zgroup": GROUP, "w/.zarray": zarray(), "w/.zattrs": json.dumps(said).encode()}
    whole = {"w/.zarray": json.loads(zarray()), "w/.zattrs": said | {"nan": float("nan")}}
    files[".zmetadata"] = json.dumps({"metadata": whole}).encode()
    assert open_files(files).metadata["attributes"] == {"w": said}
    array = json.loads(zarr3(attributes=said))
    group = json.loads(GROUP3) | {"consolidated_metadata": {"metadata": {"w": array}}}
    files = {"zarr.json": json.dumps(group).encode(), "w/zarr.json": json.dumps(array).encode()}
    metadata = open_files(files).metadata
    assert metadata["attributes"] == {"w": said}
    assert "consolidated metadata" not in metadata


def test_consolidated_metadata_that_differs_is_named_and_not_used() -> None:
    found = {"w/.zarray": json.loads(zarray(shape=[2])), "gone/.zarray": json.loads(zarray())}
    text = json.dumps({"zarr_consolidated_format": 1, "metadata": found}).encode()
    source = tree_of(**{".zmetadata": text})
    said = tx.open(source).metadata["consolidated metadata"]
    assert said.endswith("are not there: `w`, `gone`")
    np.testing.assert_array_equal(tx.restore(source, {"w": ONES})["w"], ONES)
    found = {"w": json.loads(zarr3()), "gone": json.loads(zarr3()), "g": {"node_type": "group"}}
    group = json.loads(GROUP3) | {"consolidated_metadata": {"metadata": found}}
    files = {"zarr.json": json.dumps(group).encode(), "w/zarr.json": zarr3()}
    assert open_files(files).metadata["consolidated metadata"].endswith("not there: `gone`")


def test_an_array_whose_own_metadata_was_lost_is_damage() -> None:
    text = json.dumps({"metadata": {"gone/.zarray": json.loads(zarray())}}).encode()
    with pytest.raises(Corrupted, match=r"Expected `\.zarray` beside `gone/0`, found none"):
        tx.open(tree_of(gone__0=HALF, **{".zmetadata": text}))


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({"zarr.json": b"{"}, Corrupted, r"`zarr.json` is unreadable: .* - file `zarr.json`"),
        ({"zarr.json": b"[]"}, Corrupted, "is unreadable"),
        ({"zarr.json": GROUP3.replace(b"3", b"4")}, Unsupported, "zarr_format 3 in `zarr.json`"),
        ({".zgroup": b'{"zarr_format": 1}'}, Unsupported, "zarr_format 2 in `.zgroup`, got 1"),
        ({".zgroup": GROUP, "a/.zarray": b"{}"}, Corrupted, "file `a/.zarray`"),
        ({".zgroup": GROUP, ".zattrs": b"[1]"}, Corrupted, "`.zattrs` is unreadable"),
        ({".zgroup": GROUP, ".zattrs": b'{"a":1,"a":2}'}, Corrupted, "`.zattrs` is unreadable"),
        (
            {".zgroup": GROUP, "w/.zarray": zarray(), "w/.zattrs": b"{"},
            Corrupted,
            r"`.zattrs` is unreadable.* - file `w/\.zattrs`",
        ),
        ({"zarr.json": GROUP3.replace(b"{}", b'{"a":1,"a":2}')}, Corrupted, "'a' occurs twice"),
        ({".zgroup": GROUP, ".zattrs": b'{"a":%s}' % (b"1" * 4400)}, Corrupted, "unreadable"),
        (
            {".zgroup": GROUP, ".zattrs": b'{"a":%s}' % (b"[" * 300 + b"]" * 300)},
            Corrupted,
            "more than 260 levels",
        ),
        ({".zgroup": GROUP, ".zmetadata": b"1"}, Corrupted, "`.zmetadata` is unreadable"),
        ({".zgroup": GROUP, "a/.zarray": b" " * (1 << 21)}, Corrupted, "at most 1048576 bytes"),
        ({".zgroup": GROUP, f"{'a/' * 400}.zarray": zarray()}, Unsupported, "of 300 levels"),
        (
            {".zgroup": GROUP, "a/.zarray": b"version https://git-lfs.github.com/spec/v1"},
            UnknownFormat,
            "got a Git LFS pointer",
        ),
    ],
)
def test_what_is_wrong_with_a_node_is_named(
    files: dict[str, bytes], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        open_files(files)


def test_a_single_array_is_the_whole_tree() -> None:
    for files in ({".zarray": zarray(), "0": HALF, "1": HALF}, {"zarr.json": zarr3()}):
        catalog = open_files(files)
        assert [e.path for e in catalog.entries] == [()]
    np.testing.assert_array_equal(tx.restore(catalog, ONES), 0 * ONES)


def copy_case(case: str, to: Path) -> Path:
    return Path(shutil.copytree(CORPUS / case / "tree.zarr", to))


def test_a_part_of_a_tree_is_a_tree(tmp_path: Path) -> None:
    path = copy_case("zarr-2.18.7", tmp_path / "t")
    assert [e.name for e in tx.open(path / "encoder" / "layer_0").entries] == ["fortran", "w"]
    assert tx.open(path / "kernel").leaves[""].shape == (7, 5)


def test_orbax_directories_of_zarr_arrays_remain_orbax(tmp_path: Path) -> None:
    plain = CORPUS / "orbax-0.12.8-noocdbt" / "ckpt"
    assert tx.open(plain).format == "orbax"
    with pytest.raises(UnknownFormat, match="is a part of the checkpoint"):
        tx.open(plain / "state.params.big")
    for case in ("orbax-0.12.8-noocdbt", "orbax-0.12.8-default"):
        path = Path(shutil.copytree(CORPUS / case / "ckpt", tmp_path / case))
        (path / "_METADATA").unlink()
        catalog = tx.open(path)  # what else Orbax left still tells
        assert (catalog.format, "as `_METADATA` is missing" in catalog.evidence) == ("orbax", True)
    with pytest.raises(UnknownFormat, match="is a part of the checkpoint"):
        tx.open(CORPUS / "orbax-0.12.8-default" / "ckpt" / "ocdbt.process_0")


def test_a_directory_of_one_tree_is_not_an_item_of_orbax(tmp_path: Path) -> None:
    copy_case("zarr-2.18.7", tmp_path / "run" / "tree")
    with pytest.raises(UnknownFormat) as caught:
        tx.open(tmp_path / "run")
    assert caught.value.hint == f'open "{tmp_path / "run" / "tree"}"'


def test_a_missing_tree_hints_at_one_beside_it(tmp_path: Path) -> None:
    copy_case("zarr-2.18.7", tmp_path / "tree.zarr")
    with pytest.raises(NotFound, match="There is nothing at"):
        tx.open(tmp_path / "tree.zar")


def test_a_link_to_a_chunk_elsewhere_is_not_an_absent_chunk(tmp_path: Path) -> None:
    path = copy_case("zarr-array", tmp_path / "t")
    (chunk, *_) = sorted(path.glob("c/*/*"))
    shutil.move(chunk, tmp_path / "chunk")
    chunk.symlink_to(tmp_path / "chunk")
    with pytest.raises(tx.SourceError, match="is a link that leads out of"):
        tx.restore(path, np.zeros((5, 4), np.float32))


@pytest.mark.parametrize("zarr", ["zarr", "zarr3"])
def test_a_database_of_tensorstore_is_read_and_its_other_keys_are_counted(
    tmp_path: Path, zarr: str
) -> None:
    store = {"driver": "ocdbt", "base": f"file://{tmp_path}/db/"}
    values = np.arange(6, dtype=np.int32).reshape(2, 3)
    spec = {"driver": zarr, "kvstore": {**store, "path": "a/b.c/"}, "create": True}
    ts.open(spec, dtype="int32", shape=[2, 3]).result().write(values).result()
    ts.KvStore.open(store).result().write("seed", b"7").result()
    catalog = tx.open(tmp_path / "db")
    assert (catalog.format, catalog.metadata["not read"]) == ("zarr", {"other keys": "1: `seed`"})
    tree = tx.restore(catalog, {"a": {"b.c": values}})
    np.testing.assert_array_equal(tree["a"]["b.c"], values)
    (tmp_path / "db" / "_sharding").write_text("{}")
    assert tx.open(tmp_path / "db").format == "orbax"


@pytest.mark.slow
def test_numcodecs_is_imported_once_by_threads_that_need_it_at_once() -> None:
    """Without a lock, one of them fails."""
    code = """
        import threading
        from templax._codecs import blosc
        failed = []
        def load(codec):
            try:
                blosc.load_codec(codec)
            except BaseException as error:
                failed.append(error)
        threads = [threading.Thread(target=load, args=(c,)) for c in ("blosc", "lz4") * 4]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert not failed, failed
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_chunks_of_arrays_with_equal_metadata_are_parts_of_them() -> None:
    three = {"w/zarr.json": zarr3(), "w/c/0": HALF, "w/c/1": HALF}
    arrays = three | {key.replace("w", "v", 1): data for key, data in three.items()}
    assert "not read" not in open_files({"zarr.json": GROUP3, **arrays}).metadata


def test_a_restore_and_a_verification_name_leaves_with_absent_chunks() -> None:
    source = tree_of(**{"v__.zarray": zarray(fill_value=7.0), "v__0": HALF})
    said = "chunks of 1 leaf are absent, which means the fill value: `v`"
    template = {"v": ONES, "w": ONES}
    plan = tx.plan(source, template)
    assert plan.filled == ("v",)
    assert f"\n  {said}" in str(plan)
    tx.restore(source, template)
    stats = tx.last_restore()
    assert stats is not None
    assert stats.filled == ("v",)
    assert str(stats).endswith(f"; {said}")
    verified = tx.verify(source)
    assert verified.filled == ("v",)
    assert str(verified).endswith(f"\n  {said}")
    assert tx.verify(tree_of()).filled == ()
    assert tx.plan(source, {"v": ..., "w": ONES}).filled == ()


def test_other_files_beside_arrays_without_metadata_are_listed(tmp_path: Path) -> None:
    for name in ("mean", "std"):
        shutil.copytree(CORPUS / "zarr-array" / "tree.zarr", tmp_path / name)
    shutil.copy(CORPUS / "safetensors-plain" / "model.safetensors", tmp_path)
    (tmp_path / "commit_success.txt").write_text("by Orbax")
    catalog = tx.open(tmp_path)
    assert (catalog.format, sorted(catalog.leaves)) == ("orbax", ["mean", "std"])
    assert catalog.metadata["not read"] == {"other files": "1: `model.safetensors`"}
