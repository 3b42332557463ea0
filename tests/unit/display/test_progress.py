"""The line that shows the progress of a call."""

import io
import sys

import numpy as np
import pytest

import templax as tx


class Terminal(io.StringIO):
    def isatty(self):
        return True


class NotebookStream(io.StringIO):
    """As a Jupyter kernel has it: not a terminal, but seen as it is written."""


NotebookStream.__module__ = "ipykernel.iostream"


@pytest.mark.parametrize("stream", [Terminal, NotebookStream])
def test_a_line_is_rewritten_and_removed_at_the_end(monkeypatch, stream):
    shown = stream()
    monkeypatch.setattr(sys, "stderr", shown)
    tx.show_progress(5, 10)
    tx.show_progress(3 * 2**30, 12 * 2**30)
    tx.show_progress(10, 10)
    texts = ("  5 B of 10 B (50%)", "  3.0 GiB of 12.0 GiB (25%)", "")
    assert shown.getvalue() == "".join(f"\r{text.ljust(34)}\r" for text in texts)


def test_the_longest_line_leaves_nothing_behind(monkeypatch):
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    tx.show_progress(1023 * 2**30 + 2**29, 1023 * 2**30 + 2**30 - 1)
    assert max(map(len, shown.getvalue().split("\r"))) <= 34


def test_nothing_is_written_to_a_file_or_without_a_console(monkeypatch, capsys, tmp_path):
    tx.show_progress(5, 10)
    tx.save(tmp_path / "ckpt", {"w": np.ones(3)}, on_progress=tx.show_progress)
    tx.restore(tmp_path / "ckpt", {"w": np.zeros(3)}, on_progress=tx.show_progress)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys, "stderr", None)
    tx.show_progress(5, 10)
