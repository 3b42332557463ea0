"""How templax reaches the servers of the tests."""

from __future__ import annotations

from typing import Any

from templax import storage

from .server import Bucket

_KINDS: dict[str, type[storage.Store]] = {
    "s3": storage.S3,
    "gs": storage.GCS,
    "az": storage.Azure,
    "http": storage.HTTP,
}


def find_storage(bucket: Bucket, **settings: Any) -> storage.Store:
    """The argument `storage=` for a bucket, or for one behind a proxy."""
    server = bucket.server
    kind = _KINDS[server.scheme]
    return kind(options=server.config, client_options=server.client_options, **settings)


def open_bucket(bucket: Bucket, path: str = "", **settings: Any) -> storage.Source:
    """A source over a bucket, or over a path in it."""
    url = f"{bucket.url}/{path}" if path else bucket.url
    return storage.open_source(url, find_storage(bucket, **settings))
