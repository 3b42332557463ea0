"""`metadata=` of a save."""

import jax.numpy as jnp
import numpy as np
import pytest

import templax as tx


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (np.int64(7), 7),
        (np.float32(0.5), 0.5),
        (jnp.bfloat16(2), 2.0),
        (jnp.asarray(3), 3),
        (np.bool_(True), True),
        ({"deep": [np.uint8(1), None]}, {"deep": [1, None]}),
    ],
)
def test_metadata_may_hold_scalars_of_numpy_and_jax(tmp_path, value, stored):
    tx.save(tmp_path / "ckpt", {"w": np.zeros(3)}, metadata={"n": value})
    found = tx.open(tmp_path / "ckpt").metadata["custom_metadata"]["n"]
    assert (found, type(found)) == (stored, type(stored))


@pytest.mark.parametrize("value", [np.zeros(3), np.complex64(1), {1}, jnp.zeros((1,))])
def test_metadata_that_is_not_json_is_refused(tmp_path, value):
    with pytest.raises(tx.UsageError, match="Expected metadata= a mapping of JSON values"):
        tx.save(tmp_path / "ckpt", {"w": np.zeros(3)}, metadata={"n": value})
