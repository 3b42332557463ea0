"""Which directory is opened, what is said of it, and what is said instead."""

import asyncio
import json
import shutil

import msgspec
import numpy as np
import orbax.checkpoint as ocp
import pytest

from helpers import CORPUS
from templax.errors import (
    CheckpointError,
    Corrupted,
    NotFound,
    Uncommitted,
    UnknownFormat,
    Unsupported,
)
from templax.formats import open_catalog
from templax.formats.orbax.directory import Step, list_items, list_steps
from templax.storage import Local, Memory

TREE = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": 7}


@pytest.fixture(autouse=True)
def _own_event_loop():
    """Orbax makes an event loop and forgets it: it must not warn into another test."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    loop.close()
    asyncio.set_event_loop(None)


@pytest.fixture
def case(tmp_path):
    """A copy of a case of the corpus, to alter."""

    def copy(name, to="ckpt"):
        shutil.copytree(CORPUS / name / "ckpt", tmp_path / to)
        return tmp_path / to

    return copy


def _opened(path, **options):
    return open_catalog(Local(path), **options)


def _refused(path, kind=UnknownFormat):
    with pytest.raises(kind) as caught:
        _opened(path)
    assert type(caught.value) is kind
    return str(caught.value)


def _manager(path, steps=(10, 20), **options):
    with ocp.CheckpointManager(path, options=ocp.CheckpointManagerOptions(**options)) as manager:
        for step in steps:
            manager.save(step, args=ocp.args.StandardSave(TREE))


# --- what opens


def test_the_only_pytree_item_of_a_step_is_opened(tmp_path):
    _manager(tmp_path / "run")
    catalog = _opened(tmp_path / "run" / "20")
    assert catalog.url == str(tmp_path / "run" / "20" / "default")
    assert catalog.leaves["w"].shape == (2, 3)
    assert catalog.leaves["n"].kind == "scalar"
    assert catalog.metadata["step"] == 20
    assert catalog.metadata["item"] == "default"
    assert catalog.metadata["items"] == {"default": "pytree"}
    assert catalog.metadata["commit_timestamp_nsecs"] > 0
    assert json.dumps(dict(catalog.metadata))


def test_json_items_are_listed_and_not_counted(tmp_path):
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        manager.save(
            3,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(TREE), config=ocp.args.JsonSave({"lr": 0.1})
            ),
        )
    catalog = _opened(tmp_path / "run" / "3")
    assert catalog.metadata["items"] == {"config": "json", "state": "pytree"}
    assert catalog.metadata["item"] == "state"
    assert list_items(Local(tmp_path / "run" / "3")) == {"config": "json", "state": "pytree"}


def test_metrics_that_are_not_a_number_do_not_hide_a_step(tmp_path):
    options = ocp.CheckpointManagerOptions(best_fn=lambda m: m["loss"])
    with ocp.CheckpointManager(tmp_path / "run", options=options) as manager:
        metrics = {"loss": float("nan")}
        manager.save(1, args=ocp.args.StandardSave(TREE), metrics=metrics)
    catalog = _opened(tmp_path / "run" / "1")
    assert catalog.metadata["step"] == 1
    assert catalog.uncommitted is None


def test_an_item_saved_alone_opens_by_its_path(tmp_path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "alone", TREE)
    catalog = _opened(tmp_path / "alone")
    assert catalog.url == str(tmp_path / "alone")
    assert "step" not in catalog.metadata
    assert "item" not in catalog.metadata


def test_the_root_of_the_first_version_of_the_new_api_opens_its_state():
    catalog = _opened(CORPUS / "orbax-0.12.8-v1" / "ckpt")
    assert catalog.url.endswith("/ckpt/state")
    assert catalog.metadata["use_zarr3"] is True


def test_items_of_one_step_open_by_name():
    path = CORPUS / "orbax-0.12.8-manager" / "ckpt" / "10" / "ema"
    catalog = _opened(path)
    assert catalog.metadata["item"] == "ema"
    assert catalog.metadata["step"] == 10
    assert catalog.metadata["items"] == {"ema": "pytree", "meta": "json", "state": "pytree"}


@pytest.mark.parametrize(
    "file", ["_CHECKPOINT_METADATA", "_sharding", "array_metadatas", "commit_success.txt"]
)
@pytest.mark.parametrize("how", ["missing", "empty", "junk"])
def test_what_values_do_not_need_may_be_missing_or_broken(case, file, how):
    path = case("orbax-0.12.8-sharded8")
    target = path / file
    if target.is_dir():
        shutil.rmtree(target)
        if how != "missing":
            target.mkdir()
            (target / "process_0").write_bytes(b"" if how == "empty" else b"\xff{")
    elif how == "missing":
        target.unlink()
    else:
        target.write_bytes(b"" if how == "empty" else b"\xff{")
    assert len(_opened(path).entries) == 14


def test_sharding_in_an_unknown_spelling_is_not_shown(case):
    path = case("orbax-0.12.8-default")
    (path / "_sharding").write_text(
        '{"!": "x", "c3RhdGUuc3RlcA==": "{\\"sharding_type\\": 3}", "YQ==": 4}'
    )
    assert _opened(path).leaves["state.params.big"].saved_sharding is None


def test_custom_metadata_may_hold_nan(case):
    path = case("orbax-0.12.8-default")
    text = (path / "_METADATA").read_text()
    (path / "_METADATA").write_text(
        text.replace('"custom_metadata": null', '"custom_metadata": {"loss": NaN}')
    )
    loss = _opened(path).metadata["custom_metadata"]["loss"]
    assert loss != loss


def test_without_metadata_names_come_from_the_keys_of_arrays(case):
    for name, index in [
        ("orbax-0.12.8-default", "`manifest.ocdbt` and "),
        ("orbax-0.12.8-noocdbt", ""),
    ]:
        path = case(name, to=name)
        names = set(_opened(path).leaves)
        (path / "_METADATA").unlink()
        catalog = _opened(path)
        assert set(catalog.leaves) == names
        assert catalog.evidence == f"{index}the keys of its arrays, as `_METADATA` is missing"


# --- steps


def test_steps_with_a_prefix_and_a_fixed_length(tmp_path):
    _manager(tmp_path / "run", (3, 20), step_prefix="ckpt", step_format_fixed_length=8)
    assert list_steps(Local(tmp_path / "run")) == (
        Step(3, "ckpt_00000003"),
        Step(20, "ckpt_00000020"),
    )
    path = tmp_path / "run"
    assert _refused(path) == (
        f'{path} holds 2 steps; the latest committed step is 20; hint: open "{path}/ckpt_00000020"'
    )
    assert _opened(path / "ckpt_00000003").metadata["step"] == 3


def test_steps_sort_by_number_and_leave_other_directories_out(tmp_path):
    _manager(tmp_path, (9, 20, 100))
    (tmp_path / "7").mkdir()
    (tmp_path / "logs").mkdir()
    assert [step.step for step in list_steps(Local(tmp_path))] == [9, 20, 100]


def test_unfinished_steps_are_listed_as_such_and_never_hinted(tmp_path):
    _manager(tmp_path / "run")
    run = tmp_path / "run"
    shutil.copytree(run / "20", run / "30.orbax-checkpoint-tmp-1795")
    shutil.copytree(run / "20", run / "40")
    (run / "40" / "commit_success.txt").unlink()
    metadata = run / "40" / "_CHECKPOINT_METADATA"
    metadata.write_text(
        json.dumps(json.loads(metadata.read_text()) | {"commit_timestamp_nsecs": None})
    )
    assert [(s.key, s.committed) for s in list_steps(Local(run))] == [
        ("10", True),
        ("20", True),
        ("30.orbax-checkpoint-tmp-1795", False),
        ("40", False),
    ]
    assert _refused(run) == (
        f'{run} holds 4 steps; the latest committed step is 20; hint: open "{run}/20"'
    )
    assert "no commit time" in _refused(run / "40", Uncommitted)
    assert "no commit time" in _refused(run / "40" / "default", Uncommitted)
    temporary = run / "30.orbax-checkpoint-tmp-1795"
    assert "temporary directory of a save that never finished" in _refused(temporary, Uncommitted)
    assert len(_opened(temporary, uncommitted="allow").entries) == 2
    assert sorted(p.name for p in run.iterdir())[:2] == ["10", "20"]


def test_a_directory_of_unfinished_steps_only_gives_no_hint(tmp_path):
    _manager(tmp_path / "run", (10,))
    (tmp_path / "run" / "10").rename(tmp_path / "run" / "10.orbax-checkpoint-tmp-0")
    assert _refused(tmp_path / "run") == (
        f"{tmp_path / 'run'} holds 1 step, none of which was committed"
    )


# --- what does not open, and what to open instead


def test_several_items_are_listed_with_their_paths():
    path = CORPUS / "orbax-0.12.8-manager" / "ckpt"
    assert _refused(path / "10") == (
        f"{path}/10 holds several items: `ema` (pytree), `meta` (json), `state` (pytree); "
        f'hint: open "{path}/10/ema" or "{path}/10/state"'
    )
    assert _refused(path) == (
        f"{path} holds 2 steps; the latest committed step is 20; "
        f'hint: open "{path}/20/ema" or "{path}/20/state"'
    )


def test_an_item_that_does_not_open_is_not_hinted(case):
    path = case("orbax-0.12.8-manager")
    (path / "20" / "ema" / "manifest.ocdbt").write_bytes(b"")
    assert _refused(path / "20").endswith(f'; hint: open "{path}/20/state"')


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("orbax-0.12.8-default", "d"),
        ("orbax-0.12.8-default", "ocdbt.process_0"),
        ("orbax-0.12.8-default", "ocdbt.process_0/d"),
        ("orbax-0.12.8-default", "array_metadatas"),
        ("orbax-0.12.8-default", "_METADATA"),
        ("orbax-0.12.8-default", "ocdbt.process_0/manifest.ocdbt"),
        ("orbax-0.12.8-noocdbt", "state.params.big"),
        ("orbax-0.12.8-noocdbt", "state.params.big/0.0"),
    ],
)
def test_a_part_of_a_checkpoint_names_the_whole(name, part):
    path = CORPUS / name / "ckpt"
    assert _refused(path / part) == (
        f'{path / part} is a part of the checkpoint {path}; hint: open "{path}"'
    )


def test_a_json_item_is_no_pytree():
    path = CORPUS / "orbax-0.12.8-manager" / "ckpt" / "10" / "meta"
    assert _refused(path) == f"{path} is a JSON item, not a pytree"


def test_nothing_there(tmp_path):
    assert _refused(tmp_path / "x" / "y", NotFound) == f"There is nothing at {tmp_path}/x/y"


def test_a_missing_step_lists_the_steps_there_are():
    path = CORPUS / "orbax-0.12.8-manager" / "ckpt"
    for missing in ("30", "30/state"):
        assert _refused(path / missing, NotFound) == (
            f"There is nothing at {path}/{missing}; committed steps of {path}: 10, 20; "
            f'hint: open "{path}/20/ema" or "{path}/20/state"'
        )


def test_a_missing_path_suggests_its_neighbour_that_opens(case, tmp_path):
    path = case("orbax-0.12.8-default", to="model_ema")
    case("orbax-0.12.8-default", to="other")
    assert _refused(tmp_path / "model-ema", NotFound).endswith(f'; hint: open "{path}"')
    (path / "manifest.ocdbt").unlink()
    assert str(path) not in _refused(tmp_path / "model-ema", NotFound)


def test_a_missing_path_tells_of_a_save_that_never_committed():
    path = CORPUS / "orbax-0.12.8-crash_merge" / "ckpt"
    assert _refused(path, NotFound) == (
        f"There is nothing at {path}; a save of it never committed: "
        f"`ckpt.orbax-checkpoint-tmp` is beside it"
    )


def test_a_directory_of_named_checkpoints_lists_them(case, tmp_path):
    first, second = case("orbax-0.12.8-default", to="a"), case("orbax-0.12.8-noocdbt", to="b")
    assert _refused(tmp_path) == (
        f"{tmp_path} holds several items: `a` (pytree), `b` (pytree); "
        f'hint: open "{first}" or "{second}"'
    )


def test_a_directory_of_runs_lists_what_opens_below(case, tmp_path):
    manager = case("orbax-0.12.8-manager", to="runs/a")
    case("orbax-0.6.4-manager", to="runs/b")
    shutil.rmtree(tmp_path / "runs" / "b" / "20" / "state")
    assert _refused(tmp_path / "runs") == (
        f"Expected a checkpoint that templax reads at {tmp_path}/runs, got a directory that holds "
        f'checkpoints; hint: open "{manager}/20/ema" or "{manager}/20/state" or '
        f'"{tmp_path}/runs/b/20"'
    )


def test_a_step_of_json_alone_holds_no_pytree(case):
    path = case("orbax-0.12.8-manager")
    for item in ("ema", "state"):
        shutil.rmtree(path / "20" / item)
    assert _refused(path / "20") == f"{path}/20 holds no pytree item, only `meta` (json)"


def test_an_item_named_by_a_number_is_a_step(case):
    assert _opened(case("orbax-0.12.8-default", to="1000")).metadata["step"] == 1000


# --- files that are not what they should be

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


@pytest.mark.parametrize("file", ["_METADATA", "manifest.ocdbt"])
def test_a_pointer_of_git_lfs_is_called_that(case, file):
    path = case("orbax-0.12.8-default")
    (path / file).write_bytes(LFS)
    assert _refused(path) == (
        f"Expected checkpoint data, got a Git LFS pointer - file `{file}`; hint: run `git lfs pull`"
    )


def test_an_index_node_that_is_a_pointer_of_git_lfs_is_called_that(case):
    path = case("orbax-0.12.8-default")
    for file in (path / "d").iterdir():
        file.write_bytes(LFS)
    assert "got a Git LFS pointer - file `d/" in _refused(path)


def test_a_chunk_that_is_a_pointer_of_git_lfs_is_called_that(case):
    path = case("orbax-0.12.8-noocdbt")
    chunks = [f for f in path.rglob("*") if f.is_file() and f.name[0].isdigit()]
    assert chunks
    for file in chunks:
        file.write_bytes(LFS)
    catalog = _opened(path)
    with pytest.raises(UnknownFormat, match="got a Git LFS pointer - file `"):
        catalog.locate([e for e in catalog.entries if e.nbytes > 1000])


def test_a_data_file_that_is_a_pointer_of_git_lfs_is_called_that(case):
    path = case("orbax-0.12.8-uncompressed")
    for file in (path / "ocdbt.process_0" / "d").iterdir():
        file.write_bytes(LFS)
    catalog = _opened(path)
    with pytest.raises(UnknownFormat, match=r"got a Git LFS pointer - file `ocdbt.process_0/d/"):
        catalog.locate(catalog.entries)


def test_an_old_checkpoint_fetched_as_pointers_of_git_lfs():
    files = {"c/checkpoint": LFS, "c/w/0": LFS}
    with pytest.raises(UnknownFormat, match="got a Git LFS pointer - file `checkpoint`"):
        open_catalog(Memory(files, "c/"))
    with pytest.raises(UnknownFormat, match=r"got a Git LFS pointer - file `model.bin`"):
        open_catalog(Memory({"c/model.bin": LFS}, "c/"))


@pytest.mark.parametrize("name", ["orbax-0.2.3-default", "orbax-0.12.8-noocdbt"])
def test_lost_dot_files_are_called_that(case, name):
    path = case(name)
    for file in path.rglob(".zarray"):
        file.unlink()
    message = _refused(path, Corrupted)
    assert message.startswith("Expected `.zarray` beside `")
    assert message.endswith(
        "; hint: copy the checkpoint again, with the files whose names start with a dot"
    )


def test_lost_dot_files_without_any_metadata():
    files = {"c/w/0.0": b"", "c/w/0.1": b"", "c/b/0": b""}
    with pytest.raises(Corrupted) as caught:
        open_catalog(Memory(files, "c/"))
    assert str(caught.value) == (
        "Expected `.zarray` beside `b/0`, found none - at `b`, file `b/.zarray`; "
        "hint: copy the checkpoint again, with the files whose names start with a dot"
    )


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "an empty file"),
        (b"\x1f\x8b\x08", "a gzip file; hint: unpack it"),
        (b"\x28\xb5\x2f\xfd", "a zstd file; hint: unpack it"),
        (bytes(257) + b"ustar", "a tar archive; hint: unpack it"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"\x93NUMPY\x01", "a numpy array (`.npy`)"),
        (b"\x80\x04\x95", "a Python pickle, which templax never loads"),
        (b"model_checkpoint_path: 'x'", "the index of a TensorFlow checkpoint"),
        (b"hello", "a file of another kind"),
        (b"\x81\xa1a\x01", "a file of another kind"),
    ],
)
def test_other_files_are_named_by_their_signature(tmp_path, data, what):
    (tmp_path / "file").write_bytes(data)
    expected = f"Expected a checkpoint that templax reads at {tmp_path / 'file'}, got {what}"
    assert _refused(tmp_path / "file") == expected


def test_zip_archives_are_told_apart_by_their_first_member(tmp_path):
    import zipfile

    for member, what in [
        ("a.npy", "numpy archive"),
        ("archive/data.pkl", "PyTorch"),
        ("x", "unpack"),
    ]:
        with zipfile.ZipFile(tmp_path / "file", "w") as archive:
            archive.writestr(member, b"")
        assert what in _refused(tmp_path / "file")


def test_directories_of_other_files_list_some_of_them(tmp_path):
    assert _refused(tmp_path).endswith("got an empty directory")
    for name in "abcdef":
        (tmp_path / name).write_bytes(b"\x89HDF\r\n\x1a\n" if name == "a" else b"x")
    assert _refused(tmp_path).endswith(
        "got a directory of `a` (an HDF5 file), `b`, `c`, `d` and 2 more"
    )


def test_what_is_left_of_a_checkpoint_is_called_that(case):
    path = case("orbax-0.12.8-default")
    for name in ("_METADATA", "manifest.ocdbt"):
        (path / name).unlink()
    for name in ("d", "ocdbt.process_0"):
        shutil.rmtree(path / name)
    assert _refused(path).endswith(
        "got `_CHECKPOINT_METADATA` of an Orbax checkpoint without its `_METADATA` or arrays"
    )


# --- contradictions inside an item


def test_a_missing_index_is_damage(case):
    path = case("orbax-0.12.8-default")
    (path / "manifest.ocdbt").unlink()
    shutil.rmtree(path / "ocdbt.process_0")
    assert _refused(path, Corrupted) == (
        "Expected the index of the arrays, found none - file `manifest.ocdbt`"
    )


def test_a_leaf_without_an_array_in_the_index_is_named(case):
    path = case("orbax-0.12.8-default")
    text = (path / "_METADATA").read_text()
    (path / "_METADATA").write_text(text.replace('"key": "scale"', '"key": "scald"'))
    assert _refused(path, Corrupted) == (
        "Expected an array, `manifest.ocdbt` has none - at `state.params.scald`"
    )


def test_a_string_that_is_not_there_is_named(case):
    path = case("orbax-0.12.8-special")
    for text in ("{}", None):
        (path / "_strings.json").write_text(text) if text else (path / "_strings.json").unlink()
        assert _refused(path, Corrupted) == (
            "Expected a string, found none - at `text`, file `_strings.json`"
        )


def test_a_value_that_the_legacy_file_lacks_is_named(case):
    path = case("orbax-0.4.4-aggregate")
    (path / "checkpoint").write_bytes(b"\x80")
    assert _refused(path, Corrupted).startswith("Expected a value, found none - at `state.step`")
    (path / "checkpoint").unlink()
    assert _refused(path, Corrupted) == (
        "Expected the file that holds values, found none - file `checkpoint`"
    )


def test_two_leaves_of_one_name_are_both_listed(case):
    path = case("orbax-0.12.8-special")
    metadata = json.loads((path / "_METADATA").read_text())
    leaf = metadata["tree_metadata"]["('a.b',)"]
    keys = [{"key": "a", "key_type": 2}, {"key": "b", "key_type": 2}]
    metadata["tree_metadata"]["('a', 'b')"] = leaf | {"key_metadata": keys}
    (path / "_METADATA").write_text(json.dumps(metadata))
    found = [entry.path for entry in _opened(path).entries if entry.name == "a.b"]
    assert found == [("a.b",), ("a", "b")]


def test_altered_metadata_raises_only_errors_of_templax():
    """Every byte of every metadata file of small cases, changed one at a time at random."""
    rng = np.random.default_rng(0)
    for name in (
        "orbax-0.12.8-prng",
        "orbax-0.12.8-special",
        "orbax-0.4.4-aggregate",
        "orbax-0.2.3-default",
    ):
        root = CORPUS / name / "ckpt"
        objects = {
            f"c/{p.relative_to(root).as_posix()}": p.read_bytes()
            for p in root.rglob("*")
            if p.is_file()
        }
        files = [
            k
            for k in objects
            if k.split("/")[-1]
            in ("_METADATA", "_strings.json", "checkpoint", ".zarray", "_sharding")
        ]
        for _ in range(150):
            file = files[rng.integers(len(files))]
            changed = bytearray(objects[file])
            changed[rng.integers(len(changed))] = rng.integers(256)
            try:
                catalog = open_catalog(Memory(objects | {file: bytes(changed)}, "c/"))
                catalog.locate(catalog.leaves.values())
            except CheckpointError:
                pass


# --- what was found on checkpoints of others (Orbax's own golden ones, T5X's test data)


def test_a_directory_that_the_step_does_not_know_is_no_item(case, tmp_path):
    """Junk beside the items of a v1 step does not stop the step from being opened."""
    path = case("orbax-0.12.8-v1")
    (path / "dummy").mkdir()
    shutil.copy(path / "state" / "_METADATA", path / "dummy" / "_METADATA")
    assert _opened(path).url == str(path / "state")


def test_a_committed_checkpoint_without_its_index_is_damaged_not_unfinished(case):
    path = case("orbax-0.12.8-default")
    (path / "manifest.ocdbt").unlink()
    assert _refused(path, Corrupted) == (
        "The save was committed, but `manifest.ocdbt`, the index of its arrays, is missing"
        " - file `manifest.ocdbt`"
    )


def test_a_t5x_checkpoint_is_named_not_read_as_strings(tmp_path):
    spec = {"driver": "zarr", "dtype": "float32", "kvstore": {"driver": "file", "path": "w"}}
    (tmp_path / "checkpoint").write_bytes(msgspec.msgpack.encode({"target": {"w": spec}}))
    assert _refused(tmp_path, Unsupported) == (
        "templax does not read T5X's own checkpoints, whose leaves are TensorStore specs"
        " - at `target.w`, file `checkpoint`"
    )


def test_the_current_directory_is_known_by_its_name(tmp_path, monkeypatch):
    """`templax ls .` in a step directory knows the step."""
    _manager(tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run" / "20")
    assert _opened(".").metadata["step"] == 20
    monkeypatch.chdir("default")
    assert _opened("..").metadata["step"] == 20


def test_arrays_of_checkpoints_further_below_are_not_taken_for_ones_own(case, tmp_path):
    """A bare array in a directory does not make one checkpoint of all that lies below."""
    array = case("orbax-0.12.8-noocdbt", "runs/exp/ckpt") / "state.params.big"
    shutil.copytree(array, tmp_path / "runs" / "bare")
    assert list(_opened(tmp_path / "runs").leaves) == ["bare"]
