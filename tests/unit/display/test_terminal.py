"""What goes to a terminal."""


def test_the_progress_line_is_erased_at_the_end(monkeypatch, capsys):
    from templax._display.terminal import echo_progress

    echo_progress(5, 10)
    echo_progress(10, 10)
    assert capsys.readouterr().err == "\r  5 of 10 bytes (50%)\x1b[K\r\x1b[K"
