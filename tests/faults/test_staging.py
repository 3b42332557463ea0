"""A staged save that is killed or refused at any operation leaves the old state or the new."""

from __future__ import annotations

import errno
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import templax as tx
from helpers import mark_slow
from templax.storage import Staging
from templax.storage.disk import Disk
from templax.storage.leftovers import delete_checkpoint, find_abandoned
from templax.testing import FaultyDisk, Operation, assert_durable

PROGRAM = Path(__file__).with_name("staging_kill_points.py")
points = SimpleNamespace(**runpy.run_path(str(PROGRAM)))
OVERWRITE = {"save": False, "overwrite": True}


def kill_everywhere(action: str, root: Path) -> tuple[list[str], list[dict]]:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(root / "points"), action],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONWARNINGS": "error"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return found["operations"], found["kills"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "action", ["replace", *mark_slow("save", "file", "overwrite", "remove", "withdraw")]
)
def test_an_action_killed_anywhere_leaves_a_whole_state(action: str, tmp_path: Path) -> None:
    """Before each operation and in each write."""
    operations, kills = kill_everywhere(action, tmp_path)
    assert len(kills) == len(operations) + operations.count("write") > 8
    before, after = {
        "save": ("none", "new"),
        "overwrite": ("old", "new"),
        "file": ("none", "new"),
        "replace": ("old", "new"),
        "remove": ("old", "old"),
        "withdraw": ("old", "none"),
    }[action]
    step = {
        "save": "rename",
        "overwrite": "exchange",
        "withdraw": "rename",
        "file": "link",
        "replace": "exchange",
    }.get(action)
    turn = len(operations) - 1 - operations[::-1].index(step) if step else len(operations)
    for kill in kills:
        assert kill["signal"] == 9, kill
        assert kill["state"] == (before if kill["at"] <= turn else after), kill
        assert kill["all_temporary"], kill
        assert kill["all_reported"], kill
        assert kill["next_state"] == "new", kill
        assert kill["cleared"], kill
    assert any(kill["abandoned"] for kill in kills)


@pytest.fixture(params=["save", "overwrite"])
def action(request: pytest.FixtureRequest) -> str:
    return request.param


def trace_save(action: str, root: Path) -> tuple[list[Operation], int]:
    """The operations of a whole save, and the number after which it is durable."""
    path = points.prepare(root, action)
    disk = FaultyDisk()
    points.save(path, disk, OVERWRITE[action])
    assert points.read(path) == points.NEW
    synced = [
        i for i, o in enumerate(disk.trace) if (o.name, o.path) == ("fsync", str(path.parent))
    ]
    return disk.trace, synced[-1] + 1


@pytest.mark.parametrize("code", [errno.ENOSPC, *mark_slow(errno.EIO, errno.EACCES, errno.EROFS)])
def test_a_refused_operation_leaves_the_target_alone(
    action: str, code: int, tmp_path: Path
) -> None:
    """And nothing behind. Once the save is durable, refused removals are only reported."""
    root = tmp_path / "points"
    trace, kept = trace_save(action, root)
    for at, operation in enumerate(trace):
        path = points.prepare(root, action)
        disk = FaultyDisk(at=at, fault=code)
        if at < kept:
            with pytest.raises(tx.SaveError, match=os.strerror(code)) as caught:
                points.save(path, disk, OVERWRITE[action])
            assert "nothing was saved and nothing is left behind" in str(caught.value), operation
            state = points.name_state(points.read(path))
            assert state == ("old" if action == "overwrite" else "none")
            names = ["NAME"] if action == "overwrite" else []  # the created parent is gone, too
            assert [p.name for p in root.iterdir()] == names, operation
        else:
            staging = points.save(path, disk, OVERWRITE[action])
            assert points.read(path) == points.NEW, operation
            siblings = {str(p) for p in path.parent.iterdir() if p != path}
            assert set(staging.not_removed) == siblings == set(find_abandoned(path)), operation


def test_a_disk_that_fails_for_good_keeps_the_old_state(action: str, tmp_path: Path) -> None:
    """The error and `stale` name what can't be removed."""
    root = tmp_path / "points"
    _, kept = trace_save(action, root)
    for at in range(kept):
        path = points.prepare(root, action)
        with pytest.raises(tx.SaveError) as caught:
            points.save(path, FaultyDisk(at=at, fault=errno.EROFS, lasting=True), OVERWRITE[action])
        left = find_abandoned(path)
        siblings = [str(p) for p in path.parent.glob("*") if p != path]
        assert left == siblings
        assert all(directory in str(caught.value) for directory in left)
        state = points.name_state(points.read(path))
        if at < kept - 1:
            assert state == ("old" if action == "overwrite" else "none")
            assert ("could not be removed" in str(caught.value)) == bool(left)
        else:  # it was moved, and could be neither synced nor moved back
            assert state == "new"
            assert "it is in place, but a loss of power may undo it" in str(caught.value)
            assert points.read(Path(left[0])) == points.OLD if action == "overwrite" else not left


def test_a_refused_withdrawal_leaves_a_checkpoint_whole_or_gone(tmp_path: Path) -> None:
    disk = FaultyDisk()
    assert delete_checkpoint(points.prepare(tmp_path / "points", "withdraw"), disk)
    turn = [o.name for o in disk.trace].index("rename")
    for at in range(len(disk.trace)):
        path = points.prepare(tmp_path / "points", "withdraw")
        with pytest.raises(tx.SaveError, match="can't remove: Input/output error - file "):
            delete_checkpoint(path, FaultyDisk(at=at, fault=errno.EIO))
        assert points.name_state(points.read(path)) == ("old" if at <= turn else "none")
        assert find_abandoned(path) == [str(p) for p in path.parent.iterdir() if p != path]


def test_what_a_save_syncs_survives_a_loss_of_power(action: str, tmp_path: Path) -> None:
    trace, _ = trace_save(action, tmp_path / "points")
    path = points.prepare(tmp_path / "points", action)
    assert_durable(trace, path)


def test_no_sync_is_superfluous(action: str, tmp_path: Path) -> None:
    """Without any one of them, `assert_durable` fails."""
    trace, _ = trace_save(action, tmp_path / "points")
    path = points.prepare(tmp_path / "points", action)
    syncs = [i for i, operation in enumerate(trace) if operation.name == "fsync"]
    assert len(syncs) > 5
    for i in syncs:
        with pytest.raises(AssertionError, match="was not synced after"):
            assert_durable(trace[:i] + trace[i + 1 :], path)


def test_assert_durable_needs_one_move(tmp_path: Path) -> None:
    trace, _ = trace_save("overwrite", tmp_path / "points")
    path = points.prepare(tmp_path / "points", "overwrite")
    moves = [o for o in trace if o.to == str(path) and o.done]
    for wrong in ([o for o in trace if o not in moves], [*trace, *moves]):
        with pytest.raises(AssertionError, match="Expected one move to"):
            assert_durable(wrong, path)


def test_nothing_is_removed_before_the_move_is_synced(tmp_path: Path) -> None:
    trace, kept = trace_save("overwrite", tmp_path / "points")
    path = points.prepare(tmp_path / "points", "overwrite")
    removed = next(o for o in trace[kept:] if o.name == "unlink")
    with pytest.raises(AssertionError, match="was changed before the move was synced"):
        assert_durable([*trace[: kept - 1], removed, *trace[kept - 1 :]], path)


def test_a_write_after_the_sync_is_not_durable(tmp_path: Path) -> None:
    trace, kept = trace_save("save", tmp_path / "points")
    path = points.prepare(tmp_path / "points", "save")
    late = next(o for o in trace if o.name == "write")
    with pytest.raises(AssertionError, match="was not synced after its last write"):
        assert_durable([*trace[: kept - 3], late, *trace[kept - 3 :]], path)


def test_a_write_between_two_syncs_is_synced_again(tmp_path: Path) -> None:
    disk = FaultyDisk()
    with Staging(tmp_path / "NAME", overwrite=False, disk=disk) as staging:
        file = staging.create("a")
        file.write(b"1")
        file.sync()
        file.sync()
        file.write(b"2")
        staging.commit()
    assert_durable(disk.trace, tmp_path / "NAME")
    syncs = [o for o in disk.trace if o.name == "fsync" and o.path.endswith("/a")]
    assert len(syncs) == 2  # the second call had nothing to do
    assert (tmp_path / "NAME" / "a").read_bytes() == b"12"


def test_a_faulty_disk_writes_half_when_it_is_full(tmp_path: Path) -> None:
    disk = FaultyDisk(at=1, fault=errno.ENOSPC)
    fd = disk.create(str(tmp_path / "a"))
    with pytest.raises(OSError, match="No space left"):
        disk.write(fd, memoryview(b"12345678"), 0)
    disk.close(fd)
    assert (tmp_path / "a").read_bytes() == b"1234"
    assert disk.trace == [
        Operation("create", str(tmp_path / "a"), done=True),
        Operation("write", str(tmp_path / "a")),
        Operation("close", str(tmp_path / "a"), done=True),
    ]


def test_every_operation_of_a_disk_can_fail(tmp_path: Path) -> None:
    """An operation that `FaultyDisk` lacks would not be tested."""
    operations = {name for name in vars(Disk) if not name.startswith("_")}
    assert operations <= set(vars(FaultyDisk))
