"""The objects that the index pages of a web server link to, as it has no other listings."""

from __future__ import annotations

import asyncio
import http.client
import re
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from html.parser import HTMLParser
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urljoin, urlsplit

from ..errors import SourceError
from .request_errors import TRANSIENT, redact
from .requests import Requests

MAX_LINKS = 10_000
"""Pages with more links are refused."""

_MAX_DEPTH = 64
"""Directories in directories that are listed; a page that links to itself has no end of them."""

_MAX_PAGE_BYTES = 1 << 24

_TIMEOUT_S = 30

_GENERATED = re.compile(
    r"<title>\s*(?:Index of|Directory listing for)\s|<div\s[^>]*id=.summary.", re.IGNORECASE
)
"""Marks the index pages of nginx, Apache, lighttpd and Python, and those of Caddy.

Anything else may be a page that somebody wrote, which need not link to all that is there.
"""


class _NoPageError(SourceError):
    """The server has no index page of a directory: the directory may be there or not."""


class _Page(NamedTuple):
    """An index page.

    Attributes:
        names: What it links to in its directory; the names of directories end in `/`.
        is_generated: Whether the server made it, so that it names all that is there.
    """

    names: list[str]
    is_generated: bool


class WebRequests(Requests):
    """Requests to a web server. Directories are listed from its index pages.

    nginx, Apache, Caddy and Python's own server can make such pages. A HEAD request finds the size
    and version of each object that a page links to.
    """

    headers: Mapping[str, str] = {}

    async def describe_meta(self, path: str) -> Any:
        """See `Requests`. A redirect to the same address with a slash means a directory."""
        try:
            return await super().describe_meta(path)
        except SourceError as error:
            if "status 3" not in str(error):
                raise
            target = await asyncio.to_thread(self._find_target, path)
            if target is None:
                return None
            raise SourceError(
                f"can't read `{self.url}/{path}`: it has moved; hint: open {target}"
            ) from error

    async def list_level(self, prefix: str) -> tuple[list[str], list[Any]]:
        """See `Requests`. What is not there, or is an object, is listed as an empty directory.

        Raises:
            SourceError: The server has no index page, so that the directory may or may not exist.
        """
        try:
            links = (await self._fetch_page(prefix)).names
        except _NoPageError as error:
            if not await self._is_object(prefix) and not await self._is_absent(prefix):
                raise SourceError(str(error)) from error
            links = []
        start = f"{prefix}/" if prefix else ""
        directories = [start + link[:-1] for link in links if link.endswith("/")]
        paths = [start + link for link in links if not link.endswith("/")]
        found = await asyncio.gather(*map(self.describe_meta, paths))
        return directories, [meta for meta in found if meta is not None]

    async def list_all(self, prefix: str, chunk: int = 1000) -> AsyncIterator[list[Any]]:
        """See `Requests`. Directories more than `_MAX_DEPTH` deep are refused."""
        pending, batch = [prefix], list[Any]()
        deepest = prefix.count("/") + _MAX_DEPTH
        while pending:
            directories, objects = await self.list_level(pending.pop())
            if directories and directories[0].count("/") > deepest:
                raise SourceError(
                    f"can't list `{self.url}/{prefix}`: its pages link to directories more than"
                    f" {_MAX_DEPTH} deep, such as `{directories[0][:200]}`"
                )
            pending += directories
            batch += objects
            while len(batch) >= chunk:
                yield batch[:chunk]
                del batch[:chunk]
        if batch:
            yield batch

    async def _is_object(self, path: str) -> bool:
        with suppress(SourceError):
            return bool(path) and await self.describe_meta(path) is not None
        return False

    async def _is_absent(self, path: str) -> bool:
        """Whether the index page of the nearest directory above that has one does not name a path.

        Many servers answer 404 for each directory, as they make no index pages.
        """
        while path:
            path, _, name = path.rpartition("/")
            with suppress(_NoPageError):
                page = await self._fetch_page(path)
                return page.is_generated and not {name, f"{name}/"} & {*page.names}
        return False

    async def _fetch_page(self, prefix: str) -> _Page:
        """The index page of a directory.

        Raises:
            _NoPageError: There is none.
            SourceError: The server refused, or failed.
        """

        async def read() -> _Page:
            return await asyncio.to_thread(self._read_page, prefix)

        return await self.repeat(read, f"{prefix}/" if prefix else "", "list")

    def _find_target(self, path: str) -> str | None:
        """Where a redirect leads to; None if that is a directory of this name."""
        url = f"{self.url}/{quote(path)}"
        request = urllib.request.Request(url, headers=dict(self.headers), method="HEAD")
        try:
            with _opener.open(request, timeout=_TIMEOUT_S) as answer:
                target: str = answer.geturl()
        except OSError as error:
            raise SourceError(f"can't read `{url}`: {error}") from error
        return None if target == f"{url}/" else redact(target)

    def _read_page(self, prefix: str) -> _Page:
        url = f"{self.url}/{quote(prefix)}/" if prefix else f"{self.url}/"
        request = urllib.request.Request(url, headers={"Accept": "text/html", **self.headers})
        try:
            with _opener.open(request, timeout=_TIMEOUT_S) as answer:
                kind = answer.headers.get_content_type()
                data: bytes = answer.read(_MAX_PAGE_BYTES)
                missing: int = answer.length or 0  # `read` with a size tells of no cut
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (404, 405, 410):
                raise _no_page(url, f"status {error.code}") from error
            if error.code in TRANSIENT:
                raise ConnectionError(f"status {error.code}") from error
            raise SourceError(f"can't list `{url}`: status {error.code}") from error
        except http.client.HTTPException as error:
            raise ConnectionError(f"the answer is cut: {error}") from error
        except OSError as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, (TimeoutError, ConnectionError)):
                raise ConnectionError(str(reason)) from error
            raise SourceError(f"can't list `{url}`: {error}") from error
        if kind != "text/html":
            raise _no_page(url, f"the answer is {kind}, not text/html")
        if len(data) == _MAX_PAGE_BYTES:
            raise SourceError(f"can't list `{url}`: its page has more than 16 MiB")
        if missing:
            raise ConnectionError(f"the page ended {missing} bytes early")
        links, text = _Links(), data.decode("utf-8", "replace")
        links.feed(text)
        if len(links.found) > MAX_LINKS:
            raise SourceError(f"can't list `{url}`: its page has more than {MAX_LINKS:,} links")
        base = urlsplit(url)
        names: dict[str, None] = {}
        for link in links.found:
            parts = urlsplit(urljoin(url, link))
            inside = parts.path.removeprefix(base.path)
            if parts.netloc == base.netloc and parts.path != inside and not parts.query:
                name = unquote(inside)
                if name.strip("/") and "/" not in name.rstrip("/"):
                    names[name] = None
        is_generated = _GENERATED.search(text) is not None
        if not names and not is_generated:
            raise _no_page(url, "its page links to nothing in it")
        return _Page(sorted(names), is_generated)


def _no_page(url: str, reason: str) -> _NoPageError:
    return _NoPageError(
        f"can't list `{url}`: {reason}; either nothing is there, or the server makes no index page"
        " of this directory; hint: let the server make index pages, or open a file by its address"
    )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but shows the headers of the user to no other host."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: Any,
        code: int,
        msg: str,
        headers: Any,
        newurl: str,
    ) -> urllib.request.Request | None:
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and urlsplit(newurl)[:2] != urlsplit(req.full_url)[:2]:
            request.headers = {"Accept": "text/html"}
        return request


_opener = urllib.request.build_opener(_Redirects)


class _Links(HTMLParser):
    """The targets of the links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found += [value for name, value in attrs if name == "href" and value]
