"""A server on loopback that answers as the Hugging Face Hub does, and its CDN."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

LFS_BYTES = 1000
"""Larger files are at the CDN."""

PAGE = 3
"""Files in one page of a listing, to have several."""


@dataclass
class Repository:
    """A repository: its files at each commit, and what its branches and tags name.

    `gated` is "" if everybody may read it, and else the code with which the Hub refuses.
    """

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    gated: bool = False

    def commit(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Adds a commit of these files, as the last one of a branch; returns its hash."""
        sha = hashlib.sha1(repr((sorted(files.items()), len(self.commits))).encode()).hexdigest()
        self.commits[sha], self.refs[branch] = dict(files), sha
        return sha


@dataclass(frozen=True)
class Request:
    """A request that came: where to, with which range and which token."""

    method: str
    path: str
    range: str | None
    token: str | None
    is_cdn: bool


class Hub:
    """The server; used as a context. `repositories` are by name, `datasets/org/name` for those."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.failures: list[int] = []  # statuses of the next answers
        self.received_bytes = 0
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            is_cdn = False

            def do_GET(self) -> None:
                hub._answer(self)

            def do_POST(self) -> None:
                hub._answer(self)

            def do_HEAD(self) -> None:
                hub._answer(self)

            def log_message(self, *_: object) -> None: ...

        class Cdn(Handler):
            is_cdn = True

        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), kind) for kind in (Handler, Cdn)]
        self.url, self.cdn_url = (
            f"http://{host}:{server.server_address[1]}"
            for host, server in zip(("127.0.0.1", "localhost"), self._servers, strict=True)
        )

    def __enter__(self) -> Hub:
        for server in self._servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def select(self, method: str, part: str, *, is_cdn: bool = False) -> list[Request]:
        """The requests of this method with this in their path."""
        return [
            request
            for request in self.requests
            if request.method == method and part in request.path and request.is_cdn == is_cdn
        ]

    def _answer(self, handler: Any) -> None:
        token = (handler.headers["Authorization"] or "").removeprefix("Bearer ") or None
        body = handler.rfile.read(int(handler.headers["Content-Length"] or 0))
        is_cdn = handler.is_cdn
        self.requests.append(
            Request(handler.command, handler.path, handler.headers["Range"], token, is_cdn)
        )
        if self.failures:
            self._send(handler, self.failures.pop(0), b"")
            return
        url = urlsplit(handler.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        if handler.is_cdn:
            files = [
                f
                for r in self.repositories.values()
                for c in r.commits.values()
                for f in c.values()
            ]
            data = next(f for f in files if hashlib.sha256(f).hexdigest() == parts[0])
            self._send_file(handler, data)
            return
        is_api = parts[0] == "api"
        parts = parts[1:] if is_api else parts
        kind = parts.pop(0) if parts[0] in ("models", "datasets") else "models"
        name, parts = "/".join(parts[:2]), parts[2:]
        found = self.repositories.get(name if kind == "models" else f"{kind}/{name}")
        if found is None or (found.token is not None and token != found.token and not found.gated):
            self._refuse(handler, 401, "RepoNotFound")
            return
        if parts == ["auth-check"]:
            if found.gated and token != found.token:
                self._refuse(handler, 403, "GatedRepo")
            else:
                self._send(handler, 200, b"")
            return
        action, revision, path = parts[0], parts[1], "/".join(parts[2:])
        sha = found.refs.get(revision, revision)
        files = found.commits.get(sha)
        if files is None:
            self._refuse(handler, 404, "RevisionNotFound")
        elif action == "revision":
            what = {"_id": "1", "id": name, "sha": sha, "lastModified": "2026-01-02T03:04:05.000Z"}
            self._send_json(
                handler,
                {
                    **what,
                    "private": False,
                    "gated": found.gated and "manual",
                    "tags": [],
                    "downloads": 0,
                },
            )
        elif action == "tree":
            self._send_tree(handler, files, path, parse_qs(url.query))
        elif action == "paths-info":
            wanted = parse_qs(body.decode()).get("paths", [])
            self._send_json(handler, [_describe(p, files[p]) for p in wanted if p in files])
        elif found.gated and token != found.token:
            self._refuse(handler, 403, "GatedRepo")
        elif path not in files:
            self._refuse(handler, 404, "EntryNotFound")
        elif len(files[path]) > LFS_BYTES:
            digest = hashlib.sha256(files[path]).hexdigest()
            target = f"{self.cdn_url}/{digest}?X-Amz-Signature=secret"
            self._send(handler, 302, b"", Location=target, **{"X-Linked-Etag": f'"{digest}"'})
        else:
            self._send_file(handler, files[path])

    def _send_tree(
        self, handler: Any, files: dict[str, bytes], path: str, query: dict[str, list[str]]
    ) -> None:
        start = f"{path}/" if path else ""
        below = sorted(name for name in files if name.startswith(start))
        if not below:
            self._refuse(handler, 404, "EntryNotFound")
            return
        items = [_describe(name, files[name]) for name in below]
        directories = {
            "/".join(name.split("/")[:depth])
            for name in below
            for depth in range(1, name.count("/") + 1)
        }
        items += [
            {"type": "directory", "oid": "0" * 40, "size": 0, "path": name}
            for name in sorted(directories)
            if name.startswith(start)
        ]
        if query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
            items = [item for item in items if "/" not in item["path"][len(start) :]]
        first = int(query.get("cursor", ["0"])[0])
        headers = {}
        if first + PAGE < len(items):
            base = handler.path.partition("?")[0]
            kept = "&".join(f"{k}={quote(v[0])}" for k, v in query.items() if k != "cursor")
            headers["Link"] = f'<{self.url}{base}?{kept}&cursor={first + PAGE}>; rel="next"'
        self._send_json(handler, items[first : first + PAGE], **headers)

    def _send_file(self, handler: Any, data: bytes) -> None:
        asked = handler.headers["Range"]
        headers = {"ETag": '"of the cdn"', "Last-Modified": "Fri, 02 Jan 2015 00:00:00 GMT"}
        if asked is None:
            self._send(handler, 200, data, **headers)
            return
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start, stop = int(first), min(int(last or len(data)) + 1, len(data))
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        self.received_bytes += stop - start
        self._send(handler, 206, data[start:stop], **headers)

    def _send_json(self, handler: Any, value: object, **headers: str) -> None:
        data = json.dumps(value).encode()
        self._send(handler, 200, data, **{"Content-Type": "application/json", **headers})

    def _refuse(self, handler: Any, status: int, code: str) -> None:
        self._send(handler, status, b"", **{"X-Error-Code": code})

    def _send(self, handler: Any, status: int, data: bytes, **headers: str) -> None:
        handler.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(data)


def _describe(path: str, data: bytes) -> dict[str, Any]:
    oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    found = {"type": "file", "oid": oid, "size": len(data), "path": path}
    if len(data) > LFS_BYTES:
        digest = hashlib.sha256(data).hexdigest()
        found["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 134}
    return found
