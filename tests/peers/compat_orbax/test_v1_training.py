"""v1's metadata and its training checkpointer, under Orbax and `templax.compat.orbax`."""

import threading
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as orbax
import pytest

import templax as tx
import templax.compat.orbax as compat
from helpers import abstract
from side_by_side import assert_same, first_device, small_tree

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("collect_garbage"),
]
LIBRARIES = pytest.mark.parametrize("ocp", [orbax.v1, compat.v1], ids=["orbax", "templax"])
WRITERS = pytest.mark.parametrize("writer", [orbax.v1, compat.v1], ids=["of_orbax", "of_templax"])


def mixed_tree():
    return {
        **small_tree(),
        "numpy": np.arange(6).reshape(2, 3),
        "int": 5,
        "float": 1.5,
        "text": "x",
    }


# --- metadata


def describe(leaf):
    """What both libraries say of a leaf."""
    if not hasattr(leaf, "dtype"):
        return leaf
    storage = leaf.storage_metadata
    sharding = getattr(leaf, "sharding_metadata", None)
    return [
        type(leaf).__name__,
        tuple(leaf.shape),
        str(leaf.dtype),
        sharding is not None,
        tuple(storage.chunk_shape),
    ]


@LIBRARIES
@WRITERS
def test_metadata_has_the_shape_dtype_and_sharding_of_each_leaf(ocp, writer, tmp_path):
    """Numbers are the zero of their type, and strings a string."""
    writer.save_checkpointables(
        tmp_path / "ckpt", {"state": mixed_tree(), "config": {"lr": 0.1}}, custom_metadata={"a": 1}
    )
    found = ocp.metadata(tmp_path / "ckpt")
    assert {key: describe(leaf) for key, leaf in found.metadata.items() if key != "b"} == {
        "a": ["ArrayMetadata", (8,), "float32", True, (8,)],
        "numpy": ["NumpyMetadata", (2, 3), "int64", False, (2, 3)],
        "int": 0,
        "float": 0.0,
        "text": "string",
    }
    assert found.metadata["b"]["c"].sharding == first_device()
    assert found.custom_metadata == {"a": 1}
    assert str(found.path) == str(tmp_path / "ckpt")
    assert found.init_timestamp_nsecs <= found.commit_timestamp_nsecs
    assert found.commit_timestamp.timestamp() == pytest.approx(found.commit_timestamp_nsecs / 1e9)
    every = ocp.checkpointables_metadata(tmp_path / "ckpt")
    assert every.metadata == {"state": found.metadata, "config": {"lr": 0.0}}


@pytest.mark.slow
@LIBRARIES
@WRITERS
def test_metadata_is_a_template(ocp, writer, tmp_path):
    """As it is, as the metadata of the checkpoint, and with other leaves."""
    writer.save(tmp_path / "ckpt", mixed_tree())
    found = ocp.metadata(tmp_path / "ckpt")
    for template in (found, found.metadata):
        loaded = ocp.load(tmp_path / "ckpt", template)
        assert_same(loaded, mixed_tree())
        assert isinstance(loaded["numpy"], np.ndarray)
        assert isinstance(loaded["a"], jax.Array)
    half = {**found.metadata, "a": jax.ShapeDtypeStruct((8,), jnp.float16, sharding=first_device())}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert ocp.load(tmp_path / "ckpt", half)["a"].dtype == jnp.float16


@LIBRARIES
def test_metadata_of_what_is_not_there(ocp, tmp_path):
    """A missing checkpoint, tree or part; a flat checkpoint of the older API."""
    ocp.save(tmp_path / "ckpt", small_tree())
    for path in (tmp_path, tmp_path / "none", tmp_path / "ckpt/state"):
        with pytest.raises(ocp.errors.InvalidLayoutError):
            ocp.metadata(path)
    with pytest.raises(ocp.errors.InvalidLayoutError):
        ocp.metadata(tmp_path / "ckpt", checkpointable_name="other")
    compat.PyTreeCheckpointer().save(tmp_path / "flat", small_tree())
    with pytest.raises(ocp.errors.InvalidLayoutError, match="no named"):
        ocp.checkpointables_metadata(tmp_path / "flat")
    found = ocp.metadata(tmp_path / "flat", checkpointable_name=None)
    assert found.metadata["b"]["c"].shape == (3,)


@LIBRARIES
def test_metadata_of_a_part_that_is_unreadable_is_none(ocp, tmp_path, caplog):
    ocp.save_checkpointables(tmp_path / "ckpt", {"state": small_tree()})
    (tmp_path / "ckpt/data").mkdir()
    (tmp_path / "ckpt/data/notes.txt").write_text("not of a handler")
    with caplog.at_level("WARNING"):
        found = ocp.checkpointables_metadata(tmp_path / "ckpt")
    assert found.metadata["data"] is None
    assert found.metadata["state"]["a"].shape == (8,)
    if ocp is compat.v1:
        assert f"nothing is known of {tmp_path}/ckpt/data, which PyTreeHandler" in caplog.text


@LIBRARIES
def test_metadata_of_safetensors(ocp, tmp_path):
    tx.save(tmp_path / "m.safetensors", {"w": np.ones((2, 3), "f4")}, metadata={"a": "b"})
    context = ocp.Context(checkpoint_layout=ocp.options.CheckpointLayout.SAFETENSORS)
    with context:
        found = ocp.metadata(tmp_path / "m.safetensors")
        with pytest.raises(NotImplementedError):
            ocp.checkpointables_metadata(tmp_path / "m.safetensors")
    assert found.metadata["w"].shape == (2, 3)
    assert found.metadata["w"].dtype == np.float32
    assert found.custom_metadata["a"] == "b"
    assert found.init_timestamp_nsecs is None


def test_metadata_of_orbax_equals_that_of_templax(tmp_path):
    """Leaves compare by what they say, whichever library has made them."""
    orbax.v1.save(tmp_path / "ckpt", mixed_tree())
    one, other = (each.metadata(tmp_path / "ckpt").metadata for each in (orbax.v1, compat.v1))
    assert one == other
    assert other["a"] != other["numpy"]
    assert other["a"] != 0


# --- the checkpointer


def make_checkpointer(ocp, path, **options):
    policies = ocp.training.save_decision_policies, ocp.training.preservation_policies
    return ocp.training.Checkpointer(
        path / "run",
        save_decision_policy=policies[0].AnySavePolicy(
            [policies[0].FixedIntervalPolicy(2), policies[0].SpecificStepsPolicy([5])]
        ),
        preservation_policy=policies[1].AnyPreservationPolicy(
            [policies[1].LatestN(2), policies[1].CustomSteps([0])]
        ),
        **options,
    )


@pytest.mark.slow
@LIBRARIES
def test_a_training_saves_and_keeps_what_its_policies_say(ocp, tmp_path):
    with make_checkpointer(ocp, tmp_path, custom_metadata={"run": 1}) as checkpointer:
        assert checkpointer.latest is None
        assert not checkpointer.checkpoints
        due = [checkpointer.should_save(step) for step in (0, 1, 5)]
        saved = [
            checkpointer.save(
                step,
                {"w": np.full(3, step)},
                metrics={"loss": 1 / (step + 1)},
                custom_metadata={"s": step},
            )
            for step in range(9)
        ]
        kept = [(each.step, each.metrics) for each in checkpointer.checkpoints]
        assert checkpointer.latest.step == 8
        assert checkpointer.latest.metadata is None
        assert not checkpointer.is_saving_in_progress()
        found = checkpointer.metadata(6)
        assert checkpointer.root_metadata().custom_metadata == {"run": 1}
        assert str(checkpointer.directory) == str(tmp_path / "run")
    assert due == [True, False, True]
    assert [step for step, each in enumerate(saved) if each] == [0, 2, 4, 5, 6, 8]
    assert kept == [(step, {"loss": 1 / (step + 1)}) for step in (0, 6, 8)]
    assert (found.step, found.metrics, found.custom_metadata) == (6, {"loss": 1 / 7}, {"s": 6})
    assert found.time == found.commit_timestamp
    assert found.metadata["w"].shape == (3,)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["0", "6", "8", "metadata"]


@pytest.mark.slow
@WRITERS
@LIBRARIES
def test_each_continues_the_training_of_the_other(ocp, writer, tmp_path):
    """Steps, metrics, checkpointables and the metadata of the run."""
    with make_checkpointer(writer, tmp_path, custom_metadata={"seed": 3}) as checkpointer:
        response = checkpointer.save_checkpointables_async(
            4, {"state": small_tree(), "config": {"lr": 0.1}}, metrics={"loss": 0.5}
        )
        assert response.result(timeout=60) is True
    with make_checkpointer(ocp, tmp_path, custom_metadata={"seed": 4}) as checkpointer:
        assert checkpointer.root_metadata().custom_metadata == {"seed": 3}
        assert checkpointer.latest.metrics == {"loss": 0.5}
        assert_same(checkpointer.load(4), small_tree())
        target = {"state": abstract(small_tree(), first_device()), "config": None}
        loaded = checkpointer.load_checkpointables(checkpointer.latest, target)
        assert_same(loaded["state"], small_tree())
        assert loaded["config"] == {"lr": 0.1}
        assert list(checkpointer.load_checkpointables(None, {"config": None})) == ["config"]
        found = checkpointer.checkpointables_metadata()
        assert found.metadata.keys() == {"state", "config"}
        assert found.metrics == {"loss": 0.5}
        assert checkpointer.save(6, {"w": jnp.ones(2)}, checkpointable_name="other")
        assert_same(checkpointer.load(checkpointable_name="other"), {"w": jnp.ones(2)})
    names = [{p.name for p in (tmp_path / f"run/{step}").iterdir()} for step in (4, 6)]
    assert names[0] >= {"state", "config", "metrics"}
    assert not any("orbax.checkpoint" in each for each in names)


@LIBRARIES
def test_steps_that_exist_or_do_not(ocp, tmp_path):
    with make_checkpointer(ocp, tmp_path) as checkpointer:
        errors = ocp.training.errors
        with pytest.raises(errors.StepNotFoundError):
            checkpointer.load()
        checkpointer.save(2, {"w": np.zeros(3)})
        with pytest.raises(errors.StepAlreadyExistsError):
            checkpointer.save(2, {"w": np.ones(3)})
        for call in (
            checkpointer.load,
            checkpointer.metadata,
            checkpointer.checkpointables_metadata,
        ):
            with pytest.raises(errors.StepNotFoundError):
                call(3)
        assert checkpointer.save(2, {"w": np.ones(3)}, overwrite=True)
        assert checkpointer.load(2)["w"].tolist() == [1, 1, 1]
        assert not checkpointer.save(3, {"w": np.ones(3)})
        assert checkpointer.save(3, {"w": np.ones(3)}, force=True)
        assert [each.step for each in checkpointer.checkpoints] == [2, 3]
    assert issubclass(errors.StepNotFoundError, FileNotFoundError)
    assert issubclass(errors.StepAlreadyExistsError, FileExistsError)


CALLED = threading.Event()


@LIBRARIES
def test_contexts_names_and_older_names(ocp, tmp_path):
    CALLED.clear()
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    context.asynchronous.post_finalization_callback = lambda: CALLED.set()
    names = ocp.path.step.standard_name_format(step_prefix="at", step_format_fixed_length=4)
    with make_checkpointer(ocp, tmp_path, context=context, step_name_format=names) as checkpointer:
        seen = []
        response = checkpointer.save_async(0, small_tree())
        response.on_complete(seen.append)
        assert response.result()
        assert CALLED.wait(30)
        assert checkpointer.load(0, {"b": abstract(small_tree()["b"], first_device())}).keys() == {
            "b"
        }
        assert str(checkpointer.latest.path) == str(tmp_path / "run/at_0000")
        with pytest.warns(DeprecationWarning, match="Use `metadata` instead"):
            assert checkpointer.pytree_metadata(0).step == 0
        with pytest.warns(DeprecationWarning, match="Use `load` instead"):
            assert_same(checkpointer.load_pytree(0), small_tree())
        with pytest.raises(NotImplementedError):
            checkpointer.load_async(0)
    assert seen == [True]
    with make_checkpointer(ocp, tmp_path, step_name_format=names) as checkpointer:
        assert [each.step for each in checkpointer.checkpoints] == [0]


def test_differs_overwrite_that_is_not_saved(tmp_path):
    """Orbax deletes the step, and then does not save it, as it is not due; templax keeps it."""
    steps = {}
    for name, ocp in (("orbax", orbax.v1), ("templax", compat.v1)):
        with make_checkpointer(ocp, tmp_path / name) as checkpointer:
            for step in (2, 4):
                checkpointer.save(step, {"w": np.zeros(3)})
            assert not checkpointer.save(2, {"w": np.ones(3)}, overwrite=True)
            steps[name] = [each.step for each in checkpointer.checkpoints]
    assert steps == {"orbax": [4], "templax": [2, 4]}


class Unwritable:
    """A checkpointable that can't be saved, which only shows in the background."""

    async def save(self, directory):
        async def write():
            raise RuntimeError("no ink")

        return write()

    async def load(self, directory):
        raise NotImplementedError


def test_differs_overwrite_that_fails(tmp_path):
    """Orbax deletes the step first; templax swaps them at the end, in one step."""
    steps = {}
    for name, ocp in (("orbax", orbax.v1), ("templax", compat.v1)):
        with make_checkpointer(ocp, tmp_path / name) as checkpointer:
            checkpointer.save(2, {"w": np.zeros(3)})
            with pytest.raises(KeyError):
                checkpointer.save_checkpointables(2, {"other": object()}, overwrite=True)
        steps[name] = [p.name for p in (tmp_path / name / "run").iterdir() if p.name.isdigit()]
    assert steps == {"orbax": [], "templax": ["2"]}
    with make_checkpointer(compat.v1, tmp_path / "templax") as checkpointer:
        with pytest.raises(Exception, match="no ink"):
            checkpointer.save_checkpointables(2, {"it": Unwritable()}, overwrite=True)
        assert checkpointer.load(2)["w"].tolist() == [0, 0, 0]


def test_differs_steps_of_other_trainings(tmp_path):
    """templax lists the directory when it is asked for the steps."""
    seen = {}
    for name, ocp in (("orbax", orbax.v1), ("templax", compat.v1)):
        with make_checkpointer(ocp, tmp_path / name) as checkpointer:
            with make_checkpointer(ocp, tmp_path / name) as other:
                other.save(2, {"w": np.zeros(3)})
            seen[name] = [each.step for each in checkpointer.checkpoints]
            checkpointer.reload()
            assert checkpointer.latest.step == 2
    assert seen == {"orbax": [], "templax": [2]}


def test_differs_metadata_as_a_template_of_a_step(tmp_path):
    for name, ocp in (("orbax", orbax.v1), ("templax", compat.v1)):
        with make_checkpointer(ocp, tmp_path / name) as checkpointer:
            checkpointer.save(2, small_tree())
            found = checkpointer.metadata(2)
            assert_same(checkpointer.load(2, found.metadata), small_tree())
            if ocp is compat.v1:
                assert_same(checkpointer.load(2, found), small_tree())
            else:
                with pytest.raises(TypeError):
                    checkpointer.load(2, found)


def test_an_error_in_the_background_is_raised_where_it_is_asked_for_and_not_again(tmp_path):
    with make_checkpointer(compat.v1, tmp_path) as checkpointer:
        checkpointer.save(0, {"w": np.zeros(3)})
        response = checkpointer.save_checkpointables_async(2, {"it": Unwritable()})
        with pytest.raises(Exception, match="no ink"):
            response.result()
        checkpointer.wait()
        assert [each.step for each in checkpointer.checkpoints] == [0]
        checkpointer.save_checkpointables_async(2, {"it": Unwritable()})
        with pytest.raises(Exception, match="no ink"):
            checkpointer.load(0)
        assert checkpointer.load(0)["w"].tolist() == [0, 0, 0]
        assert checkpointer.save(4, {"w": np.ones(3)})
