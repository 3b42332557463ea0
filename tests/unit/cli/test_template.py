"""`templax template`: writing a template file."""

import errno
import os
import threading

import pytest

from helpers import run_cli

pytestmark = pytest.mark.usefixtures("in_corpus")

DEFAULT = "orbax-0.12.8-default/ckpt"


def test_template_writes_to_standard_output_and_check_reads_standard_input():
    written = run_cli("template", DEFAULT, "--at", "state.params")
    assert written.exit_code == 0
    result = run_cli("check", DEFAULT, "-", "--at", "state.params", input=written.output)
    assert (result.exit_code, result.output) == (0, f"all 7 leaves match {DEFAULT}\n")


def test_template_without_leaves_is_refused():
    result = run_cli("template", DEFAULT, "--at", "state.parms")
    assert result.exit_code == 2
    assert result.stderr == (
        f"error: Expected leaves under `state.parms`, found none - file `{DEFAULT}`\n"
    )


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "want.json"
    file.write_text("old")
    file.chmod(0o640)
    assert run_cli("template", "nothing", "-o", file).exit_code == 2
    assert file.read_text() == "old"
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", _fill_disk)
        result = run_cli("template", DEFAULT, "-o", file)
    text = f"error: can't write: No space left on device - file `{file}`\n"
    assert (result.exit_code, result.stderr) == (2, text)
    assert [path.name for path in tmp_path.iterdir()] == ["want.json"]
    assert file.read_text() == "old"
    assert run_cli("template", DEFAULT, "-o", file).exit_code == 0
    assert run_cli("check", DEFAULT, file).exit_code == 0
    assert file.stat().st_mode & 0o777 == 0o640


def _fill_disk(partial, file):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_link_and_a_pipe_are_written_to_and_stay(tmp_path):
    target, link, pipe = (tmp_path / name for name in ("target", "link", "pipe"))
    target.write_text("old")
    link.symlink_to(target)
    assert run_cli("template", DEFAULT, "-o", link).exit_code == 0
    assert link.is_symlink()
    os.mkfifo(pipe)
    received = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
    reader.start()
    assert run_cli("template", DEFAULT, "-o", pipe).exit_code == 0
    reader.join()
    assert pipe.is_fifo()
    assert received == [target.read_bytes()] == [run_cli("template", DEFAULT).stdout_bytes]


def test_a_place_that_can_not_be_written_to_is_an_error(tmp_path):
    result = run_cli("template", DEFAULT, "-o", tmp_path / "none" / "want.json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"error: can't write: No such file or directory - file `{tmp_path / 'none' / 'want.json'}`;"
        " hint: make its directory first\n"
    )
