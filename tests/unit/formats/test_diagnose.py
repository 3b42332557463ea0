"""Files and directories that are not checkpoints: what they are called, and what is hinted."""

import errno
import os
import shutil

import pytest

from helpers import CORPUS
from opening import open_local, read_refusal
from templax.errors import Corrupted, UnknownFormat
from templax.formats import open_catalog
from templax.storage import Memory

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


@pytest.mark.parametrize("file", ["_METADATA", "manifest.ocdbt"])
def test_a_metadata_file_that_is_an_lfs_pointer_is_named(case, file):
    path = case("orbax-0.12.8-default")
    (path / file).write_bytes(LFS)
    assert read_refusal(path) == (
        f"Expected checkpoint data, got a Git LFS pointer - file `{file}`; hint: run `git lfs pull`"
    )


def test_an_index_node_that_is_an_lfs_pointer_is_named(case):
    path = case("orbax-0.12.8-default")
    for file in (path / "d").iterdir():
        file.write_bytes(LFS)
    assert "got a Git LFS pointer - file `d/" in read_refusal(path)


def test_a_chunk_that_is_an_lfs_pointer_is_named(case):
    path = case("orbax-0.12.8-noocdbt")
    chunks = [f for f in path.rglob("*") if f.is_file() and f.name[0].isdigit()]
    assert chunks
    for file in chunks:
        file.write_bytes(LFS)
    catalog = open_local(path)
    with pytest.raises(UnknownFormat, match="got a Git LFS pointer - file `"):
        catalog.locate([e for e in catalog.entries if e.nbytes > 1000])


def test_a_data_file_that_is_an_lfs_pointer_is_named(case):
    path = case("orbax-0.12.8-uncompressed")
    for file in (path / "ocdbt.process_0" / "d").iterdir():
        file.write_bytes(LFS)
    catalog = open_local(path)
    with pytest.raises(UnknownFormat, match=r"got a Git LFS pointer - file `ocdbt.process_0/d/"):
        catalog.locate(catalog.entries)


def test_a_legacy_checkpoint_of_lfs_pointers_is_named():
    files = {"c/checkpoint": LFS, "c/w/0": LFS}
    with pytest.raises(UnknownFormat, match="got a Git LFS pointer - file `checkpoint`"):
        open_catalog(Memory(files, "c/"))
    with pytest.raises(UnknownFormat, match=r"got a Git LFS pointer - file `model.bin`"):
        open_catalog(Memory({"c/model.bin": LFS}, "c/"))


@pytest.mark.parametrize("name", ["orbax-0.2.3-default", "orbax-0.12.8-noocdbt"])
def test_missing_dot_files_are_named(case, name):
    path = case(name)
    for file in path.rglob(".zarray"):
        file.unlink()
    message = read_refusal(path, Corrupted)
    assert message.startswith("Expected `.zarray` beside `")
    assert message.endswith(
        "; hint: copy the checkpoint again, with the files whose names start with a dot"
    )


def test_missing_dot_files_without_any_metadata_are_named():
    files = {"c/w/0.0": b"", "c/w/0.1": b"", "c/b/0": b""}
    with pytest.raises(Corrupted) as caught:
        open_catalog(Memory(files, "c/"))
    assert str(caught.value) == (
        "Expected `.zarray` beside `b/0`, found none - at `b`, file `b/.zarray`; "
        "hint: copy the checkpoint again, with the files whose names start with a dot"
    )


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "an empty file"),
        (b"\x1f\x8b\x08", "a gzip file; hint: unpack it"),
        (b"\x28\xb5\x2f\xfd", "a zstd file; hint: unpack it"),
        (bytes(257) + b"ustar", "a tar archive; hint: unpack it"),
        (b"\x04\x22\x4d\x18", "an lz4 file; hint: unpack it"),
        (b"PK\x05\x06" + bytes(18), "an empty zip archive"),
        (b"\x80\x04\x95", "a Python pickle, which templax never loads"),
        (b"model_checkpoint_path: 'x'", "the index of a TensorFlow checkpoint"),
        (b"hello", "a file of another kind"),
        (b"\x81\xa1a\x01", "a file of another kind"),
    ],
)
def test_other_files_are_named_by_their_signature(tmp_path, data, what):
    (tmp_path / "file").write_bytes(data)
    expected = f"Expected a checkpoint that templax reads at {tmp_path / 'file'}, got {what}"
    assert read_refusal(tmp_path / "file") == expected


def test_what_reads_an_hdf5_file_is_hinted(tmp_path):
    (tmp_path / "file").write_bytes(b"\x89HDF\r\n\x1a\n")
    assert read_refusal(tmp_path / "file").endswith(
        "got an HDF5 file; hint: restore from a tx.Recipe of a function that reads"
        f' "{tmp_path}/file" with h5py'
    )


def test_zip_archives_are_distinguished_by_their_first_member(tmp_path):
    import zipfile

    for member, what in [
        ("x", "unpack"),
    ]:
        with zipfile.ZipFile(tmp_path / "file", "w") as archive:
            archive.writestr(member, b"")
        assert what in read_refusal(tmp_path / "file")


def test_a_directory_of_other_files_lists_some_of_them(tmp_path):
    assert read_refusal(tmp_path).endswith("got an empty directory")
    for name in "abcdef":
        (tmp_path / name).write_bytes(b"\x89HDF\r\n\x1a\n" if name == "a" else b"x")
    expected = "got a directory of `a` (an HDF5 file), `b`, `c`, `d`, and 2 more; hint: "
    assert expected in read_refusal(tmp_path)


def test_the_rest_of_a_checkpoint_is_named(case):
    path = case("orbax-0.12.8-default")
    for name in ("_METADATA", "manifest.ocdbt"):
        (path / name).unlink()
    for name in ("d", "ocdbt.process_0"):
        shutil.rmtree(path / name)
    assert read_refusal(path).endswith(
        "got `_CHECKPOINT_METADATA` of an Orbax checkpoint without its `_METADATA` or arrays"
    )


def test_a_directory_beside_it_that_may_not_be_read_does_not_matter(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    (tmp_path / "file").write_bytes(b"hello")
    scan = os.scandir

    def scan_others(path):
        if os.fspath(path) == str(tmp_path / "closed"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scan_others)
    assert read_refusal(tmp_path / "file").endswith("got a file of another kind")


def test_a_group_of_zarr_is_no_array_of_an_orbax_checkpoint_around_it(tmp_path):
    shutil.copytree(CORPUS / "zarr-3.1.6" / "tree.zarr", tmp_path / "tree.zarr")
    for name in ("a", "b"):
        file = tmp_path / f"{name}.safetensors"
        shutil.copy(CORPUS / "safetensors-plain" / "model.safetensors", file)
    (tmp_path / "notes.txt").write_text("by hand")
    with pytest.raises(UnknownFormat) as around:
        open_local(tmp_path)
    assert str(around.value) == (
        f"Expected a checkpoint that templax reads at {tmp_path}, got a directory that holds"
        f' checkpoints; hint: open "{tmp_path}/a.safetensors" or "{tmp_path}/b.safetensors"'
        f' or "{tmp_path}/tree.zarr"'
    )
    with pytest.raises(UnknownFormat, match=r"notes\.txt, got a file of another kind"):
        open_local(tmp_path / "notes.txt")
