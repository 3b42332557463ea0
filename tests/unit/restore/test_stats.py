"""Statistics of a restore, and the garbage collector during it."""

from __future__ import annotations

import gc
import logging

import jax
import jax.numpy as jnp
import pytest

import templax as tx
from helpers import CORPUS

RAW = CORPUS / "orbax-0.12.8-uncompressed" / "ckpt"


def test_a_restore_is_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    catalog = tx.open(RAW)
    with caplog.at_level(logging.INFO, logger="templax"):
        tx.restore(catalog, catalog.template())
    stats = tx.last_restore()
    assert stats is not None
    assert (stats.url, stats.leaves, stats.requests) == (str(RAW), 14, 1)
    assert stats.placed_bytes == 34404
    assert set(stats.stages) == {"template", "open", "match", "locate", "plan", "run", "place"}
    assert 0 < sum(stats.stages.values()) - stats.stages["place"] <= stats.seconds * 1.001
    assert stats.gb_per_s == pytest.approx(34404 / stats.seconds / 1e9)
    assert [r.getMessage() for r in caplog.records] == [str(stats)]
    assert str(stats).startswith(f"restored 14 leaves, 34,404 bytes of {RAW} in ")


def test_the_garbage_collector_is_left_as_it_was() -> None:
    for before in (True, False):
        (gc.enable if before else gc.disable)()
        try:
            tx.restore(RAW, tx.open(RAW).template())
            with pytest.raises(tx.TemplateError):
                tx.restore(RAW, {"no": jax.ShapeDtypeStruct((), jnp.float32)})
            assert gc.isenabled() is before
        finally:
            gc.enable()
