"""JSON items beside a tree: listed as what they are, and read."""

import json
import math
import shutil

import numpy as np
import orbax.checkpoint as ocp
import pytest
from orbax.checkpoint.experimental import v1

import templax as tx
from helpers import CORPUS
from templax.errors import Corrupted, NotFound, Uncommitted
from templax.formats.orbax.directory import examine_directory, list_items
from templax.formats.orbax.json_item import read_json_item
from templax.storage import Local, Memory

pytestmark = pytest.mark.usefixtures("own_event_loop")

TREE = {"w": np.arange(6, dtype=np.float32)}
VALUE = {"epoch": 3, "index": [1, 2.5, None, True], "note": "ü"}


@pytest.fixture
def step(tmp_path):
    """A step that Orbax saved with two JSON items and metrics."""
    options = ocp.CheckpointManagerOptions(best_fn=lambda metrics: metrics["loss"])
    with ocp.CheckpointManager(tmp_path / "run", options=options) as manager:
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(TREE),
            data_iter=ocp.args.JsonSave(VALUE),
            config=ocp.args.JsonSave({"lr": math.nan}),
        )
        manager.save(3, args=args, metrics={"loss": 0.5})
    return tmp_path / "run" / "3"


def test_an_item_is_read_by_its_path_or_its_name(step):
    assert tx.read_json(step / "data_iter") == VALUE
    assert tx.read_json(step, "data_iter") == VALUE
    assert tx.read_json(Local(step), "data_iter") == VALUE
    assert tx.read_json(step, "metrics") == {"loss": 0.5}
    assert math.isnan(tx.read_json(step, "config")["lr"])


def test_the_only_json_item_needs_no_name(step):
    shutil.rmtree(step / "config")
    assert tx.read_json(step) == VALUE  # metrics are not counted


def test_what_is_there_is_listed_if_the_name_is_missing_or_wrong(step):
    listed = "`config` (json), `data_iter` (json), `metrics` (json), `state` (pytree)"
    hint = f'hint: templax.read_json("{step}", "config") reads one'
    for name, wanted in (
        (None, "one JSON item"),
        ("nix", "the JSON item `nix`"),
        ("state", "the JSON item `state`"),
    ):
        with pytest.raises(NotFound) as caught:
            tx.read_json(step, name)
        assert str(caught.value) == f"Expected {wanted}, found {listed} - file `{step}`; {hint}"
    with pytest.raises(NotFound, match="There is nothing at"):
        tx.read_json(step / "nix")
    with pytest.raises(NotFound, match="Expected a JSON item, found none"):
        tx.read_json(step / "state")


@pytest.mark.skipif(not hasattr(v1, "handlers"), reason="this Orbax has no handlers in v1")
@pytest.mark.parametrize("name", ["metadata", "cfg"])
def test_the_json_of_the_v1_api_is_named_and_read(tmp_path, name):
    registry = v1.handlers.local_registry()
    registry.add(v1.handlers.JsonHandler, checkpointable_name=name)
    context = v1.Context()
    context.checkpointables.registry = registry
    with context:
        v1.save_checkpointables(tmp_path / "ckpt", {"state": TREE, name: VALUE})
    assert (tmp_path / "ckpt" / name / "data.json").exists()
    assert list_items(Local(tmp_path / "ckpt")) == {name: "json", "state": "pytree"}
    assert tx.open(tmp_path / "ckpt").metadata["items"] == {name: "json", "state": "pytree"}
    assert tx.read_json(tmp_path / "ckpt") == VALUE
    with pytest.raises(tx.UnknownFormat) as caught:
        tx.open(tmp_path / "ckpt" / name)
    assert caught.value.hint == f'templax.read_json("{tmp_path}/ckpt/{name}") reads it'


def test_a_file_of_any_name_is_json_if_the_step_says_so(tmp_path):
    handler = ocp.JsonCheckpointHandler(filename="position.txt")
    composite = ocp.CompositeCheckpointHandler(config=handler)
    with ocp.Checkpointer(composite) as checkpointer:
        args = ocp.args.Composite(config=ocp.args.JsonSave(VALUE))
        checkpointer.save(tmp_path / "ckpt", args=args)
    assert list_items(Local(tmp_path / "ckpt")) == {"config": "json"}
    assert tx.read_json(tmp_path / "ckpt", "config") == VALUE
    assert tx.read_json(tmp_path / "ckpt" / "config") == VALUE


def test_a_directory_with_a_data_json_is_not_taken_for_orbax(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "data.json").write_text("{}")
    assert examine_directory(Local(tmp_path)) is None
    assert examine_directory(Local(tmp_path / "train")) is None


def test_the_json_of_old_steps_is_read():
    for case in ("orbax-0.2.3-manager", "orbax-0.6.4-manager", "orbax-0.12.8-manager"):
        path = CORPUS / case / "ckpt" / "20" / "meta"
        assert tx.read_json(path) == json.loads((path / "metadata").read_text())


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000])
def test_what_is_not_json_is_damage(data):
    with pytest.raises(Corrupted, match=r"The JSON is unreadable: .* - file `metadata`"):
        read_json_item(Memory({"run/3/config/metadata": data}, "run/3/config/"))


def test_a_save_that_never_finished_is_read_only_if_asked(step):
    about = json.loads((step / "_CHECKPOINT_METADATA").read_text())
    (step / "_CHECKPOINT_METADATA").write_text(json.dumps(about | {"commit_timestamp_nsecs": None}))
    (step / "commit_success.txt").unlink(missing_ok=True)  # before Orbax 0.12 there is none
    for path, item in ((step, "data_iter"), (step / "data_iter", None)):
        with pytest.raises(Uncommitted, match=r'; hint: .* uncommitted="allow"'):
            tx.read_json(path, item)
        assert tx.read_json(path, item, uncommitted="allow") == VALUE
    with pytest.raises(tx.UsageError):
        tx.read_json(step, "data_iter", uncommitted="maybe")
