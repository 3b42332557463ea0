"""Repositories of the Hugging Face Hub, each as it is at one commit."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import re
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from typing import Any, ClassVar, TypeVar
from urllib.parse import unquote

from ..errors import NotFound, SourceError, UsageError
from .environment import import_extra
from .event_loop import run_request
from .local import Local
from .object_store import ObjectSource
from .request_errors import TRANSIENT
from .requests import Requests, Version
from .source import Source
from .stores import Location, Store, require_obstore

T = TypeVar("T")

_log = logging.getLogger("templax")

_KINDS = {"datasets": "dataset", "spaces": "space", "models": "model"}
"""First part of a URL → kind of repository; a URL without any of these names a model."""

_COMMIT = re.compile(r"[0-9a-f]{40}")

_REFERENCE = re.compile(r"refs/(?:pr|convert)/[^/]+")
"""Revisions with slashes that are written as they are; others need %2F."""

_LOG_IN = "log in with `hf auth login`, set HF_TOKEN, or pass templax.storage.HuggingFace(token=…)"


class HubUnreachable(SourceError):
    """The Hub does not answer, or must not be asked."""


@dataclass(frozen=True, kw_only=True)
class HuggingFace(Store):
    """The Hugging Face Hub.

    URLs are `hf://org/name`, `hf://org/name@revision` or `hf://org/name@revision/path`, and
    `hf://datasets/org/name` for a dataset. A revision is a branch, a tag or a commit. It is looked
    up once, when a checkpoint is opened; what is read is of that commit. The address of the Hub
    (`HF_ENDPOINT`) and its local cache are those of huggingface_hub.

    Attributes:
        token: By default the one of `HF_TOKEN`, or of `hf auth login`.
    """

    schemes: ClassVar[tuple[str, ...]] = ("hf",)

    refusal: ClassVar[str] = "templax reads from the Hub, but does not write to it"
    refusal_hint: ClassVar[str] = "save to a local directory, then upload that with `hf upload`"

    token: str | None = field(default=None, repr=False)

    def locate(self, url: str) -> Location:
        if not url.lower().startswith("hf://"):
            return super().locate(url)  # which says what is expected
        parts = url[len("hf://") :].strip("/").split("/")
        kind = _KINDS.get(parts[0], "model")
        before = parts[:1] if parts[0] in _KINDS else []
        repository, _, rest = "/".join(parts[len(before) :]).partition("@")
        names, revision = repository.split("/"), "main"
        path = "/".join(names[2:])
        if rest or "@" in url:
            found = _REFERENCE.match(rest)
            revision = found[0] if found else rest.partition("/")[0]
            path = rest[len(revision) :].strip("/")
        if not all(names) or not revision or (len(names) > 2 and "@" in url):
            raise UsageError(
                f'Expected a URL such as hf://org/name or hf://org/name@revision/path, got "{url}"'
            )
        bucket = "/".join(names[:2])
        options = {"kind": kind, "revision": unquote(revision), "name": bucket}
        named = "/".join([*before, bucket])
        at = f"@{revision}" if "@" in url else ""
        return Location(f"hf://{named}{at}", named, path, options)

    def connect(self, location: Location) -> HubRequests:
        return HubRequests(self, location)

    def name_bucket(self, location: Location) -> str:
        return f"{_require_hub().constants.ENDPOINT} {location.bucket}"

    def _make(
        self, kinds: Any, location: Location, client: dict[str, Any], again: dict[str, Any]
    ) -> Any:
        hub, options = _require_hub(), location.options
        client["default_headers"] = {
            **hub.utils.build_hf_headers(token=self.token, library_name="templax"),
            **client.get("default_headers", {}),
        }
        address = hub.hf_hub_url(
            options["name"],
            "x",
            repo_type=options["kind"],
            revision=options["revision"],
            endpoint=hub.constants.ENDPOINT,
        ).removesuffix("/x")
        client.setdefault("allow_http", address.startswith("http://"))
        return kinds.HTTPStore(address, client_options=client, retry_config=again)


class HubRequests(Requests):
    """Requests to one repository: huggingface_hub lists it, obstore reads ranges of its files.

    The version of a file is the hash of its content, so that a cache recognises a file in any
    commit.

    Args:
        store: The settings.
        location: The repository, and a revision of it.
    """

    def __init__(self, store: HuggingFace, location: Location):
        require_obstore("`hf://`")
        hub = _require_hub()
        self._api: Any = hub.HfApi(
            endpoint=hub.constants.ENDPOINT, token=store.token, library_name="templax"
        )
        self._location, self._options = location, location.options
        self._modified = _commit_times.get(self._options["revision"], 0.0)
        super().__init__(
            lambda: store.make(location),
            location.url,
            timeout_s=store.timeout,
            concurrency=store.concurrency,
        )

    async def resolve(self) -> str:
        """The commit of the revision.

        Raises:
            HubUnreachable: The Hub does not answer at all.
            NotFound: There is no such repository or revision.
            SourceError: Access is refused.
        """

        def ask() -> Any:
            hub = _require_hub()
            if hub.constants.HF_HUB_OFFLINE:
                raise HubUnreachable("HF_HUB_OFFLINE is set")
            options = self._options
            try:
                found = self._api.repo_info(
                    options["name"], revision=options["revision"], repo_type=options["kind"]
                )
                if getattr(found, "gated", None):  # it may refuse its files though it lists them
                    self._api.auth_check(options["name"], repo_type=options["kind"])
                return found
            except (hub.errors.HfHubHTTPError, hub.errors.HFValidationError):
                raise
            except _find_transport_errors() as error:
                raise HubUnreachable(f"the Hub does not answer: {error}") from error

        found = await self._ask(ask, "")
        if found.last_modified is not None:
            _commit_times[found.sha] = found.last_modified.timestamp()
        return found.sha

    async def describe_meta(self, path: str) -> Any:
        if not path:
            return None  # the root, which is a directory
        options = self._options
        found = await self._ask(
            lambda: self._api.get_paths_info(
                options["name"], [path], revision=options["revision"], repo_type=options["kind"]
            ),
            path,
        )
        return next((self._describe(item) for item in found if hasattr(item, "blob_id")), None)

    async def list_level(self, prefix: str) -> tuple[list[str], list[Any]]:
        items = await self._ask(lambda: list(self._walk(prefix, recursive=False)), prefix)
        files = [self._describe(item) for item in items if hasattr(item, "blob_id")]
        return [item.path for item in items if not hasattr(item, "blob_id")], files

    async def list_all(self, prefix: str, chunk: int = 1000) -> AsyncIterator[list[Any]]:
        walk: Iterator[Any] | None = None
        done = 0

        def list_more() -> list[Any]:
            nonlocal walk
            if walk is None:  # at the beginning, or after a failure
                files = (item for item in self._walk(prefix) if hasattr(item, "blob_id"))
                walk = itertools.islice(files, done, None)
            try:
                return [self._describe(item) for item in itertools.islice(walk, chunk)]
            except BaseException:
                walk = None
                raise

        while True:
            objects = await self._ask(list_more, prefix)
            done += len(objects)
            if objects:
                yield objects
            if len(objects) < chunk:
                return

    async def fetch(self, path: str, start: int, out: memoryview, version: Version) -> None:
        await super().fetch(path, start, out, _HubVersion(*version))

    async def _open(self, path: str, start: int, stop: int, version: Version) -> Any:
        failures = import_module("obstore.exceptions")
        try:
            return await super()._open(path, start, stop, version)
        except (failures.PermissionDeniedError, failures.UnauthenticatedError) as error:
            raise self._refuse() from error

    def _walk(self, prefix: str, *, recursive: bool = True) -> Iterator[Any]:
        options = self._options
        try:
            yield from self._api.list_repo_tree(
                options["name"],
                prefix or None,
                recursive=recursive,
                revision=options["revision"],
                repo_type=options["kind"],
            )
        except _require_hub().errors.EntryNotFoundError:
            return  # no such directory

    def _describe(self, item: Any) -> dict[str, Any]:
        """A file as obstore describes objects."""
        content = item.blob_id if item.lfs is None else item.lfs.sha256
        return {
            "path": item.path,
            "size": item.size,
            "e_tag": None,
            "version": content,
            "last_modified": datetime.fromtimestamp(self._modified, UTC),
        }

    async def _ask(self, ask: Callable[[], T], path: str) -> T:
        """Calls huggingface_hub in a thread; repeats the call after transient failures."""

        def ask_once() -> T:
            errors = _require_hub().errors
            try:
                return ask()
            except SourceError:
                raise
            except errors.HFValidationError as error:
                raise UsageError(f"can't read `{self.url}`: {error}") from error
            except errors.HfHubHTTPError as error:
                raise self._explain(error) from error
            except _find_transport_errors() as error:
                raise ConnectionError(str(error)) from error

        async def ask_in_thread() -> T:
            return await asyncio.to_thread(ask_once)

        return await self.repeat(ask_in_thread, path)

    def _explain(self, error: Any) -> Exception:
        """What an answer of the Hub means, and what to do about it."""
        errors, options = _require_hub().errors, self._options
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, errors.GatedRepoError):
            return self._refuse(is_gated=True)
        if isinstance(error, errors.RepositoryNotFoundError):
            return NotFound(
                f"Expected a {options['kind']} on the Hub, found none, or a private one",
                file=self.url,
                hint=f"check its name, or {_LOG_IN}",
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return NotFound(
                f"Expected a revision `{options['revision']}`, found none",
                file=self.url,
                hint="give a branch, a tag or a commit after @",
            )
        if status in TRANSIENT:
            return ConnectionError(f"status {status}")
        if status in (401, 403):
            return self._refuse()
        reason = str(error).strip().partition("\n")[0]
        return SourceError(f"can't read `{self.url}`: {reason}")

    def _refuse(self, *, is_gated: bool = False) -> SourceError:
        why = (
            "it is gated, and its owner has not granted access"
            if is_gated
            else "the Hub refuses access"
        )
        page = f"{_require_hub().constants.ENDPOINT}/{self._location.bucket}"
        return SourceError(
            f"can't read `{self.url}`: {why}; hint: ask for access at {page}, then {_LOG_IN}"
        )


class _HubVersion(Version):
    """A version of a file of one commit, which can't change: answers have other tags and times."""

    __slots__ = ()

    def is_same(self, other: Version) -> bool:
        return self.size == other.size


_commit_times: dict[str, float] = {}
"""Unix seconds of commits that were looked up."""


def open_repository(store: Store, url: str) -> Source:
    """Returns the source for a URL of the Hub, at the commit that its revision has now.

    If the Hub does not answer, or `HF_HUB_OFFLINE` is set, the source is the snapshot in the local
    cache of huggingface_hub, and the log names its commit.

    Raises:
        MissingPackage: huggingface_hub or obstore is not installed.
        NotFound: There is no such repository or revision.
        SourceError: Access is refused; or there is neither an answer nor a snapshot.
    """
    location = store.locate(url)
    requests = store.connect(location)
    assert isinstance(requests, HubRequests)
    try:
        commit = run_request(requests.resolve())
    except HubUnreachable as error:
        return _open_snapshot(location, error)
    _log.info("reading `%s` at commit %s", location.url, commit)
    pinned = f"hf://{location.bucket}@{commit}"
    return ObjectSource(store, f"{pinned}/{location.path}" if location.path else pinned)


def _open_snapshot(location: Location, why: HubUnreachable) -> Local:
    hub, options = _require_hub(), location.options
    folder = hub.file_download.repo_folder_name(repo_id=options["name"], repo_type=options["kind"])
    root = os.path.join(hub.constants.HF_HUB_CACHE, folder)
    commit = options["revision"]
    reference = os.path.join(root, "refs", *commit.split("/"))
    if not _COMMIT.fullmatch(commit) and os.path.isfile(reference):
        with open(reference, encoding="utf-8") as file:
            commit = file.read().strip()
    snapshot = os.path.join(root, "snapshots", commit)
    if not _COMMIT.fullmatch(commit) or not os.path.isdir(snapshot):
        raise SourceError(
            f"can't read `{location.url}`: {why}, and {root} has no snapshot of revision"
            f" `{options['revision']}`; hint: run `hf download {options['name']}` with a network"
        ) from why
    level = logging.INFO if hub.constants.HF_HUB_OFFLINE else logging.WARNING
    _log.log(level, "reading `%s` at commit %s in %s: %s", location.url, commit, root, why)
    return Local(os.path.join(snapshot, *location.path.split("/")) if location.path else snapshot)


def _find_transport_errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises if no answer came: errors of httpx or, in old ones, requests."""
    return (_require_hub().errors.HfHubHTTPError.__bases__[0], OSError)


def _require_hub() -> Any:
    for module in ("constants", "errors", "file_download", "utils"):
        import_extra(f"huggingface_hub.{module}", "`hf://`", "hf")
    return import_extra("huggingface_hub", "`hf://`", "hf")
