"""Every checkpoint of the corpus, sound and damaged, gives the same from a store as from a disk."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

import templax as tx
from helpers import CORPUS, is_thorough

from .connect import find_storage
from .server import Bucket

CASES = sorted(path.parent.name for path in CORPUS.glob("*/ckpt"))
SOME = [
    *("orbax-0.12.8-default", "orbax-0.4.4-aggregate", "orbax-0.12.8-zarr3"),
    *("orbax-0.6.4-multi2p", "damaged-data_truncated", "damaged-chunk_missing"),
]


@functools.cache
def describe_local(case: str) -> list[Any]:
    local = CORPUS / case / "ckpt"
    return describe(local, str(local))


def describe(checkpoint: Any, root: str) -> list[Any]:
    """What opening, verifying and reading a checkpoint says, without the name of its place."""
    found: list[Any] = []
    try:
        catalog = tx.open(checkpoint)
        found += [catalog.format, str(catalog)]
        found += [(e.name, e.shape, str(e.dtype)) for e in catalog.entries]
        checked = tx.verify(catalog)
        found += [checked.ok, [str(damage) for damage in checked.damages], checked.checked_bytes]
        template = {
            entry.name: np.zeros(entry.shape, entry.dtype)
            for entry in catalog.entries
            if entry.kind == "array" and 0 < entry.nbytes < 1 << 26
        }
        names = {entry.name: entry.name for entry in catalog.entries}
        values = tx.restore(catalog, template, rename=lambda name: names[name], extra="ignore")
        found += [(name, value.tobytes()) for name, value in sorted(values.items())]
    except tx.TemplaxError as error:
        found += [type(error).__name__, str(error)]
    return [each.replace(root, "ROOT") if isinstance(each, str) else each for each in found]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("server", "cases"),
    [("moto", CASES), ("fake-gcs", CASES if is_thorough() else SOME)],
    indirect=["server"],
)
def test_the_corpus_is_read_alike(bucket: Bucket, cases: list[str]) -> None:
    store, different = find_storage(bucket), dict[str, Any]()
    for case in cases:
        local = CORPUS / case / "ckpt"
        if local.is_file():
            bucket.write(f"{case}/ckpt", local.read_bytes())
        else:
            bucket.upload(local, f"{case}/ckpt/")
        url = f"{bucket.url}/{case}/ckpt"
        want = describe_local(case)
        got = describe(tx.storage.open_source(url, store), url)
        if got != want:
            different[case] = [pair for pair in zip(got, want, strict=False) if pair[0] != pair[1]]
    assert not different
