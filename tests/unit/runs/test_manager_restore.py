"""Manager.restore and what a manager says of a run without changing it."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import templax as tx
from helpers import CORPUS
from run_directories import copy_steps
from templax._restore import api
from templax._runs import resume
from templax.storage.leftovers import delete_checkpoint

TWO_ITEMS = CORPUS / "orbax-0.12.8-manager" / "ckpt"


def init(key):
    return {"w": jax.random.normal(key, (3, 4)), "b": jnp.zeros(4, jnp.bfloat16)}


TEMPLATE = {"w": jax.ShapeDtypeStruct((3, 4), jnp.float32), "b": np.zeros(4, jnp.bfloat16)}


RECIPE = tx.Recipe(init, jax.random.key(0))


SCALE = {"scale": jax.ShapeDtypeStruct((), jnp.float32)}


AT = {"at": "state.params", "extra": "ignore"}


def test_the_latest_committed_step_is_restored(tmp_path):
    copy_steps(tmp_path, ["7", "20"])
    copy_steps(tmp_path, ["30"], "damaged-uncommitted")
    (tmp_path / "40.orbax-checkpoint-tmp-templax-0a").mkdir()
    manager = tx.Manager(tmp_path)
    assert (manager.steps(), manager.latest()) == ([7, 20], 20)
    shutil.rmtree(tmp_path / "7" / "d")
    assert manager.restore(SCALE, **AT)["scale"].dtype == jnp.float32
    with pytest.raises(tx.Corrupted):
        manager.restore(SCALE, 7, **AT)


def test_an_item_is_chosen_by_name_if_there_are_several():
    template = {"scale": jax.ShapeDtypeStruct((), jnp.float32)}
    ema = tx.Manager(TWO_ITEMS, item="ema").restore(template, at="ema", extra="ignore")
    state = tx.Manager(TWO_ITEMS, item="state").restore(template, 10, **AT)
    assert ema["scale"] == state["scale"]
    with pytest.raises(tx.UsageError) as caught:
        tx.Manager(TWO_ITEMS).restore(template)
    assert str(caught.value) == (
        f"Expected a step with one tree, found `ema`, `state` in {TWO_ITEMS}/20;"
        ' hint: templax.Manager(..., item="ema")'
    )


def test_a_missing_step_is_refused_with_the_committed_steps(tmp_path):
    copy_steps(tmp_path, ["7", "20"])
    with pytest.raises(tx.NotFound) as caught:
        tx.Manager(tmp_path).restore(SCALE, 8, **AT, missing=RECIPE)
    assert str(caught.value) == (
        f"There is nothing at {tmp_path}/8; committed steps of {tmp_path}: 7, 20; hint: open"
        f' "{tmp_path}/20"'
    )
    with pytest.raises(tx.NotFound, match="no committed step 8"):
        tx.Manager(tmp_path).metrics(8)


def test_an_uncommitted_step_is_refused(tmp_path):
    copy_steps(tmp_path, ["30"], "damaged-uncommitted")
    with pytest.raises(tx.Uncommitted):
        tx.Manager(tmp_path).restore(SCALE, 30, **AT)


@pytest.mark.parametrize("there", [False, True])
def test_a_run_without_steps_gives_initial_values_if_asked(tmp_path, there):
    path = tmp_path / "run"
    if there:
        (path / "logs").mkdir(parents=True)
        (path / "logs" / "events.out.tfevents.1").write_bytes(b"1")
        (path / "config.json").write_text("{}")
    manager = tx.Manager(path, keep=2)
    tree = manager.restore(TEMPLATE, missing=RECIPE)
    assert (tree["w"] == init(jax.random.key(0))["w"]).all()
    assert type(tree["b"]) is np.ndarray
    assert manager.restore(TEMPLATE["w"], at="w", missing=RECIPE, cast="exact").shape == (3, 4)
    kept = manager.restore({"n": np.ones(2)}, missing="keep")
    assert kept["n"].tolist() == [1, 1]
    with pytest.raises(tx.TemplateError, match="at `other`"):
        manager.restore({"other": SCALE["scale"]}, missing=RECIPE)
    with pytest.raises(tx.NotFound) as caught:
        manager.restore(TEMPLATE)
    assert str(caught.value) == (
        f"{path} holds no committed step; hint: missing=templax.Recipe(init, key) begins with"
        " initial values"
    )
    assert path.exists() == there


def test_listing_and_restoring_change_no_file(tmp_path):
    copy_steps(tmp_path, ["7"])
    before = sorted((p, p.stat().st_mtime_ns) for p in [tmp_path, *tmp_path.rglob("*")])
    with tx.Manager(tmp_path, keep=1) as manager:
        manager.restore(SCALE, **AT)
        assert (manager.steps(), manager.best("loss"), manager.metrics(7)) == ([7], None, {})
    assert sorted((p, p.stat().st_mtime_ns) for p in [tmp_path, *tmp_path.rglob("*")]) == before


def test_restore_takes_the_previous_step_if_the_latest_is_deleted_meanwhile(tmp_path, monkeypatch):
    """The latest step is deleted between its listing and its reading."""
    copy_steps(tmp_path, ["7", "20"])
    manager = tx.Manager(tmp_path)
    listed = resume.read_steps

    def late(url):
        found = listed(url)
        if (tmp_path / "20").exists():
            shutil.rmtree(tmp_path / "20")
        return found

    monkeypatch.setattr(resume, "read_steps", late)
    assert manager.restore(SCALE, **AT)["scale"].shape == ()


def test_a_step_is_locked_while_it_is_restored(tmp_path, monkeypatch):
    copy_steps(tmp_path, ["7"])
    seen = []
    restoring = api.run_plan

    def watched(plan, *args, **options):
        seen.append(delete_checkpoint(tmp_path / "7"))
        return restoring(plan, *args, **options)

    monkeypatch.setattr(api, "run_plan", watched)
    tx.Manager(tmp_path).restore(SCALE, **AT)
    assert seen == [False]
    assert (tmp_path / "7").exists()


def test_a_cast_warning_points_to_the_caller(tmp_path):
    copy_steps(tmp_path, ["7"])
    with pytest.warns(tx.CastWarning) as caught:
        tx.Manager(tmp_path).restore({"scale": jax.ShapeDtypeStruct((), jnp.bfloat16)}, **AT)
    assert caught[0].filename == __file__


def test_best_is_chosen_by_a_metric(tmp_path):
    copy_steps(tmp_path, ["1", "2", "3", "4", "5"])
    losses = {"1": "0.5", "2": "0.25", "3": "NaN", "5": "0.25"}
    for step, loss in losses.items():
        (tmp_path / step / "metrics").mkdir()
        (tmp_path / step / "metrics" / "metrics").write_text(f'{{"loss": {loss}}}')
    manager = tx.Manager(tmp_path)
    assert (manager.best("loss"), manager.best("loss", "max"), manager.best("x")) == (5, 1, None)
    assert (manager.metrics(1), manager.metrics(4)) == ({"loss": 0.5}, {})
    with pytest.raises(tx.UsageError, match="mode="):
        manager.best("loss", "least")


def test_the_path_of_a_run_does_not_depend_on_a_later_chdir(tmp_path, monkeypatch):
    copy_steps(tmp_path / "run", ["7"])
    monkeypatch.chdir(tmp_path)
    manager = tx.Manager("run")
    monkeypatch.chdir("/")
    assert manager.steps() == [7]
    assert manager.path(7) == str(tmp_path / "run" / "7")


@pytest.mark.parametrize(
    ("existing", "step", "name"),
    [
        ([], 5, "5"),
        (["ckpt_0007"], 5, "ckpt_0005"),
        (["ckpt_0007"], 7, "ckpt_0007"),
        (["007", "7.orbax-checkpoint-tmp-1"], 7, "007"),
    ],
)
def test_path_gives_the_directory_of_an_existing_or_new_step(tmp_path, existing, step, name):
    copy_steps(tmp_path, existing)
    assert tx.Manager(tmp_path).path(step) == str(tmp_path / name)


@pytest.mark.parametrize("path", [TWO_ITEMS / "10", CORPUS / "orbax-0.12.8-default" / "ckpt"])
def test_a_checkpoint_is_not_a_run(path):
    with pytest.raises(tx.UsageError) as caught:
        tx.Manager(path).steps()
    assert str(caught.value) == f"Expected a directory of steps, got the checkpoint {path}"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: tx.Manager(""), 'Expected a path, got ""'),
        (lambda: tx.Manager(tx.storage.Memory({})), "Expected a path, got Memory"),
        (
            lambda: tx.Manager("x", item=""),
            "Expected item= a name (str), and not `metrics`, got ''",
        ),
        (
            lambda: tx.Manager("x", item="a/b"),
            "Expected item= a name (str), and not `metrics`, got 'a/b'",
        ),
        (
            lambda: tx.Manager("x", item=".a"),
            "Expected item= a name (str), and not `metrics`, got '.a'",
        ),
        (lambda: tx.Manager("x", keep=0), "Expected keep= an int of at least 1, got 0"),
    ],
)
def test_invalid_arguments_of_a_manager_are_refused(make, says):
    with pytest.raises(tx.UsageError) as caught:
        make()
    assert str(caught.value) == says


def test_item_is_required_if_a_step_has_several_trees(tmp_path):
    case = CORPUS / "orbax-0.12.8-manager" / "ckpt"
    shutil.copytree(case, tmp_path / "run")
    manager = tx.Manager(tmp_path / "run")
    for call in (lambda: manager.restore({}), lambda: manager.save(30, {"w": np.ones(3)})):
        with pytest.raises(tx.UsageError, match=r'found `ema`, `state`.*item="ema"'):
            call()
    manager.close()
    leaf = {"state": {"params": {"scale": np.float32(0)}}}
    got = tx.Manager(tmp_path / "run", item="state").restore(leaf, extra="ignore")
    assert got["state"]["params"]["scale"].dtype == np.float32


@pytest.mark.parametrize("place", ["init.safetensors", "pretrained/model.safetensors"])
def test_a_run_begins_with_a_file_that_lies_in_its_own_directory(
    tmp_path: Path, place: str
) -> None:
    file = tmp_path / "run" / place
    file.parent.mkdir(parents=True)
    safetensors.numpy.save_file({"w": np.ones(3, np.float32)}, file)
    manager, template = tx.Manager(tmp_path / "run"), {"w": np.zeros(3, np.float32)}
    assert manager.restore(template, missing=file)["w"].tolist() == [1, 1, 1]
    assert manager.restore(template, missing={"*": file})["w"].tolist() == [1, 1, 1]
    stats = tx.last_restore()
    assert stats is not None
    assert stats.began_anew
    with pytest.raises(tx.UnknownFormat):
        manager.restore(template, missing="keep")
