"""Local files: links, and what the file system refuses."""

from __future__ import annotations

import copy
import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import templax as tx
from templax import CheckpointError, NotFound, SourceError
from templax.storage import Local


def catch_way_out(source: Local, key: str) -> str:
    """The error of everything that reads `key`, a link that leads out."""
    texts: set[str] = set()
    for read in (source.read, source.stat, lambda key: source.view(key, 0, 1)):
        with pytest.raises(SourceError) as caught:
            read(key)
        texts.add(str(caught.value))
    (text,) = texts
    return text


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root" / "a").mkdir(parents=True)
    (tmp_path / "root" / "a" / "x").write_bytes(b"1")
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "key").write_bytes(b"secret")
    return tmp_path / "root"


@pytest.mark.parametrize("link", ["x", "a/up/key", "a/up"])
def test_a_link_out_of_the_root_is_refused_by_name(root: Path, link: str) -> None:
    private = root.parent / "private"
    at, target = (root / "x", private / "key") if link == "x" else (root / "a" / "up", private)
    at.symlink_to(target)
    with pytest.raises(SourceError) as caught:
        Local(root).stat(link)
    assert str(caught.value) == (
        f"can't read `{at}`: it is a link that leads out of {root}, to `{target}`; hint: if you"
        f" trust it, open templax.storage.Local({str(root)!r}, follow_links=True), or give the"
        " command --follow-links"
    )
    if link != "a/up":
        assert catch_way_out(Local(root), link) == str(caught.value)


def test_following_the_hint_reads_what_a_link_leads_to(root: Path) -> None:
    (root / "x").symlink_to(root.parent / "private" / "key")
    (root / "d").symlink_to(root.parent / "private")
    asked = Local(root, follow_links=True)
    assert bytes(asked.read("x")) == bytes(asked.read("d/key")) == b"secret"
    assert {info.key for info in asked.walk()} == {"x", "a/x", "d/key"}
    assert bytes(copy.copy(asked).read("x")) == b"secret"
    assert bytes(asked.at("a").at("..").read("x")) == b"secret"


def test_a_root_that_is_a_link_is_read_like_its_target(root: Path) -> None:
    link = root.parent / "link"
    link.symlink_to("root")
    (root / "x").symlink_to("a/x")
    assert bytes(Local(link).read("a/x")) == bytes(Local(link).read("x")) == b"1"
    (root.parent / "file").symlink_to(root / "a" / "x")
    assert bytes(Local(root.parent / "file").read("")) == b"1"


def test_links_inside_the_root_are_followed(root: Path) -> None:
    (root / "b").symlink_to("a")
    (root / "c").symlink_to(root / "a" / "x")
    source = Local(root)
    assert bytes(source.read("b/x")) == bytes(source.read("c")) == b"1"
    assert {info.key for info in source.walk()} == {"a/x", "b/x", "c"}
    assert [info.key for info in source.children("b/")] == ["b/x"]


def test_a_path_named_through_a_link_is_a_root_of_its_own(root: Path) -> None:
    """Such as a step of a run that was moved elsewhere, and linked."""
    (root / "5").symlink_to(root.parent / "private")
    assert [info.key for info in Local(root).children()] == ["5/", "a/"]
    assert bytes(Local(root).at("5").read("key")) == b"secret"


def test_a_snapshot_of_hugging_face_is_read_and_stays_in_its_repository(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    snapshot, blobs = repository / "snapshots" / "0a1b", repository / "blobs"
    (snapshot / "ckpt").mkdir(parents=True)
    blobs.mkdir()
    (blobs / "f00d").write_bytes(b"weights")
    (tmp_path / "private").write_bytes(b"secret")
    (snapshot / "w").symlink_to("../../blobs/f00d")
    (snapshot / "ckpt" / "w").symlink_to("../../../blobs/f00d")
    (snapshot / "ckpt" / "out").symlink_to("../../../../private")
    (tmp_path / "link").symlink_to(snapshot)
    for path, key in ((snapshot, "w"), (snapshot, "ckpt/w"), (tmp_path / "link", "ckpt/w")):
        assert bytes(Local(path).read(key)) == b"weights"
    assert bytes(Local(snapshot / "ckpt").read("w")) == b"weights"
    assert bytes(Local(snapshot / "w").read("")) == b"weights"
    for path, key in ((snapshot, "ckpt/out"), (snapshot / "ckpt", "out")):
        assert f"leads out of {path}, to `{tmp_path / 'private'}`" in catch_way_out(
            Local(path), key
        )


def test_blobs_that_are_a_link_elsewhere_are_not_those_of_the_snapshot(root: Path) -> None:
    (root / "snapshots" / "0a").mkdir(parents=True)
    (root / "blobs").symlink_to(root.parent / "private")
    (root / "snapshots" / "0a" / "w").symlink_to("../../blobs/key")
    catch_way_out(Local(root / "snapshots" / "0a"), "w")


def test_what_a_walk_does_not_list_is_yielded_with_its_problem(root: Path) -> None:
    (root / "a" / "out").symlink_to(root.parent / "private")
    (root / "a" / "gone").symlink_to("nowhere")
    (root / "a" / "loop").symlink_to("loop")
    (root / "a" / "up").symlink_to("..")
    problems = {info.key: info.problem for info in Local(root).walk()}
    assert problems.pop("a/x") is None
    assert {key: type(problem) for key, problem in problems.items()} == {
        "a/gone": NotFound,
        "a/loop": NotFound,
        "a/out": SourceError,
        "a/up": SourceError,
    }
    assert str(problems["a/up"]) == (
        f"can't read `{root / 'a' / 'up'}`: it is a link to a directory around it"
    )


@pytest.mark.slow
def test_a_lattice_of_links_is_walked_in_bounded_time(tmp_path: Path) -> None:
    for level in range(24):
        (tmp_path / f"{level}").mkdir()
        for name in ("a", "b"):
            (tmp_path / f"{level}" / name).symlink_to(f"../{level + 1}")
    (tmp_path / "24").mkdir()
    (tmp_path / "24" / "x").write_bytes(b"1")
    found = list(Local(tmp_path).walk())
    assert len(found) < 1000
    assert "more than 256 links to directories" in str(found[-1].problem)


def test_an_unreadable_directory_below_is_a_problem_and_not_the_end(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "b").mkdir()
    real = os.scandir

    def scandir(path: str) -> object:
        if path == f"{root}/b/":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    problems = {info.key: info.problem for info in Local(root).walk()}
    assert problems.pop("a/x") is None
    assert str(problems["b"]) == f"can't read `{root}/b/`: Input/output error"


@pytest.mark.parametrize("code", [errno.EIO, errno.ELOOP, errno.ENAMETOOLONG, errno.ESTALE])
def test_every_error_of_the_system_names_the_path(
    root: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(path: str, *_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code), path)

    source = Local(root)
    with monkeypatch.context() as patch:
        for name in ("open", "stat", "scandir"):
            patch.setattr(os, name, refuse)
        for read in (
            lambda: source.read("a/x"),
            lambda: source.stat("a/x"),
            lambda: list(source.children("a/")),
            lambda: list(source.walk("a/")),
            lambda: source.view("a/x", 0, 1),
        ):
            if source.maps or read.__code__.co_names[-1] != "view":
                with pytest.raises(SourceError) as caught:
                    read()
                assert str(caught.value) in (
                    f"can't read `{root}/a/x`: {os.strerror(code)}",
                    f"can't read `{root}/a/`: {os.strerror(code)}",
                )


@pytest.mark.parametrize("path", ["\ud800", "a" * 5000, "a\0b"])
def test_a_path_that_no_file_can_have_is_refused(path: str) -> None:
    with pytest.raises((SourceError, tx.UsageError)):
        tx.open(path)
    with pytest.raises((SourceError, CheckpointError)):
        Local(".").read(path)


def test_a_relative_path_in_a_directory_that_is_gone_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(tx.UsageError, match="working directory that no longer exists"):
        tx.open("ckpt")
    with pytest.raises(tx.UsageError, match="working directory that no longer exists"):
        tx.save("ckpt", {"a": np.ones(2)})


@pytest.mark.parametrize(
    "call",
    [
        lambda: tx.Manager("\ud800"),
        lambda: tx.save("\ud800", {"a": np.ones(2)}),
        lambda: tx.save_template({"\ud800": np.ones(2, np.float32)}, "t.json"),
    ],
    ids=["manager", "save", "template"],
)
def test_lone_surrogates_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(tx.UsageError, match="got '"):
        call()
    assert list(tmp_path.iterdir()) == []
