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


def nest(levels):
    value = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("\ud800", r"the string '\ud800' is not valid Unicode"),
        ([{"\udc80": 1}], r"the key '\udc80' is not valid Unicode"),
        (nest(256), "it has more than 256 levels"),
        ("x" * (1 << 26), "it would take 67,108,873 bytes, more than 67,108,864"),
        ([-(10**4299)], "it has an integer of 4,300 digits"),
        ([10**4300], "Exceeds the limit (4300 digits) for integer string conversion"),
    ],
)
def test_metadata_that_could_not_be_read_again_is_refused(tmp_path, value, why):
    with pytest.raises(tx.UsageError) as caught:
        tx.save(tmp_path / "ckpt", {"w": np.zeros(3)}, metadata={"n": value})
    text = f"Expected metadata= a mapping of JSON values: {why}"
    assert str(caught.value).startswith(text)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("-inf"),
        2**70,
        [1 - 10**4299],
        nest(255),
        "\0\n\u2028\U000e0001",
        {"": {}},
    ],
)
def test_metadata_is_read_back_as_it_was_saved(tmp_path, value):
    tx.save(tmp_path / "ckpt", {"w": np.zeros(3)}, metadata={"n": value})
    assert repr(tx.open(tmp_path / "ckpt").metadata["custom_metadata"]["n"]) == repr(value)
    with tx.Manager(tmp_path / "run") as manager:
        manager.save(1, {"w": np.zeros(3)}, metadata={"n": value}, wait=True)
        assert repr(manager.metadata(1)["n"]) == repr(value)


@pytest.mark.parametrize(
    ("metrics", "why"),
    [
        ({"\udc80": 1.0}, r"the key '\udc80' is not valid Unicode"),
        ({"loss": 10**4300}, "Exceeds the limit (4300 digits) for integer string conversion"),
    ],
)
def test_metrics_that_could_not_be_read_again_are_refused(tmp_path, metrics, why):
    with tx.Manager(tmp_path / "run") as manager, pytest.raises(tx.UsageError) as caught:
        manager.save(1, {"w": np.zeros(3)}, metrics=metrics)
    assert str(caught.value).startswith(f"Expected metrics= that JSON can hold: {why}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("item", "why"),
    [
        ("\udc80", "is not valid Unicode"),
        ("a\\b", "is not the name of one directory"),
        ("é" * 128, "has 256 bytes, more than 255"),
        ("commit_success.txt", "is that of a part of a checkpoint"),
        ("ocdbt.process_0", "is that of a part of a checkpoint"),
        ("state.orbax-checkpoint-tmp-1", "is that of an unfinished save"),
        ("Metrics", "is one with `metrics` where case is ignored"),
    ],
)
def test_an_item_is_not_saved_under_a_name_that_cannot_be_read_again(tmp_path, item, why):
    with tx.Manager(tmp_path, item=item) as manager, pytest.raises(tx.UsageError) as caught:
        manager.save(1, {"w": np.zeros(3)}, wait=True)
    assert str(caught.value) == f"Expected item= the name of a directory, got {item!r}, which {why}"
    assert [path.name for path in tmp_path.iterdir()] == [".templax.lock"]
