"""Orbax restores what templax saves bit for bit, and templax what Orbax saves.

The installed Orbax runs in a process of its own, with 64-bit types and eight devices; `python -m
benchmarks.interop` does the same with old versions. What Orbax refuses is listed here.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import templax as tx
from helpers import choose_some

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))  # benchmarks are not part of the package

from benchmarks.interop import exchange, job, orbax_peer  # noqa: E402
from benchmarks.interop.save import OURS, OURS_ZSTD  # noqa: E402
from benchmarks.interop.trees import JOB, iterate_leaves, list_trees, make_node  # noqa: E402
from benchmarks.interop.verdicts import find_difference, judge_orbax  # noqa: E402

ITEM_CALLS = {
    *("pytree", "pytree+item", "standard", "standard+template", "v1", "v1+template", "metadata"),
}
STEP_CALLS = {"manager", "manager+template", "manager, no args", "manager, saving on"}
REFUSED = {
    **dict.fromkeys(("float8_e4m3", "uint4", "uint2"), ITEM_CALLS | STEP_CALLS),
    "zero-size arrays": {"manager, saving on"},
    "strings": {"standard+template", "manager+template"},
    "Python complex": {
        *("pytree+item", "standard+template", "v1+template"),
        *("manager+template", "manager, saving on"),
    },
}
"""The calls by which Orbax does not restore a tree; it does not save that tree either."""

COMPRESSED = choose_some([*list_trees()], 4)
"""The trees that Orbax restores from compressed files, too."""

OF_JOBS = [name for name in list_trees() if name.endswith(JOB)]
UNPLACED = {"pytree", "standard", "v1", "manager", "manager, no args"}
"""The calls that need the devices that saved, which a job numbers differently."""

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def exchanged(tmp_path_factory) -> SimpleNamespace:
    """All trees saved by templax and by Orbax, and what Orbax restored from both."""
    root = tmp_path_factory.mktemp("interop")
    with jax.enable_x64(True):
        nodes = exchange.save_trees(root)
    peer = exchange.Peer(ocp.__version__, sys.executable)
    peer.save(root)
    for tree in set(list_trees()) - set(COMPRESSED):
        shutil.rmtree(root / OURS_ZSTD / tree, ignore_errors=True)
    peer.restore(root, [OURS, OURS_ZSTD, job.ORBAX], counts=[8])
    return SimpleNamespace(root=root, nodes=nodes, peer=peer)


def list_answers(exchanged: SimpleNamespace, tree: str, files: str) -> dict[str, Any]:
    return {
        call: answer
        for (directory, name, call, _), answer in exchanged.peer.restored.items()
        if (directory, name) == (files, tree)
    }


@slow
@pytest.mark.parametrize(
    ("files", "tree"),
    [*((OURS, tree) for tree in list_trees()), *((OURS_ZSTD, tree) for tree in COMPRESSED)],
)
def test_orbax_restores_each_tree_by_each_call(exchanged, tree, files):
    found = list_answers(exchanged, tree, files)
    assert set(found) == ITEM_CALLS | (STEP_CALLS if files == OURS else set())
    node = exchanged.nodes[tree]
    failed = {call: text for call, a in found.items() if (text := find_difference(node, call, a))}
    refused = UNPLACED if tree in OF_JOBS else REFUSED.get(tree, set())
    assert set(failed) == refused & set(found), failed


@slow
@pytest.mark.parametrize("tree", OF_JOBS)
def test_orbax_needs_a_template_for_its_own_saves_of_a_job_too(exchanged, tree):
    node = exchanged.nodes[tree]
    found = list_answers(exchanged, tree, job.ORBAX)
    failed = {call for call, answer in found.items() if find_difference(node, call, answer)}
    assert failed == UNPLACED


@slow
@pytest.mark.parametrize("tree", REFUSED)
def test_orbax_cannot_save_what_it_does_not_restore(exchanged, tree):
    layout = "standard" if tree == "strings" else "item"
    assert "error" in exchanged.peer.saved[tree, layout]


@slow
@pytest.mark.parametrize("tree", list_trees())
def test_without_a_template_orbax_restores_types_and_shardings(exchanged, tree):
    leaves = dict(iterate_leaves(exchanged.nodes[tree]))
    for call in ("pytree", "standard", "v1", "manager", "manager, no args"):
        answer = list_answers(exchanged, tree, OURS)[call]
        for path, kind, _, _, _, sharding in answer.get("ok", ()):
            if (leaf := leaves.get(path)) is None or leaf["kind"] == "python":
                continue
            if "scalar" not in leaf:
                assert kind == {"numpy": "ndarray"}.get(leaf["kind"], leaf["kind"]), (call, path)
            if leaf["kind"] == "jax":
                shape, names, spec = leaf.get("mesh") or ([], [], [])
                entries = tuple(tuple(e) if isinstance(e, list) else e for e in spec)
                mesh = dict(zip(names, shape, strict=True))
                assert sharding == (f"{entries} over {mesh}" if mesh else "1 devices"), (call, path)


@slow
@pytest.mark.parametrize("tree", list_trees())
def test_templax_restores_what_orbax_saved(exchanged, tree):
    node, peer = exchanged.nodes[tree], exchanged.peer
    for layout in orbax_peer.SAVES:
        if "error" in peer.saved[tree, layout]:
            continue
        for how in ("manager", "step") if layout == "manager" else ("template", "catalog"):
            path = exchanged.root / peer.directory / tree / layout
            with jax.enable_x64(True):
                rows = exchange.restore_with_templax(path, node, how)
            assert not find_difference(node, how, {"ok": rows}), (layout, how)


def test_orbax_finds_the_custom_metadata(tmp_path):
    tx.save(tmp_path / "ckpt", {"w": jnp.ones(3)}, metadata={"run": "a", "lr": [0.5, None]})
    metadata = ocp.StandardCheckpointer().metadata(tmp_path / "ckpt")
    assert metadata.custom_metadata == {"run": "a", "lr": [0.5, None]}


@pytest.mark.slow
def test_two_managers_take_turns_in_one_directory(tmp_path):
    """Each lists, restores and deletes the steps of the other."""
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    template = {"w": jnp.zeros(4)}
    with (
        tx.Manager(tmp_path, keep=2) as ours,
        ocp.CheckpointManager(tmp_path, options=options) as theirs,
    ):
        for step in range(6):
            tree = {"w": jnp.full(4, float(step))}
            if step % 2:
                theirs.reload()
                theirs.save(step, args=ocp.args.StandardSave(tree))
                theirs.wait_until_finished()
            else:
                ours.save(step, tree, wait=True)
            theirs.reload()
            kept = [step - 1, step] if step else [step]
            assert ours.steps() == theirs.all_steps() == kept
            for there in kept:
                want = np.full(4, float(there), np.float32)
                np.testing.assert_array_equal(ours.restore(template, there)["w"], want)
                args = ocp.args.StandardRestore(template)
                np.testing.assert_array_equal(theirs.restore(there, args=args)["w"], want)


LEAF = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": 7}


def described(tree: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    node = make_node(tree, {})
    return node, {"ok": orbax_peer.describe_tree(node, tree)}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"w": LEAF["w"] + 1, "n": 7}, "other values at `/w`"),
        ({"w": LEAF["w"].astype(np.float64), "n": 7}, "float64[2, 3] instead of float32[2, 3]"),
        ({"w": LEAF["w"].reshape(3, 2), "n": 7}, "float32[3, 2] instead of float32[2, 3]"),
        ({"w": LEAF["w"], "n": 8}, "int 8 instead of 7 at `/n`"),
    ],
)
def test_a_value_that_differs_is_seen(changed, said):
    node, good = described(LEAF)
    bad = {"ok": orbax_peer.describe_tree(node, changed)}
    assert not find_difference(node, "pytree", good)
    assert find_difference(node, "pytree", bad).startswith(said)
    assert judge_orbax(node, "pytree", bad, good).kind == "FAIL"
    assert judge_orbax(node, "pytree", good, None).kind == "more"


def test_the_program_notices_a_missing_leaf_and_one_of_another_type():
    node, good = described(LEAF)
    with pytest.raises(LookupError, match=r"expected .*w.*, got"):
        orbax_peer.describe_tree(node, {"n": 7})
    placed = {"ok": orbax_peer.describe_tree(node, {**LEAF, "w": jnp.asarray(LEAF["w"])})}
    assert not find_difference(node, "pytree", placed)
    assert find_difference(node, "pytree", placed, good) == "type jax instead of ndarray at `/w`"


def test_the_program_distinguishes_failures_by_what_else_fails():
    node, good = described(LEAF)
    error = {"error": "ValueError: no", "where": "orbax/x.py:1 f"}
    kinds = [
        judge_orbax(node, "pytree", error, own, new).kind
        for own, new in (
            (good, good),
            (error, good),
            (good, error),
            (None, None),
        )
    ]
    assert kinds == ["FAIL", "own", "newest", "kind"]


def test_the_documented_tables_list_each_tree_and_no_failure():
    text = (ROOT / "docs" / "measurements" / "interoperability.md").read_text()
    rows = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines()]
    once = [name for name in list_trees() if name not in OF_JOBS]
    assert [row for row in rows if row in list_trees()] == [*list_trees(), *once]
    assert "FAIL" not in text


@slow
def test_the_program_prints_a_table_and_the_causes_of_failures(tmp_path):
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    command = [sys.executable, "-m", "benchmarks.interop", "--only", "float32", "--only", "uint4"]
    done = subprocess.run(
        [*command, "--python", f"{ocp.__version__}={sys.executable}"],
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "| float32 | ok | ok | ok | ok |" in lines
    assert "| uint4 | [1] | [1] | [1] | [1] |" in lines
    assert any(line.startswith("1. this Orbax can't save it: ValueError") for line in lines)
