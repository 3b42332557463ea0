"""What a handler of the caller's own has written is on the disk before the commit."""

import os

from templax._save import foreign_items


def test_files_are_synced_and_what_is_no_file_is_passed_over(tmp_path, monkeypatch):
    """To open a pipe would wait for ever; a link may lead anywhere."""
    (tmp_path / "sub").mkdir()
    for name in ("a", "sub/b"):
        (tmp_path / name).write_text(name)
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.write_text("of somebody else")
    (tmp_path / "link").symlink_to(outside)
    os.mkfifo(tmp_path / "pipe")
    synced: list[tuple[int, int]] = []

    def note(fd: int) -> None:
        synced.append((os.fstat(fd).st_dev, os.fstat(fd).st_ino))

    monkeypatch.setattr(foreign_items.os, "fsync", note)
    foreign_items._sync_tree(str(tmp_path))
    inodes = {inode for _, inode in synced}
    assert {os.stat(tmp_path / name).st_ino for name in ("a", "sub/b")} <= inodes
    assert os.stat(outside).st_ino not in inodes
