"""A store that runs, and a bucket of it: where they are, and what they can."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import obstore.store

from . import azurite, signed_requests

ACCESS_KEY, SECRET_KEY, REGION = "templax", "templax-secret", "us-east-1"


@dataclass(frozen=True)
class Server:
    """A server, and how a client is told where it is.

    `url` is where it listens, or a proxy before it: see `at`. `config` and `client_options` are
    what obstore takes. The fields that follow say what it has of what the real store does.
    """

    name: str
    scheme: str
    url: str
    root: Path
    writes: bool = True
    lists: bool = True
    has_ranges: bool = True
    conditional_puts: bool = True
    has_generations: bool = False
    checks_signatures: bool = False
    checks_checksums: bool = False

    @property
    def config(self) -> dict[str, Any]:
        """The `config` of the store's class in obstore."""
        if self.scheme == "s3":
            return {
                "endpoint": self.url,
                "region": REGION,
                "access_key_id": ACCESS_KEY,
                "secret_access_key": SECRET_KEY,
            }
        if self.scheme == "gs":
            return {"base_url": self.url, "bearer_token": "token"}
        if self.scheme == "az":
            return {
                "endpoint": self.url,
                "account_name": azurite.ACCOUNT,
                "account_key": azurite.KEY,
            }
        return {}

    @property
    def client_options(self) -> dict[str, Any]:
        """The `client_options` of the store's class in obstore."""
        return {"allow_http": True}

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which libraries and obstore learn the same, with no argument."""
        if self.scheme == "s3":
            return {
                "AWS_ENDPOINT_URL": self.url,
                "AWS_REGION": REGION,
                "AWS_ACCESS_KEY_ID": ACCESS_KEY,
                "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
                "AWS_ALLOW_HTTP": "true",
                "AWS_EC2_METADATA_DISABLED": "true",
            }
        if self.scheme == "gs":
            return {
                "STORAGE_EMULATOR_HOST": self.url,
                "GOOGLE_BASE_URL": self.url,
                "GOOGLE_BEARER_TOKEN": "token",
                "TENSORSTORE_GCS_HTTP_URL": self.url,
                "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
            }
        if self.scheme == "az":
            return {
                "AZURE_STORAGE_ENDPOINT": self.url,
                "AZURE_STORAGE_ACCOUNT_NAME": azurite.ACCOUNT,
                "AZURE_STORAGE_ACCOUNT_KEY": azurite.KEY,
                "AZURE_ALLOW_HTTP": "true",
            }
        return {}

    def at(self, url: str) -> Server:
        """The same server as a client sees it at `url`, where a proxy passes on what it gets."""
        return replace(self, url=url)

    def make_bucket(self, name: str) -> None:
        """Makes an empty bucket, container or directory."""
        if self.scheme == "s3":
            signed_requests.make_s3_bucket(self.url, name, ACCESS_KEY, SECRET_KEY, REGION)
        elif self.scheme == "gs":
            signed_requests.make_gcs_bucket(self.url, name)
        elif self.scheme == "az":
            signed_requests.make_azure_container(self.url, name, azurite.ACCOUNT, azurite.KEY)
        else:
            (self.root / name).mkdir()

    def open_store(self, bucket: str, prefix: str | None = None, **options: Any) -> Any:
        """obstore's store for `bucket`; `options` are those of its class, as `retry_config`."""
        options = {"client_options": self.client_options, **options}
        if self.scheme == "http":
            url = "/".join([self.url, bucket, *([prefix] if prefix else [])])
            return obstore.store.HTTPStore.from_url(url, **options)
        kind = {
            "s3": obstore.store.S3Store,
            "gs": obstore.store.GCSStore,
            "az": obstore.store.AzureStore,
        }[self.scheme]
        return kind(bucket, prefix=prefix, config=self.config, **options)


@dataclass(frozen=True)
class Bucket:
    """A bucket of a server, or of a server behind a proxy."""

    server: Server
    name: str

    @property
    def url(self) -> str:
        """As users write it: `s3://name`, `gs://name`, `az://name`, `http://127.0.0.1:1/name`."""
        if self.server.scheme == "http":
            return f"{self.server.url}/{self.name}"
        return f"{self.server.scheme}://{self.name}"

    def at(self, url: str) -> Bucket:
        """The same bucket through the proxy at `url`."""
        return replace(self, server=self.server.at(url))

    def open_store(self, prefix: str | None = None, **options: Any) -> Any:
        """obstore's store for this bucket, or for what is below `prefix` in it."""
        return self.server.open_store(self.name, prefix, **options)

    def write(self, path: str, data: bytes) -> None:
        """Stores an object, also where the server itself only reads."""
        if self.server.writes:
            obstore.put(self.open_store(), path, data)
        else:
            file = self.server.root / self.name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)

    def upload(self, directory: Path, prefix: str = "") -> None:
        """Stores all files below `directory` under names below `prefix`."""
        for file in sorted(directory.rglob("*")):
            if file.is_file():
                self.write(prefix + file.relative_to(directory).as_posix(), file.read_bytes())

    def list(self) -> dict[str, int]:
        """The sizes of all objects by their names."""
        if not self.server.lists:
            root = self.server.root / self.name
            files = (file for file in root.rglob("*") if file.is_file())
            return {file.relative_to(root).as_posix(): file.stat().st_size for file in files}
        pages = obstore.list(self.open_store())
        return {found["path"]: found["size"] for page in pages for found in page}

    def list_uploads(self) -> list[str]:
        """The names of objects of which a multipart upload was begun and not finished.

        Azure has none: the blocks of a blob that is not committed go by themselves.
        """
        if self.server.scheme not in ("s3", "gs"):
            return []
        answer = self.request("GET", "?uploads")
        assert answer[0] == 200, answer
        found = ElementTree.fromstring(answer[1]).iter()
        return [field.text or "" for field in found if field.tag.rpartition("}")[2] == "Key"]

    def request(
        self, method: str, target: str, headers: Mapping[str, str] = {}, body: bytes = b""
    ) -> tuple[int, bytes]:
        """Sends a request that obstore has no call for; returns the status and the answer.

        Args:
            method: The method.
            target: What follows the bucket: "/a/b", or a query of one field.
            headers: Further header fields, in lower case.
            body: What is sent.
        """
        url = f"{self.server.url}/{self.name}{target}"
        if self.server.scheme != "s3":
            return signed_requests.send(method, url, headers, body)
        keys = (ACCESS_KEY, SECRET_KEY, REGION)
        return signed_requests.send_to_s3(method, url, *keys, headers, body)

    def read(self, path: str) -> bytes:
        """The whole object."""
        return bytes(obstore.get(self.open_store(), path).bytes())
