"""Objects are read as the version seen first, also from a store that ignores conditions."""

from __future__ import annotations

import uuid
from typing import Any

import obstore
import pytest

import templax as tx
from templax.storage import ObjectSource
from templax.storage.requests import Version
from templax.storage.stores import ProcessMemory


@pytest.mark.parametrize("tagged", [True, False])
def test_a_store_that_ignores_conditions_is_checked_by_its_answers(
    monkeypatch: pytest.MonkeyPatch, tagged: bool
) -> None:
    settings, url = ProcessMemory(), f"memory://{uuid.uuid4().hex}/run"
    store, get, of = settings.make(settings.locate(url)), obstore.get_async, Version.of

    def ignore_conditions(store: Any, path: str, *, options: Any = None) -> Any:
        return get(store, path, options={"range": options["range"]})

    monkeypatch.setattr(obstore, "get_async", ignore_conditions)
    if not tagged:
        monkeypatch.setattr(Version, "of", lambda meta: of(meta)._replace(etag=None))
    obstore.put(store, "run/x", b"a" * 200_000)
    source = ObjectSource(settings, url)
    assert bytes(source.read("x", 100_000, 200_000)) == b"a" * 100_000
    obstore.put(store, "run/x", b"b" * 200_000)
    with pytest.raises(tx.SourceError, match="changed since the checkpoint was opened"):
        source.read("x", 0, 150_000)
    obstore.put(store, "run/x", b"c" * 200_001)
    with pytest.raises(tx.SourceError, match="changed since the checkpoint was opened"):
        source.read("x", 0, 150_000)
    assert bytes(ObjectSource(settings, url).read("x", 0, 9)) == b"c" * 9


def test_versions_are_compared_by_what_is_known_of_both() -> None:
    version = Version('"1"', 10, 5.0)
    assert version.is_same(Version("1", 10, 6.0))  # Azure's listings have no quotes
    assert version.is_same(Version(None, 10, 5.0))
    assert not version.is_same(Version('"2"', 10, 5.0))
    assert not version.is_same(Version('"1"', 11, 5.0))
    assert not version.is_same(Version(None, 10, 6.0))
