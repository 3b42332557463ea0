"""Runs on web servers: whether there is nothing to resume from, or the server lists nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

import templax as tx
from web_servers import run_web_servers

TREE = {"w": np.ones(3, np.float32)}

Answer = tuple[int, str, str]
"""Status, content type and page with which a server answers for a directory."""

NOT_FOUND = (404, "text/html", "not found")

Serve = Callable[..., str]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts a server of `tmp_path`; returns its address.

    It answers for directories as a function of their path says; None makes an index page.
    """

    def start(answer: Callable[[str], Answer | None] = lambda _: NOT_FOUND) -> str:
        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *args: object) -> None:
                super().__init__(*args, directory=str(tmp_path))  # pyright: ignore[reportArgumentType]

            def do_GET(self) -> None:
                path = tmp_path / unquote(self.path).strip("/")
                if path.is_file() and not self.path.endswith("/"):
                    return self._send(path.read_bytes(), 200, "application/octet-stream")
                found = answer(self.path) if self.path.endswith("/") else NOT_FOUND
                if found is None:
                    return super().do_GET()
                status, kind, page = found
                return self._send(page.encode(), status, kind)

            do_HEAD = do_GET

            def _send(self, data: bytes, status: int, kind: str) -> None:
                span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "")
                whole, status = len(data), 206 if span and status == 200 else status
                begin, end = map(int, span.groups()) if span else (0, whole - 1)
                data = data[begin : end + 1]
                self.send_response(status)
                if status == 206:
                    self.send_header(
                        "Content-Range", f"bytes {begin}-{begin + len(data) - 1}/{whole}"
                    )
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("Last-Modified", "Sun, 01 Nov 2026 00:00:00 GMT")
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                pass

        return start_server(Handler)

    with run_web_servers() as start_server:
        yield start


def begin() -> dict[str, np.ndarray]:
    return {"w": np.zeros(3, np.float32)}


def make_run(path: Path) -> None:
    with tx.Manager(path) as manager:
        manager.save(1, TREE, wait=True)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (NOT_FOUND, "status 404"),
        ((405, "text/html", "no"), "status 405"),
        ((403, "text/html", "no"), "status 403"),
        ((200, "application/json", "[]"), "the answer is application/json, not text/html"),
        ((200, "text/html", "<title>My app</title>"), "its page links to nothing in it"),
    ],
)
def test_a_run_does_not_begin_anew_where_the_server_lists_nothing(
    serve: Serve, tmp_path: Path, answer: Answer, reason: str
) -> None:
    make_run(tmp_path / "run")
    url = f"{serve(lambda _: answer)}/run"
    told = f"can't list `{url}/`: {reason}"
    manager = tx.Manager(url)
    with pytest.raises(tx.SourceError, match=re.escape(told)):
        manager.restore(TREE, missing=tx.Recipe(begin))
    with pytest.raises(tx.SourceError, match=re.escape(told)):
        manager.steps()
    with pytest.raises(tx.SourceError, match=re.escape(f"can't list `{url}/1/default/`: {reason}")):
        tx.restore(f"{url}/1/default", TREE)


def test_a_home_page_does_not_tell_that_a_run_is_absent(serve: Serve, tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    home = (200, "text/html", '<title>Our models</title><a href="about/">about</a>')
    url = serve(lambda path: home if path == "/" else NOT_FOUND)
    with pytest.raises(tx.SourceError, match="either nothing is there, or the server makes no"):
        tx.Manager(f"{url}/run").restore(TREE, missing=tx.Recipe(begin))


def test_a_run_begins_anew_where_an_index_page_does_not_name_it(
    serve: Serve, tmp_path: Path
) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    url = serve(lambda path: None if (tmp_path / path.strip("/")).is_dir() else NOT_FOUND)
    for name in ("other", "other/run", "run/1/other", "empty"):
        manager = tx.Manager(f"{url}/{name}")
        assert manager.steps() == []
        restored = manager.restore(TREE, missing=tx.Recipe(begin))
        assert restored["w"].tolist() == [0.0] * 3
        assert tx.last_restore().began_anew
    with pytest.raises(tx.NotFound, match="There is nothing at"):
        tx.open(f"{url}/other")
    assert tx.Manager(f"{url}/run").restore(TREE)["w"].tolist() == [1.0] * 3


def test_a_step_without_an_index_page_is_an_error(serve: Serve, tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    url = serve(lambda path: NOT_FOUND if path == "/run/1/" else None)
    with pytest.raises(tx.SourceError, match=r"can.t list .*/run/1/`: status 404"):
        tx.Manager(f"{url}/run").restore(TREE, missing=tx.Recipe(begin))


def test_a_file_opens_where_the_server_lists_nothing(serve: Serve, tmp_path: Path) -> None:
    tx.save(tmp_path / "m.safetensors", TREE)
    url = serve()
    assert tx.restore(f"{url}/m.safetensors", TREE)["w"].tolist() == [1.0] * 3
