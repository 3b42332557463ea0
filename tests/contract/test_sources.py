"""Every source fulfils `SourceContract`; local files have more to fulfil."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import templax as tx
from templax import SourceError, UnknownFormat, UsageError
from templax.storage import Local, Memory, Source, open_source
from templax.storage.head import KeptHead
from templax.testing import SourceContract


class TestMemory(SourceContract):
    def make(self, objects: Mapping[str, bytes]) -> Source:
        return Memory(objects)


class TestKeptHead(SourceContract):
    def make(self, objects: Mapping[str, bytes]) -> Source:
        return KeptHead(Memory(objects))

    def test_the_head_of_a_file_is_read_once(self) -> None:
        data = bytes(range(256)) * 32
        memory = Memory({"": data})
        reads: list[tuple[int, int | None]] = []
        read = memory.read

        def record(key: str, start: int = 0, stop: int | None = None, out: Any = None) -> Any:
            reads.append((start, stop))
            return read(key, start, stop, out)

        memory.read = record  # pyright: ignore[reportAttributeAccessIssue]
        source = KeptHead(memory)
        for start, stop in [(0, 8), (0, 4096), (100, 512), (4000, 4100), (8000, 8192)]:
            assert source.read("", start, stop) == data[start:stop]
        assert reads == [(0, 4096), (4000, 4100), (8000, 8192)]


class TestLocal(SourceContract):
    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path: Path) -> None:
        self.root = tmp_path / "root"

    def make(self, objects: Mapping[str, bytes]) -> Source:
        for key, data in objects.items():
            path = self.root / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return Local(self.root)

    def test_a_file_that_changes_between_reads_is_an_error(self) -> None:
        source = self.make({"x": b"old."})
        source.read("x", 0, 2)
        os.truncate(self.root / "x", 0)
        (self.root / "x").write_bytes(b"other")
        with pytest.raises(SourceError, match="changed since"):
            source.read("x", 2, 4)

    def test_a_file_replaced_by_rename_between_reads_is_an_error(self) -> None:
        source = self.make({"x": b"old.", "y": b"new!"})
        source.read("x", 0, 2)
        os.replace(self.root / "y", self.root / "x")
        with pytest.raises(SourceError, match="changed since"):
            source.read("x", 2, 4)

    def test_a_relative_root_survives_a_change_of_directory(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        self.make({"x": b"data"})
        monkeypatch.chdir(self.root.parent)
        source = Local("root")
        monkeypatch.chdir("/")
        assert bytes(source.read("x")) == b"data"

    def test_a_loop_of_links_is_not_followed_forever(self) -> None:
        source = self.make({"a/x": b"1"})
        (self.root / "a" / "up").symlink_to(self.root, target_is_directory=True)
        assert {i.key for i in source.walk()} >= {"a/x"}
        assert len(list(source.walk())) < 10

    def test_links_to_files_elsewhere_are_followed_if_asked_for(self, tmp_path: Path) -> None:
        source = self.make({"a": b"1"})
        (tmp_path / "blob").write_bytes(b"far")
        (self.root / "link").symlink_to(tmp_path / "blob")
        with pytest.raises(SourceError, match="a link that leads out"):
            source.read("link")
        assert bytes(Local(self.root, follow_links=True).read("link")) == b"far"


def test_paths_and_file_urls_are_local(tmp_path: Path) -> None:
    """A str, a PathLike, `~` and file://."""
    (tmp_path / "x").write_bytes(b"1")
    for url in (str(tmp_path), tmp_path, f"file://{tmp_path}"):
        assert bytes(open_source(url).read("x")) == b"1"
    assert "~" not in open_source("~/nowhere").url


def test_file_urls_are_decoded(tmp_path: Path) -> None:
    """As `Path.as_uri` writes them, and with the name of this host."""
    directory = tmp_path / "sp ace %41"
    directory.mkdir()
    (directory / "x").write_bytes(b"1")
    uri = directory.as_uri()
    for url in (uri, uri.replace("file://", "file://localhost"), uri.replace("file:", "FILE:")):
        assert bytes(open_source(url).read("x")) == b"1"
    with pytest.raises(SourceError, match="not those of host `far`"):
        open_source(uri.replace("file://", "file://far"))


def test_links_to_nothing_and_to_themselves_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "nothing").symlink_to(tmp_path / "nowhere")
    assert [info.key for info in open_source(tmp_path).children()] == ["a"]
    with pytest.raises(UnknownFormat, match="got a directory of `a`"):
        tx.open(tmp_path)


def test_the_empty_path_is_not_the_current_directory() -> None:
    """An unset variable must not load whatever is in the working directory."""
    with pytest.raises(UsageError, match='Expected a path, got ""'):
        open_source("")


def test_an_unsupported_scheme_is_named() -> None:
    with pytest.raises(SourceError) as error:
        open_source("hdfs://bucket/ckpt")
    assert str(error.value) == (
        "templax reads local files; `hdfs://` is not served by this version; "
        "hint: copy the checkpoint to a local directory"
    )
