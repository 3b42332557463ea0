"""Pages by which web servers list directories: failures that pass, and redirects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler

import pytest

import templax as tx
from templax.storage import HTTP, ObjectSource
from web_servers import run_web_servers

PAGE = b'<a href="w">w</a>'

Answer = Callable[[BaseHTTPRequestHandler], None]

Serve = Callable[[Answer], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server that answers GET as a function says; returns its address."""

    def start(answer: Answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer(self)

            def do_HEAD(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", "1")
                self.send_header("Last-Modified", "Sun, 01 Nov 2026 00:00:00 GMT")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        return start_server(Handler)

    with run_web_servers() as start_server:
        yield start


def send_page(handler: BaseHTTPRequestHandler, length: int = len(PAGE)) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "text/html")
    handler.send_header("Content-Length", str(length))
    handler.end_headers()
    handler.wfile.write(PAGE)


def refuse(handler: BaseHTTPRequestHandler) -> None:
    handler.send_error(503)


def cut(handler: BaseHTTPRequestHandler) -> None:
    send_page(handler, len(PAGE) + 10)


def close(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


def list_names(url: str, **settings: object) -> list[str]:
    source = ObjectSource(HTTP(**settings), f"{url}/run")  # pyright: ignore[reportArgumentType]
    return [info.key for info in source.children()]


@pytest.mark.parametrize("fail", [refuse, cut, close])
def test_a_page_that_fails_once_is_asked_for_again(serve: Serve, fail: Answer) -> None:
    failed: set[str] = set()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if handler.path in failed:
            send_page(handler)
        else:
            failed.add(handler.path)
            fail(handler)

    assert list_names(serve(answer)) == ["w"]


def test_a_page_that_is_refused_is_not_asked_for_again(serve: Serve) -> None:
    asked: list[str] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        handler.send_error(403)

    with pytest.raises(tx.SourceError, match="status 403"):
        list_names(serve(answer))
    assert asked == ["/run/"]


def test_headers_are_not_sent_to_another_host(serve: Serve) -> None:
    seen: list[str | None] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        seen.append(handler.headers["Authorization"])
        send_page(handler)

    other = serve(answer)

    def redirect(handler: BaseHTTPRequestHandler) -> None:
        seen.append(handler.headers["Authorization"])
        handler.send_response(302)
        handler.send_header("Location", f"{other}{handler.path}")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    list_names(serve(redirect), headers={"Authorization": "Bearer secret"})
    assert seen
    assert set(seen[::2]) == {"Bearer secret"}
    assert set(seen[1::2]) == {None}


def test_pages_that_link_to_directories_without_end_are_refused(serve: Serve) -> None:
    """As a server makes them of a link to the directory that it is in."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        page = b'<a href="again/">again</a>'
        handler.send_response(200)
        handler.send_header("Content-Type", "text/html")
        handler.send_header("Content-Length", str(len(page)))
        handler.end_headers()
        handler.wfile.write(page)

    source = ObjectSource(HTTP(), f"{serve(answer)}/run")
    with pytest.raises(tx.SourceError, match="directories more than 64 deep, such as `run/again/"):
        list(source.walk())
