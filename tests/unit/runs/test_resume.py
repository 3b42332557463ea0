"""What `Manager.restore` does with a directory without steps, and with a damaged step."""

import errno
import logging
import os
import pickle
import shutil
import socket
import zipfile
from pathlib import Path

import equinox as eqx
import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import templax as tx
from helpers import copy_case, flip_bit, run_cli
from run_directories import copy_steps
from templax.storage import Local
from templax.storage.leftovers import temporary_path

TREE = {"w": jnp.ones(3)}


INIT = tx.Recipe(lambda: {"w": jnp.zeros(3)})


def begin_anew(run):
    return tx.Manager(run).restore(TREE, missing=INIT)


def write_msgpack(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(flax.serialization.to_bytes({"w": np.ones(3, "f4")}))


def write_pytorch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("agent/data.pkl", b"")


def write_npz(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, w=np.ones(3))


def write_pickle(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps({"w": np.ones(3)}))


def write_equinox(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    eqx.tree_serialise_leaves(path, {"b": np.zeros(4, "f4"), "w": np.ones((3, 4), "f4")})


def write_safetensors(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file({"w": np.ones(3, "f4")}, path)


FOREIGN = {
    "a msgpack file": lambda run: write_msgpack(run / "checkpoint_10"),
    "a file below a step": lambda run: write_msgpack(run / "10" / "default" / "model.eqx"),
    "another number": lambda run: tx.save(run / "ckpt_1.5", TREE),
    "another name": lambda run: tx.save(run / "best", TREE),
    "a directory of steps": lambda run: tx.save(run / "checkpoints" / "10", TREE),
    "a file without a number": lambda run: write_msgpack(run / "model.eqx"),
    "an empty step": lambda run: (run / "10").mkdir(parents=True),
    "an Equinox file": lambda run: write_equinox(run / "d.eqx"),
    "a msgpack file without a number": lambda run: write_msgpack(run / "b.msgpack"),
    "a Flax checkpoint": lambda run: write_msgpack(run / "b.ckpt"),
    "a PyTorch file": lambda run: write_pytorch(run / "agent.zip"),
    "arrays of another name": lambda run: write_npz(run / "policy.npz"),
    "a link to nothing": lambda run: (run.mkdir(), (run / "10").symlink_to(run / "gone")),
    "an empty file": lambda run: (run.mkdir(), (run / "12").touch()),
    "an array": lambda run: write_npz(run / "step_3.npz"),
}


def safely_open(path):
    try:
        return tx.open(path)
    except tx.TemplaxError as error:
        return error


@pytest.mark.parametrize("policy", ["recipe", "keep", "error"])
@pytest.mark.parametrize("case", FOREIGN)
def test_a_run_does_not_begin_anew_beside_what_it_cannot_read(tmp_path, case, policy):
    run = tmp_path / "run"
    FOREIGN[case](run)
    missing = INIT if policy == "recipe" else policy
    with pytest.raises(tx.UnknownFormat) as caught:
        tx.Manager(run).restore(TREE, missing=missing)
    text = str(caught.value)
    (name,) = os.listdir(run)
    start = f"Expected a committed step, or nothing like one, in {run}, found `{name}` ("
    assert text.startswith(start)
    assert text.endswith("move it elsewhere, or use another directory")
    _, _, path = text.rpartition("); hint: ")[2].partition('to restore from it, open "')
    files = [Path(path.partition('"')[0])] if path else []
    restored = [tx.restore(file, tx.open(file).template()) for file in files]
    assert all(np.ravel(jax.tree.leaves(tree)[-1])[0] == 1 for tree in restored)
    opens = isinstance(safely_open(run / name), tx.Catalog) and (run / name).is_file()
    assert files == ([run / name] if opens else [])
    shutil.rmtree(run)
    assert float(begin_anew(run)["w"][0]) == 0


def test_everything_that_looks_like_a_step_is_listed(tmp_path):
    copy_steps(tmp_path, ["30"], "damaged-uncommitted")
    for number in range(9):
        write_msgpack(tmp_path / f"checkpoint_{number}")
    with pytest.raises(tx.UnknownFormat) as caught:
        begin_anew(tmp_path)
    assert "`30` (`_CHECKPOINT_METADATA` has no commit time" in str(caught.value)
    assert "`checkpoint_0` (a Flax msgpack file)" in str(caught.value)
    assert "and 2 more" in str(caught.value)


@pytest.mark.parametrize("name", ["30", "30.orbax-checkpoint-tmp-17", "dead"])
def test_a_run_does_not_begin_anew_beside_unfinished_saves(tmp_path, name):
    run = tmp_path / "run"
    run.mkdir()
    path = Path(temporary_path(str(run / "30"))) if name == "dead" else run / name
    copy_case("damaged-uncommitted", path)
    with pytest.raises(tx.Uncommitted) as caught:
        begin_anew(run)
    assert f"found `{path.name}` (" in str(caught.value)
    if name == "dead":
        told = f"`templax prune {run} --leftovers --yes`"
        assert str(caught.value).endswith(f"hint: {told} deletes what dead saves left")
        run_cli(*told.strip("`").split()[1:])
        assert float(begin_anew(run)["w"][0]) == 0
    else:
        assert str(caught.value).endswith(
            "hint: wait for the save that is in progress, or move what it left elsewhere"
        )


@pytest.mark.parametrize(
    "name",
    [
        "events.out.tfevents.1732779000.host.123.0",
        "core.12345",
        "slurm-12345.out",
        ".cache_1",
        "version_0/events.out.tfevents.1",
        "logs/3.txt",
        "metadata/_ROOT_METADATA",
        "config/metadata",
        "plots_2/loss.png",
        "latest-run.log",
    ],
)
def test_a_run_begins_beside_logs_and_the_like(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"{}")
    assert float(begin_anew(tmp_path)["w"][0]) == 0


def test_a_file_is_not_a_run(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for path, says in (
        (tmp_path / "file", f"Expected a directory of steps, got the file {tmp_path}/file"),
        (
            tmp_path / "link",
            f"Expected a directory of steps, got the link {tmp_path}/link to {tmp_path}/gone, where"
            " there is nothing",
        ),
    ):
        for call in (begin_anew, lambda path: tx.Manager(path).latest()):
            with pytest.raises(tx.UsageError) as caught:
                call(path)
            assert str(caught.value) == says
    with pytest.raises(tx.SourceError, match="Not a directory"):
        begin_anew(tmp_path / "file" / "run")


def refuse_listing(monkeypatch, refused):
    """Tests may run as root, who can read everything."""
    real = os.scandir

    def scandir(path="."):
        if os.fspath(path) == str(refused):
            raise PermissionError(13, os.strerror(13))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)


def test_a_directory_that_cannot_be_read_is_not_empty(tmp_path, monkeypatch):
    refuse_listing(monkeypatch, tmp_path)
    with pytest.raises(tx.SourceError, match="Permission denied"):
        begin_anew(tmp_path)


def test_the_log_and_the_figures_say_that_a_run_began_anew(tmp_path, caplog):
    caplog.set_level(logging.INFO, "templax")
    begin_anew(tmp_path)
    assert caplog.messages[-1].startswith(
        f"began anew, as {tmp_path} holds no step: 1 leaf from missing=, 12 bytes in "
    )
    stats = tx.last_restore()
    assert (stats.began_anew, stats.step, stats.skipped_steps) == (True, None, ())
    tx.save(tmp_path / "4", TREE)
    begin_anew(tmp_path)
    stats = tx.last_restore()
    assert (stats.began_anew, stats.step, stats.skipped_steps) == (False, 4, ())
    assert caplog.messages[-1].startswith(f"restored 1 leaf, 12 bytes of {tmp_path}/4 in ")


def test_a_listing_without_steps_warns_once_of_what_is_there(tmp_path, caplog):
    write_msgpack(tmp_path / "checkpoint_10")
    manager = tx.Manager(tmp_path)
    assert (manager.latest(), manager.steps()) == (None, [])
    (text,) = caplog.messages
    assert "found `checkpoint_10` (a Flax msgpack file)" in text


def test_later_steps_that_cannot_be_taken_are_named(tmp_path, caplog):
    caplog.set_level(logging.INFO, "templax")
    tx.save(tmp_path / "10", TREE)
    copy_steps(tmp_path, ["20"], "damaged-uncommitted")
    write_msgpack(tmp_path / "30" / "default" / "model.eqx")
    write_msgpack(tmp_path / "5" / "default" / "model.eqx")
    tx.Manager(tmp_path).restore(TREE)
    stats = tx.last_restore()
    assert stats.step == 10
    assert [text.partition(" ")[0] for text in stats.skipped_steps] == ["`20`", "`30`"]
    assert "; skipped `20` (" in caplog.messages[-1]
    (said,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert said == f"step 10 of {tmp_path} is restored, not {'; '.join(stats.skipped_steps)}"


def test_a_later_step_that_is_empty_is_named(tmp_path):
    """As a save to an object store leaves it that was killed."""
    tx.save(tmp_path / "10", TREE)
    (tmp_path / "20").mkdir()
    (tmp_path / "version_30").mkdir()
    tx.Manager(tmp_path).restore(TREE)
    (skipped,) = tx.last_restore().skipped_steps
    assert skipped == "`20` (an empty directory)"


def test_a_step_that_lost_its_item_is_damaged(tmp_path):
    with tx.Manager(tmp_path) as manager:
        for step in (1, 2):
            manager.save(step, TREE)
    shutil.rmtree(tmp_path / "2" / "default")
    with pytest.raises(tx.UnknownFormat) as caught:
        tx.Manager(tmp_path).restore(TREE)
    assert str(caught.value).startswith("Step 2 is damaged: Expected a checkpoint")
    assert str(caught.value).endswith("hint: the previous step is 1: `restore(template, 1)`")
    tx.Manager(tmp_path).restore(TREE, fallback=True)
    assert tx.last_restore().step == 1


@pytest.fixture
def torn_run(tmp_path):
    """Steps 1 to 4; `tear(step)` removes the data files of a step."""
    with tx.Manager(tmp_path) as manager:
        for step in (1, 2, 3, 4):
            manager.save(step, {"w": jnp.full((64, 64), float(step))})
    return tmp_path


WANT = {"w": jnp.zeros((64, 64))}


def find_data(run, step):
    return next((run / str(step) / "default" / "d").iterdir())


def tear(run, *steps):
    for step in steps:
        find_data(run, step).unlink()


def test_a_damaged_step_is_named_with_the_one_before_it(torn_run):
    file = find_data(torn_run, 4)
    tear(torn_run, 4)
    for step in (None, 4):
        with pytest.raises(tx.Corrupted) as caught:
            tx.Manager(torn_run).restore(WANT, step)
        assert str(caught.value) == (
            f"Step 4 is damaged: Expected a data file, found none - at `w`, file `{file}`; hint:"
            " the previous step is 3: `restore(template, 3)`"
        )
    assert float(tx.Manager(torn_run).restore(WANT, 3)["w"][0, 0]) == 3


def test_the_step_to_restore_instead_is_whole(torn_run):
    tear(torn_run, 4)
    shutil.rmtree(torn_run / "3" / "default" / "d")
    with pytest.raises(tx.Corrupted) as caught:
        tx.Manager(torn_run).restore(WANT)
    assert str(caught.value).endswith(
        "hint: the newest whole step before it is 2: `restore(template, 2)`"
    )
    os.truncate(find_data(torn_run, 2), 9)
    tear(torn_run, 1)
    with pytest.raises(tx.Corrupted) as caught:
        tx.Manager(torn_run).restore(WANT)
    assert "hint" not in str(caught.value)


def test_a_flipped_bit_is_named_by_step_and_path(torn_run):
    file = find_data(torn_run, 4)
    file.write_bytes(flip_bit(file.read_bytes(), 100))
    with pytest.raises(tx.Corrupted) as caught:
        tx.Manager(torn_run).restore(WANT)
    assert caught.value.file == str(file)
    assert "restore(template, 3)" in str(caught.value)


def damage_index(run, step):
    (run / str(step) / "default" / "templax.index").write_bytes(b"1234")


def flip(run, step):
    file = find_data(run, step)
    file.write_bytes(flip_bit(file.read_bytes(), 100))


@pytest.mark.parametrize("damage", [tear, damage_index, flip])
def test_fallback_restores_the_newest_step_that_is_whole(torn_run, damage, caplog):
    damage(torn_run, 4)
    damage(torn_run, 3)
    got = tx.Manager(torn_run).restore(WANT, fallback=True)
    assert float(got["w"][0, 0]) == 2
    stats = tx.last_restore()
    assert stats.step == 2
    assert [text.partition(" ")[0] for text in stats.skipped_steps] == ["`4`", "`3`"]
    said = [text.partition(" is skipped: ")[0] for text in caplog.messages]
    assert said == [f"step {step} of {torn_run}" for step in (4, 3)]
    assert float(tx.Manager(torn_run).restore(WANT, 2, fallback=True)["w"][0, 0]) == 2


def test_fallback_does_not_begin_anew_or_hide_other_errors(torn_run):
    manager = tx.Manager(torn_run)
    with pytest.raises(tx.TemplateError):
        manager.restore({"w": jnp.zeros(3)}, fallback=True)
    with pytest.raises(tx.NotFound, match="no committed step 9"):
        manager.restore(WANT, 9, fallback=True)
    with pytest.raises(tx.UsageError, match="missing="):
        manager.restore(WANT, fallback=True, missing="kep")
    tear(torn_run, 1, 2, 3, 4)
    init = tx.Recipe(lambda: {"w": jnp.zeros((64, 64))})
    with pytest.raises(tx.Corrupted) as caught:
        manager.restore(WANT, fallback=True, missing=init)
    text = str(caught.value)
    assert text.startswith(f"Expected a step that is whole in {torn_run}, found `4` (Expected a")
    assert all(f"`{step}` (" in text for step in (1, 2, 3, 4))


def test_fallback_begins_a_run_and_lists_again_what_was_deleted(torn_run, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    got = tx.Manager(empty).restore(TREE, fallback=True, missing=INIT)
    assert (float(got["w"][0]), tx.last_restore().began_anew) == (0, True)


def test_damage_of_the_checkpoint_that_supplies_leaves_is_not_the_steps(torn_run):
    other = torn_run / "other"
    tx.save(other, {"w": jnp.zeros((64, 64)), "b": jnp.zeros((64, 64))})
    next((other / "d").iterdir()).unlink()
    want = WANT | {"b": jnp.zeros((64, 64))}
    for fallback in (False, True):
        with pytest.raises(tx.Corrupted) as caught:
            tx.Manager(torn_run).restore(want, missing=other, fallback=fallback)
        assert "Step 4" not in str(caught.value)
        assert "at `b`" in str(caught.value)


def test_directories_whose_names_differ_by_more_than_a_number_are_no_run(tmp_path):
    names = ["actor_catch_4", "actor_circle_3", "actor_surround_5", "mo"]
    for name in names:
        tx.save(tmp_path / name, TREE)
    manager = tx.Manager(tmp_path)
    for call in (
        manager.steps,
        manager.latest,
        lambda: manager.restore(TREE),
        lambda: manager.restore(TREE, missing=INIT),
        lambda: manager.save(6, TREE),
    ):
        with pytest.raises(tx.UsageError) as caught:
            call()
        assert str(caught.value) == (
            "Expected steps whose names differ by their number only, got `actor_circle_3`,"
            f" `actor_catch_4`, `actor_surround_5` in {tmp_path}; hint: move those of one name to a"
            " directory of their own"
        )
    manager.close()
    with pytest.raises(tx.UnknownFormat) as caught:
        tx.open(tmp_path)
    assert all(f"`{name}`" in str(caught.value) for name in names)


def test_a_run_of_epochs_is_continued(tmp_path):
    for number in (1, 10, 12):
        tx.save(tmp_path / f"epoch-{number}", {"w": jnp.full(3, float(number))})
    with tx.Manager(tmp_path) as manager:
        assert manager.steps() == [1, 10, 12]
        assert float(manager.restore(TREE)["w"][0]) == 12
        manager.save(13, TREE)
        assert manager.path(13) == str(tmp_path / "epoch-13")
    with pytest.raises(tx.UnknownFormat, match="the latest committed step is 13"):
        tx.open(tmp_path)


BELOW = {
    ("backup", "d.eqx"): (write_equinox, "an Equinox file"),
    ("old", "step_3/model.eqx"): (write_msgpack, "a Flax msgpack file"),
    ("old", "7/default/state"): (write_msgpack, "a Flax msgpack file"),
    ("old", "ckpt_3/arrays.npz"): (write_npz, "a numpy archive (`.npz`)"),
    ("saved", "params.npz"): (write_npz, "a numpy archive (`.npz`)"),
    ("saved", "best_model.pkl"): (write_pickle, "a Python pickle, which templax never loads"),
    ("out", "m.safetensors"): (write_safetensors, "a checkpoint"),
}


@pytest.mark.parametrize("case", BELOW, ids="/".join)
def test_a_run_does_not_begin_anew_beside_a_directory_of_checkpoints(tmp_path, case):
    """Somebody has named the directory above that of the run."""
    name, file = case
    write, what = BELOW[case]
    write(tmp_path / name / file)
    (tmp_path / name / "log.txt").touch()
    with pytest.raises(tx.UnknownFormat) as caught:
        begin_anew(tmp_path)
    assert f"found `{name}` (a directory that holds `{file}`, {what}); hint: " in str(caught.value)
    assert run_cli("steps", tmp_path).exit_code == 2


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("data/train-00001.npz", write_npz),
        ("data/shard_1/x.npz", write_npz),
        ("samples/step_100.npz", write_npz),
        ("plots/loss_3.pkl", write_pickle),
        ("replay/7/buffer.pkl", write_pickle),
        (".trash/d.eqx", write_equinox),
        ("loss.pkl", write_pickle),
        ("histogram.npy", lambda path: np.save(path, np.ones(3))),
    ],
)
def test_a_run_begins_beside_data_and_samples(tmp_path, name, write):
    write(tmp_path / name)
    assert float(begin_anew(tmp_path)["w"][0]) == 0


@pytest.mark.slow
def test_looking_into_the_directories_of_a_run_costs_little(tmp_path, monkeypatch):
    for number in range(3):
        for each in range(200):
            path = tmp_path / f"data{chr(97 + number)}" / f"{each}.bin"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"x")
    opened = []
    real = Local.read
    monkeypatch.setattr(
        Local, "read", lambda self, *a, **k: opened.append(0) or real(self, *a, **k)
    )
    begin_anew(tmp_path)
    assert 200 <= len(opened) <= 1024  # a few for each of 256 files


def test_a_later_link_to_nothing_and_an_unreadable_step_are_named(tmp_path, monkeypatch, caplog):
    for step in (10, 20):
        tx.save(tmp_path / str(step), TREE)
    (tmp_path / "30").symlink_to(tmp_path / "gone")
    (tmp_path / "5").symlink_to(tmp_path / "gone")
    refuse_listing(monkeypatch, tmp_path / "20")
    tx.Manager(tmp_path).restore(TREE)
    stats = tx.last_restore()
    assert stats.step == 10
    assert stats.skipped_steps == (
        f"`20` (can't read `{tmp_path}/20`: Permission denied)",
        f"`30` (a link to {tmp_path}/gone, where there is nothing)",
    )
    assert all(text in caplog.text for text in stats.skipped_steps)


@pytest.mark.parametrize("name", ["10", "logs"])
def test_a_run_does_not_begin_beside_what_cannot_be_read(tmp_path, monkeypatch, name):
    (tmp_path / name).mkdir()
    refuse_listing(monkeypatch, tmp_path / name)
    with pytest.raises(tx.SourceError, match="Permission denied"):
        begin_anew(tmp_path)


def test_training_goes_on_after_a_fallback(torn_run):
    tear(torn_run, 3, 4)
    state = {"w": jnp.full((64, 64), 9.0)}
    with tx.Manager(torn_run, keep=2) as manager:
        manager.restore(WANT, fallback=True)
        with pytest.raises(tx.AlreadyExists):
            manager.save(2, state)
        manager.save(3, state, wait=True)
        assert manager.steps() == [2, 3, 4]  # the damaged 4 does not count
        manager.save(4, state, wait=True)
        assert manager.steps() == [3, 4]
        with pytest.raises(tx.AlreadyExists):
            manager.save(4, state)
        manager.save(5, state, wait=True)
        assert manager.steps() == [4, 5]
        assert float(manager.restore(WANT)["w"][0, 0]) == 9


def test_a_step_between_damaged_ones_can_be_saved_after_a_fallback(torn_run):
    tear(torn_run, 4)
    with tx.Manager(torn_run) as manager:
        manager.save(9, WANT, wait=True)
        tear(torn_run, 9)
        manager.restore(WANT, fallback=True)
        manager.save(7, WANT, wait=True)
        manager.save(8, WANT, wait=True)
    with tx.Manager(torn_run) as manager, pytest.raises(tx.SaveError):
        manager.save(6, WANT)  # another manager knows of no damage


def test_a_disk_that_fails_to_read_a_step_damages_it(torn_run, monkeypatch):
    real = Local._open_file
    code = errno.EIO

    def failing(self, key):
        if "/4/" in f"{self.url}/{key}" and "/d/" in f"/{key}":
            raise self._make_error(key, OSError(code, os.strerror(code)))
        return real(self, key)

    monkeypatch.setattr(Local, "_open_file", failing)
    assert float(tx.Manager(torn_run).restore(WANT, fallback=True)["w"][0, 0]) == 3
    assert "Input/output error" in tx.last_restore().skipped_steps[0]
    code = errno.EACCES
    with pytest.raises(tx.SourceError, match="Permission denied"):
        tx.Manager(torn_run).restore(WANT, fallback=True)


def test_a_step_saved_after_the_highest_is_named(tmp_path, caplog):
    with tx.Manager(tmp_path) as manager:
        manager.save(100, TREE)
        manager.save(40, TREE, overwrite=True, wait=True)
        manager.restore(TREE)
        said = ("`40` (saved after `100`, though its number is lower)",)
        assert (tx.last_restore().step, tx.last_restore().skipped_steps) == (100, said)
        assert caplog.messages == [f"step 100 of {tmp_path} is restored, not {said[0]}"]
        manager.restore(TREE, fallback=True)
        assert (tx.last_restore().step, tx.last_restore().skipped_steps) == (100, said)
        manager.save(101, TREE, wait=True)
        manager.restore(TREE)
        assert tx.last_restore().skipped_steps == ()


def test_another_directory_of_the_step_is_named(tmp_path):
    for name in ("10", "000010"):
        tx.save(tmp_path / name, TREE)
    tx.Manager(tmp_path).restore(TREE)
    assert tx.last_restore().skipped_steps == ("`000010` (the same step as `10`)",)


def test_a_socket_that_is_called_like_a_step_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("8")
        with pytest.raises(tx.UnknownFormat, match=r"found `8` \(can't read `.*8`: No such device"):
            begin_anew(tmp_path)
