"""The option `verify`: checksums during a restore."""

from __future__ import annotations

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import templax as tx
from helpers import CKPT
from stored_leaves import make_pair, make_plan, read_arrays
from templax._catalog.entry import Chunk, Extent
from templax._restore.execute import execute_plan
from templax.storage import Local, Memory
from templax.testing import Watched

make_host_pair = functools.partial(make_pair, host=True)


def make_checked_chunk(values: np.ndarray, *, good: bool) -> tuple[bytes, Chunk]:
    from templax._codecs.crc32c import crc32c

    data = values.tobytes()
    sum_ = crc32c(data) ^ (0 if good else 1)
    stored = data + sum_.to_bytes(4, "little")
    box = tuple((0, n) for n in values.shape)
    return stored, Chunk(Extent("f", 0, len(stored)), box, ("crc32c",), "C", True)


@pytest.mark.parametrize(("verify", "raises"), [("available", True), ("off", False)])
def test_a_wrong_checksum_is_an_error_unless_verify_is_off(verify: str, raises: bool) -> None:
    values = np.arange(12, dtype=np.int32)
    stored, chunk = make_checked_chunk(values, good=False)
    made = replace(make_plan(make_host_pair("w", values), w=(chunk,)), verify=verify)
    if raises:
        with pytest.raises(tx.Corrupted, match="Expected crc32c"):
            list(execute_plan(made, [Memory({"f": stored})]))
    else:
        (finished,) = execute_plan(made, [Memory({"f": stored})])
        np.testing.assert_array_equal(finished.arrays[0], values)


@pytest.mark.parametrize("n", [12, 700_000])
@pytest.mark.parametrize("good", [True, False])
def test_a_raw_chunk_with_a_trailing_checksum_is_verified(n: int, good: bool) -> None:
    values = np.arange(n, dtype=np.int32)
    stored, chunk = make_checked_chunk(values, good=good)
    source = Watched(Memory({"f": stored}))
    made = make_plan(make_host_pair("w", values), w=(chunk,))
    assert made.unverified == ()
    if good:
        np.testing.assert_array_equal(read_arrays(made, source)[0], values)
        assert sum(stop - start for _, start, stop in source.reads) == len(stored)
    else:
        with pytest.raises(tx.Corrupted, match=r"Expected crc32c .* - at `w`, file `f`, bytes 0-"):
            read_arrays(made, source)


def test_verify_required_refuses_unverifiable_bytes_before_any_read() -> None:
    source = Watched(Local(CKPT))
    catalog = tx.open(source)
    del source.reads[:]
    with pytest.raises(tx.Unverified) as caught:
        tx.restore(catalog, catalog.template(), verify="required")
    assert str(caught.value) == (
        f"1 of 14 leaves of {CKPT} have bytes that no checksum covers: `state.params.big`;"
        ' hint: verify="available" checks those that have one'
    )
    assert source.reads == []
    # Values in the index are covered by the checksum of the index.
    scale = {"scale": jax.ShapeDtypeStruct((), jnp.float32)}
    tx.restore(catalog, scale, at="state.params", extra="ignore", verify="required")
