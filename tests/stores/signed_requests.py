"""Requests that obstore has no call for: to make buckets, and to look for unfinished uploads."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import formatdate
from urllib.parse import urlsplit


def find_status(url: str) -> int | None:
    """The status with which something at `url` answers a GET; None if nothing does."""
    try:
        return send("GET", url)[0]
    except (OSError, http.client.HTTPException):
        return None


def make_s3_bucket(url: str, name: str, access_key: str, secret_key: str, region: str) -> None:
    """Makes a bucket."""
    _check(send_to_s3("PUT", f"{url}/{name}", access_key, secret_key, region))


def send_to_s3(
    method: str,
    url: str,
    access_key: str,
    secret_key: str,
    region: str,
    headers: Mapping[str, str] = {},
    body: bytes = b"",
) -> tuple[int, bytes]:
    """Sends a request with the signature (version 4) that S3 asks for.

    The path and the query are as they are to be escaped, and the query has one field at most.
    """
    now = datetime.now(UTC)
    stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
    target, content = urlsplit(url), hashlib.sha256(body).hexdigest()
    own = {"host": target.netloc, "x-amz-content-sha256": content, "x-amz-date": stamp}
    amazon = {name: text for name, text in headers.items() if name.startswith("x-amz-")}
    own = dict(sorted({**own, **amazon}.items()))
    query = f"{target.query}=" if target.query and "=" not in target.query else target.query
    signed = ";".join(own)
    lines = "".join(f"{field}:{value}\n" for field, value in own.items())
    request = f"{method}\n{target.path}\n{query}\n{lines}\n{signed}\n{content}"
    scope = f"{day}/{region}/s3/aws4_request"
    digest = hashlib.sha256(request.encode()).hexdigest()
    key = f"AWS4{secret_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}"
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    authorization = (
        f"AWS4-HMAC-SHA256 Credential={access_key}/{scope}, "
        f"SignedHeaders={signed}, Signature={signature}"
    )
    return send(method, url, {**headers, **own, "authorization": authorization}, body)


def make_gcs_bucket(url: str, name: str) -> None:
    """Makes a bucket by the JSON API."""
    body = json.dumps({"name": name}).encode()
    headers = {"Content-Type": "application/json"}
    _check(send("POST", f"{url}/storage/v1/b?project=templax", headers, body))


def make_azure_container(url: str, name: str, account: str, key: str) -> None:
    """Makes a container, with the signature (SharedKey) that Azure asks for."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    lines = "".join(f"{field}:{value}\n" for field, value in headers.items())
    path = f"{urlsplit(url).path}/{name}"
    text = "PUT\n" + "\n" * 11 + f"{lines}/{account}{path}\nrestype:container"
    signature = hmac.digest(base64.b64decode(key), text.encode(), "sha256")
    headers["Authorization"] = f"SharedKey {account}:{base64.b64encode(signature).decode()}"
    _check(send("PUT", f"{url}/{name}?restype=container", headers))


def send(
    method: str, url: str, headers: Mapping[str, str] = {}, body: bytes = b""
) -> tuple[int, bytes]:
    """Sends a request as it is; returns the status and the body of the answer."""
    target = urlsplit(url)
    connection = http.client.HTTPConnection(target.netloc, timeout=10)
    path = target.path or "/"
    if target.query:
        path = f"{path}?{target.query}"
    length = {} if method == "GET" else {"Content-Length": str(len(body))}
    connection.request(method, path, body or None, {**headers, **length})
    response = connection.getresponse()
    result = response.status, response.read()
    connection.close()
    return result


def _check(response: tuple[int, bytes]) -> None:
    status, body = response
    assert status < 300, (status, body[:1000])
