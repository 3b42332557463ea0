"""The part of the XML API of Google Cloud Storage that fake-gcs-server lacks, in front of it.

`python gcs_gateway.py PORT UPSTREAM_PORT`

fake-gcs-server stores objects, counts generations and answers the JSON API, and GET and HEAD of
the XML API. Clients that write by the XML API, as obstore, need more: PUT, DELETE, copies, pages of
lists, multipart uploads, `x-goog-if-generation-match`, If-Match, and the refusal of a body that its
checksum does not fit. This translates them to the JSON API, and passes that on, which TensorStore
speaks; but for simple uploads with a condition, which fake-gcs-server stores without looking at it.
Parts of an upload lie here until the upload is completed.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import sys
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import crc32c

_PIECE_BYTES = 256 * 1024
_PAGE = 1000
_HOP = {"connection", "host", "transfer-encoding", "keep-alive", "expect"}


class _Uploads:
    """Multipart uploads that were begun and neither completed nor aborted."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.parts: dict[str, dict[int, bytes]] = {}
        self.names: dict[str, tuple[str, str]] = {}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    uploads = _Uploads()
    upstream: int

    def log_message(self, format: str, *args: object) -> None:
        del format, args

    def setup(self) -> None:
        super().setup()
        self._store = http.client.HTTPConnection("127.0.0.1", self.upstream)

    def finish(self) -> None:
        super().finish()
        self._store.close()

    def _handle(self) -> None:
        split = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(split.query, True).items()}
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else b""
        name = re.fullmatch(r"/([^/]+)/(.+)", split.path)
        if self.command == "GET" and "list-type" in query and split.path.count("/") == 1:
            self._list(split.path[1:], query)
            return
        if self.command == "GET" and "uploads" in query and split.path.count("/") == 1:
            self._list_uploads(split.path[1:])
            return
        if query.get("uploadType") == "media" and "ifGenerationMatch" in query:
            self._insert_media(split.path, query, body)
            return
        if re.match(r"/(storage|upload|download|batch)/", split.path) or name is None:
            self._pass_on(body)
            return
        bucket, key = unquote(name[1]), unquote(name[2])
        if self.command in ("GET", "HEAD"):
            self._read()
        elif self.command == "DELETE" and "uploadId" in query:
            with self.uploads.lock:
                self.uploads.parts.pop(query["uploadId"], None)
            self._answer(204)
        elif self.command == "DELETE":
            path = f"/storage/v1/b/{bucket}/o/{quote(key, safe='')}"
            self._answer(204 if self._ask("DELETE", path)[0] < 300 else 404)
        elif self.command == "POST" and "uploads" in query:
            self._begin_upload(bucket, key)
        elif self.command == "POST" and "uploadId" in query:
            self._complete_upload(bucket, key, query["uploadId"], body)
        elif self.command == "PUT" and not self._fits(body):
            self._refuse(400, "BadDigest", "The body does not have the checksum that was sent.")
        elif self.command == "PUT" and "uploadId" in query:
            self._put_part(query, body)
        elif self.command == "PUT" and "x-goog-copy-source" in self.headers:
            self._copy(bucket, key)
        elif self.command == "PUT":
            self._put(bucket, key, body)
        else:
            self._refuse(405, "MethodNotAllowed", self.command)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = _handle

    def _fits(self, body: bytes) -> bool:
        sums = {"md5": self.headers.get("Content-MD5")}
        for given in self.headers.get_all("x-goog-hash", []):
            for one in given.split(","):
                algorithm, _, value = one.strip().partition("=")
                sums[algorithm] = value
        actual = {
            "md5": hashlib.md5(body).digest(),
            "crc32c": crc32c.crc32c(body).to_bytes(4, "big"),
        }
        return all(
            value is None or base64.b64decode(value) == actual[algorithm]
            for algorithm, value in sums.items()
        )

    def _read(self) -> None:
        """Passes on a GET or HEAD, unless a condition on the etag forbids it."""
        wanted, unwanted = self.headers.get("If-Match"), self.headers.get("If-None-Match")
        if wanted or unwanted:
            status, headers, _ = self._ask("HEAD", self.path)
            etag = headers.get("Etag", "")
            if status == 200 and wanted and etag not in [one.strip() for one in wanted.split(",")]:
                self._refuse(412, "PreconditionFailed", "The etag is another.")
                return
            if status == 200 and unwanted and etag in [one.strip() for one in unwanted.split(",")]:
                self._answer(304, {"ETag": etag})
                return
        self._pass_on(b"")

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        """A page of a list; a token is the last name or prefix of the page before."""
        after = query.get("continuation-token") or query.get("start-after", "")
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        wanted = {"prefix": prefix, "delimiter": delimiter, "startOffset": after}
        entries: dict[str, str] = {}
        token: str | None = ""
        while token is not None:
            asked = urlencode({key: text for key, text in wanted.items() if text})
            status, _, body = self._ask("GET", f"/storage/v1/b/{bucket}/o?{asked}")
            if status != 200:
                self._refuse(404, "NoSuchBucket", bucket)
                return
            page = json.loads(body)
            for found in page.get("items", []):
                entries[found["name"]] = _describe(found)
            for name in page.get("prefixes", []):
                entries[name] = f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
            token = wanted["pageToken"] = page.get("nextPageToken")
        is_prefix = delimiter and after.endswith(delimiter)
        names = sorted(name for name in entries if name > after)
        names = [name for name in names if not (is_prefix and name.startswith(after))]
        chosen = names[: int(query.get("max-keys", _PAGE))]
        is_cut = len(chosen) < len(names)
        more = (
            f"<NextContinuationToken>{escape(chosen[-1])}</NextContinuationToken>" if is_cut else ""
        )
        self._answer_xml(
            f"<ListBucketResult><Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix>"
            f"<IsTruncated>{str(is_cut).lower()}</IsTruncated>{more}"
            f"{''.join(entries[name] for name in chosen)}</ListBucketResult>"
        )

    def _pass_on(self, body: bytes) -> None:
        headers = {key: value for key, value in self.headers.items() if key.lower() not in _HOP}
        response = self._send(self.command, self.path, body, headers)
        self.send_response(response.status)
        for key, value in response.getheaders():
            if key.lower() not in (*_HOP, "date"):
                self.send_header(key, value)
        if response.getheader("Content-Length") is None:
            text = response.read()
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)
            return
        self.end_headers()
        while piece := response.read(_PIECE_BYTES):
            self.wfile.write(piece)

    def _put(self, bucket: str, key: str, body: bytes) -> None:
        fields = {"name": key, "contentType": self.headers.get("Content-Type")}
        status, stored = self._insert(bucket, fields, body)
        self._answer_stored(status, stored)

    def _insert_media(self, path: str, query: dict[str, str], body: bytes) -> None:
        """An upload by the JSON API, whose condition fake-gcs-server would overlook."""
        fields = {"name": query["name"], "contentType": self.headers.get("Content-Type")}
        bucket = path.split("/")[-2]
        status, answer = self._insert(bucket, fields, body, query["ifGenerationMatch"])
        self._answer(status, {"Content-Type": "application/json"}, answer)

    def _insert(
        self,
        bucket: str,
        fields: dict[str, str | None],
        body: bytes,
        generation: str | None = None,
    ) -> tuple[int, bytes]:
        generation = generation or self.headers.get("x-goog-if-generation-match")
        boundary = uuid.uuid4().hex
        kind = fields["contentType"] or "application/octet-stream"
        metadata = json.dumps({key: value for key, value in fields.items() if value}).encode()
        parts = [
            f"--{boundary}\r\nContent-Type: application/json\r\n\r\n".encode(),
            metadata,
            f"\r\n--{boundary}\r\nContent-Type: {kind}\r\n\r\n".encode(),
            body,
            f"\r\n--{boundary}--\r\n".encode(),
        ]
        path = f"/upload/storage/v1/b/{bucket}/o?uploadType=multipart"
        if generation is not None:
            path += f"&ifGenerationMatch={generation}"
        related = {"Content-Type": f"multipart/related; boundary={boundary}"}
        status, _, answer = self._ask("POST", path, b"".join(parts), related)
        return status, answer

    def _copy(self, bucket: str, key: str) -> None:
        source, _, name = unquote(self.headers["x-goog-copy-source"]).lstrip("/").partition("/")
        path = f"/storage/v1/b/{source}/o/{quote(name, safe='')}?alt=media"
        status, headers, body = self._ask("GET", path)
        if status >= 300:
            self._refuse(404, "NoSuchKey", name)
            return
        fields = {"name": key, "contentType": headers.get("Content-Type")}
        status, stored = self._insert(bucket, fields, body)
        self._answer_stored(status, stored)

    def _begin_upload(self, bucket: str, key: str) -> None:
        number = uuid.uuid4().hex
        with self.uploads.lock:
            self.uploads.parts[number] = {}
            self.uploads.names[number] = bucket, key
        self._answer_xml(
            f"<InitiateMultipartUploadResult><Bucket>{bucket}</Bucket><Key>{escape(key)}</Key>"
            f"<UploadId>{number}</UploadId></InitiateMultipartUploadResult>"
        )

    def _list_uploads(self, bucket: str) -> None:
        with self.uploads.lock:
            begun = [(number, *self.uploads.names[number]) for number in self.uploads.parts]
        found = "".join(
            f"<Upload><Key>{escape(key)}</Key><UploadId>{number}</UploadId></Upload>"
            for number, place, key in begun
            if place == bucket
        )
        self._answer_xml(f"<ListMultipartUploadsResult>{found}</ListMultipartUploadsResult>")

    def _put_part(self, query: dict[str, str], body: bytes) -> None:
        with self.uploads.lock:
            parts = self.uploads.parts.get(query["uploadId"])
            if parts is not None:
                parts[int(query["partNumber"])] = body
        if parts is None:
            self._refuse(404, "NoSuchUpload", query["uploadId"])
            return
        self._answer(200, {"ETag": _part_etag(body)})

    def _complete_upload(self, bucket: str, key: str, number: str, body: bytes) -> None:
        with self.uploads.lock:
            parts = self.uploads.parts.get(number)
        if parts is None:
            self._refuse(404, "NoSuchUpload", number)
            return
        chosen = []
        for part in ElementTree.fromstring(body).iter():
            if part.tag.rpartition("}")[2] != "Part":
                continue
            found = {field.tag.rpartition("}")[2]: field.text or "" for field in part}
            data = parts.get(int(found["PartNumber"]))
            if data is None or _part_etag(data).strip('"') != found["ETag"].strip('"'):
                self._refuse(400, "InvalidPart", found["PartNumber"])
                return
            chosen.append(data)
        fields = {"name": key, "contentType": None}
        status, stored = self._insert(bucket, fields, b"".join(chosen))
        if status >= 300:
            self._answer_stored(status, stored)
            return
        with self.uploads.lock:
            self.uploads.parts.pop(number, None)
        resource = json.loads(stored)
        self._answer_xml(
            f"<CompleteMultipartUploadResult><Bucket>{bucket}</Bucket><Key>{escape(key)}</Key>"
            f'<ETag>"{resource["etag"]}"</ETag></CompleteMultipartUploadResult>',
            {"x-goog-generation": resource["generation"]},
        )

    def _answer_stored(self, status: int, stored: bytes) -> None:
        if status == 412:
            self._refuse(412, "PreconditionFailed", "The generation is another.")
        elif status >= 300:
            self._refuse(404 if status == 404 else status, "NoSuchBucket", stored.decode()[:200])
        else:
            resource = json.loads(stored)
            sums = f"crc32c={resource['crc32c']},md5={resource['md5Hash']}"
            headers = {"ETag": f'"{resource["etag"]}"', "x-goog-hash": sums}
            self._answer(200, {**headers, "x-goog-generation": resource["generation"]})

    def _ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        response = self._send(method, path, body, headers or {})
        return response.status, response.headers, response.read()

    def _send(
        self, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> http.client.HTTPResponse:
        try:
            self._store.request(method, path, body or None, headers)
            return self._store.getresponse()
        except ConnectionError:  # fake-gcs-server ends a connection on which it answered 416
            self._store.close()
            self._store.request(method, path, body or None, headers)
            return self._store.getresponse()

    def _refuse(self, status: int, code: str, message: str) -> None:
        text = f"<Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>"
        self._answer_xml(text, status=status)

    def _answer_xml(
        self, text: str, headers: dict[str, str] | None = None, status: int = 200
    ) -> None:
        declared = f'<?xml version="1.0" encoding="UTF-8"?>{text}'.encode()
        self._answer(status, {"Content-Type": "application/xml", **(headers or {})}, declared)

    def _answer(
        self, status: int, headers: dict[str, str] | None = None, body: bytes = b""
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _describe(found: dict[str, str]) -> str:
    return (
        f"<Contents><Key>{escape(found['name'])}</Key><Size>{found['size']}</Size>"
        f'<Generation>{found["generation"]}</Generation><ETag>"{found["etag"]}"</ETag>'
        f"<LastModified>{found['updated']}</LastModified></Contents>"
    )


def _part_etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


class _Gateway(ThreadingHTTPServer):
    request_queue_size = 512


if __name__ == "__main__":
    _Handler.upstream = int(sys.argv[2])
    _Gateway(("127.0.0.1", int(sys.argv[1])), _Handler).serve_forever()
