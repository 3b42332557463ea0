"""Paths and URLs that can and can't be saved to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import templax as tx
from disks import abandon_save, make_directory
from helpers import list_names, read_files
from templax.storage import Memory, Sink, SinkFile, Staging, open_staging
from templax.storage.leftovers import (
    TEMPORARY,
    delete_checkpoint,
    find_abandoned,
    remove_directory,
    temporary_path,
)


def test_the_path_does_not_depend_on_a_later_chdir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    staging = Staging("p/../q/./a/", overwrite=False)
    monkeypatch.chdir("/")
    staging.put("x", b"1")
    staging.commit()
    assert read_files(tmp_path) == {"q/a/x": b"1"}
    monkeypatch.chdir(tmp_path / "q" / "a")
    with Staging(tmp_path / "q" / "a", overwrite=True) as staging:  # the current directory
        staging.put("y", b"2")
        staging.commit()
    assert read_files(tmp_path) == {"q/a/y": b"2"}


def test_a_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    make_directory(tmp_path / "b")
    assert abandon_save(Path("~/a")).parent == tmp_path
    assert [Path(p).parent for p in find_abandoned("~/a")] == [tmp_path]
    remove_directory(find_abandoned("~/a")[0])
    delete_checkpoint("~/b")
    assert list_names(tmp_path) == []


def test_parent_directories_may_be_links(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    make_directory(tmp_path / "real" / "a")
    with Staging(tmp_path / "link" / "a", overwrite=True) as staging:
        staging.put("x", b"1")
        staging.commit()
    assert read_files(tmp_path / "real") == {"a/x": b"1"}


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("/", "Expected a path with a name, got the root"),
        (
            "a.orbax-checkpoint-tmp-3",
            "Expected a name without `.orbax-checkpoint-tmp`, which marks saves that never "
            "finished",
        ),
        ("file/a", "can't save: Not a directory; nothing was saved and nothing is left behind"),
        ("file/p/a", "can't save: Not a directory; nothing was saved and nothing is left behind"),
        ("loop/a", "can't save: Too many levels of symbolic links; nothing was saved and nothing "),
        ("dangling/a", "can't save: No such file or directory; nothing was saved and nothing is "),
        ("n" * 256, "can't save: File name too long; nothing was saved and nothing is left behind"),
        ("p/" + "n" * 256, "can't save: File name too long; nothing was saved and nothing is left"),
        ("n" * 256 + "/a", "can't save: File name too long; nothing was saved and nothing is left"),
        (
            ("n" * 200 + "/") * 21 + "a",
            "can't save: File name too long; nothing was saved and nothing is lef",
        ),
    ],
)
def test_a_path_that_cannot_be_a_checkpoint_is_refused_before_any_write(
    path: str, what: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(tx.SaveError) as caught:
        Staging(os.path.join(tmp_path, path), overwrite=True)
    assert caught.value.what.startswith(what)
    assert caught.value.file is not None
    assert list_names(tmp_path) == ["dangling", "file", "loop"]


def test_the_error_for_a_long_name_suggests_a_shorter_one(tmp_path: Path) -> None:
    with pytest.raises(tx.SaveError) as caught:
        Staging(tmp_path / ("n" * 256), overwrite=False)
    assert str(caught.value) == (
        "can't save: File name too long; nothing was saved and nothing is left behind - file "
        f"`{tmp_path}/{'n' * 256}`; hint: save under a shorter name"
    )


@pytest.mark.parametrize("path", ["a\0b", "a\ud800b"])
def test_a_string_that_is_not_a_path_is_refused(path: str) -> None:
    for call in (
        lambda: Staging(path, overwrite=False),
        lambda: find_abandoned(path),
        lambda: remove_directory(path),
    ):
        with pytest.raises(tx.UsageError, match="Expected a path, got "):
            call()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["n" * 255, "ü" * 127, "n" * 201, "n" * 200, os.fsdecode(b"\xff" * 255)]
)
def test_the_longest_names_have_distinct_temporary_names(name: str, tmp_path: Path) -> None:
    """The temporary name is shortened, and still belongs to this path alone."""
    others = [tmp_path / (name[:-1] + "x"), tmp_path / name[:-1], tmp_path / name[:200]]
    path = tmp_path / name
    left = abandon_save(path)
    assert TEMPORARY in left.name
    assert len(os.fsencode(left.name)) <= 255
    assert find_abandoned(path) == [str(left)]
    assert all(find_abandoned(other) == [] for other in others if other != path)
    with Staging(path, overwrite=False) as staging:
        staging.put("x", b"1")
        staging.commit()
    delete_checkpoint(path)
    remove_directory(left)
    assert list_names(tmp_path) == []


def test_temporary_names_are_unique(tmp_path: Path) -> None:
    assert len({temporary_path(str(tmp_path / "a")) for _ in range(100)}) == 100


def test_paths_and_file_urls_are_staged(tmp_path: Path) -> None:
    for i, url in enumerate((str(tmp_path / "0"), tmp_path / "1", f"file://{tmp_path}/%32")):
        sink = open_staging(url, overwrite=False)
        assert isinstance(sink, Sink)
        assert sink.path == f"{tmp_path}/{i}"
        file = sink.create("x")
        assert isinstance(file, SinkFile)
        file.close()
        sink.commit()
        assert read_files(tmp_path / str(i)) == {"x": b""}
        with pytest.raises(tx.AlreadyExists):
            open_staging(url, overwrite=False)


def test_a_sink_is_returned_as_it_is(tmp_path: Path) -> None:
    with Staging(tmp_path / "a", overwrite=False) as staging:
        assert open_staging(staging, overwrite=True) is staging
    assert not isinstance(Memory({}), Sink)


def test_a_url_that_cannot_be_written_is_refused_by_name() -> None:
    with pytest.raises(tx.SourceError) as caught:
        open_staging("hdfs://bucket/ckpt", overwrite=False)
    assert str(caught.value) == (
        "templax writes local files; `hdfs://` is not served by this version; "
        "hint: save to a local directory, then copy that"
    )
    with pytest.raises(tx.SourceError, match="writes local files, not those of host `far`"):
        open_staging("file://far/ckpt", overwrite=False)
    with pytest.raises(tx.UsageError, match='Expected a path, got ""'):
        open_staging("", overwrite=False)
    with pytest.raises(tx.UsageError, match="Expected a path"):
        open_staging("a\0b", overwrite=False)
