"""The few requests that make buckets, which obstore can't."""

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
        return _send("GET", url)[0]
    except (OSError, http.client.HTTPException):
        return None


def make_s3_bucket(url: str, name: str, access_key: str, secret_key: str, region: str) -> None:
    """Makes a bucket, with the signature (version 4) that S3 asks for."""
    now = datetime.now(UTC)
    stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
    nothing = hashlib.sha256(b"").hexdigest()
    headers = {
        "host": urlsplit(url).netloc,
        "x-amz-content-sha256": nothing,
        "x-amz-date": stamp,
    }
    signed = ";".join(headers)
    lines = "".join(f"{field}:{value}\n" for field, value in headers.items())
    request = f"PUT\n/{name}\n\n{lines}\n{signed}\n{nothing}"
    scope = f"{day}/{region}/s3/aws4_request"
    digest = hashlib.sha256(request.encode()).hexdigest()
    key = f"AWS4{secret_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}"
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={access_key}/{scope}, "
        f"SignedHeaders={signed}, Signature={signature}"
    )
    _check(_send("PUT", f"{url}/{name}", headers))


def make_gcs_bucket(url: str, name: str) -> None:
    """Makes a bucket by the JSON API."""
    body = json.dumps({"name": name}).encode()
    headers = {"Content-Type": "application/json"}
    _check(_send("POST", f"{url}/storage/v1/b?project=templax", headers, body))


def make_azure_container(url: str, name: str, account: str, key: str) -> None:
    """Makes a container, with the signature (SharedKey) that Azure asks for."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    lines = "".join(f"{field}:{value}\n" for field, value in headers.items())
    path = f"{urlsplit(url).path}/{name}"
    text = "PUT\n" + "\n" * 11 + f"{lines}/{account}{path}\nrestype:container"
    signature = hmac.digest(base64.b64decode(key), text.encode(), "sha256")
    headers["Authorization"] = f"SharedKey {account}:{base64.b64encode(signature).decode()}"
    _check(_send("PUT", f"{url}/{name}?restype=container", headers))


def _send(
    method: str, url: str, headers: Mapping[str, str] = {}, body: bytes = b""
) -> tuple[int, bytes]:
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
