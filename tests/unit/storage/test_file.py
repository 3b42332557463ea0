"""Single files that a user names: read whole, and written at once."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

import templax as tx
from helpers import run_cli
from templax.storage import file as single
from templax.storage.file import read_file, write_file


def test_a_file_and_a_pipe_are_read_to_their_end(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"data")
    assert read_file(str(tmp_path / "file"), "a template file") == b"data"
    reader, writer = os.pipe()

    def write() -> None:
        for _ in range(3):
            os.write(writer, b"x" * 100_000)
        os.close(writer)

    thread = threading.Thread(target=write)
    thread.start()
    assert read_file(f"/dev/fd/{reader}", "a template file") == b"x" * 300_000
    thread.join()
    os.close(reader)


def test_what_is_no_file_is_refused_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"x" * 11)
    monkeypatch.setattr(single, "MAX_BYTES", 10)
    found = {
        tmp_path / "pipe": "expected a template file, got a pipe to which nobody writes",
        tmp_path: "Is a directory",
        "/dev/zero": "expected a template file, got a device",
        tmp_path / "large": "expected a template file, got 11 bytes, more than 10",
        tmp_path / "large" / "x": "Not a directory",
    }
    for path, text in found.items():
        result = run_cli("check", "ckpt", path)
        assert (result.exit_code, result.stderr) == (2, f"error: can't read `{path}`: {text}\n")
    result = run_cli("check", "ckpt", tmp_path / "none")
    text = f"error: Expected a template file, found nothing - file `{tmp_path / 'none'}`\n"
    assert (result.exit_code, result.stderr) == (2, text)


def test_a_file_that_somebody_has_prepared_is_not_written_through(tmp_path: Path) -> None:
    """Where others may write, they could put links under names that can be known beforehand."""
    (tmp_path / "precious").write_text("p")
    file = tmp_path / "t.json"
    (tmp_path / f".t.json.{os.getpid()}").symlink_to("precious")
    tx.save_template({"w": np.zeros(2, np.float32)}, file)
    assert (tmp_path / "precious").read_text() == "p"
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("path", ["/", "/none/x", "{}", "{}/a/b", "\ud800"])
def test_a_place_where_nothing_can_be_written_is_an_error(tmp_path: Path, path: str) -> None:
    (tmp_path / "a").write_text("a file")
    with pytest.raises(tx.SaveError, match=r"^can't write: "):
        write_file(path.format(tmp_path), b"data")
    assert [found.name for found in tmp_path.iterdir()] == ["a"]
