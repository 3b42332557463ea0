"""The object stores that templax knows: their URLs, their settings, and how obstore opens them."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from importlib import import_module
from typing import Any, ClassVar, Self
from urllib.parse import unquote, urlsplit

from ..errors import SourceError, UsageError
from .block_cache import CACHE_BYTES
from .environment import find_variable, import_extra, read_aws_profile
from .request_errors import redact
from .requests import CONCURRENCY, STALL_S, TIMEOUT_S, Requests
from .web_listing import WebRequests

_CONNECT_S = 10


def require_obstore(what: str) -> Any:
    """Imports the module of obstore that has its stores.

    Args:
        what: What needs it; the error begins with this.

    Raises:
        MissingPackage: obstore is not installed, or can't be imported.
    """
    return import_extra("obstore.store", what, "remote")


@dataclass(frozen=True, slots=True)
class Location:
    """What a URL names.

    Attributes:
        url: The bucket, container or server, without a slash at the end: "s3://bucket".
        bucket: Its name, in the form that obstore takes.
        path: The path of the object or directory in it, without slashes at the ends.
        options: Settings that are part of the URL, such as an account.
    """

    url: str
    bucket: str
    path: str
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Store:
    """How to reach an object store. Settings that are not given come from the environment.

    Attributes:
        timeout: Seconds without a byte of an answer after which a request fails for good. Until
            then it is retried, with growing pauses.
        concurrency: Maximum number of requests at the same time.
        cache: A local directory in which to keep the bytes of objects, shared with other and later
            processes that name it. By default nothing is kept.
        cache_bytes: Maximum size of the cache in bytes. The least recently read blocks are removed.
        options: Further settings of the store, with the names of obstore's `config`.
        client_options: Settings of the connection, with the names of obstore's `ClientConfig`.
    """

    schemes: ClassVar[tuple[str, ...]] = ()

    refusal: ClassVar[str] = ""
    refusal_hint: ClassVar[str] = "save to a local directory, then copy that"
    """Why nothing is saved to such a store, and what to do instead."""

    _requests_class: ClassVar[type[Requests]] = Requests

    timeout: float = TIMEOUT_S
    concurrency: int = CONCURRENCY
    cache: str | os.PathLike[str] | None = None
    cache_bytes: int = CACHE_BYTES
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    client_options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Refuses numbers with which requests would never be made, or never end.

        Raises:
            UsageError: A number is none, or too small.
        """
        _check_number("timeout", self.timeout, "a positive number of seconds", (int, float))
        _check_number("concurrency", self.concurrency, "a positive number of requests", (int,))
        _check_number("cache_bytes", self.cache_bytes, "a positive number of bytes", (int,))

    def locate(self, url: str) -> Location:
        """Splits a URL into the bucket and the path in it.

        Raises:
            UsageError: It is not a URL of this store.
        """
        scheme, colon, rest = url.partition("://")
        if not colon or scheme.lower() not in self.schemes:
            wanted = " or ".join(f"{scheme}://" for scheme in self.schemes)
            raise UsageError(f'Expected a URL that begins with {wanted}, got "{redact(url)}"')
        bucket, _, path = rest.partition("/")
        if not bucket:
            raise UsageError(f'Expected the name of a bucket after "{scheme}://", got "{url}"')
        if not bucket.isprintable() or " " in bucket:  # obstore would panic
            raise UsageError(f"Expected the name of a bucket, got {redact(bucket)!r}")
        return Location(f"{scheme.lower()}://{bucket}", bucket, path.strip("/"))

    def connect(self, location: Location) -> Requests:
        """The requests to the bucket of a location.

        Raises:
            MissingPackage: obstore is not installed.
            UsageError: The store does not accept a setting.
        """
        require_obstore(f"`{self.schemes[0]}://`")
        return self._requests_class(
            lambda: self.make(location),
            location.url,
            timeout_s=self.timeout,
            concurrency=self.concurrency,
        )

    @classmethod
    def from_environment(cls) -> Self:
        """The settings for a URL that is opened without `storage=`."""
        cache = find_variable("TEMPLAX_CACHE")
        if cache is None:
            return cls()
        if "://" in cache:
            raise UsageError(f"Expected TEMPLAX_CACHE to be a local directory, got {cache!r}")
        text = find_variable("TEMPLAX_CACHE_BYTES") or str(CACHE_BYTES)
        try:
            return cls(cache=cache, cache_bytes=int(text))
        except ValueError:
            raise UsageError(
                f"Expected TEMPLAX_CACHE_BYTES to be a number of bytes, got {text!r}"
            ) from None

    def name_bucket(self, location: Location) -> str:
        """Identifies a bucket among all others: two endpoints may have buckets of one name."""
        config: Mapping[str, Any] = self.make(location).config
        named = sorted(
            (name, str(value))
            for name, value in config.items()
            if name.endswith(("endpoint", "base_url", "account_name"))
        )
        return repr((location.url, named))

    def make(self, location: Location, *, retries: bool = False) -> Any:
        """Makes the obstore store for a bucket.

        Args:
            location: The bucket.
            retries: Whether obstore itself retries failed requests, as it must if one of its calls
                makes several.

        Raises:
            UsageError: The store does not accept a setting.
        """
        kinds = require_obstore(f"`{self.schemes[0]}://`")
        failures = import_module("obstore.exceptions")
        try:
            client = {
                "connect_timeout": timedelta(seconds=_CONNECT_S),
                "read_timeout": timedelta(seconds=min(STALL_S, self.timeout)),
                "timeout": timedelta(hours=6),  # of a whole answer: `read_timeout` ends slow ones
                **self.client_options,
            }
            wait = timedelta(seconds=self.timeout)
            again = {"max_retries": 1000 if retries else 0, "retry_timeout": wait}
            return self._make(kinds, location, client, again)
        except (failures.BaseError, AttributeError, TypeError, ValueError) as error:
            reason = redact(str(error).partition("\n\n")[0])
            raise UsageError(f"can't open `{location.url}`: {reason}") from None

    def _make(
        self, kinds: Any, location: Location, client: dict[str, Any], again: dict[str, Any]
    ) -> Any:
        raise NotImplementedError


def _check_number(name: str, value: object, wanted: str, types: tuple[type, ...]) -> None:
    if isinstance(value, bool) or not isinstance(value, types) or not 0 < value < 2**63:  # type: ignore[operator]
        raise UsageError(f"Expected {name}= to be {wanted}, got {value!r}")


def _drop_unset(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class S3(Store):
    """Amazon S3, or another store with the same API: MinIO, Cloudflare R2, Ceph and others.

    Attributes:
        endpoint: Address of the store, such as `http://localhost:9000`; by default Amazon's, or
            that of `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`.
        region: By default that of `AWS_REGION`, `AWS_DEFAULT_REGION` or the profile.
        access_key_id, secret_access_key, session_token: Credentials. By default those in the
            environment (`AWS_ACCESS_KEY_ID` and so on), of the profile `AWS_PROFILE` in the shared
            credentials file, or of the machine's role.
        anonymous: Whether to send unsigned requests, for public buckets.

    Example:
        >>> from templax.storage import S3
        >>> store = S3(endpoint="http://localhost:9000", secret_access_key="hidden")
        >>> "hidden" in repr(store)
        False
    """

    schemes: ClassVar[tuple[str, ...]] = ("s3", "s3a")

    endpoint: str | None = None
    region: str | None = None
    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    anonymous: bool = False

    def _make(
        self, kinds: Any, location: Location, client: dict[str, Any], again: dict[str, Any]
    ) -> Any:
        given = _drop_unset(
            {
                "access_key_id": self.access_key_id,
                "secret_access_key": self.secret_access_key,
                "session_token": self.session_token,
                "region": self.region,
                "skip_signature": True if self.anonymous else None,
            }
        )
        if find_variable("AWS_CHECKSUM_ALGORITHM") is None:  # lets the store check each part
            given["checksum_algorithm"] = "SHA256"
        if not self.anonymous and "access_key_id" not in given:
            given = read_aws_profile() | given
        endpoint = self.endpoint or find_variable("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
        if endpoint:
            given["endpoint"] = endpoint
            client.setdefault("allow_http", endpoint.lower().startswith("http://"))
        return kinds.S3Store(
            location.bucket,
            config={**given, **self.options},
            client_options=client,
            retry_config=again,
        )


@dataclass(frozen=True, kw_only=True)
class GCS(Store):
    """Google Cloud Storage.

    Attributes:
        service_account: Path of the JSON file with the key of a service account. By default the
            application default credentials: `GOOGLE_APPLICATION_CREDENTIALS`, those of the
            `gcloud` command, or those of the machine.
        token: An OAuth token to use instead.
        endpoint: Address of the store; by default Google's, or that of `STORAGE_EMULATOR_HOST`.
        anonymous: Whether to send unsigned requests, for public buckets.
    """

    schemes: ClassVar[tuple[str, ...]] = ("gs", "gcs")

    service_account: str | None = None
    token: str | None = field(default=None, repr=False)
    endpoint: str | None = None
    anonymous: bool = False

    def _make(
        self, kinds: Any, location: Location, client: dict[str, Any], again: dict[str, Any]
    ) -> Any:
        emulator = find_variable("STORAGE_EMULATOR_HOST")
        if emulator and "://" not in emulator:
            emulator = f"http://{emulator}"
        endpoint = self.endpoint or emulator or find_variable("GOOGLE_BASE_URL")
        unsigned = self.anonymous or (self.endpoint is None and emulator and not self.token)
        given = _drop_unset(
            {
                "service_account": self.service_account,
                # Without one, writes would ask for credentials, whatever `skip_signature` says.
                "bearer_token": self.token or ("none" if unsigned else None),
                "base_url": endpoint and endpoint.rstrip("/"),
                "skip_signature": True if unsigned else None,
            }
        )
        if endpoint:
            client.setdefault("allow_http", endpoint.lower().startswith("http://"))
        return kinds.GCSStore(
            location.bucket,
            config={**given, **self.options},
            client_options=client,
            retry_config=again,
        )


@dataclass(frozen=True, kw_only=True)
class Azure(Store):
    """Azure Blob Storage and Data Lake.

    URLs are `az://container/path`, or `abfss://container@account.dfs.core.windows.net/path`.

    Attributes:
        account: Name of the account; by default that in the URL, or `AZURE_STORAGE_ACCOUNT_NAME`.
        key: Its key; by default `AZURE_STORAGE_ACCOUNT_KEY`.
        sas_token: A shared access signature to use instead; by default `AZURE_STORAGE_SAS_TOKEN`.
            Without a key or signature, the identity of the machine or of the `az` command is used.
        endpoint: Address of the store; by default Azure's.
        anonymous: Whether to send unsigned requests, for public containers.
    """

    schemes: ClassVar[tuple[str, ...]] = ("az", "azure", "abfs", "abfss", "adl")

    account: str | None = None
    key: str | None = field(default=None, repr=False)
    sas_token: str | None = field(default=None, repr=False)
    endpoint: str | None = None
    anonymous: bool = False

    def locate(self, url: str) -> Location:
        location = super().locate(url)
        container, at, host = location.bucket.partition("@")
        if not at:
            return location
        account, _, domain = host.partition(".")
        options = {"account_name": account}
        kind, _, cloud = domain.partition(".")
        if kind in ("dfs", "blob") and cloud not in ("core.windows.net", "fabric.microsoft.com"):
            options["endpoint"] = f"https://{account}.blob.{cloud}"  # another cloud of Azure
        return Location(location.url, container, location.path, options)

    def _make(
        self, kinds: Any, location: Location, client: dict[str, Any], again: dict[str, Any]
    ) -> Any:
        endpoint = self.endpoint or location.options.get("endpoint")
        endpoint = endpoint or find_variable("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")
        account = self.account or location.options.get("account_name")
        account = account or find_variable("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT")
        given = _drop_unset(
            {
                "account_name": account,
                "account_key": self.key or find_variable("AZURE_STORAGE_KEY"),
                "sas_key": self.sas_token or find_variable("AZURE_STORAGE_SAS_TOKEN"),
                "endpoint": endpoint,
                "skip_signature": True if self.anonymous else None,
            }
        )
        if endpoint:
            client.setdefault("allow_http", endpoint.lower().startswith("http://"))
        return kinds.AzureStore(
            container_name=location.bucket,
            config={**given, **self.options},
            client_options=client,
            retry_config=again,
        )


@dataclass(frozen=True, kw_only=True)
class HTTP(Store):
    """A web server that supports range requests. templax only reads from it.

    A directory can be opened if the server makes an index page of it.

    Attributes:
        headers: Headers to send with each request, such as `{"Authorization": "Bearer …"}`.
    """

    schemes: ClassVar[tuple[str, ...]] = ("https", "http")

    refusal: ClassVar[str] = "templax reads from web servers, but does not write to them"

    _requests_class: ClassVar[type[Requests]] = WebRequests

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def connect(self, location: Location) -> Requests:
        requests = super().connect(location)
        assert isinstance(requests, WebRequests)
        requests.headers = self.headers
        return requests

    def locate(self, url: str) -> Location:
        location = super().locate(url)
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise UsageError(f"Expected an address, got {redact(url)!r}: {error}") from None
        if parts.query or parts.fragment:
            raise SourceError(
                f"can't read `{redact(url)}`: templax does not send the part after `?` or `#`;"
                " hint: if it is a signature, read from the store itself, or download the file"
            )
        if "@" in parts.netloc:
            raise SourceError(
                f"can't read `{redact(url)}`: credentials don't belong in an address; hint: pass"
                ' storage=templax.storage.HTTP(headers={"Authorization": …})'
            )
        return Location(location.url, location.bucket, unquote(location.path))

    def name_bucket(self, location: Location) -> str:
        return location.url

    def _make(
        self, kinds: Any, location: Location, client: dict[str, Any], again: dict[str, Any]
    ) -> Any:
        client.setdefault("allow_http", location.url.startswith("http://"))
        if self.headers:
            client["default_headers"] = {
                **dict(self.headers),
                **client.get("default_headers", {}),
            }
        return kinds.HTTPStore(location.url, client_options=client, retry_config=again)


@dataclass(frozen=True, kw_only=True)
class ProcessMemory(Store):
    """Objects in the memory of this process, for tests: `memory://name/path`."""

    schemes: ClassVar[tuple[str, ...]] = ("memory",)

    def name_bucket(self, location: Location) -> str:
        return f"{location.url} {_memory_name} {os.getpid()}"

    def _make(
        self, kinds: Any, location: Location, client: dict[str, Any], again: dict[str, Any]
    ) -> Any:
        with _memory_lock:
            if location.bucket not in _memory:
                _memory[location.bucket] = kinds.MemoryStore()
            return _memory[location.bucket]


_memory: dict[str, Any] = {}

_memory_name = uuid.uuid4().hex
"""Identifies the memory of this process among those of all others."""

_memory_lock = threading.Lock()

_KINDS: tuple[type[Store], ...] = (S3, GCS, Azure, HTTP, ProcessMemory)


def find_store(scheme: str) -> Callable[[], Store] | None:
    """The function that makes the store for URLs of a scheme; None if no store serves them."""
    kinds = (kind for kind in _KINDS if scheme.lower() in kind.schemes)
    return next((kind.from_environment for kind in kinds), None)
