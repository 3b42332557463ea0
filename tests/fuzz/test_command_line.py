"""Whatever a path names, `templax` exits with 0, 1 or 2, and without a traceback.

Links, loops, modes, FIFOs, sockets, devices, names that are not UTF-8; and the whole corpus.
"""

import os
import re
import socket
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import templax as tx
from fuzz.command_line import run_commands
from helpers import CORPUS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX files")

READING = (
    ("ls",),
    ("ls", "--json"),
    ("verify",),
    ("steps",),
    ("steps", "--json"),
    ("prune", "--keep", "1", "--leftovers"),
)


def check(results, allowed=(0, 1, 2)):
    """Every command ended as documented, and one line says why it failed."""
    for result in results:
        where = f"templax {' '.join(result.arguments)!r} as it ended with {result.status}"
        assert result.status in allowed, f"{where}:\n{result.stderr[-3000:]}"
        assert "Traceback" not in result.stderr, f"{where}:\n{result.stderr[-3000:]}"
        text = result.stdout + result.stderr
        assert re.sub(r"[\n]", "", text).isprintable(), f"{where}: {text[:1000]!r}"
        if result.status == 2 and not result.stderr.startswith("Usage"):
            assert result.stderr.startswith("error: "), where
            lines = result.stderr.splitlines()
            assert sum(line.startswith("error: ") for line in lines) == 1, where


def read_all(*paths):
    """Every command that reads, for each path."""
    return [[command[0], *command[1:], str(path)] for path in paths for command in READING]


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4), ids=lambda part: f"part {part + 1} of 4")
def test_the_whole_corpus(part, tmp_path):
    cases = sorted(path for path in CORPUS.iterdir() if path.is_dir() and path.name[0] != "_")
    paths = [
        path
        for case in cases[part::4]
        for path in case.iterdir()
        if path.name not in ("HOW.json", "expected.json")
    ]
    commands = read_all(*paths)
    commands += [["template", str(path), "-o", f"{i}.json"] for i, path in enumerate(paths)]
    check(run_commands(tmp_path, commands))
    made = {path.stem: path for path in tmp_path.glob("*.json")}
    fitting = [["check", str(paths[int(stem)]), str(path)] for stem, path in made.items()]
    results = run_commands(tmp_path, fitting)
    check(results, allowed=(0, 2))


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint, a run of two steps, and a template that fits."""
    tree = {"a": np.arange(4, dtype=np.float32), "b": {"c": np.ones((2, 3), np.int8)}}
    tx.save(tmp_path / "c", tree)
    for step in (1, 2):
        tx.save(tmp_path / "run" / str(step), tree)
    tx.save_template(tree, tmp_path / "t.json")
    return tmp_path


@pytest.mark.slow
def test_links(checkpoint):
    root = checkpoint
    (root / "self").symlink_to("self")
    (root / "dangling").symlink_to("nowhere")
    (root / "linked").symlink_to("c")
    (root / "above").mkdir()
    (root / "above" / "up").symlink_to("..")
    (root / "above" / "loop").symlink_to("loop")
    (root / "above" / "root").symlink_to("/")
    for place in ("c", "run", "run/1", "c/d"):
        (root / place / "loop").symlink_to("loop")
        (root / place / "gone").symlink_to("nowhere")
        (root / place / "up").symlink_to("..")
    (root / "run" / "3").symlink_to("3")
    (root / "run" / "4").symlink_to("../c")
    (root / "run" / "root").symlink_to("/")
    names = ("self", "self/x", "dangling", "linked", "above", "c", "c/d", "run", "run/1", "run/3")
    check(run_commands(root, read_all(*names, "run/4", "nothing", "c/loop", "run/1/nothing")))
    tests = [["check", name, "t.json"] for name in names]
    tests += [["check", "c", name] for name in ("self", "dangling", "c", "run/3")]
    check(run_commands(root, tests))


@pytest.mark.slow
def test_files_of_other_kinds(checkpoint):
    root = checkpoint
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(root)
        try:
            server.bind("socket")
        finally:
            os.chdir(here)
    (root / "empty").write_bytes(b"")
    (root / "nothing").mkdir()
    (root / "one").write_bytes(b"\x80")
    os.truncate(os.open(root / "sparse.safetensors", os.O_CREAT | os.O_WRONLY), 1 << 40)
    for place in ("_METADATA", "manifest.ocdbt", "checkpoint", "templax.index", "d/x"):
        path = root / place.replace("/", "_") / place
        path.parent.mkdir(parents=True)
        os.mkfifo(path)
    (root / "directories").mkdir()
    for name in ("_METADATA", "manifest.ocdbt", "checkpoint", "templax.index", "_sharding"):
        (root / "directories" / name).mkdir()
    devices = ("/dev/zero", "/dev/null", "/dev/full", "/proc/self/mem", "/proc/self/fd", "/dev/fd")
    names = [path.name for path in root.iterdir() if path.name != "run"]
    check(run_commands(root, read_all(*names, *devices)))
    templates = [*devices, "fifo", "socket", "empty", "one", "nothing", "sparse.safetensors"]
    check(run_commands(root, [["check", "c", name] for name in templates]))


@pytest.mark.slow
def test_outputs_that_can_not_be_written(checkpoint):
    (checkpoint / "loop").symlink_to("loop")
    places = ("/", "c", "loop", "nowhere/x", "c/_METADATA/x", "/dev/full", "/proc/x", "a" * 300)
    results = run_commands(checkpoint, [["template", "c", "-o", place] for place in places])
    check(results, allowed=(2,))


@pytest.mark.slow
def test_modes(checkpoint):
    if os.getuid() != 0:
        pytest.skip("only root can run commands as another user")
    if not _can_nobody_read(checkpoint):
        pytest.skip("the user nobody can't reach the temporary directory")
    root = checkpoint
    for mode in (0o000, 0o444, 0o744, 0o711, 0o333):
        tx.save(root / f"{mode:03o}" / "c", {"a": np.ones(2)})
        (root / f"{mode:03o}").chmod(mode)
    for name in ("_METADATA", "manifest.ocdbt", "templax.index", "d"):
        tx.save(root / f"in_{name}", {"a": np.ones(2)})
        (root / f"in_{name}" / name).chmod(0)
    (root / "run" / "2").chmod(0)
    (root / "secret.json").write_text("{}")
    (root / "secret.json").chmod(0)
    (root / "closed.safetensors").write_bytes(b"x")
    (root / "closed.safetensors").chmod(0)
    names = sorted(path.name for path in root.iterdir())
    inside = [f"{name}/c" for name in names if name[0].isdigit()]
    commands = read_all(*names, *inside, "run/1", "run/2", "run/2/x")
    commands += [["check", "c", "secret.json"], ["template", "c", "-o", "made.json"]]
    check(run_commands(root, commands, nobody=True))
    assert not (root / "made.json").exists()


def _can_nobody_read(directory: Path) -> bool:
    """Opens the temporary directory for others, and says whether that is enough."""
    for parent in (directory, *directory.parents):
        if parent == Path(parent.anchor):
            return True
        if not parent.stat().st_mode & stat.S_IXOTH:
            if not parent.name.startswith(("pytest", "test_")):
                return False
            parent.chmod(parent.stat().st_mode | 0o055)
    return True


@pytest.mark.slow
def test_names(checkpoint):
    root = os.fsencode(checkpoint)
    names = [
        b"\xff\xfe",
        b"a\nerror: forged",
        b"\x1b[31mred",
        b"\xe2\x80\xa8",
        b"a b",
        b"-x",
        b"~",
        b"%41",
    ]
    for name in names:
        os.symlink(b"c", os.path.join(root, name))
        os.mkdir(os.path.join(root, b"run", name))
        with open(os.path.join(root, b"c", name), "wb"):
            pass
        with open(os.path.join(root, b"run/1", name), "wb"):
            pass
        os.mkdir(os.path.join(root, b"d_" + name))
        with open(os.path.join(root, b"d_" + name, b"3" + name), "wb"):
            pass
    texts = [name.decode("utf-8", "surrogateescape") for name in names]
    paths = (
        [f"./{text}" for text in texts] + [f"d_{text}" for text in texts] + ["c", "run", "run/1"]
    )
    paths += [
        "a" * 300,
        "/".join("a" * 3000),
        "c/" + "b" * 300,
        "",
        " ",
        "gs://x",
        "file://h/x",
        "\u2028",
    ]
    check(run_commands(checkpoint, read_all(*paths)))
    tests = [["check", "c", path] for path in paths] + [["check", path, "t.json"] for path in paths]
    check(run_commands(checkpoint, tests))


@pytest.mark.slow
def test_deep_directories(checkpoint):
    here = os.open(checkpoint, os.O_RDONLY)
    for name in ("deep", *["d"] * 1500):
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    results = run_commands(checkpoint, read_all("deep", "deep/d", "."))
    subprocess.run(["rm", "-rf", checkpoint / "deep"], check=True)  # pytest's own way is recursive
    check(results)


@pytest.mark.slow
def test_a_file_outside_the_run_is_never_changed(checkpoint):
    precious = checkpoint / "precious"
    precious.write_text("p" * 99)
    elsewhere = checkpoint / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "1").mkdir()
    (elsewhere / "1" / "_METADATA").write_text("{}")
    run = checkpoint / "run"
    (run / ".templax.lock").symlink_to("../precious")
    (run / "0").symlink_to("../elsewhere/1")
    (run / "5.orbax-checkpoint-tmp-1").symlink_to("../elsewhere")
    keep = ["--keep", "1", "--leftovers", "--yes"]
    check(run_commands(checkpoint, [["prune", *keep, "run"], ["prune", *keep, "elsewhere"]]))
    with pytest.raises(tx.TemplaxError), tx.Manager(run) as manager:
        manager.save(9, {"a": np.ones(2)}, wait=True)
    assert precious.read_text() == "p" * 99
    assert (elsewhere / "1" / "_METADATA").read_text() == "{}"
