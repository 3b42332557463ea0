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


@pytest.mark.parametrize(
    ("metadata", "one", "other"),
    [
        ({1: "a", "1": "b"}, "1", "'1'"),
        ({"1": "a", 1: "b"}, "'1'", "1"),
        ({"lr": {"null": 1, None: 2}}, "'null'", "None"),
        ({"runs": [{"ok": 1}, ({True: 1, "true": 2},)]}, "True", "'true'"),
        ({0.5: 1, "0.5": 2}, "0.5", "'0.5'"),
    ],
)
def test_metadata_whose_keys_json_would_merge_is_refused(tmp_path, metadata, one, other):
    with pytest.raises(tx.UsageError) as caught:
        tx.save(tmp_path / "ckpt", {"w": np.zeros(3)}, metadata=metadata)
    text = f"Expected metadata= a mapping of JSON values: the keys {one} and {other} are one"
    assert str(caught.value).startswith(text)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(tx.UsageError, match="are one in JSON"), tx.Manager(tmp_path) as manager:
        manager.save(1, {"w": np.zeros(3)}, metadata=metadata)


def test_metadata_may_have_other_keys_than_strings(tmp_path):
    tx.save(tmp_path / "ckpt", {"w": np.zeros(3)}, metadata={1: {2.5: "a", None: "b"}, "2": "c"})
    found = tx.open(tmp_path / "ckpt").metadata["custom_metadata"]
    assert found == {"1": {"2.5": "a", "null": "b"}, "2": "c"}
